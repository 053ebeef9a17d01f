"""Exercises 11.1 and 11.2 of notebook 11: who may see whom in a row of clips, and where each token is."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from minicogvx.course.exercises.exercise import Wrong, expect_shape
from minicogvx.transformer.packed import same_clip

# ---- 11.1 pack_mask


def mask_of_clips(clips: Sequence[tuple[int, int]]) -> Bool[Tensor, "n n"]:
    """Whether query i may see key j, for clips (words, video tokens) end to end: each token sees its own clip."""
    return same_clip([text + video for text, video in clips])


def check_pack_mask(pack_mask) -> None:
    """Boolean, nobody left alone, every pair of a clip and no other; what is forbidden or let in is named."""
    for clips in (((2, 3), (1, 4)), ((3, 1),), ((2, 2), (2, 6), (1, 1), (2, 2))):
        what, wanted = f"pack_mask({list(clips)})", mask_of_clips(clips)
        got = pack_mask(list(clips))
        expect_shape(what, got, tuple(wanted.shape))
        if got.dtype != torch.bool:
            raise Wrong(f"{what} has dtype {got.dtype}; it must be torch.bool, True where a pair is allowed.")
        _check_own(what, got, wanted, clips)
        _check_foreign(what, got, wanted, clips)


def _check_own(what: str, got: Tensor, wanted: Tensor, clips: Sequence[tuple[int, int]]) -> None:
    if not got.any(dim=1).all():
        row = int((~got.any(dim=1)).nonzero()[0])
        raise Wrong(f"{what}: {_named(row, clips)} sees nothing, not even itself. Softmax would divide 0 by 0.")
    missing = wanted & ~got
    if not missing.any():
        return
    if not missing.tril().any():
        raise Wrong(f"{what}: no token sees a later one of its clip. That is a causal mask, as language models have "
                    f"it; here all tokens of a clip see each other.")
    i, j = missing.nonzero()[0].tolist()
    raise Wrong(f"{what}: {_named(i, clips)} must see {_named(j, clips)}; both are of one clip.")


def _check_foreign(what: str, got: Tensor, wanted: Tensor, clips: Sequence[tuple[int, int]]) -> None:
    foreign = got & ~wanted
    if not foreign.any():
        return
    word = torch.tensor([_is_word(i, clips) for i in range(len(got))])
    if foreign.all(dim=1).any() or torch.equal(foreign, ~wanted):
        raise Wrong(f"{what}: every token sees every other one. Then all clips are one clip.")
    if not foreign[:, ~word].any():
        i, j = foreign.nonzero()[0].tolist()
        raise Wrong(f"{what}: {_named(i, clips)} sees {_named(j, clips)}. Words, too, belong to one clip; those of "
                    f"another caption would steer this clip.")
    i, j = foreign.nonzero()[0].tolist()
    raise Wrong(f"{what}: {_named(i, clips)} sees {_named(j, clips)}. Look where each clip begins: its words come "
                f"first and count, too.")


def _is_word(token: int, clips: Sequence[tuple[int, int]]) -> bool:
    return _named(token, clips).startswith("word")


def _named(token: int, clips: Sequence[tuple[int, int]]) -> str:
    for number, (text, video) in enumerate(clips):
        if token < text:
            return f"word {token} of clip {number}"
        if token < text + video:
            return f"video token {token - text} of clip {number}"
        token -= text + video
    raise ValueError(f"the clips {clips} have no such token")


# ---- 11.2 pack_positions

Clip = tuple[int, tuple[int, int, int]]  # words, and the grid of video tokens: frames, rows, columns
AXES = ("frame", "row", "column")


def places_in_clips(clips: Sequence[Clip]) -> Int[Tensor, "n 3"]:
    """Frame, row and column of every token of a pack, counted anew in each clip; words are at 0, 0, 0."""
    parts = []
    for text, grid in clips:
        parts += [torch.zeros(text, 3, dtype=torch.int64), torch.cartesian_prod(*map(torch.arange, grid))]
    return torch.cat(parts)


def check_pack_positions(pack_positions) -> None:
    """Words at 0 in front of each clip, the first video token at 0, columns fastest, every grid its own."""
    for clips in ([(2, (2, 2, 3)), (1, (1, 3, 2)), (3, (2, 2, 3))], [(2, (3, 2, 2))]):
        what, wanted = f"pack_positions({clips})", places_in_clips(clips)
        got = pack_positions(list(clips))
        expect_shape(what, got, tuple(wanted.shape))
        first = 0
        for number, (text, grid) in enumerate(clips):
            end = first + text + grid[0] * grid[1] * grid[2]
            _check_clip(what, got[first:end].double(), wanted[first:end].double(), number, text)
            first = end


def _check_clip(what: str, got: Tensor, wanted: Tensor, number: int, text: int) -> None:
    if torch.equal(got, wanted):
        return
    of_clip = f"{what}: of clip {number}"
    if torch.equal(got, torch.cat([wanted[text:], wanted[:text]])):
        raise Wrong(f"{of_clip} the words come last. In every clip words come first, then the video.")
    if not torch.equal(got[:text], wanted[:text]):
        raise Wrong(f"{of_clip} word 0 is at {_place(got[0])}; words have no place and stay at 0, 0, 0.")
    video, right = got[text:], wanted[text:]
    moved = (video - right)[0]
    if moved.any() and torch.equal(video - right, moved.expand_as(video)):
        raise Wrong(f"{of_clip} the first video token is at {_place(video[0])}. Places are counted anew in every clip, "
                    f"from 0, 0, 0; do not count on from the clip before.")
    if torch.equal(_sorted_rows(video.flip(1)), _sorted_rows(right)) and not torch.equal(
            _sorted_rows(video), _sorted_rows(right)):
        raise Wrong(f"{of_clip} the axes are exchanged: they are {', '.join(AXES)}, in this order.")
    if torch.equal(_sorted_rows(video), _sorted_rows(right)):
        raise Wrong(f"{of_clip} every place occurs, but in another order: columns count fastest, then rows, then "
                    f"frames.")
    at = int((video != right).any(dim=1).nonzero()[0])
    raise Wrong(f"{of_clip} video token {at} is at {_place(video[at])}; it must be at {_place(right[at])}. Each clip "
                f"has a grid of its own.")


def _sorted_rows(places: Tensor) -> Tensor:
    return torch.tensor(sorted(places.tolist()))


def _place(row: Tensor) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in zip(AXES, row.tolist()))
