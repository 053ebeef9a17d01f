"""What the numbers of a training may be: every training config checks its own in one call."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Literal, get_args, get_origin

from minicogvx.ranges import check_choice, shown

_HOLDS = {
    "0 or more": lambda value: value >= 0,
    "1 or more": lambda value: value >= 1,
    "above 0": lambda value: value > 0,
    "from 0 to 1": lambda value: 0 <= value <= 1,
    "from 0 to below 1": lambda value: 0 <= value < 1,
    "any": lambda value: True,  # but a number: NaN and infinity are none
}


def check_limits(config, limits: Mapping[str, str]) -> None:
    """Raises ValueError for the first field of a config dataclass that its type or `limits` do not allow.

    `limits` names fields, or groups of fields with blanks between them, and says in words what each may be, such as
    {"steps batch_size": "1 or more"}. None passes: where a field may be None, it is none of the numbers.
    """
    for field in fields(config):
        if get_origin(field.type) is Literal:
            check_choice(field.name, getattr(config, field.name), get_args(field.type))
        elif field.type is bool and type(getattr(config, field.name)) is not bool:
            raise ValueError(f"{field.name} is {shown(getattr(config, field.name))}; it must be True or False")
    for names, words in limits.items():
        for name in names.split():
            value = getattr(config, name)
            if value is not None and not (math.isfinite(value) and _HOLDS[words](value)):
                raise ValueError(f"{name} is {shown(value)}; it must be {'finite' if words == 'any' else words}")
