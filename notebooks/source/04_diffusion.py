# %% [markdown]
# # Diffusion
#
# **How does noise become a video, and what decides which one?**
#
# Below, one frame is made in 25 steps from pure noise.

# %%
import math
import random

import torch
from einops import rearrange, reduce
from torch import nn

import minicogvx
from minicogvx.course import (
    check, compare_clips, explore_noise, hint, new_figure, notebook_device, outcome, predict, predictions, progress,
    show_figure, show_source, solution, solved,
)
from minicogvx.data.world import captions
from minicogvx.data.world.drawing import render, render_batch
from minicogvx.data.world.scenes import SHAPES, Scene, ShapeObject, sample_scenes
from minicogvx.diffusion import (
    DDIMSampler, DPMSampler, NoiseSchedule, diffusion_loss, draw_noise, rank_interval, rank_timesteps,
    uniform_timesteps,
)
from minicogvx.diffusion.schedule import rescale_to_zero_terminal_snr, scaled_linear_alphas_cumprod, shift_snr
from minicogvx.diffusion.sampling import guided_output
from minicogvx.presets import ScheduleConfig, preset
from minicogvx.transformer.model import ExpertTransformer, flops

torch.set_grad_enabled(False)  # section 4 switches gradients on again, to train a small network
device = notebook_device()  # of the toy's networks: the processor, unless MINICOGVX_DEVICE names another device
pipe = minicogvx.load("toy", device, torch.float32)
text = pipe.text.encode(["", "a yellow star moves right"])  # without the caption, and with it

# %% tags=["nbval-ignore-output"]
def network(x, t):
    """The toy's answer v for noisy latents x, 1 c t h w, at timestep t, with guidance 3 (notebook 05 explains it)."""
    return guided_output(pipe.transformer, x.to(device), t, text, 3.0).cpu()


sampler = DDIMSampler(pipe.schedule, 25)
start = draw_noise((1, 16, 5, 8, 8), torch.Generator().manual_seed(0))
made, noisy, guesses = start, [], []
for i, t in enumerate(sampler.timesteps):
    noisy.append(made)
    made, guess = sampler.step(network(made, int(t)), i, made)
    guesses.append(guess)

left, right = (pipe.decode(torch.cat(latents)[:, :, :1])[:, 0] for latents in (noisy, guesses))  # 25 h w 3
compare_clips({"the noisy frame": left, "the network's guess": right},
              "Frame 0 of a clip, step by step. The noisy frame turns from noise into a star. The guess is a "
              "yellow blur at first, and a star with sharp edges later.", 4, num_frames=3, counted="step")

# %% [markdown]
# Each step has two pictures: the noisy frame, and the network's guess of the clean frame behind it. The network makes
# only the guess. The rest is a few lines of arithmetic, the subject of this notebook.
#
# You will write the sampling loop, a schedule that ends in noise, the loss that trains a denoiser, and a step that
# is DDIM, DDPM or anything between. Afterwards you can explain why a trace of signal in the last timestep does harm,
# why the network predicts $v$, what a better sampler improves, and what flow matching changes. It takes about
# 125 minutes and covers sections 2.2 and 3.3 of the [paper](https://arxiv.org/abs/2408.06072).
# The box of [notebook 01](01_video_tensors.ipynb) explains the letters in shapes; elsewhere, $t$ is the timestep.
#
# ## 1. How much noise?
#
# Take a clean clip $x_0$ and corrupt it in a thousand small steps. At timestep $t$, a share $\beta_t$ of the power
# (mean square) is replaced by fresh noise $\epsilon$:
#
# $$x \leftarrow \sqrt{1-\beta_t}\;x + \sqrt{\beta_t}\;\epsilon.$$
#
# Why the roots? The powers of independent signals add, and $(1-\beta_t) + \beta_t = 1$: a power of 1 stays 1. In the
# **scaled linear** schedule, $\sqrt{\beta_t}$ rises along a straight line. We track how much of $x_0$ is
# left, and how much noise has come in.

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
print(f"power after {T} steps: signal {signal ** 2:.4f} + noise {noise_power:.4f} = {signal ** 2 + noise_power:.4f}")
print(f"factor of the signal then: {signal:.3f}")
print("the package's table differs by less than one in a million")
assert torch.allclose(torch.tensor(naive).double(), table, atol=1e-6)
show_source(scaled_linear_alphas_cumprod)

# %% [markdown]
# The share of signal power is called $\bar\alpha_t$ (`alphas_cumprod`). With it we can jump to any timestep at
# once, as in notebook 00:
#
# $$x_t = a_t\,x_0 + s_t\,\epsilon, \qquad a_t = \sqrt{\bar\alpha_t}, \quad s_t = \sqrt{1-\bar\alpha_t}.$$
#
# A clip's latents, noised and decoded. Move the slider: when do you lose the motion, and when the ring?

# %% tags=["nbval-ignore-output"]
ring = Scene((ShapeObject("ring", "orange", "moves left", x=0.7, y=0.5, radius=0.22, speed=0.4),), "navy")
film = render(ring, 17, 64, 64)  # t h w 3
scale = pipe.vae.config.scaling_factor
clean = pipe.vae.encode(rearrange(film * 2 - 1, "t h w c -> 1 c t h w").to(device)).mode() * scale  # b c t h w
explore_noise(clean, pipe.schedule, pipe.decode, "An orange ring moves left on navy. As noise grows, its edges vanish "
                                                 "first, then the ring; at the end only blotches are left.")

# %% [markdown]
# Details drown first, large shapes last. So small timesteps ask about edges, large ones about what the video shows at
# all.
#
# **A larger picture needs more noise.** Below, a star is noised at the same timestep at two sizes, 32 x 32 and
# 128 x 128 pixels. Then the large one is shrunk by averaging.

# %%
still = Scene((ShapeObject("star", "yellow", "stays still", x=0.5, y=0.5, radius=0.3),), "navy")


def spoiled(size, bar):
    """One noisy frame of size x size pixels, 1 h w 3 in -1..1."""
    picture = render(still, 1, size, size) * 2 - 1
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(size))
    return float(bar) ** 0.5 * picture + float(1 - bar) ** 0.5 * noise


def to_32(picture):
    return reduce(picture, "t (h p) (w q) c -> t h w c", "mean", h=32, w=32)


