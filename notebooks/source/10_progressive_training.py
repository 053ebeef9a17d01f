# %% [markdown]
# # Progressive training
#
# **The first stage of training sees thumbnails only. Is that time wasted?**

# %% tags=["nbval-ignore-output"]
import copy
import math
import random
import statistics
import time
from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import rearrange

import minicogvx
from minicogvx.ablation import load_results, stages_figure
from minicogvx.ablation.figures import schedules_figure
from minicogvx.ablation.paired import of_variant
from minicogvx.ablation.schedules import at_full_size
from minicogvx.ablation.seeds import final_values, paired_gain
from minicogvx.ablation.studies import TRANSFORMER
from minicogvx.course import (
    check, compare_clips, explore_figure, hint, new_figure, notebook_device, outcome, predict, predictions, progress,
    show_figure, show_source, solution,
)
from minicogvx.course.exercises.staged_10 import SmallRun
from minicogvx.data.films.curate import best_of
from minicogvx.data.films.shots import motion, sharpness
from minicogvx.data.world import captions
from minicogvx.data.world.drawing import render, render_batch
from minicogvx.data.world.scenes import DIRECTIONS, sample_scenes
from minicogvx.diffusion import diffusion_loss, draw_noise
from minicogvx.evaluation.intervals import mean_interval, wilson
from minicogvx.presets import preset
from minicogvx.training.start import with_transformer
from minicogvx.training.stages import stage_of
from minicogvx.transformer.model import ExpertTransformer, flops

torch.set_grad_enabled(False)  # switched on again where something is trained
device = notebook_device()  # the processor, unless MINICOGVX_DEVICE names another device
pipe = minicogvx.load("toy", device, torch.float32)

scene = next(one for one in sample_scenes(300, seed=4, two_objects=0.0) if one.objects[0].shape == "star"
             and one.objects[0].motion in DIRECTIONS and one.background == "grey")
STAGES = {"first: 32 x 32, 9 frames": (9, 32, 32), "then: 64 x 64, 9 frames": (9, 64, 64),
          "last: 64 x 64, 17 frames": (17, 64, 64)}
compare_clips({name: render(scene, *size) for name, size in STAGES.items()},
              "One scene as three stages of training see it: small and short, larger, and larger and longer.", 8)

# %% [markdown]
# CogVideoX was trained in stages: 400,000 steps at 256 x 384, then 220,000 at 480 x 720, then 120,000 at 768 x 1360 and
# with longer clips, and 10,000 on the best fifth of the data. So more than four fifths of all steps never showed it a
# clip of the final size. Does a network need to see what it will have to paint, or is there something to learn first
# that is the same at every size?
#
# You will work out the batches of the stages, one learning rate over all of them, and a run that survives being
# killed; you will watch the seam between two sizes, and pick the best fifth yourself. Afterwards you can explain what
# thumbnails cost and bring, what changes at a seam, and how far a measured difference can be trusted. It takes about
# 110 minutes, exercises included. It covers section 3.2 of the [paper](https://arxiv.org/abs/2408.06072) and its Table
# 5. (Notation: the box in [notebook 01](01_video_tensors.ipynb).)
#
# ## 1. What a thumbnail costs
#
# Cost goes by tokens: the words of the caption, and the patches of the latents.
#
# ### Exercise 10.1: clips_a_step (difficulty 1 of 3, 10 minutes)
#
# How many clips of a size may a step have, with at most `budget` tokens in all? The VAE makes one latent frame of the
# first frame, and one of every four after it; it divides height and width by 8, and patches divide them by 2. A step
# has at least one clip. `hint("10.1")` gives one more hint each time, `solution("10.1")` a solution.

