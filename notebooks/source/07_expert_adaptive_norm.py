# %% [markdown]
# # Expert adaptive layer norm
#
# **How can words and pictures go through the same layers?**
#
# Three videos of one caption and one seed. Run the cell, and see how much a small part of the network decides.

# %% tags=["nbval-ignore-output"]
import random
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

import minicogvx
from minicogvx.ablation import load_results, paired_figure
from minicogvx.ablation.paired import gain_of, properties_obeyed, say_obeyed
from minicogvx.course import (
    check, compare_clips, explore_sweep, hint, new_figure, notebook_device, outcome, predict, predictions, progress,
    show_figure, show_source, solution,
)
from minicogvx.course.surgery import changed_modulations, exchanged, expert_norms, towards_video
from minicogvx.data.clips.clips import stack_latents
from minicogvx.data.clips.world import encode_world
from minicogvx.data.world import oracle
from minicogvx.data.world.captions import caption
from minicogvx.diffusion import diffusion_loss, stratified_timesteps
from minicogvx.evaluation.intervals import mean_interval
from minicogvx.presets import preset
from minicogvx.training.transformer import open_gates
from minicogvx.training.validation import with_other_words
from minicogvx.transformer.block import Block
from minicogvx.transformer.embeddings import timestep_sinusoid
from minicogvx.transformer.expert_norm import ExpertNorm
from minicogvx.transformer.layout import DenseLayout
from minicogvx.transformer.model import ExpertTransformer, flops

torch.set_grad_enabled(False)  # training cells switch it on for themselves
device = notebook_device()  # the processor, unless MINICOGVX_DEVICE names another device
pipe = minicogvx.load("toy", device, torch.float32)
net = pipe.transformer
norms = expert_norms(net)  # two in each block


PROMPT = "a red star moves left on a grey background"


def painted_with(operation, steps=20):
    """What the toy paints while every modulation is changed."""
    with changed_modulations(net, operation):
        return pipe(PROMPT, num_inference_steps=steps)


films = {"as trained": painted_with(lambda linear, modulation: modulation),
         "words as video": painted_with(towards_video(1.0)),
         "exchanged": painted_with(exchanged)}
for name, film in films.items():
    found = oracle.read(film)
    things = "; ".join(", ".join(getattr(thing, what) or f"no known {what}" for what in ("colour", "shape", "motion"))
                       for thing in found.objects)
    print(f"{name}: the oracle sees",
          f"{things}; background {found.background or 'unknown'}" if things else "no object")
compare_clips(films, f"Three videos of '{PROMPT}' from one seed: the toy as trained, with words modulated like video, "
                     "and with the two modulations exchanged.", pipe.fps, num_frames=4)

# %% [markdown]
# In CogVideoX, text and video are one sequence. Attention and feed-forward layers have one set of weights for both.
# Only one small thing differs: numbers that shift, stretch and gate the tokens around each layer, their *modulation*.
# In the second clip the words got the numbers of the video; in the third the two were exchanged. No weight was changed.
#
# The part that applies these numbers is the **expert adaptive layer norm** ([the
# paper](https://arxiv.org/abs/2408.06072), section 2.2; its ablation is in 4.1). You will build all of it: the norm,
# the embedding of the timestep, the modulation, and half a block. Afterwards you can explain why text and video get
# different numbers, why a new block does nothing, and what experts cost. It takes about 100 minutes, exercises
# included. (Notation: the box in [notebook 01](01_video_tensors.ipynb).)
#
# ## 1. Two kinds of tokens
#
# We take 48 clips with their captions, add noise of all strengths, and record what enters each norm. The *spread* of a
# token is the standard deviation over its $d = 256$ channels.

# %% tags=["nbval-ignore-output"]
CLIPS = 48
world = encode_world(pipe.vae, CLIPS, seed=2, num_frames=17, progress=False)
generator = torch.Generator().manual_seed(0)
clean = stack_latents(world, range(CLIPS), generator).to(device)  # b c t h w
noise = torch.randn(clean.shape, generator=generator).to(device)
t = stratified_timesteps(CLIPS, 1000, generator).to(device)
noisy = pipe.schedule.add_noise(clean, noise, t)


def features_of(scenes):
    """Features of short captions of the scenes, b n_text d_text; a scene is always phrased alike."""
    return pipe.text.encode([caption(scene, random.Random(i), "short") for i, scene in enumerate(scenes)])


features = features_of(world.scenes)
NUM_TEXT = features.shape[1]


def loss_of_each(features, model=net, count=CLIPS):
    """The loss of each of the first `count` clips."""
    answer = model(noisy[:count], t[:count], features[:count])
    return diffusion_loss(answer, clean[:count], noise[:count], t[:count], pipe.schedule)


passed = []  # of each norm: what came in, and what went out modulated; both b n d
hooks = [norm.register_forward_hook(lambda module, given, out: passed.append((given[0], out[0]))) for norm in norms]
trained = loss_of_each(features)
for hook in hooks:
    hook.remove()

first = passed[0][0]
figure, (axes,) = new_figure(1, 2, width=8, height=2.7)
for name, part, style in (("text", slice(0, NUM_TEXT), "o-"), ("video", slice(NUM_TEXT, None), "s--")):
    spreads = [x[:, part].std(dim=-1).flatten().cpu() for x, _ in passed[::2]]  # entering each block
    axes[0].semilogy([spread.mean() for spread in spreads], style, label=name)
    axes[1].hist(spreads[0], bins=40, alpha=0.7, density=True, label=name)
    print(f"{name}: mean spread {spreads[0].mean():.1f} at block 0, {spreads[5].mean():.0f} at block 5")
