"""Exercises of notebook 07, expert adaptive layer norm: the norm, the modulation, the time, half a block, a dose."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor

from minicogvx.course.exercises.doses_07 import check_half_gone, dose_of_half
from minicogvx.course.exercises.exercise import Exercise, Wrong, expect_close, expect_shape
from minicogvx.transformer.embeddings import timestep_sinusoid
from minicogvx.transformer.expert_norm import modulate
from minicogvx.transformer.layout import by_modality

PIECES = ("shift", "scale", "gate")

# ---- 7.1 normalise


def normalised_rows(x: Float[Tensor, "*rows d"], weight: Float[Tensor, "d"], bias: Float[Tensor, "d"],
                    eps: float = 1e-5) -> Float[Tensor, "*rows d"]:
    """Layer norm over the last axis (Ba et al. 2016, eq. 4)."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def check_normalise(normalise) -> None:
    """Each token by itself, spread 1 by the n-divided variance, eps inside the root, any number of axes in front."""
    x, one, zero = 3 * torch.randn(2, 5, 6) + 1, torch.ones(6), torch.zeros(6)
    given = x.clone()
    got = normalise(given, one, zero)
    if not torch.equal(given, x):
        raise Wrong("normalise changes its input x; make a new tensor instead.")
    expect_shape("normalise(x, weight, bias) of x (2, 5, 6)", got, (2, 5, 6))
    other = x.clone()
    other[:, 3] *= 5
    other[:, 3, 0] += 9
    if not torch.allclose(normalise(other, one, zero)[:, 0], got[:, 0], atol=1e-6):
        raise Wrong("Token 3 was changed, and token 0 changed with it. Mean and spread run over the last axis alone.")
    if got.mean(dim=-1).abs().max() > 1e-4:
        raise Wrong(f"With weight 1 and bias 0, the mean of a token is {got[0, 0].mean().item():.3g}; it must be 0.")
    _check_spread(normalise, x, got)
    weight, bias, heads = torch.linspace(0.5, 2, 6), torch.linspace(-1, 1, 6), torch.randn(2, 3, 4, 6)
    expect_close("normalise(x, weight, bias)", normalise(x, weight, bias), normalised_rows(x, weight, bias))
    expect_close("normalise(x, weight, bias) of x with 4 axes, such as b heads n d",
                 normalise(heads, weight, bias), normalised_rows(heads, weight, bias))


def _check_spread(normalise, x: Tensor, got: Tensor) -> None:
    one, zero, spread = torch.ones(6), torch.zeros(6), got.std(dim=-1, unbiased=False).mean().item()
    if abs(spread - 1) > 1e-3:
        why = "; the variance is divided by d, not by d - 1" if abs(spread - (5 / 6) ** 0.5) < 1e-2 else ""
        raise Wrong(f"With weight 1, the spread of a token is {spread:.3g} afterwards; it must be 1{why}.")
    flat = normalise(torch.full((1, 2, 6), 7.0), one, zero)
    if not torch.isfinite(flat).all():
        raise Wrong("A token whose channels are all 7 gives NaN or infinity; eps keeps the root away from 0.")
    small = 1e-3 * (x - x.mean(dim=-1, keepdim=True)) / x.std(dim=-1, keepdim=True, unbiased=False)
    spread = normalise(small, one, zero).std(dim=-1, unbiased=False).mean().item()
    if abs(spread - 1 / 11 ** 0.5) > 1e-2:  # variance 1e-6, eps 1e-5
        raise Wrong(f"A token of spread 0.001 has the spread {spread:.3g} afterwards; with eps=1e-5 it must be 0.302. "
                    f"eps is added to the variance, under the root.")


# ---- 7.2 sinusoid


