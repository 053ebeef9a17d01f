"""The folder of a run: which files in it are the run's own, and which are somebody else's and must not be replaced."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from minicogvx.files import check_writable, written_whole
from minicogvx.interop.safetensors_files import read_json

_RECORD = {"seed", "device", "torch"}  # every record of `config.compare` has these, among others
_ROW = b'{"step": '  # how every row of a log begins
_RESULTS = "checkpoints/*", "*.safetensors", "pipeline"


def has_begun(record: Path, logs: Sequence[str] = (), others: Sequence[str] = ()) -> bool:
    """Whether the run that wrote `record` has left a checkpoint or a result beside it; if not, its logs are removed.

    Args:
        logs, others: patterns of further files that the run writes to the folder of `record`.

    Raises ValueError for what the run would write over and did not make: a file of these names without a record, or
    a record or log that is none. Raises OSError if a log cannot be written.
    """
    folder, ours = record.parent, record.exists()
    if ours and not _is_record(record):
        raise _foreign(record)
    results = [found for pattern in _RESULTS for found in folder.glob(pattern)]
    whole = [found for found in results if not found.name.startswith(".")]  # not the leftovers of a killed run
    written = [found for pattern in logs for found in folder.glob(pattern)]
    whole += written + [found for pattern in others for found in folder.glob(pattern)]
    if whole and not ours:
        raise _foreign(whole[0])
    for log in written:
        check_log(log)
        check_writable(log)
    for log in () if results else written:
        log.unlink()
    return bool(results)


def check_log(path: Path) -> None:
    """Raises ValueError if `path` is a file, and not the log of a run, which may be truncated."""
    for line in path.read_bytes().splitlines() if path.exists() else ():
        if not _is_row(line):
            raise _foreign(path)


def forget_rows(path: Path, done: int) -> None:
    """Drops the rows of steps that will be repeated, and lines truncated by a crash. Raises what `check_log` raises."""
    check_log(path)
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if line.endswith(b"\n") and _step(line) < done]
    if kept != lines:  # if there is nothing to drop, a full disk does not matter
        with written_whole(path) as part:
            part.write_bytes(b"".join(kept))


def _foreign(path: Path) -> ValueError:
    return ValueError(f"{path.parent} holds {path.name}, which this run did not make and would write over; name "
                      f"another folder")


def _is_record(path: Path) -> bool:
    try:
        return read_json(path).keys() >= _RECORD
    except (ValueError, OSError):
        return False


def _is_row(line: bytes) -> bool:
    """Whether `line` is a row of a log, or what a crash left of one: its beginning, or bytes that are all zero."""
    line = line.strip(b"\0 \r\n")
    try:
        values = json.loads(line)
    except ValueError:
        return line.startswith(_ROW) or _ROW.startswith(line)
    return isinstance(values, dict) and isinstance(values.get("step"), int) and "grad_norm" in values


def _step(line: bytes) -> int | float:
    """The step of a row; infinity for a damaged one, which is dropped."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf
