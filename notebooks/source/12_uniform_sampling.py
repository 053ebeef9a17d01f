# %% [markdown]
# # Uniform sampling and many ranks
#
# **Two training runs of the same model, on the same clips, with the same noise. One loss curve jumps more than the
# other. Which model is better?**

# %% tags=["nbval-ignore-output"]
import hashlib
import os
import random
import signal
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from einops import einsum, rearrange
from matplotlib.backends.backend_agg import FigureCanvasAgg

import minicogvx
from minicogvx.ablation import load_results, roughness
from minicogvx.ablation.seeds import gain_of_pairs
from minicogvx.course import (
    check, explore_figure, hint, new_figure, notebook_device, on_ranks, outcome, predict, predictions, progress,
    show_clip, show_figure, show_source, solution,
)
from minicogvx.data.world import captions
from minicogvx.data.world.drawing import render_batch
from minicogvx.data.world.scenes import sample_scenes
from minicogvx.diffusion import NoiseSchedule, diffusion_loss, diffusion_target, draw_noise, rank_interval
from minicogvx.engine.checkpoints import Checkpoints
from minicogvx.engine.optim import MuonAdamW, warmup_cosine
from minicogvx.engine.sharding import average_gradients, wrap
from minicogvx.evaluation.intervals import mean_interval
from minicogvx.presets import ScheduleConfig, TransformerConfig, preset
from minicogvx.training.memory import inputs_for, memory, parameter_count
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.transformer.patchify import patchify
from minicogvx.transformer.sequence_parallel import SplitLayout, forward_split, split_layout

device = notebook_device()  # the processor, unless MINICOGVX_DEVICE names another device
pipe = minicogvx.load("toy", device, torch.float32)
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
studied = load_results("uniform-sampling")
runs = {name: [curve for curve in studied if curve.name == name] for name in ("uniform", "stratified")}

# %% tags=["nbval-ignore-output"]
def smoothed(curve):
    """Of each step, the mean of the 31 steps around it; fewer at both ends."""
    return [statistics.fmean(curve[max(0, i - 15):i + 16]) for i in range(len(curve))]


def race(steps):
    """The two curves of one seed after so many steps, as one frame of a film, h w 3."""
    figure, axes = new_figure(2, 1, width=4, height=3.4)
    for axis, letter, name, colour in zip(axes[:, 0], "AB", runs, (ORANGE, BLUE)):
        curve = runs[name][0].training[:steps]
        axis.plot(curve, color=colour, linewidth=1)
        axis.plot(smoothed(curve), color="#000000", linewidth=1.2)
        axis.set(xlim=(50, length), ylim=(0.45, 1.15), ylabel="loss")
        axis.set_title(f"{letter}: noise {roughness(curve[50:]):.3f}", fontsize=10, loc="left", color=colour)
    axes[0, 0].set_xticklabels([])
    axes[1, 0].set_xlabel("step")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3] / np.float32(255))


