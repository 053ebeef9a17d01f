"""What the learner has solved and predicted so far: one small JSON file of the learner's.

It maps the number of an exercise to the day on which it was solved, "prediction 6.3" to the learner's answer and
"outcome 6.3" to what happened. It lies in `~/.minicogvx/progress.json`, or where the environment variable
MINICOGVX_PROGRESS says. A notebook never stops because of it: what cannot be read or written is said in one sentence.
"""

import datetime
import json
import os
from pathlib import Path

from minicogvx.files import one_at_a_time, written_whole


def record_path() -> Path:
    """Where the file lies; below the current folder where the learner has no home folder, as in some containers."""
    named = os.environ.get("MINICOGVX_PROGRESS")
    try:
        return Path(named).expanduser() if named else Path.home() / ".minicogvx" / "progress.json"
    except RuntimeError:  # of pathlib: there is no home folder
        return Path(".minicogvx") / "progress.json"


def load() -> dict[str, str]:
    """All of it. A broken file is set aside, and nothing counts as solved or predicted."""
    return _read() or {}


def save(number: str) -> None:
    """Notes that exercise `number` was solved today; the first day stays."""
    with one_at_a_time(record_path()):  # another notebook may be open
        kept = _read()
        if kept is not None and number not in kept:
            _write(kept | {number: datetime.date.today().isoformat()}, "The exercise is right all the same.")


def keep_text(key: str, text: str) -> None:
    """Keeps `text` under `key`, in place of what was there."""
    with one_at_a_time(record_path()):
        kept = _read()
        if kept is not None and kept.get(key) != text:
            _write(kept | {key: text}, "The notebook goes on all the same.")


def _write(kept: dict[str, str], comfort: str) -> None:
    try:
        with written_whole(record_path()) as part:
            part.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        print(f"Your progress could not be saved: {error}. {comfort}")


def _read() -> dict[str, str] | None:
    # None: there is a file that cannot be read, and must not be written over
    path = record_path()
    try:
        days = json.loads(path.read_text(encoding="utf-8"))
        if not (isinstance(days, dict) and all(isinstance(day, str) for day in days.values())):
            raise ValueError("it must map numbers to days or answers")
        return days
    except FileNotFoundError:
        return {}
    except OSError as error:
        print(f"Your progress in {path} could not be read ({error.strerror}); nothing is noted there.")
        return None
    except (ValueError, RecursionError) as error:  # of json and of the encoding, too
        _set_aside(path, error)
        return {}


def _set_aside(path: Path, error: Exception) -> None:
    aside = path.with_name(path.name + ".broken")
    try:
        os.replace(path, aside)
        print(f"Your progress in {path} is broken ({error}); it was set aside as {aside.name}, and a new file begins.")
    except OSError as trouble:
        print(f"Your progress in {path} is broken ({error}) and could not be set aside ({trouble.strerror}).")
