"""Exercises of notebook 17 distinguish right from wrong, and name the mistake."""

import math

import numpy as np
import torch

from minicogvx.course.exercises.checking import find, judge
from minicogvx.course.exercises.teacher_17 import KINDS, example_policies, verdict_on_policy
from minicogvx.data.world.drawing import render
from minicogvx.data.world.oracle import matches, read
from minicogvx.data.world.scenes import COLOURS
from minicogvx.training.reward import PROPERTIES, layout_spread, share_right
from tests.guards import guard


def nothing(*arguments):
    return None


def raising(*arguments):
    raise KeyError("n")


# ---- 17.1 landing_x0


def solved(x, landing, bar, bar_next):
    shrink = math.sqrt((1 - bar_next) / (1 - bar))
    return (landing - shrink * x) / (math.sqrt(bar_next) - shrink * math.sqrt(bar))


def the_landing(x, landing, bar, bar_next):
    return landing


def not_divided(x, landing, bar, bar_next):
    return landing - math.sqrt((1 - bar_next) / (1 - bar)) * x


def noise_scaled_away(x, landing, bar, bar_next):
    return landing / math.sqrt(bar_next)


def the_noise(x, landing, bar, bar_next):
    return (landing - math.sqrt(bar_next) * solved(x, landing, bar, bar_next)) / math.sqrt(max(1e-12, 1 - bar_next))


def variances_swapped(x, landing, bar, bar_next):
    shrink = math.sqrt((1 - bar) / max(1 - bar_next, 1e-3))
    return (landing - shrink * x) / (math.sqrt(bar_next) - shrink * math.sqrt(bar))


def test_landing_x0():
    guard("17.1", solved, [
        ("which is still noisy", the_landing), ("what is left is", not_divided),
        ("ends up to", noise_scaled_away), ("is the noise of the step", the_noise), ("ends up to", variances_swapped),
        ("end in return", nothing), ("must be a tensor", lambda *a: np.ones(3)), ("KeyError", raising),
    ])


# ---- 17.2 log_chance


def by_torch(x_next, x0, noise, bar, bar_next, eta, power=0.5, turned=1.0, whole=False, scale=1.0):
    std = scale * eta * math.sqrt((1 - bar_next) / (1 - bar) * (1 - bar / bar_next))
    mean = math.sqrt(bar_next) * x0 + math.sqrt(1 - bar_next - (0 if whole else std**2)) * noise
    each = torch.distributions.Normal(mean, std ** (2 * power)).log_prob(x_next)
    return turned * each.flatten(1).sum(dim=1)


def in_double(*arguments):
    return by_torch(*(each.double() if isinstance(each, torch.Tensor) else each for each in arguments))


def averaged(*arguments):
    return by_torch(*arguments) / arguments[0][0].numel()


def one_for_all(*arguments):
    return by_torch(*arguments).sum()


def for_each_number(x_next, *arguments):
    return torch.zeros_like(x_next)


def squares_alone(x_next, x0, noise, bar, bar_next, eta):
    std = eta * math.sqrt((1 - bar_next) / (1 - bar) * (1 - bar / bar_next))
    mean = math.sqrt(bar_next) * x0 + math.sqrt(1 - bar_next - std**2) * noise
    return -((x_next - mean) / std).square().flatten(1).sum(dim=1) / 2


def without_pi(*arguments):
    return by_torch(*arguments) + arguments[0][0].numel() * math.log(2 * math.pi) / 2


def likelihood_turned(*arguments):
    return by_torch(*arguments, turned=-1.0)


def all_the_noise(*arguments):
    return by_torch(*arguments, whole=True)


def divided_by_the_variance(*arguments):
    return by_torch(*arguments, power=1.0)


def eta_left_out(x_next, x0, noise, bar, bar_next, eta):
    std = eta * math.sqrt((1 - bar_next) / (1 - bar) * (1 - bar / bar_next))
    mean = math.sqrt(bar_next) * x0 + math.sqrt(1 - bar_next - std**2) * noise
    return torch.distributions.Normal(mean, std / eta).log_prob(x_next).flatten(1).sum(dim=1)


def as_numpy(*arguments):
    return by_torch(*arguments).numpy()


def test_log_chance():
    guard("17.2", by_torch, [
        ("their logs are summed", averaged), ("one number for the whole batch", one_for_all),
        ("one value for each number of the latents", for_each_number), ("also has -log(std)", squares_alone),
        ("- log(2 pi) / 2 for each number is missing", without_pi), ("The sign is wrong", likelihood_turned),
        ("takes the place of some of the predicted noise", all_the_noise),
        ("std^2 is the variance", divided_by_the_variance), ("eta is missing", eta_left_out),
        ("end in return", nothing), ("must be a tensor", as_numpy), ("KeyError", raising),
    ])
    assert judge(find("17.2"), in_double).state == "right"


# ---- 17.3 advantages


def by_groups(rewards):
    found = []
    for group in rewards:
        spread = group.std()
        found.append((group - group.mean()) / spread if spread > 1e-6 else torch.zeros_like(group))
    return torch.stack(found)


def over_all(rewards):
    return (rewards - rewards.mean()) / (rewards.std() + 1e-8)


def across_groups(rewards):
    return (rewards - rewards.mean(dim=0)) / (rewards.std(dim=0) + 1e-8)


def only_centred(rewards):
    return rewards - rewards.mean(dim=1, keepdim=True)


