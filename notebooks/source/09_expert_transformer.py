# %% [markdown]
# # The expert transformer
#
# **In what order does a network learn words?**
#
# One caption, one noise, one network, at three moments of its training. The last clip shows where this leads. Run the
# cell.

# %% tags=["nbval-ignore-output"]
import math
import random
import time
from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

import minicogvx
from minicogvx.ablation.nano import (
    BATCH, CHOICES, FRAMES, HELD, KINDS, NANO_TRANSFORMER, nano_batches, nano_losses, nano_results, nano_samples,
    nano_scenes, nano_world, new_nano, new_optimizer, short_captions, word_gains,
)
from minicogvx.ablation.nano_study import ASKED, nano_sampled
from minicogvx.course import (
    check, compare_clips, explore_sweep, hint, new_figure, notebook_device, outcome, predict, predictions, progress,
    show_figure, show_source, solution, watch, yours,
)
from minicogvx.data.clips.clips import stack_latents
from minicogvx.data.clips.world import encode_world
from minicogvx.data.world.captions import evaluation_caption
from minicogvx.engine.muon import orthogonalised
from minicogvx.engine.optim import warmup_cosine
from minicogvx.engine.weights import Weights, update_average
from minicogvx.evaluation.intervals import mean_interval
from minicogvx.presets import preset
from minicogvx.training.alignment import Alignment
from minicogvx.training.memory import inputs_for, memory, parameter_count
from minicogvx.training.validation import swap_gain, with_other_words
from minicogvx.transformer.block import Block
from minicogvx.transformer.model import ExpertTransformer

torch.set_grad_enabled(False)  # training cells switch it on for themselves
device = notebook_device()  # of the networks: the processor, unless MINICOGVX_DEVICE names another device
pipe = minicogvx.load("toy", device, torch.float32)  # of it we use the VAE, the text encoder and the schedule

childhood = nano_samples("taught")  # steps of training -> latents of four captions, b c t h w
shown = 100, 400, 2400
clips = {f"after {step} steps": pipe.decode(childhood[str(step)][1:2])[0] for step in shown}
grown_up = pipe.decode(pipe.sample([ASKED[1]], num_inference_steps=25))[0]
compare_clips(clips | {"the shipped toy": grown_up},
              f"Four clips for the caption: {ASKED[1]}. One small network made three of them, from the same noise, "
              f"after {', '.join(map(str, shown[:-1]))} and {shown[-1]} steps of training; the last is the shipped "
              "toy's.", pipe.fps, num_frames=3)

# %% [markdown]
# This network began with random weights. It was trained for some minutes on one core, in a world of 96 possible scenes,
# with a little help (section 4). It did not learn its words all at once. (The toy is larger, and it was trained for
# about an hour.)
#
# In this notebook you put the whole model together, from your own answers of the last notebooks, and train it yourself.
# Afterwards you can explain what each part of a training step is for, how to tell that a network uses a word long
# before it can draw it, and how to find out what is wrong with a training run whose loss looks fine. It takes about 110
# minutes, exercises included. It covers sections 2.2 and 3 of the [paper](https://arxiv.org/abs/2408.06072). (Notation:
# the box in [notebook 01](01_video_tensors.ipynb).)
#
# ## 1. The parts, put together
#
# | part | takes | gives |
# |---|---|---|
# | `net.layout(net.grid(latents), n_text, device)` | sizes | `layout`: where each token lies |
# | `net.time_embedding(timestep)` | `b` | `b d_time`, not yet through SiLU |
# | `net.patch_embed(latents, text, None)` | `b c t h w`, `b n_text d_text` | `b n d`: text, then video |
# | each `block` of `net.transformer_blocks` | `x, t_emb, layout` | `b n d` |
# | `net.norm_final` | `b n_video d` | the same |
# | `net.norm_out` | `x, t_emb, layout` | the same |
# | `net.proj_out` | `b n_video d` | `b n_video (c p p)` |
# | `layout.unpatchify` | `b n_video (c p p)` | `b c t h w` |
#
# Two things are easy to miss. Every modulation expects the time embedding *after* a SiLU; it is applied once, here,
# for all of them. And after the last block there are two norms in a row: one with weights of its own, then one that the
# timestep modulates. Text has done its work by then and is left behind.

# %%
net = new_nano(seed=0).to(device)
count = sum(p.numel() for p in net.parameters())
print(f"width {NANO_TRANSFORMER.width}, {NANO_TRANSFORMER.num_layers} blocks, {count:,} parameters")
for name, part in net.named_children():
    print(f"  {name:20s} {sum(p.numel() for p in part.parameters()) / count:5.1%}")

# %% [markdown]
# ### Exercise 9.1: model_forward (difficulty 2 of 3, 20 minutes)
#
# The whole network, from noisy latents, timesteps and text features to the answer. Do not call `net` itself.
# (`hint("9.1")` gives one more hint each time, `solution("9.1")` a solution.)

