# %% [markdown]
# # The oracle as a teacher
#
# **A program marks every clip, exactly and at no cost. Can a model learn from marks alone? And what else does it
# learn?**

# %% tags=["nbval-ignore-output"]
import copy
import math
import random
import statistics
import time

import torch

import minicogvx
from minicogvx.ablation.taught import made_clips, share_of_ones, taught_pipe, taught_record
from minicogvx.compat import choose_dtype
from minicogvx.course import (
    check, compare_clips, explore_figure, hint, new_figure, notebook_device, outcome, predict, predictions, progress,
    show_figure, show_rows, show_source, solution,
)
from minicogvx.course.exercises.teacher_17 import drawn_policy
from minicogvx.data.world.captions import evaluation_caption
from minicogvx.data.world.drawing import render
from minicogvx.data.world.oracle import matches, read
from minicogvx.data.world.scenes import COLOURS, Scene, ShapeObject, sample_scenes
from minicogvx.diffusion import DDIMSampler, draw_noise
from minicogvx.evaluation.intervals import mean_interval, paired_difference, wilson
from minicogvx.presets import preset
from minicogvx.training.distillation import distil, distillation_loss, teacher_trajectories
from minicogvx.training.policy import (
    PolicyTraining, adapted_copy, clipped_objective, latent_shape, learn_from_reward, rollout, step_gaussian,
)
from minicogvx.training.reward import PROPERTIES, all_right, colour_seen, layout_spread, rewards_of, share_right
from minicogvx.training.start import with_transformer
from minicogvx.transformer.model import flops

torch.set_grad_enabled(False)  # the package switches it on where something is trained
device = notebook_device()  # the processor, unless MINICOGVX_DEVICE names another device
toy = minicogvx.load("toy", device, torch.float32)
toy.vae.to(choose_dtype(device, training=True))  # decoding takes most of the time: 16 bits where they are quick
student, rewarded = (taught_pipe(toy, name) for name in ("student", "rewarded"))
record = taught_record()

PROMPT = "a green cross moves up on a navy background"
made = {f"the toy, {passes} passes": made_clips(toy, [PROMPT], steps, scale)[0]
        for passes, steps, scale in ((50, 25, 3.0), (2, 2, 1.0))}
made["its student, 2 passes"] = made_clips(student, [PROMPT], 2, 1.0)[0]
made["the oracle's pupil, 2 passes"] = made_clips(rewarded, [PROMPT], 2, 1.0)[0]
compare_clips(made, f"The caption: {PROMPT}. Four clips from the same noise: the toy with 25 guided steps, the toy "
                    f"with 2 steps, and with 2 steps a student of the toy and a pupil of the oracle.",
              toy.fps, num_frames=5)

# %% [markdown]
# The toy makes a clip with 50 passes of its network: 25 steps, each with and without the caption. Above are clips of
# two passes. You will meet two teachers who make such clips better. The first is the toy itself, which shows a student
# how to land in one step where it takes a dozen. The second is the oracle, which cannot make a single clip. It only
# marks what it sees, and a **policy gradient** turns its marks into changes of the weights.
#
# You will write the target of distillation, the chance of a clip, the advantages and the objective of GRPO, and you
# will let a careless reward be hacked. Afterwards you can explain how a model learns from a mark that has no gradient,
# what few steps cost, and why you should never look at the reward alone. It takes about 105 minutes, exercises
# included. None of this is in the [paper](https://arxiv.org/abs/2408.06072); it is how models like it are finished
# today, with large networks as judges, on GPUs. Here the judge is a program, exact and free. (Notation: the box in
# [notebook 01](01_video_tensors.ipynb).)
#
# ## 1. A teacher who shows
#
# What do few steps cost? `minicogvx.ablation.taught_study` has counted it on captions that training never saw. Its
# record also holds everything else in this notebook that takes longer than a minute.

# %% tags=["nbval-ignore-output"]
judged = record["judged"]


