"""The valid ranges of training settings: every training config checks its fields in one call."""

from collections.abc import Mapping
from dataclasses import fields
from types import NoneType
from typing import Literal, get_args, get_origin

from minicogvx.ranges import check_choice, shown

# Upper limits, far above every published training; all other fields have `_MOST_OF_ALL`.
_MOST = {"steps": 10**8, "batch_size": 65_536, "height": 8192, "width": 8192, "side": 8192, "num_frames": 10_000,
         "latent_frames": 10_000, "chunk_frames": 10_000, "clips": 10**7, "context_ranks": 65_536}
_MOST_OF_ALL = 10**12
_HOLDS = {
    "0 or more": lambda value: value >= 0,
    "1 or more": lambda value: value >= 1,
    "above 0": lambda value: value > 0,
    "from 0 to 1": lambda value: 0 <= value <= 1,
    "from 0 to below 1": lambda value: 0 <= value < 1,
    "any": lambda value: True,  # if finite
}


def check_limits(config, limits: Mapping[str, str]) -> None:
    """Raises ValueError for the first field of a config dataclass that violates its type or `limits`.

    `limits` maps fields, separated by blanks, to their range in words, such as {"steps batch_size": "1 or more"}; upper
    limits are in one table here, for all configs. None is not checked.
    """
    for field in fields(config):
        value, kinds = getattr(config, field.name), (field.type, *get_args(field.type))
        choices = next((get_args(kind) for kind in kinds if get_origin(kind) is Literal), ())
        if choices and not (value is None and NoneType in kinds):
            check_choice(field.name, value, choices)
        if field.type is bool and type(value) is not bool:
            raise ValueError(f"{field.name} is {shown(value)}; it must be True or False")
    for names, words in limits.items():
        for name in names.split():
            value = getattr(config, name)
            most = _MOST.get(name, _MOST_OF_ALL)
            if value is not None and not (abs(value) < float("inf") and _HOLDS[words](value)):
                raise ValueError(f"{name} is {shown(value)}; it must be {'finite' if words == 'any' else words}")
            if value is not None and abs(value) > most:
                raise ValueError(f"{name} is {shown(value)}; it must be at most {most:,}")
