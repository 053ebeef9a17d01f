# %% [markdown]
# # Image and video to video
#
# **The first nine frames are given. The model only has to go on. How hard can that be?**
#
# Left, a clip that a program drew. Right, its first nine frames, and eight more by the toy.

# %% tags=["nbval-ignore-output"]
import math
import random

import torch
import torch.nn.functional as F
from einops import rearrange

import minicogvx
from minicogvx.ablation.picture_noise import ASKED, by_seed, noise_runs, pooled_difference
from minicogvx.course import (
    check, compare_clips, explore_figure, hint, new_figure, notebook_device, outcome, predict, predictions, progress,
    show_clip, show_figure, show_rows, show_source, solution,
)
from minicogvx.data.world import captions, oracle
from minicogvx.data.world.drawing import render, render_batch
from minicogvx.data.world.scenes import DIRECTIONS, Scene, ShapeObject, sample_scenes
from minicogvx.diffusion import draw_noise
from minicogvx.diffusion.conditioning import FirstFramesPutBack, ImageChannels, NoisedVideo
from minicogvx.diffusion.samplers import DDIMSampler
from minicogvx.diffusion.timesteps import start_index
from minicogvx.evaluation.intervals import mean_interval, paired_difference, wilson
from minicogvx.evaluation.reconstruction import psnr
from minicogvx.pipeline import Pipeline
from minicogvx.presets import preset
from minicogvx.training.image_condition import image_channels, noised_picture, widen_for_image
from minicogvx.training.prefix_model import FILE
from minicogvx.transformer.model import ExpertTransformer

torch.set_grad_enabled(False)  # nothing is trained in this notebook
device = notebook_device()  # the processor, unless MINICOGVX_DEVICE names another device
pipe = minicogvx.load("toy", device)


def encoded(video):
    """Scaled latents, b c t h w, of videos b t h w 3 in 0..1: the means."""
    pixels = rearrange(video * 2 - 1, "b t h w c -> b c t h w").to(device, pipe.dtype)
    return (pipe.vae.encode(pixels).mode() * pipe.vae.config.scaling_factor).to(pipe.dtype)


COUNT, SEED = 12, 13
scenes = [scene for scene in sample_scenes(60, SEED, two_objects=0.0) if scene.objects[0].motion in DIRECTIONS][:COUNT]
true = render_batch(scenes, 17, 64, 64)  # films t h w 3
SHOWN = 6  # a white triangle
opening = pipe("a", prefix=true[SHOWN, :9], num_inference_steps=10, guidance_scale=0.0, seed=SEED)
compare_clips({"the true clip": true[SHOWN], "nine true frames, then the toy": opening},
              "Left, a drawn clip of a shape that moves. Right, its first nine frames, after which the toy goes on: "
              "it jumps and loses its form.", pipe.fps, num_frames=5)

# %% [markdown]
# The toy knows only captions. Still, it can be made to begin with given frames, by a trick that needs no training. You
# will write the trick and count how often it works. Then you build what CogVideoX does: the picture gets channels of
# its own. You will also change a film with a new caption, and continue one for as long as you like.
#
# Afterwards you can explain from which step on the network uses given frames, how a trained model gets new inputs
# without being spoiled, and what a *strength* of 0.6 keeps of a film. It takes about 90 minutes, exercises included. It
# covers appendix D of the [paper](https://arxiv.org/abs/2408.06072). (Notation: the box in [notebook
# 01](01_video_tensors.ipynb).)
#
# ## 1. Put it back
#
# Sampling starts from noise, and each step makes the latents a little cleaner. Some latent frames are known: 4k + 1
# given frames are k + 1 latent frames, so 1, 5 and 9 frames are 1, 2 and 3 of the toy's 5. The trick: **before every
# step, put the known latents back**, with as much noise as the step expects. What the network did to them in the step
# before is thrown away. This is called pinning, or replacement. (In notebook 00 you did it for one picture.)
#
# ### Exercise 13.1: put_back (difficulty 2 of 3, 15 minutes)
#
# A step at $\bar\alpha$ expects $\sqrt{\bar\alpha}$ times the clean latents plus $\sqrt{1-\bar\alpha}$ times noise.
# Which noise? The frames should take the same path as if the model had made them. `hint("13.1")` gives one more hint
# each time, `solution("13.1")` a solution.

# %%
def put_back(latents, known, noise, alpha_bar):
    """latents of a step, and the noise of the start, b c t h w; clean known ones, b c k h w -> latents, b c t h w."""
    ### BEGIN SOLUTION
    k = known.shape[2]
    noised = math.sqrt(alpha_bar) * known + math.sqrt(1 - alpha_bar) * noise[:, :, :k]
    return torch.cat([noised, latents[:, :, k:]], dim=2)
    ### END SOLUTION


put_back = check("13.1", put_back)

# %% [markdown]
# Around it, the sampling loop of notebook 04, with your function in it twice: before every step, and at the end, where
# nothing is noisy any more. Usually there will be no caption; so there is no guidance, either.

