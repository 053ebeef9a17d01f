"""Exercises of notebook 07 distinguish right from wrong, and name the mistake."""

import math

import numpy as np
import torch

from tests.guards import guard

# ---- 7.1 normalise


def right_normalise(x, weight, bias, eps=1e-5):
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + eps) * weight + bias


def over_the_tokens(x, weight, bias, eps=1e-5):
    return (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + eps).sqrt() * weight + bias


def over_the_whole_sequence(x, weight, bias, eps=1e-5):
    return (x - x.mean()) / (x.var(unbiased=False) + eps).sqrt() * weight + bias


def torch_default_std(x, weight, bias, eps=1e-5):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + eps).sqrt() * weight + bias


def eps_outside(x, weight, bias, eps=1e-5):
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True, unbiased=False) + eps) * weight + bias


def without_eps(x, weight, bias, eps=1e-5):
    return (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True, unbiased=False) * weight + bias


def without_the_mean(x, weight, bias, eps=1e-5):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def without_the_root(x, weight, bias, eps=1e-5):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + eps) * weight + bias


def without_the_bias(x, weight, bias, eps=1e-5):
    return right_normalise(x, weight, 0 * bias, eps)


def in_place(x, weight, bias, eps=1e-5):
    x -= x.mean(-1, keepdim=True)
    return right_normalise(x, weight, bias, eps)


def three_axes_only(x, weight, bias, eps=1e-5):
    b, n, d = x.shape
    return right_normalise(x, weight, bias, eps)


def test_normalise():
    guard("7.1", right_normalise, [
        ("Token 3 was changed, and token 0 changed with it", over_the_tokens),
        ("Token 3 was changed, and token 0 changed with it", over_the_whole_sequence),
        ("is 0.913 afterwards; it must be 1; the variance is divided by d, not by d - 1", torch_default_std),
        ("eps is added to the variance, under the root", eps_outside),
        ("whose channels are all 7 gives NaN or infinity", without_eps),
        ("the mean of a token is", without_the_mean),
        ("the spread of a token is", without_the_root),
        ("normalise(x, weight, bias) differs in", without_the_bias),
        ("changes its input x", in_place),
        ("ValueError", three_axes_only),
    ])


# ---- 7.2 sinusoid


def right_sinusoid(t, d):
    angles = torch.stack([t / 10000 ** (i / (d // 2)) for i in range(d // 2)], dim=-1)
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


def sines_first(t, d):
    cos, sin = right_sinusoid(t, d).chunk(2, dim=-1)
    return torch.cat([sin, cos], dim=-1)


def in_turns(t, d):
    return torch.stack(right_sinusoid(t, d).chunk(2, dim=-1), dim=-1).flatten(1)


def ends_at_one_ten_thousandth(t, d):
    angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(d // 2) / (d // 2 - 1))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def as_positions(t, d):
    angles = t[:, None] * 10000 ** (-torch.arange(d // 2) / d)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def whole_numbers(t, d):
    return right_sinusoid(t, d).to(t.dtype)


def only_the_angles(t, d):
    return right_sinusoid(t, d)[:, :d // 2]


def time_in_0_to_1(t, d):
    return right_sinusoid(t / 1000, d)


def test_sinusoid():
    guard("7.2", right_sinusoid, [
        ("begins with zeros: sines. The cosines come first", sines_first),
        ("must be 4 ones, the cosines, and then 4 zeros, the sines; it is [1.0, 0.0", in_turns),
        ("frequency 1 of 0..3 is 0.04642; it must be 10000 ** (-1 / 4) = 0.1", ends_at_one_ten_thousandth),
        ("frequency 1 of 0..3 is 0.3162; it must be 10000 ** (-1 / 4) = 0.1", as_positions),
        ("has dtype torch.int64; it must be float32", whole_numbers),
        ("of 4 timesteps has shape (4, 4); it must be (4, 8)", only_the_angles),
        ("frequency 0 of 0..3 is 0.001; it must be 10000 ** (-0 / 4) = 1", time_in_0_to_1),
    ])


# ---- 7.6 half_gone


def right_half_gone(doses, gains):
    for i in range(1, len(doses)):
        if gains[i] <= gains[0] / 2:
            return float(np.interp(-gains[0] / 2, [-gains[i - 1], -gains[i]], [doses[i - 1], doses[i]]))
    return None


def the_measured_dose_below(doses, gains):
    return next((dose for dose, gain in zip(doses, gains) if gain <= gains[0] / 2), None)


def half_of_the_range(doses, gains):
    middle = (gains[0] + min(gains)) / 2
    for (a, g), (b, h) in zip(zip(doses, gains), zip(doses[1:], gains[1:])):
        if h <= middle:
            return a + (g - middle) / (g - h) * (b - a)


def the_last_fall(doses, gains):
    found, half = None, gains[0] / 2
    for (a, g), (b, h) in zip(zip(doses, gains), zip(doses[1:], gains[1:])):
        if g > half >= h:
            found = a + (g - half) / (g - h) * (b - a)
    return found


def one_if_never(doses, gains):
    dose = right_half_gone(doses, gains)
    return 1.0 if dose is None else dose


def the_gain(doses, gains):
    return gains[0] / 2


def from_the_ends(doses, gains):
    return (gains[0] / 2) / (gains[0] - gains[-1])


def a_pair(doses, gains):
    return right_half_gone(doses, gains), gains[0] / 2


def test_half_gone():
    guard("7.6", right_half_gone, [
        ("between two measured doses, take the straight line", the_measured_dose_below),
        ("half of the gain at dose 0, not the middle of its range", half_of_the_range),
        ("half is gone where it is first reached", the_last_fall),
        ("this gain stays above half, so no dose can be named: return None", one_if_never),
        ("that is the gain itself, not the dose", the_gain),
        ("This gain never reaches 0", from_the_ends),
        ("it must be a number, the dose", a_pair),
    ])
