"""The oracle's reading of a clip as a sentence, and whether it is what the caption asked for."""

from jaxtyping import Float
from torch import Tensor

from minicogvx.data.world.captions import parse_caption, unjudged
from minicogvx.data.world.oracle import ObjectReading, Reading, matches, read
from minicogvx.visible import listed

MOST_SIDE = 256  # pixels of the shorter side; models of the shapes world make smaller clips


def oracle_sentence(caption: str, video: Float[Tensor, "t h w 3"]) -> str | None:
    """Such as "the oracle sees a red circle that moves right on black: as asked"; `video` is in 0..1.

    What the caption says beyond colours, shapes, motions and a background is named as not judged. None if the caption
    names no object of the shapes world, or the clip is no moving clip of a model of it.
    """
    wanted = parse_caption(caption)
    if not wanted.objects or len(video) < 2 or min(video.shape[1:3]) > MOST_SIDE:
        return None
    seen = read(video)
    wrong = [part for part, right in matches(seen, wanted).items() if not right and part != "all"]
    verdict = f"not as asked ({', '.join(wrong)})" if wrong else "as asked"
    if left := unjudged(caption):
        verdict += f", as far as it can judge; it cannot judge {', '.join(repr(words) for words in left)}"
    return f"the oracle sees {reading_phrase(seen)}: {verdict}"


def reading_phrase(seen: Reading) -> str:
    """Such as "a red circle that moves right on black"; what is ambiguous is called unclear."""
    return (f"{' and '.join(map(_thing, seen.objects)) or 'no object'} on "
            f"{seen.background or 'an unclear background'}")


def _thing(thing: ObjectReading) -> str:
    named = " ".join(filter(None, (thing.colour, thing.shape or "thing")))
    moving = f" that {thing.motion}" if thing.motion else ""
    unclear = [part for part in ("colour", "shape", "motion") if getattr(thing, part) is None]
    article = "an" if named[0] in "aeiou" else "a"
    return f"{article} {named}{moving}{f' ({listed(unclear)} unclear)' if unclear else ''}"
