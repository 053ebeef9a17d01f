"""Fewer steps: a student that lands in one step, without guidance, where its teacher lands in several guided ones.

The teacher's trajectories from noise to clips are recorded. The student's step from timestep t to t' is trained to
end where the teacher was at t', as in progressive distillation (Salimans and Ho 2022, arXiv 2202.00512), with
guidance taken into the student (Meng et al. 2023, arXiv 2210.03142). Progressive distillation halves the steps again
and again; here it is one regression, because the toy is small and its teacher's trajectories can be recorded in
minutes.
"""

import math
import random
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from minicogvx.data.world.captions import caption
from minicogvx.data.world.scenes import sample_scenes
from minicogvx.diffusion import DDIMSampler, NoiseSchedule, draw_noise
from minicogvx.diffusion.sampling import guided_output
from minicogvx.pipeline import Pipeline
from minicogvx.training.policy import latent_shape

Trajectories = tuple[Float[Tensor, "states m c t h w"], Float[Tensor, "m n d"]]


@torch.no_grad()
def teacher_trajectories(pipe: Pipeline, count: int, steps: int = 24, kept: int = 4, seed: int = 0, batch: int = 16,
                         on_batch: Callable[[int], None] | None = None) -> Trajectories:
    """`count` clips of the toy with `steps` guided steps of DDIM: latents at the `kept` timesteps of the student and at
    the end, and the features of their captions, which are of the training split.

    Raises ValueError where `kept` does not divide `steps`.
    """
    if steps % kept:
        raise ValueError(f"steps is {steps}; the student's {kept} steps must divide it")
    sampler = DDIMSampler(pipe.schedule, steps, target="next")
    generator, words = torch.Generator().manual_seed(seed), random.Random(f"ways {seed}")  # as in the study
    scenes = sample_scenes(count, 500 + seed, two_objects=0.0)
    found, features = [], []
    for first in range(0, count, batch):
        asked = [caption(scene, words) for scene in scenes[first:first + batch]]
        text = pipe.text.encode([""] * len(asked) + asked)
        x = draw_noise((len(asked), *latent_shape(pipe)), generator, device=pipe.device)
        states = [x]
        for i, t in enumerate(sampler.timesteps.tolist()):
            x, _ = sampler.step(guided_output(pipe.transformer, x, t, text, pipe.guidance_scale), i, x)
            states += [x] if (i + 1) % (steps // kept) == 0 else []
        found.append(torch.stack(states))
        features.append(text[len(asked):])
        if on_batch:
            on_batch(first + len(asked))
    return torch.cat(found, dim=1), torch.cat(features)


def target_x0(x: Float[Tensor, "b *rest"], landing: Float[Tensor, "b *rest"], t: int, t_next: int,
              schedule: NoiseSchedule) -> Float[Tensor, "b *rest"]:
    """The clean latent to predict at `x`, so that one step of DDIM from t to t_next ends at `landing`.

    DDIM: x' = A x + (sqrt(bar') - A sqrt(bar)) x0 with A = sigma' / sigma; solved for x0. A negative t_next is the
    clean latent.
    """
    bar, bar_next = schedule.alpha_bar(t), schedule.alpha_bar(t_next)
    A = math.sqrt((1 - bar_next) / (1 - bar))
    return (landing - A * x) / (math.sqrt(bar_next) - A * math.sqrt(bar))


def distillation_loss(model: nn.Module, x: Float[Tensor, "b c t h w"], landing: Float[Tensor, "b c t h w"],
                      t: Int[Tensor, "b"], t_next: Int[Tensor, "b"], text: Float[Tensor, "b n d"],
                      schedule: NoiseSchedule) -> Float[Tensor, "b"]:
    """How far from `landing` the student lands from `x` in one step of DDIM: mean squared error of each clip.

    It is that of the student's x0 against `target_x0`, times the square of x0's factor in the step: an early step,
    which still ends in noise, weighs little.
    """
    bar, bar_next = (torch.tensor([schedule.alpha_bar(int(each)) for each in moments]).view(-1, 1, 1, 1, 1).to(x)
                     for moments in (t, t_next))
    A = ((1 - bar_next) / (1 - bar)).sqrt()
    x0 = bar.sqrt() * x - (1 - bar).sqrt() * model(x, t, text)
    landed = A * x + (bar_next.sqrt() - A * bar.sqrt()) * x0
    return (landed - landing).square().flatten(1).mean(dim=1)


def distil(model: nn.Module, trajectories: Trajectories, schedule: NoiseSchedule, updates: int,
           learning_rate: int | float = 1e-3, batch: int = 16, seed: int = 0,
           on_update: Callable[[int, float], None] | None = None) -> list[float]:
    """Trains the weights of `model` that learn, in as many steps of the optimizer, and returns their losses.

    One update sees `batch` of the recorded clips, each at one of the student's timesteps.
    """
    states, text = trajectories
    sampler = DDIMSampler(schedule, len(states) - 1, target="next")
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    generator, losses = torch.Generator().manual_seed(seed), []
    for update in range(updates):
        chosen = torch.randint(states.shape[1], (batch,), generator=generator)
        place = torch.arange(batch) % (len(states) - 1)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (update + 1) / 20, 3 * (updates - update) / updates)
        with torch.enable_grad():
            loss = distillation_loss(model, states[place, chosen], states[place + 1, chosen],
                                     sampler.timesteps[place].to(states.device), sampler.targets[place],
                                     text[chosen], schedule).mean()
            loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if on_update:
            on_update(update, losses[-1])
    return losses
