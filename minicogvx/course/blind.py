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
from minicogvx.course.clips import GAP, check_clip, show_rows
from minicogvx.evaluation.intervals import answers_needed, sign_test, wilson

SIDE = 192  # pixels, at least, of the shorter side of a clip
SHOWN = 3  # pairs in the static picture
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
    show_rows({f"pair {i}, {side}": clip for i, (pair, _) in enumerate(shown[:SHOWN])
               for side, clip in zip(("left", "right"), pair)}, alt)
    for i, (_, caption) in enumerate(shown[:SHOWN]):
        print(f"pair {i}: {caption}")
    print(f'{len(pairs)} pairs in all. Without buttons, answer with one letter for each pair: answers="lrt...", l for '
          f"left, r for right, t for a tie.")
    parts.display_made(lambda: _box(names, shown, flipped, alt, fps))


def drawn_sides(count: int, seed: int) -> tuple[list[int], list[bool]]:
    """A random order of `count` pairs, and for each place in it whether the second model stands on the left."""
    dice = random.Random(seed)
    return dice.sample(range(count), count), [dice.random() < 0.5 for _ in range(count)]


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
