# %% [markdown]
# # Text and guidance
#
# **How do a few words steer the noise, and why must their effect be exaggerated?**
#
# Three clips from the same noise. Guidance 0 ignores the caption. Guidance 1 is the network's plain answer to it.
# Guidance 6 multiplies the change that the caption makes by six.

# %%
import math
import random
from collections import Counter

import torch
import torch.nn.functional as F
from einops import rearrange
from tokenizers import Tokenizer, models, pre_tokenizers

import minicogvx
from minicogvx.course import (
    check, compare_clips, explore_sweep, hint, new_figure, notebook_device, outcome, predict, predictions, progress,
    show_figure, show_source, solution, solved,
)
from minicogvx.data.world import captions, oracle
from minicogvx.data.world.drawing import render_batch
from minicogvx.data.world.scenes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, sample_scenes
from minicogvx.diffusion import diffusion_loss, draw_noise, dynamic_guidance_scale, guide
from minicogvx.diffusion.sampling import sample_loop
from minicogvx.evaluation.intervals import mean_interval, paired_difference, wilson
from minicogvx.presets import preset
from minicogvx.text import TextEncoder
from minicogvx.training.batches import caption_with_dropout
from minicogvx.transformer.model import ExpertTransformer, flops

torch.set_grad_enabled(False)  # nothing is trained in this notebook
device = notebook_device()  # the processor, unless MINICOGVX_DEVICE names another device
pipe = minicogvx.load("toy", device, torch.float32)

# %% tags=["nbval-ignore-output"]
PROMPT = "an orange star moves right on a grey background"
start = draw_noise((1, 16, 5, 8, 8), torch.Generator().manual_seed(2), device=device)
made = {scale: pipe.decode(pipe.sample([PROMPT], num_inference_steps=10, guidance_scale=scale, latents=start))[0]
        for scale in (0.0, 1.0, 6.0)}
compare_clips({f"guidance {scale:g}": clip for scale, clip in made.items()},
              f"Three clips from the same noise for the caption: {PROMPT}. With guidance 0 the clip shows something "
              "else; with 1 and 6 it shows what was asked.", pipe.fps)

# %% [markdown]
# A text encoder, **T5**, turns words into **features** for the transformer, and **guidance** amplifies their effect.
#
# You will prepare text for T5, build its sense of word order, write guidance, and measure what it costs. Afterwards you
# can explain what the text features know, why one caption in ten is thrown away in training, why a guidance scale of 6
# can help, and what it spoils. It takes about 95 minutes. The [paper](https://arxiv.org/abs/2408.06072) names the parts
# in section 2.2; the box of [notebook 01](01_video_tensors.ipynb) explains the letters in shapes.
#
# ## 1. Tokens
#
# The toy knows 75 whole words. The published models read any English text. A list of all words would never end; a list
# of letters would make captions long. Between the two lie **pieces** of words.
#
# T5 gives each piece a score, the logarithm of how likely it is, and cuts a word so that the sum of the scores is as
# large as possible (**Unigram**). Here our captions give pieces and scores in the simplest way: every part of every
# word, scored by how often it occurs. The mark `▁` stands for the beginning of a word.

# %%
scenes = sample_scenes(400, seed=1, two_objects=0.0)
words = Counter(word for i, scene in enumerate(scenes) for word in captions.caption(scene, random.Random(i)).split())
parts = Counter()
for word, count in words.items():
    marked = "▁" + word
    for i in range(len(marked)):
        for j in range(i + 1, len(marked) + 1):
            parts[marked[i:j]] += count
score = {part: math.log(count / parts.total()) for part, count in parts.items()}


def cut(word):
    """The pieces of a word with the largest sum of scores: the best path, letter by letter."""
    marked = "▁" + word
    best = [(0.0, [])]  # sum and pieces of the first 0, 1, 2 .. letters
    for j in range(1, len(marked) + 1):
        best.append(max((best[i][0] + score[marked[i:j]], [*best[i][1], marked[i:j]])
                        for i in range(j) if marked[i:j] in score))
    return best[-1][1]


strange = "a red dragon moves right"
pieces = [piece for word in strange.split() for piece in cut(word)]
print("pieces:", " ".join(pieces))
library = Tokenizer(models.Unigram([("<unk>", -100.0), *score.items()], unk_id=0))
library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
theirs = library.encode(" ".join("▁" + word for word in strange.split())).tokens
print("the library tokenizers:", " ".join(theirs))
assert pieces == theirs
print("the toy's words:", pipe.text.tokens([strange])[0, :6].tolist(), "- unknown:", pipe.text.unknown_words(strange))

# %% [markdown]
# *dragon* never occurs in our captions. It falls into pieces, but nothing is lost. The toy's list turns it into number
# 2, `<unk>`, like every unknown word, and training never showed token 2. (T5's table has 32,128 rows, for pieces from a
# large collection of text.)
#
# A batch needs rows of equal length. T5 ends each text with `</s>`, number 1, and pads it with number 0. The
# published length is 226.
#
# ### Exercise 5.1: pad_and_mask (difficulty 1 of 3, 10 minutes)
#
# From rows of token ids, of any length and still without `</s>`, make the ids `b n` and a mask that is true where a
# token is not padding. A row that is too long loses its last words, but not its `</s>`. (`hint("5.1")` gives one more
# hint each time, `solution("5.1")` a solution.)

# %%
def pad_and_mask(rows, length):
    """Lists of ids -> ids, b n (int64), and mask, b n (bool)."""
    ### BEGIN SOLUTION
    ended = [[*row[:length - 1], 1] for row in rows]
    ids = torch.tensor([row + [0] * (length - len(row)) for row in ended])
    lengths = torch.tensor([len(row) for row in ended])
    return ids, torch.arange(length) < lengths[:, None]
    ### END SOLUTION