def say_share(name):
    """Prints and returns the share of held-out captions that a model obeys, with its interval and its price."""
    one = judged[name]
    share, count = share_of_ones(one["right"]["all"]), len(one["right"]["all"])
    low, high = wilson(share, count)
    print(f"{name:22s} {share:6.1%} of {count} (95 % interval {low:.0%} to {high:.0%}), "
          f"{one['seconds_per_clip']:.2f} s a clip on one core")
    return share


kept = {name: say_share(name) for name in judged if name.startswith("toy")}

# %% [markdown]
# The seconds include decoding, which costs as much as several passes. (A guided step takes two passes.) In this simple
# world four steps still obey most captions, with guidance as many as twenty-five. What two steps lose is to be won
# back.
#
# Let the toy make clips in 24 guided steps, and write down where each was at the start, after 12 steps and at the end.
# The student has one step for each half. What must it predict, so that a single step of DDIM (notebook 04) ends where
# the teacher was?
#
# ### Exercise 17.1: the target of distillation (difficulty 2 of 3, 15 minutes)
#
# DDIM goes from $\bar\alpha$ to $\bar\alpha'$ by
#
# $$x' = A x + (\sqrt{\bar\alpha'} - A \sqrt{\bar\alpha})\, x_0, \qquad
# A = \sqrt{(1 - \bar\alpha') / (1 - \bar\alpha)}$$
#
# Here $x'$ is known and $x_0$ is not. `hint("17.1")` gives one more hint each time, `solution("17.1")` a solution.

# %% tags=["nbval-ignore-output"]
def landing_x0(x, landing, bar, bar_next):
    """x and landing, b c t h w; bar and bar_next: alpha_bar there -> the x0 for which DDIM lands, b c t h w."""
    ### BEGIN SOLUTION
    A = math.sqrt((1 - bar_next) / (1 - bar))
    return (landing - A * x) / (math.sqrt(bar_next) - A * math.sqrt(bar))
    ### END SOLUTION


landing_x0 = check("17.1", landing_x0)
show_source(distillation_loss)

# %% [markdown]
# The loss measures how far the student lands from the teacher. Guidance goes into the student as well: its one pass,
# with the caption alone, must land where the teacher arrived after 24 passes. Here are 8 new trajectories of the
# teacher, and two students: a fresh one that starts as the toy and learns from them now, and the shipped one, which
# learned from others.

# %% tags=["nbval-ignore-output"]
start = time.perf_counter()
trajectories, text = teacher_trajectories(toy, 8, kept=2, seed=100_000)
print(f"{trajectories.shape[1]} trajectories of the teacher in {time.perf_counter() - start:.0f} s, "
      f"{len(trajectories)} moments of each")
sampler = DDIMSampler(toy.schedule, 2, target="next")


def apart(model):
    """How far a student lands from the teacher in each of its steps."""
    gaps = []
    for i in range(2):
        t, t_next = (each[i].expand(trajectories.shape[1]) for each in (sampler.timesteps, sampler.targets))
        loss = distillation_loss(model, trajectories[i], trajectories[i + 1], t.to(device), t_next, text, toy.schedule)
        gaps.append(float(loss.mean()))
    return gaps


start, fresh = time.perf_counter(), adapted_copy(toy.transformer, PolicyTraining(1))
before = apart(fresh)
losses = distil(fresh, (trajectories, text), toy.schedule, 8, batch=8)
print(f"{len(losses)} updates in {time.perf_counter() - start:.0f} s; the shipped student: "
      f"{record['student']['updates']} updates on {record['student']['trajectories']} other trajectories")
for name, values in (("the toy itself", before), ("after the updates just now", apart(fresh)),
                     ("the shipped student", apart(student.transformer))):
    print(f"{name:27s} first step {values[0]:.4f}, second step {values[1]:.4f}")

# %% [markdown]
# **Prediction 17.1.** How many held-out captions does the student obey with its two passes?

# %%
predict("17.1", "no more than the toy in 2 steps, as far as can be told",
        "more than that, fewer than the toy in 4 steps", "as many as the toy in 4 steps, or more")

# %% tags=["folded", "nbval-ignore-output"]
def ones(right):
    """A string of 0 and 1 as a list of booleans."""
    return [each == "1" for each in right]