bar = table[700]
left_over = to_32(spoiled(128, bar)) - to_32(float(bar) ** 0.5 * (render(still, 1, 128, 128) * 2 - 1))
print(f"averaging over 16 pixels leaves {left_over.std() / (1 - bar) ** 0.5:.2f} of the noise")
shifted = shift_snr(table, 16.0)
ratio = table / (1 - table) / (shifted / (1 - shifted))  # of the signal-to-noise ratios (SNR)
print(f"a shift by 16 divides the SNR of every timestep by {ratio.mean():.2f}")
assert 0.24 < left_over.std() / (1 - bar) ** 0.5 < 0.26 and torch.allclose(ratio, torch.full_like(ratio, 16))

rows = {"32 x 32": spoiled(32, bar), "128 x 128, averaged": to_32(spoiled(128, bar)),
        "128 x 128, averaged, shift 16": to_32(spoiled(128, shifted[700]))}
figure, (axes,) = new_figure(1, 3, width=7, height=2.6)
for axis, (name, picture) in zip(axes, rows.items()):
    axis.imshow((0.5 + 0.3 * picture[0] / picture.std()).clamp(0, 1))  # all at the same contrast
    axis.set(title=name)
    axis.set_axis_off()
show_figure(figure, "Three noisy pictures of a star at timestep 700. At 32 x 32 it is almost lost. Averaged from 128 x "
                    "128 it is plain to see. With the shift, that one is as lost as the first.")

# %% [markdown]
# A network can average, too, so to it the large picture is *less* noisy. The **SNR shift** divides the
# signal-to-noise ratio of every timestep by a fixed number. CogVideoX-2B shifts by 3; the 5B does not shift.
#
# ## 2. The last timestep
#
# After a thousand steps the factor of the signal was 0.068. That looks negligible. Is it?
#
# Ask a *perfect* network, so that nobody can blame training. For a world of finitely many clips it can be written
# down: each clip is more or less likely to be behind $x_t$, and the best guess is the mean of all clips, weighted by
# these likelihoods.
#
# Our world: six shapes, each at nine levels of brightness, from night to snow.

# %%
movers = [ShapeObject(shape, "white", "moves right", x=0.3, y=0.5, radius=0.22, speed=0.4) for shape in SHAPES]
films = render_batch([Scene((mover,), "black") for mover in movers], 5, 32, 32)  # b t h w 3
patterns = 0.3 * (films - films.mean(dim=(1, 2, 3, 4), keepdim=True)).flatten(1).double()  # of mean 0 each
levels = torch.linspace(-0.7, 0.7, 9).double()
world = torch.cat([patterns + level for level in levels])  # clips x numbers


def perfect(x, bar, means, width=0.0):
    """The best guess of the clean data behind x, b n, if they are clouds of this width (0: points) at `means`, k n."""
    a, spread = bar ** 0.5, 1 - bar + bar * width ** 2
    likely = torch.softmax((a * x @ means.T - a ** 2 * means.square().sum(dim=1) / 2) / spread, dim=1)  # b k
    near = likely @ means
    return near + a * width ** 2 / spread * (x - a * near)


picks, last = torch.arange(0, len(world), 5), float(table[-1])
noise = torch.randn(len(picks), world.shape[1], generator=torch.Generator().manual_seed(0)).double()
guess = perfect(last ** 0.5 * world[picks] + (1 - last) ** 0.5 * noise, last, world)
error = (guess.mean(dim=1) - world[picks].mean(dim=1)).abs().mean()
print(f"{len(world)} clips of {world.shape[1]:,} numbers; brightness from {levels[0]:g} to {levels[-1]:g}")
print(f"at timestep 999 the perfect network's guess of the brightness is off by {error:.3f} on average")
assert error < 0.1

# %% [markdown]
# Timestep 999 looks like pure noise, and yet the network tells night from snow: in the mean of 15,360 numbers the
# noise is tiny, and 0.068 of the signal stands far above it. Training teaches: *the mean of what you see tells you the
# brightness*. But sampling starts from pure noise, whose mean is 0. What will this network make?
#
# The simplest sampler does three things in each step: guess the clean data; work out the noise that $x$ must then
# contain; mix the two again, with the $\bar\alpha$ of the next timestep.
#
# ### Exercise 4.1: walk (difficulty 2 of 3, 20 minutes)
#
# Write this loop, for any `guess`. After the last timestep, $\bar\alpha$ is 1. (`hint("4.1")` gives one more hint
# each time, `solution("4.1")` a solution.)

# %%
def walk(guess, x, timesteps, bars):
    """From noise to data. guess(x, t) is the clean data behind x at timestep t; bars holds alpha_bar, T numbers."""
    ### BEGIN SOLUTION
    for t, t_next in zip(timesteps, [*timesteps[1:], -1]):
        bar, bar_next = float(bars[t]), float(bars[t_next]) if t_next >= 0 else 1.0
        x0 = guess(x, t)
        noise = (x - bar ** 0.5 * x0) / (1 - bar) ** 0.5
        x = bar_next ** 0.5 * x0 + (1 - bar_next) ** 0.5 * noise
    return x
    ### END SOLUTION


walk = check("4.1", walk)

# %% [markdown]
# **Prediction 4.1.** The perfect network makes 65 videos from pure noise, in 50 steps: how bright are they?

# %%
predict("4.1", "dark, grey and bright, as in the world", "nearly all middle grey", "only night and snow")

# %% tags=["folded"]
noise = torch.randn(65, world.shape[1], generator=torch.Generator().manual_seed(1)).double()
results = {}
for name, bars in (("some signal at the end", table), ("zero at the end", rescale_to_zero_terminal_snr(table))):
    results[name] = walk(lambda x, t: perfect(x, float(bars[t]), world), noise, range(999, 0, -20), bars)

figure, ((top,), (middle,), (bottom,)) = new_figure(3, 1, width=7.5, height=4.4)
top.get_gridspec().set_height_ratios((2, 1, 1))
for place, (name, clips) in enumerate({"the world": world, **results}.items()):
    nearest = (clips.mean(dim=1)[:, None] - levels).abs().argmin(dim=1)
    top.bar(torch.arange(9) + 0.27 * (place - 1), torch.bincount(nearest, minlength=9) / len(clips), 0.27, label=name)
top.set(xlabel="level of brightness", ylabel="share of clips", xticks=range(9))
top.legend(fontsize=8)
for axis, (name, clips) in zip((middle, bottom), results.items()):
    chosen = clips[clips.mean(dim=1).argsort()][::8].reshape(-1, 5, 32, 32, 3)[:, 2]  # every eighth, dark to bright
    framed = torch.nn.functional.pad(chosen / 2 + 0.5, (0, 0, 2, 2, 2, 2), value=1.0).clamp(0, 1)
    axis.imshow(rearrange(framed, "b h w c -> h (b w) c"))
    axis.set_title(f"nine of the clips, {name}", pad=12)
    axis.set_axis_off()