axes[0].set_yticks([3, 10, 30, 100, 300], ["3", "10", "30", "100", "300"])
axes[0].minorticks_off()
axes[0].set(xlabel="block", ylabel="mean spread of a token")
axes[1].set(xlabel="spread of a token at block 0", ylabel="density")
axes[0].legend()
axes[1].legend()
show_figure(figure, "Left: the mean spread of text and of video tokens entering each block, on a logarithmic axis, "
                    "about a hundred times larger at the last. Right: those at block 0, larger for most text tokens.")
assert first[:, :NUM_TEXT].std(dim=-1).mean() > 1.3 * first[:, NUM_TEXT:].std(dim=-1).mean()

# %% [markdown]
# The paper names this among its reasons: the two "may even have different numerical scales". In the toy they do. Is
# that reason enough? We follow the trail for the rest of this section.
#
# The spread also grows through the network, though not in every block. Each layer *adds* to the tokens, and nothing
# holds them back. What keeps the layers working is a norm in front of each: **layer norm**. It takes each token by
# itself: subtract its mean over the channels, divide by its spread, then give every channel a weight and a bias of its
# own.
#
# ### Exercise 7.1: normalise (difficulty 1 of 3, 10 minutes)
#
# Write it, without `F.layer_norm`, for any number of leading axes. Where all channels of a token are equal, nothing may
# be divided by zero: `eps` is added to the *variance*. `hint("7.1")` gives one more hint each time, `solution("7.1")` a
# solution.

