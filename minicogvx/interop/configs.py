"""Our configs and the `config.json` files of diffusers, in both directions.

Most fields have one name in both. What differs: `position` is two booleans there, `position_scaling` follows from
`patch_size_t`, `sampler` is the name of the scheduler's class, and our departures have no place at all. These go into
a file of our own (`own_fields`); `departures` names those that diffusers would compute differently.
"""

import warnings
from dataclasses import dataclass, fields, replace
from typing import get_args

from minicogvx.presets import ScheduleConfig, TransformerConfig, VAEConfig

Config = VAEConfig | TransformerConfig | ScheduleConfig

DIFFUSERS_VERSION = "0.42.1"  # whose files these are; it opens those of older versions, too
SCHEDULERS = {"CogVideoXDDIMScheduler": "ddim", "CogVideoXDPMScheduler": "dpm"}
_BOOLEANS = {"sincos": (False, False), "rope": (True, False), "rope+learned": (True, True)}  # (rotary, learned)
_HARMLESS = {"first_frame", "position_scaling"}  # the same numbers at the sizes that diffusers' pipelines accept


@dataclass(frozen=True)
class _Format:
    """What a config.json of diffusers holds beside the fields that we share with it."""

    class_names: tuple[str, ...]
    ours_only: tuple[str, ...]  # our fields that have no namesake there
    defaults: Config  # what diffusers takes for a shared field that the file leaves out
    fixed: dict  # its fields of which we have only one value
    without_effect: dict  # its fields that change nothing when the model runs


_FORMATS = {
    VAEConfig: _Format(
        ("AutoencoderKLCogVideoX",), ("time_padding", "norm_over", "first_frame"), VAEConfig(),
        {"act_fn": "silu", "latents_mean": None, "latents_std": None, "shift_factor": None, "use_quant_conv": False,
         "use_post_quant_conv": False},
        {"force_upcast": True, "down_block_types": None, "up_block_types": None}),
    TransformerConfig: _Format(
        ("CogVideoXTransformer3DModel",), ("position", "position_scaling", "modulation", "attention"),
        TransformerConfig(num_attention_heads=30, num_layers=30, position="sincos"),
        {"activation_fn": "gelu-approximate", "attention_bias": True, "flip_sin_to_cos": True, "freq_shift": 0,
         "norm_elementwise_affine": True, "timestep_activation_fn": "silu", "patch_bias": True},
        {"dropout": 0.0, "use_rotary_positional_embeddings": False, "use_learned_positional_embeddings": False}),
    ScheduleConfig: _Format(
        tuple(SCHEDULERS), ("sampler",),
        ScheduleConfig(snr_shift_scale=3.0, rescale_betas_zero_snr=False, prediction_type="epsilon"),
        {"beta_schedule": "scaled_linear", "trained_betas": None, "set_alpha_to_one": True, "steps_offset": 0,
         "timestep_spacing": "trailing"},
        {"clip_sample": False, "clip_sample_range": 1.0, "sample_max_value": 1.0}),
}


def from_diffusers(kind: type, values: dict, origin: str) -> Config:
    """The config of class `kind` that a config.json says; a missing field has diffusers' default, not ours.

    Raises ValueError, naming `origin`, for another class, a value of the wrong type, or an option we do not have.
    """
    form = _FORMATS[kind]
    name = values.get("_class_name")
    if name not in form.class_names:
        raise ValueError(f"{origin} is of the class {name!r}; it must be {' or '.join(form.class_names)}")
    _check_fixed(form, values, origin)
    shared = {}
    for field in fields(kind):
        if field.name not in form.ours_only and field.name in values:
            shared[field.name] = _typed(field, values[field.name], origin)
    if kind is ScheduleConfig:
        shared["sampler"] = SCHEDULERS[name]
    if kind is TransformerConfig:
        shared |= _position(values, shared, origin)
    known = {*form.fixed, *form.without_effect, *(field.name for field in fields(kind))}
    for extra in values:
        if extra not in known and not extra.startswith("_"):
            warnings.warn(f"{origin} has a field {extra!r}, which is not known here and has no effect", stacklevel=2)
    try:
        return replace(form.defaults, **shared)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error


