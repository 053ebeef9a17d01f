"""A blind comparison of two models: pairs of clips, sides drawn at random, and the key shown only at the end.

    explore_blind({"10 steps": clips, "25 steps": others}, captions, "Two clips for each caption.")

Where there are no widgets (GitHub, nbval) it shows the first pairs and says how to answer as text:
`explore_blind(..., answers="lrtlr")`, with l for left, r for right and t for a tie.
"""

import random
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.course import output
from minicogvx.course import widget_parts as parts
from minicogvx.course.clips import GAP, check_clip, frame_places
from minicogvx.course.show import new_figure, show_figure
from minicogvx.evaluation.intervals import answers_needed, sign_test, wilson

SIDE = 192  # pixels, at least, of the shorter side of a clip
SHOWN, FRAMES = 3, 4  # pairs in the static picture, and frames of each of their clips
ANSWERS = {"l": "left is better", "r": "right is better", "t": "no difference"}


def explore_blind(clips: Mapping[str, Sequence[Float[Tensor, "_ _ _ 3"]]], captions: Sequence[str], alt: str,
                  fps: int | float = 8, seed: int = 0, answers: str | None = None) -> None:
    """Asks which of two clips (0..1) is better, pair by pair; tells names and result after the last.

    `clips`: two models by name, with one clip of each for every caption. `seed` draws sides and the order of the pairs.
    `answers`: one letter for each pair, in place of clicks. Raises ValueError for other than two models, numbers of
    clips that differ, clips of a pair with different shapes, or answers that are no such letters.
    """
    names, pairs = _checked(clips, captions, alt)
    order, flipped = drawn_sides(len(pairs), seed)
    shown = [(pairs[i][::-1] if flip else pairs[i], captions[i]) for i, flip in zip(order, flipped)]
    if answers is not None:
        print(told_apart(names, flipped, _letters(answers, len(pairs))))
        return
    captioned = "; ".join(f"pair {i}: {caption}" for i, (_, caption) in enumerate(shown[:SHOWN]))
    show_figure(pairs_figure(shown[:SHOWN]), f"{parts.without_stop(alt)}, a left one and a right one: {captioned}.")
    print(f'{len(pairs)} pairs in all. Without buttons, answer with one letter for each pair: answers="lrt...", l for '
          f"left, r for right, t for a tie.")
    parts.display_made(lambda: _box(names, shown, flipped, alt, fps))


def drawn_sides(count: int, seed: int) -> tuple[list[int], list[bool]]:
    """A random order of `count` pairs, and for each place in it whether the second model stands on the left."""
    dice = random.Random(seed)
    return dice.sample(range(count), count), [dice.random() < 0.5 for _ in range(count)]


def pairs_figure(shown: Sequence[tuple[tuple[Tensor, Tensor], str]]):
    """A row for each pair: frames of the left clip, a gap, frames of the right one, their caption above.

    `shown`: pairs of clips t h w 3 (0..1), each with its caption.
    """
    columns = max(len(frame_places(len(clip), FRAMES)) for pair, _ in shown for clip in pair)
    height, width = shown[0][0][0].shape[1:3]
    figure, _ = new_figure(1, 1, 1.02 * 2 * columns + 0.4, (height / width + 0.42) * len(shown))
    figure.clear()
    for i, (band, (pair, caption)) in enumerate(zip(figure.subfigures(len(shown), 1, squeeze=False)[:, 0], shown)):
        band.suptitle(f"pair {i}: {caption}", fontsize=10, x=0.01, ha="left")
        for side, half, clip in zip(("left", "right"), band.subfigures(1, 2, wspace=0.04), pair):
            axes = half.subplots(1, columns, squeeze=False)[0]
            for axis in axes:
                axis.set_axis_off()
            for axis, place in zip(axes, frame_places(len(clip), FRAMES)):
                axis.imshow(clip[place].detach().float().cpu().clamp(0, 1).numpy(), interpolation="nearest")
                axis.set_title(f"{side}, frame {place}", fontsize=7.5, pad=2, color="#444444")
    return figure


