# %% [markdown]
# # Frame pack: two films, one sequence
#
# **Two films lie in one row of tokens, and the transformer runs once for both. What keeps them apart?**

# %% tags=["nbval-ignore-output"]
import math
import random
import time

import torch
import torch.nn.functional as F
from einops import rearrange

import minicogvx
from minicogvx.course import (
    check, compare_clips, explore_packs, hint, new_figure, notebook_device, outcome, predict, predictions, progress,
    show_figure, show_source, solution,
)
from minicogvx.course.pack_bars import filled
from minicogvx.data.clips.packs import frame_packs, packs_in_order
from minicogvx.data.world import captions, oracle
from minicogvx.data.world.drawing import render
from minicogvx.data.world.scenes import DIRECTIONS, sample_scenes
from minicogvx.diffusion import diffusion_loss, draw_noise
from minicogvx.diffusion.samplers import DDIMSampler
from minicogvx.evaluation.intervals import mean_interval, paired_difference, wilson
from minicogvx.presets import preset
from minicogvx.training.packed import packed_diffusion_loss
from minicogvx.transformer.layout import PackLayout
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.transformer.packed import dense_attention, forward_clips, pack_layout, same_clip

torch.set_grad_enabled(False)  # switched on again where gradients are compared
device = notebook_device()  # the processor, unless MINICOGVX_DEVICE names another device
pipe = minicogvx.load("toy", device, torch.float32)


def largest_gap(a, b):
    """The largest difference between two lists of tensors."""
    return max((x.cpu() - y.cpu()).abs().max().item() for x, y in zip(a, b, strict=True))


def sampled(prompts, noises, mask=None, steps=20):
    """A clip for each prompt, t h w 3, all of them made in one row of tokens; `mask` says which token sees which."""
    sampler, texts, latents = DDIMSampler(pipe.schedule, steps), pipe.text.encode(prompts), list(noises)
    for i, t in enumerate(sampler.timesteps.to(device)):
        answers = forward_clips(pipe.transformer, latents, t.expand(len(latents)), list(texts), kernel="dense",
                                mask=mask)
        latents = [sampler.step(v[None], i, x[None])[0][0] for v, x in zip(answers, latents)]
    return [pipe.decode(x[None])[0] for x in latents]


PAIR = ["a red circle moves right on a black background", "a yellow star moves up on a navy background"]
start = draw_noise((2, 16, 5, 8, 8), torch.Generator().manual_seed(0), device=device)
together = sampled(PAIR, start)
compare_clips(dict(zip(PAIR, together)), "Two clips that were made in one sequence, each from a caption of its own.",
              pipe.fps)

# %% [markdown]
# These two clips were never in a batch. All their tokens stood in *one* sequence.
#
# Why would anybody do that? Training data is a mixture: photographs, short clips, long films, wide and upright ones.
# A batch wants everything in one size. CogVideoX treats a photograph as a film of one frame, and places clips of any
# length and size in one sequence: **Multi-Resolution Frame Pack**. The paper describes the idea; the masks and the
# packing were not published. So what you build here is ours.
#
# You will write the mask, the positions, an attention that never lets clips meet, the packing itself, and the loss.
# Afterwards you can explain what happens without each of them, what a mixture of sizes costs, and how much a
# photograph weighs beside a film. It takes about 115 minutes, exercises included. It covers section 3.1 of the
# [paper](https://arxiv.org/abs/2408.06072). (Notation: the box in [notebook 01](01_video_tensors.ipynb).)
#
# ## 1. One row
#
# Here are three clips: a photograph, a film, and a longer, wider film. In the plainest way they go through the network
# one at a time.

# %% tags=["nbval-ignore-output"]
drawn = sample_scenes(3, seed=2, two_objects=0.0)
sizes = {"a photograph": (1, 64, 64), "a film": (17, 64, 64), "a longer, wider film": (33, 48, 80)}  # frames, pixels
shown = {name: render(scene, *size) for scene, (name, size) in zip(drawn, sizes.items())}
compare_clips(shown, "A photograph, a film of 17 frames, and a wide one of 33.", pipe.fps)


def encoded(video):
    """Scaled latents, c t h w, of a clip t h w 3."""
    pixels = rearrange(video * 2 - 1, "t h w c -> 1 c t h w").to(device)
    return pipe.vae.encode(pixels).mode()[0] * pipe.vae.config.scaling_factor


clean = [encoded(video) for video in shown.values()]
noises = [draw_noise((1, *clip.shape), torch.Generator().manual_seed(i), device=device)[0]
          for i, clip in enumerate(clean)]