# %%
nothing = pipe.text.encode([""]).to(device, pipe.dtype)  # 1 n d
steps = DDIMSampler(pipe.schedule, 10)


def pinned(known, seed, text=nothing):
    """Latents whose first frames are `known`, b c k h w; the toy makes the others, without a caption or with it."""
    noise = draw_noise((len(known), 16, 5, 8, 8), torch.Generator().manual_seed(seed), known.dtype, device)
    latents, text = noise, text.expand(len(known), -1, -1)
    for i, t in enumerate(steps.timesteps.tolist()):
        latents = put_back(latents, known, noise, pipe.schedule.alpha_bar(t))
        v = pipe.transformer(latents, torch.full((len(known),), t, device=device), text)
        latents, _ = steps.step(v, i, latents)
    return put_back(latents, known, noise, 1.0)


clean = encoded(true)  # b c t h w
noise = draw_noise(tuple(clean.shape), torch.Generator().manual_seed(0), clean.dtype, device)
package = FirstFramesPutBack(noise, clean[:, :, :3], pipe.schedule).before(noise, 500)
gap = (put_back(noise, clean[:, :, :3], noise, pipe.schedule.alpha_bar(500)) - package).abs().max().item()
print(f"yours and the package's differ by at most {gap:.0e} in {str(clean.dtype)[6:]}, of values up to "
      f"{package.abs().max():.0f}")
assert gap < 0.05
show_source(FirstFramesPutBack)

# %% [markdown]
# ## 2. Nine true frames
#
# Twelve films, each of one shape that moves in a straight line. We give the first 1, 5 or 9 frames. From nine frames
# you could draw the rest yourself: colour, shape, background and motion are all there.
#
# **Prediction 13.1.** With nine of seventeen frames pinned, in how many of the twelve films does the oracle read
# everything as in the true film: colour, shape, motion and background?

# %%
predict("13.1", "at most 4", "5 to 8", "9 or more")

# %% tags=["folded", "nbval-ignore-output"]
PARTS = ("colour", "shape", "motion", "background", "all")


def judged(films):
    """For each film, what agrees with its scene."""
    return [oracle.matches(oracle.read(film), scene) for film, scene in zip(films, scenes)]


def tell(name, found):
    counts = {part: sum(one[part] for one in found) for part in PARTS}
    low, high = wilson(counts["all"] / COUNT, COUNT)
    print(f"{name:28s} of {COUNT} right:", ", ".join(f"{part} {counts[part]}" for part in PARTS),
          f"(all: 95 % interval {low:.0%} to {high:.0%})")


tell("the true films", judged(true))
by_pinning, made_by_pinning = {}, {}
for frames in (1, 5, 9):
    made_by_pinning[frames] = pipe.decode(pinned(encoded(true[:, :frames]), SEED))
    by_pinning[frames] = judged(made_by_pinning[frames])
    tell(f"pinned, {frames} frame{'s' * (frames > 1)}", by_pinning[frames])


def later(films):
    """PSNR in dB of the frames from 9 on against the true ones, for each film."""
    return [psnr(wanted[9:], film[9:]) for wanted, film in zip(true, films)]


quality = later(made_by_pinning[9])
worst = sorted(range(COUNT), key=quality.__getitem__)[:2]
show_rows({f"{scenes[i].objects[0].colour} {scenes[i].objects[0].shape}, {scenes[i].objects[0].motion}":
           made_by_pinning[9][i] for i in worst},
          "Rows of frames of the two films that go most astray. Frames 0 to 8 are given; then the object jumps, or "
          "changes its colour or shape.", num_frames=5)
right = sum(one["all"] for one in by_pinning[9])
assert right <= 6
outcome("13.1", "at most 4" if right <= 4 else "5 to 8" if right <= 8 else "9 or more")

# %% [markdown]
# Hardly any. The given half is perfect, of course: we put it there. But the other half does not follow it. Objects
# change colour or shape in mid-clip, or jump. (Most colours count as right because the oracle goes by most frames, and
# more than half of them are given.)
#
# Why? Ask what the network *sees*: the pinned frames are as noisy as all others. From what step on can it know what is
# pinned? We add noise to a film, exchange its first nine frames for those of another film, and measure by how much the
# network's guess of the *later* frames changes, relative to how far the two films are apart.
#
# **Prediction 13.2.** At the very first step, t = 999, by how much does the guess of the later frames change when other
# frames are pinned?

# %%
predict("13.2", "not at all", "by less than at t = 500, but clearly", "by more than at t = 500")

# %% tags=["folded", "nbval-ignore-output"]
TIMES = (999, 900, 800, 650, 500, 350, 200)
others = clean.roll(1, dims=0)  # the film of another scene
apart = (others - clean)[:, :, 3:].float().square().mean().sqrt()


