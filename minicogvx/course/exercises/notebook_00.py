"""Exercises of notebook 00: bytes for a screen, words as numbers, averages, guidance, tokens, a first frame."""

import re

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from minicogvx.course.exercises.averages import check_cheapest_average, fewest_means
from minicogvx.course.exercises.exercise import Exercise, Wrong, expect_equal, expect_raises, expect_shape
from minicogvx.diffusion.guidance import guide

PAD, END, UNKNOWN = 0, 1, 2  # token ids, as T5 has them

# ---- 0.1 to_screen


def film_in_bytes(video: Float[Tensor, "b c t h w"]) -> UInt8[Tensor, "b t h w c"]:
    """Frames for a screen, 0..255, of a model's video in about -1..1. What lies outside is clipped."""
    frames = rearrange(video, "b c t h w -> b t h w c").float()
    return ((frames / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


def check_to_screen(to_screen) -> None:
    """Shape and type; black, white and grey; what lies outside; the nearest byte; every pixel in its place."""
    for value, wanted, why in (
        (-1.0, 0, "-1 is black, the byte 0."),
        (1.0, 255, "1 is white, the byte 255."),
        (2 * 153.3 / 255 - 1, 153, "Black is -1 and white is 1, so 0 is a middle grey."),
        (1.3, 255, "A byte ends at 255 and wraps around to 0: clip whatever is above white first."),
        (-1.3, 0, "A byte cannot hold a negative number: clip whatever is below black first."),
        (2 * 152.7 / 255 - 1, 153, "Take the nearest integer; converting to bytes alone drops the fraction."),
    ):
        video = torch.full((2, 3, 5, 4, 6), value)
        video[1] = torch.tensor([-1.3, 1.3]).repeat(180).reshape(3, 5, 4, 6)  # the scale is not that of this clip
        got = int(_film(to_screen, video)[0, 0, 0, 0, 0])
        if got != wanted:
            raise Wrong(f"A number of {value:.3g} in the video becomes {got}; it must become {wanted}. {why}")
    _check_places(to_screen, 2 * torch.rand(2, 3, 5, 4, 6) - 1)


def _check_places(to_screen, video: Tensor) -> None:
    got, wanted = _film(to_screen, video).int(), film_in_bytes(video).int()
    apart = (got - wanted).abs() > 1  # a half may go either way
    if apart.any():
        b, t, h, w, c = place = tuple(apart.nonzero()[0].tolist())
        raise Wrong(f"Video {b}, frame {t}, row {h}, column {w}, colour {c} (counted from 0) is {int(got[place])}; it "
                    f"must be {int(wanted[place])}. The shape is right, but the pixels have moved: reshape and view "
                    f"keep the order of the numbers; rearrange and permute move axes.")


def _film(to_screen, video: Tensor) -> Tensor:
    given = video.clone()
    got = to_screen(given)
    if not torch.equal(given, video):
        raise Wrong("to_screen changes its input video; make a new tensor (clamp, not clamp_; x = x / 2, not x /= 2).")
    expect_shape("to_screen(video) of a video of shape (2, 3, 5, 4, 6)", got, (2, 5, 4, 6, 3))
    if got.dtype != torch.uint8:
        raise Wrong(f"to_screen(video) has dtype {got.dtype}; a screen wants whole numbers 0..255, torch.uint8.")
    return got


# ---- 0.2 number_words


def numbered_words(caption: str, number_of: dict[str, int], length: int) -> list[int]:
    """Token numbers of a caption as the toy's tokenizer makes them. Raises ValueError where they do not fit."""
    words = re.sub(r"[^\w\s]", " ", caption.lower()).split()
    tokens = [*(number_of.get(word, UNKNOWN) for word in words), END]
    if len(tokens) > length:
        raise ValueError(f"the caption has {len(tokens)} tokens with its end; at most {length} fit")
    return tokens + [PAD] * (length - len(tokens))


def check_number_words(number_words) -> None:
    """Order, end and padding; unknown words, capitals, punctuation; nothing at all, just enough, too much."""
    number_of = {"a": 3, "circle": 4, "moves": 5, "red": 6, "right": 7}
    plain = "a red circle moves right"
    for caption, length, why in (
        (plain, 8, "First the words in order, then 1 for the end, then zeros up to the length."),
        ("a red dragon moves right", 8, "An unknown word becomes 2 and keeps its place."),
        ("A RED Circle moves right", 8, "Capital letters do not matter."),
        ("a red circle,moves right!", 8, "Punctuation counts as a space."),
        ("", 3, "Without words there is still the end token."),
        (plain, 6, "Five words and the end just fit."),
    ):
        what, known = f'number_words("{caption}", number_of, {length})', dict(number_of)
        got, wanted = number_words(caption, known, length), numbered_words(caption, number_of, length)
        if known != number_of:
            raise Wrong(f"{what} changes number_of; it only looks words up.")
        if isinstance(got, list) and got != wanted:
            raise Wrong(f"{what} is {got}; it must be {wanted}. {why}")
        expect_equal(what, got, wanted)
    for length in (5, 2):
        expect_raises(f'number_words("{plain}", number_of, {length})', ValueError,
                      lambda: number_words(plain, dict(number_of), length))


# ---- 0.4 guided


def check_guided(guided) -> None:
    """Neither answer, one answer, beyond it, between, behind: a straight line through both, whatever their sizes."""
    without, caption = 3 * torch.randn(2, 4, 5, 3, 3), torch.randn(2, 4, 5, 3, 3)
    for scale, why in ((0, "With 0 the caption has no say."),
                       (1, "With 1 it is just the answer with the caption."),
                       (3.0, "With 3 you go three times as far from the answer without the caption as with 1."),
                       (0.5, "With 0.5 you stop halfway."), (-1.0, "A negative scale goes the other way.")):
        what, given = f"guided(v_without, v_with, {scale:g})", (without.clone(), caption.clone())
        got = guided(*given, scale)
        if not (torch.equal(given[0], without) and torch.equal(given[1], caption)):
            raise Wrong(f"{what} changes its inputs; make a new tensor.")
        expect_shape(what, got, tuple(without.shape))
        if not got.isfinite().all():
            raise Wrong(f"{what} holds NaN or infinity.")
        both = torch.stack([without.flatten(), caption.flatten()], dim=1)
        shares = torch.linalg.lstsq(both, got.flatten()[:, None]).solution  # how much of each it is made of
        if (both @ shares - got.flatten()[:, None]).abs().max() > 1e-3:
            raise Wrong(f"{what} is not a weighted sum of the two answers; do not clamp or normalise anything.")
        first, second = shares[:, 0].tolist()
        if max(abs(first - (1 - scale)), abs(second - scale)) > 1e-3:
            raise Wrong(f"{what} is {_times(first)} v_without plus {_times(second)} v_with; it must be "
                        f"{_times(1 - scale)} and {_times(scale)}. {why}")


def _times(share: int | float) -> str:
    return f"{share if abs(share) > 5e-4 else 0:.3g} times"


# ---- 0.5 sequence_length


def tokens_in_sequence(frames: int, height: int, width: int, text: int, patch_t: int = 1) -> int:
    """Tokens of text and video in the transformer, for a VAE of 4 x 8 x 8 and patches of patch_t x 2 x 2.

    The number of latent frames is rounded up to a multiple of patch_t, as in the 1.5 models.
    """
    latent_frames = (frames - 1) // 4 + 1
    return text + -(-latent_frames // patch_t) * (height // 16) * (width // 16)


def check_sequence_length(sequence_length) -> None:
    """The toy, the published sizes, a picture, other patches; the usual miscounts are named."""
    for size, patch_t in (((17, 64, 64, 32), 1), ((49, 480, 720, 226), 1), ((1, 64, 96, 32), 1),
                          ((81, 768, 1360, 226), 2), ((13, 64, 64, 32), 2)):
        what = f"sequence_length({', '.join(map(str, size))}{f', patch_t={patch_t}' if patch_t > 1 else ''})"
        got = sequence_length(*size, patch_t=patch_t) if patch_t > 1 else sequence_length(*size)
        wanted = tokens_in_sequence(*size, patch_t)
        if isinstance(got, int) and got != wanted:
            why = [name for name, count in _miscounts(*size, patch_t).items() if got == count]
            raise Wrong(" ".join([f"{what} is {got:,}; it must be {wanted:,}.", *why[:1]]))
        expect_equal(what, got, wanted)


def _miscounts(frames: int, height: int, width: int, text: int, patch_t: int) -> dict[str, int]:
    latent_frames, places = (frames - 1) // 4 + 1, (height // 16) * (width // 16)
    groups = -(-latent_frames // patch_t)
    return {
        "That is the video alone; the text is part of the same sequence.": groups * places,
        "An odd number of latent frames gets one more, not one less.": text + latent_frames // patch_t * places,
        "The first frame stays alone, and the others go in fours: 17 frames become 5, not 4.":
            text + frames // 4 // patch_t * places,
        "The VAE shrinks time, too: 17 frames become 5.": text + -(-frames // patch_t) * places,
        "The extra frame is counted, but with patch_t=2 a token covers two latent frames.":
            text + groups * patch_t * places,
        "That is one token for each latent; a patch holds 2 x 2 of them.": text + groups * places * 4,
        "That cuts pixels; the VAE first makes height and width 8 times smaller.": text + groups * places * 64,
        "A patch is 2 latents high and 2 wide: halve both sides.": text + groups * places * 2,
        "With patch_t=2 a token covers two latent frames.": text + latent_frames * places,
        "An even number of latent frames needs no extra one.": text + (latent_frames // patch_t + 1) * places,
        f"That counts {latent_frames / patch_t:g} groups of frames; round up to {groups} before you multiply.":
            text + latent_frames * places // patch_t,
    }


# ---- 0.6 put_back


def picture_put_back(x: Float[Tensor, "b c t h w"], known: Float[Tensor, "b c 1 h w"],
                     noise: Float[Tensor, "b c t h w"], a: float, s: float) -> Float[Tensor, "b c t h w"]:
    """`x` with the known latent as its first frame, noised with the noise of the run (as `Pipeline` does)."""
    return torch.cat([a * known + s * noise[:, :, :1], x[:, :, 1:]], dim=2)


def check_put_back(put_back) -> None:
    """The other frames are unchanged; the first is a times the picture plus s times the noise, and nothing of x."""
    x, noise, known = torch.randn(2, 4, 5, 3, 3), torch.randn(2, 4, 5, 3, 3), torch.randn(2, 4, 1, 3, 3)
    for a, s in ((0.6, 0.8), (1.0, 0.0), (0.0, 1.0)):
        what = f"put_back with a={a:g} and s={s:g}"
        given = [tensor.clone() for tensor in (x, known, noise)]
        got = put_back(*given, a, s)
        for name, before, after in zip(("x", "known", "noise"), (x, known, noise), given):
            if not torch.equal(before, after):
                raise Wrong(f"put_back changes its input {name}; make a new tensor, with torch.cat or x.clone().")
        expect_shape(what, got, tuple(x.shape))
        moved = (got - x).abs().amax(dim=(0, 1, 3, 4))[1:] > 1e-6  # of frames 1, 2, ...
        if moved.any():
            raise Wrong(f"{what}: frame {int(moved.nonzero()[0]) + 1} (counted from 0) is no longer that of x; only "
                        f"frame 0 is known. Frames are axis 2 of b c t h w.")
        _check_shares(put_back, x, a, s, what)
        wanted = picture_put_back(x, known, noise, a, s)[:, :, 0]
        if not torch.allclose(got[:, :, 0], wanted, atol=1e-5):
            raise Wrong(f"{what}: frame 0 differs from what it must be by up to "
                        f"{(got[:, :, 0] - wanted).abs().max().item():.2g}. Take the first frame of the noise given.")


def _check_shares(put_back, x: Tensor, a: float, s: float, what: str) -> None:
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    for name, pair, wanted, why in (
        ("something of its own", (zero, zero, zero), 0.0, "All inputs were 0: use the noise given, no other."),
        ("the old x", (one, zero, zero), 0.0, "The picture takes the place of what was there."),
        ("the picture", (zero, one, zero), a, "A signal comes in with the factor a."),
        ("the noise", (zero, zero, one), s, "The network expects every frame to be as noisy as its timestep says."),
    ):
        share = put_back(pair[0].clone(), pair[1][:, :, :1].clone(), pair[2].clone(), a, s)[:, :, 0]
        if (share - wanted).abs().max() > 1e-5:
            raise Wrong(f"{what}: frame 0 holds {name} with the factor {share.flatten()[0].item():.2g}; it must be "
                        f"{wanted:g}. {why}")


EXERCISES = (
    Exercise(
        "0.1", "to_screen", difficulty=1, minutes=10, reference=film_in_bytes, check=check_to_screen,
        hints=(
            "Three steps: move the axes, bring -1..1 to 0..255, round to integers. The first is a rearrange of "
            '"b c t h w -> ...".',
            "video / 2 + 0.5 brings -1..1 to 0..1. A byte that should hold 267 holds 11, so first clip what lies "
            "outside: .clamp(0, 1).",
            "Then multiply by 255, .round() to the nearest integer, and .to(torch.uint8) at the very end.",
        ),
    ),
    Exercise(
        "0.2", "number_words", difficulty=1, minutes=10, reference=numbered_words, check=check_number_words,
        hints=(
            "caption.lower().split() gives the words. What does number_of.get(word, 2) give for a word that is not "
            "there?",
            'For the punctuation, before you split: "".join(c if c.isalnum() else " " for c in caption).',
            "numbers = [...] + [1]. If len(numbers) > length: raise ValueError(...). Then add "
            "[0] * (length - len(numbers)).",
        ),
    ),
    Exercise(
        "0.3", "cheapest_average", difficulty=2, minutes=10, reference=fewest_means, check=check_cheapest_average,
        hints=(
            "There are only 25 pairs. Try them all: how many numbers does averaged keep, and how many decibels does "
            "the copy reach?",
            "Two loops. copy = enlarged(averaged(clip, together, side), together, side, len(clip)); keep the pair if "
            "decibels(clip, copy) >= target.",
            "Collect (small.numel(), together, side) of each pair that reaches the target; min() of that list has the "
            "fewest numbers first.",
        ),
    ),
    Exercise(
        "0.4", "guided", difficulty=1, minutes=5, reference=guide, check=check_guided,
        hints=(
            "v_with - v_without is the direction in which the caption pulls. Where do you start, and how far "
            "do you go?",
            "Start at v_without. With scale 1 you must arrive exactly at v_with.",
            "v_without plus scale times the difference of the two.",
        ),
    ),
    Exercise(
        "0.5", "sequence_length", difficulty=2, minutes=10, reference=tokens_in_sequence, check=check_sequence_length,
        hints=(
            "Begin with the latents: how many frames, rows and columns does the VAE leave? For the toy: 5, 8 and 8.",
            "(frames - 1) // 4 + 1 latent frames, height // 8 rows, width // 8 columns. Patches of 2 x 2 halve rows "
            "and columns. Use // throughout: a count is a whole number.",
            "Divide latent frames by patch_t, rounding up: (latent_frames + patch_t - 1) // patch_t. Add the text at "
            "the end.",
        ),
    ),
    Exercise(
        "0.6", "put_back", difficulty=1, minutes=5, reference=picture_put_back, check=check_put_back,
        hints=(
            "At this timestep every other frame is signal times a plus noise times s. What must the known frame be to "
            "fit in?",
            "x[:, :, :1] is the first frame with all five axes, x[:, :, 1:] are the others; the same goes for "
            "the noise.",
            "torch.cat([first, others], dim=2), where first is the picture times a plus the first frame of the noise "
            "times s.",
        ),
    ),
)
