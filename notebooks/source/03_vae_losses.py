# %% [markdown]
# # What the VAE learns from
#
# **Who tells a network what a good copy of a film is?**
#
# Left, a film. In the middle and on the right stands the best still picture for it: the one picture that,
# shown in all 17 frames, is least wrong on average. Both are "best". They only count errors in two different
# ways.

# %% tags=["nbval-ignore-output"]
import copy
from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import rearrange

from minicogvx.ablation import compare_vaes, load_results
from minicogvx.ablation.studies import STUDIES
from minicogvx.ablation.vaes import measured_clips, round_trip, spatial_gradient
from minicogvx.compat import choose_dtype
from minicogvx.course import (
    check, compare_clips, hint, new_figure, notebook_device, show_clip, show_figure, show_rows, show_source, solution,
)
from minicogvx.data.world.drawing import render
from minicogvx.data.world.scenes import BACKGROUNDS, Scene, ShapeObject
from minicogvx.engine.optim import MuonAdamW
from minicogvx.evaluation.reconstruction import flicker
from minicogvx.interop.lpips_weights import load_lpips
from minicogvx.presets import preset
from minicogvx.training.videos import world_batch
from minicogvx.vae import CausalVAE
from minicogvx.vae.discriminator import DiscriminatorConfig, PatchDiscriminator3D
from minicogvx.vae.gan import adaptive_weight, hinge_discriminator_loss
from minicogvx.vae.losses import VAELoss, VAELossConfig, reconstruction_l1
from minicogvx.vae.perceptual import PerceptualDistance

torch.set_grad_enabled(False)  # on again only where something is trained
device = notebook_device()  # the processor, unless MINICOGVX_DEVICE names another device


def to_pixels(film):
    """A film for people, t h w 3 in 0..1, as the model sees it: 1 c t h w in -1..1, on its device."""
    return rearrange(film * 2 - 1, "t h w c -> 1 c t h w").to(device)


def to_film(pixels):
    """And back."""
    return (rearrange(pixels.cpu(), "1 c t h w -> t h w c") / 2 + 0.5).clamp(0, 1)


star = ShapeObject("star", "yellow", "moves right", x=0.18, y=0.5, radius=0.12, speed=0.64)
film = render(Scene((star,), "navy"), 17, 64, 64)  # t h w 3
ghost, empty = film.mean(dim=0), film.median(dim=0).values  # h w 3
stills = [one.expand_as(film) for one in (ghost, empty)]
show_clip(torch.cat([film, *stills], dim=2), "Left, a yellow star moves right over navy. In the middle, a pale yellow "
                                             "streak that does not move. On the right, navy and nothing else.", fps=8)

# %% [markdown]
# The right one is the danger: a network that is punished for each wrong pixel may learn to show no star.
#
# A VAE learns from its **loss**, one number for how bad a copy is. CogVideoX uses a sum of four: L1, LPIPS,
# KL and later a GAN ([the paper](https://arxiv.org/abs/2408.06072), section 2.1). The authors published
# neither the weights nor the code that trains. Here you write all four, train with them, and see what each is
# for.
#
# Afterwards you can explain why the star vanishes, what PSNR does not see, and why the GAN comes late. It
# takes about 60 minutes, exercises not counted.
#
# ## 1. The median trap
#
# Take one pixel on the star's way, and only its brightness. In 12 of 17 frames it is night (0.1), in 5 frames
# the star (0.9). A network that does not know *when* the star comes must say one number $c$ for all frames.
#
# Its error can be counted as $|x - c|$ (**L1**) or $(x - c)^2$ (**L2**), averaged over the frames $x$.
#
# Predict: which $c$ is best for L1, and which for L2?

# %%
pixel = [0.1] * 12 + [0.9] * 5


def mean_error(c, l1_weight, l2_weight):
    """The error of saying c for every frame."""
    total = 0.0
    for x in pixel:
        total += l1_weight * abs(x - c) + l2_weight * (x - c) ** 2
    return total / len(pixel)


answers = [i / 100 for i in range(101)]
figure, (axes,) = new_figure(1, 3, width=8.5, height=2.4)
for axis, (name, weights) in zip(axes, {"L1": (1, 0), "L2": (0, 1), "L1 + 10 L2": (1, 10)}.items()):
    errors = [mean_error(c, *weights) for c in answers]
    best = answers[errors.index(min(errors))]
    print(f"{name:10s} is least at c = {best:.2f}")
    axis.plot(answers, errors)
    axis.plot(best, min(errors), "o", color="#D55E00")
    axis.set(title=name, xlabel="the answer c", ylabel="mean error", ylim=(0, None))
show_figure(figure, "Three curves of the mean error over the answer c, a dot at the lowest point. L1: two straight "
                    "pieces, lowest at 0.1. L2: a round valley, lowest at 0.34. L1 + 10 L2: lowest at 0.31.")
