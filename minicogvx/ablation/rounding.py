"""Numbers of stored results, short enough to read in a diff."""

from typing import Any


def short_numbers(value: Any, digits: int = 4) -> Any:
    """`value` with every float in it, in dicts and lists too, rounded to so many significant digits."""
    if isinstance(value, dict):
        return {key: short_numbers(one, digits) for key, one in value.items()}
    if isinstance(value, list):
        return [short_numbers(one, digits) for one in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value
