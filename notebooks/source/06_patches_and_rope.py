# %% [markdown]
# # Patches and positions
#
# **How does a transformer know where a patch belongs?**
#
# Run the cell below. Both clips come from the same weights, the same caption and the same noise.

# %% tags=["nbval-ignore-output"]
import math
from copy import copy
from dataclasses import replace

import torch
from einops import rearrange

import minicogvx
from minicogvx.ablation import load_results, paired_figure
from minicogvx.ablation.paired import gain_of, properties_obeyed, say_obeyed
from minicogvx.course import (
    check, compare_clips, explore_figure, explore_rope, hint, new_figure, notebook_device, outcome, predict,
    predictions, progress, show_figure, show_source, solution,
)
from minicogvx.data.world import oracle
from minicogvx.pipeline import Pipeline
from minicogvx.presets import preset
from minicogvx.transformer.embeddings import PatchEmbed
from minicogvx.transformer.model import ExpertTransformer, flops
from minicogvx.transformer.patchify import patchify, unpatchify
from minicogvx.transformer.positions import interpolated_coordinates, rope_3d, rotate, sincos_3d, with_text

torch.set_grad_enabled(False)
device = notebook_device()  # the processor, unless MINICOGVX_DEVICE names another device
pipe = minicogvx.load("toy", device, torch.float32)
toy = pipe.transformer.config


def remade(**fields):
    """The toy's weights under a changed config."""
    net = ExpertTransformer(replace(toy, **fields)).eval().to(device)
    net.load_state_dict(pipe.transformer.state_dict())
    return Pipeline(pipe.vae, net, pipe.schedule_config, pipe.text, pipe.fps)


def largest_gap(a, b):
    """The largest difference between two tensors."""
    return (a.cpu() - b.cpu()).abs().max().item()


PROMPT = "a cyan star moves left on a brown background"
bare = remade(position="none")
settings = {"num_inference_steps": 20, "guidance_scale": 3.0, "seed": 3}
film, lost = pipe(PROMPT, **settings), bare(PROMPT, **settings)
for name, clip in (("the toy", film), ("without positions", lost)):
    found = oracle.read(clip)
    shapes = ", ".join(f"{thing.colour} {thing.shape}" for thing in found.objects) or "no shape"
    print(f"{name}: the oracle sees {shapes} on {found.background}")
compare_clips({"the toy": film, "without positions": lost},
              f"Two clips of '{PROMPT}'. With positions a star, without them a brown background and no star.", pipe.fps)

# %% [markdown]
# The second clip was made without one thing: what tells each patch where it stands. *Brown* still gets through, because
# it is the same for every patch. The star covers only a few, and no patch can tell whether it is one of them.
#
# You will cut latents into patches, build both position codes of CogVideoX by hand, and see what five training runs of
# each show. Afterwards you can explain how the 2B's table and the 5B's rotation tell a patch where it is, and predict
# where a model paints a second star when you ask it for a larger frame than it was trained on. It takes about 100
# minutes, exercises included. It covers 3D RoPE in section 2.2 of the [paper](https://arxiv.org/abs/2408.06072), and
# the paper's Figures 9 and 10a. (Notation: the box in [notebook 01](01_video_tensors.ipynb).)
#
# ## 1. Patches
#
# The transformer reads a sequence of tokens, but latents are an array `c t h w`. So we cut the array into boxes of
# $p_t \times p \times p$, and each box becomes one token.

# %% tags=["nbval-ignore-output"]
def boxes(latents, patch_t, patch):
    """Latents c t h w, cut by loops -> n patch_values, in the order of tokens."""
    _, t, h, w = latents.shape
    cut = []
    for frame in range(0, t, patch_t):
        for row in range(0, h, patch):
            for column in range(0, w, patch):
                box = latents[:, frame:frame + patch_t, row:row + patch, column:column + patch]
                cut.append(box.flatten())  # channel, frame, row, column
    return torch.stack(cut)


latents = pipe.vae.encode(rearrange(film * 2 - 1, "t h w c -> 1 c t h w").to(device)).mode()  # b c t h w
print("latents", tuple(latents.shape))
for patch in (1, 2, 4):
    naive = boxes(latents[0], 1, patch)
    n, gap = len(naive), largest_gap(naive, patchify(latents, 1, patch)[0])
    assert gap == 0
    print(f"patch 1 x {patch} x {patch}: {n:3d} tokens of {naive.shape[1]:3d} numbers, {n * n:7,} pairs; "
          f"largest difference from the package's {gap:.0f}")

figure, (axes,) = new_figure(1, 5, width=8.5, height=2.0)
for place, axis in enumerate(axes):
    axis.imshow(film[4 * place], alpha=0.6)
    for row in range(4):
        for column in range(4):
            axis.text(16 * column + 8, 16 * row + 8, str(16 * place + 4 * row + column), ha="center", va="center",
                      fontsize=8)
    for line in (16, 32, 48):
        axis.axvline(line - 0.5, color="white", linewidth=1)
        axis.axhline(line - 0.5, color="white", linewidth=1)
    axis.set(xticks=[], yticks=[], title=f"latent frame {place}")
    axis.grid(False)
    axis.spines[:].set_visible(False)
show_figure(figure, "Five latent frames, each cut into 4 x 4 patches. The tokens are numbered row by row: 0 to 15 in "
                    "latent frame 0, 64 to 79 in latent frame 4.")

