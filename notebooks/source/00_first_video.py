# %% [markdown]
# # Your first video
#
# **How does a program make a video out of five words?**
#
# Run the cell below (Shift+Enter). It loads a model and gives it a caption; ten seconds to a minute later there is a
# video. A star, `[*]`, stands beside the cell while it runs.

# %% tags=["nbval-ignore-output"]
import random

import torch
import torch.nn.functional as F
from einops import rearrange

import minicogvx
from minicogvx.course import (
    check, compare_clips, explore_grid, explore_sweep, hint, new_figure, notebook_device, outcome, predict, predictions,
    progress, show_clip, show_figure, show_source, solution, solved,
)
from minicogvx.course.machine_map import draw_machine
from minicogvx.data.world import captions, oracle
from minicogvx.data.world.drawing import render
from minicogvx.data.world.scenes import Scene, ShapeObject, sample_scenes
from minicogvx.diffusion.samplers import draw_noise
from minicogvx.evaluation.intervals import paired_difference, wilson
from minicogvx.presets import preset
from minicogvx.transformer.model import ExpertTransformer, flops
from minicogvx.transformer.patchify import patchify
from minicogvx.vae import CausalVAE

torch.set_grad_enabled(False)  # nothing is trained in this notebook
# The processor and float32, so that your numbers agree with those printed here. MINICOGVX_DEVICE chooses another.
device = notebook_device()
pipe = minicogvx.load("toy", device, torch.float32)

PROMPT = "a red circle moves right"
video = pipe(PROMPT)  # t h w c
show_clip(video, f"Generated from the caption: {PROMPT}.", pipe.fps)

# %% [markdown]
# Nobody drew this circle. A network with a few million parameters turned noise into it, and the words decided what the
# noise became. The network is small, but it is built from the same classes as CogVideoX, a published model whose
# transformer has up to 5.6 billion parameters ([the paper](https://arxiv.org/abs/2408.06072), section 2). It was
# trained on two processor cores, on clips of moving shapes that a program drew.
#
# In about 75 minutes, including six exercises, you follow this one caption through the whole machine. Afterwards you
# can say what each part does, and what goes in and comes out. Every part has a notebook of its own later; this one is
# the map.

# %%
show_figure(draw_machine(pipe), "A map. The caption becomes tokens, then text features; the seed becomes noise. The "
            "transformer turns both into latents, step by step, and the VAE decoder turns the latents into a video.")

# %% [markdown]
# ## 1. A video is a block of numbers
#
# How many numbers did the model have to produce for these two seconds? Guess first.
#
# Can a program see the circle in them? A pixel is red if its first number is much larger than the other two. The mean
# column of the red pixels is where the circle is. This reads one colour and one direction. The package has an
# **oracle** that reads everything: colour, shape, motion, background and number of objects, from the pixels alone.

# %% tags=["nbval-ignore-output"]
def red_column(frame):
    """The mean column of the red pixels of one frame, h w 3."""
    columns = []
    for row in range(frame.shape[0]):
        for column in range(frame.shape[1]):
            red, green, blue = frame[row, column].tolist()
            if red > 0.5 and green < 0.4 and blue < 0.4:
                columns.append(column)
    return sum(columns) / len(columns) if columns else float("nan")


frames, height, width, channels = video.shape
print(f"{frames} frames of {height} x {width} pixels, {channels} colours each: {video.numel():,} numbers, "
      f"from {video.min():.2f} to {video.max():.2f}")

path = [red_column(frame) for frame in video]
print(f"the circle moves from column {path[0]:.1f} to column {path[-1]:.1f} of {width}")
assert path[-1] > path[0] + 8

seen = oracle.read(video)
for thing in seen.objects:
    print(f"the oracle sees a {thing.colour} {thing.shape} that {thing.motion}")
verdict = oracle.matches(seen, captions.parse_caption(PROMPT))
print("right, or left open by the caption:",
      ", ".join(name for name, right in verdict.items() if right and name != "all"))

figure, ((axis,),) = new_figure(width=5, height=2.2)
axis.plot(range(frames), path, marker="o")
axis.set(xlabel="frame", ylabel="column (pixels)", ylim=(0, width))
show_figure(figure, "The circle's column in each of the 17 frames: it rises steadily, so the circle moves right.")

# %% [markdown]
# This is why the small model lives in a world of shapes. "Does it obey its caption?" is usually a matter of
# taste. Here it is a number, and every experiment in this course can be scored.
#
# Your turn. An exercise is a function with a gap: write your code in place of the line with `raise`, and run the cell.
# `check` says whether it is right, and if not, what is wrong. In a new cell (press Esc, then B), `hint("0.1")` gives
# one more hint each time, and `solution("0.1")` shows a solution. You may also read on: until your function is right,
# the package's version stands in for it.
#
# ### Exercise 0.1: to_screen (difficulty 1 of 3, 10 minutes)
#
# Networks lay out a video differently: `b c t h w`, several videos in a batch, with colours before frames. (Notebook 01
# has [a box](01_video_tensors.ipynb) with all these letters.) Black is -1, white is 1, and nothing stops a network from
# answering 1.02. A screen wants the colours last, and integers from 0 to 255. Convert one into the other: round to the
# nearest integer, and clip whatever is below black or above white.

