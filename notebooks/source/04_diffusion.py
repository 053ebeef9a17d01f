# %% [markdown]
# # Diffusion
#
# **How does noise become a video, and who decides when it is finished?**
#
# Run the cell below. Its film shows no motion through the clip, but the making of one frame, step by step.

# %% tags=["nbval-ignore-output"]
import math
import random

import torch
from einops import rearrange, reduce

import minicogvx
from minicogvx.course import (
    check, hint, new_figure, notebook_device, show_clip, show_figure, show_rows, show_source, solution,
)
from minicogvx.data.world import captions, oracle
from minicogvx.data.world.drawing import render, render_batch
from minicogvx.data.world.scenes import SHAPES, Scene, ShapeObject, sample_scenes
from minicogvx.diffusion import (
    DDIMSampler, DPMSampler, NoiseSchedule, diffusion_loss, draw_noise, guide, rank_interval, rank_timesteps,
    uniform_timesteps, weighted_x0_loss,
)
from minicogvx.diffusion.schedule import rescale_to_zero_terminal_snr, scaled_linear_alphas_cumprod, shift_snr
from minicogvx.presets import ScheduleConfig, preset
from minicogvx.transformer.model import ExpertTransformer, flops

torch.set_grad_enabled(False)  # nothing is trained in this notebook
device = notebook_device()  # of the networks: the processor, unless MINICOGVX_DEVICE names another device
pipe = minicogvx.load("toy", device, torch.float32)
text = pipe.text.encode(["", "a yellow star moves right"])  # without the caption, and with it


def network(x, t, guidance=3.0):
    """The toy's answer v for noisy latents x, b c t h w, at timestep t."""
    ts = torch.full((2 * len(x),), t, device=device)
    both = pipe.transformer(torch.cat([x, x]).to(device), ts, text.repeat_interleave(len(x), dim=0)).cpu()
    return guide(*both.chunk(2), guidance)


sampler = DDIMSampler(pipe.schedule, 25)
start = draw_noise((1, 16, 5, 8, 8), torch.Generator().manual_seed(0))
made, noisy, guesses = start, [], []
for i, t in enumerate(sampler.timesteps):
    noisy.append(made)
    made, guess = sampler.step(network(made, int(t)), i, made)
    guesses.append(guess)

left, right = (pipe.decode(torch.cat(latents)[:, :, :1])[:, 0] for latents in (noisy, guesses))  # b h w 3
both = torch.cat([left, right], dim=2)
show_clip(both[::2], "The first frame in 25 steps, of which every second is shown. Left: what stands there, noise at "
                     "first. Right: what the network guesses is behind it.", fps=3)

# %% [markdown]
# The network only ever makes the right half: a guess of the clean video. All the rest, the left half, is a few
# lines of arithmetic. This notebook is about those lines.
#
# You will build a noise schedule, the training target and two samplers. Afterwards you can explain why a model
# may be unable to make a dark video, why the network predicts neither noise nor video but $v$, and what a
# better sampler really improves. It takes about 50 minutes, exercises not counted. It covers what sections 2.2
# and 3 of the [paper](https://arxiv.org/abs/2408.06072) say about diffusion, above all 3.3.
#
# ## 1. How much noise?
#
# Begin with a clean clip $x_0$ and spoil it a thousand times, a little each time. At timestep $t$ a share
# $\beta_t$ of the power is replaced by fresh noise $\epsilon$:
#
# $$x \leftarrow \sqrt{1-\beta_t}\;x + \sqrt{\beta_t}\;\epsilon.$$
#
# Why these two roots? Powers of independent things add, and $(1-\beta_t) + \beta_t = 1$. What began with power
# 1 keeps it.
#
# In the **scaled linear** schedule $\sqrt{\beta_t}$ rises on a line. Here it is in the plainest way. We follow
# two numbers: how much of $x_0$ is left, and how much noise has come in.

# %%
T = 1000
first_root, last_root = 0.00085 ** 0.5, 0.012 ** 0.5
signal, noise_power, naive = 1.0, 0.0, []
for t in range(T):
    beta = (first_root + (last_root - first_root) * t / (T - 1)) ** 2
    signal = signal * (1 - beta) ** 0.5
    noise_power = noise_power * (1 - beta) + beta
    naive.append(signal ** 2)

table = scaled_linear_alphas_cumprod(T, 0.00085, 0.012)
print("power of signal and noise together is still 1:", abs(signal ** 2 + noise_power - 1) < 1e-9)
print("the package has the same table:", torch.allclose(torch.tensor(naive).double(), table, atol=1e-6))
print(f"factor of the signal after the last step: {signal:.3f}")
show_source(scaled_linear_alphas_cumprod)

# %% [markdown]
# The share of signal power is called $\bar\alpha_t$ (`alphas_cumprod`). With it we can jump to any timestep at
# once, as in notebook 00:
#
# $$x_t = a_t\,x_0 + s_t\,\epsilon, \qquad a_t = \sqrt{\bar\alpha_t}, \quad s_t = \sqrt{1-\bar\alpha_t}.$$
#
# Predict: a clip's latents are noised to timestep 250, 500, 750 and 950, and decoded. Where do you lose the
# star?

# %%
star = Scene((ShapeObject("star", "yellow", "moves right", x=0.3, y=0.5, radius=0.22, speed=0.4),), "navy")
film = render(star, 17, 64, 64)  # t h w 3
scale = pipe.vae.config.scaling_factor
clean = pipe.vae.encode(rearrange(film * 2 - 1, "t h w c -> 1 c t h w").to(device)).mode().cpu() * scale  # b c t h w
rows = {"t = 0": film}
for t in (250, 500, 750, 950):
    rows[f"t = {t}"] = pipe.decode(pipe.schedule.add_noise(clean, start, t))[0]