def to_diffusers(config: Config) -> dict:
    """The config.json for `config`. Departures are not in it: see `own_fields` and `departures`."""
    form = _FORMATS[type(config)]
    values = {"_class_name": form.class_names[0], "_diffusers_version": DIFFUSERS_VERSION}
    values |= form.fixed | form.without_effect
    for field in fields(config):
        if field.name not in form.ours_only:
            value = getattr(config, field.name)
            values[field.name] = list(value) if isinstance(value, tuple) else value
    if isinstance(config, VAEConfig):
        stages = len(config.block_out_channels)
        values["down_block_types"] = ["CogVideoXDownBlock3D"] * stages
        values["up_block_types"] = ["CogVideoXUpBlock3D"] * stages
    if isinstance(config, ScheduleConfig):
        values["_class_name"] = {sampler: name for name, sampler in SCHEDULERS.items()}[config.sampler]
    if isinstance(config, TransformerConfig):
        rotary, learned = _BOOLEANS.get(config.position, (False, False))
        values["use_rotary_positional_embeddings"], values["use_learned_positional_embeddings"] = rotary, learned
    return values


def own_fields(config: Config) -> dict:
    """The fields that get lost on the way through `to_diffusers` and back, with their values."""
    back = from_diffusers(type(config), to_diffusers(config), "config.json")
    names = [field.name for field in fields(config)]
    return {name: getattr(config, name) for name in names if getattr(config, name) != getattr(back, name)}


def with_own_fields(config: Config, own: dict, origin: str) -> Config:
    """`config` with what `own_fields` had saved."""
    known = {field.name: field for field in fields(config)}
    for name in own:
        if name not in known:
            raise ValueError(f"{origin} sets {name!r}; a {type(config).__name__} has no such field")
    try:
        return replace(config, **{name: _typed(known[name], value, origin) for name, value in own.items()})
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error


def departures(config: Config) -> list[str]:
    """Each option of `config` that diffusers does not have, as `name=value`; empty where it computes the same."""
    found = [f"{name}={value!r}" for name, value in own_fields(config).items() if name not in _HARMLESS]
    if isinstance(config, TransformerConfig) and config.patch_size_t and config.position in ("sincos", "rope+learned"):
        found.append(f"position={config.position!r} with patch_size_t={config.patch_size_t}")
    return found


def _check_fixed(form: _Format, values: dict, origin: str) -> None:
    for name, only in form.fixed.items():
        if name == "patch_bias" and values.get("patch_size_t"):
            continue  # published 1.5 files say false, but the layer that has two frames a patch always has its bias
        value = values.get(name, "leading" if name == "timestep_spacing" else only)
        if value != only:
            raise ValueError(f"{origin} has {name}={value!r}; only {only!r} is supported, as published")
    for name in ("down_block_types", "up_block_types"):
        for block in values.get(name) or ():
            if block not in ("CogVideoXDownBlock3D", "CogVideoXUpBlock3D"):
                raise ValueError(f"{origin} has a {block!r} in {name}; it must be a block of CogVideoX")


def _position(values: dict, shared: dict, origin: str) -> dict:
    rotary = values.get("use_rotary_positional_embeddings", False)
    learned = values.get("use_learned_positional_embeddings", False)
    for position, booleans in _BOOLEANS.items():
        if booleans == (rotary, learned):
            scaling = "extrapolate" if shared.get("patch_size_t") else "interpolate"
            return {"position": position, "position_scaling": scaling}
    raise ValueError(f"{origin} has use_rotary_positional_embeddings={rotary!r} and "
                     f"use_learned_positional_embeddings={learned!r}; learned positions need rotary ones beside them")


_KINDS = {int: "a whole number above 0", int | None: "a whole number above 0, or null", float: "a number",
          bool: "true or false", tuple[int, ...]: "a list of whole numbers above 0"}


def _typed(field, value, origin: str):
    """`value` as JSON gives it, in the type of a dataclass field, or a ValueError."""
    kind, given = field.type, value
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)  # published VAE files write 4.0
    if kind is float and type(value) is int:
        value = float(value)
    if kind == tuple[int, ...]:
        value = tuple(value) if isinstance(value, list | tuple) else value
        right = isinstance(value, tuple) and value and all(type(size) is int and size > 0 for size in value)
    elif kind in (int, int | None):
        right = type(value) is int and value > 0 or value is None and kind is not int
    elif kind in (float, bool):
        right = type(value) is kind and value == value  # not NaN
    else:
        right = value in get_args(kind)  # a Literal
    if not right:
        wanted = _KINDS.get(kind) or f"one of {', '.join(map(repr, get_args(kind)))}"
        raise ValueError(f"{origin} has {field.name}={given!r}; it must be {wanted}")
    return value