spread = {name: clips.mean(dim=1).std().item() for name, clips in {"the world": world, **results}.items()}
print("spread of brightness:", ", ".join(f"{name} {value:.2f}" for name, value in spread.items()))
assert spread["some signal at the end"] < 0.15 < 0.25 < spread["zero at the end"] < spread["the world"]
outcome("4.1", "nearly all middle grey" if spread["some signal at the end"] < 0.4 * spread["the world"]
        else "dark, grey and bright, as in the world")
show_figure(figure, "Shares of nine levels of brightness: in the world all are equal; with signal left at the end, "
                    "nearly all clips are in the middle; with zero there, all levels occur. Below, nine clips of each.")

# %% [markdown]
# Hence grey videos. The network is perfect, but sampling asks it what training never asked: what is behind *pure*
# noise? It reads the mean, 0, and answers, true to its training, "middle grey". A caption that asks for night has to
# work against this.
#
# The repair is **zero terminal SNR**: the last timestep must hold no signal. Shift all $\sqrt{\bar\alpha_t}$ down
# until the last is 0, then stretch them until the first is what it was. Then timestep 999 shows no brightness that
# the network could learn to rely on.
#
# ### Exercise 4.2: zero_terminal_betas (difficulty 2 of 3, 15 minutes)
#
# Many programs store $\beta_t$ instead of $\bar\alpha_t$. Take the betas of any schedule and return those of its
# zero-terminal-SNR version.

# %%
def zero_terminal_betas(betas):
    """betas, T -> betas, T, of the schedule whose last timestep is pure noise."""
    ### BEGIN SOLUTION
    roots = (1 - betas).cumprod(dim=0).sqrt()
    roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    bars = roots ** 2
    return 1 - torch.cat([bars[:1], bars[1:] / bars[:-1]])
    ### END SOLUTION


zero_terminal_betas = check("4.2", zero_terminal_betas)

# %%
betas = torch.linspace(first_root, last_root, T).double() ** 2
zeroed = (1 - zero_terminal_betas(betas)).cumprod(dim=0)
apart = (zeroed - pipe.schedule.alphas_cumprod).abs().max()
whose = "your betas" if solved("4.2") else "the package's betas (yours are still to come)"
print(f"{whose} end with signal {zeroed[-1].sqrt():.4f}; the toy's own table ends with "
      f"{pipe.schedule.alphas_cumprod[-1].sqrt():.4f}, and the two differ by at most {apart:.6f}")
assert apart < 1e-5
show_source(rescale_to_zero_terminal_snr)

both = rescale_to_zero_terminal_snr(shift_snr(table, 3.0))
figure, (axes,) = new_figure(1, 2, width=8, height=2.5)
for axis, begin in zip(axes, (0, 900)):
    for bars, label, style in ((table, "scaled linear", ":"), (zeroed, "zero at the end", "-"),
                               (both, "shift 3, zero at the end", "--")):
        axis.plot(range(begin, T), bars[begin:].sqrt(), label=label, linestyle=style)
    axis.set(xlabel="timestep t", ylabel="factor of the signal, a")
axes[0].legend(fontsize=8, loc="lower left")
show_figure(figure, "The signal's factor falls from 1 with the timestep. Right, the last hundred timesteps: scaled "
                    "linear ends at 0.07, the two rescaled ones at 0. Shifted by 3, the signal falls sooner.")

# %% [markdown]
# ## 3. What the network predicts
#
# The network could predict $\epsilon$, and $x_0$ would follow: $(x_t - s_t\,\epsilon) / a_t$. At the last timestep
# that divides by zero, since $x_t$ *is* the noise there; the package refuses the combination. Predicting $x_0$ is no
# better: at the other end, copying $x_t$ is enough.
#
# Since $a_t^2 + s_t^2 = 1$, there is an angle $\varphi$ with $a_t = \cos\varphi$ and $s_t = \sin\varphi$. Noising
# *turns* $x_0$ into $\epsilon$, through a quarter of a circle. The velocity of $x_t$ as it turns is
#
# $$v = \frac{d x_t}{d \varphi} = a_t\,\epsilon - s_t\,x_0.$$

# %%
try:
    NoiseSchedule(ScheduleConfig(prediction_type="epsilon"))
except ValueError as error:
    print(error)

figure, ((axis,),) = new_figure(width=4.6, height=3.6)
quarter = torch.linspace(0, math.pi / 2, 50)
axis.plot(quarter.cos(), quarter.sin(), color="#999999")
axis.plot(0.2 * quarter[:17].cos(), 0.2 * quarter[:17].sin(), color="#999999", linewidth=1)
for degrees in (0, 30, 60, 90):
    a, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    axis.plot([0, a], [0, s], color="#dddddd", linewidth=1)
    axis.plot(a, s, "o", color="#0072B2")
    axis.annotate("", (a - 0.35 * s, s + 0.35 * a), (a, s), arrowprops={"arrowstyle": "->", "color": "#D55E00"})
for words, x, y in (("$x_0$, t = 0", 1.04, -0.02), (r"$\epsilon$, t = 999", 0.05, 1.08), ("$x_t$", 0.9, 0.53),
                    ("$v$", 0.62, 0.83), (r"$\varphi$", 0.22, 0.04)):
    axis.text(x, y, words)