times = torch.tensor([300, 500, 700], device=device)  # every clip has a timestep of its own
noisy = [pipe.schedule.add_noise(clip[None], noise[None], t)[0]
         for clip, noise, t in zip(clean, noises, times.split(1))]
texts = list(pipe.text.encode([captions.evaluation_caption(scene, random.Random(0)) for scene in drawn]))

alone = [pipe.transformer(clip[None], t, text[None])[0] for clip, t, text in zip(noisy, times.split(1), texts)]
grids = [pipe.transformer.grid(clip[None]) for clip in noisy]
words_and_video = [(len(text), math.prod(grid)) for text, grid in zip(texts, grids)]
for name, grid, (words, video) in zip(sizes, grids, words_and_video):
    print(f"{name}: {words} words + {' x '.join(map(str, grid))} patches = {words + video} tokens")

# %% [markdown]
# Now put the three end to end: words, video, words, video, words, video. Most of the network does not notice. A linear
# layer, a norm, or a feed-forward layer treats every token by itself. (The modulation depends on the timestep, so each
# token gets that of its clip.) Only attention makes tokens meet. It needs a mask.
#
# ### Exercise 11.1: pack_mask (difficulty 1 of 3, 10 minutes)
#
# Row $i$, column $j$: may query $i$ see key $j$? A token sees all tokens of its own clip, words and video, and nothing
# else. `hint("11.1")` gives one more hint each time, `solution("11.1")` a solution.

# %% tags=["nbval-ignore-output"]
def pack_mask(clips):
    """Clips, each (words, video tokens), end to end -> n n, boolean."""
    ### BEGIN SOLUTION
    clip = torch.arange(len(clips)).repeat_interleave(torch.tensor([words + video for words, video in clips]))
    return clip[:, None] == clip
    ### END SOLUTION


pack_mask = check("11.1", pack_mask)
mask = pack_mask(words_and_video)
packed = forward_clips(pipe.transformer, noisy, times, texts, kernel="dense", mask=mask)
print(f"one row under pack_mask, and one at a time: {largest_gap(packed, alone):.0e} apart")
assert largest_gap(packed, alone) < 1e-3
print(f"allowed: {int(mask.sum()):,} of {mask.numel():,} pairs, {mask.float().mean():.0%}")

COLOURS = ("#0072B2", "#E69F00", "#009E73")


def draw_mask(axis, mask, clips, title):
    """The mask as a picture, with the clips' words (pale) and video as a coloured row above it."""
    axis.imshow(mask, cmap="Greys", vmin=-0.4, vmax=1.6, interpolation="nearest")
    left, height = 0, 0.06 * len(mask)
    for (words, video), colour in zip(clips, COLOURS):
        axis.barh(-height, words, height, left - 0.5, color=colour, alpha=0.4)
        axis.barh(-height, video, height, left + words - 0.5, color=colour)
        left += words + video
    axis.set(xticks=[], yticks=[], title=title, xlabel="who is asked", ylabel="who asks", ylim=(len(mask), -2 * height))
    axis.spines[:].set_visible(False)
    axis.grid(False)


figure, ((axis,),) = new_figure(width=4, height=3.6)
draw_mask(axis, mask, words_and_video, "three clips in one row; pale: words")
show_figure(figure, "The mask of three clips: three dark squares along the diagonal. Above it the row of tokens, each "
                    "clip in a colour, its words pale.")
show_source(same_clip)
show_source(dense_attention)

# %% [markdown]
# ## 2. Without the mask
#
# The two films of the opening were made under such a mask. Now we take it away: every token sees every token, nothing
# else changes. Both clips start from the same noise as before.
#
# **Prediction 11.1.** Two captions in one row, and no mask: what do the two films show?

# %%
predict("11.1", "each what its caption says", "both objects in both films", "nearly the same film twice")

# %% tags=["folded", "nbval-ignore-output"]
two_films = [(32, 80)] * 2  # words and video tokens
apart, melted = together, sampled(PAIR, start, torch.ones(224, 224, dtype=torch.bool))
compare_clips({"with the mask: circle": apart[0], "with the mask: star": apart[1],
               "without: circle": melted[0], "without: star": melted[1]},
              "Two films with the mask, a red circle and a yellow star, and two without it.", pipe.fps, num_frames=5)
difference = {name: (a - b).abs().mean().item() for name, (a, b) in (("with", apart), ("without", melted))}
print(f"the two films differ by {difference['with']:.3f} on average with the mask, by {difference['without']:.3f} "
      f"without it (black and white: 1)")
readings = [oracle.read(film) for film in melted]
for caption, reading in zip(PAIR, readings):
    print(f"'{caption}', without the mask: the oracle sees",
          [(thing.colour, thing.shape, thing.motion) for thing in reading.objects], "on", reading.background)