show_rows(rows, "Five rows of frames: the clean star, then its latents noised to 250, 500, 750 and 950 and decoded. "
                "Details go first, then the shape; at 750 and 950 only blotches are left.")

# %% [markdown]
# Details drown first, large things last. So every timestep is a question of its own: early ones ask about
# edges, late ones about what there is at all.
#
# **A larger picture needs more noise.** The same star, at 32 x 32 and at 128 x 128 pixels, at the same
# timestep. Then the large one is shrunk by averaging. Predict: which star is easier to see?

# %%
still = Scene((ShapeObject("star", "yellow", "stays still", x=0.5, y=0.5, radius=0.3),), "navy")


def spoiled(size, bar):
    """One noisy frame of size x size pixels, 1 h w 3 in -1..1."""
    picture = render(still, 1, size, size) * 2 - 1
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(size))
    return float(bar) ** 0.5 * picture + float(1 - bar) ** 0.5 * noise


def to_32(picture):
    return reduce(picture, "t (h p) (w q) c -> t h w c", "mean", h=32, w=32)


bar, bar_shifted = table[700], shift_snr(table, 16.0)[700]
rows = {"32 x 32": spoiled(32, bar), "128 x 128, averaged": to_32(spoiled(128, bar)),
        "128 x 128, averaged, shift 16": to_32(spoiled(128, bar_shifted))}
figure, (axes,) = new_figure(1, 3, width=7, height=2.6)
for axis, (name, picture) in zip(axes, rows.items()):
    axis.imshow((0.5 + 0.3 * picture[0] / picture.std()).clamp(0, 1))  # all at the same contrast
    axis.set(xticks=[], yticks=[], title=name)
    axis.grid(False)
show_figure(figure, "Three noisy pictures of a star at timestep 700. At 32 x 32 it is almost lost. Averaged from 128 "
                    "x 128 it is plain to see. With the shift, that one is as lost as the first.")

left_over = to_32(spoiled(128, bar)) - to_32(float(bar) ** 0.5 * (render(still, 1, 128, 128) * 2 - 1))
quarter = (left_over.std() / (1 - bar) ** 0.5).item()
print("averaging left a quarter of the noise:", 0.24 < quarter < 0.26)


def ratio(bars):
    """Signal-to-noise ratio, SNR for short: power of the signal over power of the noise."""
    return bars / (1 - bars)


shifted = ratio(shift_snr(table, 16.0))
print("shifted by 16, every SNR is 16 times smaller:", torch.allclose(shifted * 16, ratio(table)))

# %% [markdown]
# Sixteen noisy pixels know more than one. The network can average, so the large picture was in truth *less*
# noisy. The **SNR shift** divides every SNR by a fixed number. CogVideoX-2B shifts by 3; the 5B does without.
#
# ## 2. The last timestep
#
# After all thousand steps the factor of the signal was 0.068. That looks like nothing. Is it?
#
# We would like to know what a *perfect* network does with it, so that nobody can blame training. For a world of
# finitely many clips a perfect network can be written down. Seeing $x_t$, each clip of the world is more or
# less likely to hide in it; the best guess is the mean of all clips, each weighted by its likelihood.
#
# Our world: six shapes, each in nine levels of brightness, from night to snow.

# %%
movers = [ShapeObject(shape, "white", "moves right", x=0.3, y=0.5, radius=0.22, speed=0.4) for shape in SHAPES]
films = render_batch([Scene((mover,), "black") for mover in movers], 5, 32, 32)  # b t h w 3
patterns = 0.3 * (films - films.mean(dim=(1, 2, 3, 4), keepdim=True)).flatten(1).double()  # mean 0 each
levels = torch.linspace(-0.7, 0.7, 9).double()
world = torch.cat([patterns + level for level in levels])  # k n


def perfect(x, bar, means, width=0.0):
    """The best guess of the clean data behind x, b n: the data are clouds of this width around `means`, k n."""
    a, spread = bar ** 0.5, 1 - bar + bar * width ** 2
    likely = torch.softmax(-torch.cdist(x, a * means).square() / (2 * spread), dim=1)  # b k
    near = likely @ means
    return near + a * width ** 2 / spread * (x - a * near)


picks = torch.arange(0, len(world), 5)
last = float(table[-1])
noise = torch.randn(len(picks), world.shape[1], generator=torch.Generator().manual_seed(0)).double()
guess = perfect(last ** 0.5 * world[picks] + (1 - last) ** 0.5 * noise, last, world)
error = (guess.mean(dim=1) - world[picks].mean(dim=1)).abs()
print(f"{len(world)} clips of {world.shape[1]:,} numbers")
print("at timestep 999 the brightness is guessed to within 0.1:", bool(error.mean() < 0.1))

# %% [markdown]
# The noise looks complete, and still the network can tell night from snow. Brightness is the mean of 15,360
# numbers: the noise in a mean of so many is tiny, and 0.068 of the signal stands far above it.
#
# So training taught the network: *the mean of what you see tells the brightness*. But sampling starts from pure
# noise, and its mean is 0. Predict: what will this perfect network make?
#
# The sampler is as plain as possible. Guess what is clean; see which noise remains; mix both again with less
# noise.

