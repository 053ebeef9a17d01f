"""Frame packs as bars, to turn: how far ahead the packing looks, and how much room a sequence has."""

from collections.abc import Sequence

from minicogvx.course import show
from minicogvx.course.explore import explore_figure
from minicogvx.data.clips.packs import Pack, frame_packs

LOOK_AHEADS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ROWS = 12  # packs that are drawn, evenly spaced over the epoch


def explore_packs(tokens: Sequence[int], rooms: Sequence[int], kinds: Sequence[str] | None = None,
                  look_aheads: Sequence[int] = LOOK_AHEADS, seed: int = 0) -> None:
    """Two sliders, look-ahead and room in tokens: some of `frame_packs`' packs as bars, and how full all of them are.

    tokens: of each clip. kinds: a word for each clip, by which the bars are coloured; None: all alike. The static
    picture has the middle value of each slider. Raises ValueError, before anything is drawn, for no clips, another
    number of kinds than of clips, more than six kinds, or a clip that does not fit into the smallest room.
    """
    kinds = ["clip"] * len(tokens) if kinds is None else list(kinds)
    if not tokens or len(kinds) != len(tokens):
        raise ValueError(f"there are {len(tokens)} clips and {len(kinds)} kinds; give one for each, of at least one")
    if len(set(kinds)) >= len(show.PALETTE):
        raise ValueError(f"there are {len(set(kinds))} kinds of clips; at most {len(show.PALETTE) - 1} can be told "
                         f"apart by colour")
    epochs = {(ahead, room): list(frame_packs(tokens, room, seed, ahead)) for room in rooms for ahead in look_aheads}

    def draw(look_ahead: int, room: int) -> tuple:
        curve = [filled(epochs[ahead, room]) for ahead in look_aheads]
        packs = epochs[look_ahead, room]
        words = (f"With a look-ahead of {look_ahead} and room for {room:,} tokens, {len(tokens):,} clips fill "
                 f"{len(packs):,} packs to {filled(packs):.1%}. Left, {min(ROWS, len(packs))} of the packs as bars of "
                 f"clips, grey where empty; right, the share filled over the look-ahead.")
        return _figure(packs, tokens, kinds, list(look_aheads), curve, look_ahead), words

    explore_figure(draw, "Frame packs", look_ahead=list(look_aheads), room=list(rooms))


def filled(packs: Sequence[Pack]) -> float:
    """The share of all packs that holds tokens of clips, 0..1."""
    return sum(pack.tokens for pack in packs) / sum(pack.sequence_length for pack in packs)


def _figure(packs: list[Pack], tokens: Sequence[int], kinds: list[str], look_aheads: list[int], curve: list[float],
            look_ahead: int):
    figure, ((bars, share),) = show.new_figure(1, 2, 8.5, 3.2)
    names = list(dict.fromkeys(sorted(kinds)))
    colours = dict(zip(names, show.PALETTE))
    every = max(1, len(packs) // ROWS)
    for row, pack in enumerate(packs[::every][:ROWS]):
        left = 0
        for i in pack.indices:
            bars.barh(row, tokens[i], left=left, color=colours[kinds[i]], edgecolor="white", linewidth=0.5)
            left += tokens[i]
        bars.barh(row, pack.sequence_length - left, left=left, color="#dddddd")
    if len(names) > 1:
        for name in names:
            bars.barh(0, 0, color=colours[name], label=name)
        bars.legend(fontsize=8, ncols=len(names), loc="lower center", bbox_to_anchor=(0.5, 1))
    bars.set(xlabel="tokens", yticks=[], ylabel=f"{min(ROWS, len(packs))} of {len(packs):,} packs",
             xlim=(0, packs[0].sequence_length))
    bars.invert_yaxis()
    bars.grid(False)
    share.semilogx(look_aheads, [100 * each for each in curve], "o-", markersize=4, color="#777777")
    share.plot(look_ahead, 100 * curve[look_aheads.index(look_ahead)], "o", markersize=9, color=show.PALETTE[3])
    share.set(xlabel="clips that wait (look-ahead)", ylabel="filled (%)", ylim=(min(80, 100 * min(curve) - 2), 101))
    share.set_xticks(look_aheads, [str(each) for each in look_aheads], fontsize=8)
    share.minorticks_off()
    return figure