obeyed = [oracle.matches(reading, captions.parse_caption(caption))["all"] for reading, caption in zip(readings, PAIR)]
assert difference["without"] < 0.3 * difference["with"] and not all(obeyed)
outcome("11.1", "each what its caption says" if all(obeyed) else "nearly the same film twice" if
        difference["without"] < 0.3 * difference["with"] else "both objects in both films")

# %% [markdown]
# From two noises and two captions, nearly the same film twice: a blob of a mixed colour, on its way in a mixed
# direction. What is left to tell the films apart? A patch knows its place in the frame and its moment, and so does its
# twin in the other film. Neither knows *which film* it is of. So the network takes the row for one clip with two
# captions and every patch twice, and paints the mean of both.
#
# Linear layers could not do this; each of them still sees one token at a time. Only attention mixes tokens, so only the
# mask keeps films apart. What does each gap in it let through? We take twelve films in pairs, and open one gap at a
# time.
#
# **Prediction 11.2.** One gap is open at a time: which of the three leaves the most films right?

# %%
predict("11.2", "video sees the other caption's words", "video sees the other film's patches",
        "words see the other caption's words", "twelve films cannot tell")

# %% tags=["folded", "nbval-ignore-output"]
def leaking(who, whom, films=12):
    """The mask of films in pairs, where besides its own clip every token of kind `who` sees those of kind `whom` of
    the other film of its pair; kinds are "words", "video", "all" and "nothing"."""
    own = pack_mask([(32, 80)] * films)
    pair = torch.arange(films * 112) // 224
    is_word = torch.arange(films * 112) % 112 < 32
    kinds = {"words": is_word, "video": ~is_word, "all": is_word | True, "nothing": is_word & False}
    return own | ((pair[:, None] == pair) & kinds[who][:, None] & kinds[whom])


asked = [one for one in sample_scenes(60, seed=3, two_objects=0.0) if one.objects[0].motion in DIRECTIONS][:12]
wishes = [captions.evaluation_caption(one, random.Random(i)) for i, one in enumerate(asked)]
noise_12 = draw_noise((12, 16, 5, 8, 8), torch.Generator().manual_seed(1), device=device)
gaps = {"nothing": ("nothing", "nothing"), "video sees the other caption's words": ("video", "words"),
        "video sees the other film's patches": ("video", "video"),
        "words see the other caption's words": ("words", "words"), "everything": ("all", "all")}
right = {}
for name, (who, whom) in gaps.items():
    made = sampled(wishes, noise_12, leaking(who, whom), steps=8)
    found = [oracle.matches(oracle.read(film), one) for film, one in zip(made, asked)]
    right[name] = [each["all"] for each in found]
    low, high = wilson(sum(right[name]) / 12, 12)
    print(f"open: {name:36s} right {sum(right[name]):2d} of 12 ({low:.0%} to {high:.0%}); " + ", ".join(
        f"{what} {sum(each[what] for each in found)}" for what in ("colour", "shape", "motion", "background")))
assert sum(right["nothing"]) >= 9 and sum(right["everything"]) <= 4
best, second = sorted(list(gaps)[1:4], key=lambda name: -sum(right[name]))[:2]
gap, low, high = paired_difference(right[best], right[second])
print(f"the best of the three gaps, less the second: {gap:+.0%} of the films right, 95 % interval {low:+.0%} to "
      f"{high:+.0%}")
outcome("11.2", best if low > 0 else "twelve films cannot tell")

# %% [markdown]
# A patch that sees the other caption follows both, and one that sees the other film mixes with it. The third gap is
# narrow: there no patch ever sees anything of the other film. But in every block the words see each other, and their
# own patches see *them*. What captions tell each other still reaches the picture. So captions, too, should be kept
# apart. (Twelve films are few: the intervals of 11 and of 6 right overlap.)
#
# ## 3. Where is a token?
#
# Attention knows of places only by the rotation of queries and keys (notebook 06). In a pack every clip has places of
# its own.
#
# ### Exercise 11.2: pack_positions (difficulty 2 of 3, 15 minutes)
#
# Return frame, row and column of every token of a pack. In each clip count anew from 0, 0, 0: columns fastest, then
# rows, then frames. Words are not turned, so they are at 0, 0, 0.

# %% tags=["nbval-ignore-output"]
def pack_positions(clips):
    """Clips, each (words, (frames, rows, columns)), end to end -> n 3, whole numbers."""
    ### BEGIN SOLUTION
    parts = []
    for words, grid in clips:
        parts += [torch.zeros(words, 3, dtype=torch.int64), torch.cartesian_prod(*map(torch.arange, grid))]
    return torch.cat(parts)
    ### END SOLUTION


