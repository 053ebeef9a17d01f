# %% [markdown]
# # Text and guidance
#
# **How do a few words steer the noise, and why does it need exaggeration?**
#
# Three videos from the same noise. Left, the caption is ignored. In the middle it is obeyed as the network
# learned it. Right, what the caption changes is taken six times.

# %% tags=["nbval-ignore-output"]
import math
import random
from collections import Counter

import torch
import torch.nn.functional as F
from einops import rearrange
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import minicogvx
from minicogvx.course import (
    check, explore_sweep, hint, new_figure, notebook_device, show_clip, show_figure, show_rows, show_source, solution,
)
from minicogvx.data.world import captions, oracle
from minicogvx.data.world.drawing import render_batch
from minicogvx.data.world.scenes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, sample_scenes
from minicogvx.diffusion import diffusion_loss, draw_noise, dynamic_guidance_scale, guide
from minicogvx.diffusion.sampling import sample_loop
from minicogvx.presets import preset
from minicogvx.text import TextEncoder
from minicogvx.training.batches import caption_with_dropout
from minicogvx.transformer.model import ExpertTransformer, flops

torch.set_grad_enabled(False)  # nothing is trained in this notebook
device = notebook_device()  # the processor, unless MINICOGVX_DEVICE names another device
pipe = minicogvx.load("toy", device, torch.float32)

PROMPT = "a cyan triangle moves left on a brown background"
start = draw_noise((1, 16, 5, 8, 8), torch.Generator().manual_seed(0), device=device)
made = [pipe.decode(pipe.sample([PROMPT], num_inference_steps=20, guidance_scale=scale, latents=start))[0]
        for scale in (0.0, 1.0, 6.0)]
show_clip(torch.cat(made, dim=2), f"Three clips from the same noise, side by side, for the caption: {PROMPT}. "
                                  "Left with guidance 0, in the middle 1, right 6.", pipe.fps, num_frames=4)

# %% [markdown]
# Two things happen to the words. They become numbers that the transformer can read, and **guidance** turns up
# what those numbers do.
#
# You will build both: a vocabulary of word pieces, a T5 encoder, and guidance. Afterwards you can explain what
# the text features know, why one caption in ten is thrown away in training, and what a guidance scale of 6
# gains and spoils. It takes about 50 minutes, exercises not counted. The parts are named in section 2.2 of the
# [paper](https://arxiv.org/abs/2408.06072).
#
# ## 1. Tokens
#
# The toy knows 75 whole words. The published models read any English text. A list of all words would never end;
# a list of letters makes captions long. Between the two lie **pieces** of words.
#
# The plain way to find pieces: begin with letters. Count which two neighbours occur most often, make them one
# piece, and repeat. This is **byte-pair encoding**. The mark `▁` stands for the beginning of a word.

# %%
scenes = sample_scenes(400, seed=1, two_objects=0.0)
words = Counter(word for i, scene in enumerate(scenes) for word in captions.caption(scene, random.Random(i)).split())


def joined(pieces, pair):
    """The pieces of one word, wherever `pair` stands side by side made one piece."""
    result = []
    for piece in pieces:
        if result and (result[-1], piece) == pair:
            result[-1] += piece
        else:
            result.append(piece)
    return result


def learn_merges(words, count):
    """The most frequent pairs, one after the other; words has how often each occurs."""
    pieces = {word: ["▁", *word] for word in words}
    number = {letter: i for i, letter in enumerate(sorted(set("▁".join(["", *words]))))}
    merges = []
    for _ in range(count):
        pairs = Counter()
        for word, parts in pieces.items():
            for pair in zip(parts, parts[1:]):
                pairs[pair] += words[word]
        best = max(pairs, key=lambda pair: (pairs[pair], -number[pair[0]], -number[pair[1]]))  # a tie: the older
        merges.append(best)
        number["".join(best)] = len(number)
        pieces = {word: joined(parts, best) for word, parts in pieces.items()}
    return merges


merges = learn_merges(words, 60)
print("first merges:", ", ".join("+".join(pair) for pair in merges[:8]))

library = Tokenizer(models.BPE())
library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
letters = len(set("▁".join(["", *words])))
library.train_from_iterator([" ".join(["▁" + word] * count) for word, count in words.items()],
                            trainers.BpeTrainer(vocab_size=letters + 60, show_progress=False))

# %% [markdown]
# The library `tokenizers` learned from the same words. Does it cut as we do? Predict: *dragon* never occurs in
# our captions. Into how many pieces does it fall?

# %%
def cut(text):
    """The pieces of a text: every merge, in the order in which it was learned."""
    pieces = []
    for word in text.split():
        parts = ["▁", *word]
        for pair in merges:
            parts = joined(parts, pair)
        pieces += parts
    return pieces