print("median", sorted(pixel)[8], "and mean", round(sum(pixel) / 17, 2))

# %% [markdown]
# L1 has its minimum at the **median**, L2 at the **mean**. Move $c$ up a little: with L1 you come nearer to 5
# frames and lose as much on each of 12. The star is outvoted, and how bright it is does not matter. With L2
# an error of 0.8 counts more than two of 0.4, so the star pulls.
#
# That is what happens in the film above: no place is covered by the star in half of the frames.
#
# ### Exercise 3.1: best_still (difficulty 3 of 3, 20 minutes)
#
# Find the best still for any mixture of both, at all places at once. There is no formula as short as mean or
# median, but the slope of the error tells you which way to go. `hint("3.1")` gives a hint, `solution("3.1")`
# a solution.

# %%
def best_still(film, l1_weight, l2_weight):
    """film, t ... -> the picture of least l1_weight * mean |x - c| + l2_weight * mean (x - c)^2."""
    ### BEGIN SOLUTION
    low, high = film.amin(dim=0), film.amax(dim=0)
    for _ in range(40):
        middle = (low + high) / 2
        slope = l1_weight * (middle - film).sign().mean(dim=0) + 2 * l2_weight * (middle - film).mean(dim=0)
        low, high = torch.where(slope > 0, low, middle), torch.where(slope > 0, middle, high)
    return (low + high) / 2
    ### END SOLUTION


best_still = check("3.1", best_still)

# %% [markdown]
# Now let a machine learn it. The simplest "network" has no eyes at all: it is one picture, and gradient
# descent changes its pixels until the loss of the whole film is small. It begins grey.
#
# Predict: does it find the empty picture, too?