pack_positions = check("11.2", pack_positions)


def turned_by(places, head_dim=64):
    """The rotary table, n half, of tokens at these places; frame, row and column each turn channels of their own."""
    shares = (head_dim // 4, head_dim // 8 * 3, head_dim // 8 * 3)
    angles = torch.cat([torch.outer(place, 10_000 ** (-torch.arange(0, share, 2) / share))
                        for place, share in zip(places.T.float(), shares)], dim=1)
    return torch.polar(torch.ones_like(angles), angles).to(device)


places = pack_positions([(32, (5, 4, 4))] * 2)
layout = pipe.transformer.layout((5, 4, 4), 32, torch.device(device))
gap = largest_gap([turned_by(places)], [layout.rope.repeat(2, 1)])
print(f"rotation by pack_positions, and the package's: {gap:.0e} apart")
assert gap < 1e-4
show_source(pack_layout)

# %% [markdown]
# What if the count simply goes on, so that the second film has the frames 5 to 9? Under the mask its tokens still meet
# nobody but themselves, and a rotation tells two tokens only how far apart they are.
#
# **Prediction 11.3.** The second film's frames are counted from 5: how far does the network's answer change, as a share
# of the answer?

# %%
predict("11.3", "not at all (rounding)", "by less than a tenth", "by more than a tenth")

# %% tags=["folded", "nbval-ignore-output"]
def answers_at(shift, words_too=False):
    """The network's answers for the pair at the first step; the second film's patches are moved by `shift`."""
    moved = places.clone()
    moved[112 if words_too else 112 + 32:] += torch.tensor(shift)
    row = PackLayout((layout, layout), turned_by(moved), dense_attention(pack_mask(two_films).to(device)))
    t = torch.tensor([999, 999], device=device)
    return pipe.transformer(list(start), t, list(pipe.text.encode(PAIR)), None, row)


def changes(shift, words_too=False):
    """By how much the answers for both films change, as shares of the answers."""
    return [((a - b).norm() / b.norm()).item() for a, b in zip(answers_at(shift, words_too), answers_at((0, 0, 0)))]


for shift in ((5, 0, 0), (50, 0, 0), (0, 4, 0), (0, 0, 4)):
    first, second = changes(shift)
    print(f"second film {shift[0]:2d} frames, {shift[1]} rows, {shift[2]} columns on: its answer changes by "
          f"{second:.1%}, the first film's by {first:.1%}")
with_words = changes((5, 0, 0), words_too=True)[1]
print(f"5 frames on, and its words with it: its answer changes by {with_words:.0e}")
assert with_words < 1e-3 < changes((5, 0, 0))[1]
change = changes((5, 0, 0))[1]
outcome("11.3", "not at all (rounding)" if change < 1e-3 else "by less than a tenth" if change < 0.1 else
        "by more than a tenth")

# %% [markdown]
# Between patches nothing has changed: all of them moved together, and rotation sees only distances. But words are not
# turned, they stay at 0. For a patch, its caption is now somewhere else than in training. The last line is the proof:
# if words move along, the answer is the same up to rounding. With positions that are *added* to the tokens (the 2B's
# sincos table) even the patches would notice.
#
# ## 4. Clips that never meet
#
# A mask of all pairs is a picture for people. For 75,000 tokens it would have 5.6 billion entries, and the forbidden
# ones are computed and thrown away.
#
# ### Exercise 11.3: attend_varlen (difficulty 2 of 3, 15 minutes)
#
# Attention within clips of any lengths, without a tensor of $n \times n$; the check watches. You may use
# `F.scaled_dot_product_attention`.

# %% tags=["nbval-ignore-output"]
def attend_varlen(q, k, v, lengths):
    """q, k, v, heads n d, clips of these lengths end to end -> answers, heads n d."""
    ### BEGIN SOLUTION
    clips = zip(*(x.split(lengths, dim=1) for x in (q, k, v)))
    return torch.cat([F.scaled_dot_product_attention(*clip) for clip in clips], dim=1)
    ### END SOLUTION


attend_varlen = check("11.3", attend_varlen)
lengths = [words + video for words, video in words_and_video]


def in_each_clip(q, k, v):
    """Your attention as a layout takes it, b heads n d, for the three clips."""
    return attend_varlen(q[0], k[0], v[0], lengths)[None]


each = [pipe.transformer.layout(grid, 32, torch.device(device)) for grid in grids]
mine = pipe.transformer(noisy, times, texts, None, pack_layout(each, in_each_clip))
print(f"the toy with attend_varlen in every block, and one clip at a time: {largest_gap(mine, alone):.0e} apart")
assert largest_gap(mine, alone) < 1e-3
show_source(PackLayout.within_clips)

# %% [markdown]
# The package goes one step further: clips of equal length stand side by side and are attended to as a batch. (On
# a GPU, PyTorch's `flex_attention` takes the mask as a function and skips empty blocks; `kernel="flex"`.)
#
# A pack must also *train* as its clips do. We compare all gradients of the toy: those of the three clips one at a time,
# added up, and those of the pack.

# %% tags=["nbval-ignore-output"]
def gradients(losses):
    """The gradient of the sum of `losses` for all parameters, as one long vector."""
    found = torch.autograd.grad(losses.sum(), list(pipe.transformer.parameters()))
    return torch.cat([g.flatten() for g in found])


with torch.enable_grad():
    of_pack = packed_diffusion_loss(pipe.transformer, pipe.schedule, clean, texts, times, noises)
    summed = gradients(of_pack)
    separate = torch.zeros_like(summed)
    for clip, x, noise, t, text in zip(clean, noisy, noises, times.split(1), texts):
        answer = pipe.transformer(x[None], t, text[None])
        separate += gradients(diffusion_loss(answer, clip[None], noise[None], t, pipe.schedule))
print(f"losses of the three clips: {[round(loss, 3) for loss in of_pack.tolist()]}")
print(f"{len(summed):,} gradients; the two ways differ by {(summed - separate).norm() / separate.norm():.0e} "
      "(relative)")
assert (summed - separate).norm() < 1e-3 * separate.norm()

# %% [markdown]
# ## 5. A mixture
#
# Why pack at all? Here is a data set as a model meets it: a quarter photographs, films of two to ten seconds at 8
# frames a second, wide, square and upright. (The shares are ours.) The traditional way is one length for all: shorter
# clips are discarded, longer ones cut.

# %%
LENGTHS, OFTEN = (1, 17, 33, 49, 65, 81), (0.25, 0.15, 0.15, 0.19, 0.15, 0.11)
SHAPES, AS_OFTEN = ((64, 64), (48, 80), (80, 48), (64, 96), (32, 48), (48, 32)), (0.25, 0.3, 0.1, 0.1, 0.15, 0.1)
config, vae = preset("toy").transformer, preset("toy").vae


def tokens_of(size):
    """Words and patches of a clip of (frames, height, width) in pixels."""
    return config.max_text_seq_length + config.num_patches(vae.latent_size(*size))


chance = random.Random(0)
films = [(length, *shape) for length, shape in zip(chance.choices(LENGTHS, OFTEN, k=1500),
                                                   chance.choices(SHAPES, AS_OFTEN, k=1500))]
tokens = [tokens_of(size) for size in films]
frames_in_all = sum(size[0] for size in films)
print(f"1,500 clips of {min(tokens)} to {max(tokens)} tokens, {sum(tokens) / 1500:.0f} on average")
for fixed in LENGTHS:
    kept = [size for size in films if size[0] >= fixed]
    print(f"all clips of length {fixed:2d}: {len(kept) / 1500:4.0%} of the clips are kept, and "
          f"{fixed * len(kept) / frames_in_all:4.0%} of all frames")

# %% [markdown]
# However you choose, more than a third of the frames is lost, and photographs are a second mode of training, with
# another number of tokens. The paper names both as reasons for packing.
#
# Three ways keep everything. **Padding**: a batch is as long as its longest clip, and the rest is filled up.
# **Buckets**: a batch has clips of one size. **Packs**: a sequence is filled with whole clips, whatever they are.
#
# The clips of real data do not wait in a list; they come in an endless line. So whoever packs them sees only the first
# few. (In notebook 01 you packed a collection that lay before you.)
#
# ### Exercise 11.4: pack_line (difficulty 3 of 3, 25 minutes)
#
# Clips stand in line, numbered from 0. You see the first `ahead` of those that still wait; when one is taken, the next
# comes into sight. Every clip is packed whole and once. Each pack begins with the first of the line, so that
# nobody waits for ever, and is filled with whatever in sight still fits.

# %%
def pack_line(tokens, room, ahead):
    """Token counts of clips in line -> packs, lists of clip numbers; a pack holds at most `room` tokens."""
    ### BEGIN SOLUTION
    line = list(range(len(tokens)))
    packs = []
    while line:
        pack, left = [line.pop(0)], room
        left -= tokens[pack[0]]
        while fitting := [i for i in line[:ahead] if tokens[i] <= left]:
            taken = max(fitting, key=lambda i: tokens[i])
            line.remove(taken)
            pack.append(taken)
            left -= tokens[taken]
        packs.append(pack)
    return packs
    ### END SOLUTION


pack_line = check("11.4", pack_line)
ROOM = 1024


def padded(tokens, room):
    """Batches in order of arrival, as many clips as fit when each is as long as the longest."""
    batches = [[]]
    for i in range(len(tokens)):
        if (len(batches[-1]) + 1) * max(tokens[j] for j in [*batches[-1], i]) > room:
            batches.append([])
        batches[-1].append(i)
    return batches


def in_buckets(tokens, sizes, room):
    """Batches of clips of one size, each given out when it is full; what is left over at the end is dropped."""
    batches, buckets = [], {}
    for i, size in enumerate(sizes):
        buckets.setdefault(size, []).append(i)
        if (len(buckets[size]) + 1) * tokens[i] > room:
            batches.append(buckets.pop(size))
    return batches


ways = {"padding": padded(tokens, ROOM), "buckets": in_buckets(tokens, films, ROOM),
        "packs": pack_line(tokens, ROOM, 64)}
figure, axes = new_figure(1, 3, width=9, height=2.8)
kinds = ["photograph" if size[0] == 1 else "film, up to 4 s" if size[0] <= 33 else "longer film" for size in films]
colour_of = dict(zip(dict.fromkeys(sorted(kinds)), COLOURS))
share = {}
for axis, (name, batches) in zip(axes[0], ways.items()):
    share[name] = sum(tokens[i] for batch in batches for i in batch) / (ROOM * len(batches))
    for row, batch in enumerate(batches[20:32]):
        left, slot = 0, max(tokens[i] for i in batch) if name == "padding" else 0
        for i in batch:
            axis.barh(row, max(slot, tokens[i]), left=left, color="#dddddd", edgecolor="white", linewidth=0.5)
            axis.barh(row, tokens[i], left=left, color=colour_of[kinds[i]], edgecolor="white", linewidth=0.5)
            left += max(slot, tokens[i])
    axis.axvline(ROOM, color="black", linewidth=1)
    axis.set(xlabel="tokens", yticks=[], xlim=(0, ROOM), title=f"{name}: {share[name]:.0%} useful")
    axis.grid(False)
for kind, colour in {**colour_of, "padding": "#dddddd"}.items():
    axes[0, 0].barh(0, 0, color=colour, label=kind)
figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8)
show_figure(figure, "Twelve sequences from each way, as bars of clips. With padding, grey behind every shorter clip; "
                    "with buckets, clips of one size in a row; with packs, mixed clips and hardly a gap.")
