"""Sample clips during training, always of the same captions and noise, so that the pictures can be compared."""

import random
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from minicogvx.advice import Advice
from minicogvx.data.clips.clips import Clips, pixel_size
from minicogvx.data.world.captions import evaluation_caption
from minicogvx.data.world.drawing import render_batch
from minicogvx.data.world.oracle import matches, read
from minicogvx.data.world.scenes import sample_scenes
from minicogvx.files import written_whole
from minicogvx.media import write_mp4, write_strip
from minicogvx.pipeline import Pipeline
from minicogvx.training.start import with_transformer
from minicogvx.training.transformer import TransformerTask

SAMPLE_SEED = 4_000_037  # of the captions; the final figure is measured on others
STEPS = 25


class WorldSamples:
    """A watcher: writes `step_00000500.mp4`, `.png` and, with the captions, `.txt`; measures the share that obeys them.

    From an image, the first frame of each caption's scene is given.
    """

    def __init__(self, parts: Pipeline, folder: Path | None, every: int, clips: int = 16, shown: int = 4):
        """`parts`: with the VAE and the text encoder of the training. `folder`: None where another rank writes."""
        self.parts, self.folder, self.every, self.shown = parts, folder, every, shown
        self.scenes, words = sample_scenes(clips, SAMPLE_SEED, "train", 0.0), random.Random(SAMPLE_SEED)
        self.captions = [evaluation_caption(scene, words) for scene in self.scenes]

    @torch.no_grad()
    def __call__(self, step: int, task: TransformerTask) -> dict[str, float]:
        """The figure "obeyed": the share of clips in which the oracle finds everything right."""
        images = None
        if task.training.image_to_video:
            images = render_batch(self.scenes, 1, *self.parts.video_size[1:])[:, 0]
        with task.averaged_weights():
            pipe = with_transformer(self.parts, task.model)
            clips = pipe.decode(pipe.sample(self.captions, images, num_inference_steps=STEPS)).cpu()
        rows = rearrange(clips[:self.shown], "b t h w c -> t (b h) w c")  # one row of the picture per clip
        beside = rearrange(clips[:self.shown], "b t h w c -> t h (b w) c")
        _write(self.folder, f"step_{step:08d}", beside, rows, pipe.fps, self.captions[:self.shown])
        obeyed = sum(matches(read(clip), scene)["all"] for clip, scene in zip(clips, self.scenes))
        return {"obeyed": obeyed / len(clips)}


class FilmSamples:
    """A watcher: writes `step_00000500_0.mp4`, `.png` and, with the caption, `.txt`, and so on, for a few clips."""

    def __init__(self, parts: Pipeline, clips: Clips, folder: Path | None, every: int, shown: int = 4):
        """As `WorldSamples`, at the sizes of the clips; from an image, the first frame of the clip is given."""
        self.parts, self.clips, self.folder, self.every = parts, clips, folder, every
        self.numbers = [i for i in range(len(clips)) if clips.latent_size(i)[0] > 1][:shown]

    @torch.no_grad()
    def __call__(self, step: int, task: TransformerTask) -> dict[str, float]:
        """Nothing to log: what films show, no oracle reads."""
        pipe = with_transformer(self.parts, task.model)
        for number, i in enumerate(self.numbers):
            frames, height, width = pixel_size(self.clips, i, pipe.vae.config)
            image = None
            if task.training.image_to_video:
                image = rearrange(self.clips.first_pixels(i) / 2 + 0.5, "c 1 h w -> h w c")
            caption = self.clips.caption(i, random.Random(0))
            with task.averaged_weights(), warnings.catch_warnings():
                warnings.simplefilter("ignore", Advice)  # about unknown words: told when training began
                clip = pipe(caption, image, num_frames=frames, height=height, width=width, num_inference_steps=STEPS)
            _write(self.folder, f"step_{step:08d}_{number}", clip, clip, pipe.fps, [caption])
        return {}


def _write(folder: Path | None, name: str, video: Float[Tensor, "t h w 3"], strip: Float[Tensor, "t h2 w2 3"], fps: int,
           captions: Sequence[str]) -> None:
    """`captions`: of the rows of `strip`, from above."""
    if folder:
        video = video.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)  # 64 pixels are too small to watch
        write_mp4(folder / f"{name}.mp4", video, fps)
        write_strip(folder / f"{name}.png", strip, min_side=96 * len(captions))
        with written_whole(folder / f"{name}.txt") as part:
            part.write_text("\n".join(captions) + "\n", encoding="utf-8")
