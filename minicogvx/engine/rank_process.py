"""One of the processes that `course.on_ranks` starts: joins the others, runs a program, writes down its result.

    python -m minicogvx.engine.rank_process FOLDER     # RANK and WORLD_SIZE are in the environment

FOLDER holds `program.py`. The program finds this process's `Ranks` as `ranks`; what it calls `result` is written as
JSON. The ranks meet through a file in FOLDER, so there is no port to choose, and nothing is pickled.
"""

import json
import os
import sys
import threading
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from minicogvx.engine.ranks import environment_number, leave, ranks

PROGRAM, MEETING = "program.py", "meeting"
MOST = 400  # characters of an error's message


def main(folder: Path, seconds: float) -> int:
    """Runs the program; 0 if it came to its end. No call of another rank is waited for longer than `seconds`."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    rank, count = environment_number("RANK"), environment_number("WORLD_SIZE")
    torch.set_num_threads(1)  # ranks share the processor, and one thread always gives the same bits
    try:
        dist.init_process_group("gloo", store=dist.FileStore(str(folder / MEETING), count), rank=rank,
                                world_size=count, timeout=timedelta(seconds=seconds))
        path = folder / PROGRAM
        text = path.read_text(encoding="utf-8")
        names = {"__name__": "__main__", "__file__": str(path), "ranks": ranks("cpu")}
        exec(compile(text, str(path), "exec"), names)
        _write(folder, rank, {"result": names.get("result")})
    except BaseException as error:  # whatever it is: the parent waits for a sentence
        _write(folder, rank, {"error": _sentence(error, folder / PROGRAM), "time": time.time()})
        sys.stdout.flush()
        os._exit(1)  # the others need not be there any more, and a process group might wait for them
    leave()
    return 0


def read_outcome(folder: Path, rank: int) -> dict[str, Any] | None:
    """What a rank has written: "result", or "error" and "time"; None if it came to nothing."""
    path = folder / f"rank_{rank}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _write(folder: Path, rank: int, outcome: dict[str, Any]) -> None:
    part = folder / f"rank_{rank}.part"
    part.write_text(json.dumps(outcome, default=_plain), encoding="utf-8")
    part.replace(folder / f"rank_{rank}.json")


def _plain(value: Any) -> Any:
    """A tensor as nested lists; float32 numbers come back to the bit."""
    if isinstance(value, torch.Tensor):
        return value.detach().tolist()
    raise TypeError(f"the result holds a {type(value).__name__}; it must be made of numbers, text, lists, dicts and "
                    f"tensors")


def _sentence(error: BaseException, program: Path) -> str:
    """The error, and the line of the program where it came up."""
    said = " ".join(str(error).split())
    said = said[:MOST] + (" ..." if len(said) > MOST else "")
    said = f"{type(error).__name__}: {said}" if said else type(error).__name__
    here = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(program)]
    line = program.read_text(encoding="utf-8").splitlines()[here[-1].lineno - 1].strip() if here else ""
    return f"{said} (at: {line})" if line else said


def _end_with_parent() -> None:
    """The parent holds the other end of stdin: when it is gone, for whatever reason, so is this process."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2])))