def told_apart(names: Sequence[str], flipped: Sequence[bool], answers: Sequence[str]) -> str:
    """The result in words: share of the answers won by the first model, its 95 % interval, and the test.

    Ties are left out.
    """
    told = [(answer == "l") != flip for answer, flip in zip(answers, flipped, strict=True) if answer != "t"]
    ties = len(answers) - len(told)
    if not told:
        return f"{ties} of {len(answers)} answers were ties: nothing can be said."
    share = sum(told) / len(told)
    low, high = wilson(share, len(told))
    needed = answers_needed(share)
    more = ("no number of answers would tell them apart at this share" if needed is None else
            f"if this share stays, {needed} answers tell them apart" if needed > len(told) else
            "that is enough to tell them apart")
    return (f"{names[0]} was better in {sum(told)} of {len(told)} answers ({share:.0%}, 95 % interval {low:.0%} to "
            f"{high:.0%}), {names[1]} in the others; ties left out: {ties}. Exact test p = "
            f"{sign_test(told, [not each for each in told]):.2g}; {more}.\n"
            f"The left clips were of: {', '.join(names[flip] for flip in flipped)}.")


# ---- helpers


def _checked(clips: Mapping, captions: Sequence[str], alt: str) -> tuple[list[str], list[tuple[Tensor, Tensor]]]:
    if len(clips) != 2:
        raise ValueError(f"there are clips of {len(clips)} models; explore_blind takes two, each with its name")
    counts = {name: len(each) for name, each in clips.items()}
    if set(counts.values()) != {len(captions)} or not len(captions):
        raise ValueError(f"there are {len(captions)} captions, and clips: {counts}; it must be one of each for every "
                         f"caption, and one caption at least")
    pairs = list(zip(*clips.values()))
    for one, other in pairs:
        check_clip(one, alt)
        if one.shape != other.shape:
            raise ValueError(f"a pair has the shapes {tuple(one.shape)} and {tuple(other.shape)}; they must be equal")
    return list(clips), pairs


def _letters(answers: str, count: int) -> list[str]:
    letters = [each for each in answers.lower() if not each.isspace()]
    if len(letters) != count or set(letters) - set(ANSWERS):
        raise ValueError(f"answers is {answers!r}; it must be {count} letters, one for each pair, of "
                         f"{', '.join(ANSWERS)}")
    return letters


def _box(names: list[str], shown: list, flipped: list[bool], alt: str, fps: int | float):
    """The pair, its caption and three buttons; after the last pair, the verdict in their place."""
    widgets = parts.ipywidgets_module()
    picture, given = widgets.HTML(), []
    buttons = [widgets.Button(description=word) for word in ANSWERS.values()]
    row = widgets.HBox(buttons)

    def show() -> None:
        if len(given) == len(shown):
            picture.value = told_apart(names, flipped, given).replace("\n", "<br>")
            row.layout.display = "none"
            return
        pair, caption = shown[len(given)]
        words = f"{parts.without_stop(alt)}. Pair {len(given)} of {len(shown)}: {caption}."
        picture.value = output.figure_html(output.gif_of_clip(_side_by_side(*pair), fps, SIDE), words)

    def clicked(letter: str) -> None:
        if len(given) < len(shown):
            given.append(letter)
            show()

    for letter, button in zip(ANSWERS, buttons):
        button.on_click(lambda _, letter=letter: clicked(letter))
    show()
    return widgets.VBox([picture, row])


def _side_by_side(left: Tensor, right: Tensor) -> Float[Tensor, "t h w2 3"]:
    left, right = (clip.detach().float().cpu().clamp(0, 1) for clip in (left, right))
    return torch.cat([left, torch.ones(len(left), left.shape[1], GAP, 3), right], dim=2)