# %%
def model_forward(net, latents, timestep, text):
    """latents b c t h w, timestep b, text b n_text d_text -> b c t h w."""
    ### BEGIN SOLUTION
    layout = net.layout(net.grid(latents), text.shape[1], latents.device)
    t_emb = F.silu(net.time_embedding(timestep))
    x = net.patch_embed(latents, text, None)
    for block in net.transformer_blocks:
        x = block(x, t_emb, layout)
    x = net.norm_out(net.norm_final(x[:, text.shape[1]:]), t_emb, layout)
    return layout.unpatchify(net.proj_out(x))
    ### END SOLUTION


model_forward = check("9.1", model_forward)
show_source(ExpertTransformer.forward)

# %% [markdown]
# Now the blocks. When `check` accepts an answer, it keeps its source in your own folder (`~/.minicogvx`), and
# `yours("7.4")` gives it back. Where there is none yet, it gives the package's version and says so. With half a block
# from notebook 07, attention from 08 and turned pairs from 06, a block is a few lines:

# %% tags=["nbval-ignore-output"]
half_block, multi_head, turn_pairs = yours("7.4"), yours("8.1"), yours("6.2")
denoising_loss, drop_captions = yours("4.3"), yours("5.3")


class OwnBlock(Block):
    """The package's layers, with your functions between them."""

    def forward(self, x, t_emb, layout):
        angles = torch.angle(layout.rope)  # n half_d

        def attend(y):
            q, k, v = self.attn1.project(y)  # each b heads n d
            q, k = turn_pairs(q, angles), turn_pairs(k, angles)
            q, k, v = (rearrange(z, "b heads n d -> b n (heads d)") for z in (q, k, v))
            return self.attn1.to_out[0](multi_head(q, k, v, self.attn1.heads))

        x = half_block(x, layout.num_text, self.norm1.linear(t_emb), self.norm1.norm, attend)
        return half_block(x, layout.num_text, self.norm2.linear(t_emb), self.norm2.norm, self.ff)


def own_model(seed):
    """A fresh network of the nano world, with your blocks."""
    made = new_nano(seed)
    for i, block in enumerate(made.transformer_blocks):
        made.transformer_blocks[i] = OwnBlock(NANO_TRANSFORMER)
        made.transformer_blocks[i].load_state_dict(block.state_dict())
    return made.to(device)


model = own_model(0)
for p in (*net.parameters(), *model.parameters()):  # open gates and empty branches would hide a mistake
    p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())).to(device))