kept["student"] = say_share("student")
gain, low, high = paired_difference(*(ones(judged[name]["right"]["all"]) for name in ("student", "toy, 2 steps")))
print(f"student less toy, both in 2 steps, same captions and noise: {100 * gain:+.0f} points (95 % interval "
      f"{100 * low:+.0f} to {100 * high:+.0f})")
outcome("17.1", "no more than the toy in 2 steps, as far as can be told" if low <= 0 else
        "more than that, fewer than the toy in 4 steps" if kept["student"] < kept["toy, 4 steps"] else
        "as many as the toy in 4 steps, or more")

# %% [markdown]
# Two hundred updates on one core, three and a half minutes with the recording of the trajectories, give two passes
# about the obedience of the toy's four. The student also needs no guidance any more: the teacher's is in its weights.
#
# What it learned is in the losses above: only the first step has become better. And that step stays the worse one. From
# pure noise the teacher's way leads to one of many clips, and which one depends on the noise in a way that some hundred
# examples hardly show. A squared error is then smallest at the mean of all that could come, which is a blur.
# Progressive distillation halves the steps again and again, with many thousands of trajectories, so that each student
# has little to learn that its teacher does not do already.
#
# ## 2. The chance of a clip
#
# The second teacher shows nothing. It gives a mark for the finished clip, and the mark has no gradient: between pixels
# and the word "star" lie medians, thresholds and a vote. What can be differentiated is **how likely** the model was to
# make that clip. For this, sampling must be random at every step. DDIM can be:
#
# $$x' = \sqrt{\bar\alpha'}\, x_0 + \sqrt{1 - \bar\alpha' - \sigma^2}\; \epsilon + \sigma z, \qquad
# \sigma = \eta \sqrt{\tfrac{1 - \bar\alpha'}{1 - \bar\alpha} \left(1 - \tfrac{\bar\alpha}{\bar\alpha'}\right)}$$
#
# $x_0$ and $\epsilon$ are the clean latents and the noise that the network's output implies, $z$ is fresh noise. With
# $\eta = 0$ it is the DDIM that you know, with 1 the DDPM of notebook 04.

# %%
asked = [PROMPT] * 4
words = toy.text.encode(asked)
same_noise = draw_noise((1, *latent_shape(toy)), torch.Generator().manual_seed(5), device=device)
same_noise = same_noise.repeat(4, 1, 1, 1, 1)
rows = {}
for eta in (0.0, 0.5, 0.9):
    taken = rollout(toy.transformer, toy.schedule, words, same_noise, 2, max(eta, 1e-6),
                    torch.Generator().manual_seed(1))
    clips = toy.decode(taken.states[-1])
    rows[f"eta {eta:g}"] = clips[:, 8]
    print(f"eta {eta:g}: four clips from one noise, spread of layouts {layout_spread(clips):.3f}")
show_rows(rows, "Frame 8 of four clips that began with the same noise, for eta 0, 0.5 and 0.9. With eta 0 all four "
                "are the same; with eta 0.9 they differ.", num_frames=4, counted="clip")


def landings(eta):
    """What each step lands on: clean latents, noise that the network predicts, and fresh noise."""
    figure, ((axis,),) = new_figure(width=5.5, height=2.4)
    one, bottom = torch.ones(1, 1, 1, 1, 1), torch.zeros(2)
    steps = [(int(t), int(t_next)) for t, t_next in zip(sampler.timesteps, sampler.targets)]
    fresh_share = torch.tensor([step_gaussian(toy.schedule, one, one, *step, eta)[1] ** 2 for step in steps])
    signal = torch.tensor([toy.schedule.alpha_bar(t_next) for _, t_next in steps])
    for name, part in (("clean latents", signal), ("predicted noise", 1 - signal - fresh_share),
                       ("fresh noise", fresh_share)):
        axis.bar(range(2), part, bottom=bottom, label=name)
        bottom = bottom + part
    axis.set(xticks=range(2), xticklabels=[f"{t} to {t_next if t_next >= 0 else 'clean'}" for t, t_next in steps],
             xlabel="timesteps of a step", ylabel="share of the variance", ylim=(0, 1.0))
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


