"""Exercises of notebook 10 about choosing clips distinguish right from wrong, and name the mistake."""

import math

import torch

from minicogvx.course.exercises.checking import find, judge
from minicogvx.evaluation.intervals import wilson
from tests.guards import guard


def nothing(*arguments):
    return None


# ---- 10.4 clip_sharpness


def of_neighbours(clip):
    grey = clip.mean(dim=-1)
    spread = grey.flatten(1).std(dim=1).mean()
    change = (grey[:, :, 1:] - grey[:, :, :-1]).square().mean().sqrt()
    return (change / spread).item() if spread > 1e-3 else 0.0


def spread_alone(clip):
    return clip.std().item()


def not_over_contrast(clip):
    return (clip[:, :, 1:] - clip[:, :, :-1]).square().mean().sqrt().item()


def over_brightness(clip):
    return ((clip[:, :, 1:] - clip[:, :, :-1]).abs().mean() / clip.mean()).item()


def summed(clip):
    return len(clip) * of_neighbours(clip)


def in_time(clip):
    spread = clip.std()
    return ((clip[1:] - clip[:-1]).square().mean().sqrt() / spread).item() if spread > 1e-3 else 0.0


def one_sided(clip):
    change = (clip[:, :, 1:] - clip[:, :, :-1]).clamp(min=0).pow(3).mean()
    return (change / clip.std() ** 3).item() if clip.std() > 1e-3 else 0.0


def divided_by_nothing(clip):
    grey = clip.mean(dim=-1)
    return ((grey[:, :, 1:] - grey[:, :, :-1]).square().mean().sqrt() / (grey - grey.mean()).square().mean()).item()


def blur_of_it(clip):
    value = of_neighbours(clip)
    return 1 / value if value else 0.0


def a_tensor_of_frames(clip):
    return clip.flatten(1).std(dim=1)


def test_clip_sharpness():
    guard("10.4", of_neighbours, [
        ("it must fall clearly", blur_of_it),
        ("Low contrast is not blur", spread_alone),
        ("Low contrast is not blur", not_over_contrast),
        ("Brightness says nothing about focus", over_brightness),
        ("Take means over frames, not sums", summed),
        ("clip_sharpness", in_time),
        ("Left and right must count the same", one_sided),
        ("it must fall clearly", divided_by_nothing),
        ("it must be one number", a_tensor_of_frames),
        ("is None; does your function end in return?", nothing),
    ])


def test_a_clip_of_one_colour_must_not_give_nan():
    def without_guard(clip):
        grey = clip.mean(dim=-1)
        return ((grey[:, :, 1:] - grey[:, :, :-1]).square().mean().sqrt() / grey.std()).item()

    verdict = judge(find("10.4"), without_guard)
    assert verdict.state == "wrong" and "do not divide by it" in verdict.message


# ---- 10.5 top_share


def best(scores, share):
    count = max(1, round(share * len(scores)))
    return sorted(sorted(range(len(scores)), key=lambda i: -scores[i])[:count])


def by_score(scores, share):
    return sorted(range(len(scores)), key=lambda i: -scores[i])[:max(1, round(share * len(scores)))]


def above_the_mean(scores, share):
    return [i for i, score in enumerate(scores) if score > sum(scores) / len(scores)]


def lowest(scores, share):
    return best([-score for score in scores], share)


def none_of_few(scores, share):
    return best(scores, share) if int(share * len(scores)) else []


def last_of_equals(scores, share):
    count = max(1, round(share * len(scores)))
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], -i))[:count])


def the_scores(scores, share):
    return [scores[i] for i in best(scores, share)]


def test_top_share():
    guard("10.5", best, [
        ("sorted by score. Keep them in the order of the data", by_score),
        ("A threshold, such as the mean, does not fix how many pass", above_the_mean),
        ("the clips with the lowest scores", lowest),
        ("at least one must", none_of_few),
        ("of equal scores the first in the data is taken", last_of_equals),
        ("it must be [1, 3]", the_scores),
        ("is None; does your function end in return?", nothing),
    ])
    assert judge(find("10.5"), lambda *given: torch.tensor(best(*given))).state == "right"


# ---- 10.6 captions_needed


def needed(a, b, z=1.96, count=1):
    return count * math.ceil(z ** 2 * (a * (1 - a) + b * (1 - b)) / (a - b) ** 2)


def one_sided_interval(a, b):
    return needed(a, b, 1.645)


def one_standard_deviation(a, b):
    return needed(a, b, 1.0)


def first_share_alone(a, b):
    return math.ceil(1.96 ** 2 * a * (1 - a) / (a - b) ** 2)


def not_squared(a, b):
    return math.ceil(1.96 ** 2 * (a * (1 - a) + b * (1 - b)) / abs(a - b))


def root_forgotten(a, b):
    return math.ceil(1.96 * math.sqrt(a * (1 - a) + b * (1 - b)) / abs(a - b))


def of_both_together(a, b):
    return needed(a, b, count=2)


def always_two_hundred(a, b):
    return 200


def none(a, b):
    return 0


def test_captions_needed():
    guard("10.6", needed, [
        ("1.645 is one-sided", one_sided_interval),
        ("That is one standard deviation", one_standard_deviation),
        ("both variances count", first_share_alone),
        ("The difference enters squared", not_squared),
        ("The reach falls with the root of n", root_forgotten),
        ("how many captions *each* model gets", of_both_together),
        ("Its lower end must just be 0", always_two_hundred),
        ("captions_needed(0.24, 0.215) is 0", none),
        ("is None; does your function end in return?", nothing),
    ])


def test_the_number_agrees_with_wilson_s_intervals_about():
    """Where the intervals of single shares no longer overlap, the difference is surely beyond chance."""
    count = needed(0.24, 0.215)
    (low, _), (_, high) = wilson(0.24, 2 * count), wilson(0.215, 2 * count)
    assert low > high
