"""Rows of the board: a recipe, trained with several seeds on one machine, as a JSON file and as a line of the table."""

import dataclasses
import hashlib
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from minicogvx.engine.config import from_table, to_toml
from minicogvx.evaluation.intervals import at_least
from minicogvx.interop.safetensors_files import read_json, write_json
from minicogvx.training.recipes import Recipe

GOALS = {"toy": 0.90, "micro": 0.75}  # share of captions that must be obeyed, by size
SEEDS, THREADS, CLIPS = 3, 2, 2000  # at least, exactly, at least
HEADER = ("size", "idea", "commit", "machine", "TFLOP/s", "minutes: VAE + encoding + transformer", "minutes x TFLOP/s",
          "captions obeyed, % by seed", "mean", "held-out, % by seed", "counts")


@dataclass(frozen=True)
class Minutes:
    """Of each part of one training, as its minutes.json has them."""

    vae: float
    encoding: float
    transformer: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.vae + self.encoding + self.transformer


@dataclass(frozen=True)
class Score:
    """The share of captions that a model obeys, 0..1, its 95 % interval, and of how many clips."""

    obeyed: float
    low: float
    high: float
    clips: int


@dataclass(frozen=True)
class SeedRun:
    """One training. What is None is still to be done."""

    seed: int
    commit: str | None
    tflops: tuple[float, ...]  # the best matrix product before training, and after it
    minutes: Minutes | None = None
    obeyed: Score | None = None  # captions of the training split
    held_out: Score | None = None

    @property
    def cost(self) -> float:
        """Minutes x TFLOP/s, by which machines can be compared."""
        return self.minutes.total * statistics.fmean(self.tflops)


@dataclass(frozen=True)
class Row:
    """A recipe on one machine, and its trainings so far."""

    size: str
    recipe: str
    recipe_hash: str
    idea: str
    processor: str
    threads: int
    dtype: str
    torch: str
    runs: tuple[SeedRun, ...] = ()

    @property
    def judged(self) -> list[SeedRun]:
        """The trainings that have minutes and a score."""
        return [run for run in self.runs if run.minutes and run.obeyed]

    def verdict(self) -> str:
        """Whether the row counts: "yes", "yes, to be confirmed" by held-out captions, or the first rule it breaks."""
        runs, goal = self.judged, GOALS[self.size]
        if len(runs) < max(SEEDS, len(self.runs)):
            return f"no: {len(runs)} of {max(SEEDS, len(self.runs))} seeds"
        if self.threads != THREADS:
            return f"no: {self.threads} threads"
        if any(run.commit is None or run.commit.endswith("-dirty") for run in runs):
            return "no: code not committed"
        if (clips := min(run.obeyed.clips for run in runs)) < CLIPS:
            return f"no: judged on {clips} clips"
        if (bound := at_least([run.obeyed.obeyed for run in runs])) < goal:
            return f"no: at least {100 * bound:.1f} %, not {100 * goal:.0f}"
        return "yes" if all(run.held_out for run in runs) else "yes, to be confirmed"


def recipe_hash(recipe: Recipe) -> str:
    """A short hash of every number of a recipe; options that are None are left out, as later ones may be added."""
    lines = to_toml(dataclasses.replace(recipe, sizes=recipe.model_sizes)).splitlines()
    given = [line for line in lines if not line.endswith('= "none"')]
    return hashlib.sha256("\n".join(given).encode()).hexdigest()[:16]


def read_row(path: Path) -> Row:
    """What `write_row` wrote. Raises FileNotFoundError if it is missing, ValueError if it is something else."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; `minicogvx speedrun` writes such a row")
    content = read_json(path)
    try:
        row = from_table(Row, content)
        if row.size not in GOALS:
            raise ValueError(f"size is {row.size!r}; it must be {' or '.join(GOALS)}")
    except ValueError as error:
        raise ValueError(f"{path} is no row that `minicogvx speedrun` wrote: {error}") from error
    return row


def write_row(path: Path, row: Row) -> None:
    """The row as JSON."""
    write_json(path, dataclasses.asdict(row))


# ---- the table


def table(rows: Iterable[Row]) -> str:
    """GitHub markdown: by size, first the rows that count, then by minutes x TFLOP/s."""
    lines = [HEADER, ("---",) * len(HEADER), *map(_cells, sorted(rows, key=_place))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _place(row: Row) -> tuple:
    cost = statistics.fmean(run.cost for run in row.judged) if row.judged else float("inf")
    return row.size, row.verdict().startswith("no"), cost, row.idea


def _cells(row: Row) -> tuple[str, ...]:
    runs, minutes = row.judged, [run.minutes for run in row.runs if run.minutes]
    parts = [statistics.fmean(getattr(one, part.name) for one in minutes) for part in dataclasses.fields(Minutes)
             if minutes]
    shares = [run.obeyed.obeyed for run in runs]
    mean = f"{100 * statistics.fmean(shares):.1f}" if shares else "-"
    idea = f"{row.idea or 'as it is'} (`{row.recipe}`)".replace("|", "/")
    return (f"{row.size}, {100 * GOALS[row.size]:.0f} %", idea,
            ", ".join(dict.fromkeys(run.commit or "unknown" for run in row.runs)) or "-",
            f"{row.processor}, {row.threads} threads, {row.dtype}",
            f"{statistics.fmean(rate for run in row.runs for rate in run.tflops):.2f}" if row.runs else "-",
            f"{sum(parts):.1f}: {' + '.join(f'{part:.1f}' for part in parts)}" if parts else "-",
            f"{statistics.fmean(run.cost for run in row.runs if run.minutes):.1f}" if parts else "-",
            _percent(shares), f"{mean}, at least {100 * at_least(shares):.1f}" if len(shares) > 1 else mean,
            _percent([run.held_out.obeyed for run in row.runs if run.held_out]), row.verdict())


def _percent(shares: list[float]) -> str:
    return ", ".join(f"{100 * share:.1f}" for share in shares) or "-"
