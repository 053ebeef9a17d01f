# %% [markdown]
# # Your first video
#
# **How does a program make a video out of five words?**
#
# Run the cell below (Shift+Enter). It loads a model, gives it a caption, and a few seconds later there is a
# video.

# %% tags=["nbval-ignore-output"]
import random

import torch
from einops import rearrange

import minicogvx
from minicogvx.course import (
    check, hint, new_figure, notebook_device, progress, show_clip, show_figure, show_rows, show_source, solution,
)
from minicogvx.data.world import captions, oracle
from minicogvx.data.world.drawing import render
from minicogvx.data.world.scenes import Scene, ShapeObject, sample_scenes

torch.set_grad_enabled(False)  # nothing is trained in this notebook
# The processor and float32, so that your numbers agree with those printed here. MINICOGVX_DEVICE chooses another.
device = notebook_device()
pipe = minicogvx.load("toy", device, torch.float32)

PROMPT = "a red circle moves right"
video = pipe(PROMPT)
show_clip(video, f"Generated from the caption: {PROMPT}.", pipe.fps)

# %% [markdown]
# Nobody drew this circle. A network with a few million numbers turned noise into it, and the words decided
# what the noise became.
#
# The model is small, but it is built from the same classes as CogVideoX, a published model with up to 5.6
# billion numbers ([the paper](https://arxiv.org/abs/2408.06072), section 2). Only the sizes differ. It was
# trained on two processor cores, on clips of moving shapes that a program drew.
#
# In about 25 minutes, and 40 more for five short exercises, you follow this one caption through the whole
# machine:
#
# ```
# caption ── tokens ── text features ──┐
#                                      ├── transformer, again and again ── latents ── VAE decoder ── video
# seed ───── noise ────────────────────┘
# ```
#
# Afterwards you can say what each part does, why it is there, and what goes in and comes out. Each part has a
# notebook of its own later in the course; this one is the map.
#
# ## 1. A video is a block of numbers
#
# Guess first: how many numbers does the model have to produce for these two seconds?

# %%
frames, height, width, channels = video.shape
print(f"{frames} frames of {height} x {width} pixels, {channels} colours each: {video.numel():,} numbers")
print("all between 0 and 1:", bool(video.min() >= 0 and video.max() <= 1))

# %% [markdown]
# Can we read those numbers without looking? Here is a plain way to find the circle. A pixel is red where its
# first number is much larger than the other two. The mean column of the red pixels is where the circle
# stands.
#
# That reads one colour and one direction. The package has an **oracle** that reads everything: colour, shape,
# motion, background and the number of objects, from the pixels alone. The cell asks both.

# %%
def red_column(frame):
    """The mean column of the red pixels of one frame, h w 3."""
    columns = []
    for row in range(frame.shape[0]):
        for column in range(frame.shape[1]):
            red, green, blue = frame[row, column].tolist()
            if red > 0.5 and green < 0.4 and blue < 0.4:
                columns.append(column)
    return sum(columns) / len(columns) if columns else float("nan")


path = [red_column(frame) for frame in video]
print("the circle ends further right than it began:", path[-1] > path[0] + 8)

figure, ((axis,),) = new_figure(width=5, height=2.2)
axis.plot(range(1, frames + 1), path, marker="o")
axis.set(xlabel="frame", ylabel="column (pixels)", ylim=(0, width))
show_figure(figure, "The circle's column in each of the 17 frames: it rises steadily, so the circle moves "
                    "to the right.")

seen = oracle.read(video)
for thing in seen.objects:
    print(f"a {thing.colour} {thing.shape} that {thing.motion}")
print(oracle.matches(seen, captions.parse_caption(PROMPT)))