explore_figure(landings, "Shares of clean latents, predicted and fresh noise in what each of two steps lands on",
               eta=[0.0, 0.25, 0.5, 0.75, 1.0])

# %% [markdown]
# So each step draws from a Gaussian around a mean that the network decides. The network is a **policy**, and a step is
# a decision with a known chance.
#
# ### Exercise 17.2: the chance of a step (difficulty 2 of 3, 20 minutes)
#
# How likely is it to land exactly at `x_next`? The density of each number is that of a Gaussian, and all numbers of a
# clip are drawn independently.

# %% tags=["nbval-ignore-output"]
def log_chance(x_next, x0, noise, bar, bar_next, eta):
    """The log-probability of landing at x_next: all b c t h w; bar, bar_next: alpha_bar now and there -> b."""
    ### BEGIN SOLUTION
    std = eta * math.sqrt((1 - bar_next) / (1 - bar) * (1 - bar / bar_next))
    mean = math.sqrt(bar_next) * x0 + math.sqrt(1 - bar_next - std**2) * noise
    return torch.distributions.Normal(mean, std).log_prob(x_next).flatten(1).sum(dim=1)
    ### END SOLUTION


log_chance = check("17.2", log_chance)
show_source(step_gaussian)
t, t_next = int(sampler.timesteps[0]), int(sampler.targets[0])
bar, bar_next = (toy.schedule.alpha_bar(moment) for moment in (t, t_next))
x = taken.states[0]
v = toy.transformer(x, torch.full((4,), t, device=device), words)
mine = log_chance(taken.states[1], math.sqrt(bar) * x - math.sqrt(1 - bar) * v,
                  math.sqrt(1 - bar) * x + math.sqrt(bar) * v, bar, bar_next, 0.9)
print("yours, first step of the four clips: ", ", ".join(f"{value:.1f}" for value in mine.tolist()))
print("written down while sampling:         ", ", ".join(f"{value:.1f}" for value in taken.log_probs[0].tolist()))
assert torch.allclose(mine.cpu(), taken.log_probs[0].cpu(), rtol=1e-3, atol=1.0)

# %% [markdown]
# The last step is not random, as it lands on clean latents; so of two steps one is a decision, and of fifty, 49 are.
# The **policy gradient** (REINFORCE) is now one line: make $R \cdot \log p$ large, where $R$ is the mark. What was
# marked well becomes more likely. The marks need no gradient, only the chances do.
#
# ## 3. Better than what?
#
# If all marks are positive, everything becomes more likely, some of it a little more. That is nearly all noise.
# **GRPO** (group relative policy optimization) makes a *group* of clips for each caption and asks how much better a
# clip is than its group.
#
# ### Exercise 17.3: advantages in a group (difficulty 1 of 3, 10 minutes)
#
# In each row: subtract the mean, divide by the standard deviation. Where all marks of a group are equal, the group
# teaches nothing: its advantages are 0.

# %% tags=["nbval-ignore-output"]
def advantages(rewards):
    """Rewards, captions x clips -> how much better each clip is than the others of its caption, in units of spread."""
    ### BEGIN SOLUTION
    mean, spread = rewards.mean(dim=1, keepdim=True), rewards.std(dim=1, keepdim=True)
    return torch.where(spread > 1e-6, (rewards - mean) / spread.clamp(min=1e-6), torch.zeros_like(rewards))
    ### END SOLUTION


advantages = check("17.3", advantages)
show_source(share_right)
show_source(all_right)

# %% [markdown]
# Two rewards. `share_right` gives a fifth for each property that the oracle reads as asked. `all_right` gives 1 if all
# are right and 0 otherwise, as this course counts obeyed captions. We let the toy, in two steps, make 8 clips for each
# of 4 captions, of one object and of two. The toy hardly ever gets a caption of two objects right.
#
# **Prediction 17.2.** Captions of two objects, marked all or nothing: in how many of the four groups is there anything
# to learn?