strange = "a red dragon moves right"
print("pieces:", " ".join(cut(strange)))
marked = " ".join("▁" + word for word in strange.split())
print("the library cuts alike:", library.encode(marked).tokens == cut(strange))
print("the toy's words:", pipe.text.tokens([strange])[0, :6].tolist(), "- unknown:", pipe.text.unknown_words(strange))
print(f"letters: {len(strange)}, pieces: {len(cut(strange))}, words: {len(strange.split())}")

# %% [markdown]
# *moves* and *right* have become one piece each, *red* not yet. *dragon* falls into six, but nothing is lost. The
# toy's list turns it into number 2, `<unk>`, like every other strange word, and no caption in training had a 2.
# (T5 finds its 32,128 pieces in another way, but uses them alike.)
#
# A batch needs rows of one length. T5 ends each text with `</s>`, number 1, and fills up with number 0. The
# published length is 226.
#
# Six exercises follow. `check` says what is right, `hint("5.1")` gives one more hint each time,
# `solution("5.1")` a solution.
#
# **5.1 Padding** (difficulty 1 of 3, 10 minutes). Rows of token ids, of any length, none of them ended yet.
# Return the ids `b n`, and a mask that is true where a token is no padding. A row that is too long loses its
# last words, but not its `</s>`.

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
# Predict: CogVideoX throws this mask away and lets padding take part in every attention, in T5 and in the
# transformer. Does that make a difference?

# %%
number_of = pipe.text.tokenizer.get_vocab()
ids, mask = pad_and_mask([[number_of[word] for word in PROMPT.split()]], pipe.text.max_length)
print("yours are the package's tokens:", torch.equal(ids, pipe.text.tokens([PROMPT])))
print(f"{int(mask.sum())} tokens of text, {int((~mask).sum())} of padding")

ids, mask = ids.to(device), mask.to(device)
plain = pipe.text.encoder(ids).last_hidden_state[0]
masked = pipe.text.encoder(ids, attention_mask=mask.long()).last_hidden_state[0]
print("the package runs without the mask:", torch.equal(plain, pipe.text.encode([PROMPT])[0]))
moved = (plain - masked).norm(dim=1) / plain.norm(dim=1)
print("most words have features more than 5 % away from what they would be with the mask:",
      bool((moved[mask[0]] > 0.05).float().mean() > 0.5))
at_700 = torch.tensor([700], device=device)
answer, short = (pipe.transformer(start, at_700, rows[None]) for rows in (plain, plain[mask[0]]))
print("without the rows of padding, the transformer's answer is more than 5 % away:",
      bool((answer - short).norm() > 0.05 * answer.norm()))

# %% [markdown]
# The padding is no empty space: words and video look at it. A model trained without the mask must be used
# without it, and padded to the same length.
#
# ## 2. T5
#
# Every token picks a row of a table. Then the rows must look at each other: *red* belongs to *circle*. Attention
# does that, but it sees a bag of words, without order.
#
# T5 gives no token a position. It tells each *pair* of tokens how far apart they are. The distance, key minus
# query, falls into one of 32 **buckets**, and every head adds a learned number for the bucket to the pair's
# score. The rule:
#
# - Buckets 0 to 15 are for keys before the query and for itself, 16 to 31 for keys after it.
# - Within each half, distances 0 to 7 have a bucket each.
# - From 8 on, eight buckets are spread over 8 to 128 by the logarithm,
#   $8 + \lfloor 8 \log(d/8) / \log(128/8) \rfloor$, and 15 is the last.
#
# **5.2 Buckets** (difficulty 2, 15 minutes). Return the bucket of every pair, for a text of $n$ tokens. Row $i$
# is the query $i$, column $j$ the key $j$.

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
print("transformers has the same:", torch.equal(T5Attention._relative_position_bucket(apart), position_buckets(226)))

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
# Now the whole encoder, in the plainest way: one caption, one head after the other. Two things are unlike other
# transformers. The scores are not divided by $\sqrt{d}$, and the norm only divides by the root mean square.

# %%
def rms(x, weight):
    return x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * weight


def plain_t5(net, ids, seen=None):
    """Features, n d, of one caption's ids, n. `seen` collects how much wider the scores spread than the bias."""
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


mine = plain_t5(pipe.text.encoder, ids[0])
print("the package has the same features:", torch.allclose(mine, pipe.text.encode([PROMPT])[0], atol=1e-4))
show_source(TextEncoder.encode)

# %% [markdown]
# **Predict.** *A red circle … and a blue star*, *a blue circle … and a red star*: the same words in another
# order. Does *red* get other features in the second caption? From the table; from a T5 with fresh random
# weights; from the toy's T5? And what happens if we shuffle the rows of features before the transformer sees
# them?

# %% tags=["nbval-ignore-output"]
pair = ["a red circle moves left and a blue star moves right", "a blue circle moves left and a red star moves right"]
torch.manual_seed(0)
fresh = TextEncoder.from_config(preset("toy").text, captions.vocabulary(), 32).to(device)
encoded = {"table": pipe.text.encoder.shared(pipe.text.tokens(pair).to(device)), "fresh T5": fresh.encode(pair),
           "toy's T5": pipe.text.encode(pair)}  # each b n d_text