# %% [markdown]
# This is why the small model lives in a world of shapes. "Does it obey its caption?" is usually a matter of
# taste. Here it is a number, and every experiment in this course can be scored.
#
# Now it is your turn. An exercise is a function with a gap: write your code in place of the line with `raise`,
# and run the cell. `check` says whether it is right, and if not, what is wrong. Stuck? `hint("0.1")` gives
# one more hint each time, `solution("0.1")` all of it, and `progress()` lists what you have solved. You may also
# read on: until your function is right, the package's version works in its place.
#
# ### Exercise 0.1: to_screen (difficulty 1 of 3, 10 minutes)
#
# Networks count in another way. Their videos are `b c t h w`: several videos in a batch, colours before frames.
# Black is -1 and white is 1, and nothing keeps a network from answering 1.02. A screen wants the colours last,
# and whole numbers from 0 to 255. Make the one into the other: each number to the nearest whole one, and what
# is blacker than black or whiter than white to 0 or 255.

# %%
def to_screen(video):
    """b c t h w, about -1..1 -> b t h w c, whole numbers 0..255 (torch.uint8)."""
    ### BEGIN SOLUTION
    film = rearrange(video, "b c t h w -> b t h w c")
    return ((film / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    ### END SOLUTION


to_screen = check("0.1", to_screen)

# %% [markdown]
# You will need it in section 3.
#
# ## 2. Words become numbers
#
# A network can only add and multiply. What can it do with the word *red*?
#
# The plain way: write down every word there is, and number them. The caption becomes a list of numbers,
# called **tokens**. Three numbers are kept back: 0 fills up the list, 1 means "the caption ends here", 2 is
# any unknown word.
#
# ### Exercise 0.2: number_words (difficulty 1, 10 minutes)
#
# Write it so that people may type what they like. Capital letters do not matter, and punctuation counts as a
# space. An unknown word becomes 2. After the words comes the 1, then zeros up to `length` numbers. A caption
# that does not fit raises a `ValueError`.

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
mine = {caption: number_words(caption, number_of, pipe.text.max_length)
        for caption in (PROMPT, "A red dragon, moves RIGHT!")}
for caption, numbers in mine.items():
    print(f"{caption}: {numbers[:8]} ... ({len(numbers)} tokens)")
print("the package makes the same tokens:", list(mine.values()) == pipe.text.tokens(list(mine)).tolist())
print(f"the toy knows {len(words)} words, but not these:", pipe.text.unknown_words("a red dragon moves right"))

# %% [markdown]
# The toy knows 75 words, and says so when it meets a dragon. (The published models cut unknown words into
# pieces, and know 32,128 of them.)
#
# The number of a word means nothing: *red* is not "larger" than *blue*. So each token picks a row of a table,
# its **embedding**. Then a small T5 encoder lets the words look at each other.
#
# Predict: we change *red* into *blue*. How many of the 32 rows change, before T5 and after it?

# %%
pair = [PROMPT, PROMPT.replace("red", "blue")]
rows = pipe.text.encoder.shared(pipe.text.tokens(pair).to(device)).cpu()  # b n d_text: the table alone
features = pipe.text.encode(pair).cpu()  # b n d_text: after T5
change_before = (rows[0] - rows[1]).norm(dim=-1)  # n
change_after = (features[0] - features[1]).norm(dim=-1)  # n

print("text features:", tuple(features.shape))
print("rows that change before T5:", int((change_before > 1e-4).sum()))
print("rows that change after T5: ", int((change_after > 1e-4).sum()))

figure, (axes,) = new_figure(1, 2, width=8, height=2.3)
labels = PROMPT.replace("red", "red/blue").split() + ["end", "pad", "pad"]
for axis, change, title in zip(axes, (change_before, change_after), ("table alone", "after T5")):
    axis.bar(range(len(labels)), change[:len(labels)])
    axis.set_xticks(range(len(labels)), labels, rotation=40, ha="right")
    axis.set(title=title, ylabel="size of the change")
show_figure(figure, "How far each token's row moves when red becomes blue. Left, the table alone: only the "
                    "changed word. Right, after T5: every token, also the padding.")

# %% [markdown]
# Before T5, one row changes: the word itself. After T5, every row has heard of it. *Circle* no longer means
# "some circle" but "the circle that is red here". Even the padding carries meaning: like the published
# models, this one hides nothing from its attention.
#
# ## 3. A smaller place to work in
#
# The transformer that we meet below compares everything with everything. With 200,000 numbers that is too
# much, and the published size has 50 million. So the video is made in a smaller space first, and enlarged at
# the end.
#
# How small can a clip become and still come back? To test it we need a clip whose every pixel is known. A
# program draws one.

# %%
scene = Scene((ShapeObject("star", "yellow", "moves right", x=0.28, y=0.5, radius=0.2, speed=0.44),), "navy")
film = render(scene, frames, height, width)  # t h w 3


def averaged(film):
    """The plain way to make a clip small: the mean over groups of four frames and squares of 4 x 4 pixels."""
    groups = [film[:1]] + [film[start:start + 4] for start in range(1, len(film), 4)]
    small = []
    for group in groups:
        image = group.mean(dim=0)  # h w 3
        small.append(rearrange(image, "(h p) (w q) c -> h w p q c", p=4, q=4).mean(dim=(2, 3)))
    return torch.stack(small)


def enlarged(small):
    """The way back: every mean fills its place again."""
    big = small.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    return torch.cat([big[:1], big[1:].repeat_interleave(4, dim=0)])


small = averaged(film)
print(f"{film.numel():,} numbers become {tuple(small.shape)}, {small.numel():,} numbers")

# %% [markdown]
# Now the learned way: a **variational autoencoder**, VAE for short. It takes pixels in -1..1 and puts
# channels before frames.

# %%
pixels = rearrange(film * 2 - 1, "t h w c -> 1 c t h w").to(device)
latents = pipe.vae.encode(pixels).mode()  # b c t h w
decoded = pipe.vae.decode(latents).cpu()  # b c t h w
back = to_screen(decoded)[0] / 255  # t h w 3

print("the decoder leaves -1..1 in places:", bool(decoded.abs().max() > 1))
print(f"video   {tuple(pixels.shape)}")
print(f"latents {tuple(latents.shape)}: {latents.numel():,} numbers, "
      f"{pixels.numel() / latents.numel():.0f} times fewer")


def decibels(film, copy):
    """Peak signal-to-noise ratio: 10 more means a tenth of the squared error."""
    return (10 * torch.log10(1 / (film - copy).square().mean())).item()


gain = decibels(film, back) - decibels(film, enlarged(small))
print("the VAE is at least 5 dB better than averaging:", gain > 5)

show_rows({"true clip": film, "averaged": enlarged(small), "through the VAE": back},
          "Three rows of six frames. Top: a yellow star moves right over navy. Middle: averaged, the star is a "
          "smear of squares. Bottom: after the VAE, the star has its points and stands where it should.")

# %% [markdown]
# Both throw away most of the numbers. The VAE has learned which ones a video of this world needs.
#
# Look at the shapes again. Height and width shrink 8 times, frames 4 times: 64 becomes 8, but 17 becomes 5.
# The first frame stays alone, and the other 16 go in fours. The VAE is **causal**: its convolutions look at
# their own frame and at earlier ones. So a single picture is simply a video of one frame. (One of its
# normalisations does look ahead a little. Notebook 02 is about that.)
#
# What do latents look like?

# %%
figure, axes = new_figure(4, 5, width=6, height=4.4)
for channel, row in enumerate(axes):
    row[0].set_ylabel(f"channel {channel}")
    for place, axis in enumerate(row):
        axis.imshow(latents[0, channel, place].cpu(), cmap="viridis")
        axis.set(xticks=[], yticks=[], title=f"latent frame {place + 1}" if channel == 0 else "")
        axis.grid(False)
show_figure(figure, "Four of the 16 latent channels, one a row, over the five latent frames. Each picture has "
                    "8 x 8 values. A patch that differs from its surroundings moves from left to right.")

# %% [markdown]
# An 8 x 8 picture, and still you can follow the star. The transformer never sees a pixel. It works in here.
#
# ## 4. From noise, step by step
#
# Where does a *new* video come from? From noise. The seed decides which noise, and that is all it decides.
#
# Predict: what does the VAE make of pure noise? A grey frame, random pixels, or something else?

# %%
from minicogvx.diffusion.samplers import draw_noise

shape = tuple(latents.shape)
noise = draw_noise(shape, torch.Generator().manual_seed(0), device=device)  # b c t h w
show_rows({"decoded noise": pipe.decode(noise)[0]},
          "Six frames decoded from pure noise: coloured blotches without any object.")

# %% [markdown]
# Blotches of colour: locally they look a little like this world, but nothing holds together. Training taught
# the transformer to take noise *out*. A clean latent $x_0$ and noise $\epsilon$ were mixed,
#
# $$x_t = a_t\,x_0 + s_t\,\epsilon, \qquad a_t^2 + s_t^2 = 1,$$
#
# and the network had to say how to undo it. The timestep $t$ runs from 0, almost clean, to 999, nothing but
# noise.

# %%
bars = pipe.schedule.alphas_cumprod
figure, ((axis,),) = new_figure(width=5, height=2.3)
axis.plot(bars.sqrt(), label="share of signal, a")
axis.plot((1 - bars).sqrt(), label="share of noise, s", linestyle="--")
axis.set(xlabel="timestep t", ylabel="factor")
axis.legend()
show_figure(figure, "Signal falls from almost 1 at timestep 0 to exactly 0 at timestep 999; noise rises from "
                    "almost 0 to 1.")
print("signal left at the last timestep:", float(bars[-1]))

# %% [markdown]
# To make a video we walk backwards. At each step the network looks at the noisy latent, the timestep and the
# text. It answers with $v = a_t\,\epsilon - s_t\,x_0$, and both unknowns follow from it:
#
# $$x_0 = a_t\,x_t - s_t\,v, \qquad \epsilon = s_t\,x_t + a_t\,v.$$
#
# So at each step it has a guess of the whole clean video. We do not believe it at once. We mix guess and
# noise again, with a little less noise than before, and ask again.
#
# ### Exercise 0.3: walk_back (difficulty 1, 5 minutes)
#
# Which timesteps does the walk visit? It begins at 999, ends at -1, where nothing is noisy any more, and all
# its steps are equally long. Return the pair (t, t_next) of each step, first step first. The number of steps
# divides 1000.

# %%
def walk_back(steps):
    """The number of steps -> a list of so many pairs (t, t_next) of whole numbers."""
    ### BEGIN SOLUTION
    stride = 1000 // steps
    return [(t, t - stride) for t in range(999, -1, -stride)]
    ### END SOLUTION


walk_back = check("0.3", walk_back)
print("four steps:", walk_back(4))

# %% [markdown]
# It has to begin at 999. Many programs began lower, at 960 for 25 steps. They told the network that there was a
# trace of signal in what was pure noise ([Lin et al.](https://arxiv.org/abs/2305.08891)).
#
# Here is the whole walk, written out. Predict: we decode the guess after step 1, 2, 5, 10 and 25. What appears
# first: the background, the place, the colour, or the edges?

# %%
def signal_and_noise(t):
    """a and s of timestep t; before timestep 0 there is no noise left."""
    bar = float(bars[t]) if t >= 0 else 1.0
    return bar ** 0.5, (1 - bar) ** 0.5


def denoise(prompt, steps, guidance, seed, before_step=None):
    """Latents of one video, and the guess of the clean latents at every step."""
    text = pipe.text.encode(["", prompt])  # without the caption, and with it
    x = draw_noise(shape, torch.Generator().manual_seed(seed), device=device)
    guesses = []
    for t, t_next in walk_back(steps):
        a, s = signal_and_noise(t)
        if before_step is not None:
            x = before_step(x, a, s)  # section 8 puts a picture in here
        answers = pipe.transformer(torch.cat([x, x]), torch.tensor([t, t], device=device), text)
        v_without, v_with = answers.chunk(2)
        v = v_without + guidance * (v_with - v_without)  # section 7 asks why
        x0, epsilon = a * x - s * v, s * x + a * v
        a, s = signal_and_noise(t_next)
        x = a * x0 + s * epsilon
        guesses.append(x0)
    return x, guesses


mine, guesses = denoise(PROMPT, steps=25, guidance=3.0, seed=0)
package = pipe.sample([PROMPT], num_inference_steps=25, guidance_scale=3.0, seed=0)
print("the package computes the same latents:", torch.allclose(mine, package, atol=1e-2))

show_rows({f"guess at step {i}": pipe.decode(guesses[i - 1])[0] for i in (1, 2, 5, 10, 25)},
          "Five rows of frames, the guess at steps 1, 2, 5, 10 and 25. The first is a blur, the last a sharp red "
          "circle that moves right; in between, the object settles and its edges sharpen.")

# %% [markdown]
# Large things come first, edges last. At step 1 there is only noise to look at, so the network can say no
# more than the caption does: something red, somewhere, that drifts. Each step makes the next question easier.
#
# ## 5. Inside the transformer
#
# What does the network look at? It reads a sequence of **tokens**, as a language model does. The text has its
# 32 already. The latents are cut into patches, and each patch is one token.
#
# The plain way: go through frames, rows and columns, and cut out squares of 2 x 2.

# %%
cut = []
for place in range(5):
    for row in range(0, 8, 2):
        for column in range(0, 8, 2):
            square = latents[0, :, place, row:row + 2, column:column + 2]  # c 2 2
            cut.append(square.flatten())
cut = torch.stack(cut)  # n patch_values

from minicogvx.transformer.patchify import patchify

print(f"5 x 4 x 4 = {len(cut)} video tokens of {cut.shape[1]} numbers")
print("the package cuts the same:", torch.equal(cut, patchify(latents, 1, 2)[0]))
show_source(patchify)

# %% [markdown]
# One line instead of three loops. What does one token cover, in pixels? 2 x 2 latents, each for 8 x 8 pixels
# and 4 frames: 16 x 16 pixels over 4 frames. (Over 1 frame at the start: the first frame is alone.) The picture
# below shows them all.
#
# Text and video tokens then stand in one sequence, 32 + 80 = 112 of them, and all look at all. A patch in the
# last frame can ask the word *right*, and the patch where the circle began. Below the picture is the package's
# own code.

# %%
from minicogvx.transformer.model import ExpertTransformer, flops

figure, (axes,) = new_figure(1, 5, width=8.5, height=2.0)
for place, axis in enumerate(axes):
    first, last = (1, 1) if place == 0 else (4 * place - 2, 4 * place + 1)
    axis.imshow(video[last - 1])
    for line in (16, 32, 48):
        axis.axvline(line - 0.5, color="white", linewidth=0.8)
        axis.axhline(line - 0.5, color="white", linewidth=0.8)
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    axis.set_title(f"frame {first}" if first == last else f"frames {first} to {last}", fontsize=8)
show_figure(figure, "The generated clip in its five groups of frames, each with a grid of 4 x 4 squares: "
                    "80 squares in all, one for each video token.")
show_source(ExpertTransformer.forward)

# %% [markdown]
# Read the comments on the right: they are the diagram. Six blocks change the tokens, the text is dropped, and
# the patches are put back together. The timestep enters every block through its norm, differently for text
# and for video. That is the *expert* in expert transformer. Later notebooks take each line apart.
#
# ### Exercise 0.4: sequence_length (difficulty 2, 10 minutes)
#
# How long is that sequence, for a video of any size? The VAE is the one of section 3, the patches have 2 x 2
# latents. In the published 1.5 models a patch also spans `patch_t=2` latent frames, and an odd number of latent
# frames is filled up with one more.

# %%
def sequence_length(frames, height, width, text, patch_t=1):
    """Size of a video in pixels (4k + 1 frames, sides that 16 divides) and text tokens -> all tokens."""
    ### BEGIN SOLUTION
    latent_frames = (frames - 1) // 4 + 1
    groups = (latent_frames + patch_t - 1) // patch_t
    return text + groups * (height // 16) * (width // 16)
    ### END SOLUTION


sequence_length = check("0.4", sequence_length)
for count in (1, 17, 33):
    print(f"{count:2d} frames of 64 x 64: {sequence_length(count, 64, 64, text=32)} tokens")

# %% [markdown]
# ## 6. Change one word
#
# Same seed, so the same noise. One word differs.
#
# Predict: does only that one thing change? Will the circle stand in the same place?

# %%
prompts = [PROMPT, "a blue circle moves right", "a red star moves right", "a red circle moves left"]
same_noise = noise.repeat(len(prompts), 1, 1, 1, 1)
clips = pipe.decode(pipe.sample(prompts, latents=same_noise, num_inference_steps=25))
for prompt, clip in zip(prompts, clips):
    things = [f"{thing.colour} {thing.shape} {thing.motion}" for thing in oracle.read(clip).objects]
    print(f"{prompt:28s}-> {' and '.join(things)}")

show_rows(dict(zip(prompts, clips)),
          "Four rows of frames from the same noise. A red circle moves right; a blue circle moves right; a red star "
          "moves right; a red circle moves left.")

# %% [markdown]
# The noise settles what the caption leaves open: place, size, background. Another colour keeps most of it.
# Another direction cannot keep it all, because a circle that goes left has to begin where there is room.
#
# **Try it yourself.** Change the caption and run the cell. This one names a combination that training never
# showed: there was no green triangle that moves up.

# %% tags=["nbval-ignore-output"]
MY_PROMPT = "a green triangle moves up on a navy background"
MY_SEED = 1

print("words it does not know:", pipe.text.unknown_words(MY_PROMPT))
my_video = pipe(MY_PROMPT, seed=MY_SEED, num_inference_steps=25)
print("the oracle says:", oracle.matches(oracle.read(my_video), captions.parse_caption(MY_PROMPT)))
show_clip(my_video, f"Generated from the caption: {MY_PROMPT}.", pipe.fps)

# %% [markdown]
# ## 7. Predict, run, explain
#
# **Guidance.** In section 4 the network answered twice: $v_\text{without}$ for the empty caption,
# $v_\text{with}$ for ours. We then took
#
# $$v = v_\text{without} + w\,(v_\text{with} - v_\text{without}).$$
#
# With $w = 1$ that is simply the answer with the caption. We used 3: three times as far in the direction
# that the words point.
#
# Predict: of eight captions, how many does it obey with $w = 1$, and how many with 3?

# %% tags=["nbval-ignore-output"]
scenes = sample_scenes(8, seed=3, two_objects=0.0)
asked = [captions.evaluation_caption(scene, random.Random(i)) for i, scene in enumerate(scenes)]


def sample_and_score(steps, guidance):
    """Clips of the eight captions, and how many of them the oracle finds right in everything."""
    clips = pipe.decode(pipe.sample(asked, num_inference_steps=steps, guidance_scale=guidance, seed=3))
    return clips, sum(oracle.matches(oracle.read(clip), scene)["all"] for clip, scene in zip(clips, scenes))


by_guidance = {guidance: sample_and_score(25, guidance) for guidance in (1.0, 3.0)}
for guidance, (clips, right) in by_guidance.items():
    print(f"guidance {guidance:g}: {right} of {len(asked)} right")

show_rows({f"guidance {guidance:g}": clips[0] for guidance, (clips, right) in by_guidance.items()},
          f"The caption: {asked[0]}. Above with guidance 1, below with guidance 3.")

# %% [markdown]
# Why does it help? One caption fits many videos. With $w = 1$ the network aims at all of them, and some lie
# near the border to another caption. With $w = 3$ it moves away from what *any* video would be, towards what
# only this caption asks for. The price in large models is variety, and colours that are too strong.
#
# **Steps.** Each step costs one run of the network, or rather two. Predict the score for 1, 5 and 25 steps.

# %% tags=["nbval-ignore-output"]
by_steps = {steps: sample_and_score(steps, 3.0) for steps in (1, 5)} | {25: by_guidance[3.0]}
for steps, (clips, right) in by_steps.items():
    print(f"{steps:2d} steps: {right} of {len(asked)} right")

show_rows({f"steps: {steps}": clips[0] for steps, (clips, right) in by_steps.items()},
          f"The caption: {asked[0]}. With 1, 5 and 25 steps: one step gives a blur, 25 a sharp shape.")

# %% [markdown]
# After one step we see the guess of section 4: the average of every video that fits. An average of many sharp
# videos is not sharp. Each further step decides a little more, and so asks about fewer videos.
#
# **Try it yourself.** Which is the smallest number of steps that still gives you a good clip? And what
# happens with guidance 0, or 15?

# %% tags=["nbval-ignore-output"]
MY_STEPS = 10
MY_GUIDANCE = 3.0

my_clips, my_right = sample_and_score(MY_STEPS, MY_GUIDANCE)
print(f"{MY_STEPS} steps, guidance {MY_GUIDANCE:g}: {my_right} of {len(asked)} right")
show_clip(my_clips[0], f"Generated from the caption: {asked[0]}.", pipe.fps)

# %% [markdown]
# ## 8. Begin with a picture, or with a film
#
# The same loop does more than text to video. For **image to video**, the first latent frame is known. It is
# put back at every step, with the right amount of noise, and the other four frames are made to go with it.
# (The published image-to-video models are trained for this and see the picture as extra channels. The toy is
# not.)
#
# ### Exercise 0.5: put_back (difficulty 1, 5 minutes)
#
# Before a step, `x` holds signal times $a$ plus noise times $s$. `known` is the clean latent of the picture,
# `noise` the noise of the run. Return `x` with the picture as its first frame, as noisy as all the others. The
# next cell lets your function work in `denoise`.

# %%
def put_back(x, known, noise, a, s):
    """x and noise, b c t h w; known, b c 1 h w; a and s, numbers -> x with the known first frame, b c t h w."""
    ### BEGIN SOLUTION
    first = a * known + s * noise[:, :, :1]
    return torch.cat([first, x[:, :, 1:]], dim=2)
    ### END SOLUTION


put_back = check("0.5", put_back)

# %% tags=["nbval-ignore-output"]
star = ShapeObject("star", "yellow", "moves up", x=0.35, y=0.7, radius=0.2)
picture = render(Scene((star,), "brown"), 1, height, width)  # 1 h w 3
known = pipe.vae.encode(rearrange(picture * 2 - 1, "t h w c -> 1 c t h w").to(device)).mode()

mine, _ = denoise("a yellow star moves up on a brown background", steps=25, guidance=3.0, seed=0,
                  before_step=lambda x, a, s: put_back(x, known, noise, a, s))
mine = put_back(mine, known, noise, a=1, s=0)  # at the end, without any noise
moving = to_screen(pipe.vae.decode(mine).cpu())[0] / 255
show_clip(moving, "A yellow star, given as a picture at the lower left, jumps to the right and moves up.", pipe.fps)
print("the first frame is the picture:", bool((moving[0] - picture[0]).abs().mean() < 0.05))

# %% [markdown]
# Look closely: after the first frame the star jumps to the right, and moves up from there. The toy was never trained
# to go on from a picture. In the package all this is `pipe(caption, image=picture)`.
#
# For **video to video**, a film is noised, but not completely, and denoised from there with another caption.
# The *strength* says how much noise: 0 keeps the film, 1 forgets it.
#
# Predict: a red circle moves right, and we ask for a blue one. At which strength does the colour change?

# %%
circle = ShapeObject("circle", "red", "moves right", x=0.28, y=0.5, radius=0.2, speed=0.44)
film = render(Scene((circle,), "black"), frames, height, width)  # t h w 3
wish = "a blue circle moves right on a black background"
changed = {"the film": film}
for strength in (0.4, 0.7, 0.95):
    changed[f"strength {strength}"] = pipe(wish, video=film, strength=strength, num_inference_steps=25)
show_rows(changed, "Four rows of frames: the film with its red circle, then the results at strength 0.4, 0.7 and "
                   "0.95. The more noise, the more the caption decides.")

# %% [markdown]
# Little noise hides only the edges, and the film wins. Much noise hides the colour, too, and then the caption
# may choose it.
#
# ## 9. At full size
#
# Now the published models, with the same classes. Their weights fill many gigabytes, so we build them on the
# **meta device**: every tensor has its shape and no memory.
#
# Guess: how many times larger is the 5B than the toy?

# %%
from minicogvx.presets import preset
from minicogvx.vae import CausalVAE

PUBLISHED = {"2b": 1_693_783_872, "5b": 5_570_283_072}
giants = {}
with torch.device("meta"):
    for name in PUBLISHED:
        giants[name] = ExpertTransformer(preset(name).transformer)
    published_vae = CausalVAE(preset("5b").vae)

toy_count = sum(p.numel() for p in pipe.transformer.parameters())
print(f"toy: {toy_count:,} parameters in the transformer")
for name, giant in giants.items():
    count = sum(p.numel() for p in giant.parameters())
    print(f"{name}: {count:,} parameters in the transformer; as published: {count == PUBLISHED[name]}; "
          f"{count / toy_count:.0f} times the toy")
count = sum(p.numel() for p in published_vae.parameters())
print(f"VAE: {count:,} parameters; as published: {count == 215_583_907}")

clip = (49, 480, 720)  # six seconds at 8 frames a second
latent_size = (13, 60, 90)
video_tokens = sequence_length(*clip, text=0)
print(f"video of {clip}: {49 * 480 * 720 * 3:,} numbers; latents 16 x {latent_size}: {16 * 13 * 60 * 90:,}")
print(f"tokens: {226} of text + {video_tokens:,} of video = {sequence_length(*clip, text=226):,}")

toy_flops = flops(pipe.transformer.config, (5, 8, 8), pipe.text.max_length)
print(f"toy: {toy_flops / 1e9:.1f} GFLOP a run of the network")
for name, giant in giants.items():
    work = flops(giant.config, latent_size, 226)
    print(f"{name}: {work / 1e12:.0f} TFLOP a run, {work / toy_flops:,.0f} times the toy; "
          f"{2 * PUBLISHED[name] / 1e9:.1f} GB of weights in 16 bits")

# %% [markdown]
# The 5B has about 900 times the weights of the toy, but one run of it is almost 300,000 times the work: its
# sequence is 160 times as long, and every token looks at every other. The paper reports 113 seconds for one
# video of the 5B with 50 steps on an H800 GPU, and 49 seconds for the 2B. The parts and their order are the
# same as in the machine that made your circle.
#
# ## What you can now explain
#
# Answer first, then open.
#
# <details><summary>1. Why does the transformer never see a pixel?</summary>
#
# Everything looks at everything, so work grows with the square of the number of tokens. The VAE hands it
# about 40 times fewer numbers, and the patches make 80 tokens of them.
# </details>
#
# <details><summary>2. What does the seed decide, and what does the caption?</summary>
#
# The seed decides the noise, and with it all that the caption leaves open. The caption enters every step
# through the text tokens, and guidance says how hard it pulls.
# </details>
#
# <details><summary>3. Why not denoise in one step?</summary>
#
# From pure noise the best single answer is the average of all videos that fit the caption, and an average is
# a blur. Many small steps choose one of them.
# </details>
#
# **What the paper found.** Three choices you have met here are its contributions: a VAE that is causal and
# compresses time as well as space, one transformer with full attention over text and video, and a norm that
# treats the two differently. The authors trained on 35 million clips; the toy saw some tens of thousands, of
# six shapes.
#
# **Where to read on.** The map above is the package's folder: `minicogvx/text`, `vae`, `diffusion`,
# `transformer`, and `pipeline.py`. There `denoise` is `sample_loop`, in `diffusion/sampling.py`.