def by_the_variance(rewards):
    return only_centred(rewards) / (rewards.var(dim=1, keepdim=True, correction=0) + 1e-8)


def zero_over_zero(rewards):
    return only_centred(rewards) / rewards.std(dim=1, keepdim=True)


def plain_rewards(rewards):
    return rewards


def flattened(rewards):
    return by_groups(rewards).flatten()


def test_advantages():
    guard("17.3", by_groups, [
        ("subtract each group's own mean", over_all), ("it must be 0", across_groups),
        ("it was not divided at all", only_centred), ("not by the variance", by_the_variance),
        ("NaN or infinite: 0 / 0", zero_over_zero), ("it must be 0", plain_rewards), ("it must be (3, 4)", flattened),
        ("end in return", nothing), ("KeyError", raising),
    ])
    assert judge(find("17.3"), lambda rewards: by_groups(rewards.double())).state == "right"


# ---- 17.4 surrogate


def case_by_case(new, old, advantage, clip):
    found = []
    for one, other, worth in zip(new, old, advantage):
        ratio = math.exp(one - other)
        limit = min(ratio, 1 + clip) if worth > 0 else max(ratio, 1 - clip)
        found.append(limit * worth)
    return torch.stack(found)


def clamped_alone(new, old, advantage, clip):
    return (new - old).exp().clamp(1 - clip, 1 + clip) * advantage


def never_clamped(new, old, advantage, clip):
    return (new - old).exp() * advantage


def larger_of_both(new, old, advantage, clip):
    ratio = (new - old).exp()
    return torch.maximum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def without_exp(new, old, advantage, clip):
    ratio = new - old
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def old_over_new(new, old, advantage, clip):
    return case_by_case(old, new, advantage, clip)


def as_a_loss(new, old, advantage, clip):
    return -case_by_case(new, old, advantage, clip)


def smaller_ratio(new, old, advantage, clip):
    ratio = (new - old).exp()
    return torch.minimum(ratio, ratio.clamp(1 - clip, 1 + clip)) * advantage


def always_a_fifth(new, old, advantage, clip):
    return case_by_case(new, old, advantage, 0.2)


def their_mean(new, old, advantage, clip):
    return case_by_case(new, old, advantage, clip).mean()


def test_surrogate():
    guard("17.4", case_by_case, [
        ("must hurt in full", clamped_alone), ("nothing more to gain", never_clamped),
        ("nothing more to gain", larger_of_both), ("take exp", without_exp), ("new over old", old_over_new),
        ("to be made large", as_a_loss), ("nothing more to gain", smaller_ratio), ("0.1 must count", always_a_fifth),
        ("it must be (1,)", their_mean), ("end in return", nothing), ("KeyError", raising),
    ])


# ---- 17.5 outwit


def painted(scene):
    clip = torch.zeros(17, 64, 64, 3)
    clip[:] = torch.tensor(COLOURS[scene.objects[0].colour])
    return clip


def honest(scene):
    return render(scene, 17, 64, 64)


def half_painted(scene):
    clip = honest(scene)
    clip[:, :, :20] = torch.tensor(COLOURS[scene.objects[0].colour])
    return clip


def any_noise(scene):
    return torch.rand(17, 64, 64, 3)


def in_bytes(scene):
    return 255 * painted(scene)


def one_frame(scene):
    return painted(scene)[0]


def numpy_painted(scene):
    return np.asarray(painted(scene))


def test_outwit():
    guard("17.5", painted, [
        ("Earn at least three times that", honest), ("Earn at least three times that", any_noise),
        ("still reads", half_painted), ("must lie in 0..1", in_bytes), ("it must be (17, 64, 64, 3)", one_frame),
        ("must be a tensor", numpy_painted), ("end in return", nothing), ("KeyError", raising),
    ])


# ---- 17.6 diagnose


def told(clips, scene):
    found = [matches(read(clip), scene) for clip in clips]
    shares = [sum(each[name] for each in found) / len(found) for name in PROPERTIES]
    return "hacked" if min(shares) < 0.5 else "collapsed" if layout_spread(clips) < 0.1 else "sound"


def mean_of_all(clips, scene):
    right = sum(share_right(clip, scene) for clip in clips) / len(clips)
    return "hacked" if right < 0.7 else "collapsed" if layout_spread(clips) < 0.1 else "sound"


def variety_first(clips, scene):
    return "collapsed" if layout_spread(clips) < 0.1 else told(clips, scene)


def variety_forgotten(clips, scene):
    return told(clips, scene).replace("collapsed", "sound")


def always_suspicious(clips, scene):
    return "hacked"


def first_clip_only(clips, scene):
    return told(clips[:1], scene)


def in_other_words(clips, scene):
    return "good" if told(clips, scene) == "sound" else "bad"


def a_number(clips, scene):
    return KINDS.index(told(clips, scene))


def test_diagnose():
    guard("17.6", told, [
        ("look at each alone", mean_of_all), ("hacked first of all", variety_first),
        ("look at how differently they begin", variety_forgotten), ("at different places", always_suspicious),
        ("at different places", first_clip_only), ("it must be", in_other_words), ("of type int", a_number),
        ("end in return", nothing), ("KeyError", raising),
    ])


def test_the_policies_are_what_their_names_say():
    for kind, right, scene, clips in example_policies():
        assert verdict_on_policy(clips, scene) == right, kind
    spreads = {kind: layout_spread(clips) for kind, _, _, clips in example_policies()}
    assert spreads["varied"] > 0.12 and spreads["collapsed"] < 0.03, spreads