length = len(runs["uniform"][0].training)
film = torch.stack([race(length * part // 20) for part in range(6, 21)])
show_clip(film, "Two loss curves grow from left to right and fall; the black lines are their means over 31 steps. "
                "Curve A, above, jumps further from its mean than curve B, below.", fps=4, num_frames=3)

# %% [markdown]
# The two differ in one thing. In every step run A drew a timestep for each clip independently. Run B divided the
# timesteps into as many equal parts as there are clips and drew one from each. The paper does the second over its many
# GPUs, calls it **explicit uniform sampling**, and reports a more stable loss curve. (The noise in the titles is a
# standard deviation, estimated from the jumps between neighbouring steps.)
#
# You will work out what a calm curve is worth, write the ring in which GPUs average their gradients, start real ranks
# from this notebook, kill one of them, and cut a model into shards. Afterwards you can explain what is and what is
# not gained by drawing evenly, and what GPUs say to each other while CogVideoX is trained. It takes about 95 minutes,
# exercises included, and covers section 3.3 of the [paper](https://arxiv.org/abs/2408.06072). (Notation: the box in
# [notebook 01](01_video_tensors.ipynb).)
#
# ## 1. A loss is a mean over timesteps
#
# The losses below are of the shipped toy: 512 timesteps, evenly spread, each with one of 16 clips and noise of its
# own. With each loss we keep its **gradient** with respect to the network's last matrix. That needs no backward pass:
# the gradient is the derivative at the output times the input of the matrix.

# %% tags=["nbval-ignore-output"]
scenes = sample_scenes(16, seed=4, two_objects=0.0)
words = [captions.evaluation_caption(scene, random.Random(i)) for i, scene in enumerate(scenes)]
pixels = rearrange(render_batch(scenes, 17, 64, 64) * 2 - 1, "b t h w c -> b c t h w")
caught = []
hook = pipe.transformer.proj_out.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
generator = torch.Generator().manual_seed(0)
t_of = torch.arange(512) * 1000 // 512 + 1
clip_of = torch.randperm(512, generator=generator) % 16
with torch.no_grad():
    clean = pipe.vae.encode(pixels.to(device)).mode() * pipe.vae.config.scaling_factor
    features = pipe.text.encode(words)
    losses, gradients = [], []
    for some in torch.arange(512).split(32):
        x0, t = clean[clip_of[some]], t_of[some].to(device)
        noise = draw_noise(tuple(x0.shape), generator, device=device)
        v = pipe.transformer(pipe.schedule.add_noise(x0, noise, t), t, features[clip_of[some]])
        losses.append(diffusion_loss(v, x0, noise, t, pipe.schedule).cpu())
        slope = 2 * (v - diffusion_target(x0, noise, t, pipe.schedule)) / v[0].numel()
        pair = patchify(slope, 1, 2), caught.pop()
        gradients.append(einsum(*pair, "b n values, b n d -> b values d").flatten(1).cpu())
hook.remove()
losses, gradients = torch.cat(losses), torch.cat(gradients)

figure, ((axis,),) = new_figure(width=7, height=2.6)
axis.plot(t_of, losses, ".", color="#999999", markersize=4, label="one clip, one noise")
axis.plot(t_of.view(32, 16).float().mean(dim=1), losses.view(32, 16).mean(dim=1), "o-", color=BLUE, markersize=4,
          label="mean of 16 neighbours")
axis.set(xlabel="timestep", ylabel="loss of the toy", yscale="log")
axis.legend(fontsize=8)
show_figure(figure, "512 losses over the timestep, on a logarithmic axis, as dots, and their mean as a line: it is "
                    "high at both ends and low in the middle, and the dots lie around it.")
print(f"one loss: mean {losses.mean():.3f}, standard deviation {losses.std():.3f}")
print("mean by fifths of the timesteps:", "  ".join(f"{part.mean():.3f}" for part in losses.chunk(5)))

# %% [markdown]
# So a batch whose timesteps happen to lie in the middle has a low loss, and one with many at the ends a high one, with
# the same weights. Much of what jumps in a loss curve is this.
#
# The paper's cure: $n$ ranks train together. (A **rank** is one process with one GPU. All have the same weights, each
# has its own clips, and after every step they average their gradients.) The timesteps are divided into $n$ intervals,
# and each rank draws from its own.
#
# ### Exercise 12.1: a rank's interval (difficulty 1 of 3, 8 minutes)
#
# Which timesteps of 0 .. T-1 are a rank's? Each belongs to exactly one rank, even where the number of ranks does not
# divide $T$. Ranks are counted from 0. `hint("12.1")` gives one more hint each time, `solution("12.1")` a solution.

# %%
def interval(rank, ranks, T):
    """The rank's first timestep, and the first one beyond its last: two whole numbers."""
    ### BEGIN SOLUTION
    return rank * T // ranks, (rank + 1) * T // ranks
    ### END SOLUTION


interval = check("12.1", interval)
pairs = [interval(rank, 7, 1000) for rank in range(7)]
print("7 ranks:", ", ".join(f"{first} to {end - 1}" for first, end in pairs))
show_source(rank_interval)

# %% [markdown]
# The released code differs from the paper. Its number of intervals must divide 1,000, so 12 ranks have four intervals,
# three ranks to each (`grouping="v1.0"`). Its later version switches the whole thing off for eight ranks or fewer. On
# one device you can do the same over the batch, one part for each clip: that was exercise 4.6, and it is run B.
#
# ## 2. What is a calm curve worth?
#
# A mean over $b$ independent draws has the variance $\sigma^2/b$. With one draw from each of $n$ parts, what varies
# *between* the parts is gone, and what varies *within* them stays. To be as calm with independent draws you would need
# a larger batch. How much larger?
#
# ### Exercise 12.2: find out what parts are worth (difficulty 2 of 3, 15 minutes)
#
# You get timesteps $t$, and for each a row of $k$ numbers (a loss is one number, a gradient has many). Return how many
# times larger an independent batch must be to have as little noise as one with equally many draws from each part. The
# noise of a row is the sum of the variances of its numbers. Take care: for values that do not depend on $t$ the answer
# must be 1, and not more.

# %%
def worth(t, values, parts, T=1000):
    """t, m; values, m k; number of parts -> a factor: 1 if nothing is gained."""
    ### BEGIN SOLUTION
    own = t * parts // T
    within = torch.stack([values[own == part].var(dim=0).sum() for part in range(parts)])
    return (values.var(dim=0).sum() / within.mean()).item()
    ### END SOLUTION


worth = check("12.2", worth)
for parts in (1, 2, 8, 32):
    factor = worth(t_of, losses[:, None], parts)
    print(f"{parts:2d} part{'s' * (parts > 1)}: a loss curve as calm as with batches {factor:.2f} times as large; its "
          f"noise falls to {1 / factor:.0%} in variance, {factor ** -0.5:.0%} in standard deviation")
assert worth(t_of, losses[:, None], 32) > worth(t_of, losses[:, None], 2) and worth(t_of, losses[:, None], 32) > 1.5

# %% [markdown]
# Move the slider. On the left, one batch of 64 clips, equally many from each part of the timesteps. On the right, the
# mean loss of 4,000 such batches.

# %% tags=["nbval-ignore-output"]
def mean_losses(parts, seed=1):
    """Mean losses of 4,000 batches of 64: as many draws from each part."""
    chance = torch.Generator().manual_seed(seed)
    inside = torch.randint(512 // parts, (4000, parts, 64 // parts), generator=chance)
    rows = inside + torch.arange(parts)[:, None] * (512 // parts)
    return losses[rows.flatten(1)].mean(dim=1), rows[0].flatten()


def drawn_evenly(ranks):
    """One batch, and the mean losses of many, for so many ranks."""
    figure, (axes,) = new_figure(1, 2, width=8.5, height=2.7)
    alone, (means, rows) = mean_losses(1)[0], mean_losses(ranks)
    for place in range(1, ranks):
        axes[0].axvline(1000 * place / ranks, color="#bbbbbb", linewidth=0.6)
    axes[0].plot(t_of[rows], losses[rows], ".", color=BLUE, markersize=5)
    axes[0].set(xlabel="timestep", ylabel="loss", yscale="log", xlim=(0, 1000), title=f"one batch of {ranks} ranks")
    span = (alone.min().item(), alone.max().item())
    axes[1].hist(alone, 50, range=span, histtype="step", color=ORANGE, label="independent draws")
    axes[1].hist(means, 50, range=span, histtype="step", color=BLUE, label="own intervals")
    axes[1].set(xlabel="mean loss of the batch", yticks=[], ylabel="batches",
                title=f"variance: {(means.var() / alone.var()).item():.0%} of independent draws")
    axes[1].legend(fontsize=8)
    return figure


explore_figure(drawn_evenly, "Left: the timesteps and losses of one batch of 64 clips, with the borders of intervals. "
                             "Right: mean losses of 4,000 batches, independent draws and own intervals",
               ranks=[1, 2, 4, 8, 16, 32, 64])
alone, spread = mean_losses(1)[0].var().item(), {parts: mean_losses(parts)[0].var().item() for parts in (8, 32)}
print("  ".join(f"{parts} ranks: {share / alone:.0%} of the variance" for parts, share in spread.items()))
assert spread[32] < spread[8] < alone

# %% [markdown]
# The mean stays where it is, since every timestep is as likely as before. Only the noise of the curve shrinks. But a
# model does not learn from its loss. It learns from the gradient.
#
# **Prediction 12.1.** For the gradient of the last matrix, with 32 parts: how much larger must an independent batch be
# to have as little noise?

# %%
predict("12.1", "about as much as for the loss, or more", "about half of that", "by less than a tenth")

# %% tags=["folded", "nbval-ignore-output"]
for parts in (2, 8, 32):
    print(f"{parts:2d} parts are worth {worth(t_of, losses[:, None], parts):.2f} for the loss, "
          f"{worth(t_of, gradients, parts):.3f} for the gradient of the last matrix")
for_loss, for_gradient = (worth(t_of, values, 32) for values in (losses[:, None], gradients))
outcome("12.1", "by less than a tenth" if for_gradient < 1.1 else
        "about half of that" if for_gradient < 1 + 0.75 * (for_loss - 1) else "about as much as for the loss, or more")
assert for_gradient < for_loss

# %% [markdown]
# How large the loss of a clip is depends mostly on how noisy the clip is, and $t$ says that. The gradient is a
# direction in thousands of dimensions: which clip, which noise, which pixel was wrong. Near the end of training its
# mean is small at every timestep, so there is hardly anything between the parts that could be removed. What we look
# at has become calmer by far; what the weights feel, hardly at all. (This is one matrix of one trained model. Early
# in training it may be more.)
#
# ## 3. Real ranks
#
# Enough theory: we start two processes. `on_ranks` sends them a function as text, together with what it uses of this
# notebook, and each runs it with its own number. They can only exchange messages. This model is so small that a step
# takes milliseconds: two blocks, clips of 5 frames of 8 x 8 *pixels*, no VAE and no captions.

# %% tags=["nbval-ignore-output"]
def small_model():
    """An expert transformer of two blocks for clips of 5 x 8 x 8 pixels; always the same weights."""
    torch.manual_seed(0)
    return ExpertTransformer(TransformerConfig(
        num_attention_heads=2, attention_head_dim=32, num_layers=2, in_channels=3, out_channels=3, text_embed_dim=8,
        max_text_seq_length=1, time_embed_dim=64, sample_height=8, sample_width=8, sample_frames=17))


def small_clips(count, seed):
    """Clips in -1..1, b 3 5 8 8."""
    drawn = render_batch(sample_scenes(count, seed, two_objects=0.0), 5, 8, 8)
    return rearrange(drawn * 2 - 1, "b t h w c -> b c t h w")


def losses_at(model, x0, t, noise):
    """The loss of each clip, without a caption."""
    schedule = NoiseSchedule(ScheduleConfig())
    answer = model(schedule.add_noise(x0, noise, t), t, torch.zeros(len(x0), 1, 8))
    return diffusion_loss(answer, x0, noise, t, schedule)


def drawn_for(step, rank, clips, first, end):
    """What a rank trains on in a step: 8 clips, timesteps in first .. end - 1, noise. The same whenever it is asked."""
    chance = torch.Generator().manual_seed(1000 * step + rank)
    x0 = clips[torch.randint(len(clips), (8,), generator=chance)]
    t = torch.randint(first, end, (8,), generator=chance)
    return x0, t, torch.randn(x0.shape, generator=chance)


BORDERS = [tuple(map(int, interval(rank, 2, 1000))) for rank in range(2)]


def one_step(ranks):
    """Every rank's own gradient, and what is left in its place after they have been averaged."""
    first, end = BORDERS[ranks.rank]
    model, (x0, t, noise) = small_model(), drawn_for(0, ranks.rank, small_clips(64, 1), first, end)
    loss = losses_at(model, x0, t, noise).mean()
    loss.backward()
    own = model.proj_out.weight.grad.clone()
    average_gradients(model.parameters(), ranks)
    print(f"process {os.getpid()} draws from {first} to {end - 1}: {t.tolist()}; loss {loss:.3f}")
    return {"own": own, "averaged": model.proj_out.weight.grad}


answers = on_ranks(one_step, 2)

model, clips = small_model(), small_clips(64, 1)
both = zip(drawn_for(0, 0, clips, *BORDERS[0]), drawn_for(0, 1, clips, *BORDERS[1]))
losses_at(model, *(torch.cat(pair) for pair in both)).mean().backward()  # one process with all 16 clips
alone, size = model.proj_out.weight.grad, model.proj_out.weight.grad.abs().max()
for rank, answer in enumerate(answers):
    own, averaged = (torch.tensor(answer[name]) for name in ("own", "averaged"))
    print(f"rank {rank}: its own gradient differs by {(own - alone).abs().max() / size:.0%} from that of one process "
          f"with all clips (largest difference); the averaged one by {(averaged - alone).abs().max() / size:.0e}")
    assert (averaged - alone).abs().max() < 1e-3 * size < (own - alone).abs().max()

# %% [markdown]
# Two processes, two intervals, and after the exchange both hold the gradient of one batch of 16. This is **data
# parallelism**. How do the numbers get around?
#
# The simplest way, everybody sends everything to everybody, costs each rank $n-1$ times the whole gradient. The **ring
# all-reduce** does better. The ranks sit in a circle and only send to the next one. Each cuts its gradient into $n$
# pieces. In a first round the sums of the pieces grow on their way; in a second round the finished sums are handed on.
#
# ### Exercise 12.3: a ring (difficulty 3 of 3, 20 minutes)
#
# `values` has a tensor for each rank. `send(rank, piece)` sends a piece from `rank` to the next, and returns what
# arrives there. All ranks send at the same time, $2(n-1)$ times, pieces of an $n$-th. Return the mean for each rank.

# %%
def ring_all_reduce(values, send):
    """n tensors of equal length; send -> n tensors: the mean, as each rank knows it."""
    ### BEGIN SOLUTION
    n = len(values)
    pieces = [list(own.chunk(n)) for own in values]
    for step in range(n - 1):
        arriving = [send(rank, pieces[rank][(rank - step) % n]) for rank in range(n)]
        for rank in range(n):
            to, place = (rank + 1) % n, (rank - step) % n
            pieces[to][place] = pieces[to][place] + arriving[rank]
    for step in range(n - 1):
        arriving = [send(rank, pieces[rank][(rank + 1 - step) % n]) for rank in range(n)]
        for rank in range(n):
            pieces[(rank + 1) % n][(rank + 1 - step) % n] = arriving[rank]
    return [torch.cat(own) / n for own in pieces]
    ### END SOLUTION


ring_all_reduce = check("12.3", ring_all_reduce)


def numbers_sent(n, length=960):
    """How many numbers rank 0 sends, as a share of the gradient's length."""
    sent = []
    ring_all_reduce(list(torch.randn(n, length)), lambda rank, piece: sent.append((rank, len(piece))) or piece.clone())
    return sum(count for rank, count in sent if rank == 0) / length


shares = {n: numbers_sent(n) for n in (2, 8, 64)}
five_b = parameter_count(preset("5b").transformer)
for n, share in shares.items():
    print(f"{n:2d} ranks: each sends {share:.2f} times the gradient; for the 5B in 32 bits "
          f"{share * 4 * five_b / 1e9:.0f} GB a step; everybody to everybody: {(n - 1) * 4 * five_b / 1e9:,.0f} GB")
assert all(abs(share - 2 * (n - 1) / n) < 1e-9 for n, share in shares.items())

# %% [markdown]
# With more ranks each rank sends hardly more: never more than twice the gradient. So the amount to send is no reason
# against more GPUs.
#
# A large batch can also be had without more GPUs, one part after the other: **gradient accumulation**.
#
# ### Exercise 12.4: accumulate (difficulty 2 of 3, 10 minutes)
#
# Give the gradient of the mean loss of all clips, where a forward pass has room for `most` of them. `losses_of(weights,
# part)` gives the loss of each clip in a part. The last part may be smaller, and `accumulate` may be called twice.

# %%
def accumulate(losses_of, weights, clips, most):
    """weights, a tensor that requires its gradient; clips, b k -> the gradient of the mean over all b clips."""
    ### BEGIN SOLUTION
    weights.grad = None
    for part in clips.split(most):
        (losses_of(weights, part).sum() / len(clips)).backward()
    return weights.grad
    ### END SOLUTION


accumulate = check("12.4", accumulate)
target = torch.randn(100, 3, generator=torch.Generator().manual_seed(2))
weights = torch.zeros(3, requires_grad=True)
by_parts = accumulate(lambda w, part: (part - w).square().sum(dim=1), weights, target, 32).clone()
print("32, 32, 32 and 4 clips:", [round(x, 6) for x in by_parts.tolist()])
print("100 clips at once:     ", [round(x, 6) for x in (-2 * target.mean(dim=0)).tolist()])
assert torch.allclose(by_parts, -2 * target.mean(dim=0), atol=1e-5)

# %% [markdown]
# ## 4. Smoother is not better
#
# Now three training runs of the small model on two ranks. In the first each rank draws from all timesteps; in the
# second from its own interval; the third is the second with one line forgotten: gradients are *not averaged*, and the
# two ranks drift apart without anybody noticing. What is logged is the mean loss of both ranks. At the end we measure
# 32 other clips, all at timestep 100, then all at 300, and so on, as in the paper's Table 9.
#
# **Prediction 12.2.** How does the training loss of the third run end, compared with that of the second, which saw
# the same clips and timesteps?

# %%
predict("12.2", "higher", "the same within 2 %", "lower")

# %% tags=["folded", "nbval-ignore-output"]
STEPS, WAYS = 90, ("all timesteps", "own intervals", "own intervals, not averaged")


def train_small(ranks, way, steps, folder="", dies_at=(-1, -1)):
    """Trains the small model; with a folder, writes its whole state there every 20 steps and resumes from the newest.

    dies_at: a rank and a step, at which that rank is killed. Gives the rank's curve, and a digest of its weights.
    """
    model, clips = small_model(), small_clips(256, 1)
    optimizer = MuonAdamW(model.named_parameters(), adamw_lr=4e-3, muon_on=lambda name, p: False)
    state = {name: p.detach() for name, p in model.named_parameters()} | optimizer.state()
    files = Checkpoints(Path(folder), "small", ranks) if folder else None
    done = files.load(state)[0] if files else 0
    first, end = (0, 1000) if way == "all timesteps" else BORDERS[ranks.rank]
    curve = []
    for step in range(done, steps):
        if (ranks.rank, step) == tuple(dies_at):
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))  # kill -9
        loss = losses_at(model, *drawn_for(step, ranks.rank, clips, first, end)).mean()
        loss.backward()
        if way != "own intervals, not averaged":
            average_gradients(model.parameters(), ranks)
        optimizer.step(warmup_cosine(step, steps, 10))
        curve.append(loss.item())
        if files and (step + 1) % 20 == 0:
            files.save(step + 1, state)
    if files:
        files.settle()
    bits = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    return model, {"began": done, "curve": curve, "digest": hashlib.sha256(bits).hexdigest()}


def train_three_ways(ranks, ways, steps):
    """One after the other, and the validation losses of each."""
    other, found = small_clips(32, 2), {}
    noise = torch.randn(other.shape, generator=torch.Generator().manual_seed(5))
    for way in ways:
        model, told = train_small(ranks, way, steps)
        with torch.no_grad():
            at = [losses_at(model, other, torch.full((32,), t), noise).mean().item() for t in (100, 300, 500, 700, 900)]
        found[way] = told | {"at": at}
    return found


ranked = on_ranks(train_three_ways, 2, ways=WAYS, steps=STEPS)
curves, at, ends = {}, {}, {}
for way in WAYS:
    own = [answer[way]["curve"] for answer in ranked]
    curves[way] = [sum(pair) / 2 for pair in zip(*own)]
    at[way] = ranked[0][way]["at"]
    ends[way] = statistics.fmean(curves[way][-30:])
    print(f"{way:27s} training loss, last 30 steps {ends[way]:.3f}, noise after step 30 "
          f"{roughness(curves[way][30:]):.3f}; rank 0's validation loss at 100 to 900:",
          "  ".join(f"{loss:.3f}" for loss in at[way]))
figure, (axes,) = new_figure(1, 2, width=8.5, height=2.8)
for way, colour in zip(WAYS, (ORANGE, BLUE, GREEN)):
    axes[0].plot(curves[way], color=colour, linewidth=1.2, label=way)
    axes[1].plot((100, 300, 500, 700, 900), at[way], "o-", color=colour, markersize=4)
axes[0].set(xlabel="step", ylabel="loss that is logged", ylim=(0, 1))
axes[0].legend(fontsize=8)
axes[1].set(xlabel="timestep of all validation clips", ylabel="validation loss of rank 0")
show_figure(figure, "Left, three loss curves. Right, the validation losses of rank 0's three models over the timestep: "
                    "where gradients were not averaged, they are far above the others at large timesteps.")
change = ends[WAYS[2]] / ends[WAYS[1]] - 1
print(f"training loss without averaged gradients: {change:+.1%}; validation loss at 900: "
      f"{at[WAYS[2]][4] / at[WAYS[1]][4] - 1:+.0%}")
outcome("12.2", "higher" if change > 0.02 else "lower" if change < -0.02 else "the same within 2 %")
assert at[WAYS[2]][4] > 1.5 * at[WAYS[1]][4] and change < 0.02

# %% [markdown]
# The training loss of the broken run gives no sign that anything is wrong. Each of its models has only ever seen its
# own half of the timesteps, becomes a specialist for it, and is measured there. On the other half it is far worse. A
# training loss is measured at the timesteps that the run draws. If you change how they are drawn, the curve changes,
# even with the same weights. (Do not expect the second curve to be calmer than the first: two parts remove only a
# little of the noise, as section 2 printed, and one run each says little. Section 8 has seeds.)
#
# So the yardstick must not depend on the sampling: the same clips, the same noise, the *same timesteps* for all.
#
# ## 5. kill -9
#
# The more GPUs there are, the sooner one of them dies. In step 55 rank 1 gets a signal that no process can refuse.
# Every 20 steps the ranks have written their whole **state**. And what is drawn in a step depends on the step and the
# rank alone.
#
# **Prediction 12.3.** We start both ranks again and let them run to the end. What are their weights, compared with
# those of the run in section 4 that nobody disturbed?

# %%
predict("12.3", "the same bits", "equal up to rounding", "a different model of the same quality")

# %% tags=["folded", "nbval-ignore-output"]
def train_and_tell(ranks, way, steps, folder, dies_at):
    return train_small(ranks, way, steps, folder, dies_at)[1]


with tempfile.TemporaryDirectory() as folder:
    try:
        on_ranks(train_and_tell, 2, way="own intervals", steps=STEPS, folder=folder, dies_at=(1, 55))
    except RuntimeError as error:
        print(error)
    print("left on disk:", ", ".join(sorted(path.name for path in Path(folder).iterdir())))
    again = on_ranks(train_and_tell, 2, way="own intervals", steps=STEPS, folder=folder, dies_at=(-1, -1))
undisturbed = [answer["own intervals"] for answer in ranked]
for rank, (resumed, whole) in enumerate(zip(again, undisturbed)):
    print(f"rank {rank}: resumed at step {resumed['began']}; weights {resumed['digest'][:16]}, undisturbed "
          f"{whole['digest'][:16]}; last loss {resumed['curve'][-1]:.9f} and {whole['curve'][-1]:.9f}")
same = all(resumed["digest"] == whole["digest"] for resumed, whole in zip(again, undisturbed))
close = abs(again[0]["curve"][-1] - undisturbed[0]["curve"][-1]) < 1e-4
outcome("12.3", "the same bits" if same else "equal up to rounding" if close else
        "a different model of the same quality")
assert again[0]["began"] in (20, 40) and same

# %% [markdown]
# What must be in the state? The weights, and the optimizer's averages. The random state is not needed if each step
# seeds its random numbers with its own number; otherwise it belongs to the state, too, on every rank. And the file must
# be whole: it is written under another name and renamed at the end, so that a rank that dies while writing leaves the
# one before. `minicogvx train` does the same, and can go on with another number of ranks.
#
# ## 6. Shards
#
# In data parallelism every GPU holds everything: the weights (4 bytes each), a 16-bit copy to compute with (2), the
# gradient (4) and AdamW's two averages (8). For the 5B that is 100 GB, more than a GPU of 80 GB has. **FSDP** (fully
# sharded data parallelism; the authors' code has DeepSpeed's kind of it, ZeRO) cuts all of these into $n$ shards.
# A GPU gathers the 16-bit weights of a block just before it computes it, and throws them away afterwards.
#
# ### Exercise 12.5: memory of a GPU (difficulty 2 of 3, 10 minutes)
#
# Return the bytes that a GPU holds at the peak of a step. `block` counts the parameters of one of `blocks` blocks,
# `rest` those outside of blocks.
#
# - `"replicate"`: as above, for all parameters.
# - `"fsdp"`: weights, gradient and averages are cut. In addition, in 16 bits: `rest`, the weights of *two* blocks (this
#   one and the next, which is fetched meanwhile), and the gradient of one block, which is there once in 16 bits and
#   once in 32.
# - Activations are the same either way: every GPU has clips of its own.

# %%
def memory_a_gpu(block, blocks, rest, activations, gpus, sharding):
    """Numbers of parameters, bytes of activations, number of GPUs, "replicate" or "fsdp" -> bytes."""
    ### BEGIN SOLUTION
    count = block * blocks + rest
    if sharding == "replicate":
        return (4 + 2 + 4 + 8) * count + activations
    return (4 + 4 + 8) * count / gpus + 2 * rest + (2 * 2 + 2 + 4) * block + activations
    ### END SOLUTION


memory_a_gpu = check("12.5", memory_a_gpu)

# %% [markdown]
# And in reality? The two ranks get the toy, once whole and once in shards, take the same step, and count the bytes
# that they hold. The same call shows **sequence parallelism**, for which we need another exercise first.
#
# ## 7. One clip on two ranks
#
# Sharding divides the weights, not the activations. But a clip of 768 x 1360 has 45,000 tokens or more, and there may
# be no GPU that can hold their activations. Then several ranks share *one clip*: each holds some of the tokens. Norms
# and linear layers treat every token by itself, so they do not mind. Attention does: every token must see all others.
#
# But attention treats every *head* by itself. So before attention the ranks exchange: each gives away its tokens of
# the other heads, and gets the others' tokens of its own heads. After it they exchange back. This is
# [DeepSpeed-Ulysses](https://arxiv.org/abs/2309.14509).
#
# ### Exercise 12.6: tokens for heads (difficulty 2 of 3, 10 minutes)
#
# `parts[r]` is what rank $r$ holds, `heads n_r d`: all heads, some tokens; parts may differ in length. Return what each
# rank holds after the exchange: its share of the heads, all tokens.

# %%
def tokens_for_heads(parts):
    """A tensor for each rank, heads n_r d -> a tensor for each rank, (heads / ranks) n d."""
    ### BEGIN SOLUTION
    return list(torch.cat(parts, dim=1).chunk(len(parts), dim=0))
    ### END SOLUTION


tokens_for_heads = check("12.6", tokens_for_heads)
show_source(SplitLayout.within_clips)

# %% tags=["nbval-ignore-output"]
def held(tensors):
    """Bytes of tensors on this rank; of a shard, its own."""
    return sum((x.to_local() if hasattr(x, "to_local") else x).nbytes for x in tensors)


def a_step_of(model, *inputs):
    """Forward pass, backward pass and AdamW; bytes of weights, gradients and averages."""
    optimizer = torch.optim.AdamW(model.parameters())  # before the forward pass, which gathers weights
    model(*inputs).square().mean().backward()
    optimizer.step()
    state = [x for each in optimizer.state.values() for name, x in each.items() if name != "step"]
    return [held(model.parameters()), held(p.grad for p in model.parameters()), held(state)]


def shards_and_slices(ranks):
    """The toy on this rank: whole, with one clip for both ranks, and in shards."""
    toy = minicogvx.load("toy", device="cpu", dtype=torch.float32)
    chance = torch.Generator().manual_seed(0)
    x, t = torch.randn(1, 16, 5, 8, 8, generator=chance), torch.tensor([500])
    words = toy.text.encode(["a red circle moves right"]).detach()
    model, group = toy.transformer.train(), dist.group.WORLD

    whole = model(x, t, words)
    whole.square().mean().backward()
    right = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    split = forward_split(model, x, t, words, group=group)
    split.square().mean().backward()
    apart = 0.0
    for name, p in model.named_parameters():
        dist.all_reduce(p.grad)  # each rank has the share of its own tokens: their sum is the gradient
        apart = max(apart, ((p.grad - right[name]).norm() / (right[name].norm() + 1e-6)).item())
    lengths = split_layout(model.layout(model.grid(x), words.shape[1], x.device), model.config, group).lengths
    told = {"tokens": lengths, "answer apart": (split - whole).abs().max(), "gradient apart": apart}

    model.zero_grad()
    told["replicate"] = a_step_of(model, x, t, words)
    toy = minicogvx.load("toy", device="cpu", dtype=torch.float32)
    sharded = wrap(toy.transformer.train(), ranks, "fsdp", blocks=toy.transformer.transformer_blocks)
    told["fsdp"] = a_step_of(sharded, x, t, words)
    matrix = sharded.transformer_blocks[0].attn1.to_q.weight
    told["matrix"] = [list(matrix.shape), list(matrix.to_local().shape)]
    updated = [(a - b.full_tensor()).abs().max() for a, b in zip(model.parameters(), sharded.parameters())]
    return told | {"weights apart": max(updated)}


told = on_ranks(shards_and_slices, 2)
for rank, each in enumerate(told):
    print(f"rank {rank}: a matrix of {each['matrix'][0]} is here as {each['matrix'][1]}")
    for sharding in ("replicate", "fsdp"):
        sizes = ", ".join(f"{count / 1e6:.1f}" for count in each[sharding])
        print(f"    {sharding:9s} weights, gradients, averages: {sizes} MB")
    print(f"    after the step, the sharded weights are {each['weights apart']:.0e} from the whole ones")
    print(f"    one clip for both: it holds {each['tokens'][rank]} of {sum(each['tokens'])} tokens; answer "
          f"{each['answer apart']:.0e} from one rank's, summed gradients {each['gradient apart']:.0e} (relative)")
    assert abs(sum(each["fsdp"]) / sum(each["replicate"]) - 0.5) < 0.05 and each["weights apart"] < 1e-3
    assert each["answer apart"] < 1e-3 and each["gradient apart"] < 1e-2

# %% [markdown]
# Half of everything on each rank, the same weights after the step. And for one clip that is shared: half of the tokens,
# the same answer. (Positions are cut with the tokens. Two published frameworks gave every rank the whole text
# instead; the videos looked plausible and were wrong.) The VAE is shared in another way, along time: each of its causal
# convolutions needs a few frames of the rank before.
#
# ## 8. The study
#
# Back to the first question. `minicogvx ablate uniform-sampling` trained a small transformer on the shapes world,
# with batches of 8. Both ways see the same clips, captions and noise; only the timesteps differ. All are measured on
# 64 other clips.
#
# **Prediction 12.4.** Does the calmer curve end in a lower loss on the validation clips?

# %%
predict("12.4", "yes, lower with stratified timesteps", "no, higher", "these seeds cannot tell")

# %% tags=["folded", "nbval-ignore-output"]
seeds, at_t = len(runs["uniform"]), ("100", "300", "500", "700", "900")
paper = {"uniform": (0.222, 0.130, 0.119, 0.133, 0.161), "stratified": (0.216, 0.126, 0.116, 0.129, 0.157)}
late = {name: [roughness(curve.training[length // 3:]) for curve in curves] for name, curves in runs.items()}
calmer = gain_of_pairs(late["stratified"], late["uniform"])
print(f"noise of the training curve, mean of {seeds} seeds: uniform {statistics.fmean(late['uniform']):.3f}, "
      f"stratified {statistics.fmean(late['stratified']):.3f}; difference {calmer.said(3)}")
gains = {}
for place, t in enumerate(at_t):
    ours = {name: [curve.at[t] for curve in curves] for name, curves in runs.items()}
    gains[t] = gain_of_pairs(ours["stratified"], ours["uniform"])
    without, with_it = (paper[name][place] for name in ("uniform", "stratified"))
    print(f"t = {t}: uniform {statistics.fmean(ours['uniform']):.4f}, stratified less uniform {gains[t].said(4)}; "
          f"the paper's {without}, {with_it - without:+.3f}")
means = {name: [statistics.fmean(curve.at.values()) for curve in curves] for name, curves in runs.items()}
gain = gain_of_pairs(means["stratified"], means["uniform"])
print(f"mean of the five: stratified less uniform {gain.said(4)}; the paper's, one run each, "
      f"{statistics.fmean(paper['stratified']) - statistics.fmean(paper['uniform']):+.4f}")

figure, (axes,) = new_figure(1, 2, width=8.5, height=2.8)
for name, colour in (("uniform", ORANGE), ("stratified", BLUE)):
    axes[0].plot(runs[name][0].training, color=colour, linewidth=1, label=f"{name} ({seeds} seeds: "
                 f"noise {statistics.fmean(late[name]):.3f})")
axes[0].set(xlabel="step", ylabel="loss of the batch, seed 0", ylim=(0.4, 1.6))
axes[0].legend(fontsize=8)
places = [int(t) for t in at_t]
percent = [[100 * (a.at[t] / b.at[t] - 1) for a, b in zip(runs["stratified"], runs["uniform"])] for t in at_t]
middle, low, high = zip(*map(mean_interval, percent))
axes[1].errorbar(places, middle, yerr=[[m - a for m, a in zip(middle, low)], [b - m for m, b in zip(middle, high)]],
                 fmt="o", color=BLUE, capsize=3, label=f"ours, {seeds} seeds, 95 % intervals")
axes[1].plot([t + 25 for t in places], [100 * (b / a - 1) for a, b in zip(*paper.values())], "s", color="#000000",
             markersize=5, label="paper, Table 9")
axes[1].axhline(0, color="#000000", linewidth=1, linestyle=":")
axes[1].set(xlabel="timestep of all validation clips", ylabel="stratified against\nuniform (per cent)")
axes[1].legend(fontsize=8)
show_figure(figure, "Left, the training curves of one seed. Right, by how many per cent the validation loss with "
                    "stratified timesteps is above or below that with uniform ones, at five timesteps, beside Table 9.")
outcome("12.4", {"lower": "yes, lower with stratified timesteps", "higher": "no, higher",
                 "cannot be told": "these seeds cannot tell"}[gain.verdict])
assert calmer.verdict == "lower" and min(low[1:4]) > -2.2 and gain.verdict == "cannot be told"

# %% [markdown]
# The curve is calmer, as it must be. The models cannot be told apart: every interval contains zero. In per cent (the
# figure on the right), the intervals at 100 to 700 exclude gains as large as the paper's, for this small model after
# 300 steps; the one at 900 is too wide. It is far from trained, though; the paper's had 40,000 steps. But that was one
# run each, without other seeds. Section 2 suggests why we see nothing: there is hardly any noise of the gradient to
# remove.
#
# What is sure: it costs nothing, it is unbiased, and a calm curve shows sooner that something is wrong. That is a good
# reason to use it. It is not evidence of a better model.
#
# ## 9. At full size
#
# The published sizes, by your formula and by the package's count on the meta device, with recomputed activations.

# %%
for name in ("2b", "5b"):
    config, inputs = preset(name).transformer, inputs_for(preset(name))
    with torch.device("meta"):
        giant = ExpertTransformer(config)
    block = sum(p.numel() for p in giant.transformer_blocks[0].parameters())
    rest = sum(p.numel() for p in giant.parameters()) - block * config.num_layers
    for gpus in (1, 8, 64):
        counted = {how: memory(config, inputs, gpus, f"{how}+checkpoint") for how in ("replicate", "fsdp")}
        mine = {how: memory_a_gpu(block, config.num_layers, rest, each.activations, gpus, how)
                for how, each in counted.items()}
        print(f"{name}, {gpus:2d} GPUs: replicated {mine['replicate'] / 1e9:5.1f} GB on each, sharded "
              f"{mine['fsdp'] / 1e9:5.1f} (activations {counted['fsdp'].activations / 1e9:.1f}, gathered "
              f"{counted['fsdp'].gathered / 1e9:.1f})")
        assert all(abs(mine[how] / counted[how].total - 1) < 0.01 for how in mine)

# %% [markdown]
# Replicated, the 5B does not fit on a GPU of 80 GB; in shards on 8 GPUs it takes a fifth of that memory on each. With
# many GPUs only activations and the gathered blocks are left. More data parallelism does not shrink them; sequence
# parallelism does.
#
# ## What you can now explain
#
# Answer first, then open.
#
# <details><summary>1. Why does explicit uniform sampling calm the loss curve, and not much else?</summary>
#
# The loss depends on the timestep, and drawing evenly removes the part of its variance that lies between timesteps. The
# gradient is a direction that depends mostly on clip and noise; there is little between timesteps to remove.
# </details>
#
# <details><summary>2. How do you compare two ways to draw timesteps?</summary>
#
# By something that does not draw: a loss on validation clips with fixed noise at fixed timesteps, over several seeds,
# in pairs. A training loss is measured at the timesteps that its own run draws.
# </details>
#
# <details><summary>3. What do ranks send each other?</summary>
#
# In data parallelism gradients, about twice their size, however many ranks there are. Under FSDP also the weights of
# each block. With a clip shared by ranks, tokens against heads, twice in each attention.
# </details>
#
# **What the paper found.** With explicit uniform sampling the loss curve is more stable, and after 40,000 steps the
# validation loss is 2.5 to 3.1 % lower at the five timesteps (Figure 8c, Table 9).
#
# **Where to read on.** `minicogvx/training/batches.py` draws timesteps by rank, by clip or plainly;
# `engine/sharding.py` has FSDP in a page, `transformer/sequence_parallel.py` the exchange. [Stratified
# sampling](https://en.wikipedia.org/wiki/Stratified_sampling); [ZeRO](https://arxiv.org/abs/1910.02054);
# [FSDP](https://arxiv.org/abs/2304.11277). Next: [notebook 13](13_image_to_video.ipynb).

# %% tags=["nbval-ignore-output"]
predictions("12")
progress()
