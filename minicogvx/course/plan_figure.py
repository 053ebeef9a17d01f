"""A plan to turn: model, size and length of a video, with and without guidance; time, memory and energy on each GPU."""

from collections.abc import Mapping, Sequence

from minicogvx.course import show
from minicogvx.course.explore import explore_figure
from minicogvx.presets import preset
from minicogvx.training.devices import DEVICES, say_seconds
from minicogvx.training.memory import inputs_for
from minicogvx.training.plan import Plan, plan

FITS, NOT = "#0072B2", "#BBBBBB"


def explore_plan(models: Sequence[str] = ("2b", "5b"), sizes: Sequence[str] = ("256x384", "480x720", "768x1360"),
                 frames: Sequence[int] = (17, 49, 81), guidance: Sequence[str] = ("off", "on"),
                 prices: Mapping[str, float | int] | None = None) -> None:
    """Sliders for a published model, height x width in pixels, frames (8k + 1) and guidance; bars for each GPU.

    Each bar says the time, the memory, how the video fits, watt-hours, and what it costs on GPUs of which `prices` has
    that of an hour. All of it is worked out, nothing measured: see `training/plan.py`. Each slider starts in the
    middle. Raises ValueError for a model, size or GPU that there is not.
    """
    prices = prices or {}
    for name in prices:
        if name not in DEVICES:
            raise ValueError(f"prices has {name!r}; the GPUs are {', '.join(DEVICES)}")

    def draw(model: str, size: str, frames: int, guidance: str):
        height, width = map(int, size.split("x"))
        sizes = preset(model)
        inputs = inputs_for(sizes, height, width, frames)
        plans = [plan(sizes, inputs, device, guided=guidance == "on") for device in DEVICES.values()]
        figure = _bars(plans, f"{model}, {size}, {frames} frames, guidance {guidance}", prices)
        said = "; ".join(f"{each.device.name}: {_label(each, prices)}" for each in plans)
        return figure, f"Worked-out times of one video of the {model} on six GPUs, as bars. {said}."

    explore_figure(draw, "Times of one video on six GPUs", model=models, size=sizes, frames=frames, guidance=guidance)


def _label(plan: Plan, prices: Mapping[str, float | int]) -> str:
    if plan.way is None:
        return f"does not fit ({plan.memory / 2**30:.0f} GiB)"
    how = "" if plan.way == "whole" else f" with {plan.way}"
    name = plan.device.name
    cost = f", costs {plan.seconds / 3600 * prices[name]:.2f}" if name in prices else ""
    return (f"{say_seconds(plan.seconds)}, {plan.memory / 2**30:.0f} GiB{how}, {1000 * plan.kilowatt_hours:.0f} Wh"
            f"{cost}")


def _bars(plans: Sequence[Plan], title: str, prices: Mapping[str, float | int]):
    figure, ((axis,),) = show.new_figure(width=8.5, height=2.8)
    names = [f"{each.device.name}, {each.device.memory // 2**30} GB" for each in plans]
    seconds = [each.seconds for each in plans]
    axis.barh(names, seconds, color=[FITS if each.way else NOT for each in plans])
    for place, each in enumerate(plans):
        axis.text(each.seconds, place, f"  {_label(each, prices)}", va="center", fontsize=8)
    axis.set(xlabel="seconds for one video of 50 steps, worked out", xlim=(0, 1.75 * max(seconds)), title=title)
    axis.grid(False, axis="y")
    axis.invert_yaxis()
    return figure
