"""The oracle's reading of a clip as a sentence, and whether it is what the caption asked for."""

from jaxtyping import Float
from torch import Tensor

from minicogvx.data.world.captions import parse_caption
from minicogvx.data.world.oracle import Reading, matches, read

MOST_SIDE = 256  # pixels of the shorter side; models of the shapes world make smaller clips


def oracle_sentence(caption: str, video: Float[Tensor, "t h w 3"]) -> str | None:
    """Such as "the oracle sees a red circle that moves right on black: as asked"; `video` is in 0..1.

    None if the caption names no object of the shapes world, or the clip is no moving clip of a model of it.
    """
    wanted = parse_caption(caption)
    if not wanted.objects or len(video) < 2 or min(video.shape[1:3]) > MOST_SIDE:
        return None
    seen = read(video)
    wrong = [part for part, right in matches(seen, wanted).items() if not right and part != "all"]
    verdict = f"not as asked ({', '.join(wrong)})" if wrong else "as asked"
    return f"the oracle sees {reading_phrase(seen)}: {verdict}"


def reading_phrase(seen: Reading) -> str:
    """Such as "a red circle that moves right on black", with question marks for what is ambiguous."""
    things = [f"a {thing.colour or '?'} {thing.shape or '?'} that {thing.motion or '?'}" for thing in seen.objects]
    return f"{' and '.join(things) or 'no object'} on {seen.background or '?'}"
