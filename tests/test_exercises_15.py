"""Exercises of notebook 15 distinguish right from wrong, and name the mistake."""

import itertools
import math
import random
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from minicogvx.course.exercises import confounds_15, find, judge
from minicogvx.course.exercises.confounds_15 import count_parameters, paying_width
from minicogvx.course.exercises.flips_15 import exact_flips, fewest_seeds, reach_of
from minicogvx.presets import TransformerConfig
from tests.guards import guard

# ---- 15.1 paired_interval


def interval(new, old, factor=None, spread=statistics.stdev, root=math.sqrt, sign=1):
    gains, n = [sign * (a - b) for a, b in zip(new, old)], len(new)
    mean = statistics.fmean(gains)
    if n == 1:
        return mean, -math.inf, math.inf
    reach = (stats.t.ppf(0.975, n - 1) if factor is None else factor(n)) * spread(gains) / root(n)
    return mean, mean - reach, mean + reach


def as_array(new, old):
    return np.array(interval(new, old))


def as_tensor(new, old):
    return torch.tensor(interval(new, old), dtype=torch.float64)


def with_a_normal(new, old):
    return interval(new, old, lambda n: 1.96)


def one_sided(new, old):
    return interval(new, old, lambda n: stats.t.ppf(0.95, n - 1))


def degrees_n(new, old):
    return interval(new, old, lambda n: stats.t.ppf(0.975, n))


def population(new, old):
    return interval(new, old, spread=statistics.pstdev)


def by_n(new, old):
    return interval(new, old, root=float)


def of_single_seeds(new, old):
    return interval(new, old, root=lambda n: 1.0)


def squared(new, old):
    return interval(new, old, spread=statistics.variance)


def old_less_new(new, old):
    return interval(new, old, sign=-1)


def unpaired(new, old):
    mean, n = statistics.fmean(new) - statistics.fmean(old), len(new)
    if n == 1:
        return mean, -math.inf, math.inf
    reach = stats.t.ppf(0.975, 2 * n - 2) * math.sqrt((statistics.variance(new) + statistics.variance(old)) / n)
    return mean, mean - reach, mean + reach


def only_the_ends(new, old):
    return interval(new, old)[1:]


def ends_exchanged(new, old):
    mean, low, high = interval(new, old)
    return mean, high, low


def certain_of_one(new, old):
    return interval(new, old) if len(new) > 1 else (new[0] - old[0],) * 3


def test_paired_interval():
    guard("15.1", interval, [
        ("1.96 is for many seeds; for few, take Student's t", with_a_normal),
        ("2.5 % at each is 0.975", one_sided),
        ("n - 1 are free", degrees_n),
        ("divides by n - 1", population),
        ("divided by the root of n, not by n", by_n),
        ("That is where single seeds lie", of_single_seeds),
        ("Take the standard deviation, not the variance", squared),
        ("new less old", old_less_new),
        ("Take the differences first", unpaired),
        ("it must be 3 numbers", only_the_ends),
        ("give mean, low, high in this order", ends_exchanged),
        ("one pair says nothing", certain_of_one),
    ])
    for answer in (as_array, as_tensor):
        assert judge(find("15.1"), answer).state == "right", answer.__name__


# ---- 15.2 verdict


def by_interval(differences, expected, least=2):
    n = len(differences)
    if n < least:
        return "cannot be told"
    reach = stats.t.ppf(0.975, n - 1) * statistics.stdev(differences) / math.sqrt(n)
    mean = statistics.fmean(differences)
    if abs(mean) <= reach:
        return "cannot be told"
    return "agrees" if (mean > 0) == (expected == "higher") else "disagrees"


def by_the_mean(differences, expected):
    return "agrees" if (statistics.fmean(differences) > 0) == (expected == "higher") else "disagrees"


def by_a_vote(differences, expected):
    if len(differences) < 2:
        return "cannot be told"
    up = all(difference > 0 for difference in differences)
    down = all(difference < 0 for difference in differences)
    return "cannot be told" if not up and not down else "agrees" if up == (expected == "higher") else "disagrees"


def by_a_normal(differences, expected):
    if len(differences) < 2:
        return "cannot be told"
    reach = 1.96 * statistics.stdev(differences) / math.sqrt(len(differences))
    mean = statistics.fmean(differences)
    return "cannot be told" if abs(mean) <= reach else by_the_mean(differences, expected)


def always_higher(differences, expected):
    return by_interval(differences, "higher")


def open_is_no(differences, expected):
    told = by_interval(differences, expected)
    return "disagrees" if told == "cannot be told" else told