for name, batches in ways.items():
    print(f"{name}: {len(batches)} sequences of {ROOM:,} tokens, {share[name]:.1%} useful")
assert share["padding"] < share["buckets"] < share["packs"]

# %% [markdown]
# Full sequences look like speed. Are they? We time training steps of the toy, forward and back, for a few sequences of
# each way, and count useful tokens per second.

# %% tags=["nbval-ignore-output"]
def training_step(way, batch):
    """Seconds of a forward and backward pass of the toy for these clips."""
    sizes = [vae.latent_size(*films[i]) for i in batch]
    if way == "padding":
        sizes = [max(sizes, key=config.num_patches)] * len(batch)  # the work of a padded batch, without its mask
    latents = [torch.randn(16, *size, generator=torch.Generator().manual_seed(i)).to(device)
               for i, size in zip(batch, sizes)]
    text, t = torch.zeros(len(batch), 32, 128, device=device), torch.full((len(batch),), 500, device=device)
    begin = time.perf_counter()
    with torch.enable_grad():
        if way == "packs":
            losses = packed_diffusion_loss(pipe.transformer, pipe.schedule, latents, list(text), t, latents)
        else:
            clips = torch.stack(latents)
            losses = diffusion_loss(pipe.transformer(clips, t, text), clips, clips, t, pipe.schedule)
        gradients(losses)
    return time.perf_counter() - begin