def check_sinusoid(sinusoid) -> None:
    """Cosines before sines, frequencies from 1 down to just above 1/10000, whole timesteps welcome."""
    t = torch.tensor([0, 1, 500, 999])
    for d in (8, 256):
        what, got = f"sinusoid(t, {d})", sinusoid(t, d)
        expect_shape(f"{what} of 4 timesteps", got, (4, d))
        half, start = d // 2, torch.cat([torch.ones(d // 2), torch.zeros(d // 2)])
        if not got.is_floating_point():
            raise Wrong(f"{what} has dtype {got.dtype}; it must be float32, even where t holds whole numbers.")
        if torch.allclose(got[0], 1 - start, atol=1e-5):
            raise Wrong(f"{what} at t = 0 begins with zeros: sines. The cosines come first, the sines after them.")
        if not torch.allclose(got[0].float(), start, atol=1e-5):
            raise Wrong(f"{what} at t = 0 must be {half} ones, the cosines, and then {half} zeros, the sines; it is "
                        f"{got[0].tolist()[:6]} and so on.")
        frequency = torch.atan2(got[1, half:].double(), got[1, :half].double())  # the angle at t = 1
        wanted = 10000 ** (-torch.arange(half, dtype=torch.float64) / half)
        apart = ~torch.isclose(frequency, wanted, rtol=1e-3)
        if apart.any():
            i = int(apart.nonzero()[0])
            raise Wrong(f"{what}: frequency {i} of 0..{half - 1} is {frequency[i].item():.4g}; it must be "
                        f"10000 ** (-{i} / {half}) = {wanted[i].item():.4g}.")
        expect_close(what, got.float(), timestep_sinusoid(t, d), atol=1e-3)


# ---- 7.3 expert_modulation


def modulated_by_modality(x: Float[Tensor, "b n d"], num_text: int, modulation: Float[Tensor, "b d6"]) -> tuple[
        Float[Tensor, "b n d"], Float[Tensor, "b 1 d"], Float[Tensor, "b 1 d"]]:
    """The modulated sequence and the gates of text and of video; video's three pieces come first (paper 2.2)."""
    shift, scale, gate, *of_text, text_gate = modulation[:, None].chunk(6, dim=-1)
    text, video = by_modality(x, num_text)
    return torch.cat([modulate(text, *of_text), modulate(video, shift, scale)], dim=1), text_gate, gate


def check_expert_modulation(expert_modulation) -> None:
    """Which piece reaches which tokens, one piece after the other; and the two gates."""
    b, num_text, d = 2, 3, 4
    x, what = torch.randn(b, 8, d), "expert_modulation(x, 3, modulation)"
    zero = torch.zeros(b, 6 * d)
    if not torch.allclose(_three(what, expert_modulation(x, num_text, zero), x.shape)[0], x, atol=1e-6):
        raise Wrong("With a modulation of zeros y must be x itself. The factor is 1 + scale.")
    for piece in range(6):
        modulation = zero.clone()
        modulation[:, piece * d:(piece + 1) * d] = 0.5
        _check_piece(what, piece, x, num_text, expert_modulation(x, num_text, modulation))
    modulation = torch.randn(b, 6 * d)
    answers = (f(x, num_text, modulation) for f in (expert_modulation, modulated_by_modality))
    for name, got, wanted in zip(("y", "the text gate", "the video gate"), *answers):
        expect_close(f"{name} of {what}", got, wanted)


