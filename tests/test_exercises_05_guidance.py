"""Exercises of notebook 05 on guidance and variety distinguish right from wrong, and name the mistake."""

import math
from collections import Counter

import pytest
import torch

from minicogvx.course.exercises import find
from minicogvx.course.exercises.clouds import guided_numbers
from tests.guards import guard

# ---- 5.4 guided_velocity


def right_guided_velocity(network, x, t, text, null, scale):
    if scale == 1:
        return network(x, t, text).float()
    uncond, cond = network(x.repeat(2, 1, 1, 1, 1), t.repeat(2), torch.cat([null, text])).float().chunk(2)
    return (1 - scale) * uncond + scale * cond


def caption_first(network, x, t, text, null, scale):
    if scale == 1:
        return network(x, t, text).float()
    cond, uncond = network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([text, null])).float().chunk(2)
    return uncond + scale * (cond - uncond)


def exchanged(network, x, t, text, null, scale):
    return right_guided_velocity(network, x, t, null, text, scale)


def in_half_precision(network, x, t, text, null, scale):
    uncond, cond = network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([null, text])).chunk(2)
    return uncond + scale * (cond - uncond)


def widened_too_late(network, x, t, text, null, scale):
    return in_half_precision(network, x, t, text, null, scale).float()


def from_the_caption(network, x, t, text, null, scale):
    if scale == 1:
        return network(x, t, text).float()
    uncond, cond = network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([null, text])).float().chunk(2)
    return cond + scale * (cond - uncond)


def as_the_paper_counts(network, x, t, text, null, scale):  # Ho and Salimans: (1 + w) cond - w uncond
    if scale == 1:
        return network(x, t, text).float()
    uncond, cond = network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([null, text])).float().chunk(2)
    return (1 + scale) * cond - scale * uncond


def two_runs(network, x, t, text, null, scale):
    uncond, cond = network(x, t, null).float(), network(x, t, text).float()
    return uncond + scale * (cond - uncond)


def always_both(network, x, t, text, null, scale):
    uncond, cond = network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([null, text])).float().chunk(2)
    return uncond + scale * (cond - uncond)


def one_x_for_both(network, x, t, text, null, scale):
    return always_both(lambda a, b, c: network(x, t, c), x, t, text, null, scale)


def test_guided_velocity():
    guard("5.4", right_guided_velocity, [
        ("the caption comes first in the batch; as published, null comes first", caption_first),
        ("caption and null are exchanged; guidance goes from null towards the caption", exchanged),
        ("is torch.bfloat16; the network answers in bfloat16", in_half_precision),
        ("the difference was taken in bfloat16, and made float32 only afterwards", widened_too_late),
        ("the scale counts once too often", from_the_caption),
        ("the scale counts once too often", as_the_paper_counts),
        ("the network was given batches of [2, 2]; it must be one batch, [4]", two_runs),
        ("With scale 1 the network was given [4] samples", always_both),
        ("The network was given 2 samples of x, but 4 of text", one_x_for_both),
    ])


# ---- 5.5 half_variety


def right_half_variety():
    return find("5.5").reference()


def too_strong():
    return 6.0


def too_weak():
    return 1.5


def half_of_the_scale():
    return 0.5


def the_spread():
    return 0.22


def a_list():
    return [2.5]


def nothing_returned():
    guided_numbers(2.5)


def test_half_variety():
    guard("5.5", right_half_variety, [
        ("it must be half, 45 to 55 %. Try a smaller scale", too_strong),
        ("it must be half, 45 to 55 %. Try a larger scale", too_weak),
        ("is 0.5, below 1, where guidance begins", half_of_the_scale),
        ("return the scale, not the spread", the_spread),
        ("is a list; it must be one number, the scale", a_list),
        ("does your function end in return?", nothing_returned),
    ])


# ---- 5.6 variety


def right_variety(answers):
    return sum(-answers.count(a) / len(answers) * math.log(answers.count(a) / len(answers), 2)
               for a in set(answers))


def in_nats(answers):
    return right_variety(answers) * math.log(2)


def counts_instead_of_shares(answers):
    return -sum(count * math.log2(count / len(answers)) for count in Counter(answers).values())


def none_left_out(answers):
    return right_variety([answer for answer in answers if answer is not None])


def how_many_differ(answers):
    return len(set(answers))


def normalised(answers):
    return right_variety(answers) / max(math.log2(len(set(answers))), 1)


def perplexity(answers):
    return 2 ** right_variety(answers)


def changes_of_neighbours(answers):
    return sum(a != b for a, b in zip(answers, answers[1:]))


def sign_forgotten(answers):
    return -right_variety(answers)


def test_variety():
    guard("5.6", right_variety, [
        ("one yes-or-no question: 1 bit", in_nats),
        ("one yes-or-no question: 1 bit", counts_instead_of_shares),
        ("None, an unreadable clip, is an answer like any other", none_left_out),
        ("all are equal", how_many_differ),
        ("two questions; take log2", normalised),
        ("all are equal", perplexity),
        ("only shares count", changes_of_neighbours),
        ("is -1.000; it must be 1.000", sign_forgotten),
    ])


@pytest.mark.parametrize("scale, share", ((1.0, 0.9), (3.0, 0.99)))
def test_guidance_makes_the_clouds_obey_and_narrows_them(scale, share):
    numbers = guided_numbers(scale)
    assert (numbers > 0).double().mean() > share
    assert scale == 1 or numbers.std() < 0.6 * guided_numbers(1.0).std()
