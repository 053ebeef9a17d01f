# %% [markdown]
# # Expert adaptive layer norm
#
# **How can words and pictures go through the same layers?**
#
# Three videos of one caption and one seed. Run the cell, and look at what a small part of the network decides.

# %% tags=["nbval-ignore-output"]
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

import minicogvx
from minicogvx.ablation import compare_transformers, load_results
from minicogvx.ablation.studies import STUDIES
from minicogvx.course import check, hint, new_figure, notebook_device, show_clip, show_figure, show_source, solution
from minicogvx.data.clips.clips import Selected, stack_latents
from minicogvx.data.clips.world import encode_world
from minicogvx.data.world.captions import caption
from minicogvx.diffusion import diffusion_loss, stratified_timesteps
from minicogvx.presets import preset
from minicogvx.training.transformer import open_gates
from minicogvx.training.validation import swap_gain
from minicogvx.transformer.block import Block
from minicogvx.transformer.embeddings import timestep_sinusoid
from minicogvx.transformer.expert_norm import ExpertNorm
from minicogvx.transformer.layout import DenseLayout
from minicogvx.transformer.model import ExpertTransformer, flops

torch.set_grad_enabled(False)  # training cells switch it on for themselves
device = notebook_device()  # the processor, unless MINICOGVX_DEVICE names another device
pipe = minicogvx.load("toy", device, torch.float32)
net = pipe.transformer
norms = [norm for block in net.transformer_blocks for norm in (block.norm1, block.norm2)]