# %%
predict("17.2", "none or one", "two", "three or four")

# %% tags=["folded", "nbval-ignore-output"]
generator, teaches = torch.Generator().manual_seed(3), {}
for objects in (1, 2):
    wanted = sample_scenes(4, 30 + objects, two_objects=float(objects - 1))
    said = [evaluation_caption(scene, random.Random(i)) for i, scene in enumerate(wanted) for _ in range(8)]
    noise = draw_noise((32, *latent_shape(toy)), generator, device=device)
    taken = rollout(toy.transformer, toy.schedule, toy.text.encode(said), noise, 2, 1.0, generator)
    clips = toy.decode(taken.states[-1])
    for name, reward in (("all or nothing", all_right), ("share right", share_right)):
        marks = rewards_of(reward, clips, wanted, 8)
        teaches[objects, name] = int((advantages(marks).abs().amax(dim=1) > 0).sum())
        print(f"{objects} object{'s' * (objects - 1)}, {name:14s}: mean mark {marks.mean():.2f}, "
              f"{teaches[objects, name]} of 4 groups have marks that differ")
found = teaches[2, "all or nothing"]
outcome("17.2", "none or one" if found <= 1 else "two" if found == 2 else "three or four")

# %% [markdown]
# Where all clips of a group are wrong, or all are right, its marks are equal and say nothing. With two objects the mark
# of all or nothing is silent exactly where there is most to learn. Marks for parts still differ in some groups.
#
# ## 4. Not too far at once
#
# Making clips is expensive, so one wants several updates from the same clips. But after the first update the model is
# no longer the one that made them. The ratio of the chances, new over old, corrects for that, and **PPO** (proximal
# policy optimization) stops rewarding a decision once its ratio has left $1 \pm c$ (`clip` below):
#
# $$\min\big(\rho A,\ \text{clamp}(\rho, 1 - c, 1 + c)\, A\big), \qquad \rho = p_\text{new} / p_\text{old}$$
#
# ### Exercise 17.4: the clipped objective (difficulty 2 of 3, 10 minutes)
#
# Return this objective for each decision, from the logarithms of both chances.

# %% tags=["nbval-ignore-output"]
def surrogate(new, old, advantage, clip):
    """new, old: log-probabilities of the same decision, b; advantage, b -> what is to be made large, b."""
    ### BEGIN SOLUTION
    ratio = (new - old).exp()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    ### END SOLUTION


surrogate = check("17.4", surrogate)
show_source(clipped_objective)

# %% [markdown]
# That is all of GRPO: sample, mark, compare, make the better more likely. In public work the marks come from networks
# that look at pictures. They can be wrong, and a policy finds out where. So before the oracle, a careless reward: the
# share of pixels that have about the colour that the caption names. More of the asked colour, better clip?

# %%
show_source(colour_seen)

# %% [markdown]
# ### Exercise 17.5: outwit the reward (difficulty 1 of 3, 10 minutes)
#
# You are the policy. Return a clip that earns at least three times what the true clip of the scene earns, although the
# oracle reads neither shape nor motion nor background as asked.

# %% tags=["nbval-ignore-output"]
def outwit(scene):
    """A clip, 17 64 64 3 in 0..1."""
    ### BEGIN SOLUTION
    return torch.tensor(COLOURS[scene.objects[0].colour]).expand(17, 64, 64, 3).clone()
    ### END SOLUTION


outwit = check("17.5", outwit)

# %% [markdown]
# Would a network find that, with nothing but marks and a minute of time?
#
# **Prediction 17.3.** The toy, in two steps, learns from this reward: one caption, 6 iterations of 16 clips. What
# happens?

# %%
predict("17.3", "too few marks: nothing to see", "more of the colour, captions obeyed as before",
        "more of the colour, fewer captions obeyed")