pad_and_mask = check("5.1", pad_and_mask)

# %% [markdown]
# CogVideoX throws this mask away and lets padding take part in every attention, in T5 and in the transformer. Does it
# matter?

# %% tags=["nbval-ignore-output"]
number_of = pipe.text.tokenizer.get_vocab()
ids, mask = pad_and_mask([[number_of[word] for word in PROMPT.split()]], pipe.text.max_length)
assert torch.equal(ids, pipe.text.tokens([PROMPT]))
print(f"{int(mask.sum())} tokens of text, {int((~mask).sum())} of padding")

ids, mask = ids.to(device), mask.to(device)
plain = pipe.text.encoder(ids).last_hidden_state[0]
masked = pipe.text.encoder(ids, attention_mask=mask.long()).last_hidden_state[0]
assert torch.equal(plain, pipe.text.encode([PROMPT])[0])  # the package runs without the mask
moved = (plain - masked).norm(dim=1) / plain.norm(dim=1)
at_700 = torch.tensor([700], device=device)
answer, short = (pipe.transformer(start, at_700, rows[None]) for rows in (plain, plain[mask[0]]))
print(f"with the mask, the features of a word change by {moved[mask[0]].median():.0%} (median)")
print(f"without the rows of padding, the transformer's answer changes by {(answer - short).norm() / answer.norm():.0%}")

# %% [markdown]
# The padding is not empty space: words and video attend to it. A model trained without the mask must be used without
# it, and padded to the same length.
#
# ## 2. T5
#
# Every token picks a row of a table. Then the rows must look at each other: *red* belongs to *circle*. Attention does
# that: in each of several **heads**, every token's **query** gets a score with every token's **key** (notebook 08). But
# to attention alone a text is a bag of words, without order.
#
# T5 gives no token a position. Its attention looks at how far apart each *pair* of tokens is. The distance, key minus
# query, falls into one of 32 **buckets**, and every head adds a learned number for this bucket to the pair's score.
# The rule:
#
# - Buckets 0 to 15 are for keys before the query and for its own key, 16 to 31 for keys after it.
# - Within each half, distances 0 to 7 have a bucket each.
# - Eight more buckets share distances from 8 on, evenly in the logarithm up to 128:
#   $8 + \lfloor 8 \log(d/8) / \log(128/8) \rfloor$, and 15 at most.
#
# ### Exercise 5.2: position_buckets (difficulty 2 of 3, 15 minutes)
#
# Return the bucket of every pair, for a text of $n$ tokens. Row $i$ is query $i$, column $j$ is key $j$.

# %%
def position_buckets(length):
    """n -> buckets, n n (int64), each 0..31."""
    ### BEGIN SOLUTION
    ahead = torch.arange(length)[None] - torch.arange(length)[:, None]
    distance = ahead.abs()
    far = 8 + (torch.log(distance.clamp(min=8) / 8) / math.log(16) * 8).long()
    return (ahead > 0).long() * 16 + torch.where(distance < 8, distance, far.clamp(max=15))
    ### END SOLUTION


position_buckets = check("5.2", position_buckets)

# %%
from transformers.models.t5.modeling_t5 import T5Attention

apart = torch.arange(226) - torch.arange(226)[:, None]
differ = (T5Attention._relative_position_bucket(apart) != position_buckets(226)).sum()
whose = "your buckets" if solved("5.2") else "the package's buckets (yours are still to come)"
print(f"{whose} differ from those of transformers in {differ} of {226 * 226:,} pairs")

table = pipe.text.encoder.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight  # buckets heads
figure, (axes,) = new_figure(1, 2, width=8.5, height=2.6)
axes[0].plot(range(-112, 113), position_buckets(226)[112, :225], ".", markersize=3)
axes[0].set(xlabel="key minus query", ylabel="bucket", title="published length")
for head, style in zip(table.T.cpu(), ("-", "--", ":", "-.")):
    axes[1].plot(range(-12, 13), head[position_buckets(25)[12]], style)
axes[1].set(xlabel="key minus query", ylabel="added to the score", title="the toy's four heads")
show_figure(figure, "Left: the bucket over the distance; near distances have one each, far ones share. Right: what "
                    "each of the toy's four heads adds to its scores, over the distance.")

# %% [markdown]
# Now the whole encoder: one caption, one head after the other. Unlike in most transformers, the scores are not divided
# by $\sqrt{d}$, and the norm only divides by the root mean square.

# %% tags=["nbval-ignore-output"]
def rms(x, weight):
    return x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * weight


def plain_t5(net, ids, seen=None):
    """Features, n d, of one caption's ids, n. `seen` collects, for each head, the spread of its scores over that of
    the bias that is added to them."""
    bias = table[position_buckets(len(ids))]  # n n heads: the same in all blocks
    x = net.shared.weight[ids]
    for block in net.encoder.block:
        look, think = block.layer
        part, y = look.SelfAttention, rms(x, look.layer_norm.weight)
        q, k, v = (rearrange(y @ matrix.weight.T, "n (heads d) -> heads n d", heads=part.n_heads)
                   for matrix in (part.q, part.k, part.v))
        heads = []
        for i in range(part.n_heads):
            scores = q[i] @ k[i].T
            heads.append((scores + bias[:, :, i]).softmax(dim=1) @ v[i])
            if seen is not None:
                seen.append(float(scores.std() / bias[:, :, i].std()))
        x = x + torch.cat(heads, dim=1) @ part.o.weight.T
        part, y = think.DenseReluDense, rms(x, think.layer_norm.weight)
        opened = F.gelu(y @ part.wi_0.weight.T, approximate="tanh") * (y @ part.wi_1.weight.T)
        x = x + opened @ part.wo.weight.T
    return rms(x, net.encoder.final_layer_norm.weight)