# %%
def walk(guess, x, timesteps, bars):
    """From noise to data. guess(x, t) is the clean data at timestep t; bars the table of alpha_bar."""
    for t, t_next in zip(timesteps, [*timesteps[1:], -1]):
        bar, bar_next = float(bars[t]), float(bars[t_next]) if t_next >= 0 else 1.0
        x0 = guess(x, t)
        noise = (x - bar ** 0.5 * x0) / (1 - bar) ** 0.5
        x = bar_next ** 0.5 * x0 + (1 - bar_next) ** 0.5 * noise
    return x


noise = torch.randn(65, world.shape[1], generator=torch.Generator().manual_seed(1)).double()
results = {}
for name, bars in (("signal left", table), ("zero at the end", rescale_to_zero_terminal_snr(table))):
    results[name] = walk(lambda x, t: perfect(x, float(bars[t]), world), noise, range(999, 0, -20), bars)

figure, axes = new_figure(2, 9, width=8.5, height=2.4)
for row, (name, clips) in zip(axes, results.items()):
    for axis, clip in zip(row, clips[clips.mean(dim=1).argsort()][::8]):  # every eighth, from dark to bright
        axis.imshow((clip.reshape(5, 32, 32, 3)[2] / 2 + 0.5).clamp(0, 1))
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
    row[0].set_ylabel(name)
show_figure(figure, "Nine results of each schedule, sorted from dark to bright. Above, signal left at the last "
                    "timestep: all crowd about middle grey. Below, zero at the end: from night to snow.")
spread = {name: clips.mean(dim=1).std().item() for name, clips in results.items()}
print("spread of brightness: world above 0.35:", bool(world.mean(dim=1).std() > 0.35))
print("signal left: below 0.15:", spread["signal left"] < 0.15)
print("zero at the end: above 0.25:", spread["zero at the end"] > 0.25)

# %% [markdown]
# That is the grey video. The network is perfect; the schedule asked it a question in training that sampling
# never asks. The mean of pure noise is 0, so the network answers, rightly by its training, "middle grey". A
# caption that asks for night has to work against this.
#
# The repair is **zero terminal SNR**: the last timestep must hold no signal at all. Shift $\sqrt{\bar\alpha_t}$
# down until the last is 0, and stretch it until the first is what it was.

# %%
show_source(rescale_to_zero_terminal_snr)
zeroed = rescale_to_zero_terminal_snr(table)
both = rescale_to_zero_terminal_snr(shift_snr(table, 3.0))

figure, (axes,) = new_figure(1, 2, width=8, height=2.5)
for axis, begin in zip(axes, (0, 900)):
    for bars, label, style in ((table, "scaled linear", ":"), (zeroed, "and zero at the end", "-"),
                               (both, "shifted by 3, and zero at the end", "--")):
        axis.plot(range(begin, T), bars[begin:].sqrt(), label=label, linestyle=style)
    axis.set(xlabel="timestep t", ylabel="factor of the signal, a")
axes[0].legend(fontsize=8)
show_figure(figure, "The signal's factor falls from 1 with the timestep. Right, the last hundred timesteps: scaled "
                    "linear ends at 0.07, the two rescaled ones at 0. Shifted by 3, the signal falls sooner.")
print("signal at the end:", float(zeroed[-1]), float(both[-1]))
print("first unchanged:", torch.allclose(zeroed[0], table[0]))
print("the toy's own table:", torch.equal(pipe.schedule.alphas_cumprod, zeroed))

# %% [markdown]
# At timestep 999 the network now has nothing to see. Its best guess is the mean of all clips, and it cannot be
# wrong about what it was never told. Which clip it becomes is decided later, by the noise.
#
# ## 3. What the network says
#
# The network could be asked for $\epsilon$, and $x_0$ would follow: $(x_t - s_t\,\epsilon) / a_t$. At the last
# timestep that divides by zero. There $x_t$ *is* the noise, and repeating it says nothing about the video. The
# package refuses the pair, as you see below. Being asked for $x_0$ is no better at the other end: at timestep 0
# it is there to be copied.
#
# Look at the geometry. Since $a_t^2 + s_t^2 = 1$, there is an angle $\varphi$ with $a_t = \cos\varphi$ and
# $s_t = \sin\varphi$. Noising *turns* $x_0$ into $\epsilon$, through a quarter of a circle. The direction in
# which $x_t$ moves as it turns is its velocity,
#
# $$v = \frac{d x_t}{d \varphi} = a_t\,\epsilon - s_t\,x_0.$$

# %%
try:
    NoiseSchedule(ScheduleConfig(prediction_type="epsilon"))
except ValueError as error:
    print(error)

figure, ((axis,),) = new_figure(width=3.8, height=3.4)
quarter = torch.linspace(0, math.pi / 2, 50)
axis.plot(quarter.cos(), quarter.sin(), color="#999999")
for degrees in (0, 30, 60, 90):
    angle = math.radians(degrees)
    a, s = math.cos(angle), math.sin(angle)
    axis.plot(a, s, "o", color="#0072B2")
    axis.annotate("", (a - 0.35 * s, s + 0.35 * a), (a, s), arrowprops={"arrowstyle": "->", "color": "#D55E00"})
axis.set(xlabel="clean video, $x_0$", ylabel=r"noise, $\epsilon$")
axis.set(aspect="equal", xlim=(-0.45, 1.15), ylim=(-0.1, 1.45))
show_figure(figure, "A quarter circle from x0, on the right, to the noise, at the top. An arrow at each of four "
                    "points is v: at x0 it points towards the noise, at the noise it points away from x0.")

