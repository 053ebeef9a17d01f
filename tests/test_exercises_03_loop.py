"""Exercises 3.2 and 3.6 of notebook 03, a training loop and a verdict on seeds: right, wrong, and why."""

import statistics

import torch
from scipy import stats

from minicogvx.ablation.seeds import gain_of_pairs
from minicogvx.course.exercises import find
from tests.guards import guard

# ---- 3.2 teach


def right_teach(vae, videos, loss, optimizer):
    numbers = []
    for video in videos:
        optimizer.zero_grad()
        copy, posterior = vae(video)
        total = loss(video, copy, posterior)
        total.backward()
        optimizer.step()
        numbers += [float(total.detach())]
    return numbers


def never_clears(vae, videos, loss, optimizer):
    numbers = []
    for video in videos:
        total = loss(video, *vae(video))
        total.backward()
        optimizer.step()
        numbers.append(total.item())
    return numbers


def clears_before_the_step(vae, videos, loss, optimizer):
    numbers = []
    for video in videos:
        total = loss(video, *vae(video))
        total.backward()
        optimizer.zero_grad()
        optimizer.step()
        numbers.append(total.item())
    return numbers


def never_steps(vae, videos, loss, optimizer):
    numbers = []
    for video in videos:
        optimizer.zero_grad()
        total = loss(video, *vae(video))
        total.backward()
        numbers.append(total.item())
    return numbers


def copy_detached(vae, videos, loss, optimizer):
    numbers = []
    for video in videos:
        copy, posterior = vae(video)
        total = loss(video, copy.detach().requires_grad_(), posterior)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        numbers.append(total.item())
    return numbers


def copy_and_video_exchanged(vae, videos, loss, optimizer):
    numbers = []
    for video in videos:
        copy, posterior = vae(video)
        numbers.append(loss(copy, video, posterior).item())
    return numbers


def keeps_tensors(vae, videos, loss, optimizer):
    numbers = []
    for video in videos:
        optimizer.zero_grad()
        numbers.append(loss(video, *vae(video)))
        numbers[-1].backward()
        optimizer.step()
    return numbers


def the_last_loss_only(vae, videos, loss, optimizer):
    return right_teach(vae, videos, loss, optimizer)[-1]


def one_step_at_the_end(vae, videos, loss, optimizer):
    optimizer.zero_grad()
    totals = [loss(video, *vae(video)) for video in videos]
    sum(totals).backward()
    optimizer.step()
    return [total.item() for total in totals]


def every_video_twice(vae, videos, loss, optimizer):
    return right_teach(vae, [video for video in videos for _ in range(2)], loss, optimizer)


def says_nothing(vae, videos, loss, optimizer):
    right_teach(vae, videos, loss, optimizer)


def test_teach():
    guard("3.2", right_teach, [
        ("The gradients of earlier steps are still there", never_clears),
        ("After teach the weights are what they were", clears_before_the_step),
        ("is it used?", never_steps),
        ("Does a gradient reach the weights", copy_detached),
        ("something other than (video, copy, posterior), in that order", copy_and_video_exchanged),
        ("keep the graph of every step alive", keeps_tensors),
        ("it must be a list of 4 losses, one for each video", the_last_loss_only),
        ("one step for each video, with the gradient of its own loss", one_step_at_the_end),
        ("The VAE was given 8 videos", every_video_twice),
        ("is None; does your function end in return?", says_nothing),
    ])


# ---- 3.6 can_be_told


def verdict(low, high):
    return "higher" if low > 0 else "lower" if high < 0 else "cannot be told"


def right_can_be_told(new, old):
    result = stats.ttest_rel(new, old)
    return "cannot be told" if result.pvalue > 0.05 else "higher" if result.statistic > 0 else "lower"


def seed_by_seed_but_normal(new, old):
    gains = [a - b for a, b in zip(new, old)]
    middle, reach = statistics.fmean(gains), 1.96 * statistics.stdev(gains) / len(gains) ** 0.5
    return verdict(middle - reach, middle + reach)


def the_mean_decides(new, old):
    return "higher" if statistics.fmean(new) > statistics.fmean(old) else "lower"


def most_seeds_decide(new, old):
    won = sum(a > b for a, b in zip(new, old))
    return "higher" if 2 * won > len(new) else "lower"


def not_paired(new, old):
    result = stats.ttest_ind(new, old)
    return "cannot be told" if result.pvalue > 0.05 else "higher" if result.statistic > 0 else "lower"


def intervals_must_be_apart(new, old):
    reach = [stats.t.ppf(0.975, len(new) - 1) * statistics.stdev(one) / len(new) ** 0.5 for one in (new, old)]
    return verdict(statistics.fmean(new) - statistics.fmean(old) - sum(reach),
                   statistics.fmean(new) - statistics.fmean(old) + sum(reach))


def never_sure(new, old):
    return "cannot be told"


def deviation_for_error_of_the_mean(new, old):
    gains = [a - b for a, b in zip(new, old)]
    middle, reach = statistics.fmean(gains), stats.t.ppf(0.975, len(gains) - 1) * statistics.stdev(gains)
    return verdict(middle - reach, middle + reach)


def old_minus_new(new, old):
    return right_can_be_told(old, new)


def a_number(new, old):
    return statistics.fmean(new) - statistics.fmean(old)


def test_can_be_told():
    guard("3.6", right_can_be_told, [
        ("use Student's t", seed_by_seed_but_normal),
        ("two equal variants were called different in 100 of 100", the_mean_decides),
        ("two equal variants were called different in 100 of 100", most_seeds_decide),
        ("it must be 'higher'", not_paired),
        ("it must be 'higher'", intervals_must_be_apart),
        ("and can_be_told gives 'cannot be told'; it must be 'higher'", never_sure),
        ("compare seed by seed", deviation_for_error_of_the_mean),
        ("can_be_told gives 'lower'; it must be 'higher'", old_minus_new),
        ("it must be one of 'higher', 'lower', 'cannot be told'", a_number),
    ])


def test_the_reference_is_what_studies_say():
    told = find("3.6").reference
    for seed in range(20):
        new, old = torch.randn(2, 5, generator=torch.Generator().manual_seed(seed)).double().tolist()
        new = [value + 0.1 * seed for value in new]
        assert told(new, old) == gain_of_pairs(new, old).verdict
    assert told([5.0], [0.0]) == "cannot be told"
