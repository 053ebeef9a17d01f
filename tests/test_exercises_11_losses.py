"""Exercises of notebook 11 about loss and gradients distinguish right from wrong, and name the mistake."""

import torch

from minicogvx.course.exercises.checking import find, judge
from tests.guards import guard

# ---- 11.5 pack_loss


def of_packs(packs, usual):
    return sum(errors.mean() for pack in packs for errors in pack) / usual


def over_numbers(packs, usual):
    return torch.cat([errors.flatten() for pack in packs for errors in pack]).mean()


def sum_over_numbers(packs, usual):
    return sum(errors.sum() for pack in packs for errors in pack) / usual


def of_pack_means(packs, usual):
    return sum(sum(errors.mean() for errors in pack) / len(pack) for pack in packs) / len(packs)


def of_this_step(packs, usual):
    return sum(errors.mean() for pack in packs for errors in pack) / sum(map(len, packs))


def never_divided(packs, usual):
    return sum(errors.mean() for pack in packs for errors in pack)


def first_pack_alone(packs, usual):
    return sum(errors.mean() for errors in packs[0]) / usual


def a_python_number(packs, usual):
    return of_packs(packs, usual).item()


def one_each(packs, usual):
    return torch.stack([errors.mean() for pack in packs for errors in pack]) / usual


def roots(packs, usual):
    return sum(errors.mean().sqrt() for pack in packs for errors in pack) / usual


def nothing(*arguments):
    return None


def test_pack_loss():
    guard("11.5", of_packs, [
        ("A mean over all numbers lets large clips decide", over_numbers),
        ("A mean over all numbers lets large clips decide", sum_over_numbers),
        ("With a mean of each pack, what a clip counts depends on the clips", of_pack_means),
        ("each clip weighs 1/5, as there are 5 in this step", of_this_step),
        ("each clip weighs 1; it must be 1 / usual = 0.25", never_divided),
        ("for clip 0, 1, ..; it must be 1 / usual", first_pack_alone),
        ("is a Python number; it must be a tensor", a_python_number),
        ("has shape (5,); it must be ()", one_each),
        ("differs in", roots),
        ("is None; does your function end in return?", nothing),
    ])


# ---- 11.6 gradient_share


def gradient(loss, parameters):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)])


def share(losses, parameters, chosen):
    whole, part = gradient(losses.sum(), parameters), gradient(losses[chosen].sum(), parameters)
    return (part @ whole / whole.square().sum()).item()


def of_the_loss(losses, parameters, chosen):
    return (losses[chosen].sum() / losses.sum()).item()


def lengths(losses, parameters, chosen):
    part, rest = gradient(losses[chosen].sum(), parameters), gradient(losses[~chosen].sum(), parameters)
    return (part.norm() / (part.norm() + rest.norm())).item()


def length_over_whole(losses, parameters, chosen):
    return (gradient(losses[chosen].sum(), parameters).norm() / gradient(losses.sum(), parameters).norm()).item()


def first_parameter(losses, parameters, chosen):
    return share(losses, parameters[:1], chosen)


def cosine(losses, parameters, chosen):
    part, whole = gradient(losses[chosen].sum(), parameters), gradient(losses.sum(), parameters)
    return (part @ whole / (part.norm() * whole.norm())).item()


def not_squared(losses, parameters, chosen):
    part, whole = gradient(losses[chosen].sum(), parameters), gradient(losses.sum(), parameters)
    return (part @ whole / whole.norm()).item()


def of_the_clips(losses, parameters, chosen):
    return chosen.float().mean().item()


def of_the_others(losses, parameters, chosen):
    return share(losses, parameters, ~chosen)


def absolute(losses, parameters, chosen):
    return abs(share(losses, parameters, chosen))


def a_list(losses, parameters, chosen):
    return [share(losses, parameters, chosen)] * 2


def a_tensor(losses, parameters, chosen):
    return torch.tensor(share(losses, parameters, chosen), dtype=torch.float64)


def test_gradient_share():
    guard("11.6", share, [
        ("is the share of the loss", of_the_loss),
        ("compares two lengths", lengths),
        ("compares two lengths", length_over_whole),
        ("looks at the first parameter alone", first_parameter),
        ("is a cosine", cosine),
        ("the two must add up to 1", not_squared),
        ("is the share of the clips", of_the_clips),
        ("project the gradient of the chosen clips on the whole one", of_the_others),
        ("Keep the sign", absolute),
        ("is a list; it must be one number", a_list),
        ("is None; does your function end in return?", nothing),
    ])
    assert judge(find("11.6"), a_tensor).state == "right"