some = torch.randn(2, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(device)
words = torch.randn(2, 20, 128, generator=torch.Generator().manual_seed(1)).to(device)
t = torch.tensor([100, 800], device=device)
mine, package = model_forward(model, some, t, words), net(some, t, words)
print(f"your model and the package's, with the same weights: {(mine - package).abs().max():.0e} apart, of answers "
      f"up to {package.abs().max():.1f}")
assert torch.allclose(mine, package, atol=1e-3)

# %% [markdown]
# ## 2. One clip by heart
#
# A nano world: three shapes, four colours, four motions, two backgrounds. `sample_scenes(choices=...)` draws its
# scenes. Their latents were encoded once and are stored in 8 bits, because encoding takes longer than all of our
# training. We encode two of them again, to check the stored ones.

# %% tags=["nbval-ignore-output"]
for kind in KINDS:
    print(f"{kind:10s}", ", ".join(CHOICES[kind]))
scenes = nano_scenes()
world = nano_world(pipe.text)
again = stack_latents(encode_world(pipe.vae, scenes=scenes[:2], num_frames=FRAMES, progress=False), range(2))
print(f"{len(scenes)} clips, latents {tuple(world.latents.shape)}, the last {HELD} held back; encoded again, two clips "
      f"are {(again - world.latents[:2]).abs().max():.2f} apart at most, of values up to {again.abs().max():.1f}")
assert (again - world.latents[:2]).abs().max() < 0.2
captions = [evaluation_caption(scene, random.Random(i)) for i, scene in enumerate(scenes)]  # as world.features has them
print("the first captions:", "; ".join(captions[:3]))

# %% [markdown]
# Before you train on many clips, train on *one*. A network that cannot learn a single clip by heart has a bug, and
# this shows it in seconds. The loss must keep falling, in the end to zero, and what the network makes from noise must
# turn into the clip. We watch the first 100 steps.
#
# Which optimizer? **AdamW** scales the step of every single weight. **Muon**, newer than the paper, looks at a weight
# matrix as a whole. A gradient matrix is usually dominated by a few directions, and the rest hardly learn. Muon keeps
# the directions but makes all of them equally strong: it replaces the matrix $G = U S V^T$ by nearly $U V^T$, whose
# singular values are all 1. Divide $G$ by its Frobenius norm, then repeat five times
#
# $$X \leftarrow a X + (b X X^T + c (X X^T)^2)\, X, \qquad a, b, c = 3.4445,\ -4.7750,\ 2.0315.$$
#
# Each singular value $s$ becomes $a s + b s^3 + c s^5$, which drives it towards 1.
#
# ### Exercise 9.2: orthogonalise (difficulty 2 of 3, 15 minutes)
#
# Write it for any matrix. A tall one is transposed first and back at the end, which is cheaper. A matrix of zeros stays
# zero.

# %%
def orthogonalise(matrix):
    """m n -> m n, with the same singular vectors and singular values near 1."""
    ### BEGIN SOLUTION
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x
    ### END SOLUTION


orthogonalise = check("9.2", orthogonalise)
show_source(orthogonalised)

# %% [markdown]
# We give AdamW the rate 0.002, and Muon 0.02 for the matrices of the blocks, with AdamW at 0.002 for the rest.
#
# **Prediction 9.1.** One clip, 100 steps from the same weights: which has the lower loss at the end?

# %%
predict("9.1", "AdamW", "Muon for the blocks' matrices", "they are within 10 % of each other")

# %% tags=["folded", "nbval-ignore-output"]
ONE, MUON = 5, "Muon for the blocks' matrices"  # the clip; the second optimizer
one_clip = world.latents[ONE:ONE + 1].repeat(8, 1, 1, 1, 1)  # eight noises at a time
its_words = world.features[ONE:ONE + 1].repeat(8, 1, 1)
bars = pipe.schedule.alphas_cumprod


def answers_of(network, text):
    """A function of noisy latents and timesteps, by your forward pass: data on the CPU, the network where it is."""
    return lambda x, t: model_forward(network, x.to(device), t.to(device), text.to(device)).cpu()


def by_heart(muon, steps=100):
    """The losses of a fresh network of yours that sees nothing but one clip, and the network."""
    learner, drawn, losses = own_model(0), torch.Generator().manual_seed(0), []
    optimizer = new_optimizer(learner, muon=muon)
    for step in range(steps):
        with torch.enable_grad():
            loss = denoising_loss(answers_of(learner, its_words), one_clip, bars, drawn)
            loss.backward()
        optimizer.step(warmup_cosine(step, steps, 10))
        losses.append(loss.item())
    return losses, learner


start = time.perf_counter()
learnt = {"AdamW": by_heart(muon=False), MUON: by_heart(muon=True)}
print(f"{(time.perf_counter() - start) / 200:.2f} s a step")
ends = {name: sum(losses[-10:]) / 10 for name, (losses, _) in learnt.items()}
for name, end in ends.items():
    print(f"{name:30s} loss of the first step {learnt[name][0][0]:.2f}, mean of the last ten {end:.3f}")
figure, ((axis,),) = new_figure(width=6, height=2.5)
for (name, (losses, _)), style in zip(learnt.items(), ("--", "-")):
    axis.semilogy(losses, style, label=name)
axis.set(xlabel="step", ylabel="loss of one clip")
axis.legend(fontsize=8)
show_figure(figure, "Loss of one clip over 100 steps, on a logarithmic axis, for AdamW (dashed) and Muon.")
made = nano_sampled(pipe, learnt[MUON][1], [captions[ONE]], guidance_scale=1)  # it never saw an empty caption
compare_clips({"the clip": pipe.decode(world.latents[ONE:ONE + 1])[0], "from noise": pipe.decode(made)[0]},
              f"Left, the clip, '{captions[ONE]}'; right, what the network that saw nothing else makes from noise.",
              pipe.fps, num_frames=4)
closer = abs(ends["AdamW"] - ends[MUON]) < 0.1 * min(ends.values())
assert ends[MUON] < 0.2 * learnt["AdamW"][0][0]
outcome("9.1", "they are within 10 % of each other" if closer else min(ends, key=ends.get))

# %% [markdown]
# The loss is not at zero yet, but red is there, and where it belongs.
#
# One clip, one seed and one rate each do not settle which optimizer is better. They do test everything else: forward
# pass, loss, gradients, update. Muon earns its place where many clips pull a matrix in many directions, and we use it
# from here on, as the package does when it trains.
#
# ## 3. Hearing a word
#
# Early in training, samples are blurs, whether the network knows words or not. The loss tells more. Add noise to a clip
# and let the network remove it, once with the right caption and once with a caption that is wrong in one word. A
# network that understands the word does worse with the wrong one. The difference is the word's **swap gain**. If it is
# 0, the network is deaf to the word.
#
# ### Exercise 9.3: hears (difficulty 2 of 3, 15 minutes)
#
# A scene is a dict here: `{"shape": "bar", "colour": "red", ...}`. `loss_of(scenes, seed)` gives the loss of each clip
# if the captions describe these scenes; `seed` determines noise and timesteps. Give every clip a wrong word of one kind
# (`words` lists all of that kind) and return the mean rise of the loss, a float. What must be the same both times?

# %%
def hears(loss_of, scenes, kind, words, seed):
    """How much the loss rises when every caption names a wrong word of a kind."""
    ### BEGIN SOLUTION
    following = dict(zip(words, [*words[1:], words[0]]))
    wrong = [{**scene, kind: following[scene[kind]]} for scene in scenes]
    return (loss_of(wrong, seed).mean() - loss_of(scenes, seed).mean()).item()
    ### END SOLUTION


hears = check("9.3", hears)
show_source(swap_gain)

# %% tags=["nbval-ignore-output"]
held = range(len(scenes) - HELD, len(scenes))
said = [{"background": scenes[i].background,
         **{kind: getattr(scenes[i].objects[0], kind) for kind in ("shape", "colour", "motion")}} for i in held]
encoder = short_captions(pipe.text)


def losses_of(network):
    """The function that `hears` asks, for the clips held back."""
    def loss_of(described, seed):
        drawn = torch.Generator().manual_seed(seed)
        told = [replace(scenes[i], background=one["background"], objects=(replace(
            scenes[i].objects[0], shape=one["shape"], colour=one["colour"], motion=one["motion"]),))
            for i, one in zip(held, described)]
        features = encoder.encode([evaluation_caption(scene, random.Random(i)) for i, scene in zip(held, told)])
        x0 = world.latents[-HELD:]
        noise, t = torch.randn(x0.shape, generator=drawn), (torch.arange(HELD) + 0.5) * 1000 / HELD
        noisy = pipe.schedule.add_noise(x0, noise, t.long())
        answer = answers_of(network, features)(noisy, t.long())
        return (answer - pipe.schedule.velocity(x0, noise, t.long())).square().mean(dim=(1, 2, 3, 4))
    return loss_of


for name, network in (("untrained", own_model(0)), ("knows one clip by heart", learnt["AdamW"][1])):
    print(f"{name:24s}", ", ".join(f"{kind} {hears(losses_of(network), said, kind, CHOICES[kind], 0):+z.4f}"
                                   for kind in KINDS))

# %% [markdown]
# The untrained network gives exactly 0, because its last layer is still zero. The other one has seen one clip with one
# caption, so to it no word has ever made a difference.
#
# ## 4. The nano world, live
#
# Now train on all of it: your blocks, your forward pass, your loss, your dropped captions. The figure is redrawn as the
# training runs: the loss, the swap gain of each kind of word, and the first and the last frame of a clip for each of
# four captions. A kind of word counts as *heard* once its swap gain stays above 0.01.
#
# **Prediction 9.2.** Background, colour, shape, motion: which kind of word is heard first, and which second?

# %%
predict("9.2", "background, then colour", "colour, then background", "colour, then shape", "shape, then colour",
        "motion, then colour")

# %% tags=["folded", "nbval-ignore-output"]
STEPS, EVERY, DECAY, HEARD = 150, 25, 0.98, 0.01
learner, average = own_model(0), None
log = {"step": [], "loss": [], "smoothed": [], "measured": [], "gain": {kind: [] for kind in KINDS}, "frames": None}


def training():
    """One training of `learner`; yields after each step."""
    global average
    optimizer = new_optimizer(learner)
    average = {name: p.detach().clone() for name, p in learner.named_parameters()}
    for step, (chosen, drawn) in enumerate(nano_batches(len(scenes) - HELD, STEPS, BATCH, seed=0)):
        if step % EVERY == 0:
            note_gains(step)
        text = drop_captions(world.features[chosen], world.empty[0], 0.1, drawn)
        with torch.enable_grad():
            loss = denoising_loss(answers_of(learner, text), world.latents[chosen], bars, drawn)
            loss.backward()
        optimizer.step(warmup_cosine(step, STEPS, 20))
        update_average(average, dict(learner.named_parameters()), DECAY, step)
        log["step"].append(step)
        log["loss"].append(loss.item())
        yield step
    note_gains(STEPS)


def note_gains(step):
    """Swap gains of the clips held back, and now and then the clips of four captions."""
    for kind, gain in word_gains(nano_losses(learner, world, pipe.schedule)).items():
        log["gain"][kind].append(gain)
    log["measured"].append(step)
    if step % (2 * EVERY) == 0 or step == STEPS:
        log["frames"] = step, pipe.decode(nano_sampled(pipe, learner, steps=6))


STYLES = dict(zip(KINDS, ("-", "--", ":", "-.")))


def live_figure():
    """The loss, the four gains, and the first and the last frame that each of four captions gets."""
    figure, _ = new_figure(width=10, height=4)
    figure.clear()
    left, right = figure.subfigures(1, 2, width_ratios=(4, 6))
    above, below = left.subplots(2, 1, sharex=True)
    above.semilogy(log["step"], log["loss"], linewidth=0.8)
    above.set(ylabel="loss", xlim=(0, STEPS))
    for kind in KINDS:
        below.plot(log["measured"], log["gain"][kind], STYLES[kind], label=kind)
    show_gains(below)
    below.set(xlabel="step", xlim=(0, STEPS))
    left.legend(*below.get_legend_handles_labels(), fontsize=8, ncols=4, loc="outside upper center")
    step, made = log["frames"]
    right.suptitle(f"first and last frames, step {step}", fontsize=9)
    for column, clip, words in zip(right.subplots(2, 4).T, made, ASKED):
        for axis, frame in zip(column, (clip[0], clip[-1])):
            axis.imshow(frame.clamp(0, 1))
            axis.set(xticks=[], yticks=[])
        column[0].set_title(words.replace(" moves", "\nmoves").replace(" on a ", "\non "), fontsize=8)
    return figure


def show_gains(axis):
    """The scale of swap gains: logarithmic above 0.01, the gain from which on a word counts as heard."""
    axis.set_yscale("symlog", linthresh=0.01)
    axis.set_yticks([0, 0.01, 0.1, 1], ["0", "0.01", "0.1", "1"])
    axis.axhline(HEARD, color="black", linewidth=0.6)
    axis.set(ylabel="swap gain", ylim=(-0.005, 2))


start = time.perf_counter()
watch(training(), live_figure, "Left, the loss of each step and the swap gain of each kind of word as the training "
      "goes on. Right, the first and last frames of four captions' clips.")
print(f"{STEPS} steps in {time.perf_counter() - start:.0f} s")


def first_heard(steps, values):
    """The first measurement from which on the gain is above HEARD; infinity if the training ends before."""
    above = [value > HEARD for value in values]
    return next((step for i, step in enumerate(steps) if all(above[i:])), math.inf)


def said_steps(times):
    return ", ".join("-" if step == math.inf else str(step) for step in times)


runs, heard = nano_results("words"), {}
for kind in KINDS:
    heard[kind] = first_heard(log["measured"], log["gain"][kind])
    others = [first_heard(run["steps"], run["gain"][kind]) for run in runs]
    print(f"{kind:10s} heard here from step {said_steps([heard[kind]])}; in {len(runs)} stored runs of "
          f"{runs[0]['steps'][-1]} steps, from step {said_steps(others)}")
order = sorted((kind for kind in KINDS if heard[kind] < math.inf), key=heard.get)
assert order == ["background", "colour"]
outcome("9.2", ", then ".join(order[:2]))

# %% [markdown]
# The background comes first, colour second. Your 150 steps end before motion and shape are heard. The loss falls all
# the same: much can be learnt without words, such as how to remove noise from edges and plain surfaces. The stored runs
# go on for 2,400 steps. With each of three seeds motion comes third, and shape last, after 1,600 steps or more.
#
# Why? A word is learnt when it saves loss. How much can it save? Draw a scene again with one word exchanged, encode
# both, and compare the latents.

# %% tags=["nbval-ignore-output"]
few = scenes[-10:]


def latents_of(some):
    return stack_latents(encode_world(pipe.vae, scenes=some, num_frames=FRAMES, progress=False), range(len(some)))


own = latents_of(few)
worth = {kind: ((own - latents_of([with_other_words(scene, kind, CHOICES) for scene in few])).square().mean()
                / (2 * own.var())).item() for kind in KINDS}
for kind, share in worth.items():
    print(f"another {kind:10s} changes the latents by {share:6.1%} of what two unrelated clips differ by")
assert worth["background"] > worth["colour"] > worth["shape"]

# %% [markdown]
# The shape is worth least. Motion is worth about as much as colour, but you must know where the object is to make use
# of it. While the noise still hides the object, *moves right* does not tell. Once the object shows, its motion shows,
# too.
#
# **A teacher** helps. In a drawn world we know which shape, colour and motion cover each cell of the latents. A small
# head tries to read this off the middle block, and its error is added to the loss, with a weight that falls to 0 by the
# end of the training. Cells with an object also count more. That is how the shipped toy was trained, too (CogVideoX was
# not). The idea is that of [REPA](https://arxiv.org/abs/2410.06940), where the teacher is a network that knows
# photographs.
#
# **Prediction 9.3.** Which of the two late kinds of word is heard earlier with the teacher, with every seed?

# %%
predict("9.3", "neither", "motion alone", "shape alone", "both")

# %% tags=["folded", "nbval-ignore-output"]
show_source(Alignment.forward)
taught = nano_results("taught")
figure, (axes,) = new_figure(1, 2, width=9, height=2.8)
for axis, several, title in zip(axes, (runs, taught), ("alone", "with a teacher")):
    for place, kind in enumerate(KINDS):
        for run in several:
            axis.plot(run["steps"][1:], run["gain"][kind][1:], STYLES[kind], color=f"C{place}", linewidth=1.2,
                      label=kind if run is several[0] else None)
    show_gains(axis)
    axis.set(xlabel="step", title=title, xscale="log")
    axis.set_xticks([25, 100, 400, 2400], ["25", "100", "400", "2,400"])
    axis.minorticks_off()
figure.legend(*axes[1].get_legend_handles_labels(), fontsize=8, ncols=4, loc="outside lower center")
show_figure(figure, "Swap gains of the four kinds of word over the steps of stored runs, a line for each seed, "
                    "without and with a teacher. The thin line is the gain of 0.01 that counts as heard.")
when = {}
for name, several in (("alone", runs), ("with a teacher", taught)):
    for kind in KINDS:
        times = when[name, kind] = [first_heard(run["steps"], run["gain"][kind]) for run in several]
        mean, low, high = mean_interval([run["gain"][kind][-1] for run in several])
        sure = f"95 % interval {low:z.4f} to {high:z.4f}, {len(several)} seeds" if len(several) > 1 else "one seed"
        print(f"{name:15s} {kind:10s} heard from step {said_steps(times)}; gain at the end {mean:z.4f} ({sure})")
earlier = [kind for kind in ("motion", "shape") if all(
    helped < alone for alone, helped in zip(when["alone", kind], when["with a teacher", kind]))]
outcome("9.3", "neither" if not earlier else "both" if len(earlier) == 2 else f"{earlier[0]} alone")

# %% [markdown]
# The teacher never sees a caption. But it makes the network know, somewhere inside, what is where, and then a word
# finds something to name. Motion and shape are heard much earlier, with every seed, and the shape's gain at the end is
# more than twice as large. (The limit of 0.01 is our choice.)
#
# So this is the order: what fills the picture, then what colours a part of it, then how that part moves, and last its
# outline. Samples follow. The slider shows a clip for another caption at moments of the training run with the teacher:
# grey comes first, then red, then something that moves right. A cross it is not yet.

# %% tags=["nbval-ignore-output"]
moments = {step: pipe.decode(childhood[str(step)][:1])[0] for step in (25, 100, 400, 2400)}
explore_sweep(moments, "step", f"The caption: {ASKED[0]}.", pipe.fps, num_frames=3)
made = {"the weights": own_model(0), "their average": own_model(0)}
made["the weights"].load_state_dict(learner.state_dict())
made["their average"].load_state_dict(learner.state_dict() | average)
for name, network in made.items():
    print(f"your training's end, {name:14s}: loss {nano_losses(network, world, pipe.schedule)['own']:.4f}")

# %% [markdown]
# ## 5. Which weights do you keep?
#
# Each step of training is noisy. So most training runs also keep a moving average of the weights: after each step,
# *average = decay x average + (1 - decay) x weights*. Samples are made with the average. Your training did so, too
# (decay 0.98); the lines above compare the two. They are close here, because our learning rate falls to almost nothing
# at the end, which quietens the noise as well.
#
# The average begins where the weights began, at random numbers. How much of them is still in it after 300 steps?
# `decay ** 300`.

# %%
for decay in (0.9, 0.99, 0.999, 0.9999):
    print(f"decay {decay:<6g}: {decay ** 300:6.1%} of the average is still the random beginning; it looks back over "
          f"about {1 / (1 - decay):,.0f} steps")

# %% [markdown]
# A decay of 0.9999 is right for a million steps of training. After a few hundred, the average would still be mostly the
# random beginning. The cure is a decay that begins small: at step $i$, counted from 0, take $(1 + i) / (10 + i)$ where
# that is less.
#
# ### Exercise 9.4: averaged (difficulty 1 of 3, 10 minutes)
#
# Return the next average, a dict of tensors by name, in float32, whatever the weights are in. Change nothing in place.

# %%
def averaged(average, weights, step, decay):
    """Two dicts of tensors -> a new dict: the average after step `step`, counted from 0."""
    ### BEGIN SOLUTION
    keep = min(decay, (1 + step) / (10 + step))
    return {name: keep * old.float() + (1 - keep) * weights[name].detach().float() for name, old in average.items()}
    ### END SOLUTION


averaged = check("9.4", averaged)
show_source(update_average)
left = {decay: 1.0 for decay in (0.9, 0.99, 0.999, 0.9999)}  # the share of the random beginning
for decay in left:
    share = {"start": torch.ones(())}
    for step in range(300):
        share = averaged(share, {"start": torch.zeros(())}, step, decay)
    left[decay] = share["start"].item()
print("share of the random beginning after 300 steps, with the warm-up:",
      ", ".join(f"decay {decay:g}: {value:.1e}" for decay, value in left.items()))
assert max(left.values()) < 1e-3

# %% [markdown]
# ### Exercise 9.5: master_step (difficulty 1 of 3, 10 minutes)
#
# Large training runs keep a second copy of the weights for another reason. The paper's networks compute in 16 bits,
# which halves memory and time. But between 0.5 and 1, the numbers of a 16-bit format are 0.0005 apart (or 0.004, in the
# format that the paper uses). A step of 0.0001 is rounded away, and so are a thousand of them. So the weights that
# *learn* are kept in float32, the **master weights**, and those that *compute* are rounded copies.
#
# Write one step of plain gradient descent: change `master` by `rate` times the gradient of `low`, let `low` follow,
# clear the gradient. All in place.

# %%
def master_step(master, low, rate):
    """master: float32 tensor; low: a parameter in 16 bits, with its gradient in low.grad."""
    ### BEGIN SOLUTION
    with torch.no_grad():
        master -= rate * low.grad.float()
        low.copy_(master)
    low.grad = None
    ### END SOLUTION


master_step = check("9.5", master_step)
low, master = nn.Parameter(torch.ones(1).to(torch.float16)), torch.ones(1, dtype=torch.float32)
alone = torch.ones(1, dtype=torch.float16)
for _ in range(1000):
    low.grad = torch.ones(1, dtype=torch.float16)
    master_step(master, low, 1e-4)
    alone -= 1e-4
print(f"1,000 steps of 0.0001 down from 1: with a master {low.item():.3f}, in 16 bits alone {alone.item():.3f}")
assert alone.item() == 1
show_source(Weights.write_back)

# %% [markdown]
# ## 6. The clinic
#
# Most bugs do not stop a training run. The loss falls, the GPUs hum, and weeks later the samples are wrong. Here are
# six training runs in the nano world, 120 steps each. One is healthy. In the others
#
# - each clip is trained with the caption of another clip of its batch;
# - every caption is dropped, not one in ten;
# - the network gets the timestep as 0 to 1 where it expects 0 to 999;
# - the latents are five times too large, as with a VAE whose scaling factor was forgotten;
# - samples are made with an average of decay 0.9999, without warm-up.
#
# **Prediction 9.4.** How many of the five with a bug end with a training loss at most a fifth above the healthy one's?

# %%
predict("9.4", "none", "one or two", "three", "four or five")

# %% tags=["folded", "nbval-ignore-output"]
patients = [run for run in nano_results("clinic") if run["seed"] == 0]
healthy = patients[0]["chart"]
figure, (axes,) = new_figure(1, 2, width=9, height=3.2)
for run, style in zip(patients, ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 4)))):
    smooth = torch.tensor(run["losses"]).unfold(0, 15, 1).mean(dim=1)
    for axis in axes:
        axis.plot(range(7, 7 + len(smooth)), smooth, linestyle=style, label=run["name"], linewidth=1.6)
