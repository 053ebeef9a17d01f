"""Stages: progressive training is a list of them (paper 3.2). Small and short clips first, then larger and longer ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from minicogvx.engine.limits import check_limits


@dataclass(frozen=True)
class Stage:
    """A part of a training in which clips have one size and batches one number of clips.

    Weights, optimizer and moving average go on from stage to stage; the average of a VAE begins anew in each.

    `text_slots`: captions are padded, and padding takes part in the attention of text encoder and transformer, as
    published. With fewer slots a word has other features and a larger share of the attention. So a model is sampled
    with the slots of its last stage, which are its own `max_text_seq_length`; only stages before it may have fewer,
    for captions of the shapes world that are short enough. Samples and the swap gain use the model's own meanwhile.
    """

    steps: int
    batch_size: int = 32  # clips of all ranks together; with `pack`, sequences
    num_frames: int | None = None  # of the longest clips; None: the model's own, of a VAE 17
    height: int | None = None  # pixels; None: the model's own
    width: int | None = None
    images: float = 0.0  # share of the clips of which only the first latent frame is taken: a picture
    pack: int = 0  # tokens of a sequence, above 0: clips of all sizes share sequences, frame pack (paper 3.1)
    best: float = 1.0  # share of the clips, those with the highest score, as in the published last stage
    learning_rate_factor: float = 1.0  # times the learning rate of the training
    text_slots: int | None = None  # tokens of a caption, padding included; None: the model's own
    routed: float = 0.0  # share of the video tokens that skip the middle blocks; see routing.py

    def __post_init__(self):
        check_limits(self, {"steps batch_size num_frames height width text_slots": "1 or more", "images": "from 0 to 1",
                            "pack learning_rate_factor": "0 or more", "routed": "from 0 to below 1"})
        if not 0 < self.best <= 1:
            raise ValueError(f"best is {self.best}; it must be above 0 and at most 1")
        if self.pack and (self.text_slots or self.routed):
            raise ValueError(f"pack is {self.pack}, text_slots {self.text_slots} and routed {self.routed}; with packs "
                             f"they must be None and 0")

    def size(self, own: tuple[int, int, int]) -> tuple[int, int, int]:
        """Frames, height and width in pixels of the longest clips; `own`: of a model's videos."""
        return self.num_frames or own[0], self.height or own[1], self.width or own[2]


def stage_of(stages: Sequence[Stage], step: int) -> tuple[int, int]:
    """The number of the stage to which `step` of the whole training belongs, and the step's number within it."""
    first = 0
    for number, end in enumerate(accumulate(stage.steps for stage in stages)):
        if step < end:
            return number, step - first
        first = end
    raise ValueError(f"step is {step}; the stages have {first}")