# %%
def learned_still(l1_weight, l2_weight, steps=300):
    """A still picture found by gradient descent on the loss of the whole film."""
    picture = torch.full_like(film[0], 0.5, requires_grad=True)
    optimizer = torch.optim.Adam([picture])
    with torch.enable_grad():
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
            apart = film - picture
            (l1_weight * apart.abs().mean() + l2_weight * apart.square().mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
    return picture.detach()


mixtures = {"L1": (1.0, 0.0), "L1 + 1 L2": (1.0, 1.0), "L1 + 10 L2": (1.0, 10.0), "L2": (0.0, 1.0)}
found = {name: learned_still(*weights) for name, weights in mixtures.items()}
for name, weights in mixtures.items():
    print(f"{name:10s} gradient descent finds your picture:",
          torch.allclose(found[name], best_still(film, *weights), atol=0.02))
night = torch.tensor(BACKGROUNDS["navy"]).expand_as(film[0])
print("under L1 the star is gone:", torch.allclose(found["L1"], night, atol=0.02))

figure, (axes,) = new_figure(1, 5, width=8.5, height=2.1)
for axis, (name, picture) in zip(axes, {"one true frame": film[8], **found}.items()):
    axis.imshow(picture.clamp(0, 1))
    axis.set(xticks=[], yticks=[], title=name)
    axis.grid(False)
show_figure(figure, "A true frame with its star, and four learned stills. L1: navy only. L1 + 1 L2: a thin, faint "
                    "streak. L1 + 10 L2: a streak almost as bright as for L2. L2: a pale streak where the star passes.")

# %% [markdown]
# A real VAE looks at the film, so it can know where the star is. But not at first: its latents say little,
# and the best answer under L1 is night, everywhere. A first, vague idea of where the star might be earns
# nothing. Only a guess that is right more than half of the time pays.
#
# The paper's films are full of detail, and L1 works there; an earlier version of the paper names L2. Our
# films are small objects before plain backgrounds, so we add L2 (`l2_weight` in `VAELossConfig`).
#
# ## 2. Three measures, and what they do not see
#
# A loss is for the network. These are for us:
#
# * **PSNR**, in decibels: $10 \log_{10}(\mathit{peak}^2 / \mathit{mse})$, with *mse* the mean squared error,
#   and *peak* the distance from the darkest to the brightest pixel. Ten decibels more is a tenth of the
#   squared error.
# * **Flicker**: how much a pixel changes from one frame to the next (paper, Table 1).
# * **Sharpness**: how much neighbouring pixels differ within a frame, as a share of the true film's.
#
# ### Exercise 3.2: psnr_of_clips (difficulty 1, 10 minutes)
#
# PSNR for a batch of clips as the model sees them: pixels in -1..1, one number for each clip. The copy may
# leave that range; a screen would cut it off.

# %%
def psnr_of_clips(video, copy):
    """video and copy, b c t h w in -1..1 -> decibels, b."""
    ### BEGIN SOLUTION
    error = (video - copy.clamp(-1, 1)).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(4 / error)
    ### END SOLUTION


psnr_of_clips = check("3.2", psnr_of_clips)

# %% [markdown]
# Flicker and sharpness are the same idea along different axes.
#
# We spoil the star film in three ways: without its star, blurred, and with fresh noise in each frame.
# Predict: which copy has the best PSNR? Which one has the least flicker, and is that good?

# %%
def change_along(film, axis):
    """Mean absolute difference of neighbours along one axis of t h w 3."""
    total, length = 0.0, film.shape[axis]
    for i in range(1, length):
        total += (film.select(axis, i) - film.select(axis, i - 1)).abs().mean().item()
    return total / (length - 1)


print("the package's flicker is the same:  ", abs(255 * change_along(film, 0) - flicker(film)) < 1e-2)
print("its spatial gradient is the same:   ",
      abs(change_along(film, 1) + change_along(film, 2) - spatial_gradient(film)) < 1e-4)
blurred = rearrange(F.avg_pool2d(F.pad(rearrange(film, "t h w c -> t c h w"), (4, 4, 4, 4), mode="replicate"), 9, 1),
                    "t c h w -> t h w c")
noisy = (film + 0.1 * torch.randn(film.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
copies = {"true": film, "without star": empty.expand_as(film), "blurred": blurred, "noisy": noisy}
for name, one in copies.items():
    decibels = psnr_of_clips(to_pixels(film), to_pixels(one)).item() if name != "true" else float("inf")
    print(f"{name:13s} PSNR {decibels:5.1f} dB, flicker {flicker(one):5.1f}, "
          f"sharpness {spatial_gradient(one) / spatial_gradient(film):4.2f}")

# %% [markdown]
# PSNR likes the blur best. Flicker is least, namely 0, where the star is gone: "lower is better" holds only
# down to the flicker of the true film. And noise is by far the "sharpest". No single number is enough.
#
# ## 3. Trained live: L1, L1 + L2, and a strong KL
#
# Now VAEs of 1.8 million parameters, on films of 9 frames and 32 x 32 pixels. `compare_vaes` trains each on
# the very same clips, from the same start, and measures it on 16 clips that training never draws.
#
# One variant learns from L1 alone, one from L1 + 10 L2. The third is the second with a hundredfold KL, for
# section 5.
#
# Predict: after 75 steps, which copies move more, those of L1 or those of L1 + L2?

# %% tags=["nbval-ignore-output"]
micro = preset("micro").vae
l1 = VAELossConfig(lpips_weight=0.0, gan_weight=0.0, kl_weight=0.1)
l1_l2 = replace(l1, l2_weight=10.0)
variants = {"L1": (micro, l1), "L1 + L2": (micro, l1_l2), "strong KL": (micro, replace(l1_l2, kl_weight=10.0))}
live = compare_vaes(variants, steps=75, seed=0, every=75, device=device)
for name, curve in live.items():
    print(f"{name:10s} PSNR {curve.psnr[-1]:.1f} dB, flicker {curve.flicker[-1]:.2f} of {curve.flicker_of_true:.2f}, "
          f"sharpness {curve.sharpness[-1]:.2f}, {curve.seconds:.0f} s")

true_clips = measured_clips()  # b t h w 3
copies = {name: round_trip(curve.vae, true_clips)[0] for name, curve in live.items()}
figure, axes = new_figure(3, 8, width=8.5, height=3.5)
for row, name in zip(axes, ("true", "L1", "L1 + L2")):
    for axis, clip in zip(row, true_clips if name == "true" else copies[name]):
        axis.imshow(clip[4])
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
    row[0].set_ylabel(name)
show_figure(figure, "The middle frames of eight clips: true, copied by the VAE that learned from L1, and by the one "
                    "that learned from L1 + L2. Under L1 most objects are missing or hardly there; under L1 + L2 most "
                    "of them are pale blots in their places.")

# %%
compare_clips({"L1": copies["L1"][0], "L1 + L2": copies["L1 + L2"][0]},
              "The first of these clips, copied by the VAE of L1 and by that of L1 + L2")

# %%
print("L1 + L2 moves more than L1:", live["L1 + L2"].flicker[-1] > live["L1"].flicker[-1])
print("and less than the true clips:", live["L1 + L2"].flicker[-1] < live["L1"].flicker_of_true)

# %% [markdown]
# After 75 steps no VAE knows shapes. But L1 + L2 mostly shows that something is there, and where; L1 mostly
# shows the background alone. That is the median trap in a real VAE. Whether L1 catches up is a question for
# the longer runs in section 7. (Look at the sharpness, too. These copies are blurred; what counts as sharp is
# their grain.)
#
# ## 4. LPIPS: asking a network that has seen pictures
#
# Two copies of a frame. In one the star is gone. In the other everything is a little darker, as under a
# cloud. Which one has the smaller error for L1? Which one do you find worse?

# %%
frame = film[8:9]  # 1 h w 3
spoiled = {"star gone": night[None], "darker": frame - 0.05, "blurred": blurred[8:9]}
figure, (axes,) = new_figure(1, 4, width=7.5, height=2.2)
for axis, (name, picture) in zip(axes, {"true": frame, **spoiled}.items()):
    axis.imshow(picture[0].clamp(0, 1))
    axis.set(xticks=[], yticks=[], title=name)
    axis.grid(False)
show_figure(figure, "A star on navy; navy without the star; the star on a slightly darker navy; a blurred star.")
for name, picture in spoiled.items():
    print(f"{name:10s} L1 {reconstruction_l1(to_pixels(frame), to_pixels(picture)).item():.3f}")

# %% [markdown]
# For L1 the missing star is the smaller mistake. The star is few pixels, and every pixel has one vote.
#
# **LPIPS** (learned perceptual image patch similarity) asks a network that was trained to name what is in a
# photo, here AlexNet. What it needs for that is not single pixels but edges, corners, textures. LPIPS
# compares these:
#
# 1. Send both pictures through the network and keep the activations of five layers.
# 2. At each place, bring the vector of channels to length 1: what matters is *which* features answer.
# 3. Take squared differences, weight each channel, average over the places, and add up the five layers.
#
# The channel weights come from a study in which people said which of two spoiled pictures looks nearer.

# %%
alex = PerceptualDistance(load_lpips("alex")).to(device)


def looks_apart(picture, other):
    """LPIPS by hand of two pictures 1 h w 3 in 0..1."""
    answers = []
    for one in (picture, other):
        pixels = rearrange(one * 2 - 1, "1 h w c -> 1 c h w").to(device)
        answers.append(alex.model.net(alex.model.scaling_layer(pixels)))  # five tensors 1 c h w
    total = 0.0
    for a, b, linear in zip(*answers, alex.model.lins):
        a, b = (x / (x.norm(dim=1, keepdim=True) + 1e-10) for x in (a, b))
        total += ((a - b).square() * linear.model[-1].weight).sum(dim=1).mean().item()
    return total


lpips = {name: looks_apart(frame, picture) for name, picture in spoiled.items()}
print("the package computes the same:", all(
    abs(lpips[name] - alex(to_pixels(frame), to_pixels(picture)).item()) < 1e-4 for name, picture in spoiled.items()))
for name, value in lpips.items():
    print(f"{name:10s} LPIPS {value:.2f}")
print("for LPIPS the missing star is worse than the darker picture:", lpips["star gone"] > lpips["darker"])
show_source(PerceptualDistance.forward)

# %% [markdown]
# LPIPS turns the order round. Without the star other features answer; under a cloud they mostly stay.
#
# A video has no LPIPS of its own: frames are compared one by one. LPIPS does not see time.
#
# ## 5. KL: what shape the latent has
#
# The encoder does not say one latent but a normal distribution for each latent number: a mean $\mu$ and a
# variance $\sigma^2$. The latent is drawn from it, $z = \mu + \sigma\epsilon$, with $\epsilon$ standard
# normal noise. The decoder has to do with the noisy $z$.
#
# Left alone, the encoder would make $\sigma$ tiny. The **KL divergence** from the standard normal
# distribution puts a price on that, in **nats**: how much the latent tells beyond what anybody could have
# guessed.
#
# $$\mathrm{KL} = \tfrac12 \sum \left(\mu^2 + \sigma^2 - 1 - \log \sigma^2\right)$$
#
# ### Exercise 3.3: nats_per_clip (difficulty 1, 10 minutes)
#
# The encoder gives $\mu$ and $\log\sigma^2$ (`logvar`). Sum over a clip's latent; one number for each clip.

# %%
def nats_per_clip(mean, logvar):
    """mean and logvar, b c t h w -> the KL from N(0, 1), b."""
    ### BEGIN SOLUTION
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(dim=1)
    ### END SOLUTION


nats_per_clip = check("3.3", nats_per_clip)

videos = rearrange(true_clips * 2 - 1, "b t h w c -> b c t h w").to(device)
posteriors = {name: live[name].vae.encode(videos) for name in ("L1 + L2", "strong KL")}
for posterior in posteriors.values():
    print("the package computes the same:",
          torch.allclose(nats_per_clip(posterior.mean, posterior.logvar), posterior.kl(), rtol=1e-4))

# %% [markdown]
# Predict: with a KL that weighs a hundred times as much, what happens to $\sigma$? And to the picture when
# the noise is really drawn?

# %% tags=["nbval-ignore-output"]
for name, posterior in posteriors.items():
    decoder = live[name].vae
    generator = torch.Generator().manual_seed(0)
    from_mean, from_sample = (psnr_of_clips(videos, decoder.decode(z)).mean().item()
                              for z in (posterior.mode(), posterior.sample(generator)))
    print(f"{name:10s} mean sigma {posterior.std.mean():.2f}, spread of the means {posterior.mean.std():.2f}; "
          f"PSNR from the means {from_mean:.1f} dB, from samples {from_sample:.1f} dB")

figure, (axes,) = new_figure(1, 2, width=8.5, height=2.7)
for shift, (name, posterior) in zip((-0.2, 0.2), posteriors.items()):
    per_number = 0.5 * (posterior.mean.square() + posterior.std.square() - 1 - posterior.logvar)
    per_channel = per_number.mean(dim=(0, 2, 3, 4)).sort(descending=True).values.cpu()
    axes[0].bar(torch.arange(8) + shift, per_channel, 0.4, label=name)
axes[0].set(xlabel="latent channel, sorted", ylabel="nats per number", title="trained just now")
axes[0].legend()
by_weight = {}
for curve in load_results("vae-kl"):
    by_weight.setdefault(curve.name, []).append((curve.kl_per_element[-1], curve.psnr[-1]))
for (name, points), marker in zip(by_weight.items(), "osD^v"):
    axes[1].plot(*zip(*points), marker, label=f"weight {name}")
axes[1].legend(fontsize=8)
axes[1].set(xlabel="nats per number", ylabel="PSNR (dB)", title="longer runs, by weight of the KL")
show_figure(figure, "Left, what each of 8 latent channels tells: with the strong KL every channel tells much less. "
                    "Right, longer runs with five weights of the KL: PSNR over nats per latent number.")

# %%
weak, strong = posteriors["L1 + L2"], posteriors["strong KL"]
print("the strong KL makes sigma larger:", bool(strong.std.mean() > 2 * weak.std.mean()))
print("and each latent tells less:", bool(strong.kl().mean() < 0.5 * weak.kl().mean()))

# %% [markdown]
# With the strong KL, $\sigma$ grows and the means draw together. Each latent number speaks only roughly, the
# noise costs some PSNR, and every channel tells less. A channel that tells 0 nats is *unused*: its mean is 0
# and its $\sigma$ is 1 whatever the film.
#
# Why pay at all? Because another network must later *invent* such latents, from standard normal noise. That
# is easier if they have a known size and a small error does no harm. What does it cost? In the runs on the right, 300
# steps and one seed each, not the picture, up to a weight of 1: 1.2 nats a number instead of 3.3, and the PSNR is no
# lower. Only at 10, with 0.2 nats, are details lost. In latent diffusion the usual weight is $10^{-6}$, little more
# than a bound on the size. The authors' is not published; the shipped toy was trained with 0.1.
#
# ## 6. The GAN: a second network that looks for the trick
#
# A **GAN** learns its loss: a second network, the *discriminator*, learns to tell real clips from copies; the
# autoencoder learns to fool it. CogVideoX uses a 3D one, which sees motion, too.

# %%
with torch.random.fork_rng(devices=[]):
    torch.manual_seed(0)
    discriminator = PatchDiscriminator3D(DiscriminatorConfig(width=16, num_frames=9)).to(device)
logits = discriminator(videos[:4])
print(f"clips {tuple(videos[:4].shape)}; logits {tuple(logits.shape)}; "
      f"{sum(p.numel() for p in discriminator.parameters()):,} parameters")

# %% [markdown]
# Each of 2 x 4 x 4 **patches** gets a *logit*: high means "real".
#
# The **hinge loss** has margins. Real patches should reach 1, copies -1; beyond the margin there is nothing
# to gain.
#
# ### Exercise 3.4: hinge_losses (difficulty 1, 10 minutes)
#
# The discriminator pays half of each mean miss: by how much real patches stay below 1, and by how much copies
# stay above -1. The autoencoder has no margin: it pays minus the mean logit of its copies.

# %%
def hinge_losses(real, fake):
    """Logits of real clips and of copies -> the discriminator's loss, and the autoencoder's."""
    ### BEGIN SOLUTION
    missed = torch.relu(1 - real).mean() + torch.relu(1 + fake).mean()
    return 0.5 * missed, -fake.mean()
    ### END SOLUTION


hinge_losses = check("3.4", hinge_losses)

other = discriminator(rearrange(copies["L1 + L2"][:4] * 2 - 1, "b t h w c -> b c t h w").to(device))
print("the package computes the same:",
      torch.allclose(hinge_losses(logits, other)[0], hinge_discriminator_loss(logits, other)))

# %% [markdown]
# How much should the GAN weigh? Its gradients change in size as the discriminator learns, so no fixed number
# is right for long. The **adaptive weight**, from VQGAN, measures instead: how strongly do the reconstruction
# losses pull at the last layer of the decoder, and how strongly does the GAN? Their ratio is the weight. All
# that the decoder shows passes that layer, and it is small.
#
# ### Exercise 3.5: pull_weight (difficulty 2, 15 minutes)
#
# `nll` is the sum of the reconstruction losses, `gan` the autoencoder's GAN loss, both scalars with a graph
# behind them. Return the norm of the first gradient over the norm of the second (plus 1e-4), clamped to
# 0..1e4, without a gradient of its own. Training goes on with the same graph.

# %%
def pull_weight(nll, gan, last_layer):
    """How many times stronger nll pulls at last_layer than gan does: a scalar."""
    ### BEGIN SOLUTION
    of_nll, of_gan = (torch.autograd.grad(part, last_layer, retain_graph=True)[0] for part in (nll, gan))
    return (of_nll.norm() / (of_gan.norm() + 1e-4)).clamp(0, 1e4).detach()
    ### END SOLUTION


pull_weight = check("3.5", pull_weight)
show_source(adaptive_weight)

# %% [markdown]
# ## 7. All together
#
# Your pieces make the whole loss. Here it is beside the package's `VAELoss`: the total, and its gradient at
# the last layer.

# %%
vae = copy.deepcopy(live["L1 + L2"].vae)
last_layer = vae.decoder.conv_out.conv.weight
everything = replace(l1_l2, lpips_weight=0.1, lpips_net="alex", lpips_frames=None, gan_weight=0.3, gan_start=0)


def whole_loss(video, back, posterior, with_gan):
    """The autoencoder's loss, and how strongly the GAN weighs in it."""
    apart = video - back
    nll = apart.abs().mean() + 10 * apart.square().mean() + 0.1 * alex(video, back)
    nats = nats_per_clip(posterior.mean, posterior.logvar).mean()
    total, weight = nll + 0.1 * nats / video[0].numel(), torch.zeros(())
    if with_gan:
        fake = discriminator(back)
        _, gan = hinge_losses(fake, fake)  # the autoencoder's loss looks at its copies only
        weight = 0.3 * pull_weight(nll, gan, last_layer)
        total = total + weight * gan
    return total, weight


with torch.enable_grad():
    video = world_batch(4, 7, 9, 32, 32).to(device)
    back, posterior = vae(video, torch.Generator().manual_seed(0))
    mine = whole_loss(video, back, posterior, with_gan=True)[0]
    losses = VAELoss(everything, discriminator, alex)
    package = losses.autoencoder(video, back, posterior, 0, last_layer)["total"]
    slopes = [torch.autograd.grad(total, last_layer, retain_graph=True)[0] for total in (mine, package)]
print("the same total:   ", torch.allclose(mine, package, rtol=1e-3))
print("the same gradient:", torch.allclose(*slopes, rtol=1e-2, atol=1e-5))
show_source(VAELoss.autoencoder)

# %% [markdown]
# Now train on, from the VAE that knows L1 + L2. The GAN waits for five steps; the authors' waits for "a few
# thousand". Two optimizers take turns: one makes better copies, one a better discriminator.
#
# Predict: how long does the discriminator stay undecided? (Then its loss is 1.)

# %% tags=["nbval-ignore-output"]
START, STEPS, dtype = 5, 25, choose_dtype(device, training=True)  # the format in which this machine is quick
optimizer = MuonAdamW(vae.named_parameters())
judge = torch.optim.AdamW(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.9))
history = []
with torch.enable_grad():
    for step in range(STEPS):
        video = world_batch(4, 1000 + step, 9, 32, 32).to(device)
        back, posterior = vae(video.to(dtype), torch.Generator().manual_seed(step))
        total, weight = whole_loss(video, back.float(), posterior, with_gan=step >= START)
        total.backward()
        optimizer.step(0.3)
        if step >= START:
            judge.zero_grad()  # the autoencoder's loss left gradients here, too
            real, fake = discriminator(video), discriminator(back.float().detach())
            undecided, _ = hinge_losses(real, fake)
            undecided.backward()
            judge.step()
            history.append((step, undecided.item(), real.mean().item(), fake.mean().item(), weight.item()))

steps, undecided, real, fake, weights = zip(*history)
figure, (axes,) = new_figure(1, 3, width=8.5, height=2.5)
axes[0].plot(steps, undecided)
axes[0].set(title="discriminator's loss", xlabel="step", ylim=(0, None))
axes[1].plot(steps, real, label="real clips")
axes[1].plot(steps, fake, "--", label="copies")
axes[1].set(title="mean logit", xlabel="step")
axes[1].legend()
axes[2].semilogy(steps, weights)
axes[2].set(title="weight of the GAN", xlabel="step")
show_figure(figure, "Steps 5 to 25. The discriminator's loss is mostly near 1. The mean logits of real clips and "
                    "copies almost lie on each other, also where they jump. The weight of the GAN is largest at first, "
                    "then falls far.")
print(f"the discriminator's loss: {undecided[0]:.2f} at first, {undecided[-1]:.2f} at the end; "
      f"the GAN's weight between {min(weights):.3f} and {max(weights):.3f}")

# %% [markdown]
# After 20 steps the logits of real clips and of copies almost lie on each other; where they jump, they jump
# together. A discriminator that knows nothing has small gradients, and the adaptive weight blows them up until
# they pull 0.3 times as hard as the reconstruction, in a direction that means nothing yet.
#
# So a GAN costs something before it earns anything. Early copies are wrong in ways that L1 and LPIPS already
# name; fine detail can wait. This is how we read "a few thousand steps".
#
# So few steps cannot show what each part is for. Longer runs, one part more each time, were made by
# `minicogvx ablate vae-losses`. Predict: which part raises PSNR, which one lowers LPIPS, which one makes
# copies sharper?

# %%
curves = load_results("vae-losses")
names, seeds = list(dict.fromkeys(curve.name for curve in curves)), sorted({curve.seed for curve in curves})
at_end = {(curve.name, curve.seed): curve for curve in curves}
measures = {"psnr": "PSNR (dB), high is good", "lpips": "LPIPS, low is good", "flicker": "flicker",
            "sharpness": "sharpness"}
figure, (axes,) = new_figure(1, 4, width=9, height=2.5)
for axis, (measure, title) in zip(axes, measures.items()):
    for place, name in enumerate(names):
        axis.plot([getattr(at_end[name, seed], measure)[-1] for seed in seeds], [place] * len(seeds), "o", markersize=5)
    axis.set_yticks(range(len(names)), names if measure == "psnr" else [""] * len(names))
    axis.invert_yaxis()
    axis.set_title(title, fontsize=9)
axes[2].axvline(curves[0].flicker_of_true, color="#999999", linestyle=":")
axes[3].axvline(1.0, color="#999999", linestyle=":")
show_figure(figure, "Four measures of six losses after training, a dot for each seed. The dotted lines are the true "
                    "clips' flicker and sharpness.")
added_to = {"+L2": "L1", "+LPIPS": "+L2", "+KL weak": "+LPIPS", "+KL strong": "+LPIPS", "+GAN": "+KL weak"}
for name, before in added_to.items():
    words = []
    for measure in measures:
        with_it, without = ([getattr(at_end[one, seed], measure)[-1] for seed in seeds] for one in (name, before))
        gains = [a - b for a, b in zip(with_it, without)]
        words.append(f"{measure} {sum(gains) / len(gains):+.3f}")
    print(f"{name} on {before}, {len(seeds)} seed(s): {', '.join(words)}")

# %% [markdown]
# Each line says what one part changed. L2 is the large step: 1.9 dB more, and the flicker of true motion begins
# to come back. LPIPS lowers LPIPS, and costs no PSNR. The strong KL makes copies grainy: its sharpness, far
# above 1, is noise that counts as edges. The GAN gains nothing here.
#
# It is one seed of flat shapes, and 250 steps are little for a GAN: the published one had not begun.
#
# ## 8. How much may be thrown away?
#
# The paper's Table 1 compares VAEs by compression (height x width x frames for one latent place) and
# channels. Together they say how many pixel numbers share one latent number:
#
# $$\frac{3 \times \text{height} \times \text{width} \times \text{frames}}{\text{channels}}$$
#
# Here are the paper's six rows beside our small ones of the same shape, all trained for equally many steps
# (`minicogvx ablate vae-compression`). Predict: with 8 x 8 x 4 pixels to a place, what does each doubling of
# the channels buy?

# %%
shapes = STUDIES["vae-compression"].variants
published = dict(zip(shapes, (28.4, 27.2, 28.7, 30.5, 29.0, 27.9)))  # PSNR, paper Table 1
ours = {}
for curve in load_results("vae-compression"):
    ours.setdefault(curve.name, []).append(curve.psnr[-1])
squeeze = {}
for name, (config, _) in shapes.items():
    space, channels = config.spatial_compression_ratio, config.latent_channels
    squeeze[name] = 3 * space ** 2 * config.temporal_compression_ratio / channels
    print(f"{name:22s} {squeeze[name]:4.0f} to 1: paper {published[name]:.1f} dB, "
          f"ours {sum(ours[name]) / len(ours[name]):.1f} dB")

figure, (axes,) = new_figure(1, 2, width=8.5, height=2.6)
labels = [f"{name.replace(' channels', '')} ({squeeze[name]:.0f} to 1)" for name in shapes]
for axis, title, values in ((axes[0], "paper, Table 1", {name: [value] for name, value in published.items()}),
                            (axes[1], "ours, small and short", ours)):
    for place, name in enumerate(shapes):
        axis.plot(values[name], [place] * len(values[name]), "o", markersize=5)
    axis.set(title=title, xlabel="PSNR (dB)")
    axis.set_yticks(range(len(labels)), labels if axis is axes[0] else [""] * len(labels))
    axis.invert_yaxis()
show_figure(figure, "PSNR of six VAEs, in the paper and in our small runs, a dot for each seed. Labels give height x "
                    "width x frames, channels, and how many pixel numbers one latent number speaks for.")

# %% [markdown]
# In the paper, at 8 x 8 x 4 each doubling of the channels buys 1.5 to 1.8 dB. Compression alone does not
# decide: 16 x 16 x 8 with 128 channels keeps as many numbers as 8 x 8 x 4 with 16, and copies worse. Our runs
# have 200 steps and one seed, so compare orders, not decibels. There 16 x 16 x 8 is the worst, too, by more
# than a decibel. Channels buy next to nothing yet. The authors took 16.
#
# ## 9. At full size
#
# The same classes with the published sizes, on the **meta device**: shapes without memory. How large is the
# layer at which the adaptive weight measures? And what must one training step keep in memory until its
# gradients are computed?
#
# Predict: the authors train first on 17 frames of 256 x 256 pixels, then on 161 frames. Does one clip of the
# second stage fit into a GPU of 80 GB?

# %%
with torch.device("meta"):
    giant = CausalVAE(preset("5b").vae)
    six_seconds = torch.empty(1, 3, 49, 480, 720)
for name, part in (("encoder", giant.encoder), ("decoder", giant.decoder)):
    print(f"{name}: {sum(p.numel() for p in part.parameters()):,} parameters")
posterior = giant.encode(six_seconds)
print(f"mean {tuple(posterior.mean.shape)}, logvar {tuple(posterior.logvar.shape)}")
last = giant.decoder.conv_out.conv.weight
print(f"gradient of the last layer: {tuple(last.shape)}, {last.numel():,} numbers")

# %% tags=["nbval-ignore-output"]
def kept_for_gradients(frames, size):
    """Bytes that autograd keeps between the way there and the way back, for one clip in 16 bits."""
    with torch.device("meta"):
        network, clip = CausalVAE(preset("5b").vae).bfloat16(), torch.empty(1, 3, frames, size, size).bfloat16()
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = (storage, storage.nbytes())
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network(clip, chunk_frames=None)
    return sum(size for _, size in kept.values())


for frames in (1, 17, 161):
    print(f"{frames:3d} frames of 256 x 256: {kept_for_gradients(frames, 256) / 1e9:.0f} GB")

# %% [markdown]
# No: 135 GB for a single clip, without the optimizer, LPIPS and the discriminator. So the stages differ. The
# first learns on short clips, each on one GPU. The second starts from its weights and sees 161 frames, split
# over several GPUs (*context parallel*): each convolution hands its last two frames on to the next GPU. The
# long clips are needed: larger frames work without training, the authors say, longer films do not.
#
# ## What you can now explain
#
# Answer first, then open.
#
# <details><summary>1. Why does a small moving object vanish under L1?</summary>
#
# While the network does not know where the object is, its best answer at each place is the median. A place
# that is covered less than half of the time has the background as its median. L2 asks for the mean, in which
# the object leaves a trace.
# </details>
#
# <details><summary>2. A VAE has less flicker than another. Is it better?</summary>
#
# Not for that reason. A copy without the moving object has no flicker at all. Compare with the flicker of the
# true film, and look at PSNR and sharpness with it.
# </details>
#
# <details><summary>3. Why does the GAN start late, and why is its weight measured?</summary>
#
# Early copies are wrong in ways that the other losses already name, and a discriminator that knows nothing
# pulls in no useful direction. Its gradients change in size; the adaptive weight keeps its pull in proportion
# to that of the reconstruction losses.
# </details>
#
# **What the paper found.** The VAE is trained in both stages with L1, LPIPS and KL; the GAN joins after a few
# thousand steps. More latent channels give better copies; 16 x 16 x 8 makes convergence "extremely
# difficult". Weights, learning rate and data were not published; ours were found on coloured shapes.
#
# **Where to read on.** `losses.py`, `perceptual.py`, `gan.py` and `discriminator.py` in `minicogvx/vae`;
# `training/vae.py` is a training step, `training/loop.py` the loop, `data/recipes/toy.toml` the shipped VAE's
# stages. LPIPS: [Zhang et al.](https://arxiv.org/abs/1801.03924); the adaptive weight:
# [VQGAN](https://arxiv.org/abs/2012.09841). Next: notebook 04, how noise becomes such a latent.
