"""Fingerprints: short hashes by which films, captions and models are recognised."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

_PEEK = 2**20  # bytes read at both ends of a file


def digest(values: dict) -> str:
    """16 hexadecimal digits for a JSON object, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def number(**values) -> int:
    """`digest` as an integer of 63 bits, which a tensor can hold."""
    return int(digest(values), 16) >> 1


def file_fingerprint(path: Path) -> str:
    """A hash of a file's length and of its first and last mebibyte: equal for a copy, not for an edited video."""
    digest = hashlib.sha256(str(path.stat().st_size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_PEEK))
        file.seek(max(0, path.stat().st_size - _PEEK))
        digest.update(file.read(_PEEK))
    return digest.hexdigest()[:16]


def model_facts(vae: nn.Module, text) -> dict:
    """What identifies a VAE and a text encoder, whether their weights are held in float32 or in bfloat16.

    `text` is empty for None.
    """
    return {"vae": f"{module_fingerprint(vae)} {replace(vae.config, scaling_factor=1.0)}",
            "scaling_factor": vae.config.scaling_factor,
            "text": "" if text is None else f"{module_fingerprint(text.encoder)} {text.max_length} "
                                            f"{digest(text.tokenizer.get_vocab())}"}


def module_fingerprint(module: nn.Module) -> str:
    """A hash of all weights, rounded to bfloat16."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        value = value.to(torch.bfloat16)
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(_bytes(value))
    return digest.hexdigest()[:16]


def _bytes(value: Tensor) -> memoryview:
    return memoryview(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
