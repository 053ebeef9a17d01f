"""Our configs and the `config.json` files of diffusers, in both directions.

Most fields have one name in both. What differs: `position` is two booleans there, `position_scaling` follows from
`patch_size_t`, `sampler` is the name of the scheduler's class, and our departures have no place at all. These go into
a file of our own (`own_fields`). `departures` names those that diffusers computes differently, or, where they are
among the `unsupported`, not at all.
"""

import warnings
from dataclasses import dataclass, fields, replace

from minicogvx.advice import Advice
from minicogvx.presets import ScheduleConfig, TransformerConfig, VAEConfig
from minicogvx.ranges import check_field, shown

Config = VAEConfig | TransformerConfig | ScheduleConfig

DIFFUSERS_VERSION = "0.42.1"  # whose files these are; it opens those of older versions, too
SCHEDULERS = {"CogVideoXDDIMScheduler": "ddim", "CogVideoXDPMScheduler": "dpm"}
_BOOLEANS = {"sincos": (False, False), "rope": (True, False), "rope+learned": (True, True)}  # (rotary, learned)
_BY_SIZE = {"first_frame", "position_scaling"}  # diffusers computes the same at some frame counts, at some sizes
_BLOCKS = {"down_block_types": "CogVideoXDownBlock3D", "up_block_types": "CogVideoXUpBlock3D"}


@dataclass(frozen=True)
class _Format:
    """What a config.json of diffusers holds beside the fields that we share with it."""

    class_names: tuple[str, ...]
    ours_only: tuple[str, ...]  # our fields that have no namesake there
    defaults: Config  # diffusers' default for a shared field that the file leaves out
    fixed: dict  # its fields of which we have only one value
    without_effect: dict  # its fields that change nothing when the model runs


_FORMATS = {
    VAEConfig: _Format(
        ("AutoencoderKLCogVideoX",), ("time_padding", "norm_over", "first_frame", "resampling"), VAEConfig(),
        {"act_fn": "silu", "latents_mean": None, "latents_std": None, "shift_factor": None, "use_quant_conv": False,
         "use_post_quant_conv": False},
        {"force_upcast": True}),
    TransformerConfig: _Format(
        ("CogVideoXTransformer3DModel",), ("position", "position_scaling", "modulation", "attention", "value_residual"),
        TransformerConfig(num_attention_heads=30, num_layers=30, position="sincos"),
        {"activation_fn": "gelu-approximate", "attention_bias": True, "flip_sin_to_cos": True, "freq_shift": 0,
         "norm_elementwise_affine": True, "timestep_activation_fn": "silu", "patch_bias": True},
        {"dropout": 0.0, "use_rotary_positional_embeddings": False, "use_learned_positional_embeddings": False}),
    ScheduleConfig: _Format(
        tuple(SCHEDULERS), ("sampler",),
        ScheduleConfig(snr_shift_scale=3.0, rescale_betas_zero_snr=False, prediction_type="epsilon",
                       timestep_spacing="leading"),
        {"beta_schedule": "scaled_linear", "trained_betas": None, "set_alpha_to_one": True, "steps_offset": 0},
        {"clip_sample": False, "clip_sample_range": 1.0, "sample_max_value": 1.0}),
}


def from_diffusers(kind: type, values: dict, origin: str, own: dict | None = None, own_origin: str = "") -> Config:
    """The config of class `kind` that a config.json says, with what `own_fields` had saved beside it.

    A field that is missing has diffusers' default, not ours. Raises ValueError, naming the file (`origin` or
    `own_origin`), for another class, a value that cannot be, or an option we do not have.
    """
    form = _FORMATS[kind]
    name = values.get("_class_name")
    if name not in form.class_names:
        raise ValueError(f"{origin} is of the class {shown(name)}; it must be {' or '.join(form.class_names)}")
    _check_fixed(form, values, origin)
    shared = _typed(kind, {name: value for name, value in values.items() if name not in form.ours_only}, origin)
    if kind is ScheduleConfig:
        shared["sampler"] = SCHEDULERS[name]
    if kind is TransformerConfig:
        shared |= _position(values, shared, origin)
    names = {field.name for field in fields(kind)}
    for name in own or {}:
        if name not in names:
            raise ValueError(f"{own_origin} sets {shown(name)}; a {kind.__name__} has no such field")
    own = _typed(kind, own or {}, own_origin)
    known = {*form.fixed, *form.without_effect, *names, *_BLOCKS}
    for extra in values:
        if extra not in known and not extra.startswith("_"):
            warnings.warn(f"{origin} has a field {shown(extra)}, which is not known here and has no effect",
                          Advice, stacklevel=2)
    config = _built(form.defaults, shared, own, origin, own_origin)
    if kind is VAEConfig:
        _check_blocks(config, values, origin)
    return config


