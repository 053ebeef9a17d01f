"""The training recipes of the models in this repository: every setting of the shipped model's training."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from minicogvx.compat import choose_dtype
from minicogvx.data.clips.world import LatentSet, encode_world
from minicogvx.data.world.scenes import sample_scenes
from minicogvx.engine.config import compare, fields, surroundings
from minicogvx.engine.limits import check_limits
from minicogvx.engine.ranks import Ranks, from_first
from minicogvx.engine.run_folder import forget_failed_start
from minicogvx.engine.sharding import broadcast_weights
from minicogvx.files import check_writable, locked
from minicogvx.interop.safetensors_files import load_into, read_json, read_tensors, write_json, write_tensors
from minicogvx.pipeline import Pipeline
from minicogvx.presets import Preset, preset
from minicogvx.ranges import check_number
from minicogvx.training.dry_run import check_transformer, check_vae
from minicogvx.training.loop import Keep
from minicogvx.training.samples import Samples
from minicogvx.training.transformer import TransformerStage, TransformerTraining, check_captions, train_transformer
from minicogvx.training.vae import VAEStage, train_vae
from minicogvx.vae import CausalVAE
from minicogvx.vae.losses import VAELossConfig

_LOGS = "vae_[0-9]*.jsonl", "transformer.jsonl"
# For L2 beside L1 see VAELossConfig.
_PIXELS = VAELossConfig(l2_weight=10.0, lpips_weight=0.0, kl_weight=0.1, gan_weight=0.0)
_PIXELS_LPIPS = replace(_PIXELS, lpips_weight=0.1, lpips_net="alex", lpips_frames=1)


@dataclass(frozen=True)
class Recipe:
    """How one preset is trained from scratch on the shapes world."""

    preset: str
    vae: tuple[VAEStage, ...]
    clips: int  # encoded once for diffusion training
    two_objects: float  # share of them with two objects
    transformer: TransformerTraining
    guidance_scale: float = 3.0  # what the model samples with by default; 3 obeyed more training captions than 6
    sizes: Preset | None = None  # None: those of the preset

    def __post_init__(self):
        if not self.vae:
            raise ValueError("vae is (); it must hold at least one stage")
        check_limits(self, {"clips": "1 or more", "two_objects": "from 0 to 1"})
        check_number("guidance_scale", self.guidance_scale, whole=False)

    def check(self, seed: int = 0, here: Ranks = Ranks()) -> None:
        """Raises ValueError, before any work, for settings at which `train_recipe` would fail late."""
        sizes = self.sizes or preset(self.preset)
        check_vae(sizes.vae, self.vae, here)
        check_transformer(sizes, self.transformer, here)
        if self.clips < here.world_size:
            raise ValueError(f"clips is {self.clips}; it must be at least {here.world_size}, the number of ranks")
        check_captions(sizes, self.transformer, sample_scenes(self.clips, seed + 1, "train", self.two_objects))


RECIPES = {recipe.preset: recipe for recipe in (
    Recipe("micro",
           # Two fifths of the time for the VAE: with 1800 steps and a KL of 0.5 it kept 78 instead of 87 % readable,
           # and the whole model (with 1400 steps on clips here, 1600 there) obeyed 53 instead of 58 to 62 %. A quarter
           # more steps of both, in float32: 90 instead of 83 % readable, 85 instead of 56 % obeyed (one seed each).
           vae=(VAEStage(steps=2400, batch_size=4, num_frames=9, height=32, width=32, loss=_PIXELS),
                VAEStage(steps=400, batch_size=4, num_frames=9, height=32, width=32, loss=_PIXELS_LPIPS,
                         muon_lr=0.01)),
           clips=8192, two_objects=0.0,
           # Images in batches of 64: with 32 and the same steps the words for colours were not learnt.
           transformer=TransformerTraining((TransformerStage(steps=550, batch_size=64, latent_frames=1),
                                            TransformerStage(steps=2150)),
                                           caption_style="short", ema_decay=0.995, alignment_weight=1.5,
                                           alignment_kinds=("shape", "motion", "colour"))),
    Recipe("toy",
           vae=(VAEStage(steps=700, batch_size=8, num_frames=9, height=32, width=32, loss=_PIXELS),
                VAEStage(steps=700, batch_size=4, num_frames=9, height=64, width=64, loss=_PIXELS),
                VAEStage(steps=500, batch_size=4, num_frames=17, height=64, width=64, loss=_PIXELS_LPIPS,
                         muon_lr=0.01)),
           clips=12000, two_objects=0.05,
           transformer=TransformerTraining((TransformerStage(steps=1200, batch_size=64, latent_frames=1),
                                            TransformerStage(steps=6000)))),
)}


def train_recipe(recipe: Recipe, out: Path, seed: int = 0, dtype: torch.dtype | None = None,
                 keep: Keep = Keep(), here: Ranks = Ranks()) -> Pipeline:
    """Trains VAE, then transformer and text encoder, and writes `out/pipeline`, a diffusers folder in 16 bits.

    `out/recipe.json` holds every number of the recipe, `out/minutes.json` the minutes of each part. A second call with
    the same `out` resumes the first: the finished VAE is in `out/vae.safetensors`, the state of an unfinished part in
    `out/checkpoints`. Several ranks share the work, and the first writes. Raises ValueError if `out` was begun with
    other settings (overrides.HOW may change), holds such files without being of a run, or is in use, for sizes that do
    not fit each other, for a batch that the ranks do not divide, for fewer clips than ranks, and for captions that may
    be too long; OSError if `out` cannot be written.
    """
    recipe.check(seed, here)
    dtype = choose_dtype(here.device, dtype, training=True)
    if not here.first:
        return _train(recipe, out, seed, dtype, keep, here)
    check_writable(out, folder=True)
    with locked(out):
        forget_failed_start(out / "recipe.json", _LOGS, ("minutes.json", "samples"))
        own = preset(recipe.preset)
        write_down = compare(out / "recipe.json", replace(recipe, sizes=recipe.sizes or own), seed,
                             surroundings(here, dtype), fields(own, "sizes"))
        return _train(recipe, out, seed, dtype, replace(keep, on_resume=write_down), here)


def _train(recipe: Recipe, out: Path, seed: int, dtype: torch.dtype, keep: Keep, here: Ranks) -> Pipeline:
    sizes = recipe.sizes or preset(recipe.preset)
    keep, minutes = replace(keep, folder=out), _Minutes(out / "minutes.json", here)
    vae = finished_vae(recipe, sizes, out, seed, dtype, keep, here)
    minutes.write("vae")
    latents = encode_stages(vae, recipe, sizes, seed, dtype, keep.progress, here)
    minutes.write("encoding")
    samples = Samples(vae, sizes, recipe.guidance_scale, out / "samples")
    transformer, text = train_transformer(sizes, latents, recipe.transformer, seed, dtype, keep, samples, here)
    minutes.write("transformer")
    pipe = Pipeline(vae, transformer, sizes.schedule, text, fps=sizes.fps, guidance_scale=recipe.guidance_scale)
    if here.first:
        pipe.save(out / "pipeline", dtype=torch.float16, overwrite=True, allow_departures=True)
    return pipe


def finished_vae(recipe: Recipe, sizes: Preset, out: Path, seed: int, dtype: torch.dtype, keep: Keep,
                 here: Ranks = Ranks()) -> CausalVAE:
    """The VAE in `out/vae.safetensors`, or one trained now and written there."""
    file = out / "vae.safetensors"
    if not from_first(file.exists(), here):
        often = replace(keep, checkpoint_every=min(keep.checkpoint_every, 200), log_every=min(keep.log_every, 10))
        vae = train_vae(sizes.vae, recipe.vae, seed, dtype, often, here)
        if here.first:
            write_tensors(file, vae.state_dict())
        return vae
    vae = CausalVAE(sizes.vae)
    if here.first:  # the file may be on its disk only
        load_into(vae, read_tensors(file), file)
    broadcast_weights(vae.to(here.device), here)
    return vae


def encode_stages(vae: CausalVAE, recipe: Recipe, sizes: Preset, seed: int, dtype: torch.dtype, progress: bool,
                  here: Ranks = Ranks()) -> list[LatentSet]:
    """The clips of each stage; stages of one size share them, and all sizes show the same scenes."""
    num_frames, height, _ = sizes.video_size
    sets, wanted = {}, [(stage.num_frames or num_frames, stage.side or height) for stage in recipe.transformer.stages]
    for frames, side in dict.fromkeys(wanted):
        latents = encode_world(vae, recipe.clips, seed + 1, frames, recipe.two_objects, dtype, side=side,
                               progress=progress, here=here)
        # The posteriors' means: their noise would only make it harder for a small model.
        sets[frames, side] = replace(latents, sample=False)
    return [sets[size] for size in wanted]


class _Minutes:
    """Minutes of each part in one JSON file, summed over resumed runs."""

    def __init__(self, path: Path, here: Ranks):
        self.path, self.here, self.start = path, here, time.perf_counter()
        self.parts = read_json(path) if path.exists() else {}

    def write(self, part: str) -> None:
        now = time.perf_counter()
        self.parts[part], self.start = round(self.parts.get(part, 0) + (now - self.start) / 60, 2), now
        if self.here.first:
            write_json(self.path, self.parts)