# %% [markdown]
# Tokens are in order of frame, then row, then column. Attention compares every token with every other. Twice the
# patch side means a quarter of the tokens and a sixteenth of the pairs. The price: one token has to stand for
# more. CogVideoX takes $p = 2$.
#
# A matrix then brings each box to the model's width. The 1.0 models call it a `Conv2d` with kernel and stride
# 2, applied to each frame. The 1.5 models, whose patches span two latent frames, call it a `Linear`. Are these
# two different things?

# %% tags=["nbval-ignore-output"]
proj = pipe.transformer.patch_embed.proj
frames = [proj(frame) for frame in latents[0].unbind(dim=1)]  # d h w each
by_conv = rearrange(torch.stack(frames), "t d h w -> (t h w) d")
by_matrix = boxes(latents[0], 1, 2) @ proj.weight.flatten(1).T + proj.bias
print(type(proj).__name__, tuple(proj.weight.shape), f"against one matrix: {largest_gap(by_conv, by_matrix):.0e} apart")
assert largest_gap(by_conv, by_matrix) < 1e-3

tall = ExpertTransformer(replace(toy, patch_size_t=2)).to(device)
text = pipe.text.encode([PROMPT])  # b n d_text
try:
    tall(latents, torch.tensor([500], device=device), text)
except ValueError as error:
    print(error)
longer = torch.cat([latents[:, :, :1], latents], dim=2)  # latent frame 0 twice
by_matrix = boxes(longer[0], 2, 2) @ tall.patch_embed.proj.weight.T + tall.patch_embed.proj.bias
package = tall.patch_embed(longer, text, None)[0, text.shape[1]:]
print(type(tall.patch_embed.proj).__name__, tuple(tall.patch_embed.proj.weight.shape),
      f"against one matrix: {largest_gap(by_matrix, package):.0e} apart")
assert largest_gap(by_matrix, package) < 1e-3
print(f"{len(by_conv)} tokens become {len(package)}")
show_source(PatchEmbed.forward)

# %% [markdown]
# One matrix in both cases. (The two tables in `forward` come in sections 3 and 6.) But 17 frames give 5 latent frames,
# and 5 is odd. The published 1.5 models put a copy of the first latent frame in front, and drop it from the result.
#
# ### Exercise 6.1: back from patches (difficulty 1 of 3, 10 minutes)
#
# At its end the transformer holds tokens, and the VAE wants latents. Write the way back. `hint("6.1")` gives one more
# hint each time, `solution("6.1")` a solution.

# %%
def from_patches(tokens, grid, patch_t, patch):
    """tokens b n patch_values, grid the patches along (time, height, width) -> latents b c t h w."""
    ### BEGIN SOLUTION
    t, h, w = grid
    sizes = {"t": t, "h": h, "w": w, "r": patch_t, "p": patch, "q": patch}
    return rearrange(tokens, "b (t h w) (c r p q) -> b c (t r) (h p) (w q)", **sizes)
    ### END SOLUTION


from_patches = check("6.1", from_patches)
show_source(unpatchify)

# %% [markdown]
# ## 2. A set has no order
#
# In attention a token's query is compared with every key. That gives weights, and the answer is the weighted mean of
# the values. Nothing in it says which key came first.
#
# **Prediction 6.1.** We shuffle the 80 patches of a noisy latent and run the network without positions: what becomes
# of its answer?

# %%
predict("6.1", "the same answer, shuffled in the same way", "the same answer, in the old order", "another answer")

# %% tags=["folded", "nbval-ignore-output"]
order = torch.randperm(80, generator=torch.Generator().manual_seed(0))


def mixed_up(latents):
    """The same patches, each in another place."""
    return from_patches(patchify(latents, 1, 2)[:, order], (5, 4, 4), 1, 2)


noisy = torch.randn(1, 16, 5, 8, 8, generator=torch.Generator().manual_seed(1)).to(device)
t = torch.tensor([600], device=device)
gaps = {}
for name, net in (("without positions", bare.transformer), ("with positions", pipe.transformer)):
    before, after = net(noisy, t, text), net(mixed_up(noisy), t, text)
    gaps[name] = largest_gap(mixed_up(before), after)
    print(f"{name}: the old answer, shuffled alike, and the new one are {gaps[name]:.0e} apart at most; "
          f"not shuffled {largest_gap(before, after):.0e}")
assert gaps["without positions"] < 1e-3 < 0.1 < gaps["with positions"]
outcome("6.1", "the same answer, shuffled in the same way" if gaps["without positions"] < 1e-3 else "another answer")

# %% [markdown]
# Without positions, a video is a bag of patches. First or last frame, top or bottom: the network cannot tell. (The
# words keep their order. The T5 encoder took care of that, in notebook 05.)
#
# ## 3. Add a table
#
# The oldest remedy, which the 2B uses: add to each token a vector that says where it is. A coordinate $x$ becomes $m$
# sines and $m$ cosines, of many wavelengths,
#
# $$\sin(\omega_i x),\quad \cos(\omega_i x), \qquad \omega_i = 10000^{-i/m}, \quad i = 0 \ldots m-1.$$
#
# Fast waves tell neighbours apart, slow ones say roughly where we are. Time gets a quarter of the channels, the
# column three eighths, the row three eighths. In plain loops:

