"""Curves on disk: one small JSON file per study, readable by people and by `load_results`."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from minicogvx.ablation.latents import LatentsCurve
from minicogvx.ablation.rounding import short_numbers
from minicogvx.ablation.schedules import SchedulesCurve
from minicogvx.ablation.stages import StagesCurve
from minicogvx.ablation.studies import STUDIES
from minicogvx.ablation.timesteps import TimestepsCurve
from minicogvx.ablation.transformers import Curve
from minicogvx.ablation.vaes import VAECurve
from minicogvx.files import written_whole
from minicogvx.interop import DATA

_KINDS = {"transformer": Curve, "vae": VAECurve, "stages": StagesCurve, "latents": LatentsCurve,
          "timesteps": TimestepsCurve, "schedules": SchedulesCurve}
AnyCurve = Curve | VAECurve | StagesCurve | LatentsCurve | TimestepsCurve | SchedulesCurve
Curves = list[AnyCurve]  # all of one kind
_NOT_WRITTEN = ("model", "text", "vae")
_DIGITS = 6  # significant ones; more would be noise


@dataclass
class Results:
    """The curves of a study, and how they were made."""

    name: str
    command: str  # that reproduces them
    seeds: list[int]
    steps: int | None  # None if all variants have equal time instead
    torch: str  # its version
    threads: int
    minutes: float
    curves: Curves
    minutes_each: float | None = None  # of training, if variants have equal time
    best_fifth: float | None = None  # additional minutes on the best fifth
    vae: str | None = None  # the folder of a model whose VAE all have
    settings: str | None = None  # of a study of one's own: all of them, so that no other is resumed


def load_results(name: str) -> Curves:
    """The committed curves of a study, such as "position": one for each variant and seed, without models.

    Raises ValueError, with the valid names, for another name; see `read_results` for the file.
    """
    if name not in STUDIES:
        raise ValueError(f"there are no results called {name!r}; the studies are {', '.join(STUDIES)}")
    return read_results(default_file(name)).curves


def default_file(name: str) -> Path:
    """Where the results of a study are committed."""
    return DATA / "results" / f"{name}.json"


def read_results(path: str | Path) -> Results:
    """Reads what `write_results` wrote. Raises FileNotFoundError if it is missing, ValueError if it is damaged."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; `minicogvx ablate {path.stem} --out {path}` makes it")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        curve = _KINDS[content.pop("kind")]
        return Results(**content | {"curves": [curve(**fields) for fields in content["curves"]]})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a complete file of results ({type(error).__name__}: {error}); "
                         f"move it away, and `minicogvx ablate {path.stem} --out {path}` makes it again") from error


def write_results(path: str | Path, results: Results) -> None:
    """Writes a temporary file and renames it, so that the file is never incomplete. Models are left out."""
    if not results.curves:
        raise ValueError("curves is empty; there is nothing to write")
    path = Path(path)
    kind = next(kind for kind, curve in _KINDS.items() if isinstance(results.curves[0], curve))
    content = {field.name: getattr(results, field.name) for field in dataclasses.fields(results)}
    content = {name: value for name, value in content.items() if value is not None or name == "steps"}
    content = {"kind": kind} | content | {"curves": [_fields(curve) for curve in results.curves]}
    with written_whole(path) as part:
        part.write_text(_one_line_a_list(content) + "\n", encoding="utf-8")


def _fields(curve: AnyCurve) -> dict:
    values = {field.name: getattr(curve, field.name) for field in dataclasses.fields(curve)}
    return {name: short_numbers(value, _DIGITS) for name, value in values.items() if name not in _NOT_WRITTEN}


def _one_line_a_list(content: dict) -> str:
    """Indented JSON with one line per field of a curve, instead of one per number."""
    curves = [",\n   ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in curve.items())
              for curve in content["curves"]]
    head = ",\n ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items() if key != "curves")
    return "{" + head + ',\n "curves": [\n  {' + "},\n  {".join(curves) + "}\n ]}"


def place(device: str, dtype) -> str:
    """The command line options for this device and dtype."""
    return f"--device {device} --dtype {str(dtype).removeprefix('torch.')}"


def check_place(command: str, here: str, out: Path) -> None:
    """Raises ValueError if `out` was made on another device or in another dtype than `here`; older files do not say."""
    if "--device" in command and here not in command:
        raise ValueError(f"{out} was made with{command[command.index(' --device'):]}, this run has {here}; name "
                         f"another file with --out to train all again")