x0, noise, t = clean.double(), start.double(), 400
angle, nudge = math.acos(pipe.schedule.alpha_bar(t) ** 0.5), 1e-5
turned = [math.cos(angle + side) * x0 + math.sin(angle + side) * noise for side in (-nudge, nudge)]
slope = (turned[1] - turned[0]) / (2 * nudge)
print("the slope is the package's velocity:", torch.allclose(slope, pipe.schedule.velocity(x0, noise, t), atol=1e-6))

# %% [markdown]
# At timestep 0, $v$ is the noise; at 999 it is $-x_0$. It always asks for what cannot be seen.
#
# What does an error in $v$ do? Let the answer be off by $\Delta$. Then the guess of $x_0$ is off by
# $-s_t\,\Delta$, and that of the noise by $a_t\,\Delta$. The squares add up again:

# %%
ts = torch.tensor([t])
x_t = pipe.schedule.add_noise(x0, noise, t)
answer = pipe.schedule.velocity(x0, noise, t) + 0.1 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(2))
a, s = math.cos(angle), math.sin(angle)
x0_hat = pipe.schedule.to_x0(answer, x_t, t)
noise_hat = (x_t - a * x0_hat) / s
by_hand = (x0_hat - x0).square().mean() + (noise_hat - noise).square().mean()
loss = diffusion_loss(answer, x0, noise, ts, pipe.schedule)
print("loss of v = error of x0 + error of the noise:", torch.allclose(by_hand, loss))
weighted = weighted_x0_loss(answer, x0, noise, ts, pipe.schedule)
print("the published, weighted loss is the same:", torch.allclose(weighted, loss))
show_source(weighted_x0_loss)

# %% [markdown]
# One plain squared error weighs video and noise fairly, at every timestep. The published code writes it with a
# weight $1/(1-\bar\alpha_t)$ on $x_0$; the weight cancels.
#
# **Predict, run, explain.** We measure the loss of the shipped toy at 50 timesteps, on 16 clips each. Draw the
# curve first: where is the question hard, where easy?

# %% tags=["nbval-ignore-output"]
scenes = sample_scenes(16, seed=4)
words = [captions.caption(scene, random.Random(i)) for i, scene in enumerate(scenes)]
pixels = rearrange(render_batch(scenes, 17, 64, 64) * 2 - 1, "b t h w c -> b c t h w")
latents, features = pipe.vae.encode(pixels.to(device)).mode().cpu() * scale, pipe.text.encode(words)

grid = torch.arange(10, T, 20)  # the middles of 50 parts
generator, losses = torch.Generator().manual_seed(4), []
for t in grid:
    noise, ts = draw_noise(tuple(latents.shape), generator), t.repeat(len(latents))
    noisy = pipe.schedule.add_noise(latents, noise, ts)
    answer = pipe.transformer(noisy.to(device), ts.to(device), features).cpu()
    losses.append(diffusion_loss(answer, latents, noise, ts, pipe.schedule))
losses = torch.stack(losses)  # timesteps x clips
curve, signal_share = losses.mean(dim=1), pipe.schedule.alphas_cumprod[grid]

figure, (axes,) = new_figure(1, 2, width=8.5, height=2.7)
axes[0].plot(grid, curve, label="loss of v")
axes[0].plot(grid, (1 - signal_share) * curve, "--", label="of it, error of the video")
axes[0].plot(grid, signal_share * curve, ":", label="of it, error of the noise")
axes[0].set(xlabel="timestep t", ylabel="loss", title="the toy")
axes[0].legend(fontsize=8)
axes[1].plot((100, 300, 500, 700, 900), (0.222, 0.130, 0.119, 0.133, 0.161), "o-")
axes[1].set(xlabel="timestep t", title="CogVideoX, after the paper's Table 9", xlim=(0, T), ylim=(0, None))
show_figure(figure, "Left, the toy's loss over the timestep: high at both ends, low between them; near timestep 0 it "
                    "is all error of the noise, near 999 all error of the video. Right, the published five points: "
                    "the same bowl.")
print("both ends are harder than the middle:", bool(curve[0] > curve[20:30].mean() < curve[-1]))

# %% [markdown]
# A bowl. At the left the network must see a trace of noise in an almost clean video. At the right it must tell
# a video from its caption alone, and the best it can do is a mean. In the middle, half is given and half can be
# told from it. The paper's own model shows the same bowl.
#
# ## 4. DDIM
#
# The loop `walk` of section 2 has a name: **DDIM**. There it ran on a perfect network; now it
# gets the toy. `to_x0` makes the guess from $v$ (exercise 4.3 asks you how).

# %%
mine = walk(lambda x, t: pipe.schedule.to_x0(network(x, t), x, t), start, range(999, 0, -40),
            pipe.schedule.alphas_cumprod)
print("the sampler of the first cell computes the same:", torch.allclose(mine, made, atol=1e-2))
show_source(DDIMSampler.step)

# %% [markdown]
# Put $\epsilon = (x - a\,x_0)/s$ into our last line and gather: that is the package's formula. It needs no
# randomness. The starting noise decides everything.
#
# DDIM walks straight on as if the guess would not change during the step. It does change. Therefore it needs
# many small steps.
#
# ## 5. DPM-Solver++
#
# The sampler of the published 5B changes two things. Both fit into our loop.
#
# **It leans.** Two guesses in a row show where the guess is heading. The step continues that line to its own
# middle. "Middle" is measured in $\lambda = \tfrac12 \log \mathrm{SNR}$, because the guess changes more
# evenly there. With $h$ the length of this step in $\lambda$ and $h_\text{before}$ that of the one before:
#
# $$D = x_0 + \frac{h}{2\,h_\text{before}}\,(x_0 - x_{0,\text{before}}).$$
#
# **It renews the noise.** Of the old noise's power it keeps the share $k = \mathrm{SNR}/\mathrm{SNR}'$ (a prime
# marks the end of the step); the rest is fresh. The clean part mixes in the same shares:
#
# $$x' = a'\,\bigl(k\,x_0 + (1-k)\,D\bigr) + s'\,\bigl(\sqrt{k}\;\epsilon + \sqrt{1-k}\;z\bigr),$$
#
# with $z$ the new noise.