for name, features in encoded.items():
    red, other = features[0, 1], features[1, 7]  # red stands second, then eighth
    print(f"{name}: red changes by {(red - other).norm() / red.norm():.3%}")

shuffled = encoded["toy's T5"][:1, torch.randperm(32, generator=torch.Generator().manual_seed(0))]
answers = [pipe.transformer(start, at_700, features) for features in (encoded["toy's T5"][:1], shuffled)]
print("shuffled features, same answer of the transformer:", torch.allclose(*answers, atol=1e-3))
seen = []
plain_t5(pipe.text.encoder, pipe.text.tokens(pair)[0].to(device), seen)
print(f"in the toy's T5, scores spread {min(seen):.0f} to {max(seen):.0f} times as widely as what its buckets add")

# %% [markdown]
# The transformer does not care in which order the rows of text arrive: its rotary positions turn video tokens
# only, in the 5B as in the toy. (The 2B adds positions to its video tokens, and zero to the text.) So the order
# of the words reaches the video by one way, T5's buckets, or not at all.
#
# A fresh T5 hears it, faintly. The toy's does not: its scores have grown so large that the buckets no longer
# count. Then the two captions must be one to it. Here are both, from the same noise:

# %% tags=["nbval-ignore-output"]
def made_for(texts, noises, **options):
    """Clips of several captions, b t h w 3, in 10 steps."""
    return pipe.decode(pipe.sample(texts, num_inference_steps=10, latents=noises, **options))


swapped = made_for(pair, start.repeat(2, 1, 1, 1, 1), guidance_scale=3.0)
show_rows({"red circle, blue star": swapped[0], "blue circle, red star": swapped[1]},
          "Two rows of frames from the same noise, for the two captions. They are alike to the eye.")
print("largest difference of two pixels below 0.05:", bool((swapped[0] - swapped[1]).abs().max() < 0.05))

# %% [markdown]
# The same video, and neither caption is obeyed. The toy was trained on clips of which one in twenty shows two
# objects. For all others a bag of words is enough: *red* must be the object's colour, since no background is
# red, and *navy* the background's. Training hardly ever asked for the order, and it was not learned. T5 at full
# size learned it from text alone; CogVideoX takes it as it is.
#
# ## 3. What an embedding knows
#
# Which token carries the colour? To find out, use a **linear probe**: from the 128 numbers of one token,
# predict the colour by one matrix, fitted on 800 captions and tested on 400 others. If a matrix can read it,
# the transformer's matrices can, too.
#
# Predict: before T5 and after it, what can be read from the word *circle*? What from the last padding token?

# %% tags=["nbval-ignore-output"]
scenes = sample_scenes(1200, seed=5, two_objects=0.0)
things = [scene.objects[0] for scene in scenes]
texts = [f"a {thing.colour} {thing.shape} {thing.motion} on {scene.background}" for thing, scene in zip(things, scenes)]
length = [len(text.split()) for text in texts]
where = {"a": [0] * 1200, "colour word": [1] * 1200, "shape word": [2] * 1200, "verb": [3] * 1200,
         "background word": [n - 1 for n in length], "end": length, "last padding": [31] * 1200}
questions = {"colour": [list(COLOURS).index(thing.colour) for thing in things],
             "shape": [SHAPES.index(thing.shape) for thing in things],
             "motion": [MOTIONS.index(thing.motion) for thing in things],
             "background": [list(BACKGROUNDS).index(scene.background) for scene in scenes]}


def readable(x, answers):
    """Share of 400 answers that a matrix, fitted on 800 others, reads from x, n d."""
    x, answers = torch.cat([x, torch.ones(len(x), 1)], dim=1), torch.tensor(answers)
    gram = x[:800].T @ x[:800] + 0.1 * torch.eye(x.shape[1])
    matrix = torch.linalg.solve(gram, x[:800].T @ F.one_hot(answers[:800]).float())
    return ((x[800:] @ matrix).argmax(dim=1) == answers[800:]).float().mean().item()