mine, package = plain_t5(pipe.text.encoder, ids[0]), pipe.text.encode([PROMPT])[0]
print(f"largest difference from the package's features: {(mine - package).abs().max():.0e}")
assert torch.allclose(mine, package, atol=1e-4)
show_source(TextEncoder.encode)

# %% [markdown]
# The video transformer does not care in which order the rows of text arrive: its rotary positions turn
# video tokens only, in the 5B as in the toy. (The 2B adds positions to its video tokens, and zero to the text.) So
# the order of the words reaches the video through T5's buckets or not at all.
#
# **Prediction 5.1.** *A red circle moves left and a blue star moves right*; *a blue circle … and a red star …*:
# what does the toy make of these two captions, from the same noise?

# %%
predict("5.1", "what was asked, both times", "the same clip twice", "two clips, but not as asked")

# %% tags=["folded", "nbval-ignore-output"]
pair = ["a red circle moves left and a blue star moves right", "a blue circle moves left and a red star moves right"]
torch.manual_seed(0)
fresh = TextEncoder.from_config(preset("toy").text, captions.vocabulary(), 32).to(device)
encoded = {"table": pipe.text.encoder.shared(pipe.text.tokens(pair).to(device)), "fresh T5": fresh.encode(pair),
           "toy's T5": pipe.text.encode(pair)}  # each b n d_text
for name, features in encoded.items():
    red, other = features[0, 1], features[1, 7]  # red stands second, then eighth
    print(f"{name}: from one caption to the other, red changes by {(red - other).norm() / red.norm():.2%}")

shuffled = encoded["toy's T5"][:1, torch.randperm(32, generator=torch.Generator().manual_seed(0))]
answers = [pipe.transformer(start, at_700, features) for features in (encoded["toy's T5"][:1], shuffled)]
print(f"shuffled features change the transformer's answer by {(answers[0] - answers[1]).abs().max():.1e} at most")
assert torch.allclose(*answers, atol=1e-3)
seen = []
plain_t5(pipe.text.encoder, pipe.text.tokens(pair)[0].to(device), seen)
print(f"in the toy's T5, scores spread {min(seen):.0f} to {max(seen):.0f} times as much as what its buckets add")

both = start.repeat(2, 1, 1, 1, 1)
swapped = pipe.decode(pipe.sample(pair, num_inference_steps=10, guidance_scale=3.0, latents=both))
apart = (swapped[0] - swapped[1]).abs().max().item()
obeyed = [oracle.matches(oracle.read(clip), captions.parse_caption(words))["all"] for clip, words in zip(swapped, pair)]
print(f"the two clips differ by at most {apart:.2f} (black and white: 1); as asked: {sum(obeyed)} of 2")
outcome("5.1", "what was asked, both times" if all(obeyed) else "the same clip twice" if apart < 0.05 else
        "two clips, but not as asked")
compare_clips({"red circle, blue star": swapped[0], "blue circle, red star": swapped[1]},
              "Two clips from the same noise, for the two captions.", pipe.fps)

# %% [markdown]
# An untrained T5 does register the order, faintly. What becomes of that depends on what training asks for. In clips
# with one object a bag of words is enough: *red* must be the object's colour, since no background is red, and *navy*
# the background's. Then the scores may grow until the buckets no longer matter (see the line on scores), and the
# encoder cannot tell the two captions apart. Only clips with two objects need the order. T5 at full size learned it
# from text alone, and CogVideoX uses that T5 unchanged.
#
# ## 3. What an embedding knows
#
# Which token carries the colour? A **linear probe** can tell: from the 128 numbers of one token, predict the
# colour with a single matrix, fitted on 800 captions and tested on 1,600 others. If one matrix can read it, the
# transformer's matrices can, too.
#
# What can be read from the shape word, before T5 and after it? And from the last padding token?

# %% tags=["nbval-ignore-output"]
COUNT, FITTED = 2400, 800
scenes = sample_scenes(COUNT, seed=5, two_objects=0.0)
things = [scene.objects[0] for scene in scenes]
texts = [f"a {thing.colour} {thing.shape} {thing.motion} on {scene.background}" for thing, scene in zip(things, scenes)]
length = [len(text.split()) for text in texts]
where = {"a": [0] * COUNT, "colour word": [1] * COUNT, "shape word": [2] * COUNT, "verb": [3] * COUNT,
         "background word": [n - 1 for n in length], "end": length, "last padding": [31] * COUNT}
questions = {"colour": [list(COLOURS).index(thing.colour) for thing in things],
             "shape": [SHAPES.index(thing.shape) for thing in things],
             "motion": [MOTIONS.index(thing.motion) for thing in things],
             "background": [list(BACKGROUNDS).index(scene.background) for scene in scenes]}


def readable(x, answers):
    """Share of the held-out answers that a matrix, fitted on the first ones, reads correctly from x, n d."""
    x, answers = torch.cat([x, torch.ones(len(x), 1)], dim=1), torch.tensor(answers)
    gram = x[:FITTED].T @ x[:FITTED] + 0.1 * torch.eye(x.shape[1])
    matrix = torch.linalg.solve(gram, x[:FITTED].T @ F.one_hot(answers[:FITTED]).float())
    return ((x[FITTED:] @ matrix).argmax(dim=1) == answers[FITTED:]).float().mean().item()