# %%
def walk_and_renew(guess, x, timesteps, bars, generator, lean=True, renew=True):
    """As `walk`, but each step leans on the guess before it, and renews a part of the noise. Either can be left out."""
    before, h_before = None, None
    for t, t_next in zip(timesteps, [*timesteps[1:], -1]):
        bar, bar_next = float(bars[t]), float(bars[t_next]) if t_next >= 0 else 1.0
        x0 = guess(x, t)
        noise = (x - bar ** 0.5 * x0) / (1 - bar) ** 0.5
        kept = bar * (1 - bar_next) / ((1 - bar) * bar_next)
        h = -0.5 * math.log(kept) if kept > 0 else math.inf
        fresh = draw_noise(tuple(x.shape), generator, x.dtype)
        leaned = x0
        if before is not None and t_next >= 0:
            fresh = draw_noise(tuple(x.shape), generator, x.dtype)  # the published programs throw the first away
            if lean:
                leaned = x0 + h / (2 * h_before) * (x0 - before)
        if renew:
            noise = kept ** 0.5 * noise + (1 - kept) ** 0.5 * fresh
        share = kept if renew else kept ** 0.5  # k comes from renewing; the same steps without it give its root
        x = bar_next ** 0.5 * (share * x0 + (1 - share) * leaned) + (1 - bar_next) ** 0.5 * noise
        before, h_before = x0, h
    return x


def sampled(sampler, answer, x, generator=None, seen=None):
    """The latents that a sampler of the package makes; answer(x, t) is v. `seen` collects what stood at each step."""
    x0 = None
    for i, t in enumerate(sampler.timesteps):
        x, x0 = sampler.step(answer(x, int(t)), i, x, x0, generator)
        if seen is not None:
            seen.append(x)
    return x


mine = walk_and_renew(lambda x, t: pipe.schedule.to_x0(network(x, t), x, t), start, range(999, 0, -100),
                      pipe.schedule.alphas_cumprod, torch.Generator().manual_seed(5))
package = sampled(DPMSampler(pipe.schedule, 10), network, start, torch.Generator().manual_seed(5))
print("the package computes the same:", torch.allclose(mine, package, atol=1e-2))
show_source(DPMSampler.step)

# %% [markdown]
# The package writes $e^{-2h}$ for our $k$; its `B` is $1 - k$, its `D` the guess that leans, its `C` how far. The first
# and the last step do not lean: before the first there is no guess, and after the last no noise. The noise really is
# drawn twice, as both published programs do; so the same seed gives the same video here and there.
#
# To see the difference, take a world of single numbers: three narrow clouds. Its perfect network is known, so
# every error is the sampler's. Predict what the ways from noise to data look like.

# %%
places, width = torch.tensor([[-1.2], [0.3], [1.0]]).double(), 0.1


def perfect_guess(x, t):
    """x0 of the perfect network for numbers in the shape of latents, b 1 1 1 1."""
    return perfect(x.flatten(1), pipe.schedule.alpha_bar(t), places, width).reshape(x.shape)


def perfect_answer(x, t):
    bar = pipe.schedule.alpha_bar(t)
    return (bar ** 0.5 * x - perfect_guess(x, t)) / (1 - bar) ** 0.5


points = torch.linspace(-1.6, 1.6, 12).double().reshape(-1, 1, 1, 1, 1)
figure, (axes,) = new_figure(1, 2, width=8, height=2.8)
for axis, (name, kind) in zip(axes, {"DDIM": DDIMSampler, "DPM-Solver++": DPMSampler}.items()):
    seen, fifty = [points], kind(pipe.schedule, 50)
    sampled(fifty, perfect_answer, points, torch.Generator().manual_seed(6), seen)
    axis.plot([*fifty.timesteps.tolist(), 0], torch.stack(seen).flatten(1), linewidth=1)
    axis.set(title=name, xlabel="timestep t", ylabel="x", xlim=(T, 0), ylim=(-2.8, 2.8))
show_figure(figure, "Twelve ways from the same starting points on the left to three places on the right, in 50 steps. "
                    "DDIM: smooth lines that never cross. DPM-Solver++: ragged lines that cross and change sides "
                    "until late.")

twice = [sampled(kind(pipe.schedule, 10), perfect_answer, points, torch.Generator().manual_seed(seed))
         for kind in (DDIMSampler, DPMSampler) for seed in (1, 2)]
print("other seed, same result, DDIM:", torch.equal(twice[0], twice[1]))
print("other seed, same result, DPM-Solver++:", torch.equal(twice[2], twice[3]))

# %% [markdown]
# DDIM's lines are smooth: start and end belong together for ever. With DPM-Solver++ the end is open until late.
# It forgets its start, and with it the mistakes of early steps.
#
# ## 6. Steps against quality
#
# Each step is a run of the network, so steps are what a user pays. Our loop has two switches, so there are four
# samplers: DDIM (neither), leaning alone, renewing alone, and both, which is the published one.
#
# The error is the **transport distance**: how far 21,000 results must be moved, on average, to become the
# world. In one dimension: sort both and subtract.
#
# Predict, for two networks: the perfect one, and one that errs early, whose guess is 0.5 too high at every
# timestep above 500. Which sampler needs the fewest steps? Which forgives the error?

