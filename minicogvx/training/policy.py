"""Reinforcement learning of a video model: sampling as a chain of random decisions, and what changes their chances.

DDIM with eta > 0 draws each step's latents from a Gaussian around a mean that the network decides. So the chance of a
whole clip is known, and a reward for the finished clip can make that chance larger or smaller: a policy gradient
(DDPO, arXiv 2305.13301). Advantages within a group of clips of one caption, and the clipped ratio of PPO, make it
GRPO (Flow-GRPO, arXiv 2505.05470; DanceGRPO, arXiv 2505.07818).

All latents are scaled, `b c t h w`. Sampling is without guidance: a step is one pass of the network.
"""

import copy
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minicogvx.data.world.captions import evaluation_caption
from minicogvx.data.world.scenes import Scene, sample_scenes
from minicogvx.diffusion import DDIMSampler, NoiseSchedule, diffusion_loss, draw_noise
from minicogvx.pipeline import Pipeline
from minicogvx.training.lora import add_lora
from minicogvx.training.reward import Reward, group_advantages, layout_spread, rewards_of, share_right
from minicogvx.transformer.model import ExpertTransformer

WAYS = ("gradient", "contrast")


@dataclass(frozen=True)
class PolicyTraining:
    """How to learn from rewards. `way`: "gradient" is GRPO.

    "contrast" needs no chances, only clips and the ordinary loss: it trains towards clips with an advantage above 0,
    and away from those below.
    """

    iterations: int
    way: str = "gradient"
    captions: int = 6  # of an iteration, drawn from the training split
    members: int = 8  # clips of each caption
    num_inference_steps: int = 4
    eta: float = 1.0
    learning_rate: float = 3e-3
    clip: float = 0.2
    passes: int = 1  # through the clips of an iteration
    batch: int = 16  # clips of one step of the optimizer
    rank: int = 16  # of the adapters that learn
    alpha: float = 32.0

    def __post_init__(self):
        if self.way not in WAYS:
            raise ValueError(f"way is {self.way!r}; it must be one of {', '.join(WAYS)}")
        for name in ("iterations", "captions", "passes", "batch", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.members < 2 or self.num_inference_steps < 2:
            raise ValueError(f"members is {self.members} and num_inference_steps {self.num_inference_steps}; both must "
                             f"be at least 2: a clip is compared with others, and the last step is not random")
        if not 0 < self.eta <= 1:
            raise ValueError(f"eta is {self.eta}; it must be above 0, or nothing is random, and at most 1")


@dataclass(frozen=True)
class Rollout:
    """Sampled clips with all their steps. The last step is not random, so `log_probs` has one entry less."""

    states: Float[Tensor, "states b c t h w"]  # from noise to the clean latents
    log_probs: Float[Tensor, "steps b"]


def step_gaussian(schedule: NoiseSchedule, v: Float[Tensor, "b c t h w"], latents: Float[Tensor, "b c t h w"], t: int,
                  t_next: int, eta: int | float) -> tuple[Float[Tensor, "b c t h w"], float]:
    """Mean and standard deviation of the next latents: DDIM with noise (Song et al. 2021, eq. 12 and 16).

    x' = sqrt(bar') x0 + sqrt(1 - bar' - std^2) noise + std z,  std = eta sqrt((1 - bar') / (1 - bar) (1 - bar / bar')).
    `v` is the network's output at timestep t; t_next < 0 is the clean latent. eta 0 is DDIM, 1 is DDPM.
    """
    bar, bar_next = schedule.alpha_bar(t), schedule.alpha_bar(t_next)
    x0 = schedule.to_x0(v, latents, t)
    noise = math.sqrt(1 - bar) * latents + math.sqrt(bar) * v
    std = eta * math.sqrt((1 - bar_next) / (1 - bar) * (1 - bar / bar_next))
    return math.sqrt(bar_next) * x0 + math.sqrt(max(0.0, 1 - bar_next - std**2)) * noise, std


def gaussian_log_prob(x: Float[Tensor, "b *rest"], mean: Float[Tensor, "b *rest"],
                      std: int | float) -> Float[Tensor, "b"]:
    """The logarithm of the density of each x under a Gaussian with that mean and `std` in every number."""
    each = -((x - mean) / std).square() / 2 - math.log(std) - math.log(2 * math.pi) / 2
    return each.flatten(1).sum(dim=1)


def clipped_objective(new: Float[Tensor, "b"], old: Float[Tensor, "b"], advantages: Float[Tensor, "b"],
                      clip: int | float) -> Float[Tensor, "b"]:
    """PPO's objective, to be made large: min(ratio A, clamp(ratio, 1 - clip, 1 + clip) A), ratio = exp(new - old).

    `new` and `old`: log-probabilities of the same decision (arXiv 1707.06347, eq. 7).
    """
    ratio = (new - old).exp()
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


@torch.no_grad()
def rollout(model: nn.Module, schedule: NoiseSchedule, text: Float[Tensor, "b n d"],
            noise: Float[Tensor, "b c t h w"], num_inference_steps: int, eta: int | float,
            generator: torch.Generator) -> Rollout:
    """Samples without guidance, and keeps every step and its log-probability."""
    sampler = DDIMSampler(schedule, num_inference_steps, target="next")
    states, log_probs = [noise], []
    for t, t_next in zip(sampler.timesteps.tolist(), sampler.targets.tolist()):
        x = states[-1]
        v = model(x, torch.full((len(x),), t, device=x.device), text)
        mean, std = step_gaussian(schedule, v, x, t, t_next, eta)
        if t_next >= 0:
            drawn = mean + std * draw_noise(tuple(x.shape), generator, device=x.device)
            log_probs.append(gaussian_log_prob(drawn, mean, std))
        states.append(drawn if t_next >= 0 else mean)
    return Rollout(torch.stack(states), torch.stack(log_probs))


def adapted_copy(toy: ExpertTransformer, training: PolicyTraining) -> ExpertTransformer:
    """A copy with adapters, which alone learn."""
    model = copy.deepcopy(toy)
    add_lora(model, training.rank, training.alpha)
    return model


def learn_from_reward(pipe: Pipeline, model: ExpertTransformer, training: PolicyTraining, reward: Reward, seed: int = 0,
                      on_iteration: Callable[[dict], None] | None = None,
                      always: Sequence[Scene] | None = None) -> list[dict]:
    """Trains `model` (see `adapted_copy`) on clips of its own, with captions of the training split.

    Each iteration draws new scenes for them. `always`: the scenes of all iterations, in place of new ones.

    Returns a record of each iteration: mean reward, share of the properties right, share of groups that teach, share of
    decisions whose ratio was clipped, spread of layouts, seconds since the start. `on_iteration` gets it, too.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=training.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    generator, records, started = torch.Generator().manual_seed(seed), [], time.perf_counter()
    for iteration in range(training.iterations):
        scenes = list(always or sample_scenes(training.captions, 1_000 * (seed + 1) + iteration, two_objects=0.0))
        words = random.Random(f"policy {seed} {iteration}")
        asked = [evaluation_caption(scene, words) for scene in scenes]
        text = pipe.text.encode(asked).detach().repeat_interleave(training.members, dim=0)
        noise = draw_noise((len(text), *latent_shape(pipe)), generator, device=pipe.device)
        taken = rollout(model, pipe.schedule, text, noise, training.num_inference_steps, training.eta, generator)
        clips = pipe.decode(taken.states[-1])
        rewards = rewards_of(reward, clips, scenes, training.members)
        clipped = _learn(model, optimizer, pipe.schedule, taken, text, group_advantages(rewards), training, generator)
        right = rewards if reward is share_right else rewards_of(share_right, clips, scenes, training.members)
        groups = clips.split(training.members)
        records.append({"reward": float(rewards.mean()), "right": float(right.mean()),
                        "teach": float((rewards.std(dim=1) > 0).float().mean()), "clipped": clipped,
                        "spread": sum(map(layout_spread, groups)) / len(groups),
                        "seconds": round(time.perf_counter() - started, 1)})
        if on_iteration:
            on_iteration(records[-1])
    return records


def latent_shape(pipe: Pipeline) -> tuple[int, int, int, int]:
    """Channels, frames, height and width of the latents of one clip."""
    size = pipe.video_size
    return pipe.vae.config.latent_channels, *pipe.vae.config.latent_size(size.num_frames, size.height, size.width)


def _learn(model: nn.Module, optimizer: torch.optim.Optimizer, schedule: NoiseSchedule, taken: Rollout, text: Tensor,
           advantages: Tensor, training: PolicyTraining, generator: torch.Generator) -> float:
    """Steps of the optimizer on the clips of one iteration; returns the share of ratios that were clipped."""
    advantages, outside = advantages.flatten().to(text.device), []
    useful = advantages.nonzero().flatten().cpu()
    sampler = DDIMSampler(schedule, training.num_inference_steps, target="next")
    pairs = list(zip(sampler.timesteps.tolist(), sampler.targets.tolist()))
    before = copy.deepcopy(model) if training.way == "contrast" else None
    for _ in range(training.passes if len(useful) else 0):  # of nothing, split would give one empty part
        for chosen in useful[torch.randperm(len(useful), generator=generator)].split(training.batch):
            optimizer.zero_grad()
            for i, times in enumerate(pairs[:-1] if training.way == "gradient" else pairs):
                with torch.enable_grad():
                    if training.way == "gradient":
                        loss, outer = _policy(model, schedule, taken, i, times, chosen, text[chosen],
                                              advantages[chosen], training)
                        outside.append(outer)
                    else:
                        loss = _imitation(model, before, schedule, taken.states[-1][chosen], text[chosen], times[0],
                                          advantages[chosen], generator)
                    loss.backward()
            optimizer.step()
    return sum(outside) / max(1, len(outside))


def _imitation(model: nn.Module, before: nn.Module, schedule: NoiseSchedule, clean: Tensor, text: Tensor, t: int,
               advantages: Tensor, generator: torch.Generator) -> Tensor:
    """The loss of ordinary training on the model's own clips, towards the good and away from the bad ones.

    r |v+ - v|^2 + (1 - r) |v- - v|^2, where v+ is the model's output, v- as far on the other side of what it was
    before this iteration, and r, 0..1, how good the clip is (DiffusionNFT, arXiv 2509.16117, with beta = 1).
    """
    noise = draw_noise(tuple(clean.shape), generator, device=clean.device)
    times = torch.full((len(clean),), t, device=clean.device)
    noisy = schedule.add_noise(clean, noise, times)
    towards = model(noisy, times, text)
    with torch.no_grad():
        was = before(noisy, times, text)
    good = (0.5 + advantages / 4).clamp(0, 1)  # an advantage of 2 or more is as good as it gets
    return (good * diffusion_loss(towards, clean, noise, times, schedule)
            + (1 - good) * diffusion_loss(2 * was - towards, clean, noise, times, schedule)).mean()


def _policy(model: nn.Module, schedule: NoiseSchedule, taken: Rollout, i: int, times: tuple[int, int], chosen: Tensor,
            text: Tensor, advantages: Tensor, training: PolicyTraining) -> tuple[Tensor, float]:
    x, decided, old = taken.states[i][chosen], taken.states[i + 1][chosen], taken.log_probs[i][chosen]
    v = model(x, torch.full((len(x),), times[0], device=x.device), text)
    new = gaussian_log_prob(decided, *step_gaussian(schedule, v, x, *times, training.eta))
    outside = float(((new - old).exp() - 1).abs().gt(training.clip).float().mean())
    return -clipped_objective(new, old, advantages, training.clip).mean(), outside