def _check_piece(what: str, piece: int, x: Tensor, num_text: int, answer) -> None:
    y, text_gate, gate = _three(what, answer, x.shape)
    whose, role = ("video", "text")[piece // 3], PIECES[piece % 3]
    name = f"piece {piece} of the modulation (of 0..5), the {whose} {role},"
    changed = ((y - x).abs() > 1e-6).any(dim=-1).any(dim=0)  # n
    mine = (torch.arange(x.shape[1]) >= num_text) == (whose == "video")
    if role == "gate" and changed.any():
        raise Wrong(f"{name} changes y; gates act later, on what the layer adds.")
    if role == "gate":
        for of, got in (("text", text_gate), ("video", gate)):
            wanted = 0.5 if of == whose else 0.0
            if not torch.allclose(got, torch.full_like(got, wanted)):
                raise Wrong(f"{name} was set to 0.5, and the {of} gate that you return is "
                            f"{got.flatten()[0].item():.3g}; it must be {wanted:g}. Return y, text gate, video gate.")
        return
    if not torch.equal(changed, mine):
        raise Wrong(f"{name} changes the tokens {changed.nonzero().flatten().tolist()}; it must change "
                    f"{mine.nonzero().flatten().tolist()} of the 8 tokens, of which the first {num_text} are text.")
    wanted = x + 0.5 if role == "shift" else 1.5 * x
    if not torch.allclose(y[:, mine], wanted[:, mine], atol=1e-5):
        raise Wrong(f"{name} was set to 0.5, and y is not x {'+ 0.5' if role == 'shift' else '* 1.5'} there. The order "
                    f"is shift, scale, gate.")


def _three(what: str, answer, shape) -> tuple[Tensor, Tensor, Tensor]:
    if not isinstance(answer, (tuple, list)) or len(answer) != 3:
        raise Wrong(f"{what} is of type {type(answer).__name__}; it must be three tensors: y, text gate, video gate.")
    b, _, d = shape
    for name, got, wanted in zip(("y", "the text gate", "the video gate"), answer, (shape, (b, 1, d), (b, 1, d))):
        expect_shape(f"{name} of {what}", got, tuple(wanted))
    return answer


# ---- 7.4 half_block


def gated_half(x: Float[Tensor, "b n d"], num_text: int, modulation: Float[Tensor, "b d6"], norm,
               layer) -> Float[Tensor, "b n d"]:
    """Norm, modulation, layer, gated residual."""
    y, *gates = modulated_by_modality(norm(x), num_text, modulation)
    return _with_gates(x, layer(y), *gates, num_text)


def _with_gates(x: Tensor, y: Tensor, text_gate: Tensor, gate: Tensor, num_text: int) -> Tensor:
    (text, video), (new_text, new_video) = by_modality(x, num_text), by_modality(y, num_text)
    return torch.cat([text + text_gate * new_text, video + gate * new_video], dim=1)


def check_half_block(half_block) -> None:
    """Closed gates, one call of the layer on the whole sequence, what it is given, and who is gated by what."""
    b, n, num_text, d = 2, 7, 3, 4
    x, modulation, given = 2 * torch.randn(b, n, d) + 1, torch.randn(b, 6 * d), []

    def norm(x):
        return F.layer_norm(x, (d,))

    def layer(y):
        given.append(y)
        return y.flip(1) + 1  # every token becomes another one: the layer mixes text and video

    what = "half_block(x, 3, modulation, norm, layer)"
    got = half_block(x.clone(), num_text, modulation, norm, layer)
    expect_shape(what, got, (b, n, d))
    if len(given) != 1 or given[0].shape[1] != n:
        raise Wrong(f"layer is called with {' and '.join(str(y.shape[1]) for y in given) or 'no'} tokens; it must be "
                    f"called once, with all {n}: text and video see each other there.")
    wanted, text_gate, gate = modulated_by_modality(norm(x), num_text, modulation)
    _check_given(given[0], norm, x, num_text, modulation)
    expect_close("what layer is given", given[0], wanted)
    closed = modulation.clone()
    closed[:, 2 * d:3 * d] = closed[:, 5 * d:] = 0
    still = half_block(x.clone(), num_text, closed, norm, layer)
    if not torch.allclose(still, x, atol=1e-6):
        raise Wrong("With both gates 0 the result must be x itself; the gates multiply what the layer gives.")
    if torch.allclose(got, _with_gates(x, layer(wanted), gate, text_gate, num_text), atol=1e-5):
        raise Wrong("Text goes through the video gate, and video through the text gate.")
    expect_close(what, got, gated_half(x, num_text, modulation, norm, layer))


def _check_given(given: Tensor, norm, x: Tensor, num_text: int, modulation: Tensor) -> None:
    """Names the usual ways to give `layer` the wrong thing."""
    modulated = modulated_by_modality(x, num_text, modulation)[0]
    for mistake, said in ((norm(modulated), "modulates first and norms afterwards, which takes shift and scale away "
                                            "again; norm first, then modulate"),
                          (modulated, "modulates x itself; norm comes first"),
                          (norm(x), "only norms; shift and scale are missing"),
                          (x, "gives x itself to the layer; norm and modulation come first")):
        if given.shape == mistake.shape and torch.allclose(given, mistake, atol=1e-5):
            raise Wrong(f"half_block {said}.")


# ---- 7.5 split_the_twelve


def norm1_and_norm2(rows: Num[Tensor, "d12 *rest"]) -> tuple[Num[Tensor, "d6 *rest"], Num[Tensor, "d6 *rest"]]:
    """Pieces 0-2 and 6-8 for the norm before attention, 3-5 and 9-11 for the one before the feed-forward."""
    video1, video2, text1, text2 = rows.chunk(4)
    return torch.cat([video1, text1]), torch.cat([video2, text2])


def check_split_the_twelve(split_the_twelve) -> None:
    """Which pieces each half holds, for a weight and for a bias."""
    d = 2
    number = torch.arange(12).repeat_interleave(d)  # every row carries the number of its piece
    wanted = {"the first": [0, 1, 2, 6, 7, 8], "the second": [3, 4, 5, 9, 10, 11]}
    for kind, rows in (("weight (24, 5)", number[:, None].repeat(1, 5).float()), ("bias (24,)", number.float())):
        answer = split_the_twelve(rows)
        if answer is None or len(answer) != 2:
            number_of = 0 if answer is None else len(answer)
            raise Wrong(f"split_the_twelve(rows) gives {number_of} tensors; it must give two, for norm1 and norm2.")
        for (name, pieces), got in zip(wanted.items(), answer):
            expect_shape(f"{name} half of a {kind}", got, (6 * d, *rows.shape[1:]))
            held = got.reshape(6 * d, -1)[:, 0].long().tolist()
            if held != [piece for piece in pieces for _ in range(d)]:
                raise Wrong(f"Of a {kind} with {d} rows a piece, {name} half holds the rows of pieces {held[::d]}, "
                            f"looking at every {d}nd row; it must hold {pieces}, each whole.")


EXERCISES = (
    Exercise(
        "7.1", "normalise", difficulty=1, minutes=10, reference=normalised_rows, check=check_normalise,
        hints=(
            "A token is one row of d numbers. Over which axis do mean and variance run, so that no token sees another?",
            "x.mean(dim=-1, keepdim=True) can be subtracted. The variance is the mean of the squares: divide by d.",
            "(x - mean) / (variance + eps).sqrt() * weight + bias; weight and bias broadcast along the last axis.",
        ),
    ),
    Exercise(
        "7.2", "sinusoid", difficulty=2, minutes=15, reference=timestep_sinusoid, check=check_sinusoid,
        hints=(
            "d / 2 frequencies; each gives one cosine and one sine. The first is 1. What is the factor to the next?",
            "Frequency i is 10000 ** (-i / half), half = d // 2, i = 0 .. half - 1. Angles: t[:, None] * frequencies.",
            "torch.cat([angles.cos(), angles.sin()], dim=-1): first all cosines, then all sines.",
        ),
    ),
    Exercise(
        "7.3", "expert_modulation", difficulty=2, minutes=15, check=check_expert_modulation,
        reference=modulated_by_modality,
        hints=(
            "Cut the modulation into six pieces of width d. Video's come first, although text leads the sequence.",
            "modulation[:, None].chunk(6, dim=-1) gives six tensors b 1 d: shift, scale, gate of video, then of text.",
            "text * (1 + text_scale) + text_shift, the same for video, torch.cat over dim 1. Return the gates unused.",
        ),
    ),
    Exercise(
        "7.4", "half_block", difficulty=2, minutes=10, reference=gated_half, check=check_half_block,
        hints=(
            "Norm, modulation (your 7.3), layer, gated residual. Which of them may see text and video together?",
            "y, text_gate, gate = expert_modulation(norm(x), num_text, modulation); then new = layer(y), once.",
            "x[:, :num_text] + text_gate * new[:, :num_text], the same for video with gate. Add to x, not to y.",
        ),
    ),
    Exercise(
        "7.5", "split_the_twelve", difficulty=2, minutes=10, reference=norm1_and_norm2, check=check_split_the_twelve,
        hints=(
            "Write down for each of the twelve pieces what it belongs to (video, text), and which layer it is around.",
            "norm1 stands before the attention. It needs the video pieces 0, 1, 2 and the text pieces 6, 7, 8.",
            "pieces = rows.chunk(12); torch.cat(pieces[:3] + pieces[6:9]) is norm1; norm2 gets the rest, in order.",
        ),
    ),
    Exercise(
        "7.6", "half_gone", difficulty=2, minutes=15, reference=dose_of_half, check=check_half_gone,
        hints=(
            "Half of what? The gain at dose 0 is the undisturbed one. Between which two measured doses is half of it?",
            "Go through neighbouring pairs. The first in which the second gain is half or less holds the answer; if "
            "there is none, return None.",
            "On a straight line from (a, g) to (b, h) the value half is reached at a + (g - half) / (g - h) * (b - a).",
        ),
    ),
)
