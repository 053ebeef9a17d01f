"""Judges a model of the study of stages: does it obey captions, and how sharp are its clips?"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.ablation.stage_clips import SCENES_SEED, out_of_focus, steepness, unseen_scenes
from minicogvx.ablation.studies import StagesStudy
from minicogvx.ablation.vaes import round_trip
from minicogvx.data.world.drawing import render_batch
from minicogvx.data.world.oracle import matches, read
from minicogvx.data.world.scenes import Scene
from minicogvx.evaluation.adherence import measure_adherence
from minicogvx.pipeline import Pipeline
from minicogvx.presets import ScheduleConfig
from minicogvx.text import TextEncoder
from minicogvx.transformer.model import ExpertTransformer

_REFERENCES = 64  # true clips, for comparison with generated ones
_AT_ONCE = 16


class Judge:
    """Measures models on captions of the training split that no clip of `shown` had.

    `references` are the same measures of true clips: the "sharpness", relative to sharp ones, of blurred ones, and of
    sharp and blurred ones after a round trip through the VAE; and the share in which the oracle reads everything
    correctly ("obeyed").
    """

    def __init__(self, study: StagesStudy, shown: Sequence[Scene], pipe: Pipeline, schedule: ScheduleConfig):
        self.study, self.pipe, self.schedule = study, pipe, schedule
        frames, side = study.full
        for name, (config, _) in study.variants.items():
            pixels = config.sample_height * pipe.vae.config.spatial_compression_ratio
            if (config.sample_frames, pixels) != (frames, side):
                raise ValueError(f"the transformer of {name!r} is for {pixels}x{pixels}, {config.sample_frames} "
                                 f"frames; its last stage is of {side}x{side}, {frames} frames, and must be the same")
        self.scenes = unseen_scenes(shown, study.measured)
        self.steepness = torch.cat([steepness(clips) for clips in self._true(self.scenes)]).mean().item()
        self.references = self._references(self.scenes[:_REFERENCES])

    def __call__(self, model: ExpertTransformer, text: TextEncoder) -> tuple[dict[str, float], int, float]:
        """Share of captions obeyed, by property; their number; sharpness relative to sharp true clips."""
        pipe = _Watched(self.pipe.vae, model, self.schedule, text, self.pipe.fps,
                        guidance_scale=self.pipe.guidance_scale)
        result = measure_adherence(pipe, self.scenes, SCENES_SEED, progress=False)
        return result.share, result.clips, torch.cat(pipe.seen).mean().item() / self.steepness

    def _true(self, scenes: list[Scene]) -> list[Float[Tensor, "_ t h w 3"]]:
        frames, side = self.study.full
        return [render_batch(scenes[i:i + _AT_ONCE], frames, side, side) for i in range(0, len(scenes), _AT_ONCE)]

    def _references(self, scenes: list[Scene]) -> dict[str, dict[str, float]]:
        vae, side = self.pipe.vae, self.study.full[1]
        dtype = next(vae.parameters()).dtype
        sharp = self._true(scenes)
        blurred = [out_of_focus(clips, self.study.blur * side) for clips in sharp]
        kinds = {"blurred": blurred,
                 "sharp, through the VAE": [round_trip(vae, clips, dtype)[0] for clips in sharp],
                 "blurred, through the VAE": [round_trip(vae, clips, dtype)[0] for clips in blurred]}
        return {name: _figures(torch.cat(clips), torch.cat(sharp), scenes) for name, clips in kinds.items()}


def _figures(clips: Float[Tensor, "b t h w 3"], sharp: Float[Tensor, "b t h w 3"],
             scenes: list[Scene]) -> dict[str, float]:
    obeyed = sum(matches(read(clip), scene)["all"] for clip, scene in zip(clips, scenes)) / len(scenes)
    return {"sharpness": (steepness(clips).mean() / steepness(sharp).mean()).item(), "obeyed": obeyed}


class _Watched(Pipeline):
    """Records the steepness of every clip that it decodes, so that clips are generated once for both measures."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.seen: list[Tensor] = []

    def decode(self, latents):
        """Pixels, as the pipeline decodes them."""
        clips = super().decode(latents)
        self.seen.append(steepness(clips))
        return clips