def heard(guess):
    """How much a guess of the later frames changes with the known frames, at each timestep; guess(latents, known, t)
    gives v."""
    changes = []
    for t in TIMES:
        noisy = pipe.schedule.add_noise(clean, noise, torch.full((COUNT,), t, device=device))
        found = []
        for known in (clean[:, :, :3], others[:, :, :3]):
            latents = put_back(noisy, known, noise, pipe.schedule.alpha_bar(t))
            found.append(pipe.schedule.to_x0(guess(latents, known, t), latents, t)[:, :, 3:])
        changes.append(((found[0] - found[1]).square().mean().sqrt() / apart).item())
    return changes


def toy_guess(latents, known, t):
    return pipe.transformer(latents, torch.full((COUNT,), t, device=device), nothing.expand(COUNT, -1, -1))


heard_by_pinning = heard(toy_guess)
print("t      ", "  ".join(f"{t:5d}" for t in TIMES))
print("change ", "  ".join(f"{change:5.2f}" for change in heard_by_pinning))
first, middle = heard_by_pinning[0], heard_by_pinning[TIMES.index(500)]
assert first < 0.01
outcome("13.2", "not at all" if first < 0.01 else "by less than at t = 500, but clearly" if first < middle else
        "by more than at t = 500")

# %% [markdown]
# At t = 999 it is exactly nothing. Our schedule ends in pure noise, $\bar\alpha = 0$ ([notebook
# 04](04_diffusion.ipynb)), and the known frames are pure noise like everything else. So in the first step the toy
# begins a film of its own, whatever is pinned.
#
# From the second step on it does hear them, and still the films go wrong. Our reading: hearing is not enough. The toy
# has learned that *all* frames are its own draft. Where pinned frames and draft disagree, it looks for a film in which
# both are right, and finds one that changes half-way.
#
# ## 3. A place of its own
#
# CogVideoX's image-to-video models see the picture from the first step on, without noise, in **channels of their
# own**. The transformer's input has 32 channels instead of 16: the noisy latents, and beside them, in latent frame 0,
# the picture's latent. The other frames of these channels are zeros.
#
# Real pictures have grain and artefacts of compression, and a network that copies them copies too much. So in training
# each picture gets a little noise, *before* the VAE, with a strength of its own: $\sigma = \exp(n)$, where $n$ is
# normal with mean -3 and standard deviation 0.5. And in 5 % of the steps the picture is dropped: all zeros.
#
# ### Exercise 13.2: image_beside (difficulty 2 of 3, 15 minutes)
#
# Make the image channels. `encode` is the VAE: b 3 1 h w in, latents b c 1 h w out.

# %%
def image_beside(pictures, encode, frames, generator):
    """pictures, b 3 1 h w in -1..1 -> the image channels of `frames` latent frames, b c frames h w."""
    ### BEGIN SOLUTION
    sigma = torch.exp(-3 + 0.5 * torch.randn(len(pictures), 1, 1, 1, 1, generator=generator))
    latents = encode(pictures + sigma * torch.randn(pictures.shape, generator=generator))
    return F.pad(latents, (0, 0, 0, 0, 0, frames - 1))
    ### END SOLUTION


image_beside = check("13.2", image_beside)

# %% tags=["nbval-ignore-output"]
pictures = rearrange(true[:, :1] * 2 - 1, "b t h w c -> b c t h w")
channels = image_beside(pictures, lambda x: pipe.vae.encode(x.to(device, pipe.dtype)).mode(), 5,
                        torch.Generator().manual_seed(0))
print("image channels:", tuple(channels.shape), "- root mean square of each latent frame:",
      [round(value, 2) for value in channels.float().square().mean(dim=(0, 1, 3, 4)).sqrt().tolist()])
show_source(noised_picture)
show_source(image_channels)

# %% [markdown]
# The toy has no such channels, and its patches are a convolution with 16 of them. We could draw new random weights for
# 16 more. Then every block would get tokens that it has never seen, and the training would begin by repairing the
# damage. There is a better way to begin.
#
# ### Exercise 13.3: widen (difficulty 1 of 3, 5 minutes)
#
# Return a kernel for twice the channels, with which the model at first computes *exactly* what it did before,
# whatever the picture.

# %%
def widen(weight):
    """A patch kernel, d c p p -> d 2c p p, for the channels [noisy latents | picture]."""
    ### BEGIN SOLUTION
    return torch.cat([weight, torch.zeros_like(weight)], dim=1)
    ### END SOLUTION


widen = check("13.3", widen)

# %% tags=["nbval-ignore-output"]
wide = widen_for_image(pipe.transformer)
at_700, without_words = torch.full((COUNT,), 700, device=device), nothing.expand(COUNT, -1, -1)
noisy = pipe.schedule.add_noise(clean, noise, at_700)
both = torch.cat([noisy, channels.to(noisy)], dim=1)
before = pipe.transformer(noisy, at_700, without_words).float()
kernel = wide.patch_embed.proj.weight
old_kernel = kernel[:, :16].clone()
drawn = torch.randn(old_kernel.shape, generator=torch.Generator().manual_seed(0)).to(kernel) * old_kernel.std()
changes = {}
for name, weight in (("yours", widen(old_kernel)), ("random new weights", torch.cat([old_kernel, drawn], dim=1))):
    wide.patch_embed.proj.weight.copy_(weight)
    changes[name] = ((wide(both, at_700, without_words).float() - before).norm() / before.norm()).item()
    print(f"{name}: the toy's answer changes by {changes[name]:.1%} when it gets the picture")