axes[0].set(xlabel="step", ylabel="training loss, mean of 15 steps", yscale="log")
last = healthy["training_loss"]
axes[1].set(xlabel="step", xlim=(60, len(patients[0]["losses"])), ylim=(0.8 * last, 1.6 * last), title="enlarged")
figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, ncols=3, loc="outside lower center")
show_figure(figure, "Training loss of six training runs, each the mean of 15 steps: left on a logarithmic axis, right "
                    "the second half enlarged, where one of the six lies far above. The lines of 'healthy' "
                    "and 'average of 0.9999' coincide.")
print(f"{'':26s}" + "".join(f"{name:>14s}" for name in healthy))
for run in patients:
    print(f"{run['name']:26s}" + "".join(f"{value:z14.4f}" for value in run["chart"].values()))
kept = nano_samples("clinic")
figure, axes = new_figure(2, len(patients), width=9, height=3.5)
for column, run in zip(axes.T, patients):
    column[0].set_title(run["name"].replace(" of ", "\nof ").replace(" given", "\ngiven").replace(" always", "\nalways")
                        .replace(" not", "\nnot"), fontsize=8.5)
    for axis, clip in zip(column, pipe.decode(kept[run["name"]])):
        axis.imshow(clip[0].clamp(0, 1))
        axis.set(xticks=[], yticks=[])
