"""What every packing of clips must be, whichever exercise asks for it: each clip whole, in one pack, none too full."""

from collections import Counter
from collections.abc import Callable, Sequence

from minicogvx.course.exercises.exercise import Wrong


def whole_packs(what: str, pack: Callable[[list[int]], Sequence[Sequence[int]]], tokens: list[int],
                capacity: int) -> list[list[int]]:
    """The packs, lists of clip numbers, that `pack` makes of clips with so many tokens; `what` names the call.

    Raises Wrong for what is no packing, or if `pack` changes its list.
    """
    given = list(tokens)
    got = pack(given)
    if given != tokens:
        raise Wrong(f"{what} changes its list of token counts; work on a copy.")
    if got is None:
        raise Wrong(f"{what} is None; does your function end in return?")
    packs = [list(each) for each in got]
    inside = Counter(i for each in packs for i in each)
    if odd := [i for i in inside if type(i) is not int or not 0 <= i < len(tokens)]:
        raise Wrong(f"{what} holds {odd[0]!r}; a pack is a list of clip numbers, 0 to {len(tokens) - 1}, not of token "
                    f"counts.")
    if lost := [i for i in range(len(tokens)) if not inside[i]]:
        raise Wrong(f"{what} leaves out {len(lost)} clips, such as clip {lost[0]}. The last packs need not be full.")
    if twice := [i for i, times in inside.items() if times > 1]:
        raise Wrong(f"{what} holds clip {twice[0]} {inside[twice[0]]} times; each clip belongs to one pack, whole.")
    for number, each in enumerate(packs):
        if not each:
            raise Wrong(f"{what}: pack {number} (counted from 0) is empty.")
        if (filled := sum(tokens[i] for i in each)) > capacity:
            raise Wrong(f"{what}: pack {number} (counted from 0) holds {filled:,} tokens.")
    return packs