timed = {name: batches[30:78:12] for name, batches in ways.items()}  # four sequences of each
for name in ways:
    training_step(name, timed[name][0])  # warms up
seconds = dict.fromkeys(ways, 0.0)
for place in range(4):  # the ways take turns, so that a busy moment hurts all of them alike
    for name in ways:
        seconds[name] += training_step(name, timed[name][place])
rate = {name: sum(tokens[i] for batch in timed[name] for i in batch) / seconds[name] for name in ways}
for name in ways:
    print(f"{name:8s} {rate[name]:6.0f} useful tokens a second, {rate[name] / rate['packs']:.2f} times those of packs")

# %% [markdown]
# Full is not the same as fast. Padding computes on nothing, and is the slowest here. But a bucket is one large, regular
# computation, while a pack cuts its row into many small attentions: on CPUs we have measured buckets 1.1 to 1.4 times
# as fast as packs (`python -m benchmarks.packing` takes more care). On a GPU, one kernel can attend to the whole pack;
# we have not measured that. Packs have another advantage: in a bucket's step all clips have one size, and a rare size
# waits long for company.
#
# Two numbers to try: how many clips wait, and how much room a sequence has.

# %%
explore_packs(tokens, [640, 1024, 2048, 4096], kinds)
fill = {ahead: filled(list(frame_packs(tokens, ROOM, seed=0, look_ahead=ahead))) for ahead in (1, 64)}
print(f"packs of {ROOM:,} tokens are {fill[1]:.1%} full if nobody waits, {fill[64]:.1%} if 64 do")
assert fill[1] + 0.02 < fill[64]
show_source(packs_in_order)

