"""The rows of the table, one per check and part, and the handling of checks that fail."""

import gc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from math import isfinite

import torch

AGREES, DISAGREES, MEASURED = "agrees", "DISAGREES", "measured"
NO_ROOM, FAILED, LEFT_OUT = "does not fit", "FAILED", "left out"
NOT_FINITE = "the result has NaN, infinity or another shape than it should"
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}  # relative, between two programs


@dataclass(frozen=True)
class Row:
    """The result of one check. `other_...` is that of the reference, which `beside` names."""

    check: str
    part: str = ""
    numbers: str = ""  # number format
    result: str = MEASURED
    beside: str = ""
    error: float | None = None  # relative; infinite if shapes differ or a value is not finite
    allowed: float | None = None
    seconds: float | None = None  # of one run, the median
    other_seconds: float | None = None
    share: float | None = None  # of the rate of a large matrix product on this device
    other_share: float | None = None
    flops: int | None = None  # of one run, recomputation included
    memory: int | None = None  # peak bytes, with the weights; only on CUDA
    other_memory: int | None = None
    compile_seconds: float | None = None
    reason: str = ""


def judged(error: float, allowed: float, **fields) -> Row:
    """A row that says whether `error` is within `allowed`; NaN is not."""
    return Row(result=AGREES if error <= allowed else DISAGREES, error=error, allowed=allowed, **fields)


def measured(error: float, **fields) -> Row:
    """A row of measurements, which are valid only if `error` is finite."""
    if isfinite(error):
        return Row(error=error, **fields)
    return Row(result=FAILED, error=error, reason=NOT_FINITE, **fields)


def attempt(check: str, numbers: str, run: Callable[[], Iterable[Row]], part: str = "") -> Iterator[Row]:
    """The rows of `run`; if it raises, the last row has the reason.

    Memory is freed in either case, so that the next check starts with an empty device.
    """
    failure = None
    try:
        yield from run()
    except Exception as error:  # of a driver or compiler: reported, and the other checks continue
        result = NO_ROOM if is_out_of_memory(error) else FAILED
        failure = Row(check, part, numbers, result, reason=_in_one_line(error))
    give_back_memory()  # after the except clause, because the exception holds the tensors of the check
    if failure is not None:
        yield failure


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is an out-of-memory error, also of libraries and devices without a class for it."""
    words = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        said in words for said in ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed"))


def give_back_memory() -> None:
    """Frees unreferenced objects, and PyTorch's cache on the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _in_one_line(error: BaseException) -> str:
    """The class and the beginning of the message, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"[:300]


# ---- as a table and as JSON

COLUMNS = ("check", "part", "numbers", "result", "error", "allowed", "seconds", "beside", "its seconds",
           "share of peak", "its share", "memory GB", "its memory GB", "compile s", "reason")


def cells(row: Row) -> tuple[str, ...]:
    """One line of the table."""
    return (row.check, row.part, row.numbers, row.result, _number(row.error, ".1e"), _number(row.allowed, ".0e"),
            _number(row.seconds, ".3g"), row.beside or "-", _number(row.other_seconds, ".3g"),
            _number(row.share, ".0%"), _number(row.other_share, ".0%"), _gigabytes(row.memory),
            _gigabytes(row.other_memory), _number(row.compile_seconds, ".3g"), row.reason or "-")


def as_json(row: Row) -> dict:
    """All fields; unknown or not finite values are null."""
    return {name: None if isinstance(value, float) and not isfinite(value) else value
            for name, value in asdict(row).items()}


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _gigabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e9:.1f}"
