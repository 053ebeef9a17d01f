"""Tokenizer and T5 encoder in the folders of a diffusers pipeline, checked as strictly as the other networks.

`transformers` itself draws at random what a file lacks and passes over what it does not know.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import get_args, get_type_hints

import torch
from transformers import AutoTokenizer, T5Config, T5EncoderModel
from transformers.utils import logging

from minicogvx.interop.safetensors_files import (
    MAX_SHARD_BYTES,
    common_dtype,
    load_into,
    read_json,
    read_sharded,
    write_json,
    write_sharded,
)
from minicogvx.presets import TextConfig
from minicogvx.ranges import check_choice, check_number, shown
from minicogvx.room import is_out_of_memory
from minicogvx.text.encoder import T5_ALWAYS, TextEncoder, move_encoder

_NUMBERS = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "relative_attention_num_buckets",
            "relative_attention_max_distance", "layer_norm_epsilon")
_TABLES = ("shared.weight", "encoder.embed_tokens.weight")  # one tensor under two names


def read_text(folder: str | Path, max_length: int, dtype: torch.dtype | None = None) -> TextEncoder:
    """The text encoder in `folder/tokenizer` and `folder/text_encoder`.

    `dtype` None keeps the number format of the files. Raises what `open_encoder` and `open_tokenizer` raise.
    """
    folder = Path(folder)
    with _without_bars():
        encoder = open_encoder(folder / "text_encoder", dtype)
        tokenizer = open_tokenizer(folder / "tokenizer", encoder.config.vocab_size, max_length)
    return TextEncoder(tokenizer, encoder, max_length)


def write_text(text: TextEncoder, folder: str | Path, dtype: torch.dtype | None = None,
               max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Writes `folder/tokenizer` and `folder/text_encoder`; `dtype` None keeps the weights' number format."""
    place = Path(folder) / "text_encoder"
    tensors = {name: tensor for name, tensor in text.encoder.state_dict().items()
               if name != "encoder.embed_tokens.weight"}  # that is shared.weight
    write_sharded(place, tensors, "model", dtype, max_shard_bytes)
    text.encoder.config.save_pretrained(place)
    # transformers opens T5 in the format that its config names, diffusers its own networks in float32, unless both
    # are told the same: then all parts must come alike, whatever the files hold.
    write_json(place / "config.json", read_json(place / "config.json")
               | {"architectures": ["T5EncoderModel"], "dtype": "float32"})
    with _without_bars():
        text.tokenizer.save_pretrained(Path(folder) / "tokenizer")


def open_encoder(folder: Path, dtype: torch.dtype | None = None) -> T5EncoderModel:
    """The T5 encoder in `folder`, ready to encode; `dtype` None keeps the number format of the files.

    Raises FileNotFoundError or ValueError, one sentence, for a config that cannot be built and for a tensor that is
    missing, not known, of another shape or of whole numbers.
    """
    config = _t5_config(read_json(folder / "config.json"), str(folder / "config.json"))
    with torch.device("meta"):
        encoder = T5EncoderModel(config)
    tensors = read_sharded(folder, "model")
    tables = [tensors[name] for name in _TABLES if name in tensors]
    if len(tables) == 2 and not torch.equal(*tables):
        raise ValueError(f"{folder} has two different tables {' and '.join(_TABLES)}; T5 has one table of words")
    load_into(encoder, tensors | dict.fromkeys(_TABLES, tables[0]) if tables else tensors, folder)
    encoder.tie_weights()
    move_encoder(encoder, dtype or common_dtype(tensors))
    return encoder.eval()


def _t5_config(values: dict, origin: str) -> T5Config:
    """The config that a T5's config.json says, from the fields that change what its encoder computes."""
    defaults = T5Config()
    known = {name: values.get(name, getattr(defaults, name)) for name in (*_NUMBERS, "feed_forward_proj")}
    try:
        for name in _NUMBERS:
            check_number(name, known[name], whole=name != "layer_norm_epsilon")
        check_choice("feed_forward_proj", known["feed_forward_proj"],
                     get_args(get_type_hints(TextConfig)["feed_forward_proj"]))
        exact = known["relative_attention_num_buckets"] // 4  # distances with a bucket of their own, on each side
        if known["relative_attention_max_distance"] <= exact:
            raise ValueError(f"relative_attention_max_distance is {known['relative_attention_max_distance']}; with "
                             f"{known['relative_attention_num_buckets']} buckets it must be above {exact}")
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error
    config = T5Config(**known, **T5_ALWAYS)
    fixed = {"model_type": "t5", "is_decoder": False, "quantization_config": None, "dense_act_fn": config.dense_act_fn,
             "is_gated_act": config.is_gated_act}
    for name, only in fixed.items():
        if values.get(name, only) != only:
            raise ValueError(f"{origin} has {name}={shown(values[name])}; a T5 encoder like this must have {only!r}")
    return config


def open_tokenizer(folder: Path, vocab_size: int, max_length: int):
    """The tokenizer in `folder`, for an encoder that knows `vocab_size` words and reads `max_length` of them.

    Raises ValueError, one sentence, for one that does not open, cannot pad, or gives ids that the encoder lacks.
    """
    missing = [package for name, package in (("sentencepiece", "sentencepiece"), ("google.protobuf", "protobuf"))
               if not _is_installed(name)]
    if missing and (folder / "spiece.model").is_file() and not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder} holds its tokenizer as spiece.model, which needs the package {missing[0]}; install "
                         f"it with `pip install {' '.join(missing)}`")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        rows = tokenizer(["a red circle", ""], padding="max_length", max_length=max_length, truncation=False).input_ids
    except BaseException as error:  # whatever transformers raises: dozens of kinds, over many lines
        panic = type(error).__name__ == "PanicException"  # of the tokenizers library, and no Exception
        if not (isinstance(error, Exception) or panic) or is_out_of_memory(error):
            raise
        raise ValueError(f"the tokenizer in {folder} does not open: {' '.join(str(error).split())[:200]}") from error
    _check_ids(tokenizer, rows, vocab_size, folder)
    return tokenizer


def _check_ids(tokenizer, rows: list[list[int]], vocab_size: int, folder: Path) -> None:
    """Raises ValueError for an id beyond the encoder's table: of a word, or one that is added to captions (`rows`)."""
    words = {number: word for word, number in tokenizer.get_vocab().items()}
    if not words:
        raise ValueError(f"the tokenizer in {folder} has no words; it must have one at least")
    highest = max(chain(words, *rows))
    if highest >= vocab_size:
        name = shown(words[highest]) if highest in words else "a special token"
        raise ValueError(f"the tokenizer in {folder} gives {name} the id {highest}; the text encoder beside it has "
                         f"vocab_size={vocab_size}, so ids must be from 0 to {vocab_size - 1}")


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


@contextmanager
def _without_bars() -> Iterator[None]:
    """transformers reports loading with bars of its own; a learner needs one bar at a time."""
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()