tokens = pipe.text.tokens(texts)
stages = {"before T5": pipe.text.encoder.shared(tokens.to(device)).cpu(), "after T5": pipe.text.encode(texts).cpu()}
guessing = [torch.tensor(answers[FITTED:]).bincount().max().item() / (COUNT - FITTED) for answers in questions.values()]
figure, (axes,) = new_figure(1, 2, width=8.5, height=3.5)
grids = {}
for axis, (stage, values) in zip(axes, stages.items()):
    grid = torch.tensor([[readable(values[torch.arange(COUNT), torch.tensor(places)], answers)
                          for answers in questions.values()] for places in where.values()] + [guessing])
    grids[stage] = grid
    axis.imshow(grid, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axis.grid(False)
    axis.axhline(len(where) - 0.5, color="black", linewidth=1)
    axis.set(title=stage, xticks=range(4), yticks=range(len(grid)))
    axis.set_xticklabels(questions)
    axis.set_yticklabels([*where, "always the same answer"] if axis is axes[0] else [])
    for row, values_of_row in enumerate(grid.tolist()):
        for column, value in enumerate(values_of_row):
            axis.text(column, row, f"{100 * value:.0f}", ha="center", va="center",
                      color="white" if value > 0.6 else "black")

before, after = (grids[stage][:-1].mean().item() for stage in stages)
print(f"mean over all tokens and questions: {before:.0%} before T5, {after:.0%} after it")
assert after > before + 0.1 and (grids["after T5"][-2] - grids["after T5"][-1]).mean() > 0.1
show_figure(figure, "Per cent read correctly, one row per token, one column per question; below the line, the score of "
                    "the most frequent answer. Before T5 each word knows itself. After T5 every token knows more.")

# %% [markdown]
# Before T5 a word knows only itself. After it, each token knows something of the others, so the same word has
# different features in another context. Even the last padding token beats guessing.
#
# ## 4. Dropping the text
#
# Guidance will need a second answer from the same network: what it would do without a caption. So in training, one
# caption in ten is thrown away, drawn anew at each step.
#
# ### Exercise 5.3: drop_captions (difficulty 1 of 3, 10 minutes)
#
# Replace each caption's features as a whole by `null`, with probability $p$, drawn with the generator.

# %%
def drop_captions(features, null, p, generator):
    """features, b n d, and null, n d -> b n d."""
    ### BEGIN SOLUTION
    gone = torch.rand(len(features), 1, 1, generator=generator) < p
    return torch.where(gone, null, features)
    ### END SOLUTION


drop_captions = check("5.3", drop_captions)

# %%
show_source(caption_with_dropout)
nothing = pipe.text.encode([""])  # 1 n d_text
print("tokens of the empty caption:", pipe.text.tokens([""])[0, :4].tolist(), "...")
print(f"its features are not zero: their root mean square is {nothing.square().mean().sqrt():.1f}")

# %% [markdown]
# Our "nothing" is the empty caption after T5: one `</s>` and 31 tokens of padding. The authors' own program sets all
# features to **zero** in training and in sampling (`zero_text` here). `diffusers` samples the same weights with the
# empty caption, though in training "nothing" was something else. Below we make the opposite exchange: the toy was
# trained with the empty caption and gets zeros.
#
# Twelve clips are noised, and the toy is asked for $v$ with four kinds of text: the right caption, the empty one,
# another clip's, and zeros. At which timesteps does the text help most?

# %% tags=["nbval-ignore-output"]
twelve = sample_scenes(12, seed=4, two_objects=0.0)
asked = [captions.evaluation_caption(scene, random.Random(i)) for i, scene in enumerate(twelve)]
pixels = rearrange(render_batch(twelve, 17, 64, 64) * 2 - 1, "b t h w c -> b c t h w")
clean = pipe.vae.encode(pixels.to(device)).mode() * pipe.vae.config.scaling_factor
right = pipe.text.encode(asked)
kinds = {"right": right, "empty": nothing.expand_as(right), "another clip's": right.roll(1, dims=0),
         "zeros": torch.zeros_like(right)}
grid, generator = (50, 200, 400, 600, 800, 999), torch.Generator().manual_seed(4)
losses = {kind: [] for kind in kinds}
for t in grid:
    noise = draw_noise(tuple(clean.shape), generator, device=device)
    ts = torch.full((12,), t, device=device)
    noisy = pipe.schedule.add_noise(clean, noise, ts)
    for kind, text in kinds.items():
        answer = pipe.transformer(noisy, ts, text)
        losses[kind].append(diffusion_loss(answer, clean, noise, ts, pipe.schedule).mean().item())
for place in (0, -1):
    print(f"loss at {grid[place]}:", ", ".join(f"{kind} {curve[place]:.3f}" for kind, curve in losses.items()))
assert losses["right"][-1] < losses["empty"][-1] < losses["another clip's"][-1]
assert sum(losses["zeros"]) > sum(losses["empty"])
figure, ((axis,),) = new_figure(width=6.5, height=2.8)
for (kind, curve), style in zip(losses.items(), ("o-", "s--", "^:", "d-.")):
    axis.plot(grid, curve, style, label=kind)
axis.set(xlabel="timestep t", ylabel="loss of v", ylim=(0, None))
axis.legend(fontsize=8)
show_figure(figure, "The toy's loss over the timestep with four kinds of text. At small timesteps, right and empty are "
                    "nearly alike. At large ones they part, and another clip's caption is worst.")

# %% [markdown]
# On the right of the figure, the caption is all there is to go by. On the left the video shows through the noise, and
# the caption adds little. Zeros are not "nothing" to the toy: they cost more than the empty caption.
#
# ## 5. Guidance
#
# Let $p(x)$ be the distribution of all videos and $p(x \mid c)$ that of videos with the caption $c$. By Bayes' rule,
# what the caption adds is a classifier, $p(c \mid x) \propto p(x \mid c) / p(x)$. **Guidance** asks for videos that
# fit better than most: it raises the classifier to the power of $w$.
#
# $$p_w(x) \propto p(x)\,p(c \mid x)^w \propto p(x)^{1-w}\,p(x \mid c)^w.$$
#
# A diffusion network's guess of the noise is, up to a factor, minus the slope of $\log p$ at the noisy $x$. Slopes of
# logarithms add:
#
# $$\nabla \log p_w = \nabla \log p(x) + w\,\bigl(\nabla \log p(x \mid c) - \nabla \log p(x)\bigr).$$
#
# So no classifier has to be trained. Two answers of one network are enough: **classifier-free guidance**. At
# $w = 0$ the caption is ignored, $w = 1$ is the plain answer, and above 1 we extrapolate. Slope, noise, clean video
# and $v$ are linear functions of each other at a given $x$, so it does not matter which of them is guided.
#
# ### Exercise 5.4: guided_velocity (difficulty 2 of 3, 15 minutes)
#
# Both questions go to the network in one batch, `null` first, as published. The network may answer in bfloat16; the
# difference of two nearly equal numbers must be taken in float32. And at scale 1, half of the work is unnecessary.

# %%
def guided_velocity(network, x, t, text, null, scale):
    """x, b c t h w; t, b; text and null, b n d -> the guided v, b c t h w, in float32. network(x, t, text) is v."""
    ### BEGIN SOLUTION
    if scale == 1:
        return network(x, t, text).float()
    answers = network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([null, text])).float()
    uncond, cond = answers.chunk(2)
    return uncond + scale * (cond - uncond)
    ### END SOLUTION