assert changes["yours"] < 0.02 < changes["random new weights"]
show_source(widen_for_image)

# %% [markdown]
# The new weights do nothing, but they do not stay zero: their gradient does not depend on their value, only on the
# picture and on what the backward pass brings back from the rest of the network. (LoRA starts its second matrix at zero
# for the same reason.)
#
# ## 4. The same films, heard
#
# We trained the toy in this way (`python -m minicogvx.training.prefix_model`), with one departure: the channels hold
# the first *one, two or three* latent frames, drawn anew for each batch. Only the patches, the attention and the last
# layer learned. What is shipped is the difference from the toy, rounded to 8 bits.

# %% tags=["nbval-ignore-output"]
model = minicogvx.load("toy-prefix", device)
learned = [name for name, weight in model.transformer.state_dict().items()
           if name not in pipe.transformer.state_dict() or weight.shape != pipe.transformer.state_dict()[name].shape
           or not torch.equal(weight, pipe.transformer.state_dict()[name])]
print(f"{len(learned)} of {len(model.transformer.state_dict())} tensors differ; the file has "
      f"{FILE.stat().st_size / 1e6:.1f} MB")
show_source(ImageChannels)

# %% [markdown]
# The same twelve films, the same noise, again no caption. For comparison, both ways also get one try *with* the
# caption, which says in words what the nine frames show.

# %% tags=["nbval-ignore-output"]
def continued_films(known, seed, text=nothing):
    """As `pinned`, with the trained model: known latents stand on the image channels, and nothing is put back."""
    noise = draw_noise((len(known), 16, 5, 8, 8), torch.Generator().manual_seed(seed), known.dtype, device)
    beside = F.pad(known, (0, 0, 0, 0, 0, 5 - known.shape[2]))
    latents, text = noise, text.expand(len(known), -1, -1)
    for i, t in enumerate(steps.timesteps.tolist()):
        seen = torch.cat([latents, beside], dim=1)
        v = model.transformer(seen, torch.full((len(known),), t, device=device), text)
        latents, _ = steps.step(v, i, latents)
    return latents


told = [captions.evaluation_caption(scene, random.Random(i)) for i, scene in enumerate(scenes)]
words_for = pipe.text.encode(told).to(nothing)
with_caption = pipe.decode(pinned(encoded(true[:, :9]), SEED, words_for))
tell("pinned, 9 frames and caption", judged(with_caption))
by_model, made_by_model = {}, {}
for frames in (1, 5, 9):
    made_by_model[frames] = model.decode(continued_films(encoded(true[:, :frames]), SEED))
    by_model[frames] = judged(made_by_model[frames])
    tell(f"on channels, {frames} frame{'s' * (frames > 1)}", by_model[frames])
both_ways = model.decode(continued_films(encoded(true[:, :9]), SEED, words_for))
tell("on channels, 9 and caption", judged(both_ways))
for name, films in (("pinned", made_by_pinning[9]), ("pinned, caption", with_caption),
                    ("on channels", made_by_model[9]), ("on channels, caption", both_ways)):
    print(f"nine frames {name}: frames 9 to 16 against the true ones {sum(later(films)) / COUNT:.1f} dB")
gain, low, high = paired_difference([one["all"] for one in by_model[9]], [one["all"] for one in by_pinning[9]])
print(f"nine frames, on channels less pinned: {gain:+.0%} of the films, 95 % interval {low:+.0%} to {high:+.0%}")
assert gain >= 0.25
shown = worst[0]
compare_clips({"the true clip": true[shown], "nine frames pinned": made_by_pinning[9][shown],
               "nine frames on channels": made_by_model[9][shown]},
              "Three clips: the true one; pinned, the object changes; on channels it goes on.", pipe.fps, num_frames=4)

# %% [markdown]
# From nine frames the trained model continues more films, but not all: it learned for a quarter of an hour. (With
# twelve films the interval is wide.) From a single frame it continues few, and that is no fault. Look at the row of
# properties: colour, shape and background are in the picture. The motion is not. Nobody could know it; that is what the
# caption is for.
#
# And look at pinning *with* a caption: it nearly works. Words are heard in the first step. If they say what the pinned
# frames will say, the draft and the pinned frames hardly disagree. So pinning is no bad trick where a caption describes
# everything, as in our small world. Captions of real films rarely do.
#
# And the first step?

# %% tags=["nbval-ignore-output"]
def model_guess(latents, known, t):
    seen = torch.cat([latents, F.pad(known, (0, 0, 0, 0, 0, 2))], dim=1)
    return model.transformer(seen, torch.full((COUNT,), t, device=device), nothing.expand(COUNT, -1, -1))


