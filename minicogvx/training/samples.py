"""Sample clips during training, and the share that matches their captions."""

import random
from pathlib import Path

import torch
from einops import rearrange

from minicogvx.data.world.captions import evaluation_caption
from minicogvx.data.world.oracle import matches, read
from minicogvx.data.world.scenes import sample_scenes
from minicogvx.media import write_mp4, write_strip
from minicogvx.pipeline import Pipeline
from minicogvx.presets import Preset
from minicogvx.training.transformer import TransformerTask
from minicogvx.vae import CausalVAE

SAMPLE_SEED = 4_000_037  # of the captions; the final figure is measured on others


class Samples:
    """A watcher: writes `step_00000500.mp4` and `.png`, and measures adherence on the shapes world.

    Captions (of the training split) and noise are always the same, so that the pictures can be compared.
    """

    def __init__(self, vae: CausalVAE, preset: Preset, guidance_scale: float, folder: Path | None, every: int,
                 clips: int = 16, shown: int = 4):
        """`folder`: None where another rank writes."""
        self.vae, self.preset, self.guidance_scale, self.folder, self.shown = vae, preset, guidance_scale, folder, shown
        self.every = every
        self.scenes, words = sample_scenes(clips, SAMPLE_SEED, "train", 0.0), random.Random(SAMPLE_SEED)
        self.captions = [evaluation_caption(scene, words) for scene in self.scenes]

    @torch.no_grad()
    def __call__(self, step: int, task: TransformerTask) -> dict[str, float]:
        """The figure "obeyed": the share of clips in which the oracle finds everything right."""
        with task.averaged():
            pipe = Pipeline(self.vae, task.model, self.preset.schedule, task.text, fps=self.preset.fps,
                            guidance_scale=self.guidance_scale)
            clips = pipe.decode(pipe.sample(self.captions, num_inference_steps=25)).cpu()
        if self.folder:
            self._write(step, clips[:self.shown])
        obeyed = sum(matches(read(clip), scene)["all"] for clip, scene in zip(clips, self.scenes))
        return {"obeyed": obeyed / len(clips)}

    def _write(self, step: int, clips: torch.Tensor) -> None:
        rows = rearrange(clips, "b t h w c -> t (b h) w c")  # one row of the picture per clip
        beside = rearrange(clips, "b t h w c -> t h (b w) c")
        beside = beside.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)  # 64 pixels are too small to watch
        write_mp4(self.folder / f"step_{step:08d}.mp4", beside, self.preset.fps)
        write_strip(self.folder / f"step_{step:08d}.png", rows, min_side=96 * self.shown)