# %% tags=["folded", "nbval-ignore-output"]
red = [Scene((ShapeObject("circle", "red", "moves right", 0.3, 0.5, 0.2, 0.3),), "grey")]  # one caption, to be quick
live = PolicyTraining(6, captions=1, members=16, num_inference_steps=2, learning_rate=1e-3)
start, greedy = time.perf_counter(), adapted_copy(toy.transformer, live)
steps = learn_from_reward(toy, greedy, live, colour_seen, seed=0, always=red)
print(f"{live.iterations} iterations of {live.members} clips in {time.perf_counter() - start:.0f} s")
for i, one in enumerate(steps):
    print(f"iteration {i}: {one['reward']:.3f} of all pixels have the colour; properties right {one['right']:.0%}")
said, right, earned, shown = ["a red circle moves right on a grey background"] * 16, {}, {}, {}
for name, pipe in (("before", toy), ("after", with_transformer(toy, greedy))):
    clips = made_clips(pipe, said, 2, 1.0, seed=9)
    right[name] = sum(share_right(clip, red[0]) for clip in clips) / len(clips)
    earned[name] = [colour_seen(clip, red[0]) for clip in clips]
    print(f"{name:6s}: reward {sum(earned[name]) / len(clips):.3f}, properties right {right[name]:.0%} of {len(clips)} "
          f"new clips")
    shown |= {f"{name}, clip {i}": clips[i] for i in range(2)}
compare_clips(shown, f"The caption: {said[0]}. Two clips before and two after the training, from the same noise.",
              toy.fps, num_frames=5)
more, low, high = mean_interval([b - a for a, b in zip(earned["before"], earned["after"])])
print(f"reward after less before, 16 pairs of clips: {more:+.4f} (95 % interval {low:+.4f} to {high:+.4f})")
outcome("17.3", "too few marks: nothing to see" if low <= 0 else
        "more of the colour, captions obeyed as before" if right["after"] > right["before"] - 0.02 else
        "more of the colour, fewer captions obeyed")

# %% [markdown]
# The reward asks for red pixels, and the circles have grown. Nobody had told the network about size; a hundred marks
# were enough. The oracle notices nothing: every clip still obeys its caption, which says nothing of size either. A
# person sees that all circles have become large. That is how hacking begins, and where it ends you found in exercise
# 17.5.
#
# A judge that is a network has such gaps, too, and nobody knows where. So a second measure is kept beside the reward,
# and the model is kept close to where it started.
#
# ## 5. Marks that mean it
#
# Now the oracle's own reading, `share_right`. What it reads is what was asked, so there is less to hack. The pupil
# begins as the toy in 2 steps, without guidance, and draws new captions of the training split all the time. Two ways to
# learn from the same marks were tried, for minutes on one core:
#
# - **gradient**: GRPO, as above.
# - **contrast**: ordinary training on the model's own clips, towards those that beat their group and away from those
#   that fell behind. No chances and no ratio are needed ([DiffusionNFT](https://arxiv.org/abs/2509.16117)).
#
# **Prediction 17.4.** How far does the better way get, on held-out captions and on average over three seeds?

# %%
predict("17.4", "no better than the toy, as far as can be told", "better than the toy, not as good as the student",
        "at least as good as the student")

# %% tags=["folded", "nbval-ignore-output"]
runs = {(run["name"], run["seed"]): run for run in record["runs"] if run["reward"] == "share"}


figure, (axes,) = new_figure(1, 2, width=8.5, height=2.9)
names, gains = {"gradient": "gradient", "rewarded": "contrast"}, {}
for place, ((name, seed), run) in enumerate(runs.items()):
    steps, colour = run["records"]["right"], f"C{list(names).index(name)}"
    axes[0].plot(range(len(steps)), steps, color=colour, label=names[name] if seed == 0 else None)
    old = judged["toy, 2 steps"]["right"]["all"]
    gain, low, high = gains[name, seed] = paired_difference(ones(run["judged"]["right"]["all"]), ones(old))
    axes[1].errorbar([100 * gain], [place], xerr=[[100 * (gain - low)], [100 * (high - gain)]], fmt="o", color=colour)
    clips = len(steps) * run["training"]["captions"] * run["training"]["members"]
    taught = sum(run["records"]["teach"]) / len(steps)
    print(f"{names[name]:10s} seed {seed}: {clips} clips in {run['records']['seconds'][-1]:.0f} s, marks differed in "
          f"{taught:.0%} of the groups; of held-out "
          f"captions {share_of_ones(run['judged']['right']['all']):.1%} obeyed,\n"
          f"    {100 * gain:+.1f} points against the toy in 2 steps (95 % interval {100 * low:+.1f} to "
          f"{100 * high:+.1f}, {len(old)} pairs)")
