"""Does a trained model obey captions? The loss on validation clips hardly shows whether it draws a star as a star."""

from collections.abc import Sequence

from minicogvx.ablation.stage_clips import SCENES_SEED, unseen_scenes
from minicogvx.data.world.scenes import Scene
from minicogvx.evaluation.adherence import measure_adherence
from minicogvx.pipeline import Pipeline
from minicogvx.text import TextEncoder
from minicogvx.transformer.model import ExpertTransformer

STEPS = 15  # of sampling; fewer than usual, and the same for every variant


class Obeyed:
    """Measures the share of captions that a model obeys; the captions, and the noise of each, are always the same.

    `pipe` gives the VAE, the schedule and the guidance scale. The captions are of the training split, of one object,
    and of combinations that no scene of `shown` has.
    """

    def __init__(self, pipe: Pipeline, shown: Sequence[Scene], captions: int):
        self.pipe, self.scenes = pipe, unseen_scenes(shown, captions)

    def __call__(self, model: ExpertTransformer, text: TextEncoder) -> dict[str, float]:
        """Shares, 0..1: of each property that the oracle reads as asked for, and of clips that are right in "all"."""
        made_by = Pipeline(self.pipe.vae, model, self.pipe.schedule_config, text, self.pipe.fps,
                           guidance_scale=self.pipe.guidance_scale)
        return measure_adherence(made_by, self.scenes, SCENES_SEED, STEPS, progress=False).share
