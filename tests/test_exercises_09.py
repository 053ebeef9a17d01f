"""Exercises of notebook 09 about words, Muon, averages and 16 bits distinguish right from wrong."""

import pytest
import torch

from minicogvx.course.exercises import judge
from minicogvx.course.exercises.checking import all_exercises, find
from minicogvx.course.exercises.muon_09 import COEFFICIENTS, nearly_orthogonal
from minicogvx.course.exercises.notebook_09 import gain_of_word, lagging_average
from tests.guards import guard

# ---- 9.3 hears


def exchanged(scenes, kind, words, by=1):
    return [{**scene, kind: words[(words.index(scene[kind]) + by) % len(words)]} for scene in scenes]


def swap(loss_of, scenes, kind, words, seed):
    return float(loss_of(exchanged(scenes, kind, words), seed).mean() - loss_of(scenes, seed).mean())


def new_noise(loss_of, scenes, kind, words, seed):
    return float(loss_of(exchanged(scenes, kind, words), seed + 1).mean() - loss_of(scenes, seed).mean())


def one_word_for_all(loss_of, scenes, kind, words, seed):
    wrong = [{**scene, kind: words[0]} for scene in scenes]
    return float(loss_of(wrong, seed).mean() - loss_of(scenes, seed).mean())


def quotient_of_losses(loss_of, scenes, kind, words, seed):
    return float((loss_of(exchanged(scenes, kind, words), seed) / loss_of(scenes, seed)).mean())


def other_way_round(loss_of, scenes, kind, words, seed):
    return -swap(loss_of, scenes, kind, words, seed)


def every_kind_exchanged(loss_of, scenes, kind, words, seed):
    wrong = exchanged(scenes, kind, words)
    wrong = exchanged(wrong, "shape" if kind != "shape" else "motion", ("star", "bar") if kind != "shape" else
                      ("moves up", "moves down"))
    return float(loss_of(wrong, seed).mean() - loss_of(scenes, seed).mean())


def in_place(loss_of, scenes, kind, words, seed):
    right = float(loss_of(scenes, seed).mean())
    for scene in scenes:
        scene[kind] = words[(words.index(scene[kind]) + 1) % len(words)]
    return float(loss_of(scenes, seed).mean()) - right


def only_right(loss_of, scenes, kind, words, seed):
    return float(loss_of(scenes, seed).mean() - loss_of(scenes, seed).mean())


def a_loss_for_each(loss_of, scenes, kind, words, seed):
    return loss_of(exchanged(scenes, kind, words), seed) - loss_of(scenes, seed)


def unknown_word(loss_of, scenes, kind, words, seed):
    wrong = [{**scene, kind: "square"} for scene in scenes]
    return float(loss_of(wrong, seed).mean() - loss_of(scenes, seed).mean())


def test_hears():
    guard("9.3", swap, [
        ("meet different noise", new_noise),
        ("wrong captions name the right colour; every one must name another", one_word_for_all),
        ("a difference of two means, not a quotient", quotient_of_losses),
        ("it is the loss of the right captions that is subtracted", other_way_round),
        ("differs in more than its colour", every_kind_exchanged),
        ("hears changes the scenes", in_place),
        ("Every caption given to loss_of is the right one", only_right),
        ("it must be one number", a_loss_for_each),
        ("is not among the words", unknown_word),
    ])


def test_a_deaf_model_gains_nothing():
    scenes = [{"colour": "red"}, {"colour": "blue"}]
    assert gain_of_word(lambda scenes, seed: torch.full((2,), 0.3), scenes, "colour", ("red", "blue"), 0) == 0


# ---- 9.2 orthogonalise


def iterated(matrix, rounds=5, scale=None, transposed=True, coefficients=COEFFICIENTS):
    a, b, c = coefficients
    turned = transposed and len(matrix) > matrix.shape[1]
    x = matrix.T if turned else matrix
    x = x / (x.norm().clamp(min=1e-7) if scale is None else scale(x))
    for _ in range(rounds):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if turned else x


def by_the_largest_entry(matrix):
    return iterated(matrix, scale=lambda x: x.abs().max().clamp(min=1e-7))


def not_scaled(matrix):
    return iterated(matrix, scale=lambda x: 1.0)


def one_round(matrix):
    return iterated(matrix, rounds=1)


def b_and_c_exchanged(matrix):
    return iterated(matrix, coefficients=(COEFFICIENTS[0], COEFFICIENTS[2], COEFFICIENTS[1]))


def transposed_and_left(matrix):
    x = iterated(matrix)
    return x.T if len(matrix) > matrix.shape[1] else x


def divided_by_nothing(matrix):
    return iterated(matrix, scale=lambda x: x.norm())


def normalised_only(matrix):
    return matrix / matrix.norm().clamp(min=1e-7)


def changed_in_place(matrix):
    matrix /= matrix.norm().clamp(min=1e-7)
    return iterated(matrix)


