"""The check of exercise 9.6: a diagnosis from a chart, tried on trainings that the notebook does not show."""

import json
from functools import cache

from minicogvx.course.exercises.exercise import Wrong
from minicogvx.interop import DATA

SHOWN_SEED = 0  # whose charts the notebook prints
CHARTS = DATA / "results" / "nano-clinic.json"
DISEASES = ("healthy", "captions of other clips", "captions always dropped", "timestep given as 0 to 1",
            "latents not scaled", "average of 0.9999")


@cache
def clinic_runs() -> tuple[dict, ...]:
    """The stored trainings: each with its "name", "seed", "chart" and "losses" (minicogvx/ablation/nano_study.py)."""
    return tuple(json.loads(CHARTS.read_text(encoding="utf-8"))["runs"])


def disease_of(chart: dict[str, float]) -> str:
    """Its name, from what the notebook's table shows."""
    if chart["spread"] > 5:
        return "latents not scaled"
    if chart["loss"] > 2 * chart["training_loss"]:
        return "average of 0.9999"
    if chart["time"] < 0.6:
        return "timestep given as 0 to 1"
    if chart["gain"] < 0.05:
        return "captions always dropped" if chart["without"] < -0.002 else "captions of other clips"
    return "healthy"


def check_diagnose(diagnose) -> None:
    """Right on the charts of the notebook, and on those of other seeds, which it does not show."""
    for shown in (True, False):
        for run in clinic_runs():
            if (run["seed"] == SHOWN_SEED) == shown:
                _check_one(diagnose, run, shown)


def _check_one(diagnose, run: dict, shown: bool) -> None:
    chart = dict(run["chart"])
    got = diagnose(chart)
    if chart != run["chart"]:
        raise Wrong("diagnose changes the chart that it is given; only read it.")
    if got is None:
        raise Wrong("diagnose(chart) is None; does your function end in return?")
    if got not in DISEASES:
        raise Wrong(f"diagnose(chart) is {got!r:.60}; it must be one of {', '.join(map(repr, DISEASES))}.")
    if got != run["name"]:
        which = "the table's chart" if shown else f"a chart that the table does not show (seed {run['seed']})"
        numbers = ", ".join(f"{name} {value:.3g}" for name, value in chart.items())
        advice = "" if shown else " A limit midway between the two sides also holds for other seeds."
        raise Wrong(f"{which} of {run['name']!r} is taken for {got!r}: {numbers}.{advice}")