# %% [markdown]
# A few dozen waiting clips are enough. With more room a pack has more clips, and the gap at its end matters less. The
# package takes clips in order of arrival until one does not fit, and only then looks for the best fit: so packs have
# nearly the mixture of the data.
#
# ## 6. What a photograph weighs
#
# A training step adds up what its clips say. If the loss is the mean over *all numbers* of the pack, a film of 21
# latent frames speaks 21 times as loudly as a photograph. If each pack takes the mean over *its* clips, a clip with few
# others in its pack counts for more. So the packing would decide what is learned.
#
# ### Exercise 11.5: pack_loss (difficulty 2 of 3, 10 minutes)
#
# A step has several packs. Each clip must count the same: whatever its size, its pack, and the number of clips that
# happen to be in this step. `usual` is the number of clips in an average step.

# %%
def pack_loss(packs, usual):
    """Packs, lists of the squared errors of each clip, c t h w -> the loss of the step, one number."""
    ### BEGIN SOLUTION
    return torch.stack([errors.mean() for pack in packs for errors in pack]).sum() / usual
    ### END SOLUTION


pack_loss = check("11.5", pack_loss)

# %% [markdown]
# How much does the weighting matter? The losses tell little; what changes the network is their gradient. Clips may
# also pull in different directions, and then only what lies along the whole gradient counts.
#
# ### Exercise 11.6: gradient_share (difficulty 3 of 3, 20 minutes)
#
# Find out which share of the gradient of `losses.sum()` comes from the chosen clips: project their gradient on the
# whole one, and divide by the whole one's squared length. (So the shares of photographs and films add up to 1.)

# %%
def gradient_share(losses, parameters, chosen):
    """Losses, one a clip, with their graph; a list of parameters; chosen clips, boolean -> a number, 1 for all."""
    ### BEGIN SOLUTION
    whole, part = (torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)])
                   for loss in (losses.sum(), losses[chosen].sum()))
    return (part @ whole / (whole @ whole)).item()
    ### END SOLUTION


gradient_share = check("11.6", gradient_share)

# %% [markdown]
# We take 10 photographs and 10 films of five latent frames. So photographs are half of the clips, and a sixth of the
# numbers.
#
# **Prediction 11.4.** Each clip counts the same: which share of the toy's gradient comes from the photographs?

# %%
predict("11.4", "less than 40 %", "40 to 60 %", "more than 60 %")

# %% tags=["folded", "nbval-ignore-output"]
twenty = sample_scenes(20, seed=5, two_objects=0.0)
is_photo = (torch.arange(20) < 10).to(device)
clean_20 = [encoded(render(one, 1 if photo else 17, 64, 64)) for one, photo in zip(twenty, is_photo)]
texts_20 = list(pipe.text.encode([captions.evaluation_caption(one, random.Random(0)) for one in twenty]))
times_20 = (torch.arange(20, device=device) % 10) * 100 + 50  # the same timesteps for photographs and films
numbers = torch.tensor([clip.numel() for clip in clean_20], device=device)
weights = {"each clip counts the same": torch.ones(20, device=device), "each number counts the same": numbers / 1000}
shares = {name: [] for name in weights}
for seed in range(4):
    noises_20 = [draw_noise((1, *clip.shape), torch.Generator().manual_seed(20 * seed + i), device=device)[0]
                 for i, clip in enumerate(clean_20)]
    with torch.enable_grad():
        losses = packed_diffusion_loss(pipe.transformer, pipe.schedule, clean_20, texts_20, times_20, noises_20)
        for name, weight in weights.items():
            shares[name].append(gradient_share(losses * weight, list(pipe.transformer.parameters()), is_photo))
print(f"photographs have {numbers[:10].sum() / numbers.sum():.0%} of the numbers; mean loss of photographs "
      f"{losses[:10].mean():.3f}, of films {losses[10:].mean():.3f}")
for name, values in shares.items():
    mean, low, high = mean_interval(values)
    print(f"{name}: {mean:.0%} of the gradient comes from the photographs (95 % interval {low:.0%} to {high:.0%}, four "
          f"draws of the noise)")