def test_orthogonalise():
    guard("9.2", iterated, [
        ("not by its largest entry", by_the_largest_entry),
        ("Divide by the matrix's norm first", not_scaled),
        ("is what one round gives", one_round),
        ("b belongs to X X^T, c to its square", b_and_c_exchanged),
        ("has shape (4, 9); it must be (9, 4)", transposed_and_left),
        ("do not divide by 0", divided_by_nothing),
        ("they must lie near 1", normalised_only),
        ("changes the matrix", changed_in_place),
    ])
    assert judge(find("9.2"), lambda matrix: iterated(matrix, transposed=False)).state == "right", "slower, not wrong"


def test_it_is_the_iteration_of_torch_s_muon():
    from torch.optim._muon import _zeropower_via_newtonschulz

    for shape in ((4, 9), (9, 4)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        theirs = _zeropower_via_newtonschulz(matrix, COEFFICIENTS, 5, 1e-7)  # which computes in 16 bits
        assert torch.allclose(nearly_orthogonal(matrix), theirs.float(), atol=0.05)


# ---- 9.4 averaged


def right_average(average, weights, step, decay):
    keep = min(decay, (1 + step) / (10 + step))
    return {name: torch.lerp(weights[name].float(), old, keep) for name, old in average.items()}


def decay_exchanged(average, weights, step, decay):
    keep = 1 - min(decay, (1 + step) / (10 + step))
    return {name: torch.lerp(weights[name].float(), old, keep) for name, old in average.items()}


def no_warm_up(average, weights, step, decay):
    return {name: torch.lerp(weights[name].float(), old, decay) for name, old in average.items()}


def larger_decay(average, weights, step, decay):
    keep = max(decay, (1 + step) / (10 + step))
    return {name: torch.lerp(weights[name].float(), old, keep) for name, old in average.items()}


def weights_changed(average, weights, step, decay):
    keep = min(decay, (1 + step) / (10 + step))
    for name, value in weights.items():
        value.lerp_(average[name], keep)
    return dict(weights)


def average_changed(average, weights, step, decay):
    keep = min(decay, (1 + step) / (10 + step))
    for name, old in average.items():
        old.lerp_(weights[name].float(), 1 - keep)
    return average


def in_16_bits(average, weights, step, decay):
    keep = min(decay, (1 + step) / (10 + step))
    return {name: keep * old.to(weights[name].dtype) + (1 - keep) * weights[name] for name, old in average.items()}


def a_list(average, weights, step, decay):
    return list(right_average(average, weights, step, decay).values())


def test_averaged():
    guard("9.4", right_average, [
        ("the decay belongs to the old average", decay_exchanged),
        ("early on the decay is smaller", no_warm_up),
        ("early on the decay is smaller", larger_decay),
        ("changes the weights", weights_changed),
        ("changes the average", average_changed),
        ("keep it in float32", in_16_bits),
        ("must be a dict of tensors", a_list),
    ])


def test_it_is_the_package_s_average():
    from minicogvx.engine.weights import update_average

    average, weights = {"a": torch.zeros(3)}, {"a": torch.randn(3)}
    for step in range(4):
        wanted = lagging_average(average, weights, step, 0.3)
        update_average(average, weights, 0.3, step)
        assert torch.allclose(average["a"], wanted["a"])


# ---- 9.5 master_step


def right_step(master, low, rate):
    with torch.no_grad():
        master -= rate * low.grad.float()
        low.copy_(master)
    low.grad = None


def summed_in_16_bits(master, low, rate):
    with torch.no_grad():
        low -= rate * low.grad
        master.copy_(low)
    low.grad = None


def never_copied_back(master, low, rate):
    master -= rate * low.grad.float()
    low.grad = None


def gradient_kept(master, low, rate):
    with torch.no_grad():
        master -= rate * low.grad.float()
        low.copy_(master)


def uphill(master, low, rate):
    with torch.no_grad():
        master += rate * low.grad.float()
        low.copy_(master)
    low.grad = None


def a_new_master(master, low, rate):
    right_step(master, low, rate)
    return master


def test_master_step():
    guard("9.5", right_step, [
        ("In 16 bits 1 - 0.0001 is 1 again", summed_in_16_bits),
        ("copy the rounded master into it", never_copied_back),
        ("the next backward pass adds to it", gradient_kept),
        ("they must lead to 0.9", uphill),
        ("returns nothing", a_new_master),
    ])


# ---- answers of another kind


@pytest.mark.parametrize("number", [each.number for each in all_exercises() if each.number.startswith("9.")])
def test_odd_answers_are_refused_in_a_sentence(number):
    def raises(*arguments):
        raise KeyError("lost")

    def nothing(*arguments):
        return None

    def an_array(*arguments):
        return torch.zeros(2, 3).numpy()

    def doubles(*arguments):
        return torch.zeros(2, 3, dtype=torch.float64)

    for odd in (raises, an_array, doubles, *([] if number == "9.5" else [nothing])):
        verdict = judge(find(number), odd)
        assert verdict.state in ("wrong", "stopped") and verdict.message.endswith((".", "?")), odd