for axis, words in zip(axes[:, 0], ASKED):
    axis.set_ylabel(words.replace(" moves", "\nmoves").replace(" on a ", "\non "), fontsize=8)
show_figure(figure, f"The first frames of what the six make of '{ASKED[0]}', above, and of '{ASKED[1]}', below.")
fine = [run["name"] for run in patients[1:] if run["chart"]["training_loss"] < 1.2 * healthy["training_loss"]]
print("training loss at most a fifth above the healthy one's:", ", ".join(fine))
outcome("9.4", "none" if not fine else "one or two" if len(fine) < 3 else "three" if len(fine) == 3 else "four or five")

# %% [markdown]
# The columns: `training_loss` is the mean of the last 25 steps. `loss` is measured on the clips held back, with the
# weights that samples are made with; `gain` is the mean swap gain;
# `without` says how much higher the loss is with the empty caption than with the right one; `time` how far the answer
# changes if only the timestep does, as a share of the answer; `spread` is the standard deviation of the latents.
#
# Four of the five bugs do not show in the training loss. The samples do not tell much, either: after 120 steps even the
# healthy network draws hardly more than the background. After so few steps, a network of this size loses only about a
# tenth more without the right caption. The average takes no part in training at all. And with a timestep of 0 to 1 the
# network does about as well as with the right one: it sees in the latents how noisy they are. The bug bites later, when
# another program calls this network with 0 to 999. The fifth loss is large for a harmless reason, since the target $v$
# contains the latents: losses can only be compared between training runs with the same latents.
#
# ### Exercise 9.6: diagnose (difficulty 2 of 3, 15 minutes)
#
# From such a chart, name the disease: one of the six names in the table, of which `healthy` is one. Your function will
# be tried on these charts *and* on training runs with other seeds, which you have not seen. So put each limit where
# another seed will not cross it.

