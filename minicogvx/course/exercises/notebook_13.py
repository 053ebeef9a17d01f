"""Exercises of notebook 13, image and video to video: put back, beside, widened, strength, and a film continued."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from minicogvx.course.exercises.exercise import Exercise, Wrong, expect_close, expect_equal, expect_shape
from minicogvx.course.exercises.films_13 import check_continue_film, continued
from minicogvx.diffusion.timesteps import start_index

Pictures = Float[Tensor, "b 3 1 h w"]

# ---- 13.1 put_back


def known_put_back(latents: Float[Tensor, "b c t h w"], known: Float[Tensor, "b c k h w"],
                   noise: Float[Tensor, "b c t h w"], alpha_bar: int | float) -> Float[Tensor, "b c t h w"]:
    """The latents of a step whose first k frames are the known ones, with the start's noise at the step's level."""
    k = known.shape[2]
    noised = math.sqrt(alpha_bar) * known + math.sqrt(1 - alpha_bar) * noise[:, :, :k]
    return torch.cat([noised, latents[:, :, k:]], dim=2)


def check_put_back(put_back) -> None:
    """The right frames, level and noise; the same each time; the given tensors stay as they are."""
    latents, noise, known = torch.randn(2, 3, 5, 2, 2), torch.randn(2, 3, 5, 2, 2), 3 + torch.randn(2, 3, 2, 2, 2)
    kept, what = latents.clone(), "put_back(latents, known, noise, alpha_bar=0.64) of 5 latent frames, 2 of them known"
    got = put_back(latents, known, noise, 0.64)
    expect_shape(what, got, (2, 3, 5, 2, 2))
    if not torch.equal(latents, kept):
        raise Wrong(f"{what} changed the latents that it was given; make a new tensor.")
    expect_close(f"{what}: the frames from 2 on, which are not known,", got[:, :, 2:], latents[:, :, 2:])
    front, start = got[:, :, :2].to(known.dtype), noise[:, :, :2]
    if torch.allclose(front[:, :, 1], latents[:, :, 1], atol=1e-4):
        raise Wrong(f"{what}: latent frame 1 was not put back; there may be several known frames, k = known.shape[2].")
    for name, level in (("clean", known), ("as 0.64 known + 0.36 noise", 0.64 * known + 0.36 * start),
                        ("with the two shares exchanged", 0.6 * known + 0.8 * start),
                        ("with the noise of the last frames", 0.8 * known + 0.6 * noise[:, :, -2:])):
        if torch.allclose(front, level, atol=1e-3):
            raise Wrong(f"{what}: the known frames were put back {name}. The step expects sqrt(alpha_bar) of the "
                        f"signal and sqrt(1 - alpha_bar) of the noise that these frames began with.")
    if not torch.equal(put_back(latents, known, noise, 0.64), got):
        raise Wrong(f"{what} gives other numbers when called again: it draws fresh noise. Use the noise that was "
                    f"given, so that the known frames take the same path as if the model had made them.")
    expect_close(what, got, known_put_back(latents, known, noise, 0.64))
    expect_close("put_back with alpha_bar=1, at the very end,", put_back(latents, known, noise, 1.0),
                 known_put_back(latents, known, noise, 1.0))


# ---- 13.2 image_beside


def beside(pictures: Pictures, encode: Callable[[Tensor], Tensor], frames: int,
           generator: torch.Generator) -> Float[Tensor, "b c t h2 w2"]:
    """The image channels: the latents of the noised pictures in frame 0, then zeros (paper, appendix D)."""
    sigma = torch.exp(-3 + 0.5 * torch.randn(len(pictures), 1, 1, 1, 1, generator=generator))
    latents = encode(pictures + sigma * torch.randn(pictures.shape, generator=generator))
    return F.pad(latents, (0, 0, 0, 0, 0, frames - 1))


def check_image_beside(image_beside) -> None:
    """Noise on the pixels, a strength for each picture, and the latent in frame 0 alone."""
    pictures, seen = torch.zeros(64, 3, 1, 16, 16), []

    def encode(pixels):
        seen.append(pixels)
        return torch.cat([1 + pixels[..., ::8, ::8], pixels[:, :1, :, ::8, ::8]], dim=1)

    what = "image_beside(pictures, encode, frames=5, generator) of 64 pictures"
    got = image_beside(pictures, encode, 5, torch.Generator().manual_seed(0))
    expect_shape(what, got, (64, 4, 5, 2, 2))
    if len(seen) != 1 or not isinstance(seen[0], Tensor) or tuple(seen[0].shape) != tuple(pictures.shape):
        raise Wrong(f"{what}: encode must be called once, with all pictures, of shape {tuple(pictures.shape)}.")
    if not torch.allclose(got[:, :, :1].float(), encode(seen[0]).float(), atol=1e-5):
        raise Wrong(f"{what}: latent frame 0 must be what encode gave, unchanged. Noise belongs on the pixels, before "
                    f"encode, so that the model learns not to copy what a camera or a compression added.")
    if got[:, :, 1:].any():
        raise Wrong(f"{what}: the latent frames after frame 0 must be zeros; one picture says nothing about them.")
    _check_sigma(what, (seen[0] - pictures).float())


def _check_sigma(what: str, noise: Float[Tensor, "b c t h w"]) -> None:
    sigma = noise.flatten(1).std(dim=1)
    if not noise.any():
        raise Wrong(f"{what}: the pictures went to encode without noise.")
    if (sigma.max() / sigma.min()).item() < 1.5:
        raise Wrong(f"{what}: all pictures got noise of nearly the same strength, {sigma.mean().item():.3f}. Draw "
                    f"sigma for each picture: exp of a normal number of mean -3 and spread 0.5, of shape b 1 1 1 1.")
    if torch.allclose(noise[0] / sigma[0], noise[1] / sigma[1], atol=1e-3):
        raise Wrong(f"{what}: every picture got the same noise, only stronger or weaker.")
    spread = sigma.log().std().item()
    if not 0.035 < sigma.median().item() < 0.07 or not 0.35 < spread < 0.65:
        raise Wrong(f"{what}: sigma has the median {sigma.median().item():.3g} and its logarithm the spread "
                    f"{spread:.2g}; it must be exp(-3) = 0.0498, and 0.5.")


# ---- 13.3 widen


def widened(weight: Float[Tensor, "d c p p2"]) -> Float[Tensor, "d c2 p p2"]:
    """A patch kernel for twice the channels: the old weights for the noisy latents, zeros for the image's."""
    return torch.cat([weight, torch.zeros_like(weight)], dim=1)