heard_by_model = heard(model_guess)
figure, ((axis,),) = new_figure(width=6.5, height=2.8)
axis.plot(TIMES, heard_by_model, "o-", label="on channels, trained")
axis.plot(TIMES, heard_by_pinning, "s--", label="pinned")
axis.set(xlabel="timestep t (sampling goes from right to left)", ylabel="change of the guess", ylim=(0, None))
axis.legend(fontsize=8)
show_figure(figure, "By how much the guess of the later frames changes when other first frames are given, over the "
                    "timestep. Pinned frames: nothing at 999. On channels: much, from 999 on.")
assert heard_by_model[0] > 10 * max(heard_by_pinning[0], 0.01)

# %% [markdown]
# The trained model hears the given frames from the first step on, when everything else is noise and the film is begun.
# (Towards the left both curves fall: there the later frames themselves are visible.)
#
# One thing we took on trust: the noise on the picture. People who fine-tune such models report clips that hardly move,
# and suspect that there was too little of it. So this model was fine-tuned further, twice for each of two seeds: with
# the published noise and without any (`python -m minicogvx.ablation.picture_noise`). Each continued the first frame of
# each of 48 clips that move: clean ones with a caption, then with grain on the picture, then clean ones without a
# caption.

# %%
runs = noise_runs()
figure, (axes,) = new_figure(1, 2, width=7.5, height=2.7)
for axis, what, label in zip(axes, ("moves", "still"), ("moves as the true clip does", "stays still")):
    for shift, mark, (name, said) in zip((-0.12, 0.12), "os", (("published", "with noise"), ("none", "without"))):
        for place, asked in enumerate(ASKED):
            shares = [100 * share for share in by_seed(runs, asked, what)[name]]
            axis.plot([place + shift] * len(shares), shares, mark, color=f"C{shift > 0:d}", alpha=0.8,
                      label=said if not place else None)
    axis.set(xticks=range(3), title=label, ylabel="% of 48 clips", ylim=(-4, 104), xlim=(-0.5, 2.5))
    axis.set_xticklabels(["caption", "caption,\ngrainy picture", "no caption"], fontsize=8)
axes[0].legend(fontsize=8, loc="center left")
show_figure(figure, "Two panels: the share of clips that move as the true one, and that stay still, for three ways to "
                    "give the picture. A mark is a seed: circles with noise in training, squares without.")
for asked in ASKED:
    for what in ("moves", "still"):
        gap, low, high = pooled_difference(runs, asked, what)
        print(f"{asked:23s} {what:5s} without noise, less with it: {100 * gap:+.0f} points, 95 % interval "
              f"{100 * low:+.0f} to {100 * high:+.0f} ({len(runs) // 2} seeds, {48 * len(runs) // 2} pairs of clips)")
assert all(low <= 0 <= high for low, high in (pooled_difference(runs, asked, "still")[1:] for asked in ASKED))

# %% [markdown]
# No difference, and the intervals leave little room for one. Does that settle it? No. Our pictures are drawn, so they
# have no grain that a network could learn to copy. Both models had learned with noise before, and had 100 steps to
# unlearn it. And where a caption names the motion, the model obeys it anyway. So this says that fine-tuning without
# noise did no harm here. Whether noise keeps a model of real films moving cannot be told at this size. (The intervals
# are those of the clips. Without a caption few move as the true one did, for the reason that you know: one frame shows
# no motion.)
#
# ## 5. One picture, three futures
#
# With a caption and guidance, one picture has as many futures as there are words. This time through the pipeline:
# `image=` puts a picture on the channels if the model has them, and else pins it.

# %% tags=["nbval-ignore-output"]
star = Scene((ShapeObject("star", "orange", "stays still", x=0.3, y=0.32, radius=0.17),), "navy")
picture = render(star, 1, 64, 64)[0]  # h w 3
FUTURES = ("moves right", "moves down", "stays still")
asked = [f"an orange star {motion} on a navy background" for motion in FUTURES]
futures = model.decode(model.sample(asked, image=picture[None], num_inference_steps=12, seed=4))
obeyed = [oracle.matches(oracle.read(film), captions.parse_caption(words))["all"]
          for film, words in zip(futures, asked)]
print(f"as asked: {sum(obeyed)} of {len(asked)}; first frames against the picture:",
      ", ".join(f"{psnr(picture, film[0]):.0f} dB" for film in futures))
assert sum(obeyed) >= 2
compare_clips(dict(zip(FUTURES, futures)), "Three clips that begin with the same orange star on navy: it moves right, "
              "or down, or stays still.", pipe.fps, num_frames=3)

# %% [markdown]
# Now let picture and caption contradict each other. The picture shows an orange star; the caption says *a green ring
# moves right*. No clip in training was like that.
#
# **Prediction 13.3.** What does the trained model make of it?

# %%
predict("13.3", "the orange star moves right", "a green ring moves right", "it turns from one into the other",
        "something that is neither")

# %% tags=["folded", "nbval-ignore-output"]
odd = "a green ring moves right on a navy background"
torn = {w: model(odd, image=picture, num_inference_steps=12, guidance_scale=w, seed=4) for w in (1.0, 3.0, 9.0)}