# %%
def diagnose(chart):
    """A dict with the six numbers of a row -> the name of the row."""
    ### BEGIN SOLUTION
    if chart["spread"] > 5:
        return "latents not scaled"
    if chart["loss"] > 2 * chart["training_loss"]:
        return "average of 0.9999"
    if chart["time"] < 0.6:
        return "timestep given as 0 to 1"
    if chart["gain"] < 0.05:
        return "captions always dropped" if chart["without"] < -0.002 else "captions of other clips"
    return "healthy"
    ### END SOLUTION


diagnose = check("9.6", diagnose)
runs = nano_results("clinic")
right = sum(diagnose(dict(run["chart"])) == run["name"] for run in runs)
print(f"diagnosed: {right} of {len(runs)} training runs")

# %% [markdown]
# ## 7. At full size
#
# The same forward pass, the same training step, the published 5B. Nothing is computed on the **meta device**; only
# shapes and bytes are counted.

# %%
big = preset("5b")
with torch.device("meta"):
    giant = ExpertTransformer(big.transformer)
    answer = model_forward(giant, torch.empty(1, 16, 13, 60, 90), torch.zeros(1), torch.empty(1, 226, 4096))
weights = parameter_count(big.transformer)
print(f"your forward pass at full size: {tuple(answer.shape)}; {weights:,} parameters, {weights / count:,.0f} x ours")
print(f"weights, master weights, gradients, two averages of AdamW: {18 * weights / 1e9:.0f} GB before any clip")
for gpus, how in ((1, "replicate+checkpoint"), (8, "fsdp+checkpoint"), (64, "fsdp+checkpoint")):
    with torch.enable_grad():  # it counts what a backward pass keeps
        need = memory(big.transformer, inputs_for(big), gpus, how)
    print(f"  {gpus:2d} GPUs, {how:20s}: {need.total / 1e9:6.1f} GB on each")

