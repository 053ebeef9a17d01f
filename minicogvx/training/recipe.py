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
from minicogvx.training.transformer import TransformerStage, train_transformer
from minicogvx.training.vae import VAEStage, train_vae
from minicogvx.vae import CausalVAE
from minicogvx.vae.losses import VAELossConfig

_L1_KL = VAELossConfig(lpips_weight=0.0, kl_weight=0.06, gan_weight=0.0)
_L1_LPIPS_KL = replace(_L1_KL, lpips_weight=0.1, lpips_net="alex", lpips_frames=2)


@dataclass(frozen=True)
class Recipe:
    """How one preset is trained from nothing on the shapes world."""

    preset: str
    vae: tuple[VAEStage, ...]
    clips: int  # encoded once for diffusion training
    two_objects: float  # share of them that show two objects
    transformer: TransformerStage


RECIPES = {recipe.preset: recipe for recipe in (
    Recipe("micro",
           vae=(VAEStage(steps=1600, batch_size=4, num_frames=9, height=32, width=32, loss=_L1_KL),),
           clips=8192, two_objects=0.0, transformer=TransformerStage(steps=1400)),
    Recipe("toy",
           vae=(VAEStage(steps=1000, batch_size=16, num_frames=9, height=32, width=32, loss=_L1_KL),
                VAEStage(steps=380, batch_size=8, num_frames=17, height=64, width=64, loss=_L1_LPIPS_KL, muon_lr=0.01),
                VAEStage(steps=280, batch_size=8, num_frames=17, height=64, width=64, loss=_L1_LPIPS_KL, muon_lr=0.01)),
           clips=12000, two_objects=0.1, transformer=TransformerStage(steps=2600, batch_size=32)),
)}


def train_recipe(recipe: Recipe, out: Path, seed: int = 0, dtype: torch.dtype = torch.bfloat16,
                 progress: bool = True) -> Pipeline:
    """Trains VAE, then transformer and text encoder, and writes `out/pipeline`, a diffusers folder in 16 bits.

    The finished VAE is kept in `out/vae.safetensors`; a second call with the same `out` goes on from there.
    `out/minutes.json` holds the minutes of each part.
    """
    sizes = preset(recipe.preset)
    out.mkdir(parents=True, exist_ok=True)
    minutes = _Minutes(out / "minutes.json")
    if (out / "vae.safetensors").exists():
        vae = CausalVAE(sizes.vae)
        load_into(vae, read_tensors(out / "vae.safetensors"), out / "vae.safetensors")
    else:
        vae = train_vae(sizes.vae, recipe.vae, seed, dtype, out / "vae.jsonl", progress)
        write_tensors(out / "vae.safetensors", vae.state_dict())
        minutes.write("vae")
    # The posteriors of these small VAEs are wide in the channels that draw the object; the mean is what can be learnt.
    latents = replace(encode_world(vae, recipe.clips, seed + 1, sizes.num_frames, recipe.two_objects, dtype, progress=progress),
                      sample=False)
    minutes.write("encoding")
    transformer, text = train_transformer(sizes, latents, recipe.transformer, seed, dtype, out / "transformer.jsonl",
                                          progress)
    minutes.write("transformer")
    pipe = Pipeline(vae, transformer, sizes.schedule, text, fps=sizes.fps)
    diffusers.export(pipe, out / "pipeline", dtype=torch.float16, overwrite=True)
    return pipe


class _Minutes:
    """Minutes since the last part ended, by part, in one JSON file."""

    def __init__(self, path: Path):
        self.path, self.start = path, time.perf_counter()
        self.parts = json.loads(path.read_text()) if path.exists() else {}

    def write(self, part: str) -> None:
        now = time.perf_counter()
        self.parts[part], self.start = round((now - self.start) / 60, 2), now
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(self.parts))
        os.replace(beside, self.path)
