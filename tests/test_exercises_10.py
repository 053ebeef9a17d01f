"""Exercises of notebook 10 about stages and runs distinguish right from wrong, and name the mistake.

Those about choosing clips: test_exercises_10_choosing.py.
"""

import copy
import math

import numpy as np
import torch

from minicogvx.course.exercises.checking import find, judge
from minicogvx.course.exercises.staged_10 import SmallRun, clips_for_tokens
from tests.guards import guard


def nothing(*arguments):
    return None


# ---- 10.1 clips_a_step


def clips(size, budget, text, latent=4, patch=16, words=1):
    frames, height, width = size
    return max(1, budget // (words * text + ((frames - 1) // latent + 1) * (height // patch) * (width // patch)))


def no_words(size, budget, text):
    return clips(size, budget, 0)


def pixel_frames(size, budget, text):
    return clips(size, budget, text, latent=1)


def latents_for_patches(size, budget, text):
    return clips(size, budget, text, patch=8)


def rounded_up(size, budget, text):
    frames, height, width = size
    return math.ceil(budget / (text + ((frames - 1) // 4 + 1) * (height // 16) * (width // 16)))


def none_at_all(size, budget, text):
    frames, height, width = size
    return budget // (text + ((frames - 1) // 4 + 1) * (height // 16) * (width // 16))


def a_fraction(size, budget, text):
    frames, height, width = size
    return budget / (text + ((frames - 1) // 4 + 1) * (height // 16) * (width // 16))


def frames_over_four(size, budget, text):
    return max(1, budget // (text + max(1, size[0] // 4) * (size[1] // 16) * (size[2] // 16)))


def test_clips_a_step():
    guard("10.1", clips, [
        ("words of every clip are tokens, too", no_words),
        ("are 5 latent frames; these are counted", pixel_frames),
        ("A patch is 2 x 2 latents", latents_for_patches),
        ("round down", rounded_up),
        ("gets a step of its own", none_at_all),
        ("must be a whole number of clips", a_fraction),
        ("One clip has", frames_over_four),
        ("is None; does your function end in return?", nothing),
    ])
    assert judge(find("10.1"), lambda size, budget, text: float(clips(size, budget, text))).state == "right"
    assert clips_for_tokens((49, 480, 720), 75_000, 226) == 4  # of 17,776 tokens


# ---- 10.2 rate


def plain(step, stages, warmup):
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (sum(stages) - warmup))


def from_zero(step, stages, warmup):
    return step / warmup if step < warmup else plain(step, stages, warmup)


def restarts(step, stages, warmup):
    for length in stages:
        if step < length:
            return plain(step, [length], warmup)
        step -= length


def cosine_restarts(step, stages, warmup):
    if step < warmup:
        return plain(step, stages, warmup)
    first = 0
    for length in stages:
        if step < first + length:
            return 0.5 + 0.5 * math.cos(math.pi * (step - first) / length) if first else plain(step, [length], warmup)
        first += length


def warmup_a_stage(step, stages, warmup):
    value, first = plain(step, stages, warmup), 0
    for length in stages:
        if first <= step < first + warmup:
            return min(value, (step - first + 1) / warmup)
        first += length
    return value


def by_stage(step, stages, warmup):
    number = sum(step >= sum(stages[:i + 1]) for i in range(len(stages)))
    return plain(step, stages, warmup) if step < warmup else 1 - number / (len(stages) + 1)


def first_stage_alone(step, stages, warmup):
    return plain(min(step, stages[0] - 1), stages[:1], warmup)


def never_ends(step, stages, warmup):
    return plain(step, [*stages, sum(stages)], warmup)


def a_line(step, stages, warmup):
    return plain(step, stages, warmup) if step < warmup else 1 - ((step - warmup) / (sum(stages) - warmup)) ** 2


def no_warmup(step, stages, warmup):
    return 0.5 + 0.5 * math.cos(math.pi * step / sum(stages))


def test_rate():
    guard("10.2", plain, [
        ("Weights and optimizer go on; so does the schedule", cosine_restarts),
        ("where a stage begins", restarts),
        ("There is one warm-up, not one a stage", warmup_a_stage),
        ("ends at", by_stage),
        ("at the last step of the last stage it must be nearly 0", never_ends),
        ("half a cosine is 0.5 there", a_line),
        ("a cosine over all stages falls smoothly", first_stage_alone),
        ("the warm-up begins near 0", no_warmup),
        ("is None; does your function end in return?", nothing),
    ])
    for other in (from_zero, lambda *given: torch.tensor(plain(*given)), lambda *given: np.float64(plain(*given))):
        assert judge(find("10.2"), other).state == "right"


# ---- 10.3 copy_of_run


def copied(run, fresh, without=()):
    if "weights" not in without:
        fresh.model.load_state_dict(run.model.state_dict())
    if "optimizer" not in without:
        fresh.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    if "average" not in without:
        fresh.average = {name: tensor.clone() for name, tensor in run.average.items()}
    if "generator" not in without:
        fresh.generator.set_state(run.generator.get_state())
    if "number" not in without:
        fresh.number = run.number
    return fresh


def no_optimizer(run, fresh):
    return copied(run, fresh, ["optimizer"])


def no_average(run, fresh):
    return copied(run, fresh, ["average"])


def no_generator(run, fresh):
    return copied(run, fresh, ["generator"])


def global_generator(run, fresh):
    copied(run, fresh, ["generator"])
    torch.set_rng_state(torch.get_rng_state())
    return fresh


def no_number(run, fresh):
    return copied(run, fresh, ["number"])


def shared(run, fresh):
    fresh.model, fresh.optimizer, fresh.average = run.model, run.optimizer, run.average
    fresh.generator.set_state(run.generator.get_state())
    fresh.number = run.number
    return fresh


def shared_average(run, fresh):
    copied(run, fresh)
    fresh.average = dict(run.average)
    return fresh


def itself(run, fresh):
    return run


def a_dict(run, fresh):
    return vars(run)


def test_copy_of_run():
    guard("10.3", copied, [
        ("AdamW remembers two numbers for each of them", no_optimizer),
        ("the moving averages differ", no_average),
        ("It has a generator of its own", no_generator),
        ("It has a generator of its own", global_generator),
        ("the schedule needs the number of the step", no_number),
        ("both share tensors", shared),
        ("the moving average of the first run changed", shared_average),
        ("returns `run` itself", itself),
        ("is a dict; it must be the run `fresh`, filled", a_dict),
        ("is None; does your function end in return?", nothing),
    ])


def test_a_small_run_learns_and_is_determined_by_its_seed():
    runs = [SmallRun(seed) for seed in (0, 0, 1)]
    for run in runs:
        for _ in range(3):
            run.step()
    first, second, other = (run.model.weight for run in runs)
    assert torch.equal(first, second) and not torch.equal(first, other)