# %% tags=["nbval-ignore-output"]
middles = torch.special.ndtri((torch.arange(7000).double() + 0.5) / 7000)  # a bell curve as 7,000 evenly likely points
truth = (places + width * middles).flatten().sort().values
begin = torch.special.ndtri((torch.arange(21_000).double() + 0.5) / 21_000).reshape(-1, 1, 1, 1, 1)
samplers = {"neither: DDIM": (False, False), "leans": (True, False), "renews": (False, True), "both": (True, True)}
networks = {"a perfect network": perfect_guess,
            "one that errs early": lambda x, t: perfect_guess(x, t) + 0.5 * (t > 500)}

steps, error = (2, 5, 10, 20, 50, 100), {}
for network_name, guess in networks.items():
    for name, (lean, renew) in samplers.items():
        generator = torch.Generator().manual_seed(7)
        for n in steps:
            x = walk_and_renew(guess, begin, range(999, 0, -T // n), zeroed, generator, lean, renew)
            error[network_name, name, n] = (x.flatten().sort().values - truth).abs().mean().item()
        if (network_name, name) == ("a perfect network", "neither: DDIM"):
            print(f"width of the topmost cloud after 100 steps of DDIM: {x[x > 0.65].std():.3f}, in the world {width}")

figure, (axes,) = new_figure(1, 2, width=8.5, height=3)
for axis, network_name in zip(axes, networks):
    print(network_name)
    for name, style in zip(samplers, ("o-", "s--", "^:", "d-.")):
        values = [error[network_name, name, n] for n in steps]
        axis.loglog(steps, values, style, label=name)
        print(f"    {name:14s}", "  ".join(f"{n}: {value:.3f}" for n, value in zip(steps, values)))
    axis.set(title=network_name, xlabel="steps", ylabel="transport distance", ylim=(0.01, 1))
    axis.set_xticks(steps, [str(n) for n in steps])
    axis.minorticks_off()
axes[0].legend(fontsize=8)
show_figure(figure, "Transport distance over the number of steps, both axes logarithmic. Left, a perfect network: "
                    "four lines fall together. Right, one that errs early: DDIM and leaning alone stop falling at a "
                    "high level, and the two that renew end at about half of it.")

# %% [markdown]
# With the perfect network all four are nearly alike: twice the steps, half the error. Leaning gains a little,
# renewing costs a little. Most of the error that is left they share: the last step jumps to the guess, and a
# guess is a mean. So the clouds come out too narrow. In a video, that is fine texture lost.
#
# With the network that errs, more steps do not help DDIM: its way carries the early mistake to the end.
# Renewing about halves the error, because it throws a part of the past away, and leaning pays back the steps
# that this costs. Real networks err. (The authors recommend this sampler for the 5B and do not say why; this
# may be part of it.)
#
# Now the toy. Predict: from how many steps on will the oracle notice no difference?

# %% tags=["nbval-ignore-output"]
asked_scenes = sample_scenes(6, seed=3, split="train", two_objects=0.0)
asked = [captions.evaluation_caption(scene, random.Random(i)) for i, scene in enumerate(asked_scenes)]
asked_text = pipe.text.encode([""] * len(asked) + asked)
begin = draw_noise((len(asked), 16, 5, 8, 8), torch.Generator().manual_seed(8))


def asked_answer(x, t):
    ts = torch.full((2 * len(x),), t, device=device)
    both = pipe.transformer(torch.cat([x, x]).to(device), ts, asked_text).cpu()
    return guide(*both.chunk(2), 3.0)


rows = {}
for name, kind in {"DDIM": DDIMSampler, "DPM-Solver++": DPMSampler}.items():
    for n in (2, 5, 20):
        clips = pipe.decode(sampled(kind(pipe.schedule, n), asked_answer, begin, torch.Generator().manual_seed(9)))
        right = sum(oracle.matches(oracle.read(clip), scene)["all"] for clip, scene in zip(clips, asked_scenes))
        print(f"{name:13s}{n:3d} steps: {right} of {len(asked)} right")
        rows[f"{name}, {n} steps"] = clips[0]
show_rows(rows, f"The caption: {asked[0]}. Six rows of frames: DDIM and then DPM-Solver++, each with 2, 5 and 20 "
                "steps. With 2 steps the star is misshapen and the background blotched.")

# %% [markdown]
# Once the sampler errs less than the network, more steps buy nothing. Large models with fine detail reach that
# point later: the paper uses 50.
#
# ## 7. Which timesteps to train on
#
# A training batch draws one timestep for each clip. Independent draws leave gaps and heaps, and by section 3
# some timesteps simply cost more. So the loss jumps about, though nothing was learned or forgotten.
#
# **Explicit uniform sampling** (paper 3.3): each of the $n$ ranks, the processes that train in parallel, draws
# from its own $n$-th of the timesteps.

# %%
show_source(rank_timesteps)
print([rank_interval(T, rank, 4) for rank in range(4)])

# %% [markdown]
# Predict: ten ranks, one clip each. How much smaller does the spread of the batch loss become? Half? A tenth?
# We draw from the table of losses of section 3: its 50 parts are the timesteps.

# %% tags=["nbval-ignore-output"]
generator, ranks, batches = torch.Generator().manual_seed(10), 10, 3000
independent = torch.stack([uniform_timesteps(ranks, len(grid), generator) for _ in range(batches)])
explicit = torch.stack([torch.cat([rank_timesteps(1, len(grid), rank, ranks, generator) for rank in range(ranks)])
                        for _ in range(batches)])  # batches x ranks
who = torch.randint(0, losses.shape[1], (batches, ranks), generator=generator)
batch_loss = {name: losses[drawn, who].mean(dim=1)
              for name, drawn in (("independent", independent), ("explicit uniform", explicit))}

figure, ((axis,),) = new_figure(width=7, height=2.4)
for (name, values), style in zip(batch_loss.items(), ("-", "--")):
    axis.plot(values[:80], style, label=name, linewidth=1.4)
axis.set(xlabel="batch", ylabel="mean loss of the batch")
axis.legend(ncols=2)
show_figure(figure, "The loss of 80 batches at fixed weights. Independent draws jump widely; explicit uniform "
                    "sampling stays in a narrower band about the same mean.")
for name, values in batch_loss.items():
    print(f"{name:17s} mean {values.mean():.3f}, spread {values.std():.4f}")  # spread: standard deviation
of_time = curve.var(unbiased=False) / losses.var(unbiased=False)
print(f"{of_time:.0%} of the variance of a single loss comes from its timestep, the rest from clip and noise")
spread = {name: values.std() for name, values in batch_loss.items()}
print("explicit uniform sampling spreads less:", bool(spread["explicit uniform"] < spread["independent"]))

# %% [markdown]
# The mean stays: each timestep still comes equally often. What vanishes is the part of the variance that the
# timestep causes. The part of clip and noise stays, so the gain depends on how deep the bowl is.
#
# Mind what this shows: a calmer loss at fixed weights. That training also ends lower is the paper's finding
# (its Table 9: at all five timesteps, 0.119 against 0.116 at 500, for example), not ours here.
#
# ## 8. Exercises
#
# Each cell waits for your code; `check` says what is right. `hint("4.1")` gives one more hint each time,
# `solution("4.1")` a solution.
#
# **4.1 A schedule that ends in noise** (difficulty 2 of 3, 15 minutes). The package rescales $\bar\alpha_t$.
# Many programs keep $\beta_t$ instead. Take the betas of any schedule and return those of its zero-terminal-SNR
# version.

# %%
def zero_terminal_betas(betas):
    """betas, T -> betas, T, of the schedule whose last timestep is pure noise."""
    ### BEGIN SOLUTION
    roots = (1 - betas).cumprod(dim=0).sqrt()
    roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    bars = roots ** 2
    return 1 - torch.cat([bars[:1], bars[1:] / bars[:-1]])
    ### END SOLUTION


zero_terminal_betas = check("4.1", zero_terminal_betas)

# %% [markdown]
# **4.2 What training needs** (difficulty 1, 10 minutes). A batch of clean latents, its noise, and $\bar\alpha$
# of *each* sample. Return $x_t$ and $v$. One line of it fails silently in many first programs.

# %%
def training_pair(x0, noise, bars):
    """x0 and noise, b c t h w; bars, b -> x_t and v, b c t h w."""
    ### BEGIN SOLUTION
    bars = bars.reshape(-1, 1, 1, 1, 1)
    a, s = bars.sqrt(), (1 - bars).sqrt()
    return a * x0 + s * noise, a * noise - s * x0
    ### END SOLUTION


training_pair = check("4.2", training_pair)

# %% [markdown]
# **4.3 The way back** (difficulty 1, 10 minutes). From $x_t$ and $v$ to $x_0$ and the noise, for any
# $\bar\alpha$ from 0 to 1, both ends included.

# %%
def clean_and_noise(x_t, v, bar):
    """x_t and v of one shape, bar a number -> x0 and noise, of that shape."""
    ### BEGIN SOLUTION
    a, s = bar ** 0.5, (1 - bar) ** 0.5
    return a * x_t - s * v, s * x_t + a * v
    ### END SOLUTION


clean_and_noise = check("4.3", clean_and_noise)

# %% [markdown]
# **4.4 One step, from DDIM to DDPM** (difficulty 2, 15 minutes). Between the two samplers lies a whole family.
# Of the noise's power, the share $\eta^2 (1-k)$ is new, with $k$ of section 5. With $\eta = 0$ this is DDIM;
# with $\eta = 1$ it is DDPM, the first of the diffusion samplers, and DPM-Solver++ without leaning. It must
# also hold where `bar` is 0 and where `bar_next` is 1.

# %%
def renewing_step(x0, noise, fresh, bar, bar_next, eta):
    """Guess, its noise and fresh noise of one shape; alpha_bar before and after the step -> the next x."""
    ### BEGIN SOLUTION
    kept = bar * (1 - bar_next) / ((1 - bar) * bar_next)
    new = eta ** 2 * (1 - kept)
    mixed = (1 - new) ** 0.5 * noise + new ** 0.5 * fresh
    return bar_next ** 0.5 * x0 + (1 - bar_next) ** 0.5 * mixed
    ### END SOLUTION


renewing_step = check("4.4", renewing_step)

# %% [markdown]
# **4.5 Explicit uniform sampling on one machine** (difficulty 2, 15 minutes). No ranks here, but a batch.
# Divide 0 .. T-1 into $b$ equal parts and draw one integer timestep from each, in random order, with the
# generator given. Each timestep must come equally often, also where $b$ does not divide $T$.

# %%
def spread_timesteps(b, T, generator):
    """b timesteps in 0 .. T-1, one from each of b equal parts, shuffled."""
    ### BEGIN SOLUTION
    parts = torch.arange(b) + torch.rand(b, generator=generator)
    t = (parts * T / b).long().clamp(max=T - 1)
    return t[torch.randperm(b, generator=generator)]
    ### END SOLUTION


spread_timesteps = check("4.5", spread_timesteps)

# %% [markdown]
# **All yours.** With these five functions you can train and sample. Here is one training batch, and a clip at
# both ends of the family.

# %%
betas = torch.linspace(first_root, last_root, T).double() ** 2
bars = (1 - zero_terminal_betas(betas)).cumprod(dim=0)
t = spread_timesteps(16, T, torch.Generator().manual_seed(11))
noise = draw_noise(tuple(latents.shape), torch.Generator().manual_seed(12))
x_t, v = training_pair(latents, noise, bars[t].float())
answer = pipe.transformer(x_t.to(device), t.to(device), features).cpu()
loss = (answer - v).square().mean(dim=(1, 2, 3, 4))
package = diffusion_loss(answer, latents, noise, t, pipe.schedule)
print("your loss is the package's:", torch.allclose(loss, package, atol=1e-3))

rows = {}
for eta in (0.0, 1.0):
    x, generator = start, torch.Generator().manual_seed(13)
    for t in range(999, 0, -40):
        bar, bar_next = float(bars[t]), float(bars[t - 40]) if t > 40 else 1.0
        x0, noise = clean_and_noise(x, network(x, t), bar)
        x = renewing_step(x0, noise, draw_noise(tuple(x.shape), generator), bar, bar_next, eta)
    rows[f"eta {eta:g}"] = pipe.decode(x)[0]
    if eta == 0:
        print("with eta 0 it is the clip of the first cell:", torch.allclose(x, made, atol=1e-2))
show_rows(rows, "Two rows of frames from the same starting noise, with eta 0 and eta 1: two different clips of the "
                "same caption.")

# %% [markdown]
# ## 9. At full size
#
# The published models use the same two classes; a schedule has no size. What grows is everything around it. We
# build the networks on the **meta device**, with shapes and without memory, and run a step of both captions.

# %%
size = (13, 60, 90)  # latents of 49 frames, 480 x 720
numbers = 16 * 13 * 60 * 90
for name in ("2b", "5b"):
    schedule = NoiseSchedule(preset(name).schedule)
    with torch.device("meta"):
        giant = ExpertTransformer(preset(name).transformer)
        answer = giant(torch.empty(2, 16, *size), torch.zeros(2), torch.empty(2, 226, 4096))
    work = flops(giant.config, size, 226, batch=2)
    print(f"{name}: shift {schedule.config.snr_shift_scale:g}, alpha_bar at 500 {schedule.alpha_bar(500):.4f}, at 999 "
          f"{schedule.alpha_bar(999):g}; answer {tuple(answer.shape)}")
    count = sum(p.numel() for p in giant.parameters())
    print(f"    {count:,} parameters, {2 * count / 1e9:.1f} GB in 16 bits")
    print(f"    sampler {preset(name).schedule.sampler}, 50 steps: {50 * work / 1e15:.0f} PFLOP")

print(f"one latent: {numbers:,} numbers, {numbers * 4 / 1e6:.1f} MB in float32; DDIM keeps 2 of them, DPM-Solver++ 3")
leak = table[-1] ** 0.5 * numbers ** 0.5
print(f"without the repair, a mean of 1 at the last timestep would stand {leak:.0f} times above its noise")
print("rank 5 of 32 draws from", rank_interval(T, 5, 32), "in the paper")
print("and from", rank_interval(T, 5, 32, "v1.0"), "in the code released with these models")

# %% [markdown]
# Arithmetic on three latents costs nothing; the network costs everything. The paper reports 113 seconds for 50
# steps of the 5B on an H800 GPU. That is why a sampler that needs half the steps is worth as much as a GPU of
# twice the speed.
#
# Note the leak: the more numbers, the better their mean can be read. A video needs the repair more than a
# picture does. (In latents it is each channel's mean that leaks.)
#
# ## What you can now explain
#
# Answer first, then open.
#
# <details><summary>1. Why can a perfect network be unable to make a dark video?</summary>
#
# If its last timestep held a trace of signal, it learned to read the brightness from the mean of what it sees.
# Pure noise has mean 0, and so every video comes out at middle brightness.
# </details>
#
# <details><summary>2. Why v, and not the noise?</summary>
#
# At the last timestep the noise is all there is to see, and repeating it says nothing about the video. v asks
# for what is hidden at each end, and its error is the sum of the errors of video and noise.
# </details>
#
# <details><summary>3. What does DPM-Solver++ do that DDIM does not?</summary>
#
# It leans on its last two guesses, which saves steps. And it renews a part of the noise in each step, which
# costs steps, but forgets early mistakes of the network.
# </details>
#
# **What the paper found.** CogVideoX trains with v-prediction and zero terminal SNR. Its own addition is
# explicit uniform sampling: a calmer loss curve, and lower losses at all five timesteps measured. The ranks of
# the first released code may share intervals; later code switches it off where there are at most eight.
#
# **Where to read on.** `minicogvx/diffusion`: `schedule`, `objective`, `timesteps` and `samplers`, none of them
# long. Zero terminal SNR: [Lin et al.](https://arxiv.org/abs/2305.08891); v: [Salimans and
# Ho](https://arxiv.org/abs/2202.00512); DDIM: [Song et al.](https://arxiv.org/abs/2010.02502); DPM-Solver++:
# [Lu et al.](https://arxiv.org/abs/2211.01095). Next: text and guidance, the 3 in `network` above.