def _built(defaults: Config, published: dict, own: dict, origin: str, own_origin: str) -> Config:
    """The config with all these fields. A ValueError names our own file where without it there would be none."""
    try:
        return replace(defaults, **published | own)
    except ValueError as error:
        try:
            replace(defaults, **published)
        except ValueError:
            raise ValueError(f"{origin}: {error}") from error
        raise ValueError(f"{own_origin if own else origin}: {error}") from error


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
        values |= {name: [block] * len(config.block_out_channels) for name, block in _BLOCKS.items()}
    if isinstance(config, ScheduleConfig):
        values["_class_name"] = {sampler: name for name, sampler in SCHEDULERS.items()}[config.sampler]
    if isinstance(config, TransformerConfig):
        rotary, learned = _BOOLEANS.get(config.position, (False, False))
        values["use_rotary_positional_embeddings"], values["use_learned_positional_embeddings"] = rotary, learned
        values["patch_bias"] = config.patch_size_t is None  # as published; where it is false it has no effect
    return values


def own_fields(config: Config) -> dict:
    """The fields that a config.json has no place for, with their values, where they are not what it implies."""
    implied = {name: getattr(_FORMATS[type(config)].defaults, name) for name in _FORMATS[type(config)].ours_only}
    if isinstance(config, TransformerConfig):
        implied["position_scaling"] = "extrapolate" if config.patch_size_t else "interpolate"
        if config.position in _BOOLEANS:
            implied["position"] = config.position
    if isinstance(config, ScheduleConfig):
        implied["sampler"] = config.sampler  # the name of the class says it
    return {name: getattr(config, name) for name, value in implied.items() if getattr(config, name) != value}


def departures(config: Config) -> list[str]:
    """Each option of `config` that diffusers computes differently, as `name=value`: at every size if it is among the
    `unsupported`, else at some. Empty where every video is the same."""
    own = own_fields(config)
    if isinstance(config, TransformerConfig) and "rope" not in config.position:
        own.pop("position_scaling", None)  # without effect
    if isinstance(config, VAEConfig) and config.temporal_compression_ratio == 1:
        own.pop("first_frame", None)  # likewise: no frame is paired with another
    return unsupported(config) + [f"{name}={value!r}" for name, value in own.items() if name in _BY_SIZE]


def unsupported(config: Config) -> list[str]:
    """Those of the `departures` that diffusers does not have: it would compute other numbers for every video."""
    found = [f"{name}={value!r}" for name, value in own_fields(config).items() if name not in _BY_SIZE]
    if isinstance(config, TransformerConfig) and config.patch_size_t and config.position in ("sincos", "rope+learned"):
        found.append(f"position={config.position!r} with patch_size_t={config.patch_size_t}")
    return found


def _check_fixed(form: _Format, values: dict, origin: str) -> None:
    if values.get("quantization_config") is not None:
        raise ValueError(f"{origin} has a quantization_config; only weights that are plain floating-point numbers are "
                         f"supported, so take the folder that it was made from")
    for name, only in form.fixed.items():
        if name == "patch_bias" and values.get("patch_size_t"):
            continue  # published 1.5 files say false, but the layer that has two frames a patch always has its bias
        value = values.get(name, only)
        if value != only:
            raise ValueError(f"{origin} has {name}={shown(value)}; only {only!r} is supported, as published")


def _check_blocks(config: VAEConfig, values: dict, origin: str) -> None:
    """diffusers builds one stage for each block that is named, four where none is."""
    stages = len(config.block_out_channels)
    for name, block in _BLOCKS.items():
        blocks = values.get(name, [block] * 4)
        if blocks not in ([block] * stages, (block,) * stages):
            raise ValueError(f"{origin} has {name}={shown(blocks)}; it must be {block!r} {stages} times, once for each "
                             f"of the block_out_channels")


def _position(values: dict, shared: dict, origin: str) -> dict:
    names = "use_rotary_positional_embeddings", "use_learned_positional_embeddings"
    rotary, learned = (values.get(name, False) for name in names)
    for name, value in zip(names, (rotary, learned)):
        if type(value) is not bool:
            raise ValueError(f"{origin} has {name}={shown(value)}; it must be true or false")
    for position, booleans in _BOOLEANS.items():
        if booleans == (rotary, learned):
            scaling = "extrapolate" if shared.get("patch_size_t") else "interpolate"
            return {"position": position, "position_scaling": scaling}
    raise ValueError(f"{origin} has use_rotary_positional_embeddings={shown(rotary)} and "
                     f"use_learned_positional_embeddings={shown(learned)}; learned positions need rotary ones beside "
                     f"them")


def _typed(kind: type, values: dict, origin: str) -> dict:
    """The fields of a config of class `kind` among `values`, from the types that JSON has. Raises ValueError."""
    typed = {}
    for field in fields(kind):
        if field.name not in values:
            continue
        value = values[field.name]
        if field.type is not float and isinstance(value, float) and value.is_integer():
            value = int(value)  # published VAE files write 4.0
        if isinstance(value, list):
            value = tuple(value)
        try:
            check_field(field, value)
        except ValueError as error:
            raise ValueError(f"{origin}: {error}") from error
        typed[field.name] = float(value) if field.type is float else value
    return typed
