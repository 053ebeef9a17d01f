"""The recipes of the models that this repository trains: every number of the shipped model's training, in one place."""

import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from minicogvx.interop import diffusers
from minicogvx.interop.safetensors_files import load_into, read_tensors, write_tensors
from minicogvx.pipeline import Pipeline
from minicogvx.presets import preset
from minicogvx.training.latents import encode_world
from minicogvx.training.transformer import TransformerStage, TransformerTraining, train_transformer
from minicogvx.training.vae import VAEStage, train_vae
from minicogvx.vae import CausalVAE
from minicogvx.vae.losses import VAELossConfig

# L2 beside L1: see VAELossConfig.
_PIXELS = VAELossConfig(l2_weight=10.0, lpips_weight=0.0, kl_weight=0.1, gan_weight=0.0)
_PIXELS_LPIPS = replace(_PIXELS, lpips_weight=0.1, lpips_net="alex", lpips_frames=1)


@dataclass(frozen=True)
class Recipe:
    """How one preset is trained from nothing on the shapes world."""

    preset: str
    vae: tuple[VAEStage, ...]
    clips: int  # encoded once for diffusion training
    two_objects: float  # share of them that show two objects
    transformer: TransformerTraining
    guidance_scale: float = 3.0  # what the model samples with by default; 3 obeyed more training captions than 6


RECIPES = {recipe.preset: recipe for recipe in (
    Recipe("micro",
           vae=(VAEStage(steps=1900, batch_size=4, num_frames=9, height=32, width=32, loss=_PIXELS),
                VAEStage(steps=400, batch_size=4, num_frames=9, height=32, width=32, loss=_PIXELS_LPIPS,
                         muon_lr=0.01)),
           clips=8192, two_objects=0.0,
           # Images in batches of 64: with 32 and the same steps the words for colours were not learnt.
           transformer=TransformerTraining((TransformerStage(steps=450, batch_size=64, latent_frames=1),
                                            TransformerStage(steps=1250)),
                                           caption_style="short", alignment_weight=1.5,
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


def train_recipe(recipe: Recipe, out: Path, seed: int = 0, dtype: torch.dtype = torch.bfloat16,
                 progress: bool = True) -> Pipeline:
    """Trains VAE, then transformer and text encoder, and writes `out/pipeline`, a diffusers folder in 16 bits.

    `out/minutes.json` holds the minutes of each part. A second call with the same `out` goes on where the first was cut
    off: the finished VAE is in `out/vae.safetensors`, the state of a part under way in `out/checkpoints`.
    """
    sizes = preset(recipe.preset)
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    minutes = _Minutes(out / "minutes.json")
    if (out / "vae.safetensors").exists():
        vae = CausalVAE(sizes.vae)
        load_into(vae, read_tensors(out / "vae.safetensors"), out / "vae.safetensors")
    else:
        vae = train_vae(sizes.vae, recipe.vae, seed, dtype, out / "vae.jsonl", progress, out / "checkpoints")
        write_tensors(out / "vae.safetensors", vae.state_dict())
        minutes.write("vae")
    latents = encode_world(vae, recipe.clips, seed + 1, sizes.num_frames, recipe.two_objects, dtype, progress=progress)
    # The posteriors' means: a small model has enough to fit without their noise.
    latents = replace(latents, sample=False)
    minutes.write("encoding")
    transformer, text = train_transformer(sizes, latents, recipe.transformer, seed, dtype, out / "transformer.jsonl",
                                          progress, out / "checkpoints" / "transformer.safetensors")
    minutes.write("transformer")
    pipe = Pipeline(vae, transformer, sizes.schedule, text, fps=sizes.fps, guidance_scale=recipe.guidance_scale)
    diffusers.export(pipe, out / "pipeline", dtype=torch.float16, overwrite=True)
    return pipe


class _Minutes:
    """Minutes of each part in one JSON file; a part that was done again counts again."""

    def __init__(self, path: Path):
        self.path, self.start = path, time.perf_counter()
        self.parts = json.loads(path.read_text()) if path.exists() else {}

    def write(self, part: str) -> None:
        now = time.perf_counter()
        self.parts[part], self.start = round(self.parts.get(part, 0) + (now - self.start) / 60, 2), now
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(self.parts))
        os.replace(beside, self.path)
