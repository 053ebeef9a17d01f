"""The result of a fine-tuning run: a LoRA file or a whole pipeline folder, and a command to try it."""

import shlex
from pathlib import Path

from PIL import Image

from minicogvx.data.clips.cache import CachedClips
from minicogvx.engine.ranks import Ranks
from minicogvx.engine.sharding import whole_weights
from minicogvx.files import written_whole
from minicogvx.pipeline import Pipeline
from minicogvx.training.finetune import FineTuning
from minicogvx.training.lora import FILE, lora_tensors, trained_alpha, write_lora
from minicogvx.transformer.model import ExpertTransformer


def write_result(pipe: Pipeline, model: ExpertTransformer, tuning: FineTuning, clips: CachedClips, out: Path,
                 model_name: str, ranks: Ranks) -> str:
    """All ranks call it; the first writes to `out`. Returns the path of the result and a command that uses it.

    `model_name`: the value of `--model`, which a LoRA file must be used with.
    """
    weights = whole_weights(model, ranks)
    if not ranks.first:
        return ""
    if tuning.lora_rank:
        made = write_lora(out / FILE, lora_tensors(model, weights), tuning.lora_rank, trained_alpha(model))
        options = ["--model", model_name, "--lora", str(made)]
    else:
        trained = ExpertTransformer(model.config).to(next(pipe.vae.parameters()).dtype)
        trained.load_state_dict(weights)
        fps = max(1, round(clips.fps))
        whole = Pipeline(pipe.vae, trained, pipe.schedule_config, pipe.text, fps, pipe.unconditional,
                         pipe.guidance_scale)
        made = whole.save(out / "pipeline", overwrite=True, allow_departures=True)
        options = ["--model", str(out / "pipeline")]
    number = next((i for i in range(len(clips)) if clips.bucket(i)[0] > 1), 0)
    if tuning.image_to_video:
        options += ["--image", str(_write_picture(clips, number, out / "first_frame.png"))]
    words = ["minicogvx", "generate", clips.captions[number] or "...", *options]
    return f"{made}: {shlex.join(words)}"


def _write_picture(clips: CachedClips, number: int, path: Path) -> Path:
    """Writes the first frame of a clip, as an image to try the model with."""
    pixels = ((clips.first_pixels([number])[0, :, 0].permute(1, 2, 0) + 1) * 127.5).round().byte()
    with written_whole(path) as part:
        Image.fromarray(pixels.numpy()).save(part)
    return path