# %%
def clips_a_step(size, budget, text):
    """Size (frames, height, width) in pixels, a number of tokens, words of a caption -> a whole number of clips."""
    ### BEGIN SOLUTION
    frames, height, width = size
    return max(1, budget // (text + ((frames - 1) // 4 + 1) * (height // 16) * (width // 16)))
    ### END SOLUTION


clips_a_step = check("10.1", clips_a_step)
for size in ((49, 256, 384), (49, 480, 720), (81, 768, 1360)):
    print(f"{size[0]} frames of {size[1]} x {size[2]}: in 350,000 tokens, {clips_a_step(size, 350_000, 226)} clips")
for name, size in STAGES.items():
    print(f"our stages, {name}: in 3,584 tokens, {clips_a_step(size, 3584, 32)} clips")

# %% [markdown]
# Now your machine. A small transformer takes training steps of 3,584 tokens at most in each of our three stages.
#
# **Prediction 10.1.** How many times as many clips a second does the first stage get through as the last?

# %%
predict("10.1", "less than twice", "two to four times", "more than four times")

# %% tags=["folded", "nbval-ignore-output"]
small = ExpertTransformer(TRANSFORMER).to(device)
speed = {}
for name, size in STAGES.items():
    count = clips_a_step(size, 3584, 32)
    latents = torch.randn(count, 16, *preset("toy").vae.latent_size(*size), device=device)
    text = torch.zeros(count, 32, TRANSFORMER.text_embed_dim, device=device)
    t = torch.full((count,), 500, device=device)
    spent = []
    for _ in range(3):
        begin = time.perf_counter()
        with torch.enable_grad():
            diffusion_loss(small(latents, t, text), latents, latents, t, pipe.schedule).mean().backward()
        spent.append(time.perf_counter() - begin)
    speed[name] = count / min(spent)
    print(f"{name}: {speed[name]:.0f} clips a second, {min(spent):.2f} s a step of {count} clips")
first, _, last = speed.values()
print(f"first to last: {first / last:.1f} times as many; a clip of the last has "
      f"{17 * 64 * 64 / (9 * 32 * 32):.1f} times the pixels")
outcome("10.1", "less than twice" if first / last < 2 else "two to four times" if first / last <= 4 else
        "more than four times")

# %% [markdown]
# A thumbnail has an eighth of the pixels, but its caption is as long as any. Here 32 of its 44 tokens are words.
# In the 5B's first stage 226 of 5,218 are, so there thumbnails are nearly as cheap as their pixels say.
#
# ## 2. A race
#
# Which order is best? A race in seconds depends on the machine. So we count tokens: `minicogvx ablate schedules
# --seeds 5` gave each schedule 320 steps of 1,088 tokens, captions included. The clips are those of notebook 09's nano
# world, 9 frames of 64 x 64; a step has 16 of them. In place of clips, a stage can show
#
# - **thumbnails**: the same films at 32 x 32, 34 in a step. They move, but are small.
# - **pictures**: the first frame of each film at 64 x 64, 30 in a step. They are large, but stand still. They cost
#   nothing to make: in a causal VAE the first latent frame is that of the first frame, so a picture's latents are
#   `latents[:, :, :1]` of the clip's. (Only its group norm saw the other frames: notebook 02.)
#
# All networks begin alike, have one learning rate over all stages, and are measured at the full size.
#
# **Prediction 10.2.** Which schedule has the lowest mean loss on clips of the full size after the last step?

# %%
predict("10.2", "clips only", "half thumbnails", "half pictures", "thumbnails, pictures, clips",
        "thumbnails, then a burst")

# %% tags=["folded"]
studied = load_results("schedules")
RACERS = list(dict.fromkeys(curve.name for curve in studied))


def designed(schedule, measure):
    """One schedule among the others, and what its runs came to."""
    runs = of_variant(studied, schedule)
    spent = ", ".join(f"{count:,} {kind}" for kind, count in zip(runs[0].stages, runs[0].clips))
    mean, low, high = mean_interval([at_full_size(curve, measure)[-1] for curve in runs])
    right = {word: statistics.fmean(curve.obeyed[word] for curve in runs) for word in ("background", "colour", "shape",
                                                                                      "motion")}
    said = "loss" if measure == "loss" else f"gain of the {measure} word"
    return schedules_figure(studied, schedule, "clips only", measure), (
        f"The schedule '{schedule}', {len(runs)} seeds: {spent}. At the end: {said} {mean:.3f} (95 % interval "
        f"{low:.3f} to {high:.3f}); of {len(runs) * runs[0].asked} clips, right in "
        + ", ".join(f"{word} {share:.0%}" for word, share in right.items()) + ".")


explore_figure(designed, schedule=RACERS, measure=["background", "colour", "loss", "shape", "motion"])
for schedule in RACERS:
    print(designed(schedule, "loss")[1])
for schedule in RACERS[1:]:
    print(f"{schedule} against clips only, loss:", paired_gain(studied, "loss", schedule, "clips only").said(3))
ends = {name: statistics.fmean(values.values()) for name, values in final_values(studied, "loss").items()}
assert paired_gain(studied, "loss", "half thumbnails", "clips only").verdict == "lower"
assert paired_gain(studied, "loss", "thumbnails, then a burst", "clips only").verdict == "higher"
outcome("10.2", min(ends, key=ends.get))

# %% [markdown]
# Move the sliders: five schedules, and instead of the loss the **gain** of a kind of word, how much the loss rises when
# that word is exchanged (notebook 09). Each interval is of differences in pairs: the same seed, another schedule.
#
# Thumbnails are worth their tokens, but they are not the film: a network that sees clips only in the last eighth of its
# steps ends with a higher loss than one that saw clips alone. Whether still pictures help, five seeds cannot tell. And
# look at what no schedule can do yet: after 320 steps hardly a clip has the right shape, and at most one in ten the
# right motion. So this verdict is about the first words, background and colour.
#
# And with more steps? `minicogvx ablate stages --minutes 5` trained a network of the same size on clips of 17 frames
# of the whole shapes world, three times for 300 seconds of training steps: at the full size throughout, and in three
# stages with 20, 30 and 50 % of the time, with two kinds of positions (below). One seed, 200 new captions each.

# %%
by_name = {curve.name: curve for curve in load_results("stages")}
for name in ("full size", "progressive", "progressive, interpolated"):
    curve = by_name[name]
    low, high = wilson(curve.adherence["all"], curve.measured)
    print(f"{name:26s} {curve.steps[-1]:,} steps, {curve.clips[-1]:,} clips: {curve.adherence['all']:.1%} right "
          f"({low:.1%} to {high:.1%}); colour {curve.adherence['colour']:.0%}, shape {curve.adherence['shape']:.0%}, "
          f"motion {curve.adherence['motion']:.0%}")
show_figure(stages_figure([by_name[name] for name in ("full size", "progressive", "progressive, interpolated")]),
            "Loss at the full size over 300 seconds of training. Full size throughout begins lower; in stages the loss "
            "catches up by the end of the second stage and ends lower.")
assert wilson(by_name["full size"].adherence["all"], 200)[1] < wilson(by_name["progressive"].adherence["all"], 200)[0]

# %% [markdown]
# In this race the two networks trained in stages obey some captions; the one trained at the full size throughout obeys
# none yet. During the thumbnails the loss at the full size is far behind, of course. At 150 seconds, when the last
# stage begins, it has caught up, and then it falls faster. The intervals are about *captions*. They say nothing about
# seeds: there was one run of each, on one machine.
#
# ## 3. The seam
#
# At the seam between two stages the weights go on, and everything they were used to changes. We take the shipped toy
# for a model at the end of a stage: it knows 64 x 64 pixels, 4 x 4 patches a frame. Now it meets 96 x 96, 6 x 6
# patches.
#
# Where are they? **Extrapolated** positions count on, 0 to 5: neighbours stay as far apart as they were, but the far
# end is new. **Interpolated** ones are squeezed into 0 to 4: nothing is new, but neighbours are closer (notebook 06).
# The published programs differ: one extrapolates, the other interpolates.
#
# **Prediction 10.3.** Before any step at the new size: with which positions does the toy have the lower loss?

# %%
predict("10.3", "extrapolated", "interpolated", "12 clips cannot tell")

# %% tags=["folded", "nbval-ignore-output"]
scenes = sample_scenes(20, seed=11, two_objects=0.0)
words = pipe.text.encode([captions.evaluation_caption(one, random.Random(i)) for i, one in enumerate(scenes)])


def latents_at(side, count):
    """Scaled latents of the first scenes at side x side pixels, b c t h w."""
    pixels = rearrange(render_batch(scenes[:count], 17, side, side) * 2 - 1, "b t h w c -> b c t h w").to(device)
    return torch.cat([pipe.vae.encode(part).mode() for part in pixels.split(4)]) * pipe.vae.config.scaling_factor


def toy_with(scaling):
    """A copy of the toy's transformer that places larger grids by `scaling`."""
    other = ExpertTransformer(replace(pipe.transformer.config, position_scaling=scaling)).to(device)
    other.load_state_dict(pipe.transformer.state_dict())
    return other


def losses_of(model, latents, which, seed):
    """The v-loss of each of these clips, at timesteps from 0 to 999; `seed` draws the noise and deals out timesteps."""
    clean = latents[which]
    noise = draw_noise(tuple(clean.shape), torch.Generator().manual_seed(seed), device=device)
    t = (torch.arange(len(clean), device=device) + 3 * seed) % len(clean) * 999 // (len(clean) - 1)
    return diffusion_loss(model(pipe.schedule.add_noise(clean, noise, t), t, words[which]), clean, noise, t,
                          pipe.schedule)


TEST = slice(0, 12)  # the other eight are for training
at_64, at_96 = latents_at(64, 12), latents_at(96, 20)
models = {"extrapolated": toy_with("extrapolate"), "interpolated": toy_with("interpolate")}


def before_any_step(model, latents):
    """The loss of each test clip, a mean of four timesteps."""
    return torch.stack([losses_of(model, latents, TEST, seed) for seed in range(4)]).mean(dim=0)


print(f"at 64 x 64, as trained: loss {before_any_step(pipe.transformer, at_64).mean():.3f}")
before = {name: before_any_step(model, at_96) for name, model in models.items()}
for name, losses in before.items():
    print(f"at 96 x 96, {name}: loss {losses.mean():.3f}")
gap, low, high = mean_interval((before["extrapolated"] - before["interpolated"]).tolist())
print(f"extrapolated less interpolated, paired by clip: {gap:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}")
outcome("10.3", "interpolated" if low > 0 else "extrapolated" if high < 0 else "12 clips cannot tell")

made = {}
for name, model in models.items():
    pipe_96 = with_transformer(pipe, model)
    made[name] = pipe_96("a red circle moves right on a black background", num_inference_steps=10, height=96, width=96)
compare_clips(made, "A red circle at 96 x 96 by the toy, before any step at that size, with both kinds of positions.",
              pipe.fps)

# %% [markdown]
# Both are worse than at the old size, in the two ways of the paper's Figure 9: extrapolated, shapes stay as small as
# they were, and may repeat; interpolated, there is one larger shape. Neither is what a model of 96 x 96 should do. But
# the weights know colours, shapes and motions. How fast does the new size come? Six steps of training, on eight other
# clips.

# %% tags=["nbval-ignore-output"]
def trained_on(model):
    """The loss on test clips after 0, 3 and 6 steps at 96 x 96."""
    optimizer, curve = torch.optim.AdamW(model.parameters(), lr=3e-4), []
    for step in range(7):
        if step % 3 == 0:
            curve.append(losses_of(model, at_96, TEST, 0).mean().item())
        if step < 6:
            with torch.enable_grad():
                losses_of(model, at_96, slice(12, 20), 100 + step).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return curve


figure, ((axis,),) = new_figure(width=6, height=2.6)
for name, model in models.items():
    curve = trained_on(model)
    axis.plot((0, 3, 6), curve, "o-", label=name)
    print(f"{name}:", " -> ".join(f"{loss:.3f}" for loss in curve))
    assert curve[-1] < curve[0]
axis.set(xlabel="steps at the new size", ylabel="loss at 96 x 96", ylim=(0, None))
axis.legend(fontsize=8)
show_figure(figure, "Loss at 96 x 96 over six training steps, with extrapolated and with interpolated positions.")

# %% [markdown]
# Six steps on eight clips close two fifths or more of the gap to the old size. So training does not begin anew at a
# seam: what was learned at the small size is still there, and has to be used at new places. Which positions begin lower
# says nothing general. The toy knows four rows of patches; a model that knows thirty has other distances to get used
# to. (In the race of 300 seconds the interpolated ones did better. It was one seed.)
#
# ## 4. One schedule
#
# ### Exercise 10.2: rate (difficulty 2 of 3, 15 minutes)
#
# The learning rate is part of what goes on at a seam. Write it as a factor: up in a line to 1 over the first `warmup`
# steps of the *training*, then half a cosine down to 0 over all the other steps, whatever stage they belong to.

# %%
def rate(step, stages, warmup):
    """Step, counted from 0; steps of each stage; steps of the warm-up -> a factor, 0 to 1."""
    ### BEGIN SOLUTION
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / (sum(stages) - warmup))) / 2
    ### END SOLUTION