def check_widen(widen) -> None:
    """The same tokens as before, whatever the picture, and new weights that can still learn."""
    weight, latents, picture = torch.randn(6, 4, 2, 2), torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    wide = widen(weight)
    expect_shape("widen(weight) of a kernel 6 4 2 2", wide, (6, 8, 2, 2))
    before = F.conv2d(latents, weight, stride=2)
    tokens = [F.conv2d(torch.cat([latents, beside], dim=1), wide.to(weight.dtype), stride=2)
              for beside in (torch.zeros_like(picture), picture)]
    if torch.allclose(F.conv2d(torch.cat([picture, latents], dim=1), wide.to(weight.dtype), stride=2), before,
                      atol=1e-4):
        raise Wrong("widen(weight) reads the picture first and the noisy latents after it; the channels are "
                    "[noisy latents | picture].")
    if torch.allclose(tokens[0], before / 2, atol=1e-4):
        raise Wrong("widen(weight) halves the old weights: without a picture the tokens are half of what they were. "
                    "The old weights must stay as they are.")
    if not torch.allclose(tokens[0], before, atol=1e-4):
        raise Wrong("widen(weight): with a picture of zeros the tokens differ from those of the old kernel; the old "
                    "weights must stay, for the first 4 channels.")
    if not torch.allclose(tokens[1], before, atol=1e-4):
        raise Wrong(f"widen(weight): a picture changes the tokens, by up to "
                    f"{(tokens[1] - before).abs().max().item():.3g}. At the start of the training it must change "
                    f"nothing, so the new weights are zeros; random ones are noise to every block.")


# ---- 13.4 first_step


ENDS = {1.0: "Strength 1 forgets the video: all steps are taken, from index 0.",
        0.0: "Strength 0 keeps the video: no step is left, and the index is one past the last."}


def steps_before(strength: int | float, steps: int) -> int:
    """Index of the first of `steps` steps that video to video takes."""
    return start_index(strength, steps)


def check_first_step(first_step) -> None:
    """0 takes no step, 1 takes all; in between whole steps, rounded down, from the end."""
    for strength, steps, reasons in (
            (1.0, 50, {}), (0.0, 50, {}),
            (0.8, 50, {40: "40 is how many steps are taken; they are the last ones, so the first has the index 10."}
             | dict.fromkeys((200, 199, 800, 799), "That is a timestep; give the index of a step, 0 to 50.")),
            (0.55, 10, {4: "0.55 of 10 steps is 5.5; only whole steps can be taken, rounded down: 5 of 10."}),
            (0.3, 25, {17: "0.3 of 25 steps is 7.5; rounded down, 7 steps are taken, so the first is 18."})):
        got, right = first_step(strength, steps), steps_before(strength, steps)
        what = f"first_step(strength={strength}, steps={steps})"
        if not isinstance(got, bool) and isinstance(got, (int, float)) and got != right:
            raise Wrong(f"{what} is {got}; it must be {right}. {reasons.get(got, ENDS.get(strength, ''))}".strip())
        expect_equal(what, got, right)