def looks(frames):
    """Colour and shape that the oracle reads in a few frames."""
    thing = (*oracle.read(frames).objects, None)[0]
    return (thing.colour, thing.shape) if thing else (None, None)


for w, film in torn.items():
    print(f"guidance {w:g}: frames 0 to 2 {looks(film[:3])}, frames 12 to 16 {looks(film[12:])}")
show_rows({f"guidance {w:g}": torn[w] for w in (1.0, 9.0)},
          "Two rows of frames: picture of an orange star, caption of a green ring, guidance 1 and 9.", num_frames=5)
start, end = looks(torn[3.0][:3]), looks(torn[3.0][12:])
outcome("13.3", "the orange star moves right" if end == ("orange", "star") else
        "something that is neither" if end != ("green", "ring") else
        "a green ring moves right" if start == end else "it turns from one into the other")

# %% [markdown]
# If you expected the picture to be safe in frame 0: it is not put back any more. It is a hint on extra channels, to a
# network that had followed words long before, and in training the two never disagreed. And guidance takes sides. Both
# of its answers, with and without the caption, are given the picture; the words go to one of them. So guidance
# amplifies words, never the picture. (Here the words win even with guidance 1, which amplifies nothing.) The lesson: a
# caption for a picture should describe that picture.
#
# ## 6. How much of a film to forget
#
# A film can be changed without any new channel. Add noise to its latents, not up to the top, and denoise from there
# with another caption. The **strength** says how far up: 0 keeps the film, 1 forgets it. With a strength of 0.8 and 50
# steps, the last 40 steps are taken.
#
# ### Exercise 13.4: first_step (difficulty 1 of 3, 5 minutes)
#
# Return the index, from 0, of the first step that is taken. A step cannot be taken in part: round the number of steps
# down. If none is taken, the index is one past the last.

# %%
def first_step(strength, steps):
    """Strength 0..1 and the number of steps -> the index of the first step, 0..steps."""
    ### BEGIN SOLUTION
    return steps - int(strength * steps)
    ### END SOLUTION


first_step = check("13.4", first_step)
print("of 10 steps:", ", ".join(f"strength {strength:g} begins at {first_step(strength, 10)}, t = "
                                f"{[*steps.timesteps.tolist(), 0][first_step(strength, 10)]}"
                                for strength in (1.0, 0.8, 0.5, 0.2)))
show_source(start_index)
show_source(NoisedVideo)

# %% [markdown]
# Twelve films, and for each a caption that differs from it in *everything*: colour, shape, motion, background. We raise
# the strength and count which properties have become what the new caption says.
#
# **Prediction 13.4.** Which property is the *last* to change, the one that needs the most noise?

# %%
predict("13.4", "the shape", "the colour", "the background", "the motion",
        "two of them, which twelve films cannot order")

# %% tags=["folded", "nbval-ignore-output"]
def differs(one, other):
    a, b = one.objects[0], other.objects[0]
    return (a.colour != b.colour and a.shape != b.shape and a.motion != b.motion
            and one.background != other.background)


old, pool, wanted = sample_scenes(COUNT, 31, two_objects=0.0), sample_scenes(300, 32, two_objects=0.0), []
for scene in old:
    wanted.append(next(other for other in pool if differs(scene, other)))
    pool.remove(wanted[-1])
source = render_batch(old, 17, 64, 64)
words = [captions.evaluation_caption(scene, random.Random(i)) for i, scene in enumerate(wanted)]
STRENGTHS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
changed_films, is_new, is_old = {}, {}, {}
for strength in STRENGTHS:
    films = pipe.decode(pipe.sample(words, video=source, strength=strength, num_inference_steps=10, seed=7))
    readings = [oracle.read(film) for film in films]
    changed_films[strength] = films
    is_new[strength] = [oracle.matches(reading, scene) for reading, scene in zip(readings, wanted)]
    is_old[strength] = [oracle.matches(reading, scene) for reading, scene in zip(readings, old)]
KINDS = ("shape", "background", "colour", "motion")
counts = {kind: [sum(one[kind] for one in is_new[strength]) for strength in STRENGTHS] for kind in KINDS}
print(f"of {COUNT} films, as the new caption says; strength", "  ".join(f"{strength:4.1f}" for strength in STRENGTHS))
for kind, found in counts.items():
    print(f"{kind:>51s}", "  ".join(f"{count:4d}" for count in found))
figure, ((axis,),) = new_figure(width=6.5, height=2.8)
for (kind, found), style in zip(counts.items(), ("o-", "s--", "^:", "d-.")):
    axis.plot(STRENGTHS, found, style, label=kind)
axis.set(xlabel="strength", ylabel=f"films of {COUNT}", ylim=(-0.3, COUNT + 0.3))
axis.legend(fontsize=8)
show_figure(figure, "How many of twelve films have the new caption's shape, background, colour and motion, over the "
                    "strength. Shape comes first, colour and motion last.")