by_clip, by_number = (sum(values) / 4 for values in shares.values())
assert by_clip > by_number + 0.1
outcome("11.4", "less than 40 %" if by_clip < 0.4 else "40 to 60 %" if by_clip <= 0.6 else "more than 60 %")

# %% [markdown]
# The weighting decides how loudly photographs speak. And if each clip counts the same, they get far more than one half,
# which is their share of the clips. Two reasons may be at work: a mean over 16 patches fluctuates more than one over
# 80, so the gradient of a photograph is longer; and this toy last trained on films alone, so photographs still have
# something to teach it. To count each clip once is a choice about the *data*. What the network makes of it must be
# measured.
#
# ## 7. At full size
#
# The paper's table of training stages has a *sequence length* of 25k, then 75k, then 700k tokens, several
# times that of one clip. We take it to be that of a pack. How many of the longest clips fit? And one pack of the
# second stage, through the 5B on the **meta device**: shapes without memory.

# %%
five = preset("5b")


def tokens_at_full_size(size):
    """Words and patches of a clip of (frames, height, width) in pixels, in the 5B."""
    return 226 + five.transformer.num_patches(five.vae.latent_size(*size))


for room, size in ((25_000, (49, 256, 384)), (75_000, (49, 480, 720)), (700_000, (81, 768, 1360))):
    length, photograph = tokens_at_full_size(size), tokens_at_full_size((1, *size[1:]))
    print(f"{room:,} tokens: clips of {size[0]} x {size[1]} x {size[2]} have {length:,}, so {room / length:.1f} fit; "
          f"photographs of that size have {photograph:,}, so {room // photograph} fit")

sizes = [(49, 480, 720)] * 2 + [(33, 448, 784), (17, 720, 480), (1, 480, 720), (49, 256, 384), (1, 592, 592)]
with torch.device("meta"):
    giant = ExpertTransformer(five.transformer)
    latents = [torch.empty(16, *five.vae.latent_size(*size)) for size in sizes]
    answers = forward_clips(giant, latents, torch.zeros(len(sizes)), [torch.empty(226, 4096) for _ in sizes])
assert [answer.shape for answer in answers] == [latent.shape for latent in latents]
counts = torch.tensor([tokens_at_full_size(size) for size in sizes])
n, pairs, d = int(counts.sum()), int(counts.square().sum()), five.transformer.width
print(f"one pack: {len(sizes)} clips of {', '.join(f'{count:,}' for count in counts)} tokens, together {n:,}")
print(f"allowed: {pairs / n ** 2:.0%} of {n * n:,} pairs; a mask of all, at a byte each: {n * n / 1e9:.1f} GB")
print(f"attention's share of a block's work: {pairs / (pairs + 6 * d * n):.0%} within clips; {n / (n + 6 * d):.0%} if "
      f"all pairs were computed")

# %% [markdown]
# Within clips, attention is less than half of the work of a block. With a mask over all pairs it would be most of it,
# for answers that are thrown away.
#
# ## What you can now explain
#
# Answer first, then open.
#
# <details><summary>1. What keeps two films in one sequence apart?</summary>
#
# The mask of attention, and nothing else. Linear layers and norms treat each token by itself.
# </details>
#
# <details><summary>2. What do fixed lengths, padding, buckets and packs each cost?</summary>
#
# A fixed length loses the short clips and the ends of the long ones. Padding keeps them and computes on nothing.
# Buckets compute on clips alone, but a step sees one size, and there must be enough clips of each. Packs are nearly
# full, with nearly the mixture of the data; they need a mask, positions and a loss of their own.
# </details>
#
# <details><summary>3. Why must the loss not be a mean over all numbers of a pack?</summary>
#
# A film of 21 latent frames would count 21 times as much as a photograph of its size, and what is learned would depend
# on lengths and on the packing. Each clip's own mean, over the same number in every step, leaves the mixture as it is.
# </details>
#
# **What the paper found.** We know of no numbers for frame pack. It gives reasons: with a fixed length, training falls
# into two modes, images and videos, with very different numbers of tokens; short clips are discarded and long ones
# cut. It takes the idea from Patch n' Pack and finds it simpler than buckets.
#
# **Where to read on.** `minicogvx/transformer/packed.py` and `layout.py` for the row, `data/clips/packs.py` for the
# packing, `training/packed.py` for the loss. [Patch n' Pack](https://arxiv.org/abs/2307.06304) (NaViT) packed images
# first. Next: [notebook 12](12_uniform_sampling.ipynb).

# %% tags=["nbval-ignore-output"]
predictions("11")
progress()