axes[0].set(xlabel="iteration", ylabel="share of properties right")
axes[0].legend(fontsize=8, loc="lower right")
axes[1].axvline(0, color="black", linewidth=0.8)
axes[1].margins(y=0.15)
axes[1].set(yticks=range(len(runs)), yticklabels=[f"{names[name]}, {seed}" for name, seed in runs],
            xlabel="captions obeyed, points more than the toy")
show_figure(figure, "Left, the share of properties that the oracle reads right over iterations, for each way to learn. "
                    "Right, captions obeyed after training less those of the toy in 2 steps, with 95 % intervals.")
ways_gain = {}
for name in names:
    several = [100 * gain[0] for (way, _), gain in gains.items() if way == name]
    ways_gain[name] = mean, low, high = mean_interval(several)
    print(f"{names[name]}, mean of {len(several)} seeds: {mean:+.1f} points (95 % interval over seeds {low:+.1f} to "
          f"{high:+.1f})")
mean, low, _ = max(ways_gain.values())
outcome("17.4", "no better than the toy, as far as can be told" if low <= 0 else
        "at least as good as the student" if kept["toy, 2 steps"] + mean / 100 >= kept["student"] else
        "better than the toy, not as good as the student")

# %% [markdown]
# (With one seed, both drew the same captions, so both curves dip where these were hard.) Look at all seeds before the
# best. Contrast gained with each of the three, the gradient with two. The interval of a single run covers other
# captions; the last lines cover other seeds. None of this proves that one way is better than the other: three seeds are
# few, and so are 96 captions. The student, who was shown how, is far ahead of both. And a gain of a few points need not
# show in a single clip, such as the pupil's in the opening.
#
# Why is it so slow? A few hundred marks are not many. A clip's mark is one number, and the decision that it praises or
# blames has 5,120. Most of a policy gradient is noise, and where all marks of a group are equal it is nothing. With one
# caption and a reward that every pixel changes, above, a fraction of a minute was enough. The published runs take tens
# of thousands of clips, on many GPUs.
#
# ## 6. What nobody marked
#
# The captions here name shape, colour, motion and background. They do not say where, or how large. A model that always
# shows the same place has nothing to lose. So look at what no reward asks for: how differently the clips of one caption
# begin. `layout_spread` measures it, 0 if all begin alike.

# %% tags=["nbval-ignore-output"]
judged_or_taught = judged | {f"{names[name]}, seed {seed}": run for (name, seed), run in runs.items()}
print("spread of layouts, mean over four captions, and the lowest and highest of them:")
for name, one in judged_or_taught.items():
    variety = one["variety"]
    print(f"  {name:28s} {statistics.fmean(variety):.3f} ({min(variety):.3f} to {max(variety):.3f})")
drawn = [layout_spread(torch.stack([render(scene, 17, 64, 64) for scene in sample_scenes(8, i, two_objects=0.0,
         choices={"shape": ("circle",), "motion": ("stays still",)})])) for i in range(6)]
print(f"  {'drawn clips, as a yardstick':28s} {statistics.fmean(drawn):.3f} ({min(drawn):.3f} to {max(drawn):.3f})")

# %% [markdown]
# Variety is lost before anybody gives marks: first to guidance (25 steps with it and without), then to few steps.
# Training with marks changed nothing here that can be told. But it does not protect what is left, either: no clip is
# ever marked for being different.
#
# ### Exercise 17.6: a diagnosis (difficulty 3 of 3, 20 minutes)
#
# Somebody shows you the clips that a policy makes of one caption. Say `"hacked"` if some property is wrong in more than
# half of them; else `"collapsed"` if `layout_spread(clips)` is below 0.1; else `"sound"`. Which of these would the mean
# of all marks have missed?