total = {kind: sum(found) for kind, found in counts.items()}
last, before = sorted(total, key=total.get)[:2]
later = [sum(is_new[strength][i][before] - is_new[strength][i][last] for strength in STRENGTHS) for i in range(COUNT)]
mean, low, high = mean_interval(later)
print(f"of {len(STRENGTHS)} strengths, {before} is new at {mean:.2f} more of them than {last} (95 % interval over "
      f"films {low:z.2f} to {high:z.2f})")
assert total["shape"] > total["motion"]
outcome("13.4", f"the {last}" if low > 0 else "two of them, which twelve films cannot order")

# %% [markdown]
# Films are made from coarse to fine, and this is the same order, backwards. An outline is fine detail: a little noise
# hides it, and the steps that draw it are the last ones, which even a weak strength takes. A motion is coarse: it says
# where the object is in *every* frame. It shows through a lot of noise, and each step finds the object still there, and
# leaves it. To lose it, the film has to go back almost to the beginning. (The background fits this less well: nothing
# is coarser, and yet it changes before colour and motion. And with twelve films, colour and motion themselves cannot be
# told apart.)
#
# Below, one film with a slider. The four lights show what the oracle reads: the old film's, the new caption's, or
# neither.

# %% tags=["nbval-ignore-output"]
LIGHTS = {"new": "#0072B2", "old": "#E69F00", "neither": "#BBBBBB"}
PICK = 0


def with_lights(strength):
    """Frames of one film, and a light for each property."""
    film = changed_films[strength][PICK]
    figure, (axes,) = new_figure(1, 6, width=8.5, height=1.9)
    for axis, frame in zip(axes, (0, 4, 8, 12, 16)):
        axis.imshow(film[frame].numpy(), interpolation="nearest")
        axis.set(xticks=[], yticks=[], title=f"frame {frame}")
    axes[5].set_axis_off()
    states = {}
    for row, kind in enumerate(KINDS):
        states[kind] = ("new" if is_new[strength][PICK][kind] else "old" if is_old[strength][PICK][kind]
                        else "neither")
        axes[5].plot([0.1], [0.85 - 0.24 * row], "o", markersize=11, color=LIGHTS[states[kind]])
        axes[5].text(0.25, 0.85 - 0.24 * row, f"{kind}: {states[kind]}", va="center", fontsize=9)
    axes[5].set(xlim=(0, 1.4), ylim=(0, 1))
    said = ", ".join(f"{kind} {state}" for kind, state in states.items())
    return figure, f"Strength {strength:g}, caption: {words[PICK]}. Five frames, and what the oracle reads: {said}."


explore_figure(with_lights, "One film at different strengths", strength=list(STRENGTHS))

# %% [markdown]
# ### Exercise 13.5: find the best strength (difficulty 2 of 3, 10 minutes)
#
# Say that you want another *shape*, which nevertheless moves as the old one did. At which strength do most of the films
# have both? Count film by film; of equal counts take the weaker strength, which leaves more of the film.

# %% tags=["nbval-ignore-output"]
def best_strength(strengths, changed, kept):
    """Strengths, rising; booleans, strengths x films: has what should change changed, has what should stay stayed?"""
    ### BEGIN SOLUTION
    both = (changed & kept).sum(dim=1)
    return float(strengths[int(both.argmax())])
    ### END SOLUTION


best_strength = check("13.5", best_strength)
new_shape = torch.tensor([[one["shape"] for one in is_new[strength]] for strength in STRENGTHS])
old_motion = torch.tensor([[one["motion"] for one in is_old[strength]] for strength in STRENGTHS])
best = best_strength(STRENGTHS, new_shape, old_motion)
place = STRENGTHS.index(best)
print(f"strength {best:g}: {int((new_shape & old_motion)[place].sum())} of {COUNT} films have the new shape and the "
      f"old motion; at 0.9 it is {int((new_shape & old_motion)[-1].sum())}")
example = int((new_shape & old_motion)[place].int().argmax())
show_rows({"the film": source[example], f"strength {best:g}": changed_films[best][example],
           "strength 0.9": changed_films[0.9][example]},
          f"Frames of a film, and of the same with the caption: {words[example]}. At strength {best:g} it has the new "
          "shape and still moves as before; at 0.9 it moves as the caption says.", num_frames=4)

# %% [markdown]
# ## 7. As long as you like
#
# CogVideoX makes six or ten seconds at once. For more, its users take the last frame, make a new clip from it, and join
# the two. One frame keeps the looks and loses the motion, as you have seen. An overlap of several frames keeps both.
#
# ### Exercise 13.6: continue_film (difficulty 2 of 3, 15 minutes)
#
# `make` gets the last `overlap` frames and gives a whole clip that begins with them, or nearly so, since it makes them
# anew. Lose no frame, show none twice, and leave the frames that are already there as they are.

# %%
def continue_film(film, make, overlap, times):
    """film, t h w 3; make(prefix, overlap h w 3) gives a longer clip -> the film and `times` continuations."""
    ### BEGIN SOLUTION
    for _ in range(times):
        film = torch.cat([film, make(film[-overlap:])[overlap:]])
    return film
    ### END SOLUTION