# ---- 13.5 best_strength


def strength_of_most(strengths: Sequence[float], changed: Bool[Tensor, "s films"],
                     kept: Bool[Tensor, "s films"]) -> float:
    """The strength at which most films have both: what should change has, what should stay has stayed."""
    both = (changed & kept).sum(dim=1)
    return float(strengths[int(both.argmax())])


def check_best_strength(best_strength) -> None:
    """Counted film by film; of equal counts the weaker; a strength, not its place or its count."""
    strengths = [0.2, 0.4, 0.6, 0.8]
    changed = torch.tensor([[0, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    kept = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 1, 0], [0, 0, 0, 1, 1], [0, 0, 1, 0, 1]], dtype=torch.bool)
    what = "best_strength([0.2, 0.4, 0.6, 0.8], changed, kept) of 5 films"
    got = best_strength(strengths, changed, kept)
    got = got.item() if isinstance(got, Tensor) and got.numel() == 1 else got
    for values, why in (((1, 3), "That is a place in the list; give the strength that stands there."),
                        ((0.6,), "There no film has both."),
                        ((0.2,), "There all films have kept what should stay, and none has changed."),
                        ((0.8,), "There two films have both, but at 0.4 already two do; of equals take the weaker, "
                                 "which keeps more of the film. Count films that have both, not each on its own.")):
        if any(isinstance(got, (int, float)) and got == value for value in values):
            raise Wrong(f"{what} is {got}; it must be 0.4. {why}")
    expect_equal(what, got, 0.4)
    expect_equal("best_strength where the second of two films has both at 0.9 alone",
                 _number(best_strength([0.5, 0.9], torch.eye(2, dtype=torch.bool),
                                       torch.tensor([[False, True], [False, True]]))), 0.9)


def _number(value):
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


EXERCISES = (
    Exercise(
        "13.1", "put_back", difficulty=2, minutes=15, reference=known_put_back, check=check_put_back,
        hints=(
            "Two pieces along the frames: the first k come from the known latents, the others stay as they are.",
            "A latent of this step is sqrt(alpha_bar) times the clean one plus sqrt(1 - alpha_bar) times noise. Which "
            "noise did these frames begin with?",
            "noised = alpha_bar ** 0.5 * known + (1 - alpha_bar) ** 0.5 * noise[:, :, :k], then torch.cat([noised, "
            "latents[:, :, k:]], dim=2).",
        ),
    ),
    Exercise(
        "13.2", "image_beside", difficulty=2, minutes=15, reference=beside, check=check_image_beside,
        hints=(
            "In this order: a sigma for each picture, noise on the pixels, encode, zeros for the later frames.",
            "sigma = torch.exp(-3 + 0.5 * torch.randn(b, 1, 1, 1, 1, generator=generator)): five axes, so that it "
            "broadcasts over the pixels of each picture.",
            "F.pad(latents, (0, 0, 0, 0, 0, frames - 1)) appends zeros along the frames: pairs count from the last "
            "axis.",
        ),
    ),
    Exercise(
        "13.3", "widen", difficulty=1, minutes=5, reference=widened, check=check_widen,
        hints=(
            "The kernel is d c p p. Which axis grows, and on which side?",
            "A convolution adds what each channel contributes. Which new weights make a picture contribute nothing?",
            "torch.cat([weight, torch.zeros_like(weight)], dim=1).",
        ),
    ),
    Exercise(
        "13.4", "first_step", difficulty=1, minutes=5, reference=steps_before, check=check_first_step,
        hints=(
            "How many steps are taken: strength times steps, as a whole number, rounded down.",
            "They are the last ones: the film begins less noisy, so the noisiest steps are left out.",
            "return steps - int(strength * steps)",
        ),
    ),
    Exercise(
        "13.5", "best_strength", difficulty=2, minutes=10, reference=strength_of_most, check=check_best_strength,
        hints=(
            "A film counts if both are true for it, at the same strength.",
            "(changed & kept) has a row for each strength; sum it over the films.",
            "argmax gives the place of the first largest count; strengths[int(place)] is the answer.",
        ),
    ),
    Exercise(
        "13.6", "continue_film", difficulty=2, minutes=15, reference=continued, check=check_continue_film,
        hints=(
            "Each time, the last `overlap` frames of what there is so far go to `make`.",
            "What `make` gives begins with the overlap once more. Which of its frames are new?",
            "film = torch.cat([film, make(film[-overlap:])[overlap:]]), `times` times. Do not change the film given.",
        ),
    ),
)