axis.set(xlabel="clean video", ylabel="noise", aspect="equal", xlim=(-0.4, 1.4), ylim=(-0.06, 1.2),
         xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
axis.grid(False)
show_figure(figure, "A quarter circle from x0, on the right, to the noise, at the top. An arrow at each of four points "
                    "is v: at x0 it points towards the noise, at the noise it points away from x0.")

# %% [markdown]
# At timestep 0, $v$ is nearly the noise; at 999 it is $-x_0$. It always asks for what is hard to see. And since
# $(x_t, v)$ is $(x_0, \epsilon)$ turned by $\varphi$, turning back gives both, without any division.
#
# An error $\Delta$ in $v$ is an error $-s_t\,\Delta$ in $x_0$ and $a_t\,\Delta$ in the noise. The squares add up to
# $\Delta^2$: a plain squared error weighs video and noise fairly. (The published code puts a weight
# $1/(1-\bar\alpha_t)$ on the error of $x_0$, which comes to the same thing.)
#
# ### Exercise 4.3: denoising_loss (difficulty 2 of 3, 20 minutes)
#
# Write the loss of one training step. Each sample of the batch gets its own timestep and its own noise, drawn with
# the generator; the network is called once; its answer is compared with $v$. Many first attempts go wrong in one
# line, without an error.

# %%
def denoising_loss(network, x0, bars, generator):
    """network(x_t, t) is v; x0, b and any further axes; bars, T -> the mean squared error, one number."""
    ### BEGIN SOLUTION
    t = torch.randint(len(bars), (len(x0),), generator=generator)
    noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    bar = bars[t].reshape(-1, *[1] * (x0.ndim - 1))
    a, s = bar.sqrt(), (1 - bar).sqrt()
    return (network(a * x0 + s * noise, t) - (a * noise - s * x0)).square().mean()
    ### END SOLUTION


denoising_loss = check("4.3", denoising_loss)

# %% [markdown]
# ## 4. A network that learns
#
# Now train one, in a tiny world: single numbers from three clouds, for which the perfect network is known.
#
# **Prediction 4.2.** Where does the loss go during training?

# %%
predict("4.2", "on and on towards 0", "down, but it stops far above 0", "down, and up again at the end")

# %% tags=["folded", "nbval-ignore-output"]
places, width, alpha_bars = torch.tensor([[-1.2], [0.3], [1.0]]), 0.2, pipe.schedule.alphas_cumprod


def numbers(n, generator):
    """n numbers of the world, n 1."""
    return places[torch.randint(3, (n,), generator=generator)] + width * torch.randn(n, 1, generator=generator)


def trained(loss_of, inputs, steps=3000):
    """A network of four linear layers after training, and its losses; loss_of(net, clean numbers, generator)."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(inputs, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
                        nn.Linear(64, 1))
    optimizer, generator, course = torch.optim.Adam(net.parameters()), torch.Generator().manual_seed(0), []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / steps)
        with torch.enable_grad():
            loss = loss_of(net, numbers(1024, generator), generator)
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        course.append(loss.item())
    return net, course


def v_of(net, x, t):
    """A small network's v for numbers x, b 1, at timesteps t, b: it sees x, a and s."""
    bar = alpha_bars[t][:, None].float()
    return net(torch.cat([x, bar.sqrt(), (1 - bar).sqrt()], dim=1))


def perfect_v(x, t):
    bar = alpha_bars[t][:, None].float()
    return (bar.sqrt() * x - perfect(x, bar, places, width)) / (1 - bar).sqrt()


def v_loss(net, x0, generator):
    return denoising_loss(lambda x, t: v_of(net, x, t), x0, alpha_bars.float(), generator)


small, course = trained(v_loss, inputs=3)
tested = {}
always_0, learned = (lambda x, t: 0 * x), (lambda x, t: v_of(small, x, t))
for name, net in (("always 0", always_0), ("trained", learned), ("perfect", perfect_v)):
    others, draws = numbers(400_000, torch.Generator().manual_seed(1)), torch.Generator().manual_seed(2)
    tested[name] = denoising_loss(net, others, alpha_bars.float(), draws).item()
print("loss on 400,000 other numbers:", "; ".join(f"{value:.3f} ({name})" for name, value in tested.items()))
assert tested["perfect"] - 0.002 < tested["trained"] < tested["perfect"] + 0.03 < tested["always 0"]
outcome("4.2", "down, but it stops far above 0" if tested["perfect"] > 0.05 else "on and on towards 0")

# %% tags=["folded", "nbval-ignore-output"]
figure, (axes,) = new_figure(1, 3, width=9.5, height=2.8)
axes[0].plot(range(15, 3000, 30), torch.tensor(course).reshape(100, 30).mean(dim=1), label="in training")
for name, style in (("always 0", ":"), ("perfect", "--")):
    axes[0].axhline(tested[name], color="black", linestyle=style, linewidth=1.2, label=name)
axes[0].set(xlabel="step", ylabel="loss of v", ylim=(0, 1))
axes[0].legend(fontsize=8)
line = torch.linspace(-2, 2, 200)[:, None]
for t, colour in ((300, "#0072B2"), (600, "#D55E00"), (850, "#009E73")):
    bar, ts = alpha_bars[t], torch.full((200,), t)
    axes[1].plot(line, bar.sqrt() * line - (1 - bar).sqrt() * v_of(small, line, ts), color=colour, label=f"t = {t}")
    axes[1].plot(line, perfect(line, bar, places, width), "k--", linewidth=0.8)
axes[1].set(xlabel="x", ylabel="guess of the clean number")
axes[1].legend(fontsize=8)


def guess_of(net):
    """The guess that `walk` asks for, of a small network."""
    def guess(x, t):
        v = v_of(net, x.float().reshape(-1, 1), torch.full((x.numel(),), t)).reshape(x.shape)
        return alpha_bars[t].sqrt() * x - (1 - alpha_bars[t]).sqrt() * v
    return guess


generator = torch.Generator().manual_seed(3)
sample = walk(guess_of(small), torch.randn(4000, 1, generator=generator), range(999, 0, -20), alpha_bars)
axes[2].hist(numbers(4000, generator).flatten(), 60, range=(-2, 2), histtype="step", color="black", label="world")
axes[2].hist(sample.flatten(), 60, range=(-2, 2), color="#56B4E9", label="samples")
axes[2].set(xlabel="x", ylabel="of 4,000")
axes[2].legend(fontsize=8)
show_figure(figure, "Left, the loss falls to the perfect network's. Middle, the trained guesses lie on the perfect "
                    "ones (dashed). Right, samples and world: the same three clouds.")

# %% [markdown]
# All that can be learned lies between always saying 0 and the perfect network. The floor is no failure: in strong noise
# nobody can know which cloud a number came from, so the best guess is a mean, and most numbers are not the mean.
# People who fine-tune CogVideoX [wonder](https://github.com/zai-org/CogVideo/issues/766) why their loss
# hardly falls; such a floor may be part of the answer. Still the samples form clear clouds: each step asks again, with
# less noise, when fewer answers are possible.
#
# Here is the toy's loss at each timestep, on ten clips of the shapes world, and what the paper measured.

# %% tags=["nbval-ignore-output"]
scenes = sample_scenes(10, seed=4, two_objects=0.0)
words = [captions.caption(scene, random.Random(i)) for i, scene in enumerate(scenes)]
pixels = rearrange(render_batch(scenes, 17, 64, 64) * 2 - 1, "b t h w c -> b c t h w")
latents, features = pipe.vae.encode(pixels.to(device)).mode().cpu() * scale, pipe.text.encode(words)

grid, generator, losses = torch.arange(12, T, 25), torch.Generator().manual_seed(4), []  # the middles of 40 parts
for t in grid:
    noise, ts = draw_noise(tuple(latents.shape), generator), t.repeat(len(latents))
    noisy = pipe.schedule.add_noise(latents, noise, ts)
    answer = pipe.transformer(noisy.to(device), ts.to(device), features).cpu()
    losses.append(diffusion_loss(answer, latents, noise, ts, pipe.schedule))
losses = torch.stack(losses)  # timesteps x clips
curve, signal_share = losses.mean(dim=1), pipe.schedule.alphas_cumprod[grid]
print(f"loss at t = {int(grid[0])}: {curve[0]:.3f}, from 400 to 600: {curve[16:24].mean():.3f}, at {int(grid[-1])}: "
      f"{curve[-1]:.3f}")
assert curve[0] > curve[16:24].mean() < curve[-1]
show_source(diffusion_loss)

figure, (axes,) = new_figure(1, 2, width=8.5, height=2.7)
axes[0].plot(grid, curve, label="loss of v")
axes[0].plot(grid, (1 - signal_share) * curve, "--", label="its part from the video")
axes[0].plot(grid, signal_share * curve, ":", label="its part from the noise")
axes[0].set(xlabel="timestep t", ylabel="loss", title="the toy", ylim=(0, None))
axes[1].plot((100, 300, 500, 700, 900), (0.222, 0.130, 0.119, 0.133, 0.161), "o-", label="independent timesteps")
axes[1].plot((100, 300, 500, 700, 900), (0.216, 0.126, 0.116, 0.129, 0.157), "s--", label="explicit uniform sampling")
axes[1].set(xlabel="timestep t", title="the paper's ablation models (Table 9)", xlim=(0, T), ylim=(0, None))
for axis in axes:
    axis.legend(fontsize=8)
show_figure(figure, "Left, the toy's loss over the timestep, high at both ends: near 0 it is all error in the noise, "
                    "near 999 in the video. Right, the paper's five points for each of two models: a bowl, too.")

# %% [markdown]
# A bowl. On the left the network must see a trace of noise in an almost clean video. On the right it must predict a
# video from its caption alone. In the middle, half is given, and the rest can be inferred from it.
#
# ## 5. Three samplers
#
# The `walk` of section 2 has a name: **DDIM**. Its steps add no randomness; the starting noise decides everything. Must
# that be so? A step could replace some of the noise by fresh noise.
#
# How much? Values at the end of a step carry a prime. Noising ran the other way, from there to $x$, and added noise: of
# the noise power in $x$, only the share $k = \mathrm{SNR}/\mathrm{SNR}'$ was there before. **DDPM**, the classic
# sampler, keeps that share and renews the rest, $1-k$. DDIM renews nothing. Between the two lies a family: the share
# $\eta^2(1-k)$ is new.
#
# ### Exercise 4.4: renewing_step (difficulty 2 of 3, 15 minutes)
#
# Write the step for any $\eta$ from 0 (DDIM) to 1 (DDPM). The noise must end with the power $1 - \bar\alpha'$, even
# where `bar` is 0 or `bar_next` is 1.

# %%
def renewing_step(x0, noise, fresh, bar, bar_next, eta):
    """Guess, the noise behind x, and fresh noise, of one shape; alpha_bar before and after the step -> the next x."""
    ### BEGIN SOLUTION
    kept = bar * (1 - bar_next) / ((1 - bar) * bar_next)
    new = eta ** 2 * (1 - kept)
    mixed = (1 - new) ** 0.5 * noise + new ** 0.5 * fresh
    return bar_next ** 0.5 * x0 + (1 - bar_next) ** 0.5 * mixed
    ### END SOLUTION


renewing_step = check("4.4", renewing_step)

# %%
def renewing_walk(guess, x, timesteps, bars, eta, generator, seen=None):
    """As `walk`, with fresh noise; `seen` collects x before each step."""
    for t, t_next in zip(timesteps, [*timesteps[1:], -1]):
        if seen is not None:
            seen.append(x)
        bar, bar_next = float(bars[t]), float(bars[t_next]) if t_next >= 0 else 1.0
        x0 = guess(x, t)
        noise = (x - bar ** 0.5 * x0) / (1 - bar) ** 0.5
        x = renewing_step(x0, noise, draw_noise(tuple(x.shape), generator, x.dtype), bar, bar_next, eta)
    return x


def cloud_guess(x, t):
    """What the perfect network guesses behind numbers in the shape of latents, b 1 1 1 1."""
    return perfect(x.flatten(1), float(alpha_bars[t]), places.double(), width).reshape(x.shape)


points = torch.linspace(-1.6, 1.6, 12).double().reshape(-1, 1, 1, 1, 1)
figure, (axes,) = new_figure(1, 2, width=8.5, height=2.9)
for axis, (eta, name) in zip(axes, ((0.0, "eta 0: DDIM"), (1.0, "eta 1: DDPM"))):
    seen, ends = [], []
    for seed in (6, 7):
        ends.append(renewing_walk(cloud_guess, points, range(999, 0, -20), alpha_bars, eta,
                                  torch.Generator().manual_seed(seed), seen if seed == 6 else None).flatten())
    cloud = (ends[0][:, None] - places.T.double()).abs().argmin(dim=1)
    for way, at in zip(torch.stack([*seen, ends[0].reshape(points.shape)]).flatten(1).T, cloud):
        axis.plot([*range(999, 0, -20), 0], way, linewidth=1, color=("#0072B2", "#E69F00", "#009E73")[at])
    axis.set(title=name, xlabel="timestep t", ylabel="x", xlim=(T, 0), ylim=(-2.8, 2.8), yticks=places.flatten())
    other = (ends[1][:, None] - places.T.double()).abs().argmin(dim=1)
    print(f"{name}: with another seed, {int((other != cloud).sum())} of 12 end in another cloud")
show_figure(figure, "Twelve walks from noise (left) to three clouds (right), coloured by their last cloud. DDIM: "
                    "smooth lines that never cross. DDPM: ragged lines that cross and change sides until late.")

# %% [markdown]
# What decides, then, depends on the sampler. With DDIM each start has one fixed end. With DDPM the end stays undecided
# until late: the walk forgets its start, and with it the mistakes of early steps.
#
# **DPM-Solver++**, in the form recommended for the published 5B, renews like DDPM, and it also **leans**. Two guesses
# in a row show where the guess is heading. Continue that line to the middle of the step, measured in
# $\lambda = \tfrac12\log\mathrm{SNR}$: that is $D$, its new guess. With $h$, the length of this step in $\lambda$:
#
# $$D = x_0 + \frac{h}{2\,h_\text{before}}\,(x_0 - x_{0,\text{before}}).$$
#
# Only what this step adds can lean: of $a'x_0$, the share $e^{-h}$ is in $x$ already. With renewed noise it is less,
# $e^{-2h}$, the $k$ from above (`kept` in the code).

# %% tags=["nbval-ignore-output"]
def leaning_walk(guess, x, timesteps, bars, eta, generator, seen=None):
    """As `renewing_walk`, for eta 0 or 1, and each step leans on the guess before it."""
    before, h_before = None, None
    for t, t_next in zip(timesteps, [*timesteps[1:], -1]):
        if seen is not None:
            seen.append(x)
        bar, bar_next = float(bars[t]), float(bars[t_next]) if t_next >= 0 else 1.0
        x0 = guess(x, t)
        noise = (x - bar ** 0.5 * x0) / (1 - bar) ** 0.5
        x = renewing_step(x0, noise, draw_noise(tuple(x.shape), generator, x.dtype), bar, bar_next, eta)
        kept = bar * (1 - bar_next) / ((1 - bar) * bar_next)
        h = -0.5 * math.log(kept) if kept > 0 else math.inf
        if before is not None and t_next >= 0:
            added = 1 - kept ** ((1 + eta) / 2)
            x = x + bar_next ** 0.5 * added * h / (2 * h_before) * (x0 - before)
        before, h_before = x0, h
    return x


def toy_guess(x, t):
    return pipe.schedule.to_x0(network(x, t), x, t)


def seeded():
    return torch.Generator().manual_seed(5)


results = {"DDIM": renewing_walk(toy_guess, start, range(999, 0, -40), alpha_bars, 0.0, seeded()),
           "DDPM": renewing_walk(toy_guess, start, range(999, 0, -40), alpha_bars, 1.0, seeded()),
           "DPM-Solver++": leaning_walk(toy_guess, start, range(999, 0, -40), alpha_bars, 1.0, seeded())}
# Both published programs draw the noise twice and throw one away. So does the package, unless it is told not to.
solver, package, x0, generator = DPMSampler(pipe.schedule, 25, redraw_noise=False), start, None, seeded()
for i, t in enumerate(solver.timesteps):
    package, x0 = solver.step(network(package, int(t)), i, package, x0, generator)
for name, other in (("DDIM", made), ("DPM-Solver++", package)):
    print(f"{name}: at most {(results[name] - other).abs().max():.5f} away from the result of the package's sampler")
    assert torch.allclose(results[name], other, atol=1e-2)
show_source(DDIMSampler.step)
show_source(DPMSampler.step)
compare_clips({name: pipe.decode(x)[0] for name, x in results.items()},
              "Three clips of 'a yellow star moves right' from the same starting noise, by three samplers.", pipe.fps,
              num_frames=4)

# %% [markdown]
# In the package, `B` is $1-k$ and `D` is the guess that leans. Three steps do not lean: the first has no guess
# before it; the second follows a step out of pure noise, whose $h$ is infinite; the last just takes the guess.
#
# ## 6. Steps against quality
#
# Each step is one run of the network, so steps are what a user pays for. Leaning and renewing are two switches, which
# makes four samplers. Three networks walk to the clouds: the perfect one, a hasty one, trained for only 200
# steps, and one that errs early in the walk: above timestep 500 its guess is 0.5 too high.
#
# The error is the **transport distance**: how far 12,000 results must be moved, on average, to become the world (in
# one dimension: sort both and subtract). In the first panel we stop at timestep 199 and compare with DDIM's exact
# result, from a walk over all timesteps.

# %% tags=["nbval-ignore-output"]
def evenly_spaced(n):
    """A bell curve as n points, each as likely as any other."""
    return torch.special.ndtri((torch.arange(n).double() + 0.5) / n)


begin = evenly_spaced(12_000).reshape(-1, 1, 1, 1, 1)
truth = (places.double() + width * evenly_spaced(4000)).flatten().sort().values
hasty, _ = trained(v_loss, inputs=3, steps=200)
nets = {"perfect": cloud_guess, "hasty": guess_of(hasty),
        "errs early": lambda x, t: cloud_guess(x, t) + 0.5 * (t > 500)}
samplers = {"neither (DDIM)": (renewing_walk, 0.0), "leans": (leaning_walk, 0.0), "renews (DDPM)": (renewing_walk, 1.0),
            "both (DPM-Solver++)": (leaning_walk, 1.0)}


def distance(made):
    return (made.flatten().sort().values - truth).abs().mean().item()


def error_of(timesteps):
    """The transport distance of a DDIM walk of the perfect network over these timesteps."""
    return distance(walk(cloud_guess, begin, timesteps, alpha_bars))


few, steps, stop = begin[::20], (5, 10, 25, 50, 100), 199
errors_of, seen = {}, []
leaning_walk(cloud_guess, few, range(999, 0, -1), alpha_bars, 0.0, torch.Generator(), seen)
exact = seen[999 - stop]
figure, (axes,) = new_figure(1, 4, width=11, height=3)
for place, (name, (walker, eta)) in enumerate(samplers.items()):
    style = ("o-", "s--", "^:", "d-.")[place]
    if eta == 0:
        errors = []
        for n in steps:
            seen = []
            walker(cloud_guess, few, range(999, 0, -T // n), alpha_bars, eta, torch.Generator().manual_seed(7), seen)
            errors.append((seen[(999 - stop) * n // T] - exact).abs().mean().item())
        axes[0].loglog(steps, errors, style)
        print(f"{name:20s} at t = {stop}:", "  ".join(f"{n}: {value:.4f}" for n, value in zip(steps, errors)))
        assert (1.5 if walker is renewing_walk else 3) < errors[2] / errors[3]  # of order 1, and of order 2
    for axis, (net, guess) in zip(axes[1:], nets.items()):
        errors = [distance(walker(guess, begin, range(999, 0, -T // n), alpha_bars, eta,
                                  torch.Generator().manual_seed(7))) for n in steps]
        errors_of[net, name] = errors
        axis.loglog(steps, errors, style, label=name)
        axis.set(title=net, ylim=(0.005, 1))
        print(f"{name:20s} {net:10s}:", "  ".join(f"{n}: {value:.3f}" for n, value in zip(steps, errors)))
by_chance = distance(numbers(12_000, torch.Generator().manual_seed(8)).double())
print(f"12,000 numbers drawn from the world itself are {by_chance:.3f} away, by chance")
assert errors_of["hasty", "neither (DDIM)"][-1] > 1.5 * errors_of["perfect", "neither (DDIM)"][-1]
assert errors_of["errs early", "both (DPM-Solver++)"][-1] < 0.7 * errors_of["errs early", "neither (DDIM)"][-1]
axes[0].set(title=f"perfect, until t = {stop}", ylabel="error")
axes[1].set(ylabel="transport distance")
for axis in axes:
    axis.set(xlabel="steps")
    axis.set_xticks(steps, [str(n) for n in steps])
    axis.minorticks_off()
axes[1].legend(fontsize=7)
show_figure(figure, "Error over steps, both axes logarithmic. First panel: leaning falls twice as steeply as DDIM. "
                    "Then whole walks of the perfect, the hasty and the erring network, with four samplers each.")

# %% [markdown]
# In the first panel, twice the steps halve the error of DDIM: **first order**. Leaning divides it by about four:
# **second order**. Over the whole walk the gain is smaller, since all four share the last step: it jumps to the
# guess, and a guess is a mean, so the clouds come out too narrow. In a video, that would mean lost texture.
#
# In the third panel the error levels off at the network's own; beyond that, more steps buy little. In the fourth, DDIM
# ends far off with any number of steps: it carries the mistake to the end. Renewing throws part of the past away,
# and leaning makes up for the steps that this costs. Real networks err. (The authors do not say why they recommend
# DPM-Solver++; this may be one reason.)
#
# ### Exercise 4.5: find better timesteps (difficulty 2 of 3, 15 minutes)
#
# Must timesteps be evenly spaced? Ten even ones have the error `error_of(range(999, 0, -100))`. Find ten others,
# the first of them 999, that leave at most 75 % of it. Try lists with `error_of` in a cell of your own; return the
# best.

# %%
def better_timesteps():
    """Ten decreasing timesteps, the first of them 999."""
    ### BEGIN SOLUTION
    angles = alpha_bars.sqrt().acos()  # 0 for clean data, a right angle for noise
    return [int((angles - angles[-1] * (10 - i) / 10).abs().argmin()) for i in range(10)]
    ### END SOLUTION


better_timesteps = check("4.5", better_timesteps)
even, mine = error_of(range(999, 0, -100)), error_of(better_timesteps())
print(f"ten even timesteps err by {even:.3f}, twenty by {error_of(range(999, 0, -50)):.3f}, these ten by {mine:.3f}: "
      f"{better_timesteps()}")
assert mine < 0.75 * even

# %% [markdown]
# ## 7. Flow matching
#
# Video models after CogVideoX, such as [HunyuanVideo](https://arxiv.org/abs/2412.03603) and
# [Wan](https://arxiv.org/abs/2503.20314), are trained by **flow matching**. It takes a straight line instead of the
# quarter circle, and the network predicts the velocity along it:
#
# $$z_\sigma = (1-\sigma)\,x_0 + \sigma\,\epsilon, \qquad u = \frac{d z_\sigma}{d\sigma} = \epsilon - x_0.$$
#
# Sampling is the simplest method there is, Euler's: $z \leftarrow z + (\sigma' - \sigma)\,u$, from $\sigma = 1$ to
# 0. The point $x_t$ of the circle, divided by $a_t + s_t$, lies on the line, at $\sigma = s_t/(a_t + s_t)$.
#
# **Prediction 4.3.** The toy, which learned $v$ on the circle, is sampled on the line by Euler's method, from the
# noise of the first clip: what comes out?

# %%
predict("4.3", "noise, as it was trained for another path", "another clip of the same caption", "the same clip")

# %% tags=["folded", "nbval-ignore-output"]
circle = [(alpha_bars[t].sqrt().item(), (1 - alpha_bars[t]).sqrt().item()) for t in sampler.timesteps]  # a and s
sigmas = [s / (a + s) for a, s in circle] + [0.0]
z = start  # at the first step a is 0: both paths start in pure noise
for t, (a, s), sigma, sigma_next in zip(sampler.timesteps.tolist(), circle, sigmas, sigmas[1:]):
    x = (a + s) * z  # on the circle, where the toy can see it
    v = network(x, t)
    x0, noise = a * x - s * v, s * x + a * v  # turned back
    z = z + (sigma_next - sigma) * (noise - x0)
apart = (z - made).abs().max().item()
print(f"the latents are at most {apart:.5f} away from those of the first clip; their spread is {made.std():.2f}")
assert apart < 1e-2
outcome("4.3", "the same clip" if apart < 0.05 else "another clip of the same caption")

shift = 3.0  # of the 2B, on the SNR; on the line it is its root
line = (1 - table).sqrt() / (table.sqrt() + (1 - table).sqrt())
bent = shift_snr(table, shift)
bent = (1 - bent).sqrt() / (bent.sqrt() + (1 - bent).sqrt())
root = shift ** 0.5
print(f"shift {shift:g} of the SNR moves sigma = 0.5 to {root * 0.5 / (1 + (root - 1) * 0.5):.3f}")
assert torch.allclose(bent, root * line / (1 + (root - 1) * line))


def flow_loss(net, x0, generator):
    sigma, noise = torch.rand(len(x0), 1, generator=generator), torch.randn(x0.shape, generator=generator)
    return (net(torch.cat([(1 - sigma) * x0 + sigma * noise, sigma], dim=1)) - (noise - x0)).square().mean()


flow, _ = trained(flow_loss, inputs=2)
z = begin.reshape(-1, 1).float()
for i in range(50):
    z = z - flow(torch.cat([z, torch.full_like(z, 1 - i / 50)], dim=1)) / 50
print(f"a small network trained by flow matching, 50 steps: transport distance {distance(z.double()):.3f}")

# %% [markdown]
# The same clip: Euler on the line and DDIM on the circle are the same step, written in two ways. Both mix guess and
# noise again. So the loop, leaning and spacing carry over to flow matching. What differs:
#
# - **The target.** An error of $v$ becomes $a+s$ times as large in $u$, so the loss weighs the middle of the path
#   up to twice as much as its ends.
# - **The times.** $\sigma$ is drawn instead of $t$. There is no table to repair: $\sigma = 1$ is pure noise from
#   the start.
# - **The shift.** $\sigma \to m\sigma / (1 + (m-1)\sigma)$ divides the SNR by $m^2$: the shift of section 1.
#
# ## 8. Which timesteps to train on
#
# A training batch draws one timestep for each clip. Independent draws leave gaps and clusters, and losses depend on
# the timestep. So the batch loss jumps about even if the network stays the same. **Explicit uniform sampling** (paper
# 3.3): each of the $n$ ranks, the processes that train in parallel, draws from its own $n$-th of the timesteps.
#
# ### Exercise 4.6: spread_timesteps (difficulty 2 of 3, 15 minutes)
#
# You have no ranks, but a batch. Divide 0 .. T-1 into $b$ equal parts and draw one integer timestep from each, in
# random order. Each timestep must be equally likely, even where $b$ does not divide $T$.

# %%
def spread_timesteps(b, T, generator):
    """b timesteps in 0 .. T-1, one from each of b equal parts, shuffled."""
    ### BEGIN SOLUTION
    parts = torch.arange(b) + torch.rand(b, generator=generator)
    t = (parts * T / b).long().clamp(max=T - 1)
    return t[torch.randperm(b, generator=generator)]
    ### END SOLUTION


spread_timesteps = check("4.6", spread_timesteps)

# %% [markdown]
# **Prediction 4.4.** Ten ranks with one clip each draw from the losses of section 4: how large is the spread of the
# batch loss with explicit uniform sampling, compared with independent draws?

# %%
predict("4.4", "a tenth", "about half", "about three quarters", "the same")

# %% tags=["folded", "nbval-ignore-output"]
show_source(rank_timesteps)
generator, ranks, batches = torch.Generator().manual_seed(10), 10, 3000
drawn = {
    "independent": [uniform_timesteps(ranks, len(grid), generator) for _ in range(batches)],
    "explicit uniform": [torch.cat([rank_timesteps(1, len(grid), rank, ranks, generator) for rank in range(ranks)])
                         for _ in range(batches)],
    "spread over a batch": [spread_timesteps(ranks, len(grid), generator) for _ in range(batches)],
}
who = torch.randint(losses.shape[1], (batches, ranks), generator=generator)
batch_loss = {name: losses[torch.stack(parts), who].mean(dim=1) for name, parts in drawn.items()}
spread = {name: values.std().item() for name, values in batch_loss.items()}
for name, values in batch_loss.items():
    print(f"{name:20s} mean {values.mean():.3f}, spread {spread[name]:.4f}")
between = (losses.reshape(ranks, -1).mean(dim=1).var(unbiased=False) / losses.var(unbiased=False)).item()
ratio = spread["explicit uniform"] / spread["independent"]
print(f"{between:.0%} of the variance of a single loss lies between the ten parts, so the spread should fall to "
      f"sqrt({1 - between:.2f}) = {(1 - between) ** 0.5:.2f} of what it was; it falls to {ratio:.2f}")
assert abs(ratio - (1 - between) ** 0.5) < 0.05 and ratio < 0.97
outcome("4.4", "a tenth" if ratio < 0.3 else "about half" if ratio < 0.6 else
        "about three quarters" if ratio < 0.9 else "the same")

figure, ((axis,),) = new_figure(width=6.5, height=2.5)
for name in ("independent", "explicit uniform"):
    axis.hist(batch_loss[name], 60, range=(0, batch_loss["independent"].max().item()), histtype="step", linewidth=1.6,
              label=f"{name}, spread {spread[name]:.3f}")
axis.set(xlabel="mean loss of a batch", ylabel="of 3,000 batches")
axis.legend(fontsize=8)
show_figure(figure, "Two histograms of the batch loss at fixed weights, with about the same mean. That of explicit "
                    "uniform sampling is narrower and higher.")

# %% [markdown]
# The mean stays, since each timestep is equally likely (where $n$ divides $T$). The variance between the parts
# vanishes; what varies within a part, and with clip and noise, stays. This shows a steadier loss at fixed weights.
# That training also ends lower is the paper's finding (Table 9, above), not ours.
#
# ## 9. At full size
#
# The networks are built on the **meta device**: shapes without memory. The question this time: how loud would section
# 2's trace of signal be in a real video?

# %%
size, numbers_of_a_clip = (13, 60, 90), 16 * 13 * 60 * 90  # latents of 49 frames, 480 x 720
for name in ("2b", "5b"):
    published = preset(name)
    schedule = NoiseSchedule(published.schedule)
    with torch.device("meta"):
        giant = ExpertTransformer(published.transformer)
        answer = giant(torch.empty(2, 16, *size), torch.zeros(2), torch.empty(2, 226, 4096))
    work = 50 * flops(giant.config, size, 226, batch=2) / 1e15
    count = sum(p.numel() for p in giant.parameters())
    print(f"{name}: shift {schedule.config.snr_shift_scale:g}, alpha_bar at 500 {schedule.alpha_bar(500):.4f}, at 999 "
          f"{schedule.alpha_bar(999):g}; {count:,} parameters; 50 steps, {work:.0f} PFLOP")
print(f"one latent: {numbers_of_a_clip:,} numbers; DDIM keeps 2 such tensors, DPM-Solver++ 3")
leak = table[-1] ** 0.5 * numbers_of_a_clip ** 0.5
print(f"without the repair, a mean of 1 would stand {leak:.0f} times above the noise of the mean")
print("rank 5 of 32 draws from", rank_interval(T, 5, 32), "in the paper, and from", rank_interval(T, 5, 32, "v1.0"),
      "in the code released with these models")

# %% [markdown]
# The more numbers, the better their mean can be read: a video needs the repair more than a picture does. The sampler
# costs next to nothing, the network nearly everything: the paper reports 113 seconds for 50 steps of the 5B on an H800.
#
# ## What you can now explain
#
# Answer first, then open.
#
# <details><summary>1. Why can a perfect network be unable to make a dark video?</summary>
#
# If its last timestep held a trace of signal, it learned to read the brightness from the mean of what it sees. Pure
# noise has mean 0, so every video comes out at middle brightness.
# </details>
#
# <details><summary>2. What decides which video the noise becomes?</summary>
#
# With DDIM, caption and starting noise alone. With DDPM and DPM-Solver++, also the noise drawn on the way, until late.
# </details>
#
# <details><summary>3. A model was trained by flow matching. What of this notebook still holds?</summary>
#
# Everything but the path: the network guesses the clean video, a loop mixes the guess with less and less noise, and
# better steps lean and renew. The target differs, and how the times are drawn.
# </details>
#
# **What the paper found.** CogVideoX trains with v-prediction and zero terminal SNR. Its own addition is explicit
# uniform sampling: a smoother loss curve, and lower losses at all five timesteps measured. In the first released code,
# ranks may share intervals; later code switches uniform sampling off for eight ranks or fewer.
#
# **Where to read on.** `minicogvx/diffusion`. Zero terminal SNR: [Lin et al.](https://arxiv.org/abs/2305.08891); v:
# [Salimans and Ho](https://arxiv.org/abs/2202.00512); DDIM: [Song et al.](https://arxiv.org/abs/2010.02502);
# DPM-Solver++: [Lu et al.](https://arxiv.org/abs/2211.01095); flow matching: [Lipman et
# al.](https://arxiv.org/abs/2210.02747). Next:
# [text and guidance](05_text_and_guidance.ipynb).

# %% tags=["nbval-ignore-output"]
progress()
predictions("4")