continue_film = check("13.6", continue_film)

# %% [markdown]
# A walk for the star, with a new caption for each leg and an overlap of one frame, as it changes direction. And then a
# star that *stays still*, continued five times with an overlap of nine frames. The right answer is known to the pixel.

# %% tags=["nbval-ignore-output"]
def maker(words, seed):
    return lambda prefix: model(words, prefix=prefix, num_inference_steps=10, seed=seed)


trip = picture[None]
for seed, motion in enumerate(("moves right", "moves down", "moves left")):
    trip = continue_film(trip, maker(f"an orange star {motion} on a navy background", seed), 1, 1)
show_clip(trip, f"An orange star on navy goes right, down and left, in {len(trip)} frames made of three clips.",
          pipe.fps, num_frames=7)

still = render(star, 17, 64, 64)
patient = continue_film(still, maker("an orange star stays still on a navy background", 0), 9, 5)
clear = [psnr(still[0], frame) for frame in patient]
assert len(patient) == 17 + 5 * 8 and torch.equal(patient[:17], still)
print("PSNR against the true star, at the end of each continuation:",
      ", ".join(f"{clear[i]:.1f}" for i in range(24, len(patient), 8)))
show_rows({"stays still": patient}, "A still star: the true clip to frame 16, then five continuations.", num_frames=6)
show_source(Pipeline.extend)

# %% [markdown]
# Each leg begins where the last one ended, so mistakes are handed on. The last frame goes through the VAE, the model
# adds a little of its own, and the next leg takes both for the truth. Watch the numbers fall, or the edges of the star:
# this **drift** is what limits long films by continuation. (`Pipeline.extend` is the package's version. Users of the
# published models report the same drift.)
#
# ## 8. At full size
#
# The published models of both kinds, on the meta device.

# %%
for name, frames, size in (("5b", 13, (60, 90)), ("5b-i2v", 13, (60, 90)), ("1.5-5b-i2v", 22, (96, 170))):
    config = preset(name).transformer
    with torch.device("meta"):
        giant = ExpertTransformer(config)
        ofs = torch.empty(1) if config.ofs_embed_dim else None
        latents = torch.empty(1, config.in_channels, frames, *size)
        answer = giant(latents, torch.zeros(1), torch.empty(1, 226, 4096), ofs)
    kernel = giant.patch_embed.proj.weight
    print(f"{name:11s} {tuple(latents.shape)} -> {tuple(answer.shape)}; patch weights {tuple(kernel.shape)}; "
          f"{sum(p.numel() for p in giant.parameters()):,} parameters; positions: {config.position}")
extra = 2 * 2 * 16 * 3072
print(f"the picture's channels cost {extra:,} weights of 5.57 billion, {extra / 5.57e9:.4%}")

# %% [markdown]
# The price of a picture is one part in thirty thousand. What costs is the training that teaches the other parameters to
# look. `5b-i2v` also has a *learned* table of positions, which fits only 480 x 720 and 49 frames. `1.5-5b-i2v` has a
# second number beside the timestep (`ofs`, always 2.0), and its picture stands in an extra latent frame in front, which
# is dropped at the end.
#
# With your own films: `minicogvx finetune FOLDER --image-to-video`. The model of this notebook also continues a clip on
# the command line: `minicogvx generate "a red circle moves up" --model toy-prefix --prefix FILE.mp4`.
#
# ## What you can now explain
#
# Answer first, then open.
#
# <details><summary>1. Why does pinning nine true frames not continue a film?</summary>
#
# In the first step the pinned frames are pure noise, so the network begins a film of its own. Later it hears them, but
# it never learned to trust some frames more than others, and settles on a film that changes half-way.
# </details>
#
# <details><summary>2. Why do the new weights begin at zero, and why do they not stay there?</summary>
#
# With zeros, the model computes what it did before, so nothing has to be repaired. The gradient of a weight is its
# input times what comes back from the output; neither is zero.
# </details>
#
# <details><summary>3. What does a strength of 0.6 keep?</summary>
#
# What was decided in the steps that are left out, those with the most noise: above all the motion. Outlines are drawn
# in the late steps, which are all taken, so the shape follows the new caption even at small strengths.
# </details>
#
# **What the paper found.** Appendix D describes image to video as you built it: a model fine-tuned from text to video,
# with the picture's latent on new channels and noise on the picture in training. It gives no comparison with pinning.
#
# **Where to read on.** `minicogvx/diffusion/conditioning.py`, one class for each task, and
# `minicogvx/training/image_condition.py`. Pinning: [RePaint](https://arxiv.org/abs/2201.09865), which goes back and
# forth at each step to make it work. Strength: [SDEdit](https://arxiv.org/abs/2108.01073). Noise on the condition:
# [cascaded diffusion](https://arxiv.org/abs/2106.15282). Next, [notebook 14](14_evaluation.ipynb) asks what a score
# is worth.

# %% tags=["nbval-ignore-output"]
predictions("13")
progress()