def in_other_words(differences, expected):
    return by_interval(differences, expected).replace("cannot be told", "cannot tell")


def sure_of_one(differences, expected):
    return by_the_mean(differences, expected) if len(differences) == 1 else by_interval(differences, expected)


def a_truth(differences, expected):
    return by_interval(differences, expected) == "agrees"


def test_verdict():
    guard("15.2", by_interval, [
        ("the mean is above 0, but the interval contains 0", by_the_mean),
        ("one so far that the interval contains 0", by_a_vote),
        ("with three seeds the interval reaches 4.3 standard errors", by_a_normal),
        ("with both variants exchanged", always_higher),
        ("the mean is above 0, but the interval contains 0", open_is_no),
        ("it must be one of 'agrees', 'disagrees', 'cannot be told'", in_other_words),
        ("one seed has no interval", sure_of_one),
        ("is True; it must be one of", a_truth),
    ])


# ---- 15.3 sign_flips


def flips(differences, sides=abs, strictly=False):
    seen = sides(sum(differences))
    sums = [sides(sum(s * d for s, d in zip(signs, differences)))
            for signs in itertools.product((1, -1), repeat=len(differences))]
    return statistics.fmean(each > seen + 1e-9 if strictly else each >= seen - 1e-9 for each in sums)


def as_float32(differences):
    return torch.tensor(flips(differences), dtype=torch.float32)


def one_side(differences):
    return flips(differences, sides=lambda x: x)


def without_itself(differences):
    return flips(differences, strictly=True)


def signs_alone(differences):
    return flips([math.copysign(1.0, difference) for difference in differences])


DRAWS = random.Random(1)


def at_random(differences):
    seen = abs(sum(differences))
    return statistics.fmean(abs(sum(DRAWS.choice((1, -1)) * d for d in differences)) >= seen - 1e-9 for _ in range(999))


def shuffled(differences):
    return statistics.fmean(abs(sum(order)) >= abs(sum(differences)) - 1e-9
                            for order in itertools.permutations(differences[:5]))


def with_t(differences):
    return float(stats.ttest_1samp(differences, 0).pvalue) if len(differences) > 1 else 1.0


def test_sign_flips():
    guard("15.3", flips, [
        ("You count one side only", one_side),
        ("2 of 32 choices are as extreme", without_itself),
        ("how large a difference is counts", signs_alone),
        ("when asked again", at_random),
        ("2 of 32 choices", shuffled),
        ("2 of 32 choices", with_t),
    ])
    assert judge(find("15.3"), as_float32).state == "right"


def test_flipped_signs_are_those_of_scipy():
    draws = random.Random(0)
    for n in (2, 3, 5, 7):
        values = [draws.gauss(0.3, 1.0) for _ in range(n)]
        theirs = stats.permutation_test((np.array(values),), np.mean, permutation_type="samples", n_resamples=np.inf)
        assert exact_flips(values) == pytest.approx(theirs.pvalue)


# ---- 15.4 seeds_needed


def needed(effect, spread, quantile=lambda n: stats.t.ppf(0.975, n - 1), power=1):
    n = 2
    while quantile(n) * spread ** power / math.sqrt(n) >= abs(effect):
        n += 1
    return n


def by_the_formula(effect, spread):
    return max(2, math.ceil((1.96 * spread / effect) ** 2))


def without_a_square(effect, spread):
    return max(2, math.ceil(7 * spread / abs(effect)))


def one_sided_seeds(effect, spread):
    return needed(effect, spread, lambda n: stats.t.ppf(0.95, n - 1))


def variance_again(effect, spread):
    return needed(effect, spread, power=2)


def down_only(effect, spread):
    return needed(effect, spread) if effect > 0 else 2


def one_too_many(effect, spread):
    return needed(effect, spread) + 1


def in_parts(effect, spread):
    return needed(effect, spread) - 0.5


def one_is_enough(effect, spread):
    return 1 if abs(effect) > 20 * spread else needed(effect, spread)


def as_numpy(effect, spread):
    return np.int64(needed(effect, spread))


def test_seeds_needed():
    guard("15.4", needed, [
        ("1.96 is for many seeds", by_the_formula),
        ("about four times as many seeds", without_a_square),
        ("2.5 % at each is 0.975", one_sided_seeds),
        ("do not square it", variance_again),
        ("not less than the effect", down_only),
        ("seeds are enough", one_too_many),
        ("no parts of a seed", in_parts),
        ("2 is the least", one_is_enough),
    ])
    assert judge(find("15.4"), as_numpy).state == "right"