# %%
def to_screen(video):
    """b c t h w, about -1..1 -> b t h w c, integers 0..255 (torch.uint8)."""
    ### BEGIN SOLUTION
    frames = rearrange(video, "b c t h w -> b t h w c")
    return ((frames / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    ### END SOLUTION


to_screen = check("0.1", to_screen)

# %% [markdown]
# ## 2. Words become numbers
#
# A network can only add and multiply. What can it do with the word *red*? The simplest way is to number all words. The
# caption becomes a list of numbers, its **tokens**. Three numbers are reserved: 0 pads the list, 1 means "the caption
# ends here", 2 stands for any unknown word.
#
# ### Exercise 0.2: number_words (difficulty 1 of 3, 10 minutes)
#
# Capital letters do not matter, and punctuation counts as a space. An unknown word becomes 2. After the words comes
# the 1, then zeros up to `length` numbers. A caption that does not fit raises a `ValueError`.

# %%
def number_words(caption, number_of, length):
    """A caption -> a list of `length` token numbers; number_of maps each known word to its number."""
    ### BEGIN SOLUTION
    plain = "".join(letter if letter.isalnum() else " " for letter in caption.lower())
    numbers = [number_of.get(word, 2) for word in plain.split()] + [1]
    if len(numbers) > length:
        raise ValueError(f"the caption has {len(numbers)} tokens; at most {length} fit")
    return numbers + [0] * (length - len(numbers))
    ### END SOLUTION


number_words = check("0.2", number_words)

words = captions.vocabulary()
number_of = {word: 3 + i for i, word in enumerate(words)}
for caption in (PROMPT, "A red dragon, moves RIGHT!"):
    numbers = number_words(caption, number_of, pipe.text.max_length)
    assert numbers == pipe.text.tokens([caption])[0].tolist()
    print(f"{caption}: {numbers[:8]} ... ({len(numbers)} tokens)")
print("your numbers are the package's" if solved("0.2") else "(until you have solved it, these are the package's own)")
print(f"the toy knows {len(words)} words, but not these:", pipe.text.unknown_words("a red dragon moves right"))

# %% [markdown]
# (The published models split words into pieces, of which they know 32,128.)
#
# The number of a word means nothing: *red* is not "larger" than *blue*. So each token picks a row of a table, its
# **embedding**. Then a small text transformer, T5, lets the words look at each other.
#
# We change *red* to *blue*. With the table alone, one of the caption's 32 rows changes. How many change after T5, and
# which change most?

# %% tags=["folded"]
pair = [PROMPT, PROMPT.replace("red", "blue")]
rows = pipe.text.encoder.shared(pipe.text.tokens(pair).to(device)).cpu()  # b n d_text: the table alone
features = pipe.text.encode(pair).cpu()  # b n d_text: after T5

figure, ((axis,),) = new_figure(width=8, height=2.4)
for marker, name, (before, after) in (("D", "table alone", rows), ("o", "after T5", features)):
    change = (before - after).norm(dim=-1) / before.norm(dim=-1)  # n: relative to the row's own size
    axis.plot(change.where(change > 1e-3, torch.nan), marker, label=name)  # a logarithmic axis has no place for 0
    print(f"{name:12s}{int((change > 1e-3).sum()):2d} of 32 rows change; red/blue by {100 * change[1]:.0f} %, "
          f"circle by {100 * change[2]:.0f} %, padding by {100 * change[6:].mean():.0f} %")
assert (change > 1e-3).all()
labels = PROMPT.replace("red", "red/blue").split() + ["end"]
axis.set_xticks(range(6), labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
axis.text(18.5, 0.05, "26 rows of padding", ha="center")
axis.set(yscale="log", ylim=(0.01, 3), ylabel="relative change")
axis.legend(loc="upper right")
show_figure(figure, "Relative change of the 32 rows when red becomes blue, on a logarithmic scale. With the table "
            "alone, one row changes; after T5 all of them do, the words around the changed one more than the padding.")

# %% [markdown]
# Every row reflects the change. *Circle* no longer means "some circle" but "the circle that is red". Even the padding
# changes: like the published models, this one uses no attention mask, so padding takes part.
#
# ## 3. A smaller place to work in
#
# The transformer compares everything with everything. 200,000 numbers are too many for that, and at the published size
# there are 50 million. So the video is made in a smaller space, and enlarged at the end. How far can we shrink a clip
# and still recover it? A program draws one, so that we know every pixel.
#
# The plain way to shrink is to average: over groups of frames (the first frame stays alone) and over squares of pixels.
# On the way back every mean fills its block. The quality of the copy is measured in **decibels**: 10 more means a tenth
# of the squared error.
#
# ### Exercise 0.3: cheapest_average (difficulty 2 of 3, 10 minutes)
#
# Find out which groups and squares keep the *fewest* numbers and still reach a given quality. Groups have 1, 2, 4, 8 or
# 16 frames, squares a side of 1, 2, 4, 8 or 16 pixels. Three functions are given.

# %%
star = ShapeObject("star", "yellow", "moves right", x=0.28, y=0.5, radius=0.2, speed=0.44)
clip = render(Scene((star,), "navy"), frames, height, width)  # t h w 3


def averaged(clip, together, side):
    """Means over groups of `together` frames, the first frame alone, and over squares of side x side pixels."""
    groups = [clip[:1], *clip[1:].split(together)]
    small = [rearrange(group.mean(dim=0), "(h p) (w q) c -> h w (p q) c", p=side, q=side).mean(dim=2)
             for group in groups]
    return torch.stack(small)


def enlarged(small, together, side, length):
    """The way back: every mean fills its block again; `length` is the clip's number of frames."""
    big = small.repeat_interleave(side, dim=1).repeat_interleave(side, dim=2)
    return torch.cat([big[:1], big[1:].repeat_interleave(together, dim=0)])[:length]


def decibels(clip, copy):
    """Peak signal-to-noise ratio: 10 more means a tenth of the squared error. An exact copy has infinitely many."""
    return (10 * torch.log10(1 / (clip - copy).square().mean())).item()


def cheapest_average(clip, target):
    """The pair (together, side) that keeps the fewest numbers of `clip` and still reaches `target` decibels."""
    ### BEGIN SOLUTION
    reached = []
    for together in (1, 2, 4, 8, 16):
        for side in (1, 2, 4, 8, 16):
            small = averaged(clip, together, side)
            if decibels(clip, enlarged(small, together, side, len(clip))) >= target:
                reached.append((small.numel(), together, side))
    return min(reached)[1:]
    ### END SOLUTION


cheapest_average = check("0.3", cheapest_average)

# %% [markdown]
# Now the learned way: a **variational autoencoder**, VAE for short. It turns this clip into 5,120 numbers, its
# **latents**, and the copy that comes back has more than 25 decibels.
#
# **Prediction 0.1.** How many numbers must plain averages keep to reach 25 decibels?

# %%
predict("0.1", "about 5,000, as the VAE does", "about 15,000", "30,000 or more")

# %% tags=["folded", "nbval-ignore-output"]
pixels = rearrange(clip * 2 - 1, "t h w c -> 1 c t h w").to(device)
latents = pipe.vae.encode(pixels).mode()  # b c t h w
decoded = pipe.vae.decode(latents).cpu()  # b c t h w
back = to_screen(decoded)[0] / 255  # t h w 3
print(f"video {tuple(pixels.shape)} -> latents {tuple(latents.shape)}: {pixels.numel() / latents.numel():.0f} times "
      f"fewer numbers; the decoder's answers go from {decoded.min():.2f} to {decoded.max():.2f}")

together, side = cheapest_average(clip, 25)
copies = {"VAE": (latents.numel(), back)}
for name, (t, p) in {"averages": (2, 4), "averages that reach 25 dB": (together, side)}.items():
    small = averaged(clip, t, p)
    copies[f"{name}: groups of {t}, {p} x {p} pixels"] = (small.numel(), enlarged(small, t, p, len(clip)))
for name, (count, copy) in copies.items():
    print(f"{count:7,} numbers, {decibels(clip, copy):.1f} dB: {name}")
needed = averaged(clip, together, side).numel()
outcome("0.1", "about 5,000, as the VAE does" if needed < 9_000 else
        "about 15,000" if needed < 30_000 else "30,000 or more")
assert decibels(clip, back) > max(25, decibels(clip, copies["averages: groups of 2, 4 x 4 pixels"][1]) + 3)

compare_clips({"the clip": clip, "averages, 6,912 numbers": copies["averages: groups of 2, 4 x 4 pixels"][1],
               "VAE, 5,120 numbers": back},
              "Three times a yellow star that moves right: as drawn; from averages, a jerky smear of squares; through "
              "the VAE, with its points.", pipe.fps, num_frames=4)

# %% [markdown]
# Averages that reach 25 decibels keep ten times as many numbers. An average treats all places alike; the VAE has
# learned which numbers a video of this world needs. (The cheapest averages keep every frame, because a mean over frames
# smears whatever moves. The VAE turns four frames into one latent frame without smearing.)
#
# Height and width shrink by a factor of 8, time by 4: 64 becomes 8, but 17 becomes 5. The first frame stays alone, and
# the other 16 go in fours. The VAE is **causal**: its convolutions look at their own frame and at earlier ones. So a
# single picture is a video of one frame. (Is the whole network causal, then? Notebook 02 finds out.)
#
# What do latents look like?

# %%
typical = latents.flatten(3).median(dim=3).values[..., None, None]  # of each channel and frame: the background's
apart = (latents - typical)[0].cpu()  # c t h w
strongest = int(apart.square().sum(dim=(1, 2, 3)).argmax())
shown = {"the clip": clip[::4], f"channel {strongest}": apart[strongest], "all channels": apart.norm(dim=0)}
figure, axes = new_figure(3, 5, width=6, height=3.5)
for line, (name, pictures) in zip(axes, shown.items()):
    line[0].set_ylabel(name)
    for place, axis in enumerate(line):
        axis.imshow(pictures[place], cmap="gray", vmin=float(pictures.min()), vmax=float(pictures.max()))
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
        axis.spines[:].set_visible(False)
        axis.set_title({"the clip": f"frame {4 * place}", "all channels": f"latent frame {place}"}.get(name, ""),
                       fontsize=8)
show_figure(figure, "Above, five frames of the star. Below, the five latent frames, 8 x 8 values each: one channel, "
            "and how far all 16 together are from the background. A bright patch moves right with the star.")

# %% [markdown]
# You can still follow the star. The transformer never sees a pixel: it works in here.
#
# ## 4. From noise, step by step
#
# Where does a *new* video come from? From noise. The seed decides which noise, and that is all it decides.
#
# Training taught the transformer to take noise *out*. A clean latent $x_0$ and noise $\epsilon$ were mixed,
#
# $$x_t = a_t\,x_0 + s_t\,\epsilon, \qquad a_t^2 + s_t^2 = 1,$$
#
# and the network had to undo the mixing. The **timestep** $t$ runs from 0, almost clean, to 999, nothing but noise.
# (The `t` of `b c t h w` is another one: it counts frames.)

# %% tags=["nbval-ignore-output"]
shape = tuple(latents.shape)
noise = draw_noise(shape, torch.Generator().manual_seed(0), device=device)  # b c t h w
show_clip(pipe.decode(noise[:, :, :2])[0], "Two latent frames of pure noise, decoded: flickering blotches of colour, "
          "without any object.", pipe.fps, num_frames=2)

bars = pipe.schedule.alphas_cumprod  # the square of a, for each timestep: the field writes it with a bar
figure, ((axis,),) = new_figure(width=6, height=2.3)
axis.plot(bars.sqrt(), label="signal, a")
axis.plot((1 - bars).sqrt(), label="noise, s", linestyle="--")
axis.set(xlabel="timestep t", ylabel="factor")
axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
show_figure(figure, "The signal's factor falls from almost 1 at timestep 0 to exactly 0 at timestep 999; that of the "
            "noise rises from almost 0 to 1.")
print(f"signal left at timestep 998: {bars[998].sqrt():.4f}; at 999: {bars[999].sqrt():.4f}")
assert bars[999] == 0

# %% [markdown]
# To make a video we walk backwards from 999. At each step the network sees the noisy latent, the timestep and the text.
# It answers with $v = a_t\,\epsilon - s_t\,x_0$, from which both unknowns follow:
#
# $$x_0 = a_t\,x_t - s_t\,v, \qquad \epsilon = s_t\,x_t + a_t\,v.$$
#
# So each step gives a guess of the whole clean video. We do not trust it yet. We mix guess and noise again, with a
# little less noise, and ask again. (Many earlier programs began the walk lower, at 960 for 25 steps, and so told the
# network that pure noise held a trace of signal: [Lin et al.](https://arxiv.org/abs/2305.08891))
#
# The network answers twice: once for the empty caption and once for ours. The difference between the two answers is
# the direction in which our words pull. **Guidance** goes further in that direction than the network did.
#
# ### Exercise 0.4: guided (difficulty 1 of 3, 5 minutes)
#
# `scale` says how far to go, starting from the answer without the caption. 0 stays there, 1 arrives at the answer
# with the caption, and 3 goes three times as far along the same straight line.

# %%
def guided(v_without, v_with, scale):
    """Two answers of the network, of any one shape, and a number -> the answer that the sampler uses."""
    ### BEGIN SOLUTION
    return v_without + scale * (v_with - v_without)
    ### END SOLUTION


guided = check("0.4", guided)

# %% [markdown]
# Here is the whole walk, with your function inside. What appears first in the guesses: the colour, the place, the
# background, or the edges?

# %% tags=["folded", "nbval-ignore-output"]
def signal_and_noise(t):
    """a and s of timestep t; at -1, where the walk ends, no noise is left."""
    bar = float(bars[t]) if t >= 0 else 1.0
    return bar ** 0.5, (1 - bar) ** 0.5


def denoise(prompt, steps, scale, seed, before_step=None):
    """Latents of one video, and the guess of the clean latents at every step."""
    text = pipe.text.encode(["", prompt])  # without the caption, and with it
    noise = draw_noise(shape, torch.Generator().manual_seed(seed), device=device)
    x, stride, guesses = noise, 1000 // steps, []
    for t in range(999, -1, -stride):
        a, s = signal_and_noise(t)
        if before_step is not None:
            x = before_step(x, noise, a, s)  # section 8 puts a picture in here
        answers = pipe.transformer(torch.cat([x, x]), torch.tensor([t, t], device=device), text)
        v = guided(*answers.chunk(2), scale)
        x0, epsilon = a * x - s * v, s * x + a * v
        a, s = signal_and_noise(t - stride)  # where the step lands; the last one lands at -1, without noise
        x = a * x0 + s * epsilon
        guesses.append(x0)
    return x, guesses


mine, guesses = denoise(PROMPT, steps=25, scale=3.0, seed=0)
package = pipe.sample([PROMPT], num_inference_steps=25, guidance_scale=3.0, seed=0)
print(f"largest difference between these latents and the package's: {(mine - package).abs().max().item():.0e}")
assert torch.allclose(mine, package, atol=1e-2)
explore_sweep({step: pipe.decode(guesses[step - 1])[0] for step in (1, 3, 8, 25)}, "step",
              "The guess of the clean video: at step 1 a red blur, at step 25 a sharp red circle that moves right")

# %% [markdown]
# What the caption says comes first: something red that drifts to the right. Then what it leaves open is settled, such
# as place, size and background. Edges come last. Each step makes the next question easier.
#
# At step 1 the network sees nothing but noise.
#
# **Prediction 0.2.** With four seeds, and without guidance (scale 1), what do the four first guesses look like?

# %%
predict("0.2", "four different blurs", "nearly the same blur, four times", "four different sharp clips")

# %% tags=["folded", "nbval-ignore-output"]
walks = {steps: pipe.sample([PROMPT] * 4, num_inference_steps=steps, guidance_scale=1.0, seed=[0, 1, 2, 3])
         for steps in (1, 25)}  # b c t h w; a walk of one step ends at its first guess
apart = {steps: (found - found.mean(dim=0)).square().mean().sqrt().item() for steps, found in walks.items()}
print(f"the four first guesses differ by {apart[1]:.2f}, the four videos after 25 steps by {apart[25]:.2f}")
outcome("0.2", "nearly the same blur, four times" if apart[1] < apart[25] / 4 else "four different blurs")
compare_clips({f"seed {seed}, {label}": pipe.decode(walks[steps][seed:seed + 1])[0]
               for steps, label in ((1, "first guess"), (25, "after 25 steps")) for seed in (0, 1)},
              "Two of the four seeds. Their first guesses are nearly the same red blur; after 25 steps there are two "
              "different clips.", pipe.fps, num_frames=3)

# %% [markdown]
# At timestep 999 the noise holds no trace of a clip. So the best answer is the same for every seed: the *average* of
# all videos that fit the caption, a blur. (The guesses further up had guidance 3. They began *beyond* that average, so
# their colours may look strange.) From then on each step takes out some noise and decides something, and the seeds part
# ways.
#
# ## 5. Inside the transformer
#
# What does the network look at? It reads a sequence of **tokens**, as a language model does. The text has its
# 32 already. The latents are cut into patches, and each patch is one token. The plain way: go through frames, rows
# and columns, and cut out squares of 2 x 2.

# %%
cut = []
for place in range(5):
    for row in range(0, 8, 2):
        for column in range(0, 8, 2):
            square = latents[0, :, place, row:row + 2, column:column + 2]  # c 2 2
            cut.append(square.flatten())
cut = torch.stack(cut)  # n patch_values
print(f"5 x 4 x 4 = {len(cut)} video tokens of {cut.shape[1]} numbers; largest difference from the package's: "
      f"{(cut - patchify(latents, 1, 2)[0]).abs().max().item():.0f}")
show_source(patchify)  # one line instead of three loops

figure, (axes,) = new_figure(1, 5, width=8.5, height=2.0)
for place, axis in enumerate(axes):
    axis.imshow(clip[4 * place])  # the last frame of the group
    for line in (16, 32, 48):
        axis.axvline(line - 0.5, color="white", linewidth=0.8)
        axis.axhline(line - 0.5, color="white", linewidth=0.8)
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set_visible(False)
    axis.set_title(f"frames {4 * place - 3} to {4 * place}" if place else "frame 0", fontsize=8)
show_figure(figure, "The star's clip in its five groups of frames, each with a grid of 4 x 4 squares: 80 squares in "
            "all, one for each video token.")

# %% [markdown]
# One token covers 2 x 2 places of a latent frame: 16 x 16 pixels over 4 frames (or over 1, at the start). Text and
# video tokens stand in one sequence, 32 + 80 = 112 of them, and every token attends to every other. A patch of the last
# frame can consult the word *right*, and the patch where the circle began.
#
# One run of the network takes a few lines. The comments give the shapes.

# %% tags=["nbval-ignore-output"]
def run_once(net, latents, timestep, text):
    """v, b c t h w, from noisy latents, timesteps (b) and text features (b n d_text)."""
    layout = net.layout(net.grid(latents), text.shape[1], latents.device)  # which tokens are text, which are video
    time = F.silu(net.time_embedding(timestep))                            # b d_time
    x = layout.embed(net.patch_embed, latents, text)                       # b n d: 32 of text, then 80 of video
    for block in net.transformer_blocks:
        x = block(x, time, layout)                                         # b n d
    x = net.norm_out(net.norm_final(layout.video(x)), time, layout)        # b n_video d: the text is dropped
    return layout.unpatchify(net.proj_out(x))                              # b c t h w


text, timestep = pipe.text.encode([PROMPT]), torch.tensor([500], device=device)
difference = run_once(pipe.transformer, noise, timestep, text) - pipe.transformer(noise, timestep, text)
print(f"{len(pipe.transformer.transformer_blocks)} blocks; largest difference from the package's forward: "
      f"{difference.abs().max().item():.0e}")
assert difference.abs().max() < 1e-4

# %% [markdown]
# The timestep enters every block through its norms, differently for text and for video. That is the *expert* in the
# paper's "expert transformer".
#
# ### Exercise 0.5: sequence_length (difficulty 2 of 3, 10 minutes)
#
# How long is that sequence, for a video of any size? The VAE is the one of section 3; patches are 2 x 2 latents. In the
# published 1.5 models a patch also spans `patch_t=2` latent frames, and an odd number of latent frames gets one more.

# %%
def sequence_length(frames, height, width, text, patch_t=1):
    """Size of a video in pixels (4k + 1 frames, sides divisible by 16) and text tokens -> all tokens."""
    ### BEGIN SOLUTION
    latent_frames = (frames - 1) // 4 + 1
    groups = (latent_frames + patch_t - 1) // patch_t
    return text + groups * (height // 16) * (width // 16)
    ### END SOLUTION


sequence_length = check("0.5", sequence_length)
for count in (1, 17, 33):
    print(f"{count:2d} x 64 x 64 pixels: {sequence_length(count, 64, 64, text=32)} tokens")

# %% [markdown]
# ## 6. Change one word
#
# The noise stays the same, and one word changes. A single noise could be luck, so we take eight. No caption names one
# of the four backgrounds.
#
# **Prediction 0.3.** When *red* becomes *blue*, for how many of the eight noises does the background stay the same?

# %%
predict("0.3", "7 or 8", "4 to 6", "3 or fewer")

# %% tags=["folded", "nbval-ignore-output"]
prompts = [PROMPT, "a blue circle moves right", "a red star moves right", "a red circle moves left"]
samples = {prompt: pipe.sample([prompt] * 8, num_inference_steps=10, guidance_scale=3.0, seed=list(range(8)))
           for prompt in prompts}  # b c t h w
backgrounds = {prompt: [oracle.read(first).background for first in pipe.decode(found[:, :, :1])]  # frame 0 will do
               for prompt, found in samples.items()}
same = {}
for prompt in prompts[1:]:
    same[prompt] = sum(a == b for a, b in zip(backgrounds[PROMPT], backgrounds[prompt]))
    low, high = wilson(same[prompt] / 8, 8)
    print(f"{prompt:26s}keeps the background for {same[prompt]} of 8 noises "
          f"(95 % interval: {100 * low:.0f} to {100 * high:.0f} %)")
blue = same["a blue circle moves right"]
outcome("0.3", "7 or 8" if blue >= 7 else "4 to 6" if blue >= 4 else "3 or fewer")
compare_clips({prompt: pipe.decode(samples[prompt][:1])[0] for prompt in prompts},
              "Four clips from the same noise: a red circle moves right, a blue circle moves right, a red star moves "
              "right, a red circle moves left.", pipe.fps, num_frames=4)

# %% [markdown]
# Noise and caption settle *together* what the caption leaves open: a new word can change things that it does not
# mention. By chance alone the background would stay in one case out of four. (Eight noises are few; of such intervals
# 95 % contain the true share.)
#
# ## 7. Guidance, and the number of steps
#
# How much does guidance help when steps are few? We take 24 captions that name shape, colour, motion and background,
# each with its own noise, the same in all four runs. At scale 0 the caption plays no part, and the chance of being
# right is 1 in 6 x 8 x 13 x 4 = 2,496.

# %% tags=["nbval-ignore-output"]
scenes = sample_scenes(24, seed=3, two_objects=0.0)
asked = [captions.evaluation_caption(scene, random.Random(i)) for i, scene in enumerate(scenes)]
right = {}
for steps, scale in ((3, 0), (3, 1), (3, 3), (6, 3)):
    found = pipe.sample(asked, num_inference_steps=steps, guidance_scale=scale, seed=list(range(24)))
    clips = torch.cat([pipe.decode(some) for some in found.split(8)])  # b t h w 3
    right[steps, scale] = [oracle.matches(oracle.read(each), scene)["all"] for each, scene in zip(clips, scenes)]
    count = sum(right[steps, scale])
    low, high = wilson(count / 24, 24)
    print(f"{steps} steps, scale {scale}: {count:2d} of 24 right in everything (95 % interval: {100 * low:.0f} to "
          f"{100 * high:.0f} %)")
for new, old in (((3, 3), (3, 1)), ((6, 3), (3, 3))):
    gain, low, high = paired_difference(right[new], right[old])
    print(f"{new[0]} steps at scale {new[1]} against {old[0]} at {old[1]}: {100 * gain:+.0f} points (95 % interval: "
          f"{100 * low:+.0f} to {100 * high:+.0f})")
assert sum(right[3, 0]) <= 2 < 8 < sum(right[3, 3])

# %% [markdown]
# Which differences can be told from chance? Only those whose interval does not contain 0. Notebook 05 measures guidance
# on more captions, and what it costs.
#
# **Try it yourself.** Write a caption, and move the two sliders. The caption below names a combination that training
# never showed: there was no green triangle that moves up.

# %% tags=["nbval-ignore-output"]
MY_PROMPT = "a green triangle moves up on a navy background"
MY_SEED = 1


def made(steps, scale):
    """The clip of MY_PROMPT and MY_SEED."""
    return pipe(MY_PROMPT, seed=MY_SEED, num_inference_steps=steps, guidance_scale=scale)


explore_grid(made, f"The caption: {MY_PROMPT}. One row for each number of steps, one column for each guidance scale",
             pipe.fps, steps=[1, 2, 4, 8, 16], scale=[0, 0.5, 1, 3, 6])
compare_clips({"for comparison, fixed: 16 steps, scale 3": made(16, 3)},
              f"Generated in 16 steps with scale 3 from the caption: {MY_PROMPT}.", pipe.fps)

# %% [markdown]
# The row with 1 step shows the first guess. With scale 1 it is an average: the right background, and a soft blur. With
# a larger scale it lies *beyond* the average and looks like no video at all; more steps pull it back. With scale 0,
# more steps give some video of this world, whatever the noise suggests.
#
# ## 8. Start from a picture, or from a clip
#
# The same loop does more than text to video. For **image to video**, the first latent frame is known. It is put back
# before every step, with the right amount of noise, and the other four are made to fit it. (The published
# image-to-video models are trained for this and see the picture as extra channels. The toy is not, and in some clips
# the object jumps after frame 0. So we try eight seeds, and show the best and the worst.)
#
# ### Exercise 0.6: put_back (difficulty 1 of 3, 5 minutes)
#
# Before a step, `x` holds signal times $a$ plus noise times $s$. `known` is the clean latent of the picture,
# `noise` the noise of the run. Return `x` with the picture as its first frame, as noisy as all the others.

# %%
def put_back(x, known, noise, a, s):
    """x and noise, b c t h w; known, b c 1 h w; a and s, numbers -> x with the known first frame, b c t h w."""
    ### BEGIN SOLUTION
    first = a * known + s * noise[:, :, :1]
    return torch.cat([first, x[:, :, 1:]], dim=2)
    ### END SOLUTION


put_back = check("0.6", put_back)

# %% tags=["nbval-ignore-output"]
def place_of(frame):
    """Mean column and row, in pixels, of what differs from the corner's colour."""
    rows, columns = ((frame - frame[0, 0]).norm(dim=-1) > 0.3).nonzero(as_tuple=True)
    return torch.stack([columns.float().mean(), rows.float().mean()])


start = ShapeObject("star", "yellow", "moves up", x=0.35, y=0.7, radius=0.2)
picture = render(Scene((start,), "brown"), 1, height, width)  # 1 h w 3
known = pipe.vae.encode(rearrange(picture * 2 - 1, "t h w c -> 1 c t h w").to(device)).mode()
jumps, continued = {}, {}
for seed in range(8):
    x, _ = denoise("a yellow star moves up on a brown background", steps=10, scale=3.0, seed=seed,
                   before_step=lambda x, noise, a, s: put_back(x, known, noise, a, s))
    continued[seed] = put_back(x, known, x, a=1, s=0)  # at the end the picture is there without any noise
    second = pipe.decode(continued[seed][:, :, :2])[0, 1]  # frame 1
    jumps[seed] = (place_of(second) - place_of(picture[0])).norm().item()
print("jump of the star after frame 0, in pixels:", "  ".join(f"{jump:.0f}" for jump in jumps.values()))
best, worst = min(jumps, key=jumps.get), max(jumps, key=jumps.get)
compare_clips({f"seed {seed}, the {which} jump": to_screen(pipe.vae.decode(continued[seed]).cpu())[0] / 255
               for seed, which in ((best, "smallest"), (worst, "largest"))},
              "Two clips that begin with the same picture, a yellow star at the lower left: of eight "
              "continuations, the one whose star jumps least and the one whose star jumps farthest.", pipe.fps,
              num_frames=4)

# %% [markdown]
# In the package all this is `pipe(caption, image=picture)`.
#
# For **video to video**, a clip is noised, but not completely, and denoised from there with another caption. The
# *strength* says how much noise: 0 keeps the clip, 1 forgets it. A red circle moves right, and we ask for a blue one.
# At which strength does the colour change? Is there anything between red and blue?

# %% tags=["folded", "nbval-ignore-output"]
circle = ShapeObject("circle", "red", "moves right", x=0.28, y=0.5, radius=0.2, speed=0.44)
given = render(Scene((circle,), "black"), frames, height, width)  # t h w 3
wish = "a blue circle moves right on a black background"
changed = {0: given} | {strength: pipe(wish, video=given, strength=strength, num_inference_steps=20)
                        for strength in (0.5, 0.7, 0.8, 0.95)}
for strength, video in changed.items():
    frame = video[8]
    red, green, blue = frame[(frame - frame[0, 0]).norm(dim=-1) > 0.3].mean(dim=0).tolist()
    print(f"strength {strength:<5g}mean colour of the circle in frame 8: red {red:.2f}, green {green:.2f}, "
          f"blue {blue:.2f}")
explore_sweep(changed, "strength", "A clip of a red circle, made again with a caption that asks for a blue one: the "
              "more noise, the more the caption decides")

# %% [markdown]
# Little noise hides only the edges, and the clip wins. Much noise hides the colour, too, and the caption decides it. In
# between the result can be a mixture: a lot of red and a lot of blue make magenta, which neither the clip nor the
# caption asked for.
#
# ## 9. At full size
#
# Now the published models, with the same classes. Their weights fill many gigabytes, so we build them on the **meta
# device**: every tensor has its shape but no memory. What share of a block's work is attention? With $n$ tokens of
# width $d$, the block's matrices take $12\,n\,d^2$ multiplications, and attention among tokens takes $2\,n^2 d$.

# %%
PUBLISHED = {"2b": 1_693_783_872, "5b": 5_570_283_072, "1.5-5b": 5_570_676_352}  # parameters of the transformers
with torch.device("meta"):
    giants = {name: ExpertTransformer(preset(name).transformer) for name in PUBLISHED}
    published_vae = CausalVAE(preset("5b").vae)
    assert sum(p.numel() for p in published_vae.parameters()) == 215_583_907

sizes = {"toy": (17, 64, 64, 32), "2b": (49, 480, 720, 226), "5b": (49, 480, 720, 226), "1.5-5b": (81, 768, 1360, 226)}
for name, (t, h, w, text_tokens) in sizes.items():
    net = giants.get(name, pipe.transformer)
    count, config = sum(p.numel() for p in net.parameters()), net.config
    assert count == PUBLISHED.get(name, count)
    tokens = sequence_length(t, h, w, text_tokens, patch_t=config.patch[0])
    work = flops(config, (config.whole_patches((t - 1) // 4 + 1), h // 8, w // 8), text_tokens)
    print(f"{name:7s}{count:13,} parameters; {t} x {h} x {w} pixels are {tokens:6,} tokens; "
          f"{work / 1e12:8,.3f} TFLOP a run; attention: {100 * tokens / (tokens + 6 * config.width):2.0f} % of a block")

# %% [markdown]
# In the toy, attention is cheap, because the sequence is short. In the 5B it is half of a block's work, and with
# longer, larger videos it takes over. The paper reports 113 seconds for one video of the 5B, in 50 steps on an H800
# GPU.
#
# ## What you can now explain
#
# Answer first, then open.
#
# <details><summary>1. Why does the transformer never see a pixel?</summary>
#
# Every token attends to every other, so work grows faster than the number of tokens. The VAE hands over about 40 times
# fewer numbers, and the patches make 80 tokens of them.
# </details>
#
# <details><summary>2. What does the seed decide, and what does the caption?</summary>
#
# The seed decides the noise. The caption enters every step through the text tokens, and guidance says how hard it
# pulls. What the caption leaves open, both settle together.
# </details>
#
# <details><summary>3. Why not denoise in one step?</summary>
#
# From pure noise the best single answer is the average of all videos that fit the caption: a blur, the same for every
# seed. Only the later steps choose one of them.
# </details>
#
# **What the paper found.** Three choices you have met here are among its contributions: a VAE that is causal and
# compresses time as well as space, one transformer with full attention over text and video, and a norm that treats the
# two differently.
#
# **Where to read on.** The map's parts are the package's folders: `minicogvx/text`, `vae`, `diffusion`, `transformer`.
# Our `denoise` is `sample_loop` there, in `diffusion/sampling.py`. Next:
# [notebook 01](01_video_tensors.ipynb), video as tensors.

# %% tags=["nbval-ignore-output"]
progress()
predictions("0")
