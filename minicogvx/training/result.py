"""The result of a training: a LoRA file or a whole pipeline folder, and a command to try it."""

import random
import shlex
import sys
from collections import Counter
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.distributed.tensor import DTensor
from tqdm import tqdm
from transformers import T5EncoderModel

from minicogvx.data.clips.clips import Clips, Selected, pixel_size, pixel_sizes
from minicogvx.engine.ranks import Ranks
from minicogvx.files import written_whole
from minicogvx.pipeline import Pipeline
from minicogvx.text import TextEncoder
from minicogvx.training.lora import FILE, lora_tensors, trained_alpha, write_lora
from minicogvx.training.start import with_transformer
from minicogvx.training.transformer import TransformerTask
from minicogvx.transformer.model import ExpertTransformer

PICTURE = "first_frame.png"


def learnt_weights(task: TransformerTask, ranks: Ranks) -> dict[str, dict[str, Tensor]]:
    """What was learnt, whole and in float32 on the CPU of rank 0, by module and name; all ranks call it."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in task.result().items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        module, _, rest = name.partition(".")
        if ranks.first:
            found.setdefault(module, {})[rest] = whole.cpu().clone()
    return found


def write_adapters(out: Path, task: TransformerTask, step: int, ranks: Ranks) -> None:
    """Writes what adapters learnt in `step` steps, during training; all ranks call it. A full disk does not end it."""
    learnt = learnt_weights(task, ranks)
    try:
        if ranks.first:
            _write_lora(out, task, learnt, step)
    except OSError as error:
        tqdm.write(f"{error}; the file before it is kept", file=sys.stderr)


def _write_lora(out: Path, task: TransformerTask, learnt: dict[str, dict[str, Tensor]], step: int) -> Path:
    tensors = lora_tensors(task.model, learnt["transformer"])
    return write_lora(out / FILE, tensors, task.training.lora_rank, trained_alpha(task.model), step)


def write_result(out: Path, model: str, parts: Pipeline, task: TransformerTask, clips: Clips, ranks: Ranks) -> str:
    """All ranks call it; the first writes to `out`. Returns lines: the path of the result and a command that uses it.

    `parts`: the pipeline as training began. `model`: the name of the model that adapters were trained for.
    """
    learnt = learnt_weights(task, ranks)
    if not ranks.first:
        return ""
    if task.training.lora_rank:
        made = _write_lora(out, task, learnt, task.training.steps)
        options = ["--model", model, "--lora", str(made)]
    else:
        dtype = torch.float16 if task.trains_text else None  # None: that of the parts
        made = trained_pipeline(parts, task, learnt).save(out / "pipeline", dtype=dtype, overwrite=True,
                                                          allow_departures=True)
        options = ["--model", str(out / "pipeline")]
    number, sized = usual_size(clips, parts)
    options += sized
    if task.training.image_to_video:
        options += ["--image", str(write_picture(clips, number, out / PICTURE))]
    caption = clips.caption(number, random.Random(0), task.training.caption_style)
    return f"{made}\nTry it:\n{shlex.join(['minicogvx', 'generate', caption or '...', *options])}"


def usual_size(clips: Clips, parts: Pipeline) -> tuple[int, list[str]]:
    """The number of a clip, and options with which `generate` makes videos of its size, where the model's own differs.

    Its height and width are the most frequent ones; the frames in the options are those of the longest clips.
    """
    videos = [i for i in range(len(clips)) if clips.latent_size(i)[0] > 1] or range(len(clips))
    sizes = pixel_sizes(Selected(clips, videos), parts.vae.config)
    usual, own = Counter(), parts.video_size
    for (_, height, width), count in sizes.items():
        usual[height, width] += count
    (size, _), = usual.most_common(1)
    number = next(i for i in videos if pixel_size(clips, i, parts.vae.config)[1:] == size)
    frames = max(frames for frames, _, _ in sizes)
    options = ["--height", str(size[0]), "--width", str(size[1])] if size != own[1:] else []
    return number, options + (["--num-frames", str(frames)] if frames not in (1, own[0]) else [])


@torch.no_grad()
def trained_pipeline(parts: Pipeline, task: TransformerTask, learnt: dict[str, dict[str, Tensor]]) -> Pipeline:
    """The pipeline with what was learnt; a frozen part is that of `parts`."""
    dtype = torch.float32 if task.trains_text else next(parts.vae.parameters()).dtype
    model = ExpertTransformer(task.model.config).to(dtype)
    frozen = {name: tensor for name, tensor in task.model.state_dict().items() if name not in learnt["transformer"]}
    model.load_state_dict(frozen | learnt["transformer"])  # frozen: a table of positions that is a buffer, as in 5b-i2v
    pipe = with_transformer(parts, model.eval())
    if task.trains_text:
        encoder = T5EncoderModel(parts.text.encoder.config)
        encoder.load_state_dict(learnt["text"], strict=False)  # a shared weight has two names
        pipe.text = TextEncoder(parts.text.tokenizer, encoder.requires_grad_(False).eval(), parts.text.max_length)
    return pipe


def write_picture(clips: Clips, number: int, path: Path) -> Path:
    """Writes the first frame of a clip, as an image to try the model with."""
    pixels = ((clips.first_pixels(number)[:, 0].permute(1, 2, 0) + 1) * 127.5).round().byte()
    with written_whole(path) as part:
        Image.fromarray(pixels.numpy()).save(part)
    return path