tokens = pipe.text.tokens(texts)
stages = {"before T5": pipe.text.encoder.shared(tokens.to(device)).cpu(), "after T5": pipe.text.encode(texts).cpu()}
figure, (axes,) = new_figure(1, 2, width=8.5, height=3.2)
grids = {}
for axis, (stage, values) in zip(axes, stages.items()):
    grid = torch.tensor([[readable(values[torch.arange(1200), torch.tensor(places)], answers)
                          for answers in questions.values()] for places in where.values()])
    grids[stage] = grid
    axis.imshow(grid, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axis.grid(False)
    axis.set(title=stage, xticks=range(4), yticks=range(len(where)))
    axis.set_xticklabels(questions)
    axis.set_yticklabels(where if axis is axes[0] else [])
    for row, values_of_row in enumerate(grid.tolist()):
        for column, value in enumerate(values_of_row):
            axis.text(column, row, f"{100 * value:.0f}", ha="center", va="center",
                      color="white" if value > 0.6 else "black")

circles = [pipe.text.encode([text])[0, 2] for text in
           ("a red circle grows on black", "a blue circle grows on black", "a red circle shrinks on black",
            "a red circle grows on navy")]
for changed, other in zip(("colour", "motion", "background"), circles[1:]):
    print(f"another {changed} moves the word circle by {(circles[0] - other).norm() / circles[0].norm():.0%}")
show_figure(figure, "Per cent read rightly, one row a token, one column a question. Before T5 each word knows itself "
                    "and the rest is chance. After T5 every token knows something of everything.")

# %% [markdown]
# Before T5 a word knows itself. (The verb tells 41 % of the motions: *bounces* is one, *moves* may be nine.)
# After it, each token knows something of everything, and the same word has other features in another context.
# *circle* tells half of the colours; by chance it would be one in six. The last padding token, which says
# nothing, tells nine motions in ten.
#
# ## 4. Dropping the text
#
# Guidance will need a second answer from the same network: what it would do without a caption. So in training,
# one caption in ten is thrown away, drawn anew in each step:

# %%
show_source(caption_with_dropout)
nothing = pipe.text.encode([""])  # 1 n d_text
print("tokens of the empty caption:", pipe.text.tokens([""])[0, :4].tolist(), "...")
print("its features are zero:", bool((nothing == 0).all()))

# %% [markdown]
# Our "nothing" is the empty caption after T5: one `</s>`, 31 times padding. The authors' own program sets all
# features to **zero** in training and in sampling (`zero_text`). `diffusers` samples the same weights with the
# empty caption, though training called something else "nothing". The experiment below asks what the opposite
# exchange costs our toy.
#
# **5.3 Dropping** (difficulty 1, 10 minutes). Features of a batch; each caption as a whole becomes `null` with
# probability $p$, drawn with the generator.

# %%
def drop_captions(features, null, p, generator):
    """features, b n d, and null, n d -> b n d."""
    ### BEGIN SOLUTION
    gone = torch.rand(len(features), 1, 1, generator=generator) < p
    return torch.where(gone, null, features)
    ### END SOLUTION


drop_captions = check("5.3", drop_captions)

# %% [markdown]
# Predict: twelve clips of the shapes world are noised, and the toy is asked for $v$, with four kinds of text:
# the right caption, the empty one, another clip's, and zeros, which this toy has never seen. At which timesteps
# does the text help most?

# %% tags=["nbval-ignore-output"]
twelve = sample_scenes(12, seed=4, two_objects=0.0)
asked = [captions.evaluation_caption(scene, random.Random(i)) for i, scene in enumerate(twelve)]
pixels = rearrange(render_batch(twelve, 17, 64, 64) * 2 - 1, "b t h w c -> b c t h w")
clean = pipe.vae.encode(pixels.to(device)).mode() * pipe.vae.config.scaling_factor
right = pipe.text.encode(asked)
kinds = {"right": right, "empty": nothing.expand_as(right), "another clip's": right.roll(1, dims=0),
         "zeros": torch.zeros_like(right)}
grid, generator = (50, 200, 350, 500, 650, 800, 900, 999), torch.Generator().manual_seed(4)
losses = {kind: [] for kind in kinds}
for t in grid:
    noise = draw_noise(tuple(clean.shape), generator, device=device)
    ts = torch.full((12,), t, device=device)
    noisy = pipe.schedule.add_noise(clean, noise, ts)
    for kind, text in kinds.items():
        answer = pipe.transformer(noisy, ts, text)
        losses[kind].append(diffusion_loss(answer, clean, noise, ts, pipe.schedule).mean().item())
figure, ((axis,),) = new_figure(width=6.5, height=2.8)
for (kind, curve), style in zip(losses.items(), ("o-", "s--", "^:", "d-.")):
    axis.plot(grid, curve, style, label=kind)
axis.set(xlabel="timestep t", ylabel="loss of v")
axis.legend(fontsize=8)
show_figure(figure, "The toy's loss over the timestep with four kinds of text. Up to 500, right and empty are nearly "
                    "alike. Then they part: at 999 the empty one costs more than twice as much. Another "
                    "clip's is worst.")
print("at 999 the right caption helps:", losses["right"][-1] < losses["empty"][-1] < losses["another clip's"][-1])

# %% [markdown]
# At the right of the figure, the caption is all there is to know. At the left the video shows through the noise,
# and the caption adds little; a wrong one still does harm. Zeros are worse than the empty caption almost
# everywhere.
#
# ## 5. Guidance
#
# Let $p(x)$ be all videos and $p(x \mid c)$ those that fit the caption $c$. By Bayes, what the caption adds is a
# classifier, $p(c \mid x) \propto p(x \mid c) / p(x)$. **Guidance** asks for videos that fit better than most,
# with the classifier to the power of $w$:
#
# $$p_w(x) \propto p(x)\,p(c \mid x)^w \propto p(x)^{1-w}\,p(x \mid c)^w.$$
#
# A diffusion network gives the slope of $\log p$ of the noisy $x$. Slopes of logarithms add:
#
# $$\nabla \log p_w = \nabla \log p(x) + w\,\bigl(\nabla \log p(x \mid c) - \nabla \log p(x)\bigr).$$
#
# So no classifier has to be trained; two answers of one network are enough. It is called **classifier-free
# guidance**. Slope, noise, clean video and $v$ can be computed from each other. Does it matter which of them we
# guide?

# %%
x, t, w = start, 600, 6.0
ts = torch.tensor([t], device=device)
empty, full = (pipe.transformer(x, ts, pipe.text.encode([text])) for text in ("", PROMPT))
a, s = pipe.schedule.alpha_bar(t) ** 0.5, (1 - pipe.schedule.alpha_bar(t)) ** 0.5
by_hand = empty + w * (full - empty)
print("the package guides alike:", torch.allclose(by_hand, guide(empty, full, w), atol=1e-4))
x0 = guide(a * x - s * empty, a * x - s * full, w)
noise = guide(s * x + a * empty, s * x + a * full, w)
print("guiding clean video, noise or v is one thing:",
      torch.allclose(x0, a * x - s * by_hand, atol=1e-3), torch.allclose(noise, s * x + a * by_hand, atol=1e-3))
show_source(guide)

# %% [markdown]
# At $w = 0$ the caption is ignored, $w = 1$ is the plain answer, and above 1 we extrapolate.
#
# What does that do to all samples together? Take a world of single numbers: four clouds. The caption "right" means
# the two on the right, and the perfect answers are known (notebook 04, section 2). Predict: with $w = 3$ and
# $w = 6$, where do the samples go, and will they follow $p_w$?

# %% tags=["nbval-ignore-output"]
everything, fitting, width = torch.tensor([-1.0, -0.2, 0.2, 1.0]).double(), torch.tensor([0.2, 1.0]).double(), 0.22


def best_guess(x, t, places):
    """The mean clean number behind x, for clouds around `places`."""
    bar = pipe.schedule.alpha_bar(t)
    spread = 1 - bar + bar * width ** 2
    share = torch.softmax(-(x[:, None] - bar ** 0.5 * places) ** 2 / (2 * spread), dim=1)
    near = share @ places
    return near + bar ** 0.5 * width ** 2 / spread * (x - bar ** 0.5 * near)


def density(x, places):
    return torch.exp(-(x[:, None] - places) ** 2 / (2 * width ** 2)).mean(dim=1)


def guided_samples(w, steps=100):
    x = torch.special.ndtri((torch.arange(4000).double() + 0.5) / 4000)  # a bell curve as 4,000 evenly likely points
    for t in range(999, 0, -1000 // steps):
        bar, bar_next = pipe.schedule.alpha_bar(t), pipe.schedule.alpha_bar(t - 10) if t > 10 else 1.0
        x0 = guide(best_guess(x, t, everything), best_guess(x, t, fitting), w)
        noise = (x - bar ** 0.5 * x0) / (1 - bar) ** 0.5
        x = bar_next ** 0.5 * x0 + (1 - bar_next) ** 0.5 * noise
    return x


line = torch.linspace(-2, 3, 400).double()
samples = {w: guided_samples(w) for w in (1.0, 3.0, 6.0)}
figure, (axes,) = new_figure(1, 3, width=9, height=2.6)
for axis, (w, x) in zip(axes, samples.items()):
    promised = density(line, everything) ** (1 - w) * density(line, fitting) ** w
    axis.hist(x, bins=60, range=(-2, 3), density=True, color="#56B4E9", label="samples")
    axis.plot(line, promised / promised.sum() / (line[1] - line[0]), "k-", linewidth=1.2, label="promised")
    axis.set(title=f"w = {w:g}", xlabel="x", xlim=(-1, 2.5))
axes[0].legend(fontsize=8)
show_figure(figure, "Histograms of 4,000 guided samples and the promised density, for w = 1, 3 and 6. At 1 they "
                    "agree on two clouds. At 3 and 6 the promise keeps two; the samples are one, ever further right.")
for w, x in samples.items():
    promised = density(line, everything) ** (1 - w) * density(line, fitting) ** w
    print(f"w = {w:g}: below 0.6 lie {(x < 0.6).double().mean():.0%} of the samples, promised "
          f"{promised[line < 0.6].sum() / promised.sum():.0%}; mean {x.mean():.2f}, spread {x.std():.2f}")

# %% [markdown]
# The inner cloud is lost, although it fits the caption: it looks a little like "left". The rest is narrower
# than the outer cloud, and pushed beyond it. Strong guidance means less variety, and exaggeration.
#
# Why is the promise not kept? The slopes add up to that of $p_w$ only where there is no noise. In noise the
# clouds melt together, and "away from left" sends every sample too far before it can see the inner cloud.
#
# **5.4 The guided answer** (difficulty 2, 15 minutes). Both questions go to the network in one batch, `null`
# first, as published. The network may answer in bfloat16; the difference of two near numbers must be taken in
# float32. And where the scale is 1, half of the work is not needed.

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
# ## 6. How much?
#
# Now the toy, with the oracle as judge. Twelve captions, the same noise for each scale. (That is few: one clip
# more or less says nothing.) Besides obedience we measure two things: how well the shapes **overlap** with
# ideal ones, and how many colour values of the decoded video lie outside of 0..1 and must be cut off.
#
# Predict: which scale obeys best? What happens to shapes and colours on the way to 15?

# %% tags=["nbval-ignore-output"]
def measured(latents):
    """Clips, how many are right, how well shapes overlap with ideal ones, and the share of values cut off."""
    video = pipe.vae.decode(latents / pipe.vae.config.scaling_factor) / 2 + 0.5
    beyond = ((video < -0.02) | (video > 1.02)).float().mean().item()
    clips = rearrange(video.clamp(0, 1).cpu(), "b c t h w -> b t h w c")
    readings = [oracle.read(clip) for clip in clips]
    correct = sum(oracle.matches(reading, scene)["all"] for reading, scene in zip(readings, twelve))
    overlap = sum(reading.confidence or 0 for reading in readings) / len(readings)
    print(f"{correct:2d} of {len(clips)} right, overlap {overlap:.3f}, cut off {beyond:.2%}")
    return clips, correct, overlap, beyond


noises = draw_noise((12, 16, 5, 8, 8), torch.Generator().manual_seed(3), device=device)
swept = {}
for scale in (1.0, 3.0, 6.0, 10.0, 15.0):
    print(f"guidance {scale:4g}: ", end="")
    swept[scale] = measured(pipe.sample(asked, num_inference_steps=10, guidance_scale=scale, latents=noises))
print("true clips:    ", end="")
measured(clean)
explore_sweep({scale: clips[0] for scale, (clips, *_) in swept.items()}, "guidance",
              f"The caption: {asked[0]}. Five rows of frames, from guidance 1 to 15. The bar grows, then its edges "
              "fray, and spots appear on bar and background.")

# %% [markdown]
# Between 1 and 6 there is no difference that twelve clips can show. The shapes are best at 3; at 10 and 15 they
# fray, spots appear, and more and more colour values must be cut off: **over-saturation**. The published models
# use 6. Over 64 training captions, the toy obeyed 96.9 % at 3 and 93.8 % at the published 6, so 3 is its
# default.
#
# **5.5 A repair** (difficulty 2, 10 minutes). [Lin et al.](https://arxiv.org/abs/2305.08891) draw the contrast
# back: multiply the guided answer of each sample by one factor, so that its standard deviation becomes that of
# the conditional answer. They mix: `share` of this, the rest as it was.

# %%
def tamed(cond, guided, share):
    """The conditional and the guided answer, b c t h w -> the guided answer with less contrast."""
    ### BEGIN SOLUTION
    factor = cond.flatten(1).std(dim=1) / guided.flatten(1).std(dim=1)  # b
    factor = share * factor + 1 - share
    return guided * factor.reshape(-1, 1, 1, 1, 1)
    ### END SOLUTION


tamed = check("5.5", tamed)

# %% [markdown]
# Here is a whole sampler from your parts, and the package's loop, whose `condition` can be an image or a video.
# Predict: does scale 15 become usable?

# %% tags=["nbval-ignore-output"]
def sampled(texts, x, scales, share=0.0, against=""):
    """Latents in len(scales) steps of DDIM, each with its own guidance scale."""
    text, null = pipe.text.encode(texts), pipe.text.encode([against] * len(texts))
    n = len(scales)
    for i, scale in enumerate(scales):
        t, t_next = 999 - i * 1000 // n, 999 - (i + 1) * 1000 // n
        ts, bar = torch.full((len(x),), t, device=device), pipe.schedule.alpha_bar(t)
        bar_next = pipe.schedule.alpha_bar(t_next) if i < n - 1 else 1.0
        if share:
            answers = pipe.transformer(torch.cat([x, x]), torch.cat([ts, ts]), torch.cat([null, text])).chunk(2)
            v = tamed(answers[1], guide(*answers, scale), share)
        else:
            v = guided_velocity(pipe.transformer, x, ts, text, null, scale)
        x0, noise = bar ** 0.5 * x - (1 - bar) ** 0.5 * v, (1 - bar) ** 0.5 * x + bar ** 0.5 * v
        x = bar_next ** 0.5 * x0 + (1 - bar_next) ** 0.5 * noise
    return x


mine = sampled(asked[:1], noises[:1], [6.0] * 10)
package = pipe.sample(asked[:1], num_inference_steps=10, guidance_scale=6.0, latents=noises[:1])
print("your sampler is the package's:", torch.allclose(mine, package, atol=1e-2))
show_source(sample_loop)
print("guidance 15, tamed: ", end="")
repaired = measured(sampled(asked, noises, [15.0] * 10, share=0.7))
show_rows({"guidance 15": swept[15.0][0][0], "15, tamed": repaired[0][0]},
          f"The caption: {asked[0]}. Above with guidance 15, below the same, tamed: fewer "
          "spots, the edges still frayed.")

# %% [markdown]
# Fewer values are cut off, and the spots fade. The shapes are not repaired: their overlap is no better. One
# factor can take back the exaggeration of contrast, not that of content.
#
# ## 7. A scale that changes
#
# Need the scale be the same in each step? CogVideoX offers **dynamic guidance**. With $n$ steps,
#
# $$w_i = 1 + w\,\frac{1 - \cos\bigl(\pi\,(\frac{n - \tau}{n})^5\bigr)}{2}.$$
#
# What is $\tau$? If it counts the steps that remain, $(n-\tau)/n$ runs from 0 to almost 1, and the scale rises
# from 1 to almost $1 + w$. In both released programs $\tau$ is the *timestep*, 999 down to 19. Predict: what
# does the curve look like then?

# %%
n, w, published = 50, 6.0, []
for i in range(n):
    timestep = 999 - 20 * i
    published.append(1 + w * (1 - math.cos(math.pi * ((n - timestep) / n) ** 5)) / 2)
package = {mode: [dynamic_guidance_scale(w, i, 999 - 20 * i, n, mode) for i in range(n)]
           for mode in ("published", "meant")}
ours, theirs = torch.tensor(published), torch.tensor(package["published"])
print("the package's published scales are ours:", torch.allclose(ours, theirs))
print("first published scales:", [round(value, 2) for value in published[:8]])
print(f"mean {sum(published) / n:.2f}, least {min(published):.2f}, largest {max(published):.2f}")
print(f"at the first step the cosine sees {math.pi * ((n - 999) / n) ** 5:,.0f} radians")

figure, ((axis,),) = new_figure(width=7, height=2.6)
for (mode, values), style in zip(package.items(), ("o-", "s--")):
    axis.plot(range(1, n + 1), values, style, label=mode, markersize=3, linewidth=1.2)
axis.set(xlabel="step", ylabel="guidance scale")
axis.legend()
show_figure(figure, "The scale over 50 steps with w = 6. As meant, it stays near 1, then rises to almost 7. As "
                    "published, it jumps up and down between 1 and 7, and stays near 1 in the last four.")

# %% [markdown]
# The fraction should lie in 0..1; it begins at $-19$, and then comes the fifth power. Between the first two steps
# the cosine turns more than 100,000 times. What is left is a pseudo-random scale, and another one with another
# number of steps. Asked about it, the authors called it a coincidence that they keep: the waves have the
# advantages of a high scale and avoid over-exposure. Their demo of the 5B has it on; in `diffusers` it is off
# unless asked for.
#
# **5.6 As meant** (difficulty 1, 10 minutes). Return the scales of all $n$ steps, first step first.

# %%
def rising_scales(w, n):
    """The scales, n, from 1 to almost 1 + w."""
    ### BEGIN SOLUTION
    progress = torch.arange(n) / n
    return 1 + w * (1 - torch.cos(math.pi * progress ** 5)) / 2
    ### END SOLUTION


rising_scales = check("5.6", rising_scales)

# %% [markdown]
# Predict: the toy at $w = 6$, constant, as meant, and as published. By section 4 the text matters most at the
# first steps. Which one suffers?

# %% tags=["nbval-ignore-output"]
scales = {"as meant": rising_scales(6.0, 10).tolist(),
          "as published": [dynamic_guidance_scale(6.0, i, 999 - 100 * i, 10, "published") for i in range(10)]}
dynamic = {"constant": swept[6.0]}
for name, values in scales.items():
    print(f"{name}, mean scale {sum(values) / 10:.2f}: ", end="")
    dynamic[name] = measured(sampled(asked, noises, values))
print("the scales as published:", [round(value, 1) for value in scales["as published"]])
show_rows({name: clips[0] for name, (clips, *_) in dynamic.items()},
          f"The caption: {asked[0]}. Three rows of frames: constant scale 6, as meant, as published. As "
          "meant, the bar is as small as with guidance 1.")

# %% [markdown]
# As meant, guidance is off while the large things are decided, and the clip is nearly that of guidance 1. As
# published, in 10 steps, the scale happens to be a slow wave; it cuts off fewer values than the constant 6, as
# the authors say, but its mean is lower, too. Twelve clips cannot say which obeys best.
#
# ## 8. Negative prompts
#
# Guidance walks away from one answer. Nobody says that it must be the empty caption's. A **negative prompt**
# takes its place: $v = v_\text{negative} + w\,(v_\text{prompt} - v_\text{negative})$.
#
# The caption below says nothing of the background. The negative prompt is the same with a black background.
# Predict: which backgrounds do eight clips get, without it and with it? Then two harder cases: a prompt that
# says "not red", and a negative prompt that is the prompt itself.

# %% tags=["nbval-ignore-output"]
bare, black = "a red circle moves right", "a red circle moves right on a black background"
for against, scale in (("", 3.0), (black, 3.0), (black, 6.0)):
    clips = pipe.decode(sampled([bare] * 8, noises[:8], [scale] * 10, against=against))
    readings = [oracle.read(clip) for clip in clips]
    whole = sum(oracle.matches(reading, captions.parse_caption(bare))["all"] for reading in readings)
    print(f"guidance {scale:g} against {against!r}: {dict(Counter(reading.background for reading in readings))}, "
          f"{whole} of 8 are what the prompt asks")
clips = made_for(["a circle that is not red moves right on black"] * 8, noises[:8], guidance_scale=3.0)
readings = [oracle.read(clip) for clip in clips]
print("not red:", dict(Counter(thing.colour for reading in readings for thing in reading.objects)))
same = [sampled([black], noises[:1], [scale] * 5, against=black) for scale in (1.0, 9.0)]
print("against itself, scale 9 is scale 1:", torch.allclose(*same, atol=1e-2))

# %% [markdown]
# The black background is gone, and brown and navy with it: all eight are grey. Guidance walks in one direction,
# away from black, and grey is what lies there. At 6 it walks too far, and the object suffers.
#
# A negative prompt helps against what the prompt leaves open. No prompt helps where the network does not listen:
# for "not red" all eight are red. (In training, *not* occurred only in "does not move".) And what prompt and
# negative prompt share, cancels; the last line is the extreme.
#
# ## 9. At full size
#
# The same two classes with the published configuration, on the **meta device**: shapes without memory.

# %%
size = preset("5b")
with torch.device("meta"):
    giant_text = TextEncoder.from_config(size.text, captions.vocabulary(), size.transformer.max_text_seq_length)
    giant = ExpertTransformer(size.transformer)
    features = giant_text.encoder(torch.zeros(1, 226, dtype=torch.long)).last_hidden_state
counts = {"T5 v1.1 XXL encoder": giant_text.encoder, "transformer of the 5B": giant}
for name, net in counts.items():
    count = sum(p.numel() for p in net.parameters())
    print(f"{name}: {count:,} parameters, {2 * count / 1e9:.1f} GB in 16 bits")
print(f"text features {tuple(features.shape)}: {features.numel():,} numbers")
print(f"text tokens 226, video tokens {13 * 30 * 45:,}: {226 / (226 + 13 * 30 * 45):.1%} of the sequence is text")
once, twice = (flops(size.transformer, (13, 60, 90), 226, batch) for batch in (1, 2))
print(f"50 steps without guidance {50 * once / 1e15:.1f} PFLOP, with guidance {50 * twice / 1e15:.1f}")
matrices = sum(p.numel() for name, p in giant_text.encoder.named_parameters() if "shared" not in name)
print(f"T5 for caption and empty caption, once: {2 * 2 * 226 * matrices / 1e15:.4f} PFLOP")

# %% [markdown]
# T5 is nearly as large as the transformer, but it runs once for each text, not 50 times; then it may leave the
# memory. Guidance doubles the whole bill. So some later models are trained to give the guided answer in one run.
#
# ## What you can now explain
#
# Answer first, then open.
#
# <details><summary>1. By which way does the order of words reach the video?</summary>
#
# Only through T5's position buckets. The table has no order, and the transformer's positions leave text alone.
# </details>
#
# <details><summary>2. Why is one caption in ten thrown away in training?</summary>
#
# Guidance needs a second answer of the same network, without a caption. What "without" means, zeros or the
# empty caption, must have been seen in training.
# </details>
#
# <details><summary>3. What does a high guidance scale gain, and what does it cost?</summary>
#
# Samples move to where the caption is unmistakable. They become more alike, and beyond what the world contains:
# colours overshoot and shapes fray. And every guided step costs two runs of the network.
# </details>
#
# **What the paper found.** CogVideoX takes T5 as text encoder and hands its features to the transformer beside
# the video. The dropping rate of 0.1, the zeros and the guidance of 6 are known from the released code; so is
# dynamic guidance, which the paper does not mention.
#
# **Where to read on.** `minicogvx/text/encoder.py` and `minicogvx/diffusion/guidance.py`, both short. T5:
# [Raffel et al.](https://arxiv.org/abs/1910.10683); guidance: [Ho and
# Salimans](https://arxiv.org/abs/2207.12598); contrast: [Lin et al.](https://arxiv.org/abs/2305.08891). Next:
# patches and positions, where the video tokens come from.