# %%
def normalise(x, weight, bias, eps=1e-5):
    """Layer norm over the last axis. x: ... d; weight, bias: d -> ... d."""
    ### BEGIN SOLUTION
    mean = x.mean(dim=-1, keepdim=True)
    variance = (x - mean).square().mean(dim=-1, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * weight + bias
    ### END SOLUTION


normalise = check("7.1", normalise)
layer = norms[0].norm  # an nn.LayerNorm
assert torch.allclose(normalise(first, layer.weight, layer.bias), layer(first), atol=1e-4)

# %% [markdown]
# $$\mathrm{norm}(x) = \frac{x-\mu}{\sqrt{\sigma^2+\varepsilon}}\; w + b$$
#
# So a norm removes the difference in scale: after it, with $w = 1$ and $b = 0$, every token has mean 0 and spread 1.
#
# Now look at one channel over all tokens. Its *gap* is the distance between the mean of the text and the mean of the
# video, in standard deviations.
#
# **Prediction 7.1.** After such a norm, are text and video still apart in single channels?

# %%
predict("7.1", "hardly: the largest gap is below 0.5", "a little: it is between 0.5 and 2", "yes: it is above 2")

# %% tags=["folded", "nbval-ignore-output"]
plain = normalise(first.cpu(), torch.ones(256), torch.zeros(256))
text, video = plain[:, :NUM_TEXT].flatten(0, 1), plain[:, NUM_TEXT:].flatten(0, 1)  # tokens x d
gap = (text.mean(0) - video.mean(0)).abs() / ((text.var(0) + video.var(0)) / 2).sqrt()  # d
order = gap.argsort(descending=True)

figure, (axes,) = new_figure(1, 3, width=8.5, height=2.4)
for axis, rank in zip(axes, (2, 60, 200)):
    channel = int(order[rank])
    for name, tokens in (("text", text), ("video", video)):
        axis.hist(tokens[:, channel], bins=50, alpha=0.7, density=True, label=name)
    axis.set(title=f"channel {channel}: gap {gap[channel]:.1f}", xlabel="value", yticks=[])
axes[0].legend()
show_figure(figure, "Values of three channels after the norm, for text and for video tokens. In the first the two "
                    "histograms lie apart, in the second they overlap in part, in the third they cover the same range.")
print(f"spread of every token: {plain.std(dim=-1, unbiased=False).min():.3f} to "
      f"{plain.std(dim=-1, unbiased=False).max():.3f}")
print(f"largest gap {gap.max():.1f}; channels with a gap above 1: {(gap > 1).float().mean():.0%}")
outcome("7.1", "yes: it is above 2" if gap.max() > 2 else "a little: it is between 0.5 and 2" if gap.max() > 0.5 else
        "hardly: the largest gap is below 0.5")

# %% [markdown]
# The norm works along a token and gives all tokens the same spread. It cannot see that in one channel text lies to one
# side and video to the other. A layer norm does not know that there are two kinds. So scale is at most half of the
# reason; this is the other half.
#
# ## 2. One shift and one scale do not fit both
#
# $w$ and $b$ are there to put each channel where the next layer wants it. But there is one $w$ and one $b$. First by
# hand: one channel, two kinds of tokens. The next layer would like mean 0 and spread 1 from both.

# %% tags=["nbval-ignore-output"]
generator = torch.Generator().manual_seed(1)
kinds = {"text": 1.5 + 0.3 * torch.randn(2000, generator=generator),
         "video": -0.5 + 1.2 * torch.randn(2000, generator=generator)}
everything = torch.cat(list(kinds.values()))
for name, values in kinds.items():
    shared = (values - everything.mean()) / everything.std()
    own = (values - values.mean()) / values.std()
    print(f"{name}: with one pair mean {shared.mean():+.2f}, spread {shared.std():.2f}; "
          f"with its own mean {abs(own.mean()):.2f}, spread {own.std():.2f}")

# %% [markdown]
# With one pair of shift and scale the mixture fits, and neither part does. With two pairs both fit exactly.
#
# Now the toy itself. It was trained with two pairs. How well could one pair imitate its norms? For each channel we fit
# the best line from the plain norm to the modulated result: one line for all tokens, or one for each kind.

# %% tags=["nbval-ignore-output"]
def left_over(x, y):
    """What the best shift and scale of each channel of x (rows d) miss of y (rows d), squared and summed."""
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    slope = (x * y).sum(dim=0) / x.square().sum(dim=0)
    return (y - slope * x).square().sum()


missed = []
for x, y in passed:
    x, total = F.layer_norm(x, (256,)), (y - y.mean(dim=(0, 1))).square().sum()
    one = left_over(x.flatten(0, 1), y.flatten(0, 1))
    two = sum(left_over(x[:, part].flatten(0, 1), y[:, part].flatten(0, 1))
              for part in (slice(0, NUM_TEXT), slice(NUM_TEXT, None)))
    missed.append((float(one / total), float(two / total)))
for number, (one, two) in enumerate(missed):
    print(f"block {number // 2}, norm{number % 2 + 1}: one line misses {one:.0%}, two miss {two:.0%}")
assert sum(one > 1.5 * two for one, two in missed) >= 10

# %% [markdown]
# Two lines miss little. What they miss is the change with the timestep, our next subject.
#
# Careful: this shows that *this* network uses two pairs. A network trained with one pair could put the difference
# elsewhere: in the projection of the text, or in the tokens themselves. Section 8 looks at such networks.
#
# ## 3. Where the numbers come from
#
# A video token at $t = 999$ is noise, at $t = 0$ it is almost a picture. One shift and scale cannot serve both.
# **Adaptive** means: a small network computes them from the timestep.
#
# It begins with a *sinusoid*. Imagine a clock with $d/2$ hands. The first turns by 1 radian a timestep. Each next hand
# is slower than the one before it, always by the same factor, such that one more hand after the last would turn 10,000
# times more slowly than the first. Of each hand we take cosine and sine.
#
# ### Exercise 7.2: sinusoid (difficulty 2 of 3, 15 minutes)
#
# Find the speeds, then write the function. The published order is: all cosines, then all sines.

# %%
def sinusoid(t, d):
    """t: b timesteps -> b d, cosines then sines."""
    ### BEGIN SOLUTION
    frequencies = 10000 ** (-torch.arange(d // 2) / (d // 2))
    angles = t[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
    ### END SOLUTION


sinusoid = check("7.2", sinusoid)

every_t = torch.arange(1000)
clock = sinusoid(every_t, 256)
assert torch.allclose(clock, timestep_sinusoid(every_t, 256), atol=1e-3)
speeds = torch.atan2(clock[1, 128:], clock[1, :128])  # how far each hand has turned at t = 1
slow = int((1000 * speeds < 2 * torch.pi).sum())
print(f"hands that turn less than once in 1000 timesteps: {slow} of 128")

mlp = net.time_embedding
hidden = clock.to(device) @ mlp.linear_1.weight.T + mlp.linear_1.bias
hidden = hidden * torch.sigmoid(hidden)  # SiLU
embedded = hidden @ mlp.linear_2.weight.T + mlp.linear_2.bias
time = embedded * torch.sigmoid(embedded)  # t d_time: each modulation reads this
print(f"time embedding by hand and the package's: {(embedded - mlp(every_t.to(device))).abs().max():.0e} apart")
assert torch.allclose(embedded, mlp(every_t.to(device)), atol=1e-2)

figure, ((axis,),) = new_figure(width=5.5, height=2.6)
few = (4 * clock[:200].T).round() / 4  # few colours make a small file
picture = axis.imshow(few, aspect="auto", cmap="viridis")
axis.set(xlabel="timestep t", ylabel="channel")
axis.grid(False)
figure.colorbar(picture)
show_figure(figure, "The sinusoid of 200 timesteps: 256 channels from top to bottom, cosines in the upper half and "
                    "sines in the lower. The top of each half flickers with every step, the bottom hardly changes.")

# %% [markdown]
# The speeds are $\omega_i = 10000^{-i/(d/2)}$. Fast hands tell neighbours apart, slow hands tell early from late. A
# small network of two linear layers mixes them into 64 numbers. Each norm has one more linear layer of its own, which
# turns these into its modulation.
#
# ## 4. Shift, scale, gate, twice
#
# For the attention or feed-forward that follows, each kind of token gets three vectors of width $d$. So the norm's
# linear layer gives $6d$ numbers:
#
# $$y = \mathrm{norm}(x)\,(1 + \text{scale}) + \text{shift}, \qquad
# x \leftarrow x + \text{gate}\cdot\mathrm{layer}(y).$$
#
# Why $1 +$ scale? Then zeros mean "change nothing". In the plainest way, one token after the other:

# %% tags=["nbval-ignore-output"]
def one_token_at_a_time(x, num_text, modulation, layer):
    """x: n d, one sample, text first; modulation: 6d, video first -> n d."""
    d, rows = x.shape[1], []
    pieces = [modulation[i * d:(i + 1) * d] for i in range(6)]
    for place, token in enumerate(x):
        mean = sum(token) / d
        variance = sum((token - mean) ** 2) / d
        normed = (token - mean) / (variance + layer.eps) ** 0.5 * layer.weight + layer.bias
        shift, scale = (pieces[3], pieces[4]) if place < num_text else (pieces[0], pieces[1])
        rows.append(normed * (1 + scale) + shift)
    return torch.stack(rows)


modulation = norms[0].linear(time[t])  # b 6d
naive = one_token_at_a_time(first[0], NUM_TEXT, modulation[0], norms[0].norm)
layout = net.layout((5, 4, 4), NUM_TEXT, torch.device(device))  # where text and video tokens lie, and their rotation
package, gates = norms[0](first, time[t], layout)
print(f"tokens, channels: {tuple(naive.shape)}; the package's are {(naive - package[0]).abs().max():.0e} apart")
assert torch.allclose(naive, package[0], atol=1e-3)

# %% [markdown]
# There is one trap: in the sequence the text comes first, in the modulation the video does. And the layer norm's own
# $w$ and $b$ are shared; only the modulation is "expert".
#
# ### Exercise 7.3: expert_modulation (difficulty 2 of 3, 15 minutes)
#
# The whole batch at once. `x` is normed already. Return the modulated sequence, the text gate and the video gate; give
# the gates the shape `b 1 d`. (All tokens of a sample share its numbers. Which axis is missing from `b d`?)

# %%
def expert_modulation(x, num_text, modulation):
    """x: b n d, text first; modulation: b 6d, video first -> y b n d, text gate b 1 d, video gate b 1 d."""
    ### BEGIN SOLUTION
    shift, scale, gate, text_shift, text_scale, text_gate = modulation[:, None].chunk(6, dim=-1)
    text, video = x[:, :num_text], x[:, num_text:]
    y = torch.cat([text * (1 + text_scale) + text_shift, video * (1 + scale) + shift], dim=1)
    return y, text_gate, gate
    ### END SOLUTION


expert_modulation = check("7.3", expert_modulation)
show_source(ExpertNorm)

# %% [markdown]
# ### Exercise 7.4: half_block (difficulty 2 of 3, 10 minutes)
#
# Norm, modulation, layer, gated residual. A block is two such halves: one around the attention, one around the
# feed-forward.

# %% tags=["nbval-ignore-output"]
def half_block(x, num_text, modulation, norm, layer):
    """x: b n d; norm and layer: functions of b n d -> b n d."""
    ### BEGIN SOLUTION
    y, text_gate, gate = expert_modulation(norm(x), num_text, modulation)
    new = layer(y)
    text = x[:, :num_text] + text_gate * new[:, :num_text]
    return torch.cat([text, x[:, num_text:] + gate * new[:, num_text:]], dim=1)
    ### END SOLUTION


half_block = check("7.4", half_block)


def whole_block(block, x, time):
    """One block of the toy out of your pieces."""
    def my_norm(norm):
        return lambda x: normalise(x, norm.weight, norm.bias, norm.eps)

    x = half_block(x, NUM_TEXT, block.norm1.linear(time), my_norm(block.norm1.norm),
                   lambda y: block.attn1(y, layout))
    return half_block(x, NUM_TEXT, block.norm2.linear(time), my_norm(block.norm2.norm), block.ff)


block = net.transformer_blocks[0]
ours, theirs = whole_block(block, first[:4], time[t[:4]]), block(first[:4], time[t[:4]], layout)
print(f"numbers of up to {theirs.abs().max():.0f}; those of two half_blocks and the toy's are "
      f"{(ours - theirs).abs().max():.0e} apart")
assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-1)
show_source(Block)

# %% [markdown]
# That is the whole block of the paper: your two halves, one after the other. `t_emb` is our `time`; `add_gated` is the
# last step of your `half_block`. Notebook 08 opens the attention.
#
# ## 5. A block that does nothing
#
# How should training begin? In the published models the linear layer of every modulation starts with zeros,
# weights and biases. This is **adaLN-Zero**, from [DiT](https://arxiv.org/abs/2212.09748).
#
# **Prediction 7.2.** Which weights of such a new block, with its gates at zero, get a gradient in the first step?

# %%
predict("7.2", "all of them", "only some rows of the two modulations", "none")

# %% tags=["folded"]
small = replace(preset("toy").transformer, num_attention_heads=2, attention_head_dim=32, num_layers=1,
                time_embed_dim=32)
generator = torch.Generator().manual_seed(2)
inputs, times = torch.randn(16, 24, 64, generator=generator), torch.randn(16, 32, generator=generator)
eight_words = DenseLayout(8, (1, 4, 4))  # 8 text tokens, then 16 of one frame


def new_block(zero_gates, seed=0):
    """A fresh block of width 64: adaLN-Zero, or the start that this repository trains from."""
    torch.manual_seed(seed)
    model = ExpertTransformer(small)
    if not zero_gates:
        open_gates(model)
    return model.transformer_blocks[0]


def with_gradient(block):
    """How many numbers of each parameter get a gradient, from a loss that looks at all outputs."""
    with torch.enable_grad():
        output = block(inputs, times, eight_words)
        (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    return {name: int((p.grad != 0).sum()) for name, p in block.named_parameters() if bool((p.grad != 0).any())}


reached_by = {}
for name, zero_gates in (("adaLN-Zero", True), ("gates at one", False)):
    block = new_block(zero_gates)
    print(f"{name}: changes its input by {(block(inputs, times, eight_words) - inputs).abs().max():.0f}")
    reached_by[name] = with_gradient(block)
    for part, reached in reached_by[name].items():
        print(f"    gradient reaches {reached} of {block.get_parameter(part).numel()} numbers of {part}")
parts = {name.rpartition(".")[0] for name in reached_by["adaLN-Zero"]}
outcome("7.2", "only some rows of the two modulations" if parts == {"norm1.linear", "norm2.linear"} else
        "all of them" if parts else "none")

# %% [markdown]
# With zero gates the block is exactly the identity, whatever its layers do. A network of 42 such blocks starts as if
# it had no blocks, and every block joins in when its gates open.
#
# The price: a gradient reaches a layer through its gate. Nothing comes through a closed gate, so attention and
# feed-forward cannot learn before the gates have moved: only a third of each `norm.linear`, the gates' own rows,
# is reached. In a run of hundreds of thousands of steps a slow start matters little. Ours has a few thousand, so
# this repository starts otherwise: gates at *one*, and zeros in the *last layer* of each branch. That is also the
# identity, as you saw. (It zeroes the very last layer of the network, too.)
#
# We let both imitate a third, random block, five times, each with other weights. How far does adaLN-Zero fall behind?

# %% tags=["nbval-ignore-output"]
show_source(open_gates)
SEEDS, STEPS = 5, 60


@torch.no_grad()
def teacher(seed):
    """What a random block with open gates makes of the inputs."""
    block = new_block(zero_gates=True)
    torch.manual_seed(100 + seed)
    for parameter in block.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    for norm in (block.norm1, block.norm2):
        norm.linear.bias.view(6, -1)[[2, 5]] = 1.0
    return block(inputs, times, eight_words)


def imitate(zero_gates, seed):
    """Loss in each step of a new block that learns to answer as the teacher does."""
    wanted, block, followed = teacher(seed), new_block(zero_gates, seed), []
    optimizer = torch.optim.Adam(block.parameters(), lr=1e-3)
    for _ in range(STEPS):
        loss = (block(inputs, times, eight_words) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        followed.append(loss.item())
        optimizer.step()
    return followed


with torch.enable_grad():
    imitation = {name: [imitate(zero_gates, seed) for seed in range(SEEDS)]
                 for name, zero_gates in (("adaLN-Zero", True), ("gates at one", False))}
figure, ((axis,),) = new_figure(width=7, height=2.6)
for (name, runs), style in zip(imitation.items(), ("-", "--")):
    means, lows, highs = zip(*map(mean_interval, zip(*runs)))
    axis.plot(means, style, label=name)
    axis.fill_between(range(STEPS), lows, highs, alpha=0.2, linewidth=0)
axis.set(xlabel="step", ylabel="loss")
axis.legend()
show_figure(figure, "Mean loss of five imitations over 60 steps, with 95 % intervals as bands. With gates at one it "
                    "falls at once; with adaLN-Zero it stays high at first.")
later = {}
for step in (10, STEPS - 1):
    pairs = [zero[step] - one[step] for zero, one in zip(*imitation.values())]
    later[step] = mean_interval(pairs)
    mean, low, high = later[step]
    print(f"step {step}: adaLN-Zero's loss less that of gates at one, paired by seed: {mean:+.2f}, "
          f"95 % interval {low:+.2f} to {high:+.2f}, {SEEDS} seeds")
assert later[10][1] > 0

# %% [markdown]
# With zero gates the gates move first, a little in each step, and let through a gradient as small as they are. With
# open gates the last layers move first, and from the second step on everything learns. What differs at the end depends
# on the learning rate and the task: the experiment shows the slow start, no more.
#
# ## 6. Twelve pieces in one matrix
#
# The authors' own code computes all modulations of a block with one linear layer of $12d$ rows, in this order:
#
# | pieces | whose | around |
# |---|---|---|
# | 0, 1, 2 | video's shift, scale, gate | attention |
# | 3, 4, 5 | video's | feed-forward |
# | 6, 7, 8 | text's | attention |
# | 9, 10, 11 | text's | feed-forward |
#
# The `diffusers` layout, which this package reads and writes, has `norm1.linear` for the attention and
# `norm2.linear` for the feed-forward, six pieces each.
#
# ### Exercise 7.5: split_the_twelve (difficulty 2 of 3, 10 minutes)
#
# Cut such a layer's weight, $12d \times$ `d_time`, or its bias, $12d$, into the rows for `norm1` and for `norm2`.

# %%
def split_the_twelve(rows):
    """rows: 12d ... -> two tensors 6d ..., for norm1 and norm2."""
    ### BEGIN SOLUTION
    pieces = rows.chunk(12)
    return torch.cat(pieces[:3] + pieces[6:9]), torch.cat(pieces[3:6] + pieces[9:])
    ### END SOLUTION


split_the_twelve = check("7.5", split_the_twelve)

# %% [markdown]
# The obvious cut is through the middle. Every shape fits, so a strict load does not complain.

# %% tags=["nbval-ignore-output"]
def reloaded(cut):
    """The toy, the modulations of each block packed into one matrix of twelve pieces and cut again with `cut`."""
    state = dict(net.state_dict())
    for i in range(len(net.transformer_blocks)):
        for kind in ("weight", "bias"):
            names = [f"transformer_blocks.{i}.norm{j}.linear.{kind}" for j in (1, 2)]
            (video1, text1), (video2, text2) = (state[name].chunk(2) for name in names)
            state.update(zip(names, cut(torch.cat([video1, video2, text1, text2]))))
    model = ExpertTransformer(net.config).to(device)
    print(f"{cut.__name__}: {model.load_state_dict(state, strict=True)}")
    return model


def through_the_middle(rows):
    return rows.chunk(2)


rightly, wrongly = (loss_of_each(features, reloaded(cut), 16).mean().item()
                    for cut in (split_the_twelve, through_the_middle))
before = trained[:16].mean().item()
print(f"loss as trained {before:.3f}, by split_the_twelve {rightly:.3f}, cut through the middle {wrongly:.3f}")
assert abs(rightly - before) < 1e-3 and wrongly > 3 * before

# %% [markdown]
# "All keys matched", and a ruined model. When you load weights, compare numbers, not only names. The last norm of the
# model has a quirk of its own: `norm_out` gives only two pieces, and a plain layer norm stands right before it.
#
# ## 7. What the toy learned
#
# Here is each gate over the timestep, as the mean over its 256 channels. All began at 1.

# %% tags=["nbval-ignore-output"]
pieces = torch.stack([norm.linear(time).unflatten(1, (6, -1)).cpu() for norm in norms])  # norm t piece d
figure, axes = new_figure(2, 2, width=8, height=4.6)
for row, place in zip(axes, ("attention", "feed-forward")):
    for axis, kind, piece in zip(row, ("video", "text"), (2, 5)):
        for i, style in enumerate(("-", "--", "-.", ":", "-", "--")):
            axis.plot(pieces[2 * i + (place != "attention"), :, piece].mean(dim=-1), style, label=f"block {i}")
        axis.set(title=f"{kind} gate, {place}", ylim=(0, 2.1), xlabel="timestep t")
axes[1, 1].legend(fontsize=7, ncols=3, loc="lower left")
show_figure(figure, "Four panels, the mean gate of video and of text over the timestep, for attention and for the "
                    "feed-forward, one line a block.")

start = torch.tensor([0.0, 0, 1, 0, 0, 1])[:, None]  # shift, scale, gate of video and of text, when training began
untouched = (pieces == start).all(dim=-1).all(dim=1)  # norm piece
names = [f"{kind} {role}" for kind in ("video", "text") for role in ("shift", "scale", "gate")]
for number, piece in untouched.nonzero().tolist():
    print(f"block {number // 2}, norm{number % 2 + 1}: {names[piece]} never moved")

mean_time = time.mean(dim=0)


def held_still(kind):
    """An operation that keeps one half of each modulation at its value for the mean time embedding."""
    def half_still(linear, modulation):
        video, text = modulation.chunk(2, dim=-1)
        still_video, still_text = F.linear(mean_time, linear.weight, linear.bias).expand_as(modulation).chunk(2, dim=-1)
        return torch.cat([still_video if kind == "video" else video, still_text if kind == "text" else text], dim=-1)
    return half_still


print(f"loss as trained {trained.mean():.3f}")
costs = {}
for kind in ("text", "video"):
    with changed_modulations(net, held_still(kind)):
        costs[kind] = mean_interval((loss_of_each(features) - trained).tolist())
    mean, low, high = costs[kind]
    print(f"{kind}'s numbers the same at every t: {mean:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}, {CLIPS} clips")
assert costs["video"][0] > 0.2 * trained.mean() and costs["text"][0] < costs["video"][0]

# %% [markdown]
# A gate is a volume control. (Its mean hides what single channels do.) And some of the 72 pieces are exactly where they
# began, all in the last block. Why these? After it the text is thrown away. The text's gate there, and its whole second
# half, change nothing in the result, so no gradient ever reached them. The text's shift and scale *before* the
# attention did learn: video still looks at the words there.
#
# Does it matter that the numbers follow the timestep? Holding the video's still costs much, holding the text's still
# costs little or nothing. A likely reason: the words are as clean at $t = 999$ as at $t = 0$. In this toy the text has
# *other* numbers than video; it hardly needs *changing* ones.
#
# Now the surgery of the first cell, in doses. At dose 0 the words keep their modulation, at dose 1 they get the
# video's, in between a mixture. Besides the loss we measure the **swap gain**: how much the loss rises when every
# caption names a wrong shape (or colour, or motion, or background). A model that ignores the word has a swap gain of 0.
#
# **Prediction 7.3.** At a dose of one half, which swap gain has kept the largest share of what it was at dose 0?

# %%
predict("7.3", "shape", "colour", "motion", "background")

# %% tags=["folded", "nbval-ignore-output"]
DOSES, HEARD = (0.0, 0.25, 0.5, 0.75, 1.0), 32  # the first 32 clips
others = {kind: features_of([with_other_words(scene, kind) for scene in world.scenes])
          for kind in ("shape", "colour", "motion", "background")}
dosed, gains = [], {kind: [] for kind in others}  # of each dose: loss; mean gain and its 95 % interval over clips
for dose in DOSES:
    with changed_modulations(net, towards_video(dose)):
        told = loss_of_each(features, count=HEARD).cpu()
        dosed.append(mean_interval(told.tolist()))
        for kind, other in others.items():
            gains[kind].append(mean_interval((loss_of_each(other, count=HEARD).cpu() - told).tolist()))

figure, (axes,) = new_figure(1, 5, width=9.5, height=2.4)
for axis, (name, points) in zip(axes, {"loss": dosed, **gains}.items()):
    mean, low, high = torch.tensor(points).T
    axis.errorbar(DOSES, mean, yerr=[(mean - low).tolist(), (high - mean).tolist()], fmt="o-", capsize=2, markersize=4,
                  linewidth=1.5)
    axis.set(xlabel="dose", title=name if name == "loss" else f"swap gain, {name}", xticks=[0, 0.5, 1])
    axis.title.set_fontsize(8)
    if name in gains:
        axis.axhline(mean[0] / 2, color="#000000", linewidth=1, linestyle=":")
    axis.set_ylim(bottom=min(0, 1.1 * float(low.min())))
show_figure(figure, "Five panels over the dose: the loss, and the swap gains of shape, colour, motion and background. "
                    "A dotted line marks half of the gain at dose 0. Bars are 95 % intervals over 32 clips.")
print("dose  " + "  ".join(f"{kind:>10s}" for kind in gains) + "        loss")
for i, dose in enumerate(DOSES):
    print(f"{dose:4.2f}  " + "  ".join(f"{gains[kind][i][0]:10.4f}" for kind in gains) + f"  {dosed[i][0]:10.3f}")
print("95 % intervals of the gains")
for place in (0, 2, 4):
    print(f"{DOSES[place]:4.2f}  " + ", ".join(f"{kind} {points[place][1]:.3f} to {points[place][2]:.3f}"
                                               for kind, points in gains.items()))
left = {dose: {kind: points[i][0] / points[0][0] for kind, points in gains.items()} for i, dose in enumerate(DOSES)}
for dose in (0.5, 1.0):
    print(f"left at dose {dose:g}:", ", ".join(f"{kind} {share:.0%}" for kind, share in left[dose].items()))
assert max(left[1.0]["shape"], left[1.0]["motion"]) < min(0.3, left[1.0]["colour"], left[1.0]["background"])
outcome("7.3", max(left[0.5], key=left[0.5].get))
explore_sweep({dose: painted_with(towards_video(dose), steps=10) for dose in DOSES}, "dose",
              "The red star that moves left, while the words' modulation moves towards the video's")

# %% [markdown]
# At dose 1 the video's half still works, so something is painted. The words are there, but they are badly heard: little
# of shape and motion is left. Colour and background keep a larger share, perhaps because they are the same in many
# patches. The bars are wide: 32 clips say little about the exact shares. (A gain may even rise at first: it is the loss
# with wrong words less the loss with right ones, and a disturbed network can suffer more from a wrong word.) With both
# exchanged, as in the first cell, nothing works.
#
# ### Exercise 7.6: find out when half is gone (difficulty 2 of 3, 15 minutes)
#
# Which words are lost early, and which late? Give each curve one number: the dose at which the swap gain has first
# fallen to half of what it is at dose 0, on straight lines between the measured doses. `None` if it never does.

# %% tags=["nbval-ignore-output"]
def half_gone(doses, gains):
    """doses rise from 0; gains, one for each -> the dose at which half of the first gain is gone, or None."""
    ### BEGIN SOLUTION
    half = gains[0] / 2
    for i in range(1, len(doses)):
        if gains[i] <= half:
            along = (gains[i - 1] - half) / (gains[i - 1] - gains[i])
            return doses[i - 1] + along * (doses[i] - doses[i - 1])
    return None
    ### END SOLUTION


half_gone = check("7.6", half_gone)
for kind, points in gains.items():
    dose = half_gone(DOSES, [mean for mean, _, _ in points])
    print(f"{kind}: half of the swap gain is gone at " + ("no dose" if dose is None else f"dose {dose:.2f}"))

# %% [markdown]
# ## 8. Expert, shared, or everything twice?
#
# Surgery shows what a trained model relies on. Whether one *needs* experts, only training can say. Three designs:
#
# - **expert**: one set of layers, a modulation for each kind (CogVideoX);
# - **shared**: one set of layers, one modulation;
# - **separate**: text has layers of its own; the two meet only in the attention
#   ([MMDiT](https://arxiv.org/abs/2403.03206)).
#
# For a fair comparison all get about the same number of parameters. What *shared* saves goes into a larger time
# embedding; *separate* has everything twice and is narrower. `minicogvx ablate modulation --seeds 5` trained each of
# them five times. Within a seed all see the same clips, captions and noise, so we compare within seeds.
#
# **Prediction 7.4.** After 600 steps, whose loss on validation clips is lower, that of expert or of shared?

# %%
predict("7.4", "expert", "shared", "five seeds cannot tell")

# %% tags=["folded", "nbval-ignore-output"]
studied = load_results("modulation")
sizes = [curve.parameters for curve in studied]
print(f"{min(sizes):,} to {max(sizes):,} parameters")
print("Per cent of captions obeyed, mean over seeds and 95 % interval. A guess would reach: shape 17, colour 12, "
      "motion 8, background 25. Where the oracle recognises nothing, it is 0.")
for name in ("expert", "shared", "separate"):
    print(" ", say_obeyed(studied, name))
for other in ("shared", "separate"):
    loss, obeyed = gain_of(studied, "expert", other), gain_of(studied, "expert", other, properties_obeyed)
    print(f"expert less {other}: loss {loss.said(3)}")
    print(f"    properties obeyed, percentage points {obeyed.said(1)}")
    assert loss.seeds >= 5 and loss.verdict == {"shared": "higher", "separate": "lower"}[other]  # as the text says
assert max(sizes) < 1.03 * min(sizes)
show_figure(paired_figure(studied, "expert"),
            "Left, loss over steps of three designs, with bands. Middle, final losses less expert's, five seeds each. "
            "Right, captions obeyed less expert's, by property. Bars are 95 % intervals.")
said = {"higher": "shared", "lower": "expert", "cannot be told": "five seeds cannot tell"}
outcome("7.4", said[gain_of(studied, "expert", "shared").verdict])

# %% [markdown]
# In the paper expert comes out ahead of both. Here its loss is lower than that of *separate*, but higher than that of
# *shared*. Both intervals exclude 0, so neither is an accident of one seed. (Of many bars, though, one may miss 0 by
# chance.) It is a finding about *this* size: networks a thousand times smaller than the smallest published one, with 75
# words to learn. The larger time embedding of *shared* may help by itself, and the smaller width of *separate* may
# hurt; we tested neither. A share of captions that is near 0 for all, as for shapes that the oracle does not recognise
# yet, compares nothing. And do not count a run twice: *expert* here and *full* in notebook 08 are the same five runs.
#
# ## 9. At full size
#
# How much of the 2B is modulation? One parameter in a hundred? One in five?

# %%
PUBLISHED = {"2b": 1_693_783_872, "5b": 5_570_283_072}


def count(model, part=""):
    """Parameters whose names contain `part`."""
    return sum(p.numel() for name, p in model.named_parameters() if part in name)


for name, published in PUBLISHED.items():
    config = preset(name).transformer
    with torch.device("meta"):
        giants = {way: ExpertTransformer(replace(config, modulation=way)) for way in ("expert", "shared", "separate")}
    sizes = {way: count(giant) for way, giant in giants.items()}
    experts = sum(count(giants["expert"], f"norm{i}.linear") for i in (1, 2))
    assert sizes["expert"] == published
    print(f"{name}: {sizes['expert']:,} parameters, the published number")
    print(f"    modulation: {experts:,}, {experts / published:.0%}; {2 * experts / 1e9:.2f} GB in 16 bits")
    print(f"    shared would save {sizes['expert'] - sizes['shared']:,}, "
          f"{(sizes['expert'] - sizes['shared']) / published:.0%}")
    print(f"    separate would have {sizes['separate']:,}, {sizes['separate'] / published:.1f} times as many")
    equal = count(giants["separate"].transformer_blocks[0])
    blocks = round(count(giants["expert"].transformer_blocks) / equal)
    print(f"    at equal parameters, separate has {blocks} blocks instead of {config.num_layers}")
    work = flops(config, (13, 60, 90), 226)
    saved = work - flops(replace(config, modulation="shared"), (13, 60, 90), 226)
    print(f"    text's modulation is {saved / work:.1e} of the work of one pass")
    print(f"    pieces of the last block that no gradient reaches: {4 * config.width * (config.time_embed_dim + 1):,}")

with torch.device("meta"):
    giant = ExpertTransformer(preset("2b").transformer)
    block = giant.transformer_blocks[0]
    sequence = DenseLayout(226, (13, 30, 45))
    y, (text_gate, gate) = block.norm1(torch.empty(1, 226 + 13 * 30 * 45, 1920), torch.empty(1, 512), sequence)
print("2b, one norm: modulation", tuple(block.norm1.linear.weight.shape), "y", tuple(y.shape), "gates",
      tuple(text_gate.shape), tuple(gate.shape))

# %% [markdown]
# A fifth of the 2B computes nothing but shifts, scales and gates. Yet it is almost no work: in a pass it runs once for
# a video, and the layers run once for each token. So experts cost memory, not time. And since the modulation depends on
# the timestep alone, a sampler of 50 steps needs just 50 of its values: they can be computed beforehand.
#
# ## What you can now explain
#
# Answer first, then open.
#
# <details><summary>1. Layer norm gives every token mean 0 and spread 1. Why is that not enough?</summary>
#
# It works along a token. Across tokens, text and video still stand at different places in many channels, and
# one shift and scale a channel cannot move both to where the next layer wants them.
# </details>
#
# <details><summary>2. What does a gate of zero do at the start of training, forwards and backwards?</summary>
#
# Forwards the block is the identity, so even a deep network starts calmly. Backwards, no gradient reaches the
# layer behind the gate until the gate has moved.
# </details>
#
# <details><summary>3. Words are modulated like video. Why is something still painted, but not what they say?</summary>
#
# The video tokens keep their own numbers. The words' keys and values come out shifted and scaled wrongly, so attention
# no longer reads from them what it learned to read.
# </details>
#
# **What the paper found.** Expert norms reach a better Fréchet video distance, CLIP4Clip score and training loss than
# the same model without them, and than an MMDiT of as many parameters (figures 8 and 10; plots without numbers). The
# paper's first version reports that experts in the feed-forward add nothing. The size of the compared models is not
# stated.
#
# **Where to read on.** `minicogvx/transformer/expert_norm.py`, and `Block` in `block.py`: 30 lines that you have now
# written yourself. Layer norm: [Ba et al.](https://arxiv.org/abs/1607.06450). Next: the layer between norm and gate,
# [full attention](08_full_attention.ipynb) over space and time.

# %% tags=["nbval-ignore-output"]
predictions("7")
progress()
