"""The one small model of the tests: `TINY` has its sizes, the functions build its parts, and compare what was saved.

Sizes that could be mistaken for one another differ where that costs nothing; a test that needs another field sets it
with `replace`. The fixtures `tiny_folder` (saved, to be read only), `films` and `clips` are in tests/conftest.py.
"""

from dataclasses import replace
from pathlib import Path

import torch

from minicogvx.data.world.captions import vocabulary
from minicogvx.data.world.drawing import render_batch
from minicogvx.data.world.scenes import sample_scenes
from minicogvx.interop.diffusers_folder import read_folder
from minicogvx.media import write_mp4
from minicogvx.pipeline import Pipeline
from minicogvx.presets import Preset, ScheduleConfig, TextConfig, TransformerConfig, VAEConfig
from minicogvx.text import TextEncoder
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.vae import CausalVAE

# Videos of 9 frames of 32 x 32 pixels, which are latents 4 x 3 x 8 x 8; captions of up to 32 tokens.
TINY = Preset(
    "tiny",
    VAEConfig(latent_channels=4, block_out_channels=(4, 4, 8), layers_per_block=1, norm_num_groups=2,
              scaling_factor=0.9, sample_height=32, sample_width=32, first_frame="start"),
    TransformerConfig(num_attention_heads=2, attention_head_dim=16, num_layers=2, in_channels=4, out_channels=4,
                      text_embed_dim=16, max_text_seq_length=32, time_embed_dim=8, sample_height=8, sample_width=8,
                      sample_frames=9, position_scaling="extrapolate"),
    ScheduleConfig(),
    TextConfig(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=128))
CAPTIONS = ("a red circle moves right", "a blue star grows", "a green bar stays still")


def tiny_vae(seed: int = 0, **fields) -> CausalVAE:
    """Frozen; `fields` replace those of `TINY.vae`."""
    torch.manual_seed(seed)
    return CausalVAE(replace(TINY.vae, **fields)).eval().requires_grad_(False)


def tiny_transformer(seed: int = 0, **fields) -> ExpertTransformer:
    """With every weight moved by noise, so that no gate is closed; `fields` replace those of `TINY.transformer`."""
    torch.manual_seed(seed)
    model = ExpertTransformer(replace(TINY.transformer, **fields)).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def tiny_text(seed: int = 0) -> TextEncoder:
    """Knows the words of the shapes world."""
    torch.manual_seed(seed)
    text = TextEncoder.from_config(TINY.text, vocabulary(), TINY.transformer.max_text_seq_length)
    text.encoder.eval()
    return text


def tiny_pipe(seed: int = 0, size: int = 32, schedule: ScheduleConfig = TINY.schedule, vae: dict | None = None,
              transformer: dict | None = None, **options) -> Pipeline:
    """The whole model, for videos of `size` x `size` pixels.

    `vae` and `transformer` replace fields of its configs, `options` are those of `Pipeline`.
    """
    pixels, latents = ({"sample_height": n, "sample_width": n} for n in (size, size // 4))
    return Pipeline(tiny_vae(seed, **pixels | (vae or {})).requires_grad_(True),
                    tiny_transformer(seed, **latents | (transformer or {})), schedule, tiny_text(seed), **options)


def load_pipeline(folder: Path, **options) -> Pipeline:
    """The pipeline in a folder, in the number format of its files."""
    return Pipeline(*read_folder(folder, **options))


def weights(pipe: Pipeline) -> dict[str, torch.Tensor]:
    """Every tensor of a pipeline by network and name."""
    parts = {"vae": pipe.vae, "transformer": pipe.transformer, "text": pipe.text.encoder}
    return {f"{part}.{name}": tensor for part, module in parts.items() for name, tensor in module.state_dict().items()}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    """Whether the same names have the same numbers in the same format."""
    return ours.keys() == theirs.keys() and all(
        ours[key].dtype == theirs[key].dtype and torch.equal(ours[key], theirs[key]) for key in ours)


def write_films(folder: Path) -> Path:
    """Three videos of 9 frames and their captions, in `folder`, which it returns."""
    for i, clip in enumerate(render_batch(sample_scenes(3, 0, "train", 0.0), 9, 32, 32)):
        write_mp4(folder / f"{i}.mp4", clip, 8)
        (folder / f"{i}.txt").write_text(CAPTIONS[i])
    return folder
