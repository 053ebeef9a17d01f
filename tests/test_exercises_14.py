"""Exercises of notebook 14 distinguish right from wrong, and name the mistake."""

import math
import random

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats

from minicogvx.course.exercises.checking import find, judge
from minicogvx.evaluation.intervals import paired_difference
from tests.guards import guard

# ---- 14.1 structural


def gauss(side=11):
    line = torch.exp(-((torch.arange(float(side)) - side // 2) / 1.5) ** 2 / 2)
    return line[:, None] * line / line.sum() ** 2


def in_windows(a, b, c1=1e-4, c2=9e-4, weights=None, padding=0, root=False):
    weights = gauss() if weights is None else weights

    def mean(x):
        return F.conv2d(x[None, None], weights[None, None], padding=padding)

    ma, mb = mean(a), mean(b)
    va, vb, both = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    if root:
        va, vb = va.clamp(min=0).sqrt(), vb.clamp(min=0).sqrt()
    return float(((2 * ma * mb + c1) * (2 * both + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean())


def solved_structural(a, b):
    return in_windows(a, b)


def whole_picture(a, b):
    both = ((a - a.mean()) * (b - b.mean())).mean()
    return (2 * a.mean() * b.mean() + 1e-4) * (2 * both + 9e-4) / (
        (a.mean() ** 2 + b.mean() ** 2 + 1e-4) * (a.var(correction=0) + b.var(correction=0) + 9e-4))


def without_constants(a, b):
    return in_windows(a, b, 0.0, 0.0)


def for_255(a, b):
    return in_windows(a, b, 2.55**2, 7.65**2)


def not_squared(a, b):
    return in_windows(a, b, 0.01, 0.03)


def all_alike(a, b):
    return in_windows(a, b, weights=torch.full((11, 11), 1 / 121))


def beyond_the_edge(a, b):
    return in_windows(a, b, padding=5)


def standard_deviations(a, b):
    return in_windows(a, b, root=True)


def a_map(a, b):
    return torch.ones(14, 14)


def test_structural():
    guard("14.1", solved_structural, [
        ("you took the whole picture as one window", whole_picture),
        ("only the constants keep 0 / 0 away", without_constants),
        ("constants for values in 0..255", for_255),
        ("The constants are squares", not_squared),
        ("they must have Gaussian weights", all_alike),
        ("some windows reach beyond the edge", beyond_the_edge),
        ("of equal pictures it must be 1", standard_deviations),
        ("it must be one number", a_map),
    ])


# ---- 14.2 cheat


def solved_cheat(video):
    still = video[:1].repeat(len(video), 1, 1, 1)
    still[-4::2] = still[-4::2].roll(3, dims=2)
    return still


def unchanged(video):
    return video


def frozen(video):
    return video[:1].repeat(len(video), 1, 1, 1)


def shaken(video):
    still = frozen(video)
    still[1::2] = still[1::2].roll(3, dims=2)
    return still


def three_jumps(video):
    still = frozen(video)
    still[-3::2] = still[-3::2].roll(3, dims=2)
    still[-1] = still[0]
    still[3:] = still[3:].roll(3, dims=1)
    return still


def noise(video):
    return torch.rand_like(video)


def jumps_of_noise(video):
    still = frozen(video)
    still[-4::2] = torch.rand_like(still[-4::2]) * 0.35
    return still


def too_bright(video):
    return solved_cheat(video) * 1.2


def shorter(video):
    return solved_cheat(video)[:-1]


def in_another_colour(video):
    return solved_cheat(video).roll(1, dims=3)


def in_numpy(video):
    return solved_cheat(video).numpy()


def in_64_bits(video):
    return solved_cheat(video).double()


def test_cheat():
    guard("14.2", solved_cheat, [
        ("the oracle still reads that it moves right", unchanged),
        ("does not count as dynamic: in 0 of 16 pairs", frozen),
        ("How many pairs have to move?", shaken),
        ("does not count as dynamic: in 3 of 16 pairs", three_jumps),
        ("How many pairs have to move?", noise),
        ("they must lie in 0..1", too_bright),
        ("it must be (17, 64, 64, 3)", shorter),
        ("no longer reads the", in_another_colour),
        ("it must be a tensor", in_numpy),
    ])
    assert judge(find("14.2"), in_64_bits).state == "right"


# ---- 14.3 frechet


def moments(x, correction=1):
    return x.mean(0), x.T.cov(correction=correction).reshape(x.shape[1], x.shape[1])


def solved_frechet(a, b):
    (m1, c1), (m2, c2) = moments(a), moments(b)
    shared = torch.linalg.eigvals(c1 @ c2).real.clamp(min=0).sqrt().sum()
    return float((m1 - m2).square().sum() + c1.trace() + c2.trace() - 2 * shared)


def spread_only(a, b):
    return solved_frechet(a - a.mean(0), b - b.mean(0))


def root_of_the_numbers(a, b):
    (m1, c1), (m2, c2) = moments(a), moments(b)
    return (m1 - m2).square().sum() + (c1 + c2 - 2 * (c1 @ c2).clamp(min=0).sqrt()).trace()


def counted_once(a, b):
    (m1, c1), (m2, c2) = moments(a), moments(b)
    return (m1 - m2).square().sum() + (c1 + c2).trace() - torch.linalg.eigvals(c1 @ c2).real.clamp(min=0).sqrt().sum()


def not_squared_at_all(a, b):
    return max(solved_frechet(a, b), 0.0) ** 0.5


def without_a_root(a, b):
    (m1, c1), (m2, c2) = moments(a), moments(b)
    return (m1 - m2).square().sum() + (c1 + c2 - 2 * c1 @ c2).trace()


def divided_by_n(a, b):
    (m1, c1), (m2, c2) = moments(a, 0), moments(b, 0)
    return (m1 - m2).square().sum() + (c1 + c2).trace() - 2 * torch.linalg.eigvals(c1 @ c2).real.clamp(
        min=0).sqrt().sum()


def complex_result(a, b):
    (m1, c1), (m2, c2) = moments(a), moments(b)
    return (m1 - m2).square().sum() + (c1 + c2).trace() - 2 * torch.linalg.eigvals(c1 @ c2).sqrt().sum()


def variances_only(a, b):
    return (a.mean(0) - b.mean(0)).square().sum() + (a.std(0) - b.std(0)).square().sum()


def in_32_bits(a, b):
    return solved_frechet(a.float(), b.float())


def as_numpy(a, b):
    return np.float64(solved_frechet(a, b))


def test_frechet():
    guard("14.3", solved_frechet, [
        ("The means are missing", spread_only),
        ("A matrix has another root than its numbers", root_of_the_numbers),
        ("it must be 0: the same features", counted_once),
        ("FID and FVD are squared distances", not_squared_at_all),
        ("Take the root of C1 C2 before its trace", without_a_root),
        ("Covariances divide by n - 1", divided_by_n),
        ("a complex number", complex_result),
        ("of 60 and 40 features", variances_only),
    ])
    for answer in (in_32_bits, as_numpy):
        assert judge(find("14.3"), answer).state == "right", judge(find("14.3"), answer).message


# ---- 14.4 share_interval


def wilson_by_hand(right, n, z=1.959964):
    share, bend = right / n, z * z / n
    middle, reach = share + bend / 2, z * math.sqrt(share * (1 - share) / n + bend / (4 * n))
    return (middle - reach) / (1 + bend), (middle + reach) / (1 + bend)


def normal(right, n):
    reach = 1.96 * math.sqrt(right / n * (1 - right / n) / n)
    return right / n - reach, right / n + reach


def normal_clamped(right, n):
    low, high = normal(right, n)
    return max(0.0, low - 1e-3), min(1.0, high + 1e-3)


def for_90(right, n):
    return wilson_by_hand(right, n, 1.644854)


def for_99(right, n):
    return wilson_by_hand(right, n, 2.575829)


def of_one_less(right, n):
    share, z, m = right / n, 1.959964, n - 1
    bend = z * z / m
    middle, reach = share + bend / 2, z * math.sqrt(share * (1 - share) / m + bend / (4 * m))
    return (middle - reach) / (1 + bend), (middle + reach) / (1 + bend)


def in_per_cent(right, n):
    return tuple(100 * each for each in wilson_by_hand(right, n))


def turned_round(right, n):
    return wilson_by_hand(right, n)[::-1]


def one_number(right, n):
    return right / n


def as_tensors(right, n):
    return torch.tensor(wilson_by_hand(right, n))


def test_share_interval():
    guard("14.4", wilson_by_hand, [
        ("no share is certain", normal),
        ("it must be (0, 0.138)", normal_clamped),
        ("That is the 90 % interval", for_90),
        ("That is the 99 % interval", for_99),
        ("Divide by n", of_one_less),
        ("in per cent", in_per_cent),
        ("The lower end comes first", turned_round),
        ("it must be two numbers, (low, high)", one_number),
    ])
    for answer in (as_tensors, lambda right, n: np.array(wilson_by_hand(right, n))):
        assert judge(find("14.4"), answer).state == "right"


# ---- 14.5 paired_p


def counts(new, old):
    return sum(a and not b for a, b in zip(new, old)), sum(b and not a for a, b in zip(new, old))


def solved_paired(new, old):
    won, lost = counts(new, old)
    tail = sum(math.comb(won + lost, k) for k in range(min(won, lost) + 1)) / 2 ** (won + lost)
    return min(1.0, 2 * tail)


def one_sided(new, old):
    won, lost = counts(new, old)
    return stats.binom.cdf(min(won, lost), won + lost, 0.5)


def ties_as_losses(new, old):
    won, _ = counts(new, old)
    return stats.binomtest(won, len(new), 0.5).pvalue


def ties_as_wins(new, old):
    won, lost = counts(new, old)
    both = sum(a and b for a, b in zip(new, old))
    return stats.binomtest(won + both, won + lost + both, 0.5).pvalue if won + lost + both else 1.0


def more_than_one(new, old):
    won, lost = counts(new, old)
    return 2 * stats.binom.cdf(min(won, lost), won + lost, 0.5)


def middle_of_the_tail(new, old):
    won, lost = counts(new, old)
    few, n = min(won, lost), won + lost
    return 2 * stats.binom.cdf(few, n, 0.5) - stats.binom.pmf(few, n, 0.5)


def two_shares(new, old):
    n = len(new)
    pooled = (sum(new) + sum(old)) / (2 * n)
    if pooled in (0, 1):
        return 1.0
    z = (sum(new) - sum(old)) / n / math.sqrt(2 * pooled * (1 - pooled) / n)
    return 2 * stats.norm.sf(abs(z))


def the_difference(new, old):
    return paired_difference(new, old)[0]


def nothing(new, old):
    counts(new, old)


def test_paired_p():
    guard("14.5", solved_paired, [
        ("That is one side", one_sided),
        ("leave them out", ties_as_losses),
        ("Pairs in which both right came out say nothing", ties_as_wins),
        ("No probability exceeds 1", more_than_one),
        ("The case that happened belongs to the tail", middle_of_the_tail),
        ("as if they were of different clips", two_shares),
        ("it must be 0.2188", the_difference),
        ("does your function end in return?", nothing),
    ])


# ---- 14.6 blind_pairs


def solved_sides(ours, theirs, generator):
    key = (torch.rand(len(ours), generator=generator) < 0.5).tolist()
    return [(a, b) if left else (b, a) for a, b, left in zip(ours, theirs, key)], key


def always_left(ours, theirs, generator):
    return list(zip(ours, theirs)), [True] * len(ours)


def taking_turns(ours, theirs, generator):
    key = [i % 2 == 0 for i in range(len(ours))]
    return [(a, b) if left else (b, a) for a, b, left in zip(ours, theirs, key)], key


def one_toss(ours, theirs, generator):
    left = bool(torch.rand(1, generator=generator) < 0.5)
    return [(a, b) if left else (b, a) for a, b in zip(ours, theirs)], [left] * len(ours)


def half_and_half(ours, theirs, generator):
    key = (torch.randperm(len(ours), generator=generator) < len(ours) // 2).tolist()
    return [(a, b) if left else (b, a) for a, b, left in zip(ours, theirs, key)], key


def seldom_left(ours, theirs, generator):
    key = (torch.rand(len(ours), generator=generator) < 0.25).tolist()
    return [(a, b) if left else (b, a) for a, b, left in zip(ours, theirs, key)], key


def key_inside(ours, theirs, generator):
    pairs, key = solved_sides(ours, theirs, generator)
    return [(*pair, left) for pair, left in zip(pairs, key)], key


def key_the_other_way(ours, theirs, generator):
    pairs, key = solved_sides(ours, theirs, generator)
    return pairs, [not left for left in key]


def captions_mixed(ours, theirs, generator):
    places = torch.randperm(len(theirs), generator=generator).tolist()
    return solved_sides(ours, [theirs[i] for i in places], generator)


def dice_of_its_own(ours, theirs, generator):
    key = [random.random() < 0.5 for _ in ours]
    return [(a, b) if left else (b, a) for a, b, left in zip(ours, theirs, key)], key


def pairs_alone(ours, theirs, generator):
    return solved_sides(ours, theirs, generator)[0]


def key_as_tensor(ours, theirs, generator):
    pairs, key = solved_sides(ours, theirs, generator)
    return tuple(pairs), torch.tensor(key)


def test_blind_pairs():
    guard("14.6", solved_sides, [
        ("The sides are the same at each call", always_left),
        ("The sides are the same at each call", taking_turns),
        ("toss for every pair by itself", one_toss),
        ("exactly half of ours stand on the left", half_and_half),
        ("it must be half of them", seldom_left),
        ("may give the key away", key_inside),
        ("it does not", key_the_other_way),
        ("a pair compares clips of one caption", captions_mixed),
        ("take the random numbers from the generator given", dice_of_its_own),
        ("must return two things", pairs_alone),
    ])
    assert judge(find("14.6"), key_as_tensor).state == "right"


# ---- answers of any kind


def test_no_answer_crashes_a_check(subtests):
    def raising(*arguments):
        raise RuntimeError("no")

    for number in ("14.1", "14.2", "14.3", "14.4", "14.5", "14.6"):
        for answer in (raising, lambda *_: None, lambda *_: np.zeros(3), lambda *_: "text", lambda *_: math.nan,
                       lambda *_: torch.zeros(2, dtype=torch.int64), lambda *_: [], lambda *_: {"a": 1}, 3,
                       lambda *_: torch.tensor(1j), lambda *_: ([None], [True]), lambda *_: (math.nan, math.nan)):
            with subtests.test(f"{number} {answer}"):
                verdict = judge(find(number), answer)
                assert verdict.state in ("wrong", "stopped") and verdict.message
