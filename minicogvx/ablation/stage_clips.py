"""The clips of the study of stages: the same scenes at every size, four fifths of them out of focus.

The published last stage trains on the best fifth of the data, which removes flaws such as subtitles and watermarks
(paper 3.2). Here the flaw is blur: it can be measured without labels, in generated clips as well. It is 2 pixels at
64x64, because the shipped VAE blurs slightly itself and hides less: relative to sharp clips, the `steepness` of clips
from its decoder is 0.57 for sharp ones, 0.54 for 1.2 pixels, 0.51 for 2 (32 clips each). A faint watermark or a drift
of the brightness would hardly survive the VAE, which has learnt plain backgrounds of four colours.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from minicogvx.ablation.studies import StagesStudy
from minicogvx.compat import choose_dtype
from minicogvx.data.clips.clips import Clips, Selected
from minicogvx.data.clips.world import STORED, WorldClips
from minicogvx.data.world.drawing import render_batch
from minicogvx.data.world.features import scene_features
from minicogvx.data.world.scenes import Scene, sample_scenes
from minicogvx.vae import CausalVAE

BEST = 0.2  # share of the clips in the last stage (paper, Table 5)
SCENES_SEED = 6_000_011  # of the captions for measuring adherence
_STEEPEST = 0.005  # share of a frame's pixels, about the outline of the smallest shape


@dataclass(frozen=True)
class StageClips:
    """The training and test clips of a study of stages."""

    train: dict[tuple[int, int], Clips]  # by (frames, side); the same scenes in each
    scenes: list[Scene]  # of the training clips
    held_back: Clips  # full size, with the training clips' share of blurred ones
    held_back_sharp: Clips  # the same scenes, all in focus
    flawed: Bool[Tensor, " n"]  # which training clips are out of focus; for statistics only, not for training
    score: Float[Tensor, " n"]  # `steepness` of each training clip at the full size, from its pixels alone

    def best(self) -> Int[Tensor, " k"]:
        """The fifth of the training clips with the highest score, in their original order."""
        return self.score.topk(max(1, round(BEST * len(self.score)))).indices.sort().values


def encode_clips(vae: CausalVAE, study: StagesStudy, sizes: Sequence[tuple[int, int]],
                 dtype: torch.dtype | None = None, progress: bool = True) -> StageClips:
    """Renders the study's scenes at each of `sizes` (frames, side) and at the full one, blurs and encodes them.

    Training uses the posteriors' means, as for the shipped models.
    """
    scenes = sample_scenes(study.clips, study.clips_seed, "train", two_objects=0.0)
    flawed = choose_flawed(study.clips, study.flawed, study.clips_seed)
    cut, train, score = study.clips - study.held_back, {}, None
    for size in dict.fromkeys((study.full, *sizes)):
        scores, whole = encode_blurred(vae, scenes, flawed, *size, study.blur, dtype, progress)
        train[size] = Selected(whole, range(cut))
        if size == study.full:
            score, held_back = scores[:cut], Selected(whole, range(cut, study.clips))
    in_focus = torch.zeros(study.held_back, dtype=torch.bool)
    _, sharp = encode_blurred(vae, scenes[cut:], in_focus, *study.full, study.blur, dtype, progress=False)
    return StageClips(train, scenes[:cut], held_back, sharp, flawed[:cut], score)


@torch.no_grad()
def encode_blurred(vae: CausalVAE, scenes: list[Scene], flawed: Bool[Tensor, " n"], num_frames: int, side: int,
                   blur: float, dtype: torch.dtype | None = None, progress: bool = True,
                   batch_size: int = 16) -> tuple[Float[Tensor, " n"], WorldClips]:
    """The `steepness` of each clip and its latents; those in `flawed` are blurred by `blur` frame sides."""
    scores, means, features, device = [], [], [], next(vae.parameters()).device
    dtype = choose_dtype(device, dtype)
    ratio, cells = vae.config.temporal_compression_ratio, side // vae.config.spatial_compression_ratio
    for i in tqdm(range(0, len(scenes), batch_size), desc=f"encoding {side}x{side}, {num_frames} frames",
                  disable=not progress, mininterval=5):
        part, soft = scenes[i:i + batch_size], flawed[i:i + batch_size]
        clips = render_batch(part, num_frames, side, side)
        clips[soft] = out_of_focus(clips[soft], blur * side)
        scores.append(steepness(clips))
        video = (rearrange(clips, "b t h w c -> b c t h w") * 2 - 1).to(device, dtype)
        means.append(vae.encode(video).mean.to(STORED).cpu())
        features.append(scene_features(part, num_frames, cells, ratio).to(STORED))
    mean = torch.cat(means)
    return torch.cat(scores), WorldClips(scenes, mean, torch.zeros_like(mean), vae.config.scaling_factor,
                                         torch.cat(features), side)


def choose_flawed(count: int, share: float, seed: int) -> Bool[Tensor, " n"]:
    """Which of `count` clips have the flaw: exactly the rounded share, determined by `seed`."""
    flawed = torch.zeros(count, dtype=torch.bool)
    flawed[torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:round(share * count)]] = True
    return flawed


def out_of_focus(clips: Float[Tensor, "b t h w 3"], sigma: float) -> Float[Tensor, "b t h w 3"]:
    """Every frame blurred by a Gaussian of `sigma` pixels, with replicated borders."""
    if not len(clips):
        return clips
    reach = max(1, math.ceil(3 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    planes = rearrange(clips, "b t h w c -> (b t c) 1 h w")
    planes = F.conv2d(F.pad(planes, (reach, reach, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    planes = F.conv2d(F.pad(planes, (0, 0, reach, reach), mode="replicate"), kernel.view(1, 1, -1, 1))
    return rearrange(planes, "(b t c) 1 h w -> b t h w c", b=len(clips), c=3)


def steepness(clips: Float[Tensor, "b t h w 3"]) -> Float[Tensor, " b"]:
    """Steepness of edges: the largest changes of colour from pixel to pixel over the largest contrast.

    On average 0.93 for clips of 64x64 as drawn, 0.32 after a blur of 1.2 pixels, 0.19 after 2, and 0 for a single
    colour. It needs no labels: contrast is relative to each frame's median colour. Both are means over half a per cent
    of a frame's pixels, the steepest and those of most contrast: unlike a mean over all pixels it does not depend on
    the length of outlines, and unlike second differences it is not sensitive to faint noise. How the authors ranked
    their clips was not published.
    """
    frames = rearrange(clips.float(), "b t h w c -> (b t) h w c")
    middle = frames.flatten(1, 2).median(dim=1).values[:, None, None, :]
    contrast = (frames - middle).square().sum(-1).sqrt()
    down, right = frames[:, 1:, :-1] - frames[:, :-1, :-1], frames[:, :-1, 1:] - frames[:, :-1, :-1]
    change = (down.square() + right.square()).sum(-1).sqrt()
    most = max(1, round(_STEEPEST * contrast[0].numel()))
    change, contrast = (x.flatten(1).topk(most).values.mean(1) for x in (change, contrast))
    return rearrange(change / contrast.clamp(min=0.02), "(b t) -> b t", b=len(clips)).mean(1)


def unseen_scenes(shown: Sequence[Scene], count: int, seed: int = SCENES_SEED) -> list[Scene]:
    """Scenes of the training split whose shape, colour, motion and background, together, are in none of `shown`.

    Raises ValueError if the clips show nearly every possible combination.
    """
    seen, found, words = {_combination(scene) for scene in shown}, [], random.Random(seed)
    for _ in range(100):
        drawn = sample_scenes(count, words.randrange(2**31), "train", two_objects=0.0)
        found += [scene for scene in drawn if _combination(scene) not in seen]
        if len(found) >= count:
            return found[:count]
    raise ValueError(f"only {len(found)} captions of {count} are in none of {len(shown)} clips; take fewer clips")


def _combination(scene: Scene) -> tuple[str, ...]:
    return scene.background, *(word for thing in scene.objects for word in (thing.shape, thing.colour, thing.motion))
