"""Exercises 10.1 to 10.3 of notebook 10: clips of a step, one learning rate over all stages, and a run that goes on."""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from minicogvx.course.exercises.exercise import Wrong

# ---- 10.1 clips_a_step

SIZES = ((1, 256, 384), (17, 256, 384), (49, 256, 384), (49, 480, 720), (81, 768, 1360))


def tokens_of_clip(size: tuple[int, int, int], text: int) -> int:
    """Words and patches of a clip of (frames, height, width) in pixels, for the published VAE and patches."""
    frames, height, width = size
    return text + ((frames - 1) // 4 + 1) * (height // 16) * (width // 16)


def clips_for_tokens(size: tuple[int, int, int], budget: int, text: int) -> int:
    """How many clips of this size a step can have with at most `budget` tokens; at least one."""
    return max(1, budget // tokens_of_clip(size, text))


def check_clips_a_step(clips_a_step) -> None:
    """As many as fit, words counted, latent frames counted, never more, at least one."""
    for size in SIZES:
        for budget, text in ((75_000, 226), (20_000, 226), (400_000, 0)):
            what, wanted = f"clips_a_step({size}, {budget}, text={text})", clips_for_tokens(size, budget, text)
            got = clips_a_step(size, budget, text)
            if got is None:
                raise Wrong(f"{what} is None; does your function end in return?")
            if isinstance(got, bool) or not isinstance(got, (int, float, Tensor)) or int(got) != got:
                raise Wrong(f"{what} is {got!r}; it must be a whole number of clips.")
            if int(got) != wanted:
                raise Wrong(f"{what} is {int(got)}; it must be {wanted}. {_why_clips(int(got), size, budget, text)}")


def _why_clips(got: int, size: tuple[int, int, int], budget: int, text: int) -> str:
    frames, height, width = size
    patches, right = (height // 16) * (width // 16), tokens_of_clip(size, text)
    if text and got == max(1, budget // (right - text)):
        return f"The {text} words of every clip are tokens, too."
    if got == max(1, budget // (text + frames * patches)):
        return f"{frames} frames are {(frames - 1) // 4 + 1} latent frames; these are counted."
    if got == max(1, budget // (text + ((frames - 1) // 4 + 1) * (height // 8) * (width // 8))):
        return "A patch is 2 x 2 latents, so 16 x 16 pixels."
    if got == 0:
        return "A clip that is larger than the budget gets a step of its own."
    if got == math.ceil(budget / right) or got == round(budget / right):
        return f"{got} clips would have {got * right:,} tokens; round down."
    return f"One clip has {right:,} tokens."


# ---- 10.2 rate


def one_rate(step: int, stages: Sequence[int], warmup: int) -> float:
    """The learning rate as a factor: up in a line, then half a cosine over the steps of all stages together."""
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / (sum(stages) - warmup))) / 2


def check_rate(rate) -> None:
    """One warm-up, then never up; no jump at a seam; half of it half way; nearly 0 at the end."""
    for stages, warmup in (((200, 300, 500), 50), ((400,), 20), ((100, 100), 10)):
        what = f"rate(step, stages={list(stages)}, warmup={warmup})"
        values = [_factor(what, rate(step, list(stages), warmup)) for step in range(sum(stages))]
        _check_warmup(what, values, warmup)
        seams = [sum(stages[:i]) for i in range(1, len(stages))]
        _check_fall(what, values, seams, warmup)


def _factor(what: str, value) -> float:
    if value is None:
        raise Wrong(f"{what} is None; does your function end in return?")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise Wrong(f"{what} is a {type(value).__name__}; it must be one number.") from None


def _check_warmup(what: str, values: list[float], warmup: int) -> None:
    if values[0] > 2 / warmup:
        raise Wrong(f"{what} is {values[0]:.3g} at step 0; the warm-up begins near 0.")
    if any(b <= a for a, b in zip(values[:warmup - 1], values[1:warmup])):
        raise Wrong(f"{what} does not rise throughout the warm-up, the steps 0 to {warmup - 1}.")
    if abs(values[warmup] - 1) > 0.01 or max(values) > 1 + 1e-6:
        raise Wrong(f"{what} is {values[warmup]:.3g} at step {warmup}, after the warm-up, and {max(values):.3g} at "
                    f"most; both must be 1.")


def _check_fall(what: str, values: list[float], seams: list[int], warmup: int) -> None:
    for seam in seams:
        if values[seam] > values[seam - 1] + 1e-6:
            raise Wrong(f"{what} jumps up from {values[seam - 1]:.3g} to {values[seam]:.3g} at step {seam}, where a "
                        f"stage begins. Weights and optimizer go on; so does the schedule.")
        later = values[seam:seam + warmup]
        if later[-1] > later[0]:
            raise Wrong(f"{what} rises again from step {seam}, where a stage begins. There is one warm-up, not one a "
                        f"stage.")
    up = next((i for i in range(warmup + 1, len(values)) if values[i] > values[i - 1] + 1e-6), None)
    if up is not None:
        raise Wrong(f"{what} rises at step {up}; after the warm-up it only falls.")
    if values[-1] > 0.01:
        raise Wrong(f"{what} ends at {values[-1]:.3g}; at the last step of the last stage it must be nearly 0.")
    drop = max(a - b for a, b in zip(values[warmup:], values[warmup + 1:]))
    if drop > 2.5 / (len(values) - warmup):
        raise Wrong(f"{what} falls by {drop:.3g} in a single step; a cosine over all stages falls smoothly.")
    middle = values[(warmup + len(values)) // 2]
    if abs(middle - 0.5) > 0.02:
        raise Wrong(f"{what} is {middle:.3g} half way between warm-up and end; half a cosine is 0.5 there.")


# ---- 10.3 copy_of_run


class SmallRun:
    """A training in small: a linear layer, AdamW, a moving average, a random generator, the number of the next step."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        self.model = nn.Linear(4, 4)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=self.generator))
        self.average = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.number = 0

    @torch.enable_grad()
    def step(self) -> None:
        """One step: random data, a rate that falls with the number, an update, and the average after it."""
        data, noise = torch.randn(2, 8, 4, generator=self.generator)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.1 / (1 + self.number)
        self.optimizer.zero_grad()
        (self.model(data) - data.flip(1) - 0.1 * noise).square().mean().backward()
        self.optimizer.step()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                self.average[name].lerp_(parameter, 0.1)
        self.number += 1


def taken_over(run: SmallRun, fresh: SmallRun) -> SmallRun:
    """`fresh`, with all of `run`'s state copied into it: both go on with the same bits."""
    fresh.model.load_state_dict(run.model.state_dict())  # copies
    fresh.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    fresh.average = {name: tensor.clone() for name, tensor in run.average.items()}
    fresh.generator.set_state(run.generator.get_state())
    fresh.number = run.number
    return fresh


def check_copy_of_run(copy_of_run) -> None:
    """After the copy both runs go on alike, bit for bit, and do not touch each other."""
    run = _after(SmallRun(0), 5)
    kept = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    averages = {name: tensor.clone() for name, tensor in run.average.items()}
    second = copy_of_run(run, SmallRun(1))
    if second is None:
        raise Wrong("copy_of_run(run, fresh) is None; does your function end in return?")
    if not isinstance(second, SmallRun):
        raise Wrong(f"copy_of_run(run, fresh) is a {type(second).__name__}; it must be the run `fresh`, filled.")
    if second is run:
        raise Wrong("copy_of_run(run, fresh) returns `run` itself; if the machine dies, that is gone. Fill `fresh`.")
    torch.randn(3)  # somebody else draws from the global generator meanwhile
    _after(second, 3)
    if any(not torch.equal(p, kept[name]) for name, p in run.model.named_parameters()):
        raise Wrong("The copy went on for 3 steps, and the weights of the first run changed: both share tensors. Copy "
                    "their values.")
    if any(not torch.equal(averages[name], run.average[name]) for name in averages):
        raise Wrong("The copy went on for 3 steps, and the moving average of the first run changed: both share "
                    "tensors. Copy their values.")
    _after(run, 3)
    if second.number != run.number:
        raise Wrong(f"The runs are at steps {run.number} and {second.number}; the schedule needs the number of the "
                    f"step.")
    if not torch.equal(second.generator.get_state(), run.generator.get_state()):
        raise Wrong("The copy draws other random numbers than the first run. It has a generator of its own, whose "
                    "state belongs to the run; the global one of torch does not matter here.")
    if any(not torch.equal(p, dict(run.model.named_parameters())[name]) for name, p in
           second.model.named_parameters()):
        raise Wrong("After 3 more steps the weights of the two runs differ. Weights are not the whole state: AdamW "
                    "remembers two numbers for each of them.")
    for name in run.average:
        if not torch.equal(second.average[name], run.average[name]):
            raise Wrong("The weights agree, but the moving averages differ; and the average is what is sampled with.")


def _after(run: SmallRun, steps: int) -> SmallRun:
    for _ in range(steps):
        run.step()
    return run