rate = check("10.2", rate)
show_source(stage_of)

# %% [markdown]
# ### Exercise 10.3: copy_of_run (difficulty 2 of 3, 20 minutes)
#
# A training run of months is killed now and then, and a seam is a natural place to restart it. Here is one in
# miniature. Fill `fresh`, a run that has just begun, with the state of `run`, so that both go on in exactly the same
# way, bit for bit. `run` goes on, too, so the two must share no tensor.

# %%
show_source(SmallRun)


def copy_of_run(run, fresh):
    """A SmallRun and another that has just begun -> the second, which goes on exactly as the first."""
    ### BEGIN SOLUTION
    fresh.model.load_state_dict(run.model.state_dict())
    fresh.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    fresh.average = {name: tensor.clone() for name, tensor in run.average.items()}
    fresh.generator.set_state(run.generator.get_state())
    fresh.number = run.number
    return fresh
    ### END SOLUTION


copy_of_run = check("10.3", copy_of_run)

# %% [markdown]
# What does a forgotten piece cost? Five runs go on from step 20, each but the first without one piece of the state.

# %% tags=["nbval-ignore-output"]
def distance_after(forgotten, steps=20):
    """How far the weights of a copy without one piece of the state are from those of the run, step by step."""
    run = SmallRun(0)
    for _ in range(20):
        run.step()
    second, empty = copy_of_run(run, SmallRun(1)), SmallRun(1)
    if forgotten == "optimizer":
        second.optimizer = torch.optim.AdamW(second.model.parameters(), lr=0.1)
    if forgotten == "random state":
        second.generator = empty.generator
    if forgotten == "number of the step":
        second.number = 0
    if forgotten == "average":
        second.average = {name: tensor.clone() for name, tensor in empty.average.items()}
    apart = []
    for _ in range(steps):
        run.step()
        second.step()
        apart.append(max((a - b).abs().max().item() for a, b in zip(
            [*run.model.parameters(), *run.average.values()], [*second.model.parameters(), *second.average.values()])))
    return apart