@contextmanager
def changed(change):
    """While it lasts, every modulation (b 6d: video's half, then text's) is replaced by change(linear, modulation)."""
    hooks = [norm.linear.register_forward_hook(lambda linear, given, out: change(linear, out)) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


WAYS = {
    "as trained": lambda linear, m: m,
    "video's for both": lambda linear, m: m.chunk(2, dim=-1)[0].repeat(1, 2),
    "mean of both": lambda linear, m: (m + m.roll(m.shape[-1] // 2, dims=-1)) / 2,
    "exchanged": lambda linear, m: m.roll(m.shape[-1] // 2, dims=-1),
}
films = []
for name in ("as trained", "video's for both", "exchanged"):
    with changed(WAYS[name]):
        films.append(pipe("a red circle moves right"))
show_clip(torch.cat(films, dim=2), "Three videos of 'a red circle moves right' from one seed. Left, the toy as "
                                   "trained: a red circle. Middle, words modulated like video tokens: a red blot. "
                                   "Right, modulations exchanged: coloured noise.", pipe.fps)

# %% [markdown]
# In CogVideoX, text and video are one sequence. Attention and feed-forward layers have one set of weights for
# both. Only one small thing differs: numbers that shift, stretch and gate the tokens around each layer. In the
# middle the words got the numbers of the video; on the right the two were exchanged. No other weight was touched.
#
# This is the **expert adaptive layer norm** ([the paper](https://arxiv.org/abs/2408.06072), section 2.2; its
# ablation is in 4.1). You will build all of it: the norm, the modulation, the time that drives it, and half a
# block. Afterwards you can explain why text and video need different numbers, why a new block does nothing,
# and what you pay for experts. It takes about 45 minutes, exercises not counted.
#
# ## 1. Two kinds of tokens
#
# We take 64 clips with their captions, add noise of all strengths, and listen at the door of each norm.
# The *spread* of a token is the standard deviation over its $d = 256$ channels.
#
# Predict: which tokens are wider when they enter the first block, text or video? And by how much?

# %% tags=["nbval-ignore-output"]
import random

world = encode_world(pipe.vae, 320, seed=2, num_frames=17, progress=False)
held_back, scenes = Selected(world, range(256, 320)), world.scenes[256:]  # the last 64 clips

generator, words = torch.Generator().manual_seed(0), random.Random(0)
clean = stack_latents(held_back, range(64), generator).to(device)  # b c t h w
noise = torch.randn(clean.shape, generator=generator).to(device)
t = stratified_timesteps(64, 1000, generator).to(device)
noisy = pipe.schedule.add_noise(clean, noise, t)
features = pipe.text.encode([caption(scene, words) for scene in scenes])  # b n_text d_text
NUM_TEXT = features.shape[1]


def loss_of_each_clip():
    return diffusion_loss(net(noisy, t, features), clean, noise, t, pipe.schedule)


passed = []  # of each norm: what came in, and what went out modulated; both b n d
hooks = [norm.register_forward_hook(lambda module, given, out: passed.append((given[0], out[0]))) for norm in norms]
trained_loss = loss_of_each_clip().mean().item()
for hook in hooks:
    hook.remove()

figure, (axes,) = new_figure(1, 2, width=8, height=2.7)
for name, part, style in (("text", slice(0, NUM_TEXT), "o-"), ("video", slice(NUM_TEXT, None), "s--")):
    spreads = [x[:, part].std(dim=-1).flatten().cpu() for x, _ in passed[::2]]  # at the door of each block
    axes[0].semilogy([spread.mean() for spread in spreads], style, label=name)
    axes[1].hist(spreads[0], bins=40, alpha=0.7, density=True, label=name)
    print(f"{name}: mean spread {spreads[0].mean():.1f} at block 0, {spreads[5].mean():.0f} at block 5")
axes[0].set(xlabel="block (from 0)", ylabel="mean spread of a token")
axes[1].set(xlabel="spread of a token at block 0", ylabel="density")
axes[0].legend()
axes[1].legend()
show_figure(figure, "Left: the mean spread of text and of video tokens entering each block, on a logarithmic axis: "
                    "from below ten to hundreds, text mostly wider. Right: the spreads at block 0; most text tokens "
                    "are wider than most video tokens.")

# %%
first = passed[0][0]
wider = first[:, :NUM_TEXT].std(dim=-1).mean() > 2 * first[:, NUM_TEXT:].std(dim=-1).mean()
print("at the first block text is more than twice as wide:", bool(wider))

# %% [markdown]
# The paper names this as its reason: the two "may even have different numerical scales". In the toy they do.
#
# The stream also grows, a hundredfold. Each layer *adds* to it, and nothing holds it back. What keeps the
# layers working is the norm at each door: **layer norm**. Of each token it takes the mean $\mu$ and the
# variance $\sigma^2$ over the channels, and returns
#
# $$\frac{x-\mu}{\sqrt{\sigma^2+\varepsilon}}\; w + b,$$
#
# with one weight $w$ and one bias $b$ a channel, and a small $\varepsilon$ against division by 0.
#
# ### Exercise 7.1: normalise (difficulty 1 of 3, 10 minutes)
#
# Write it, without `F.layer_norm`, for any number of axes in front. `hint("7.1")` gives up to three hints,
# `solution("7.1")` everything.

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
print("PyTorch's gives the same:", torch.allclose(normalise(first, layer.weight, layer.bias), layer(first), atol=1e-4))

# %% [markdown]
# So now all tokens have mean 0 and spread 1. Is that the end of the difference?
#
# Predict: we norm the tokens at the first door, with $w=1$ and $b=0$. Then we look at *one channel*, over all
# tokens. Are text and video alike there?

# %% tags=["nbval-ignore-output"]
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
                    "histograms lie apart, in the second they overlap in part, in the third they lie over each other.")
print(f"channels whose means lie more than one spread apart: {(gap > 1).float().mean():.0%}")

# %%
alike = torch.allclose(plain.std(dim=-1, unbiased=False), torch.ones(64, plain.shape[1]), atol=1e-3)
print("each token has spread 1:", alike)
print("there is a channel where text and video are more than two spreads apart:", bool(gap.max() > 2))

# %% [markdown]
# The norm works along a token and makes the tokens equally wide. It cannot see that text stands to one side of
# a channel and video to the other. A layer norm does not know that there are two kinds.
#
# ## 2. One shift and scale does not fit both
#
# That is what $w$ and $b$ are for: they put each channel where the next layer wants it. But there is one $w$
# and one $b$. First by hand: one channel, two kinds of tokens. The next layer would like mean 0 and spread 1
# from both.

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
# With one pair the mixture fits, and neither part does. With two pairs both fit exactly.
#
# Now the toy itself. It was trained with two pairs. How much of what its norms do could one pair do? For each
# channel we fit the best line from the plain norm to the modulated result: one line for all tokens, or one for
# each kind.
#
# Predict: what share of the result does one line miss? And two?

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

# %%
print("in every norm one line misses at least twice as much as two:", all(one > 2 * two for one, two in missed))

# %% [markdown]
# Two lines miss little. What they miss is the change with the timestep, our next subject.
#
# Mind what this shows. *This* network uses two pairs. A network trained with one pair could put the difference
# elsewhere: in the projection of the text, or in the stream. Section 8 trains one and compares.
#
# ## 3. Where the numbers come from
#
# A token at $t = 999$ is noise, at $t = 0$ it is almost a picture. The same shift and scale for both would be a
# pity. **Adaptive** means: a small network computes them from the timestep.
#
# It begins with a sinusoid. $d/2$ hands of a clock turn at different speeds, the first by 1 radian a timestep,
# each further one a little slower. Of each hand we take cosine and sine:
#
# $$\cos(\omega_i t),\; \sin(\omega_i t), \qquad \omega_i = 10000^{-i/(d/2)}, \quad i = 0 \ldots d/2-1.$$
#
# ### Exercise 7.3: sinusoid (difficulty 2, 10 minutes)
#
# (7.2 follows in section 4.) The published order is: all cosines, then all sines.

# %%
def sinusoid(t, d):
    """t: b timesteps -> b d, cosines then sines."""
    ### BEGIN SOLUTION
    frequencies = 10000 ** (-torch.arange(d // 2) / (d // 2))
    angles = t[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
    ### END SOLUTION


sinusoid = check("7.3", sinusoid)

every_t = torch.arange(1000)
clock = sinusoid(every_t, 256)
print("the package makes the same:", torch.allclose(clock, timestep_sinusoid(every_t, 256), atol=1e-3))
slow = sum(1000 * 10000 ** (-i / 128) < 2 * torch.pi for i in range(128))
print(f"hands that turn less than once in 1000 timesteps: {slow} of 128")

mlp = net.time_embedding
hidden = clock.to(device) @ mlp.linear_1.weight.T + mlp.linear_1.bias
hidden = hidden * torch.sigmoid(hidden)  # SiLU
embedded = hidden @ mlp.linear_2.weight.T + mlp.linear_2.bias
time = embedded * torch.sigmoid(embedded)  # t d_time: each modulation reads this
print("time embedding by hand, like the package's:", torch.allclose(embedded, mlp(every_t.to(device)), atol=1e-2))

figure, ((axis,),) = new_figure(width=7, height=2.6)
picture = axis.imshow(clock.T, aspect="auto", cmap="viridis")
axis.set(xlabel="timestep t", ylabel="channel")
axis.grid(False)
figure.colorbar(picture)
show_figure(figure, "The sinusoid of all timesteps: 256 channels from top to bottom, cosines in the upper half and "
                    "sines in the lower. The top of each half flickers with every timestep, the bottom hardly changes.")

# %% [markdown]
# Fast hands tell neighbours apart, slow hands tell early from late. The MLP mixes them into 64 numbers.
# One more linear layer, at each norm its own, turns these into the modulation.
#
# ## 4. Shift, scale, gate, twice
#
# Around a layer each kind of token gets three vectors of width $d$, so the linear layer gives $6d$ numbers:
#
# $$y = \mathrm{norm}(x)\,(1 + \text{scale}) + \text{shift}, \qquad
# x \leftarrow x + \text{gate}\cdot\mathrm{layer}(y).$$
#
# Why $1 +$ scale? Then zeros mean "change nothing". In the plainest way, one token after the other:

# %%
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
print("tokens, channels:", tuple(naive.shape))
print("the package computes the same:", torch.allclose(naive, package[0], atol=1e-3))
show_source(ExpertNorm)

# %% [markdown]
# One trap is in it: in the sequence the text stands first, in the modulation the video does. And the layer norm's
# own $w$ and $b$ are shared; only the modulation is "expert".
#
# ### Exercise 7.2: shift_and_scale (difficulty 1, 5 minutes)
#
# One kind of token, a whole batch. It is one line, and the line that most people get wrong once.

# %%
def shift_and_scale(x, shift, scale):
    """x: b n d; shift, scale: b d -> b n d."""
    ### BEGIN SOLUTION
    return x * (1 + scale[:, None]) + shift[:, None]
    ### END SOLUTION


shift_and_scale = check("7.2", shift_and_scale)

# %% [markdown]
# ### Exercise 7.4: expert_modulation (difficulty 2, 15 minutes)
#
# Now both kinds. `x` is normed already. Return the modulated sequence, the text gate and the video gate; give the
# gates the shape `b 1 d`.

# %%
def expert_modulation(x, num_text, modulation):
    """x: b n d, text first; modulation: b 6d, video first -> y b n d, text gate b 1 d, video gate b 1 d."""
    ### BEGIN SOLUTION
    shift, scale, gate, text_shift, text_scale, text_gate = modulation.chunk(6, dim=-1)
    text, video = x[:, :num_text], x[:, num_text:]
    y = torch.cat([shift_and_scale(text, text_shift, text_scale), shift_and_scale(video, shift, scale)], dim=1)
    return y, text_gate[:, None], gate[:, None]
    ### END SOLUTION


expert_modulation = check("7.4", expert_modulation)

# %% [markdown]
# ### Exercise 7.5: half_block (difficulty 2, 10 minutes)
#
# Norm, modulation, layer, gated residual. A block is two such halves: one around the attention, one around the
# feed-forward.

# %%
def half_block(x, num_text, modulation, norm, layer):
    """x: b n d; norm and layer: functions of b n d -> b n d."""
    ### BEGIN SOLUTION
    y, text_gate, gate = expert_modulation(norm(x), num_text, modulation)
    new = layer(y)
    text = x[:, :num_text] + text_gate * new[:, :num_text]
    return torch.cat([text, x[:, num_text:] + gate * new[:, num_text:]], dim=1)
    ### END SOLUTION


half_block = check("7.5", half_block)


def whole_block(block, x, time):
    """One block of the toy out of your pieces."""
    def my_norm(norm):
        return lambda x: normalise(x, norm.weight, norm.bias, norm.eps)

    x = half_block(x, NUM_TEXT, block.norm1.linear(time), my_norm(block.norm1.norm),
                   lambda y: block.attn1(y, layout))
    return half_block(x, NUM_TEXT, block.norm2.linear(time), my_norm(block.norm2.norm), block.ff)


block = net.transformer_blocks[0]
ours, theirs = whole_block(block, first[:4], time[t[:4]]), block(first[:4], time[t[:4]], layout)
print("your block computes what the toy's does:", torch.allclose(ours, theirs, rtol=1e-3, atol=1e-1))
show_source(Block)

# %% [markdown]
# That is the whole block of the paper, your two halves under each other. `t_emb` is our `time`; `add_gated` is the
# last line of your `half_block`. Notebook 08 opens the attention.
#
# ## 5. A block that does nothing
#
# How should training begin? In the published models the linear layer of every modulation starts with zeros,
# weights and biases. This is **adaLN-Zero**, from [DiT](https://arxiv.org/abs/2212.09748).
#
# Predict: what does a new block do to its input? And which of its weights get a gradient in the first step?

# %%
small = replace(preset("toy").transformer, num_attention_heads=2, attention_head_dim=32, num_layers=1,
                time_embed_dim=32)
generator = torch.Generator().manual_seed(2)
inputs, times = torch.randn(16, 24, 64, generator=generator), torch.randn(16, 32, generator=generator)
eight_words = DenseLayout(8, (1, 4, 4))  # 8 text tokens, then 16 of one frame


def new_block(zero_gates):
    """A fresh block of width 64: adaLN-Zero, or the start that this repository trains from."""
    torch.manual_seed(0)
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


for name, zero_gates in (("adaLN-Zero", True), ("gates at one", False)):
    block = new_block(zero_gates)
    print(f"{name}: gives its input back exactly: {torch.equal(block(inputs, times, eight_words), inputs)}")
    for part, reached in with_gradient(block).items():
        print(f"    gradient reaches {reached} of {block.get_parameter(part).numel()} numbers of {part}")

# %% [markdown]
# With zero gates the block is exactly the identity, however wild its layers are. A network of 42 such blocks
# starts like one of none, and every block joins in when its gates open.
#
# The price: a gradient reaches a layer through its gate. Through a closed gate comes nothing, so attention and
# feed-forward cannot learn before the gates have moved: only a third of each `norm.linear`, the gates' own rows,
# is reached. In a run of hundreds of thousands of steps a slow start matters little. Ours has a few thousand, so
# this repository starts otherwise: gates at *one*, and zeros in the *last layer* of each branch. That is also the
# identity, as you saw. (It zeroes the very last layer of the network, too.)
#
# Predict: we let both blocks imitate a third, random one. Which gets there first?

# %% tags=["nbval-ignore-output"]
show_source(open_gates)

teacher = new_block(zero_gates=True)
torch.manual_seed(5)
for name, parameter in teacher.named_parameters():
    if parameter.ndim == 2:
        nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
for norm in (teacher.norm1, teacher.norm2):
    norm.linear.bias.view(6, -1)[[2, 5]] = 1.0  # open gates
wanted = teacher(inputs, times, eight_words)

imitation = {}
with torch.enable_grad():
    for name, zero_gates in (("adaLN-Zero", True), ("gates at one", False)):
        block, imitation[name] = new_block(zero_gates), []
        optimizer = torch.optim.Adam(block.parameters(), lr=1e-3)
        for step in range(100):
            loss = (block(inputs, times, eight_words) - wanted).square().mean()
            optimizer.zero_grad()
            loss.backward()
            imitation[name].append((loss.item(), block.ff.net[0].proj.weight.grad.norm().item()))
            optimizer.step()

figure, (axes,) = new_figure(1, 2, width=8, height=2.6)
for (name, values), style in zip(imitation.items(), ("-", "--")):
    loss, gradient = zip(*values)
    axes[0].semilogy(loss, style, label=name)
    axes[1].plot(gradient[:30], style, label=name)
axes[0].set(xlabel="step", ylabel="loss")
axes[1].set(xlabel="step", ylabel="gradient of the first\nfeed-forward weight")
axes[0].legend()
show_figure(figure, "Left: the loss of the two blocks over 100 steps; with gates at one it falls at once, with "
                    "adaLN-Zero only after some ten steps; then they meet for a while. Right: the size of the gradient "
                    "of the first feed-forward weight in the first 30 steps; with adaLN-Zero it starts more slowly.")
for name, values in imitation.items():
    print(f"{name}: loss {values[0][0]:.2f}, after 10 steps {values[10][0]:.2f}, at the end {values[-1][0]:.2f}")

# %%
zero, one = imitation["adaLN-Zero"], imitation["gates at one"]
print("after 3 steps the feed-forward of gates at one gets a larger gradient:", one[3][1] > zero[3][1])
print("after 10 steps gates at one are closer to the teacher:", one[10][0] < zero[10][0])

# %% [markdown]
# With zero gates the gates move first, a little in each step, and let through a gradient as small as they are: they
# start some ten steps late. With open gates the last layers move first, and from the second step on everything
# learns. Later the two meet. What differs at the end depends on the learning rate and the task, so do not read more
# into it.
#
# ## 6. Twelve pieces in one drawer
#
# The authors' own code computes all modulations of a block with one linear layer, $12d$ rows. In this order:
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
# ### Exercise 7.6: split_the_twelve (difficulty 2, 10 minutes)
#
# Cut such a drawer, a weight $12d \times$ `d_time` or a bias $12d$, into the rows for `norm1` and for `norm2`.

# %%
def split_the_twelve(rows):
    """rows: 12d ... -> two tensors 6d ..., for norm1 and norm2."""
    ### BEGIN SOLUTION
    pieces = rows.chunk(12)
    return torch.cat(pieces[:3] + pieces[6:9]), torch.cat(pieces[3:6] + pieces[9:])
    ### END SOLUTION


split_the_twelve = check("7.6", split_the_twelve)

# %% [markdown]
# The obvious cut is through the middle. Every shape fits, so a strict load has no complaint. Predict: what happens
# to the loss?

# %%
def reloaded(cut):
    """The toy, its modulations packed into drawers of twelve and cut again with `cut`."""
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


rightly, wrongly = (reloaded(cut)(noisy, t, features) for cut in (split_the_twelve, through_the_middle))
print("cut your way, the toy is itself:", torch.allclose(rightly, net(noisy, t, features), atol=1e-3))
worse = diffusion_loss(wrongly, clean, noise, t, pipe.schedule).mean().item()
print("cut through the middle, its loss is more than five times as high:", worse > 5 * trained_loss)

# %% [markdown]
# "All keys matched", and a ruined model. With weights, check numbers, never names alone. The last norm of the
# model has a quirk of its own: `norm_out` gives only two pieces, and a plain layer norm stands right before it.
#
# ## 7. What the toy learned
#
# Here is each gate over time, as the mean over its 256 channels. All began at 1. Predict: which gates move most
# with $t$, video's or text's?

# %% tags=["nbval-ignore-output"]
pieces = torch.stack([norm.linear(time).unflatten(1, (6, -1)).cpu() for norm in norms])  # norm t piece d
figure, axes = new_figure(2, 2, width=8, height=4.6)
for row, place in zip(axes, ("attention", "feed-forward")):
    for axis, kind, piece in zip(row, ("video", "text"), (2, 5)):
        for i, style in enumerate(("-", "--", "-.", ":", "-", "--")):
            axis.plot(pieces[2 * i + (place != "attention"), :, piece].mean(dim=-1), style, label=f"block {i}")
        axis.set(title=f"{kind} gate, {place}", ylim=(0, 2.1), xlabel="timestep t")
axes[1, 1].legend(fontsize=7, ncols=3, loc="lower left")
show_figure(figure, "Four panels, the mean gate of video and of text over the timestep, for attention and "
                    "feed-forward, one line a block. Video's attention gate of block 0 is nearly closed, and its "
                    "feed-forward gate falls with t; in later blocks both are wider. Text's change little.")

# %%
start = torch.tensor([0.0, 0, 1, 0, 0, 1])[:, None]  # shift, scale, gate of video and of text, when training began
untouched = (pieces == start).all(dim=-1).all(dim=1)  # norm piece
names = [f"{kind} {role}" for kind in ("video", "text") for role in ("shift", "scale", "gate")]
for number, piece in untouched.nonzero().tolist():
    print(f"block {number // 2}, norm{number % 2 + 1}: {names[piece]} never moved")

# %% [markdown]
# Read a gate as a volume. For video, the first block hardly uses its attention, and its feed-forward is loud when the
# picture is nearly clean: that line moves most. The other lines are nearly flat, video's and text's. (A mean hides
# what single channels do.)
#
# And four of the 72 pieces stand exactly where they began. Why these? After the last block the text is thrown away.
# Its gate there, and its whole second half, change nothing in the result, so no gradient ever came. Its shift and
# scale *before* the attention did learn: video still looks at the words there.
#
# Does it matter that the numbers follow the timestep? We hold one half still, at its mean over all timesteps.

# %% tags=["nbval-ignore-output"]
mean_time = time.mean(dim=0)


def held_still(kind):
    def change(linear, modulation):
        video, text = modulation.chunk(2, dim=-1)
        still_video, still_text = F.linear(mean_time, linear.weight, linear.bias).expand_as(modulation).chunk(2, dim=-1)
        return torch.cat([still_video if kind == "video" else video, still_text if kind == "text" else text], dim=-1)
    return change


still_loss = {}
for kind in ("text", "video"):
    with changed(held_still(kind)):
        still_loss[kind] = loss_of_each_clip().mean().item()
    print(f"{kind} held still: loss {still_loss[kind]:.3f}, as trained {trained_loss:.3f}")

# %%
print("holding the text still costs less than 5 %:", still_loss["text"] < 1.05 * trained_loss)
print("holding the video still costs more than 50 %:", still_loss["video"] > 1.5 * trained_loss)

# %% [markdown]
# Video needs the time, text almost not. A likely reason: the words are as clean at $t = 999$ as at $t = 0$. The text
# needs *other* numbers than video; it hardly needs *changing* ones.
#
# Now the surgery of the first cell, measured. Besides the loss we measure the **swap gain**: how much the loss
# rises when every caption names a wrong shape. A model that does not hear its caption has a swap gain of 0.

# %% tags=["nbval-ignore-output"]
losses, gains = {}, {}
for name, change in WAYS.items():
    with changed(change):
        losses[name] = loss_of_each_clip().mean().item()
        gains[name] = swap_gain(net, pipe.text, pipe.schedule, scenes, held_back, torch.float32)
    print(f"{name:17s} loss {losses[name]:.2f}, swap gain {gains[name]:+.3f}")
silent = pipe.schedule.velocity(clean, noise, t).square().mean().item()
print(f"{'answering 0':17s} loss {silent:.2f}")

# %%
print("the mean of both is worse than video's for both:", losses["mean of both"] > losses["video's for both"])
print("no operation keeps a quarter of the swap gain:", all(gains[name] < gains["as trained"] / 4
                                                            for name in list(WAYS)[1:]))

# %% [markdown]
# With video's numbers for both, the loss rises least: the video half still works. But almost nothing of the swap gain
# is left. The words are there, and hardly anybody hears them, as in the middle film above: something red, and no
# circle. Exchanged, nothing works.
#
# ## 8. Expert, shared, or everything twice?
#
# Surgery shows what a trained model relies on. Whether one *needs* experts, only training can say. Three designs:
#
# - **expert**: one set of layers, a modulation for each kind (CogVideoX);
# - **shared**: one set of layers, one modulation;
# - **separate**: text has layers of its own; the two meet only in the attention
#   ([MMDiT](https://arxiv.org/abs/2403.03206)).
#
# For a fair comparison all get the same number of parameters. What *shared* saves goes into a wider time
# embedding; *separate* has everything twice and is narrower. Two of them now, for 60 steps. Every variant sees the
# same clips, captions and noise.

# %% tags=["nbval-ignore-output"]
variants = STUDIES["modulation"].variants
curves = compare_transformers({name: variants[name] for name in ("expert", "shared")}, world, steps=60, seed=0,
                              every=20, device=device)

runs = {}
for curve in load_results("modulation"):
    runs.setdefault(curve.name, []).append(curve)

figure, (axes,) = new_figure(1, 2, width=8.5, height=2.8)
for name, style in (("expert", "-"), ("shared", "--"), ("separate", "-.")):
    if name in curves:
        axes[0].plot(curves[name].steps, curves[name].loss, style, marker="o", label=name)
        print(f"now, {name}: {curves[name].parameters:,} parameters, {curves[name].seconds:.0f} s, loss at the end "
              f"{curves[name].loss[-1]:.3f}")
    ends = torch.tensor([curve.loss for curve in runs[name]])  # seed x measurement
    axes[1].plot(runs[name][0].steps, ends.mean(dim=0), style, label=name)
    axes[1].fill_between(runs[name][0].steps, ends.amin(dim=0), ends.amax(dim=0), alpha=0.2)
    print(f"before, {name}: {runs[name][0].parameters:,} parameters, loss after {runs[name][0].steps[-1]} steps "
          f"{ends[:, -1].mean():.4f}, from {ends[:, -1].min():.4f} to {ends[:, -1].max():.4f} over {len(ends)} seed(s)")
for axis, title in zip(axes, ("now, one seed", "longer")):
    axis.set(title=title, xlabel="step", ylabel="loss on clips held back", yscale="log")
axes[1].legend()
show_figure(figure, "Loss on held-back clips over the steps. Left: expert and shared, 60 steps. Right: shared, expert "
                    "and separate after 600 steps, in this order from low to high.")

# %%
sizes = [curve.parameters for seeds in runs.values() for curve in seeds]
print("all within 3 % of the same size:", max(sizes) < 1.03 * min(sizes))
print("as many seeds of each:", len({len(seeds) for seeds in runs.values()}) == 1)
for other in ("shared", "separate"):
    wins = sum(a.loss[-1] < b.loss[-1] for a, b in zip(runs["expert"], runs[other]))
    print(f"seeds in which expert ends below {other}: {wins} of {len(runs[other])}")

# %% [markdown]
# Left, a glance: one seed, and a loss still several times the shipped toy's. The two end within a few hundredths of
# each other, which says nothing: with 80 and with 100 steps we saw now the one and now the other ahead.
#
# Right, what `minicogvx ablate modulation` made beforehand, in 600 steps. The order is *not* the paper's: shared ends
# at 0.303, expert at 0.340, separate at 0.400. Do not build on it: it is one seed, so we cannot say how much is
# chance. And these networks are a thousand times smaller than the smallest published one, with 75 words of text to
# fit. Also, the wider time embedding of shared may help by itself; we did not test that. But do not explain it away,
# either: at this size, one pair of numbers costs nothing that we could measure.
#
# ## 9. At full size
#
# Predict: how much of the 2B is modulation? One in a hundred? One in five?

# %%
PUBLISHED = {"2b": 1_693_783_872, "5b": 5_570_283_072}


def count(model, part=""):
    return sum(p.numel() for name, p in model.named_parameters() if part in name)


for name, published in PUBLISHED.items():
    config = preset(name).transformer
    with torch.device("meta"):
        giants = {way: ExpertTransformer(replace(config, modulation=way)) for way in ("expert", "shared", "separate")}
    sizes = {way: count(giant) for way, giant in giants.items()}
    experts = sum(count(giants["expert"], f"norm{i}.linear") for i in (1, 2))
    print(f"{name}: {sizes['expert']:,} parameters, as published: {sizes['expert'] == published}")
    print(f"    modulation: {experts:,}, {experts / published:.0%}; {2 * experts / 1e9:.2f} GB in 16 bits")
    print(f"    shared would save {sizes['expert'] - sizes['shared']:,}, "
          f"{(sizes['expert'] - sizes['shared']) / published:.0%}")
    print(f"    separate would have {sizes['separate']:,}, {sizes['separate'] / published:.1f} times as many")
    equal = count(giants["separate"].transformer_blocks[0])
    blocks = round(count(giants["expert"].transformer_blocks) / equal)
    print(f"    at equal parameters, separate has {blocks} blocks instead of {config.num_layers}")
    work = flops(config, (13, 60, 90), 226)
    saved = work - flops(replace(config, modulation="shared"), (13, 60, 90), 226)
    print(f"    of the work of a run, text's modulation is {saved / work:.1e}")
    print(f"    pieces of the last block that no gradient reaches: {4 * config.width * (config.time_embed_dim + 1):,}")

with torch.device("meta"):
    giant = ExpertTransformer(preset("2b").transformer)
    block = giant.transformer_blocks[0]
    sequence = DenseLayout(226, (13, 30, 45))
    y, (text_gate, gate) = block.norm1(torch.empty(1, 226 + 13 * 30 * 45, 1920), torch.empty(1, 512), sequence)
print("2b, one norm: modulation", tuple(block.norm1.linear.weight.shape), "y", tuple(y.shape), "gates",
      tuple(text_gate.shape), tuple(gate.shape))

# %% [markdown]
# A fifth of the 2B computes nothing but shifts, scales and gates. Yet it costs almost no work: it runs once a
# video, and the layers run once a token. So experts are paid in memory. And since the modulation depends on the
# timestep alone, a sampler of 50 steps needs just 50 of its values: they can be computed beforehand.
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
# Forwards the block is the identity, so even a deep network starts tame. Backwards, no gradient reaches the
# layer behind the gate until the gate has moved.
# </details>
#
# <details><summary>3. Words are modulated like video. Why does the video survive, but not the caption?</summary>
#
# The video tokens keep their own numbers. The words reach keys and values in the wrong place and size, so
# attention no longer reads from them what it learned to read.
# </details>
#
# **What the paper found.** At equal parameters, expert norms reach a better Fréchet video distance, CLIP score
# and training loss than one shared norm and than MMDiT (figures 8 and 10; plots without numbers). Its first version
# reports that experts in the feed-forward add nothing. The size of the compared models is not stated.
#
# **Where to read on.** `minicogvx/transformer/expert_norm.py`, and `Block` in `block.py`: 30 lines that you have now
# written yourself. Layer norm: [Ba et al.](https://arxiv.org/abs/1607.06450). Next: the layer between norm and gate,
# full attention over space and time.
