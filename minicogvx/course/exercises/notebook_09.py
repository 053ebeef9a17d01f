"""Exercises of notebook 09, the whole model in training: forward, Muon, words, averages, 16 bits, a diagnosis."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minicogvx.course.exercises.clinic_09 import check_diagnose, disease_of
from minicogvx.course.exercises.exercise import Exercise, Wrong, expect_shape
from minicogvx.course.exercises.forward_09 import check_model_forward, forward_of_parts
from minicogvx.course.exercises.muon_09 import check_orthogonalise, nearly_orthogonal

LossOf = Callable[[Sequence[Mapping[str, str]], int], Float[Tensor, "b"]]

# ---- 9.3 hears


def gain_of_word(loss_of: LossOf, scenes: Sequence[Mapping[str, str]], kind: str, words: Sequence[str],
                 seed: int) -> float:
    """The mean rise of the loss when every caption names the next word of a kind; the same noise both times."""
    following = dict(zip(words, [*words[1:], words[0]]))
    wrong = [{**scene, kind: following[scene[kind]]} for scene in scenes]
    return float(torch.as_tensor(loss_of(wrong, seed)).mean() - torch.as_tensor(loss_of(scenes, seed)).mean())


class _Listener:
    """Stands in for a model: its loss depends on the noise, and on wrong words as far as it hears them."""

    def __init__(self, true: list[dict[str, str]], cost: Mapping[str, float]):
        self.true, self.cost, self.calls = true, cost, []

    def __call__(self, scenes, seed):
        scenes = [dict(scene) for scene in scenes]
        if len(scenes) != len(self.true):
            raise Wrong(f"loss_of is given {len(scenes)} scenes; it must be given all {len(self.true)}.")
        self.calls.append((scenes, seed))
        noise = torch.rand(len(scenes), generator=torch.Generator().manual_seed(hash(seed) % 2**31))
        weight = torch.linspace(0.2, 2.0, len(scenes))
        wrong = torch.tensor([sum(self.cost.get(kind, 0.0) for kind in own if scene.get(kind) != own[kind])
                              for scene, own in zip(scenes, self.true)])
        return 0.2 + weight * noise + weight * wrong


def check_hears(hears) -> None:
    """The same noise twice, each caption wrong in one word and no other, a difference of means."""
    words = {"colour": ("red", "green", "blue"), "shape": ("star", "bar"), "motion": ("moves up", "moves down")}
    drawn = torch.Generator().manual_seed(3)
    scenes = [{kind: each[int(torch.randint(len(each), (), generator=drawn))] for kind, each in words.items()}
              for _ in range(24)]
    for kind in words:
        given, model = [dict(scene) for scene in scenes], _Listener(scenes, {"colour": 0.5, "shape": 0.1})
        what = f"hears(loss_of, scenes, {kind!r}, {words[kind]}, seed=7)"
        got = _number(what, hears(model, given, kind, words[kind], 7))
        if given != scenes:
            raise Wrong("hears changes the scenes that it is given; make new ones, {**scene, kind: word}.")
        _check_calls(model, scenes, kind, words[kind])
        wanted = gain_of_word(_Listener(scenes, model.cost), scenes, kind, words[kind], 7)
        if not math.isclose(got, wanted, abs_tol=1e-4):
            why = "; it is the loss of the right captions that is subtracted" if math.isclose(
                got, -wanted, abs_tol=1e-4) else "; it is a difference of two means, not a quotient"
            raise Wrong(f"{what} is {got:.3g}; for this model it must be {wanted:.3g}{why}.")


def _check_calls(model: _Listener, scenes: list[dict[str, str]], kind: str, words: Sequence[str]) -> None:
    if len(model.calls) < 2:
        raise Wrong(f"loss_of is called {len(model.calls)} times; it must be asked with right and with wrong captions.")
    if len({seed for _, seed in model.calls}) > 1:
        raise Wrong("Right and wrong captions meet different noise (another seed), and the difference is mostly that "
                    "of the noise. Give both calls the same seed.")
    asked = [given for given, _ in model.calls if given != scenes]
    if not asked:
        raise Wrong(f"Every caption given to loss_of is the right one; of the wrong ones each needs another {kind}.")
    for wrong in asked:
        same = sum(scene[kind] == own[kind] for scene, own in zip(wrong, scenes))
        if same:
            raise Wrong(f"{same} of {len(scenes)} wrong captions name the right {kind}; every one must name another.")
        for scene, own in zip(wrong, scenes):
            if scene.keys() != own.keys() or any(scene[other] != own[other] for other in own if other != kind):
                raise Wrong(f"A wrong caption differs in more than its {kind}: {scene} for {own}.")
            if scene[kind] not in words:
                raise Wrong(f"A wrong caption says {scene[kind]!r}, which is not among the words {tuple(words)}.")
    if scenes not in [given for given, _ in model.calls]:
        raise Wrong("loss_of is never asked with the right captions.")


def _number(what: str, got) -> float:
    if got is None:
        raise Wrong(f"{what} is None; does your function end in return?")
    try:
        return float(got)
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"{what} is a {type(got).__name__}; it must be one number.") from None


# ---- 9.4 averaged

Tensors = dict[str, Tensor]


def lagging_average(average: Tensors, weights: Tensors, step: int, decay: float) -> Tensors:
    """The next moving average, float32, with the decay min(decay, (1 + step) / (10 + step))."""
    keep = min(decay, (1 + step) / (10 + step))
    return {name: keep * old.float() + (1 - keep) * weights[name].detach().float() for name, old in average.items()}


def check_averaged(averaged) -> None:
    """Constants stay, the first steps copy most, later ones keep `decay`; float32, and nothing is changed in place."""
    for step, decay in ((0, 0.999), (30, 0.999), (10**6, 0.999), (30, 0.5)):
        average, weights = {"a": torch.zeros(3), "b.c": torch.ones(2)}, {"a": torch.ones(3), "b.c": torch.ones(2)}
        before = [{name: value.clone() for name, value in each.items()} for each in (average, weights)]
        what = f"averaged(average, weights, step={step}, decay={decay})"
        got = averaged(average, weights, step, decay)
        _same_names(what, got, average)
        for name, given, kept in zip(("average", "weights"), (average, weights), before):
            if any(not torch.equal(given[key], kept[key]) for key in kept):
                raise Wrong(f"averaged changes the {name} that it is given; return new tensors, and leave the weights "
                            f"that learn alone.")
        if not torch.allclose(got["b.c"].float(), torch.ones(2)):
            raise Wrong(f"{what}: where average and weights are both 1, it is {got['b.c'][0].item():.3g}; it must stay "
                        f"1.")
        _check_share(what, got["a"][0].item(), step, decay)
    low = averaged({"a": torch.zeros(3)}, {"a": torch.full((3,), 1 / 3).half()}, 10**6, 0.9999)
    if low["a"].dtype != torch.float32:
        raise Wrong(f"With weights in 16 bits the average has {low['a'].dtype}; keep it in float32, where a change by "
                    f"one part in 10,000 is not lost.")


def _check_share(what: str, share: float, step: int, decay: float) -> None:
    wanted = 1 - min(decay, (1 + step) / (10 + step))  # of the new weights
    if math.isclose(share, wanted, rel_tol=1e-3):
        return
    why = f"it is {share:.3g} of the way from the old average to the weights; it must be {wanted:.3g}"
    for slip, said in ((1 - wanted, "the decay belongs to the old average, 1 - decay to the weights"),
                       (1 - decay, "early on the decay is smaller, (1 + step) / (10 + step)")):
        if math.isclose(share, slip, rel_tol=1e-3):
            raise Wrong(f"{what}: {why}; {said}.")
    raise Wrong(f"{what}: {why}.")


def _same_names(what: str, got, wanted: Tensors) -> None:
    if not isinstance(got, dict):
        raise Wrong(f"{what} is a {type(got).__name__}; it must be a dict of tensors, by name."
                    if got is not None else f"{what} is None; does your function end in return?")
    if got.keys() != wanted.keys():
        raise Wrong(f"{what} has the names {sorted(got)}; it must have {sorted(wanted)}.")
    for name, value in wanted.items():
        expect_shape(f"{name} of {what}", got[name], tuple(value.shape))


# ---- 9.5 master_step


@torch.no_grad()
def step_in_float32(master: Float[Tensor, "*rest"], low: nn.Parameter, rate: float) -> None:
    """A step of gradient descent on the float32 weights; the rounded ones that compute follow."""
    master -= rate * low.grad.float()
    low.copy_(master)
    low.grad = None


def check_master_step(master_step) -> None:
    """A thousand steps of 1e-4 from 1 arrive at 0.9, in the master and in its rounded copy; the gradient is gone."""
    low = nn.Parameter(torch.ones(2).half())
    master, same = torch.ones(2), low
    for step in range(1000):
        low.grad = torch.ones(2).half()
        got = master_step(master, low, 1e-4)
        if step == 0 and got is not None:
            raise Wrong(f"master_step returns a {type(got).__name__}; it changes master and low in place, and returns "
                        f"nothing.")
        if low.grad is not None and low.grad.any():
            raise Wrong("After the step, low.grad is still there, and the next backward pass adds to it. Set it to "
                        "None.")
    if low is not same or low.dtype != torch.float16:
        raise Wrong(f"low must stay in 16 bits; it is {low.dtype}.")
    if torch.equal(master, torch.ones(2)):
        raise Wrong("After 1,000 steps master is still 1. In 16 bits 1 - 0.0001 is 1 again: the sum must be made in "
                    "float32, and kept there.")
    if not torch.allclose(master, torch.full((2,), 0.9), atol=1e-3):
        raise Wrong(f"1,000 steps of 0.0001 down from 1 lead to {master[0].item():.4g}; they must lead to 0.9.")
    if not torch.allclose(low.detach().float(), master, atol=1e-3):
        raise Wrong(f"master is {master[0].item():.3g}, but low, with which the network computes, is "
                    f"{low[0].item():.3g}; copy the rounded master into it.")


EXERCISES = (
    Exercise(
        "9.1", "model_forward", difficulty=2, minutes=20, reference=forward_of_parts, check=check_model_forward,
        hints=(
            "Follow the table of the parts from top to bottom. Which of them need the time, and which the layout?",
            "t_emb = F.silu(net.time_embedding(timestep)), once. x = net.patch_embed(latents, text, None) holds text, "
            "then video. Each block is called as block(x, t_emb, layout).",
            "After the blocks x[:, text.shape[1]:] is the video. Then norm_final, norm_out(x, t_emb, layout), "
            "proj_out, layout.unpatchify.",
        ),
    ),
    Exercise(
        "9.2", "orthogonalise", difficulty=2, minutes=15, reference=nearly_orthogonal, check=check_orthogonalise,
        hints=(
            "A tall matrix is transposed first, and back at the end; X X^T is then the smaller of the two products.",
            "x = x / x.norm().clamp(min=1e-7): the norm is at least as large as the largest singular value.",
            "Five times: gram = x @ x.T; x = a * x + (b * gram + c * gram @ gram) @ x.",
        ),
    ),
    Exercise(
        "9.3", "hears", difficulty=2, minutes=15, reference=gain_of_word, check=check_hears,
        hints=(
            "Two calls of loss_of. What must be the same in both, and what must differ in every single caption?",
            "following = dict(zip(words, [*words[1:], words[0]])) gives each word another one.",
            "wrong = [{**scene, kind: following[scene[kind]]} for scene in scenes]; then loss_of(wrong, seed).mean() "
            "- loss_of(scenes, seed).mean(), as a float.",
        ),
    ),
    Exercise(
        "9.4", "averaged", difficulty=1, minutes=10, reference=lagging_average, check=check_averaged,
        hints=(
            "How much of the old average is kept at step 0, if (1 + 0) / (10 + 0) is smaller than decay?",
            "keep = min(decay, (1 + step) / (10 + step)); the weights count with 1 - keep.",
            "{name: keep * old.float() + (1 - keep) * weights[name].detach().float() for name, old in "
            "average.items()}",
        ),
    ),
    Exercise(
        "9.5", "master_step", difficulty=1, minutes=10, reference=step_in_float32, check=check_master_step,
        hints=(
            "Three lines: update master, let low follow, clear the gradient. Which of them is in float32?",
            "Within torch.no_grad(): master -= rate * low.grad.float().",
            "low.copy_(master) rounds; then low.grad = None.",
        ),
    ),
    Exercise(
        "9.6", "diagnose", difficulty=2, minutes=15, reference=disease_of, check=check_diagnose,
        hints=(
            "Go through the columns of the table. In which of them does only one row stand out?",
            "Two rows have no gain. What does each of these models do when the caption is taken away?",
            "Ask in this order: spread, then loss against training_loss, then time, then gain, and last without. "
            "Put each limit in the middle between the two sides.",
        ),
    ),
)