figure, ((axis,),) = new_figure(width=6.5, height=2.6)
for forgotten, style in zip(("nothing", "optimizer", "random state", "number of the step", "average"),
                            ("", "-", "--", "-.", ":")):
    apart = distance_after(forgotten)
    print(f"{forgotten} forgotten: after 20 more steps the largest difference is {apart[-1]:.3f}")
    assert (apart[-1] == 0) == (forgotten == "nothing")
    if forgotten != "nothing":
        axis.semilogy(range(20, 40), apart, style, label=f"{forgotten} forgotten")
axis.set(xlabel="step", ylabel="largest difference")
axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
show_figure(figure, "How far copies of a run drift from it where a piece of the state was forgotten, on a logarithmic "
                    "axis. Where nothing is forgotten, the difference is exactly 0 and cannot be drawn.")

# %% [markdown]
# None of the four looks like an error: every copy goes on training silently. Only a comparison bit by bit tells. A
# forgotten average heals with time, as new weights replace old ones in it. A forgotten number of the step does not heal
# here: the schedule begins anew.
#
# ## 5. The best fifth
#
# The last published stage trains on the best 20 % of the data. How the authors ranked their clips is not published. So
# first we need scores. Here are 48 films: some are good, others more or less out of focus, frozen, or black.

# %% tags=["nbval-ignore-output"]
def defocused(film, sigma):
    """Every frame blurred by a Gaussian of sigma pixels."""
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    planes = F.pad(rearrange(film, "t h w c -> (t c) 1 h w"), (reach,) * 4, mode="replicate")
    planes = F.conv2d(F.conv2d(planes, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    return rearrange(planes, "(t c) 1 h w -> t h w c", c=3)


chance = random.Random(3)
films, kinds = [], []
for i, one in enumerate(sample_scenes(48, seed=12, two_objects=0.0)):
    film = render(one, 9, 64, 64)
    film = (film + 0.01 * torch.randn(film.shape, generator=torch.Generator().manual_seed(i))).clamp(0, 1)  # a camera
    kind = ("good", "out of focus", "out of focus", "frozen", "good", "black")[i % 6]
    if kind == "out of focus":
        film = defocused(film, chance.uniform(0.5, 2.0))
    film = film[:1].expand(9, -1, -1, -1) if kind == "frozen" else 0.02 * film if kind == "black" else film
    films.append(film)
    kinds.append(kind)
order = [kinds.index(kind) for kind in ("good", "out of focus", "frozen", "black")]
compare_clips({kinds[i]: films[i] for i in order},
              "Four films: a good one, one out of focus, a frozen and a black one.", 8, num_frames=3)

# %% [markdown]
# ### Exercise 10.4: clip_sharpness (difficulty 2 of 3, 15 minutes)
#
# Give a clip a number that falls when it is blurred, and does not change with its brightness, its contrast, its motion
# or its length. A clip of a single colour gets 0.

# %% tags=["nbval-ignore-output"]
def clip_sharpness(clip):
    """A clip, t h w 3 -> a number, 0 or more; the larger, the sharper."""
    ### BEGIN SOLUTION
    grey = clip.mean(dim=-1)
    change = (grey[:, :, 1:] - grey[:, :, :-1]).square().mean(dim=(1, 2)).sqrt()
    spread = grey.flatten(1).std(dim=1)
    return float(torch.where(spread > 1e-3, change / spread.clamp(min=1e-3), 0.0).mean())
    ### END SOLUTION


clip_sharpness = check("10.4", clip_sharpness)
scores = [clip_sharpness(film) for film in films]
moving = [motion(film.mean(dim=-1), 8).mean().item() for film in films]
good = [kind == "good" for kind in kinds]
show_source(sharpness)


def chosen_by(threshold):
    """Sharpness and motion of 48 films; films right of the line are kept."""
    figure, (axes,) = new_figure(1, 2, width=8.5, height=3)
    for kind, look in zip(("good", "out of focus", "frozen", "black"), "os^x"):
        axes[0].plot([s for s, k in zip(scores, kinds) if k == kind], [m for m, k in zip(moving, kinds) if k == kind],
                     look, label=kind, markersize=5, linestyle="none")
    axes[0].axvline(threshold, color="black", linewidth=1)
    axes[0].set(xlabel="your sharpness", ylabel="motion (sides a second)")
    axes[0].legend(fontsize=8)
    rates = []
    for line in sorted([0.0, *scores, math.inf]):
        kept = [score >= line for score in scores]
        rates.append((sum(k and kind == "out of focus" for k, kind in zip(kept, kinds)) / kinds.count("out of focus"),
                      sum(k and g for k, g in zip(kept, good)) / sum(good)))
    axes[1].plot(*zip(*rates), color="#777777")
    now = [(sum(s >= threshold and k == kind for s, k in zip(scores, kinds)) / kinds.count(kind))
           for kind in ("out of focus", "good")]
    axes[1].plot(*now, "o", markersize=9, color="#D55E00")
    axes[1].set(xlabel="out of focus, but kept", ylabel="good ones kept", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    return figure, (f"At a threshold of {threshold:.3f}, {now[1]:.0%} of the good films are kept, and {now[0]:.0%} of "
                    "those out of focus. Left, sharpness and motion of all films; right, both shares for every "
                    "threshold.")


explore_figure(chosen_by, threshold=torch.linspace(min(scores), max(scores), 25).tolist())

# %% [markdown]
# A threshold trades one mistake for the other: the whole curve is the score's quality, a point on it is a choice. And
# no threshold on sharpness finds a frozen film, or a black one; that takes motion, or brightness. The package measures
# all of them, and keeps a clip only if none of its reasons to drop it applies. The authors adjusted their thresholds
# while they trained.
#
# ### Exercise 10.5: top_share (difficulty 1 of 3, 10 minutes)
#
# Now without a threshold. Return the numbers of the best clips, in ascending order: the share of all clips that is
# asked for, rounded, but at least one clip. Of equal scores, take the first.

# %% tags=["nbval-ignore-output"]
def top_share(scores, share):
    """Scores, one a clip, and a share, 0 to 1 -> clip numbers, ascending."""
    ### BEGIN SOLUTION
    count = max(1, round(share * len(scores)))
    return sorted(sorted(range(len(scores)), key=lambda i: -scores[i])[:count])
    ### END SOLUTION


top_share = check("10.5", top_share)
by_sharpness = top_share(scores, 0.2)
package = best_of([{"sharpness": s, "motion": m} for s, m in zip(scores, moving)], 0.2)
for name, best in (("by your sharpness", by_sharpness), ("by the package, from sharpness and motion", package)):
    print(f"the best fifth {name}: " + ", ".join(f"{sum(kinds[i] == kind for i in best)} {kind}" for kind in
                                                 ("good", "out of focus", "frozen", "black")))
show_source(best_of)

# %% [markdown]
# In the race of 300 seconds four fifths of the clips were out of focus. After the stages, 45 more seconds went to the
# sharpest fifth, or to all clips.

# %%
for name in ("progressive, then all clips", "progressive, then the best fifth"):
    curve = by_name[name]
    low, high = wilson(curve.adherence["all"], curve.measured)
    print(f"{name:33s} sharpness {curve.sharpness:.3f} times that of sharp clips; captions obeyed "
          f"{curve.adherence['all']:.1%} ({low:.1%} to {high:.1%})")
limits = by_name["progressive"].references
print(f"after a round trip through the VAE, sharp clips have {limits['sharp, through the VAE']['sharpness']:.3f}, "
      f"blurred ones {limits['blurred, through the VAE']['sharpness']:.3f}")

# %% [markdown]
# Sharper, and slightly less obedient: just what the paper reports of its last stage. But it is one run each, and look
# at the two intervals.
#
# ### Exercise 10.6: captions_needed (difficulty 3 of 3, 20 minutes)
#
# Find out how many captions each model would need for this difference to be more than chance: from how many on does the
# 95 % interval of $a - b$ no longer contain 0, if the shares stay as they are? (Take the captions of the two models as
# independent, and 1.96 standard deviations on both sides.)

# %%
def captions_needed(a, b):
    """Two shares, 0 to 1 -> captions of each model, a whole number."""
    ### BEGIN SOLUTION
    return math.ceil(1.96 ** 2 * (a * (1 - a) + b * (1 - b)) / (a - b) ** 2)
    ### END SOLUTION


captions_needed = check("10.6", captions_needed)
for one, other in (("progressive, then all clips", "progressive, then the best fifth"),
                   ("progressive, interpolated", "progressive"), ("progressive", "full size")):
    a, b = by_name[one].adherence["all"], by_name[other].adherence["all"]
    print(f"{a:.1%} ({one}) and {b:.1%} ({other}): {captions_needed(a, b):,} captions each; there were 200")

# %% [markdown]
# Two hundred captions tell 31 from 19 %, and 19 from 0, but not 24.0 from 21.5: that takes ten times as many. (And
# then other seeds: notebook 15.)
#
# ## 6. At full size
#
# The paper's Table 5, stage by stage. We count the work of the 5B for a step as three times `flops`, for the forward
# and the backward pass, as if every clip were as long as its stage allows and the batch size counted clips.
#
# **Prediction 10.4.** The first stage is more than half of all *steps*, and its batches are the largest. Which share of
# all the *work* is it?

# %%
predict("10.4", "less than a third", "about half", "more than two thirds")

# %% tags=["folded"]
five = preset("5b")
table = (("1", (49, 256, 384), 2000, 400_000), ("2", (49, 480, 720), 1000, 220_000),
         ("3", (81, 768, 1360), 250, 120_000), ("4, the best fifth", (81, 768, 1360), 100, 10_000))
work, clips = {}, {}
for name, size, batch, steps in table:
    one = flops(five.transformer, five.vae.latent_size(*size), 226)
    work[name], clips[name] = 3 * one * batch * steps, batch * steps
for name, size, batch, steps in table:
    print(f"stage {name:17s} {steps:7,} steps of {batch:5,}: {clips[name] / sum(clips.values()):5.1%} of the clips, "
          f"{work[name] / sum(work.values()):5.1%} of the work")
share = work["1"] / sum(work.values())
outcome("10.4", "less than a third" if share < 0.34 else "more than two thirds" if share > 0.66 else "about half")

# %% [markdown]
# Three quarters of all clips are seen as thumbnails, for a fifth of the work. (A real mixture has shorter clips, too,
# so its shares differ.)
#
# ## What you can now explain
#
# Answer first, then open.
#
# <details><summary>1. What do thumbnails cost, and what do they bring?</summary>
#
# They cost by tokens, so nearly as little as their pixels say, where captions are short beside them. They bring many
# more clips in the same time, and with them what colours, shapes and motions are.
# </details>
#
# <details><summary>2. What changes at a seam between two sizes, and what must not?</summary>
#
# The places of patches and the number of tokens change. Weights, moments of the optimizer, moving average, random state
# and the schedule go on.
# </details>
#
# <details><summary>3. Two models obey 24.0 and 21.5 % of 200 captions. Which is better?</summary>
#
# Nobody can tell. It takes more than 2,000 captions each for such a difference to exceed chance, and even then it is
# about these two runs; another seed may give another order.
# </details>
#
# **What the paper found.** Progressive training by resolution and length; the last stage, on the best 20 % of the data,
# removed subtitles and watermarks and made pictures slightly better, and semantics slightly worse. We know of no
# numbers for either.
#
# **Where to read on.** `minicogvx/training/stages.py` and `ablation/stages.py`; curation in `data/films/`. Next:
# [notebook 11](11_frame_pack.ipynb), clips of all sizes in one sequence.

# %% tags=["nbval-ignore-output"]
predictions("10")
progress()