# %% [markdown]
# Not one of your lines changes. What changes is where 18 bytes a weight can lie: a GPU of 80 GB is too small for them.
# So they are cut up and spread over many GPUs (FSDP, notebook 12), and each block's activations are computed twice
# instead of being kept.
#
# ## What you can now explain
#
# Answer first, then open.
#
# <details><summary>1. How can you know that a network has learnt a word before it can draw it?</summary>
#
# Exchange the word in the caption and look at the loss, with the same noise. If it rises, the network uses the word.
# </details>
#
# <details><summary>2. Why keep an average of the weights, and why must its decay begin small?</summary>
#
# Single steps are noisy, and an average of many is not. With a large decay from the start it would consist of the
# random beginning for as many steps as it looks back.
# </details>
#
# <details><summary>3. The loss falls and the samples ignore the captions. Where do you look?</summary>
#
# At the swap gain and at the loss without a caption. No gain and no difference: the captions were of other clips. No
# gain, and the empty caption is better: the network never saw a caption. In neither does the training loss look
# alarming.
# </details>
#
# **What the paper found.** It trains in 16 bits with Adam (betas 0.9 and 0.95, weight decay 0.0001), a cosine for the
# learning rate and gradients clipped at 1 (its Table 6). The learning rate was never published, nor the curves. One of
# the authors names 100,000 hours of H100 ([issue 231](https://github.com/zai-org/CogVideo/issues/231)).
#
# **Where to read on.** `minicogvx/transformer/model.py` is one screen. `minicogvx/training/transformer.py` has a
# training step with everything that a large run needs; `minicogvx/ablation/nano.py` has this notebook's, in forty
# lines. [Muon](https://kellerjordan.github.io/posts/muon/). [A recipe for training neural
# networks](https://karpathy.github.io/2019/04/25/recipe/), from which section 2 comes. The model that you put together
# here is judged in notebook 14, questioned in 15 and priced in 16. Next:
# [notebook 10](10_progressive_training.ipynb).

# %% tags=["nbval-ignore-output"]
predictions("9")
progress()