# %% tags=["nbval-ignore-output"]
def waves(x, channels):
    """Sines, then cosines, of one coordinate."""
    frequencies = [10000 ** (-i / (channels // 2)) for i in range(channels // 2)]
    return [math.sin(f * x) for f in frequencies] + [math.cos(f * x) for f in frequencies]


naive = []
for frame in range(5):
    for row in range(4):
        for column in range(4):
            naive.append(waves(frame, 64) + waves(column / 1.875, 96) + waves(row / 1.875, 96))
table = sincos_3d((5, 4, 4), 256)
print("the package's table:", tuple(table.shape), f"{largest_gap(torch.tensor(naive), table):.0e} apart")
assert largest_gap(torch.tensor(naive), table) < 1e-5

large = sincos_3d((1, 30, 45), 1920).view(30, 45, -1)  # one frame of the 2B
alike = large @ large[15, 22] / 1920  # h w
figure, (axes,) = new_figure(1, 2, width=8.5, height=2.8)
axes[0].imshow(table, aspect="auto", cmap="viridis")
for bound in (64, 160):
    axes[0].axvline(bound - 0.5, color="white", linewidth=1.5)
axes[0].set_xticks([32, 112, 208], ["time", "column", "row"])
axes[0].set_yticks([8, 24, 40, 56, 72], [f"frame {i}" for i in range(5)])
axes[0].set(xlabel="256 channels: sines, then cosines of each", title="the toy's size: one row per token")
picture = axes[1].imshow(alike, cmap="viridis")
axes[1].set(xlabel="column", ylabel="row", title="2B: product with the vector of the middle")
figure.colorbar(picture, ax=axes[1])
for axis in axes:
    axis.grid(False)
show_figure(figure, "Left, 80 rows of 256 channels: the first quarter changes every 16 tokens, the next part with each "
                    "column, the last with each row. Right, the vector of the middle patch resembles those near it.")

# %% [markdown]
# (The division by 1.875 = 480/256 is left from training that began at 256 pixels.)
#
# Now two tokens with contents $x, y$ and place vectors $p, r$ are compared. With query and key matrices $Q$ and $K$ the
# score has four parts:
#
# $$Q(x+p)\cdot K(y+r) = Qx\cdot Ky \;+\; Qx\cdot Kr \;+\; Qp\cdot Ky \;+\; Qp\cdot Kr.$$
#
# Place and content are mixed in one vector, and the network must learn to separate them. *How far apart are these two?*
# is in there as well, in the last of the four parts: without $Q$ and $K$ it would be the picture on the right, a
# function of the distance alone. But $Q$ and $K$ have to learn to keep that. The next method builds it in.
#
# ## 4. Turn instead of adding
#
# **Rotary position embedding**, RoPE, leaves the token alone. It takes two channels of a query as an arrow in the
# plane, and turns the arrow by an angle that grows with the place. The same for keys. Now query and key both move on
# by 5 places. What happens to their score?

# %%
def turned(arrow, angle):
    """An arrow (x, y), turned counter-clockwise by an angle in radians."""
    x, y = arrow
    return torch.stack([math.cos(angle) * x - math.sin(angle) * y, math.sin(angle) * x + math.cos(angle) * y])


query, key, step = torch.tensor([1.0, 0.2]), torch.tensor([0.7, 0.5]), 0.35
figure, (axes,) = new_figure(1, 2, width=6.5, height=3.2)
scores = []
for axis, (m, n) in zip(axes, ((1, 4), (6, 9))):
    for arrow, place, name, colour in ((query, m, "query", "#0072B2"), (key, n, "key", "#D55E00")):
        end = turned(arrow, step * place)
        axis.annotate("", end.tolist(), (0, 0), arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 2})
        axis.text(*(1.18 * end).tolist(), f"{name}\nat {place}", color=colour, ha="center", va="center", fontsize=9)
    scores.append(turned(query, step * m) @ turned(key, step * n))
    axis.set(xlim=(-1.5, 1.5), ylim=(-1.3, 1.5), aspect="equal", title=f"score {scores[-1]:.3f}")
    print(f"query at {m}, key at {n}: score {scores[-1]:.3f}")
show_figure(figure, "Two pairs of arrows. Left, a query at place 1 and a key at place 4. Right, both five places on: "
                    "both arrows have turned alike, and the angle between them is the same.")
assert largest_gap(*scores) < 1e-5

# %% [markdown]
# Both turn by the same amount, so the angle between them stays the same. The product of two arrows is length times
# length times the cosine of that angle: content gives the lengths and the angle before any turn, distance the rest.
#
# One pair alone repeats after a full turn. So, as before, there are many: at each step to the next place, pair $i$ of
# $d$ channels turns by $\theta_i = 10000^{-2i/d}$.
#
# In numbers: the same content stands at each of 24 places, so only the place can make a difference. Left: places added
# as in section 3, then random $Q$ and $K$. Right: the same $Q$ and $K$, then RoPE.

# %% tags=["nbval-ignore-output"]
def rope_by_hand(x, place):
    """One query or key, d -> d: channels 2i and 2i + 1 are turned together."""
    d = len(x)
    return torch.cat([turned(x[i:i + 2], place * 10000 ** (-i / d)) for i in range(0, d, 2)])


generator = torch.Generator().manual_seed(3)
content = torch.randn(24, generator=generator)
Q, K = torch.randn(2, 24, 24, generator=generator) / 24 ** 0.5
added = content + torch.tensor([waves(place, 24) for place in range(24)])
by_table = (added @ Q.T) @ (added @ K.T).T  # query places x key places
queries, keys = (torch.stack([rope_by_hand(matrix @ content, place) for place in range(24)]) for matrix in (Q, K))
by_rope = queries @ keys.T

figure, (axes,) = new_figure(1, 2, width=6.5, height=3)
along = {}
for axis, scores, title in zip(axes, (by_table, by_rope), ("table added", "RoPE")):
    axis.imshow(scores, cmap="viridis")
    axis.set(xlabel="place of the key", ylabel="place of the query", title=title)
    axis.grid(False)
    along[title] = largest_gap(scores[1:, 1:], scores[:-1, :-1])
    print(f"{title}: scores of pairs at the same distance differ by up to {along[title]:.1e}")
assert along["RoPE"] < 1e-4 < 0.1 < along["table added"]
show_figure(figure, "Scores of 24 query places with 24 key places. Left, with a table added: colours change along "
                    "the diagonals. Right, with RoPE: every diagonal has one colour.")
explore_rope()

# %% [markdown]
# The circles show three pairs of a head like the toy's; its places are frames. In a running notebook, move query and
# key by the same number of frames, and watch arrows and score.
#
# ### Exercise 6.2: turn pairs (difficulty 1 of 3, 10 minutes)
#
# Turn whole tensors, with real numbers only. Careful with 16-bit inputs.

# %%
def turn_pairs(x, angles):
    """x b heads n d, angles n d/2 in float32 -> x with channels 2i and 2i+1 turned by angle i, in x's dtype."""
    ### BEGIN SOLUTION
    first, second = x[..., 0::2].float(), x[..., 1::2].float()
    cos, sin = angles.cos(), angles.sin()
    pairs = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return pairs.flatten(-2).to(x.dtype)
    ### END SOLUTION


turn_pairs = check("6.2", turn_pairs)
show_source(rotate)  # with complex numbers a turn is a product

# %% [markdown]
# **Which channels are a pair?** Here 0 and 1, 2 and 3: *interleaved*. Many language models pair channel $i$ with
# channel $i + d/2$: *halves*. Either is right, and both keep the property above. But weights that were trained
# with one are useless with the other, and no shape gives the mistake away.
#
# ### Exercise 6.3: the other convention (difficulty 2 of 3, 15 minutes)
#
# A checkpoint was trained with halves, within each axis (section 5 has three of them). In which order must we take its
# channels, so that our pairs are the ones that it turned together?

# %%
def order_for_pairs(sizes):
    """sizes: the channels of each axis, such as (16, 24, 24) -> indices, int64, sum(sizes)."""
    ### BEGIN SOLUTION
    order, start = [], 0
    for size in sizes:
        order.append(start + torch.arange(size).view(2, size // 2).T.flatten())
        start += size
    return torch.cat(order)
    ### END SOLUTION


order_for_pairs = check("6.3", order_for_pairs)

# %% [markdown]
# ## 5. Three axes
#
# A video token has three coordinates. 3D RoPE divides a head's channels: 2/8 turn with time, 3/8 with the row, 3/8 with
# the column. Of 64 that is 16, 24 and 24. Each share is a 1-D RoPE of its own. A score is a sum over pairs, so it is a
# sum of three parts: one of the distance in time, one in rows, one in columns.

# %% tags=["nbval-ignore-output"]
def angles_by_hand(frame, row, column):
    """32 angles, one for each pair of a head of 64 channels."""
    angles = []
    for place, channels in ((frame, 16), (row, 24), (column, 24)):
        for i in range(0, channels, 2):
            angles.append(place * 10000 ** (-i / channels))
    return angles


naive = torch.tensor([angles_by_hand(i, row, column) for i in range(5) for row in range(4) for column in range(4)])
table = rope_3d((5, 4, 4), 64)
gap = largest_gap(naive.cos(), table.real)
print("the package's table, one complex number a pair:", tuple(table.shape), f"{gap:.0e} apart")
assert gap < 1e-5

ones = rotate(torch.ones(1, 1, 30 * 45, 64), rope_3d((1, 30, 45), 64))[0, 0]  # a query and all keys are ones
alike = (ones @ ones[15 * 45 + 22] / 64).view(30, 45)
figure, (axes,) = new_figure(1, 2, width=8.5, height=2.8)
axes[0].imshow(table.real, aspect="auto", cmap="viridis")
for bound in (8, 20):
    axes[0].axvline(bound - 0.5, color="white", linewidth=1.5)
axes[0].set_xticks([3.5, 13.5, 25.5], ["time", "row", "column"])
axes[0].set_yticks([8, 24, 40, 56, 72], [f"frame {i}" for i in range(5)])
axes[0].set(xlabel="32 pairs", title="cosines for the toy: one row per token")
picture = axes[1].imshow(alike, cmap="viridis")
axes[1].set(xlabel="column", ylabel="row", title="5B: score with the middle, all ones")
figure.colorbar(picture, ax=axes[1])
for axis in axes:
    axis.grid(False)
show_figure(figure, "Left, 80 tokens by 32 pairs: in each share the first pairs change quickly, the last hardly at "
                    "all. Right, scores with the middle patch of 30 x 45: a bright cross, and fainter bands.")

# %% [markdown]
# A cross: a token of the same row keeps the row's part of the score, whatever its column. Fainter bands lie beside it,
# about six tokens apart; section 7 comes back to them. The weights $Q$ and $K$ of each head decide which distances it
# really looks at.
#
# ### Exercise 6.4: angles of a grid (difficulty 2 of 3, 15 minutes)
#
# Return all angles at once. Text rows come first; their angles are 0.

# %%
def grid_angles(grid, head_dim, num_text):
    """grid (t, h, w) -> angles, num_text + t*h*w rows of head_dim/2; theta is 10000."""
    ### BEGIN SOLUTION
    axes = torch.meshgrid(*(torch.arange(size).float() for size in grid), indexing="ij")
    columns = []
    for axis, share in zip(axes, (2, 3, 3)):
        dim = head_dim * share // 8
        columns.append(torch.outer(axis.flatten(), 10000.0 ** (-torch.arange(0, dim, 2) / dim)))
    video = torch.cat(columns, dim=1)
    return torch.cat([torch.zeros(num_text, head_dim // 2), video])
    ### END SOLUTION


grid_angles = check("6.4", grid_angles)
show_source(rope_3d)

# %% [markdown]
# **Text is not turned.** Words have no place in the frame. But an angle of 0 *is* a place: that of the first
# patch, at the upper left of frame 0.
#
# **Prediction 6.2.** We count the columns of all video tokens from 3 instead of 0, which keeps all distances between
# patches, and leave the text where it is: what does the toy paint?

# %%
predict("6.2", "the same clip", "the star further left", "the star further right")

# %% tags=["folded", "nbval-ignore-output"]
def with_angles(angles):
    """The toy, with its queries and keys turned by these angles, n 32, text first."""
    net, own, table = copy(pipe.transformer), pipe.transformer.layout, torch.polar(torch.ones_like(angles), angles)
    net.layout = lambda grid, num_text, device: replace(own(grid, num_text, device), rope=table.to(device))
    return Pipeline(pipe.vae, net, pipe.schedule_config, pipe.text, pipe.fps)


def moved(columns, text_too):
    """The toy with all its video tokens `columns` further right."""
    grid = grid_angles((5, 4, 4 + columns), 64, 0).view(5, 4, 4 + columns, 32)[:, :, columns:]
    words = grid[0, 0, 0] * text_too
    return with_angles(torch.cat([words.expand(32, 32), grid.flatten(0, 2)]))


def middle_column(clip):
    """The mean column, 0 to 63, of what is not background in frame 0."""
    strength = (clip[0] - clip.flatten(0, 2).median(dim=0).values).abs().sum(dim=-1)  # h w
    strength = strength * (strength > 0.3)
    return float((strength.sum(dim=0) * torch.arange(64)).sum() / strength.sum().clamp(min=1e-6))


answer = pipe.transformer(noisy, t, text)
for columns, text_too in ((0, False), (3, True), (3, False)):
    gap = largest_gap(moved(columns, text_too).transformer(noisy, t, text), answer)
    print(f"video moved {columns} columns right, text {'too' if text_too else 'not'}: the answer changes by {gap:.0e}")
    assert (gap < 1e-3) == (columns == 0 or text_too)
elsewhere = moved(3, False)(PROMPT, **settings)
was, now = middle_column(film), middle_column(elsewhere)
print(f"middle of what is painted in frame 0: column {was:.0f} as trained, {now:.0f} with the video moved")
compare_clips({"as trained": film, "moved 3 columns right": elsewhere},
              "Two clips. As trained, the star moves left through the frame. With the video's coordinates moved, the "
              "left border cuts off a star, and scraps of one are at the right.", pipe.fps)
outcome("6.2", "the star further left" if now < was else "the star further right")

# %% [markdown]
# With the text moved along, nothing changes: between patches RoPE knows distances only. If the text stays behind, the
# answer changes: the text is the anchor. A patch can tell from its angle to the words how far it is from the upper left
# corner, and so where the frame ends. We told the patches that they are further right than they are, so the star was
# painted too far left, over the border. (For the scraps at the right, see section 7.)
#
# ## 6. Which one learns faster?
#
# There is a third way: *learn* one vector for each place. Nobody has to choose waves, but such a table has no row for
# a place that training never had. The published 5B-I2V has one beside its RoPE. Its numbers are close to 0, and
# [its authors and others](https://github.com/a-r-r-o-w/finetrainers/issues/26) report that removing it changes next to
# nothing. It still ties that model to 480 x 720.
#
# We trained a small transformer (width 128, 4 blocks) with each of the three, and with none:
# `minicogvx ablate position --seeds 5`. Within a seed all four see the same clips, captions and noise. At the end all
# sample clips for 96 unseen captions, and the oracle judges them. (The division by 1.875 is left out here.)
#
# One seed proves nothing: other weights and another order of clips may reverse the result. So we take differences
# within each seed, and ask how sure their mean is. If the 95 % interval contains 0, five seeds cannot tell.
#
# **Prediction 6.3.** At the end, whose loss on validation clips is lower, RoPE's or that of the table of sines?

# %%
predict("6.3", "RoPE", "the table of sines", "five seeds cannot tell")

# %% tags=["folded", "nbval-ignore-output"]
studied = load_results("position")
print("Per cent of captions obeyed, mean over seeds and 95 % interval. A guess would reach: shape 17, colour 12, "
      "motion 8, background 25. Where the oracle recognises nothing, it is 0.")
for name in ("rope", "sincos", "learned", "none"):
    print(" ", say_obeyed(studied, name))
for other in ("sincos", "learned", "none"):
    loss, obeyed = gain_of(studied, "rope", other), gain_of(studied, "rope", other, properties_obeyed)
    print(f"rope less {other}: loss {loss.said(3)}")
    print(f"    properties obeyed, percentage points {obeyed.said(1)}")
    assert obeyed.seeds >= 5
assert gain_of(studied, "rope", "sincos").verdict == "higher"  # as the text below says
show_figure(paired_figure(studied, "rope"),
            "Left, loss over steps of four position codes, with bands. Middle, final losses less RoPE's, five seeds "
            "each. Right, captions obeyed less RoPE's, by property. Bars are 95 % intervals.")
said = {"higher": "the table of sines", "lower": "RoPE", "cannot be told": "five seeds cannot tell"}
outcome("6.3", said[gain_of(studied, "rope", "sincos").verdict])

# %% [markdown]
# Read both measures with care. The loss is a mean over all patches, and most of a clip is background, which needs no
# place. So a model can come close to the others in loss and still not know where to paint, as in our first cell. And a
# share of captions compares only what has been learned. Where it is near 0 for all, as for shapes that the oracle does
# not recognise yet, it cannot tell the codes apart.
#
# The paper's Figure 10a is this experiment with a model of unstated size: there the training loss falls significantly
# faster with RoPE than with the sincos table. Above, the table's loss is the lower one. Both can be true: a clip of the
# published 5B has 17,550 places, ours has 80, and the intervals above cover other seeds, not more steps, more places or
# a larger network. The smaller 2B was published with sincos; we know of no stated reason.
#
# ## 7. A larger frame
#
# The toy was trained on 4 x 4 tokens a frame. We now ask for 8 x 8. With which coordinates?
#
# - **Extrapolation**: count on, 0 to 7. Neighbours are as far apart as in training, distant patches further than any
#   were.
# - **Interpolation**: squeeze, 0 to 3.5 in steps of a half. Nothing leaves the trained range, but neighbours are
#   closer.
#
# Which pairs of channels meet angles that they have never seen? A distance may be positive or negative, so a
# pair whose angle has reached $\pi$ has seen the whole circle.

# %%
frequencies = 10000 ** (-torch.arange(0, 24, 2) / 24)  # of the 12 pairs that turn with the row
figure, (axes,) = new_figure(1, 2, width=8.5, height=2.8)
for axis, name, trained in zip(axes, ("the toy, 4 rows", "the 5B, 30 rows"), (4, 30)):
    for rows, style in ((trained, "o-"), (2 * trained, "s--")):
        axis.plot(range(12), (rows - 1) * frequencies, style, markersize=4, label=f"{rows} rows")
    axis.axhline(math.pi, color="#000000", linewidth=1, linestyle=":")
    axis.text(11.3, 1.15 * math.pi, "half a turn", ha="right", fontsize=8)
    axis.set(xlabel="pair", ylabel="largest angle", yscale="log", title=name)
    axis.set_yticks([0.01, 0.1, 1, 10], ["0.01", "0.1", "1", "10"])
    axis.legend()
    seen = int(((trained - 1) * frequencies >= math.pi).sum())
    print(f"{name}: {seen} of 12 pairs have seen the whole circle, {12 - seen} meet new angles when rows double")
show_figure(figure, "The largest angle of each of 12 pairs, falling from pair 0 to pair 11 on a logarithmic axis, for "
                    "the trained size and for twice as many rows. A dotted line marks half a turn.")

# %% [markdown]
# What does the toy paint at 128 x 128, with the one and with the other?

# %% tags=["nbval-ignore-output"]
LARGE = ["a white triangle grows on a navy background", PROMPT]
clips_of = {}
for scaling in ("extrapolate", "interpolate"):
    other = remade(position_scaling=scaling)
    clips_of[scaling] = other.decode(other.sample(LARGE, height=128, width=128, **settings))
compare_clips({f"{prompt.split()[2]}, {scaling}": clips_of[scaling][i]
               for i, prompt in enumerate(LARGE) for scaling in clips_of},
              "Four clips of 128 x 128 pixels. Extrapolated, the triangle and the star are as small as in training, "
              "with pieces of copies at the borders. Interpolated, there is one large shape, frayed.", pipe.fps,
              num_frames=4)
learned = ExpertTransformer(replace(toy, position="learned")).to(device)
try:
    learned(torch.zeros(1, 16, 5, 16, 16, device=device), t, text)
except ValueError as error:
    print("a learned table:", error)

# %% [markdown]
# Extrapolated, the shape is sharp, as small as in training, and *repeated*. Interpolated, there is one, large and
# broken. The paper shows the same pair of failures in its Figure 9, at the start of training at the new size: small
# clear images that repeat, or one large blurry image.
#
# Why repeated? A guess: in training no two patches were more than 3 columns apart. So nothing taught the toy to use the
# slow pairs, and it leans on the fastest, which turns by 1 radian a token. (In section 5 it made the bands.) Once that
# arrow has gone round, a patch far away looks like a near one. We make the frame wide and measure where the copy
# stands.

# %% tags=["nbval-ignore-output"]
WIDE = {**settings, "num_inference_steps": 10}


def stretched(stretch):
    """A clip 12 tokens wide, made by the toy with column coordinates `stretch` times as far apart."""
    angles = grid_angles((5, 4, 12), 64, 32)
    angles = torch.cat([angles[:, :20], stretch * angles[:, 20:]], dim=1)  # the last 12 pairs turn with the column
    return with_angles(angles)("a yellow star stays still on a navy background", width=192, **WIDE)


def copy_found(wide):
    """By how many pixels, of 60 to 150, the frame must be shifted to match itself best."""
    background = wide.flatten(0, 2).median(dim=0).values
    profile = (wide - background).abs().sum(dim=-1).mean(dim=(0, 1))  # of each column: how much is not background
    profile = profile - profile.mean()
    match = {shift: float((profile[:-shift] * profile[shift:]).sum()) for shift in range(60, 150)}
    return max(match, key=match.get)


wides = {1.0: stretched(1.0)}
print(f"the copy stands {copy_found(wides[1.0])} pixels further right; a token is 16 pixels wide, and a whole turn "
      f"takes {2 * math.pi:.2f} tokens")
compare_clips({"64 x 192": wides[1.0]}, "A frame of 64 x 192 pixels: a yellow star over navy, and further right a "
                                        "second one.", pipe.fps, num_frames=3)

# %% [markdown]
# One observation fits many guesses. So we change the supposed cause: column coordinates `stretch` times as far apart.
#
# **Prediction 6.4.** With a stretch of 1.25, one token turns the fastest pair by 1.25 radians: where does the copy
# stand?

# %%
predict("6.4", "nearer to the star", "further from it", "where it was")

# %% [markdown]
# ### Exercise 6.5: find out where the copy stands (difficulty 2 of 3, 10 minutes)
#
# Turn the guess into a claim that can fail: a number of pixels for every stretch. (Can a copy stand anywhere? Compare
# the measured distance with 6.28 tokens.) `check` knows what the toy paints; the cell below then measures it.

# %%
def copy_at(stretch, patch_pixels):
    """The distance in pixels between the star and its copy."""
    ### BEGIN SOLUTION
    return round(2 * math.pi / stretch) * patch_pixels
    ### END SOLUTION


copy_at = check("6.5", copy_at)

# %% tags=["folded", "nbval-ignore-output"]
wides = {stretch: wides[stretch] if stretch in wides else stretched(stretch) for stretch in (0.8, 0.9, 1.0, 1.1, 1.25)}
found = {stretch: copy_found(clip) for stretch, clip in wides.items()}
print("stretch   2 pi / stretch   claimed   found (pixels)")
for stretch in wides:
    print(f"{stretch:7.2f} {2 * math.pi / stretch:16.2f} {copy_at(stretch, 16):9d} {found[stretch]:7d}")
hits = sum(abs(found[stretch] - copy_at(stretch, 16)) <= 8 for stretch in wides)
print(f"claims that hold to half a token: {hits} of {len(wides)}")
assert hits >= 3
outcome("6.4", "nearer to the star" if found[1.25] < found[1.0] else
        "further from it" if found[1.25] > found[1.0] else "where it was")


def draw_wide(axis, stretch):
    """The middle frame, under an arrow as long as the claimed distance."""
    frame, start = wides[stretch][8], middle_column(wides[stretch][:, :, :64])
    axis.imshow(frame)
    axis.annotate("", (start + copy_at(stretch, 16), 12), (start, 12),
                  arrowprops={"arrowstyle": "->", "color": "white", "shrinkA": 0, "shrinkB": 0})
    axis.set(xticks=[], yticks=[], ylabel=f"stretch {stretch:g}")


def wide(stretch):
    """One frame, and the claim about it."""
    figure, ((axis,),) = new_figure(width=6, height=2.2)
    draw_wide(axis, stretch)
    return figure


figure, axes = new_figure(5, 1, width=4.2, height=6.2)
for (axis,), stretch in zip(axes, wides):
    draw_wide(axis, stretch)
show_figure(figure, "Five frames 12 tokens wide, from stretch 0.8 at the top to 1.25 at the bottom. An arrow of the "
                    "claimed length leads from the star towards its copy, which stands nearer at the bottom. There "
                    "a third star comes in at the right.")
explore_figure(wide, "A yellow star and its copy, with an arrow of the claimed length", stretch=list(wides))

# %% [markdown]
# Where your claims hold, the guess has passed a test that it could have failed. (It is one noise and one caption; try
# others.) Within the 45 columns of the 5B its fastest pair goes round seven times, so that model cannot lean on it
# alone.
#
# The package knows both ways: `position_scaling`. The 1.0 models interpolate in `diffusers`, which this package
# follows; the authors' own program, and the 1.5 models everywhere, extrapolate.
#
# ### Exercise 6.6: fit a grid into another (difficulty 2 of 3, 15 minutes)
#
# Interpolation for any shape of frame: the base grid is what training saw. Take the same step for rows and columns, the
# largest with which the new grid fits into the base, and centre the grid. A smaller grid is stretched.

# %%
def fit_coordinates(h, w, base):
    """base (base_h, base_w) -> coordinates of h rows and of w columns; a token covers one step."""
    ### BEGIN SOLUTION
    step = min(base[0] / h, base[1] / w)
    rows, columns = ((size - step * count) / 2 + step * torch.arange(count) for size, count in zip(base, (h, w)))
    return rows, columns
    ### END SOLUTION


fit_coordinates = check("6.6", fit_coordinates)

for h, w in ((30, 45), (60, 90), (45, 30)):
    mine, published = fit_coordinates(h, w, (30, 45)), interpolated_coordinates(h, w, (30, 45))
    apart = max(largest_gap(a, b) for a, b in zip(mine, published))
    print(f"{h} x {w}: columns {mine[1][0]:.1f} to {mine[1][-1]:.1f}, published {published[1][0]:.1f} to "
          f"{published[1][-1]:.1f}; apart by at most {apart:.2f}")

# %% [markdown]
# Where the grid fills the base, the published rule, that of `diffusers`, agrees with yours. Where something is left
# over, it rounds to whole tokens and, by a slip, ends a little early. The package keeps it, to give the same numbers.
#
# **All yours.** Your functions turn and score the toy's own queries and keys. Do they agree with the package's?

# %% tags=["nbval-ignore-output"]
block = pipe.transformer.transformer_blocks[2]
tokens = pipe.transformer.patch_embed(noisy, text, None)  # b n d: 32 words, 80 patches
q, k, _ = block.attn1.project(tokens)
angles = grid_angles((5, 4, 4), 64, 32).to(device)
mine = turn_pairs(q, angles) @ turn_pairs(k, angles).mT  # b heads n n
table = with_text(rope_3d((5, 4, 4), 64), 32).to(device)
package = rotate(q, table) @ rotate(k, table).mT
order = order_for_pairs((16, 24, 24))
foreign_q, foreign_k = q[..., order.argsort()], k[..., order.argsort()]  # as a program with halves would have them
wrong = turn_pairs(foreign_q, angles) @ turn_pairs(foreign_k, angles).mT
back = turn_pairs(foreign_q[..., order], angles) @ turn_pairs(foreign_k[..., order], angles).mT
print(f"scores of up to {package.abs().max():.0f}; those of turn_pairs and the package's are "
      f"{largest_gap(mine, package):.0e} apart")
print(f"halves taken for pairs: {largest_gap(wrong, package):.0e} apart; in the order of order_for_pairs "
      f"{largest_gap(back, package):.0e}")
assert max(largest_gap(mine, package), largest_gap(back, package)) < 1e-2 < 1 < largest_gap(wrong, package)
assert torch.equal(from_patches(patchify(noisy, 1, 2), (5, 4, 4), 1, 2), noisy)

# %% [markdown]
# ## 8. At full size
#
# The same classes with the published configs, on the **meta device**: shapes without memory. How many tokens
# does a clip have, and how large is its position code?

# %%
sizes = {"2b": (13, 60, 90), "5b": (13, 60, 90), "5b-i2v": (13, 60, 90), "1.5-5b": (22, 96, 170)}  # latents
for name, size in sizes.items():
    config = preset(name).transformer
    with torch.device("meta"):
        embed = PatchEmbed(config)
        n = embed(torch.empty(1, config.in_channels, *size), torch.empty(1, 226, 4096), None).shape[1]
    grid = (size[0] // embed.patch_t, size[1] // 2, size[2] // 2)
    print(f"{name}: {config.position}, {type(embed.proj).__name__} {tuple(embed.proj.weight.shape)}")
    print(f"    {grid[0]} x {grid[1]} x {grid[2]} = {n - 226:,} tokens, with text {n:,}; {n * n / 1e6:,.0f} million "
          f"pairs a head")
    if config.position == "sincos":
        print(f"    table added once: {(n - 226) * config.width * 4 / 1e6:.0f} MB in float32")
    else:
        print(f"    rotary table, one for all layers: {(n - 226) * 32 * 8 / 1e6:.1f} MB in complex64")
    if embed.pos_embedding is not None:
        print(f"    learned table {tuple(embed.pos_embedding.shape)}: {embed.pos_embedding.numel():,} numbers")
    print(f"    {flops(config, size, 226) / 1e12:,.0f} TFLOP for one answer")

cut = flops(replace(preset("1.5-5b").transformer, patch_size_t=None), (21, 96, 170), 226)
print(f"1.5-5b with patches of one frame: {cut / 1e12:,.0f} TFLOP")

# %% [markdown]
# A clip of 81 frames at 768 x 1360 has 21 latent frames, 22 with the repeated one. Patches of two frames nearly
# halve its tokens, and save two thirds of the work. RoPE costs at most 12 MB here, and no parameter: the angles
# serve all heads of all 42 layers.
#
# ## What you can now explain
#
# Answer first, then open.
#
# <details><summary>1. Why does a transformer without positions fail, even if it sees every patch?</summary>
#
# Attention treats its tokens as a set. Shuffle them, and the answer is shuffled alike. So nothing that differs
# between places, such as an object, can be put in a certain place.
# </details>
#
# <details><summary>2. With RoPE, scores between patches depend on distance only. How does the network still know
# where the frame ends?</summary>
#
# From the text. It is not turned, so it stands at the origin, and the score between a word and a patch depends
# on the patch's own coordinates.
# </details>
#
# <details><summary>3. You double the frame. What goes wrong with extrapolation, what with interpolation?</summary>
#
# Extrapolation keeps neighbours as they were, but far patches meet new angles, or angles that stand for a near
# patch: sharp things repeat. Interpolation keeps all angles in range, but neighbours are closer than training
# ever showed: one large thing, badly drawn.
# </details>
#
# **What the paper found.** RoPE learns faster than the sincos table (Figure 10a). At a larger size, extrapolation
# gives small, sharp, repeated images and interpolation one blurry large one (Figure 9). An early version of the paper
# also tried RoPE with learned positions beside it, and found it about as good as RoPE alone.
#
# **Where to read on.** `minicogvx/transformer/positions.py` and `patchify.py`, both short. RoPE:
# [Su et al.](https://arxiv.org/abs/2104.09864); interpolation in language models:
# [Chen et al.](https://arxiv.org/abs/2306.15595). Next:
# [expert adaptive layer norm](07_expert_adaptive_norm.ipynb), the other thing that treats text and video differently.

# %% tags=["nbval-ignore-output"]
predictions("6")
progress()
