"""Models in transformers folders that write captions: picture to text, text to text. Only safetensors are opened."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoProcessor,
    AutoTokenizer,
)

from minicogvx.compat import choose_device, choose_dtype
from minicogvx.room import is_out_of_memory

_NEW_TOKENS = 256


class VisionLanguageModel:
    """A picture in 0..1 -> its description by the model in `folder`: BLIP, LLaVA, Qwen-VL and similar.

    `prompt` is the question for chat models; pure captioners, such as BLIP, get none. Decoding is greedy, so that a
    clip always gets the same caption; the published captioner samples at temperature 0.1. `device` and `dtype`: None is
    the choice of `compat`. Raises FileNotFoundError for a missing folder, ValueError for one that does not open, for a
    missing device and for a dtype in which it cannot compute.
    """

    def __init__(self, folder: str | Path, prompt: str, max_new_tokens: int = _NEW_TOKENS, device: str | None = None,
                 dtype: torch.dtype | None = None):
        self.model = _open_computing(AutoModelForImageTextToText, folder, device, dtype)
        self.processor = open_model(AutoProcessor, folder)
        self.prompt, self.max_new_tokens = prompt, max_new_tokens

    @torch.no_grad()
    def __call__(self, frame: Float[Tensor, "h w 3"]) -> str:
        """The model's words about a frame in 0..1."""
        picture = Image.fromarray((frame.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image", "image": picture}, {"type": "text", "text": self.prompt}]
            inputs = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=True, add_generation_prompt=True, return_dict=True,
                return_tensors="pt")
        else:
            inputs = self.processor(images=picture, return_tensors="pt")
        inputs = inputs.to(self.model.device, self.model.dtype)  # casts only the pixels
        return _answer(self.model, self.processor, inputs, self.max_new_tokens)


class LanguageModel:
    """A prompt -> the answer of the causal or encoder-decoder model in `folder`, decoded greedily.

    `device`, `dtype` and errors as in `VisionLanguageModel`.
    """

    def __init__(self, folder: str | Path, max_new_tokens: int = _NEW_TOKENS, device: str | None = None,
                 dtype: torch.dtype | None = None):
        kind = AutoModelForSeq2SeqLM if open_model(AutoConfig, folder).is_encoder_decoder else AutoModelForCausalLM
        self.model = _open_computing(kind, folder, device, dtype)
        self.tokenizer = open_model(AutoTokenizer, folder)
        self.max_new_tokens = max_new_tokens

    @torch.no_grad()
    def __call__(self, prompt: str) -> str:
        """The model's answer to `prompt`."""
        if self.tokenizer.chat_template:
            inputs = self.tokenizer.apply_chat_template([{"role": "user", "content": prompt}], return_dict=True,
                                                        add_generation_prompt=True, return_tensors="pt")
        else:
            inputs = self.tokenizer(prompt, return_tensors="pt")
        return _answer(self.model, self.tokenizer, inputs.to(self.model.device), self.max_new_tokens)


def open_model(kind: type, folder: str | Path, **options) -> Any:
    """Opens `folder` as a `kind` of transformers; nothing is downloaded.

    Raises FileNotFoundError for a missing folder, and ValueError, in one sentence, for one that does not open.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; it must hold a model as transformers saves it")
    try:
        return kind.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # whatever transformers raises: dozens of kinds, over many lines
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder} does not open as {kind.__name__.removeprefix('Auto')}: {reason}") from error


def _open_computing(kind: type, folder: str | Path, device: str | None, dtype: torch.dtype | None) -> Any:
    device = choose_device(device)
    return open_model(kind, folder, use_safetensors=True, dtype=choose_dtype(device, dtype)).to(device).eval()


def _answer(model, decoder, inputs, max_new_tokens: int) -> str:
    tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    asked = inputs.get("input_ids")
    if asked is not None and not model.config.is_encoder_decoder and tokens.shape[1] > asked.shape[1] \
            and torch.equal(tokens[:, :asked.shape[1]], asked):
        tokens = tokens[:, asked.shape[1]:]  # causal models repeat the question
    return decoder.batch_decode(tokens, skip_special_tokens=True)[0].strip()