guided_velocity = check("5.4", guided_velocity)

# %% [markdown]
# What does that do to the samples as a whole? Take a world of single numbers: four clouds, at -1, -0.2, 0.2 and 1.
# The caption "right" means the two above 0, and the perfect answers are known (notebook 04).
#
# **Prediction 5.2.** Without guidance half of the samples for "right" are in the inner cloud, at 0.2, and by its
# formula $p_6$ still has 30 % there: how many are there with guidance $w = 6$?

# %%
predict("5.2", "half, as without guidance", "about 30 %, as promised", "hardly any")

# %% tags=["folded"]
show_source(guide)
everything, width = torch.tensor([-1.0, -0.2, 0.2, 1.0]).double(), 0.22
everybody, honest = torch.full((4,), 0.25).double(), torch.tensor([0.0, 0.0, 0.5, 0.5]).double()


def best_guess(x, t, shares):
    """The mean clean number behind x, for the four clouds in these shares."""
    bar = pipe.schedule.alpha_bar(t)
    spread = 1 - bar + bar * width ** 2
    likely = torch.softmax(shares.log() - (x[:, None] - bar ** 0.5 * everything) ** 2 / (2 * spread), dim=1)
    near = likely @ everything
    return near + bar ** 0.5 * width ** 2 / spread * (x - bar ** 0.5 * near)


