"""Exercises of notebook 08 about who sees whom: masks, messages over several attentions, and what heads look at."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from minicogvx.course.exercises.exercise import Wrong, expect_shape


def token_name(token: int, places: int, text: int = 0) -> str:
    """Such as "the token at frame 0, place 3", or "text token 1"."""
    if token < text:
        return f"text token {token}"
    return f"the token at frame {(token - text) // places}, place {(token - text) % places}"


# ---- 8.2 may_see


def allowed_pairs(kind: str, text: int, frames: int, places: int) -> Bool[Tensor, "n n"]:
    """Row i: which tokens query i may see.

    "cross": words ask only themselves. "causal": no frame learns of a later one, through words or otherwise.
    """
    allowed = torch.ones(text + frames * places, text + frames * places, dtype=torch.bool)
    if kind == "cross":
        allowed[:text] = False
        allowed[:text, :text] = torch.eye(text, dtype=torch.bool)
    else:
        frame = torch.arange(frames * places) // places
        allowed[:text, text:] = False
        allowed[text:, text:] = frame[:, None] >= frame
    return allowed


def check_may_see(may_see) -> None:
    """Boolean, no empty row, and then every pair; a way round by the words is named."""
    for kind in ("cross", "causal"):
        for text, frames, places in ((2, 3, 2), (3, 2, 3)):
            what, wanted = f'may_see("{kind}", {text}, {frames}, {places})', allowed_pairs(kind, text, frames, places)
            got = may_see(kind, text, frames, places)
            expect_shape(what, got, tuple(wanted.shape))
            if got.dtype != torch.bool:
                raise Wrong(f"{what} has dtype {got.dtype}; it must be torch.bool, True where a pair is allowed.")
            if not got.any(dim=1).all():
                row = int((~got.any(dim=1)).nonzero()[0])
                raise Wrong(f"{what}: {token_name(row, places, text)} sees nothing, not even itself. Softmax would "
                            f"divide 0 by 0.")
            if kind == "causal" and got[:text, text:].any():
                raise Wrong(f"{what}: words may see the video, and every frame sees the words. So in two blocks frame "
                            f"0 hears of frame {frames - 1}: the words hand it on.")
            _check_pairs(what, got, wanted, text, places)


def _check_pairs(what: str, got: Tensor, wanted: Tensor, text: int, places: int) -> None:
    if torch.equal(got, wanted):
        return
    if torch.equal(got, wanted.T):
        raise Wrong(f"{what}: rows and columns are exchanged; row i says what query i may see.")
    i, j = (got != wanted).nonzero()[0].tolist()
    raise Wrong(f"{what}: {token_name(i, places, text)} {'must' if wanted[i, j] else 'must not'} see "
                f"{'itself' if i == j else token_name(j, places, text)}.")


# ---- 8.4 reachable


def seen_in(kind: str, frames: int, places: int, text: int) -> Bool[Tensor, "n n"]:
    """Row i: which tokens token i sees in one attention of a kind."""
    n, token = text + frames * places, torch.arange(frames * places)
    sees = torch.ones(n, n, dtype=torch.bool)  # "full"; and in "space" all that has to do with text
    if kind in ("time", "first"):
        sees = torch.eye(n, dtype=torch.bool)
    if kind == "space":
        sees[text:, text:] = (token // places)[:, None] == token // places
    elif kind == "time":
        sees[text:, text:] = (token % places)[:, None] == token % places
    elif kind == "first":
        sees[text:, text:text + places] = True
    return sees


def tokens_heard_of(frames: int, places: int, text: int, kinds: Sequence[str]) -> Bool[Tensor, "n n"]:
    """Row i: of which tokens token i holds information after attentions of these kinds, each with its residual."""
    heard = torch.eye(text + frames * places, dtype=torch.bool)
    for kind in kinds:
        heard = seen_in(kind, frames, places, text).float() @ heard.float() > 0
    return heard


def check_reachable(reachable) -> None:
    """Nothing without attention; one attention; chains, where the middleman and the order count."""
    for frames, places, text in ((3, 2, 0), (2, 3, 2)):
        for kinds in ((), ("full",), ("space",), ("time",), ("first",), ("space", "time"), ("space", "space"),
                      ("time", "time"), ("first", "time"), ("time", "first"), ("time", "space", "time")):
            what = f"reachable({frames}, {places}, {text}, {list(kinds)})"
            wanted = tokens_heard_of(frames, places, text, kinds)
            got = reachable(frames, places, text, list(kinds))
            expect_shape(what, got, tuple(wanted.shape))
            if got.dtype != torch.bool:
                raise Wrong(f"{what} has dtype {got.dtype}; it must be torch.bool. Whether, not how often.")
            if torch.equal(got, wanted):
                continue
            if len(set(kinds)) > 1 and torch.equal(got, tokens_heard_of(frames, places, text, kinds[::-1])):
                raise Wrong(f"{what}: that is the answer for {list(kinds[::-1])}. The first attention comes first: its "
                            f"messages are what the next one hands on.")
            if torch.equal(got, wanted.T):
                raise Wrong(f"{what}: rows and columns are exchanged; row i is what token i has heard of.")
            i, j = (got != wanted).nonzero()[0].tolist()
            here, there = token_name(i, places, text), token_name(j, places, text)
            verb = "must have heard of" if wanted[i, j] else "cannot have heard of"
            raise Wrong(f"{what}: {here} {verb} {'itself' if i == j else there}{_because(i, j, text, kinds, verb)}.")


def _because(i: int, j: int, text: int, kinds: Sequence[str], verb: str) -> str:
    if i == j:
        return "; the residual keeps what was there"
    if len(set(kinds)) > 1:
        return f", {'not even ' * verb.startswith('cannot')}by way of a third token"
    if set(kinds) == {"time"}:
        return "; in time a token sees its own place only, and text itself only"
    if set(kinds) == {"first"}:
        return "; in first a token sees frame 0 and itself, and text itself only"
    return "; in space text sees everything, and is seen by all" if kinds == ("space",) and min(i, j) < text else ""


# ---- 8.5 following_head


def most_telling(seen: Float[Tensor, "layers heads b n"], shape: Bool[Tensor, "b n"],
                 background: Bool[Tensor, "b n"]) -> tuple[int, int]:
    """The block and head, from 0, whose mean weight on shape tokens exceeds that on background tokens by most."""
    contrast = seen[..., shape].mean(dim=-1) - seen[..., background].mean(dim=-1)  # layers heads
    layer, head = divmod(int(contrast.argmax()), contrast.shape[1])
    return layer, head


def check_following_head(following_head) -> None:
    """A planted head among decoys: one that looks at everything, one at the shape in a single clip, a faint one."""
    shape, background = torch.zeros(2, 4, 30, dtype=torch.bool).unbind()
    shape[:, 3:5], background[:, 10:28] = True, True  # far more background than shape
    for layer, head in ((2, 1), (0, 3), (3, 0)):
        others = [(i, j) for i in range(4) for j in range(4) if (i, j) != (layer, head)]
        seen = 0.1 * torch.rand(4, 4, 4, 30)
        seen[layer, head][shape], seen[layer, head][background] = 3.0, 0.8
        everything, one_clip, faint, absent, whole = others[2], others[5], others[9], others[11], others[13]
        seen[everything] = 4.0
        seen[one_clip][0][shape[0]] = 8.0
        seen[faint], seen[faint][shape] = 0.001, 0.05
        seen[absent][background] = 6.0
        seen[whole][~background & ~shape] = 9.0  # its own place, for example
        _check_found(following_head(seen.clone(), shape.clone(), background.clone()), (layer, head), {
            everything: "That head looks at everything, the shape included.",
            one_clip: "That head looks at the shape in one clip only; compare means over all clips, not sums.",
            faint: "That head's weights are tiny; take the difference of the two means, not their ratio.",
            absent: "That head looks at the background: shape less background, not the other way round.",
            whole: "That head looks at tokens that are neither; count the marked ones alone."})


def _check_found(got, wanted: tuple[int, int], decoys: dict[tuple[int, int], str]) -> None:
    what = "following_head(seen, shape, background) of 4 blocks with 4 heads"
    if not (isinstance(got, (tuple, list)) and len(got) == 2 and all(type(one) is int for one in got)):
        raise Wrong(f"{what} is {got!r}; it must be two whole numbers, the block and the head, both from 0.")
    if tuple(got) == wanted:
        return
    if tuple(got) == wanted[::-1]:
        raise Wrong(f"{what} is {tuple(got)}; it must be {wanted}: first the block, then the head.")
    why = decoys.get(tuple(got), "Block and head are those of the largest difference of the two means.")
    raise Wrong(f"{what} is {tuple(got)}; it must be {wanted}. {why}")