def test_the_fewest_seeds_are_enough_and_one_fewer_is_not():
    for effect, spread in ((1.0, 1.0), (0.3, 0.5), (0.01, 0.03)):
        seeds = fewest_seeds(effect, spread)
        assert reach_of(seeds, spread) < effect <= reach_of(seeds - 1, spread)


# ---- 15.5 confounds


def differing(runs, asked, tolerance=0.03, skip=("variant",), sets=set):
    found = set()
    for field in runs[0]:
        values = {}
        for run in runs:
            values.setdefault(run["variant"], []).append(run[field])
        if field in (*skip, asked):
            continue
        if field == "parameters" and tolerance:
            every = [value for each in values.values() for value in each]
            if max(every) > (1 + tolerance) * min(every):
                found.add(field)
        elif len({tuple(sorted(sets(each))) if sets is set else tuple(each) for each in values.values()}) > 1:
            found.add(field)
    return found


def exactly_equal(runs, asked):
    return differing(runs, asked, tolerance=0)


def in_order(runs, asked):
    return differing(runs, asked, sets=list)


def seeds_are_free(runs, asked):
    return differing(runs, asked, skip=("variant", "seed"))


def the_asked_too(runs, asked):
    return differing(runs, None)


def first_two_runs(runs, asked):
    first, last = runs[0], runs[-1]
    return {field for field in first if field not in ("variant", asked) and first[field] != last[field]}


def as_a_number(runs, asked):
    return len(differing(runs, asked))


def as_a_list(runs, asked):
    return sorted(differing(runs, asked))


def test_confounds():
    guard("15.5", differing, [
        ("within the tolerance of 3 %", exactly_equal),
        ("in which order they were run does not matter", in_order),
        ("each variant has seeds of its own", seeds_are_free),
        ("position alone, which was asked", the_asked_too),
        ("it must be empty", first_two_runs),
        ("it must be a set of names of fields", as_a_number),
    ])
    assert judge(find("15.5"), as_a_list).state == "right"


# ---- 15.6 fair_width


def nearest(config, parameters):
    width = 2
    while count_parameters(replace(config, time_embed_dim=width)) < parameters:
        width += 1
    return min((width - 1, width), key=lambda w: abs(count_parameters(replace(config, time_embed_dim=w)) - parameters))


def only_upwards(config, parameters):
    width = config.time_embed_dim
    while count_parameters(replace(config, time_embed_dim=width)) < parameters:
        width += 1
    return width


def in_sixteens(config, parameters):
    return max(16, round(nearest(config, parameters) / 16) * 16)


def without_the_ends(config, parameters):
    ends = config.text_embed_dim * config.width + config.in_channels * config.width
    return nearest(config, parameters + ends)


def the_count(config, parameters):
    return parameters


def the_config(config, parameters):
    return replace(config, time_embed_dim=nearest(config, parameters))


def more_layers(config, parameters):
    return max(1, round(config.num_layers * parameters / count_parameters(config)))


def as_a_tensor(config, parameters):
    return torch.tensor(nearest(config, parameters))


def test_fair_width():
    guard("15.6", nearest, [
        ("try widths in both directions", only_upwards),
        ("it must be within 1 %", in_sixteens),
        ("Count those of the whole transformer", without_the_ends),
        ("that is no width", the_count),
        ("return its time_embed_dim alone", the_config),
        ("it must be within 1 %", more_layers),
    ])
    assert judge(find("15.6"), as_a_tensor).state == "right"


def test_the_paying_width_is_the_nearest():
    for config, other, _ in confounds_15._PAIRS:
        wanted = count_parameters(other)
        width = paying_width(config, wanted)
        assert width == nearest(config, wanted)
        assert abs(count_parameters(replace(config, time_embed_dim=width)) / wanted - 1) < 0.01
    plain = TransformerConfig(num_layers=1)
    assert paying_width(plain, count_parameters(plain)) == plain.time_embed_dim


# ---- odd answers


def test_answers_that_raise_or_return_nothing_are_told_in_a_sentence(subtests):
    for number in ("15.1", "15.2", "15.3", "15.4", "15.5", "15.6"):
        for answer in (lambda *given: None, lambda *given: 1 / 0, lambda *given: "three", lambda: 1,
                       lambda *given: np.array([1.0, 2.0]), lambda *given: torch.tensor([1, 2], dtype=torch.int8),
                       lambda *given: float("nan"), lambda *given: {}, lambda *given: [None]):
            with subtests.test(number):
                told = judge(find(number), answer)
                assert told.state in ("wrong", "stopped") and told.message and "\n" not in told.message