# %% tags=["nbval-ignore-output"]
def diagnose(clips, scene):
    """Clips of one caption, b t h w 3, and its scene -> "sound", "hacked" or "collapsed"."""
    ### BEGIN SOLUTION
    found = [matches(read(clip), scene) for clip in clips]
    if any(sum(each[name] for each in found) < len(found) / 2 for name in PROPERTIES):
        return "hacked"
    return "collapsed" if layout_spread(clips) < 0.1 else "sound"
    ### END SOLUTION


diagnose = check("17.6", diagnose)
asked_for = Scene((ShapeObject("star", "yellow", "moves right", 0.4, 0.5, 0.2, 0.3),), "navy")
policies = {kind: drawn_policy(kind, asked_for, 7) for kind in ("varied", "still", "collapsed", "flooded")}
for kind, clips in policies.items():
    marks = [share_right(clip, asked_for) for clip in clips]
    print(f"{kind:10s} mean mark {sum(marks) / len(marks):.2f}, spread {layout_spread(clips):.3f}: "
          f"{diagnose(clips, asked_for)}")
show_rows({kind: clips[:, 8] for kind, clips in policies.items()},
          "Frame 8 of six clips that each of four policies makes of one caption, a yellow star that moves right: "
          "varied; all standing still; all alike; nothing but yellow.", counted="clip")

# %% [markdown]
# ## 7. At full size
#
# One iteration of Flow-GRPO's kind for the 5B at 49 frames of 480 x 720, priced as in notebook 16: 32 captions, 8 clips
# each.

# %%
config, size = preset("5b").transformer, (13, 60, 90)
one = flops(config, size, 226)
H800, SHARE = 989e12, 0.31  # operations a second at the peak, and the share of it that the paper's times tell
for name, passes in (("50 guided steps", 100), ("10 steps, no guidance", 10), ("2 steps, no guidance", 2)):
    decisions = min(passes, 10) - 1
    work = 32 * 8 * (passes + 3 * decisions) * one
    print(f"{name:22s}: {work / H800 / SHARE / 3600:6.1f} GPU hours an iteration, "
          f"{passes / (passes + 3 * decisions):.0%} of them for making the clips")

# %% [markdown]
# Decoding and judging are not in it; in public work the judge is one more large network. The price explains why few
# steps and rewards go together: with few passes, thousands of clips can be afforded.
#
# ## What you can now explain
#
# Answer first, then open.
#
# <details><summary>1. How can a mark without a gradient change weights?</summary>
#
# Sampling is made random, so that each clip has a chance that can be differentiated. The gradient of its logarithm,
# times how much better the clip was than others of its caption, makes good clips more likely. The mark is only a number
# in front.
# </details>
#
# <details><summary>2. When does a group of clips teach nothing?</summary>
#
# When all its marks are equal: all right, or all wrong. A reward of all or nothing is silent where the model always
# fails, which is where it would be needed most. Marks for parts of the caption still differ there.
# </details>
#
# <details><summary>3. Why is a rising reward no proof of better clips?</summary>
#
# The policy makes whatever is marked well more likely, and the mark sees only a part of a clip. What it does not see
# can change or be lost: the size of the circles here, shape and motion in exercise 17.5, and variety, which no reward
# here sees. Measure something else beside it.
# </details>
#
# **What the paper found.** Nothing of this: CogVideoX was trained on clips alone. It uses progressive training and
# better captions where later work adds rewards and distillation.
#
# **Where to read on.** `minicogvx/training/policy.py` and `distillation.py`; [DDPO](https://arxiv.org/abs/2305.13301),
# [Flow-GRPO](https://arxiv.org/abs/2505.05470) and [DanceGRPO](https://arxiv.org/abs/2505.07818); [progressive
# distillation](https://arxiv.org/abs/2202.00512).

# %% tags=["nbval-ignore-output"]
predictions("17")
progress()
