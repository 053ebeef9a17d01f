"""The valid range of every number in a config, checked for new configs and for config files.

The lower limits are the smallest that can be built. The upper limits are far above every published model, and below
what overflows the size of a tensor or takes minutes to fail.
"""

from dataclasses import Field, fields
from numbers import Integral, Real
from typing import Literal, get_args, get_origin

RANGES: dict[str, tuple[float, float]] = {
    # channels and widths
    "in_channels": (1, 65_536), "out_channels": (1, 65_536), "latent_channels": (1, 65_536),
    "block_out_channels": (1, 65_536), "norm_num_groups": (1, 65_536), "text_embed_dim": (1, 65_536),
    "time_embed_dim": (1, 65_536), "ofs_embed_dim": (2, 65_536), "d_model": (1, 65_536), "d_kv": (1, 1024),
    "d_ff": (1, 262_144),
    # counts
    "layers_per_block": (1, 64), "num_layers": (1, 256), "num_heads": (1, 256), "num_attention_heads": (1, 256),
    "attention_head_dim": (1, 1024), "vocab_size": (1, 10_000_000), "relative_attention_num_buckets": (4, 65_536),
    "relative_attention_max_distance": (2, 1_000_000),
    # sizes of videos, patches and captions
    "sample_height": (1, 8192), "sample_width": (1, 8192), "sample_frames": (1, 10_000), "fps": (1, 1000),
    "patch_size": (1, 64), "patch_size_t": (1, 64), "temporal_compression_ratio": (1, 8),
    "max_text_seq_length": (1, 8192),
    # numbers inside formulas
    "scaling_factor": (1e-6, 1e6), "norm_eps": (1e-12, 0.1), "layer_norm_epsilon": (1e-12, 0.1),
    "spatial_interpolation_scale": (1e-3, 1e3), "temporal_interpolation_scale": (1e-3, 1e3),
    "num_train_timesteps": (2, 100_000), "beta_start": (1e-9, 0.999), "beta_end": (1e-9, 0.999),
    "snr_shift_scale": (1e-6, 1e6), "guidance_scale": (0.0, 1000.0), "cache": (0.0, 1.0),
}


def check_fields(config) -> None:
    """Raises ValueError for the first field of a config dataclass whose value violates its type or range."""
    for field in fields(config):
        check_field(field, getattr(config, field.name))


def check_field(field: Field, value) -> None:
    """Raises ValueError if a value violates the type or range, if there is one, of a config field."""
    name, kind = field.name, field.type
    if get_origin(kind) is Literal:
        check_choice(name, value, get_args(kind))
    elif kind is bool and type(value) is not bool:
        raise ValueError(f"{name} is {shown(value)}; it must be true or false")
    elif get_origin(kind) is tuple:
        if not isinstance(value, tuple) or not value:
            raise ValueError(f"{name} is {shown(value)}; it must be a list of whole numbers")
        for number in value:
            check_number(name, number)
    elif name in RANGES and not (value is None and type(None) in get_args(kind)):
        check_number(name, value, whole=kind is not float)


def check_choice(name: str, value, valid: tuple) -> None:
    """Raises ValueError, with the valid values, unless `value` is one of them."""
    if value not in valid:
        raise ValueError(f"{name} is {shown(value)}; it must be one of {', '.join(map(repr, valid))}")


def check_number(name: str, value, whole: bool = True) -> None:
    """Raises ValueError, with the range, unless `value` lies in the range of `name`; NaN never does."""
    low, high = RANGES[name]
    right = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if not (right and low <= value <= high):
        raise ValueError(f"{name} is {shown(value)}; it must be a {'whole ' * whole}number from {low} to {high}")


def valid_frames(frames: int, step: int) -> str:
    """What a number of frames must be where one is followed by groups of `step`, with the two nearest to `frames`."""
    low = max((frames - 1) // step * step + 1, 1)
    return f"{step}k + 1, such as {low} or {low + step}"


def shown(value) -> str:
    """`value` for an error message: on one line, truncated if long."""
    text = " ".join(line.strip() for line in repr(value).splitlines())
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"