def guided_samples(w, shares=honest, steps=100):
    """4,000 numbers, made with guidance w; what is called "right" comes from the clouds in these shares."""
    x = torch.special.ndtri((torch.arange(4000).double() + 0.5) / 4000)  # a bell curve as equally likely points
    for t in range(999, 0, -1000 // steps):
        bar, bar_next = pipe.schedule.alpha_bar(t), pipe.schedule.alpha_bar(max(t - 1000 // steps, -1))
        x0 = guide(best_guess(x, t, everybody), best_guess(x, t, shares), w)
        noise = (x - bar ** 0.5 * x0) / (1 - bar) ** 0.5
        x = bar_next ** 0.5 * x0 + (1 - bar_next) ** 0.5 * noise
    return x


def density(x, shares):
    return torch.exp(-(x[:, None] - everything) ** 2 / (2 * width ** 2)) @ shares


line = torch.linspace(-2, 3, 400).double()
samples = {w: guided_samples(w) for w in (1.0, 3.0, 6.0)}
figure, (axes,) = new_figure(1, 3, width=9, height=2.6)
for axis, (w, x) in zip(axes, samples.items()):
    promised = density(line, everybody) ** (1 - w) * density(line, honest) ** w
    axis.hist(x, bins=60, range=(-2, 3), density=True, color="#56B4E9", label="samples")
    axis.plot(line, promised / promised.sum() / (line[1] - line[0]), "k-", linewidth=1.2, label="promised")
    axis.set(title=f"w = {w:g}", xlabel="x", xlim=(-1, 2.5))
    inner = (x < 0.6).double().mean().item()
    print(f"w = {w:g}: in the inner cloud {inner:.0%} of the samples, promised "
          f"{promised[line < 0.6].sum() / promised.sum():.0%}; mean {x.mean():.2f}, spread {x.std():.2f}")
axes[0].set(ylabel="density")
axes[0].legend(fontsize=8)
outcome("5.2", "hardly any" if inner < 0.1 else "about 30 %, as promised" if inner < 0.4 else
        "half, as without guidance")
show_figure(figure, "Histograms of 4,000 guided samples and the promised density, for w = 1, 3 and 6. At 1 they agree "
                    "on two clouds. At 3 and 6 the promise keeps two; the samples form one, ever further right.")

# %% [markdown]
# The inner cloud is lost although it fits the caption: it lies a little too near to "left". The rest is narrower than
# the outer cloud, and pushed beyond it. Strong guidance means less variety, and exaggeration.
#
# Why is the promise not kept? The slopes add up to that of $p_w$ only where there is no noise. In noise the clouds
# melt together, and "away from left" sends every sample too far before it can see the inner cloud.
#
# ### Exercise 5.5: find the scale that halves the variety (difficulty 2 of 3, 10 minutes)
#
# Find the $w$, to one decimal, at which `guided_samples(w).std()` is half of what it is at $w = 1$. Try scales in a
# cell of your own.

# %%
def half_variety():
    """The guidance scale that halves the spread of the samples."""
    ### BEGIN SOLUTION
    return 2.7
    ### END SOLUTION


half_variety = check("5.5", half_variety)

# %% [markdown]
# ## 6. Why exaggerate?
#
# Nothing so far speaks *for* guidance: with $w = 1$ the perfect network makes exactly the videos that fit. But it
# learned what fits from its training captions. Now let one caption in five be wrong: of the numbers called "right",
# 20 % come from the left.

# %%
scales = (1.0, 1.5, 2.0, 3.0, 6.0)
figure, (axes,) = new_figure(1, 2, width=8, height=2.6)
for wrong, style in ((0.0, "o-"), (0.2, "s--")):
    made = {w: guided_samples(w, torch.tensor([wrong / 2, wrong / 2, (1 - wrong) / 2, (1 - wrong) / 2]).double())
            for w in scales}
    right_side = [(x > 0).double().mean().item() for x in made.values()]
    spread = [x[x > 0].std().item() for x in made.values()]
    print(f"{wrong:.0%} wrong: above 0", "  ".join(f"w = {w:g}: {share:.0%}" for w, share in zip(scales, right_side)))
    print("  spread of these", "  ".join(f"w = {w:g}: {value:.2f}" for w, value in zip(scales, spread)))
    for axis, values in zip(axes, (right_side, spread)):
        axis.plot(scales, values, style, label=f"{wrong:.0%} of the captions are wrong")
assert right_side[0] < 0.85 and right_side[3] > 0.95 and spread[4] < 0.5 * spread[0]
axes[0].set(xlabel="guidance scale w", ylabel="share above 0", ylim=(0, 1.05))
axes[1].set(xlabel="guidance scale w", ylabel="spread above 0", ylim=(0, None))
axes[0].legend(fontsize=8)
show_figure(figure, "Left: the share of samples above 0. With wrong captions it begins lower, but it rises to 1 in "
                    "both cases. Right: the spread falls with the scale in both cases.")

# %% [markdown]
# A network trained on wrong captions repeats their mistakes; that *is* what it learned. Exaggeration corrects them:
# guidance moves samples away from where the caption is doubtful. Captions of real videos are often doubtful, and a
# small network makes mistakes of its own. The price is variety.
#
# ## 7. What the toy pays
#
# The toy's captions are never wrong; guidance can only correct the network's own mistakes. The toy gets 24 captions,
# with three scales and the same noise, and the oracle of notebook 01 judges. We also measure how well shapes
# **overlap** with ideal ones, and how many colour values lie outside 0..1 and must be cut off.

# %% tags=["nbval-ignore-output"]
scenes = sample_scenes(24, seed=6, two_objects=0.0)
asked = [captions.evaluation_caption(scene, random.Random(i)) for i, scene in enumerate(scenes)]
noises = draw_noise((24, 16, 5, 8, 8), torch.Generator().manual_seed(3), device=device)
obeyed, beyond = {}, {}
for scale in (1.0, 3.0, 9.0):
    latents = pipe.sample(asked, num_inference_steps=6, guidance_scale=scale, latents=noises)
    video = pipe.vae.decode(latents / pipe.vae.config.scaling_factor) / 2 + 0.5
    beyond[scale] = ((video < -0.02) | (video > 1.02)).float().mean(dim=(1, 2, 3, 4)).tolist()  # of each clip
    readings = [oracle.read(clip) for clip in rearrange(video.clamp(0, 1).cpu(), "b c t h w -> b t h w c")]
    obeyed[scale] = [oracle.matches(reading, scene)["all"] for reading, scene in zip(readings, scenes)]
    low, high = wilson(sum(obeyed[scale]) / 24, 24)
    overlap = sum(reading.confidence or 0 for reading in readings) / 24
    print(f"guidance {scale:g}: {sum(obeyed[scale])} of 24 right (95 % interval {low:.0%} to {high:.0%}), overlap "
          f"{overlap:.3f}, cut off {sum(beyond[scale]) / 24:.2%}")
gain, low, high = mean_interval([more - less for more, less in zip(beyond[9.0], beyond[1.0])])
print(f"cut off, from 1 to 9: {100 * gain:+.2f} points, 95 % interval {100 * low:+.2f} to {100 * high:+.2f}")
assert low > 0
gain, low, high = paired_difference(obeyed[3.0], obeyed[1.0])
print(f"from 1 to 3: {gain:+.0%} of the captions, 95 % interval {low:+.0%} to {high:+.0%}")

# %% [markdown]
# If the last interval contains 0, 24 captions cannot tell the scales apart. In these clips, more colour values are cut
# off at 9 than at 1. That is **over-saturation**. ([Lin et al.](https://arxiv.org/abs/2305.08891) scale the guided
# answer back to the conditional one's standard deviation: `guidance_rescale` in `diffusers`.) The published models use
# 6; the toy's default is 3.
#
# And variety? A caption that does not mention background, place or size leaves them open. The variety of backgrounds is
# the **entropy** of the oracle's answers: roughly how many yes-or-no questions it takes to find out which background a
# clip has.
#
# ### Exercise 5.6: variety (difficulty 1 of 3, 10 minutes)
#
# Return the entropy of a list of answers in bits. An answer is `None` where the oracle cannot read the clip.

# %%
def variety(answers):
    """Answers, each a word or None -> their entropy in bits."""
    ### BEGIN SOLUTION
    shares = torch.tensor(list(Counter(answers).values())).double() / len(answers)
    return -(shares * shares.log2()).sum().item()
    ### END SOLUTION


variety = check("5.6", variety)

# %% [markdown]
# **Prediction 5.3.** Sixteen clips of "a red circle moves right" from sixteen noises, with guidance 1 and then with 9:
# what happens to the spread of each pixel across the sixteen first frames?

# %%
predict("5.3", "it falls", "no change that 16 clips can show", "it rises")

# %% tags=["folded", "nbval-ignore-output"]
bare, films, backgrounds = "a red circle moves right", {}, {}
noises = draw_noise((16, 16, 5, 8, 8), torch.Generator().manual_seed(5), device=device)
for scale in (1.0, 3.0, 9.0):
    clips = pipe.decode(pipe.sample([bare] * 16, num_inference_steps=8, guidance_scale=scale, latents=noises))
    readings = [oracle.read(clip) for clip in clips]
    backgrounds[scale] = [reading.background for reading in readings]
    right = sum(oracle.matches(reading, captions.parse_caption(bare))["all"] for reading in readings)
    films[scale] = clips
    print(f"guidance {scale:g}: {right} of 16 right; {variety(backgrounds[scale]):.2f} bits, "
          f"{dict(Counter(backgrounds[scale]))}; first frames spread by {clips[:, 0].std(dim=0).mean():.3f}")


def change(measure):
    """measure(scale, picks) at 9 minus that at 1, and its 95 % interval: a bootstrap with 300 draws of the 16 clips."""
    draws = torch.randint(16, (300, 16), generator=torch.Generator().manual_seed(6))
    found = torch.tensor([measure(9.0, picks) - measure(1.0, picks) for picks in draws])
    everyone = torch.arange(16)
    return measure(9.0, everyone) - measure(1.0, everyone), *found.quantile(torch.tensor([0.025, 0.975])).tolist()


bits = change(lambda scale, picks: variety([backgrounds[scale][i] for i in picks]))
spread = change(lambda scale, picks: films[scale][picks, 0, ::4, ::4].std(dim=0).mean().item())
print("from 1 to 9: bits {:+.2f} (95 % interval {:+.2f} to {:+.2f})".format(*bits), end="; ")
print("spread of first frames {:+.3f} ({:+.3f} to {:+.3f})".format(*spread))
outcome("5.3", "it falls" if spread[2] < 0 else "it rises" if spread[1] > 0 else "no change that 16 clips can show")
framed = {scale: F.pad(clips, (0, 0, 2, 2, 2, 2), value=1.0) for scale, clips in films.items()}
explore_sweep({scale: rearrange(clips, "(r s) t h w c -> t (r h) (s w) c", r=4) for scale, clips in framed.items()},
              "guidance", f"Sixteen clips of '{bare}' at once, from the same sixteen noises, with guidance 1, 3 and 9. "
                          "Do backgrounds, places and sizes become more alike?", num_frames=3)

# %% [markdown]
# Variety is measured twice, by the oracle's words and by the pixels; an interval that contains 0 shows no change. Where
# clips are right with guidance 1 already, variety is given away for nothing.
#
# ## 8. A scale that changes
#
# Must the scale be the same at every step? CogVideoX offers **dynamic guidance**. With $n$ steps,
#
# $$w_i = 1 + w\,\frac{1 - \cos\bigl(\pi\,(\frac{n - \tau}{n})^5\bigr)}{2}.$$
#
# If $\tau$ counts the steps that remain, $(n-\tau)/n$ runs from 0 to almost 1. In the authors' program and in
# `diffusers`, $\tau$ is the *timestep*, 999 down to 19.
#
# **Prediction 5.4.** What does the released scale look like over 50 steps?

# %%
predict("5.4", "it rises smoothly", "it falls smoothly", "it jumps up and down")

# %% tags=["folded"]
n, w, published = 50, 6.0, []
for i in range(n):
    timestep = 999 - 20 * i
    published.append(1 + w * (1 - math.cos(math.pi * ((n - timestep) / n) ** 5)) / 2)
readings = {"as released": [dynamic_guidance_scale(w, i, 999 - 20 * i, n, "published") for i in range(n)],
            "rising": [dynamic_guidance_scale(w, i, 999 - 20 * i, n, "meant") for i in range(n)],
            "falling": [1 + w * (1 - math.cos(math.pi * ((n - i) / n) ** 5)) / 2 for i in range(n)]}
assert torch.allclose(torch.tensor(published), torch.tensor(readings["as released"]))
print("first released scales:", [round(value, 2) for value in published[:8]])
print(f"mean {sum(published) / n:.2f}, least {min(published):.2f}, largest {max(published):.2f}")
print(f"at the first step the cosine sees {math.pi * ((n - 999) / n) ** 5:,.0f} radians")
turns = sum((a - b) * (b - c) < 0 for a, b, c in zip(published, published[1:], published[2:]))
outcome("5.4", "it jumps up and down" if turns > 5 else "it rises smoothly" if published[-1] > published[0] else
        "it falls smoothly")

figure, ((axis,),) = new_figure(width=7, height=2.6)
for (mode, values), style in zip(readings.items(), ("o-", "s--", "^:")):
    axis.plot(range(n), values, style, label=mode, markersize=3, linewidth=1.2)
axis.set(xlabel="step", ylabel="guidance scale")
axis.legend(fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
show_figure(figure, "The scale over 50 steps with w = 6. Rising, it stays near 1, then goes to almost 7; falling, the "
                    "other way round. As released, it jumps between 1 and 7, and stays near 1 in the last four.")
show_source(sample_loop)  # each step has its own scale

# %% [markdown]
# The fraction should lie in 0..1; it begins at $-19$, and then comes the fifth power. Between the first two steps the
# cosine turns more than 100,000 times. What is left is a pseudo-random scale, different for each number of steps.
#
# There are two readings of what was meant. The authors' program calls $n - \tau$ its step index; an index rises (the
# package's `meant`). A proposed [repair](https://github.com/huggingface/diffusers/pull/13172) of an open [diffusers
# issue](https://github.com/huggingface/diffusers/issues/9641) puts the index in the place of $\tau$, and the scale
# falls. Asked about it ([first](https://github.com/zai-org/CogVideo/issues/267),
# [again](https://github.com/zai-org/CogVideo/issues/337)), an author called it a coincidence: the wave-like scale has
# the advantages of a high one and avoids over-exposure. Their demo turns it on; in `diffusers` it is off by default.
#
# ## 9. Negative prompts
#
# Guidance walks away from one answer. It need not be that of the empty caption: a **negative prompt** takes its
# place: $v = v_\text{negative} + w\,(v_\text{prompt} - v_\text{negative})$.
#
# Below: six of the clips above, with guidance 3; the same, with the prompt plus "on a black background" as negative
# prompt; and a prompt that says "not red".

# %% tags=["nbval-ignore-output"]
black, count = bare + " on a black background", 6
rows = {"no negative prompt": films[3.0][:count]}
for name, prompt, against in (("against black", bare, black),
                              ("not red", "a circle that is not red moves right on black", "")):
    rows[name] = pipe.decode(pipe.sample([prompt] * count, num_inference_steps=8, guidance_scale=3.0,
                                         negative_prompt=against, latents=noises[:count]))
figure, axes = new_figure(len(rows), count, width=8, height=4.1)
for row, (name, clips) in zip(axes, rows.items()):
    readings = [oracle.read(clip) for clip in clips]
    seen = Counter((thing.colour, reading.background) for reading in readings for thing in reading.objects)
    print(f"{name}:", ", ".join(f"{number} x {colour} on {ground}" for (colour, ground), number in seen.most_common()))
    for axis, clip in zip(row, clips):
        axis.imshow(clip[0].clamp(0, 1))
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
        axis.spines[:].set_visible(False)
    row[0].set_ylabel(name, fontsize=8)
show_figure(figure, "The first frames of six clips in three rows: without a negative prompt, with a black "
                    "background as negative prompt, and for a circle that is 'not red'.")

# %% [markdown]
# Guidance walks in one direction, away from black, and the clips gather in one place; other backgrounds may be lost as
# well. What prompt and negative prompt share cancels out.
#
# A negative prompt can rule out what the prompt leaves open. No prompt helps with what the network never learned: in
# training, *not* occurred only in "does not move".
#
# ## 10. At full size
#
# The same two classes with the published configuration, on the **meta device**: what does all this text cost?

# %%
size = preset("5b")
with torch.device("meta"):
    giant_text = TextEncoder.from_config(size.text, captions.vocabulary(), size.transformer.max_text_seq_length)
    giant = ExpertTransformer(size.transformer)
    features = giant_text.encoder(torch.zeros(1, 226, dtype=torch.long)).last_hidden_state
for name, net in {"T5 v1.1 XXL encoder": giant_text.encoder, "transformer of the 5B": giant}.items():
    count = sum(p.numel() for p in net.parameters())
    print(f"{name}: {count:,} parameters, {2 * count / 1e9:.1f} GB in 16 bits")
print(f"text features {tuple(features.shape)}; {226 / (226 + 13 * 30 * 45):.1%} of the sequence is text")
once, twice = (flops(size.transformer, (13, 60, 90), 226, batch) for batch in (1, 2))
print(f"50 steps without guidance {50 * once / 1e15:.1f} PFLOP, with guidance {50 * twice / 1e15:.1f}")
matrices = sum(p.numel() for name, p in giant_text.encoder.named_parameters() if "shared" not in name)
print(f"T5 for caption and empty caption, once: {2 * 2 * 226 * matrices / 1e15:.4f} PFLOP")

# %% [markdown]
# T5 is nearly as large as the transformer, but it runs once for each text, not 50 times; then it can be freed.
# Guidance doubles the bill, so some later models are trained to give the guided answer in a single run.
#
# ## What you can now explain
#
# Answer first, then open.
#
# <details><summary>1. How does the order of words reach the video?</summary>
#
# Only through T5's position buckets, and only if training made them count. The table has no order, and the
# transformer's positions leave text alone.
# </details>
#
# <details><summary>2. Why is one caption in ten thrown away in training?</summary>
#
# Guidance needs a second answer of the same network, without a caption. What "without" means, zeros or the empty
# caption, must have been seen in training.
# </details>
#
# <details><summary>3. Why exaggerate what the caption does, and what does that cost?</summary>
#
# A network reproduces its training, doubtful captions included. Guidance moves samples to where the caption is
# unmistakable. They become more alike, colours overshoot, and every guided step costs two runs of the network.
# </details>
#
# **What the paper found.** CogVideoX uses T5 as its text encoder and gives T5's features to the transformer together
# with the video. The caption dropout of 0.1, the zeros and the guidance of 6 are known from the released code; so is
# dynamic guidance, which the paper does not mention.
#
# **Where to read on.** `minicogvx/text/encoder.py` and `minicogvx/diffusion/guidance.py`. T5: [Raffel et
# al.](https://arxiv.org/abs/1910.10683); guidance: [Ho and Salimans](https://arxiv.org/abs/2207.12598). Next:
# [patches and positions](06_patches_and_rope.ipynb).

# %% tags=["nbval-ignore-output"]
progress()
predictions("5")
