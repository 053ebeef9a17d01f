"""The study of schedules: what the same number of tokens is best spent on, in which order (paper 3.2, Table 5)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from minicogvx.ablation.questions import QUESTIONS

Schedule = tuple[tuple[str, int | float], ...]  # of each stage: the kind of clips, and its share of the tokens


class Kind(NamedTuple):
    """What a stage shows."""

    frames: int
    side: int  # height and width in pixels


KINDS_OF_CLIPS = {"thumbnails": Kind(9, 32), "pictures": Kind(1, 64), "clips": Kind(9, 64)}


@dataclass(frozen=True)
class SchedulesStudy:
    """A small transformer of the nano world, trained for the same number of tokens by each schedule.

    Every step has as many clips as fit into `tokens`, captions included, so all schedules have the same number of
    steps, of nearly equal work, on any machine. Raises ValueError for shares that do not add up to 1, or an unknown
    kind of clips.
    """

    name: str
    question: str
    variants: Mapping[str, Schedule]
    steps: int = 320
    every: int = 40
    tokens: int = 1088  # of a step: 16 clips of 48 tokens, each with a caption of 20
    asked: int = 32  # captions at the end; 0: none
    dtype: ClassVar[str] = "float32"  # by default: as for all of the nano world

    def __post_init__(self):
        for name, schedule in self.variants.items():
            for kind, share in schedule:
                if kind not in KINDS_OF_CLIPS:
                    raise ValueError(f"{name!r} has a stage of {kind!r}; the kinds are {', '.join(KINDS_OF_CLIPS)}")
                if not 0 < share <= 1:
                    raise ValueError(f"{name!r} has a stage with a share of {share}; it must be above 0, at most 1")
            if abs(sum(share for _, share in schedule) - 1) > 1e-9:
                raise ValueError(f"the shares of {name!r} add up to {sum(share for _, share in schedule):g}; they must "
                                 f"add up to 1")


SCHEDULES = SchedulesStudy("schedules", QUESTIONS["schedules"], {
    "clips only": (("clips", 1.0),),
    "half thumbnails": (("thumbnails", 0.5), ("clips", 0.5)),
    "half pictures": (("pictures", 0.5), ("clips", 0.5)),
    "thumbnails, pictures, clips": (("thumbnails", 0.25), ("pictures", 0.25), ("clips", 0.5)),
    "thumbnails, then a burst": (("thumbnails", 0.875), ("clips", 0.125)),
})


def ends_of(schedule: Schedule, steps: int) -> list[int]:
    """The number of steps that are done at the end of each stage; the last is `steps`."""
    done, ends = 0.0, []
    for _, share in schedule:
        done += share
        ends.append(round(done * steps))
    return ends
