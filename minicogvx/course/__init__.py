"""Helpers for notebooks: clips, figures in one style, sliders, source code, exercises, predictions."""

from minicogvx.course.attention_map import explore_attention
from minicogvx.course.blind import explore_blind
from minicogvx.course.clips import compare_clips, show_clip, show_rows
from minicogvx.course.device import notebook_device
from minicogvx.course.exercises import check, grade, hint, progress, solution, solved
from minicogvx.course.explore import explore_figure, explore_grid
from minicogvx.course.pack_bars import explore_packs
from minicogvx.course.plain_advice import print_advice_plainly
from minicogvx.course.plan_figure import explore_plan
from minicogvx.course.predicting import outcome, predict, predictions
from minicogvx.course.rank_cells import on_ranks
from minicogvx.course.show import new_figure, show_figure, show_source
from minicogvx.course.watching import watch
from minicogvx.course.widgets import explore_frames, explore_noise, explore_rope, explore_sweep, explore_wipe
from minicogvx.course.yours import yours

__all__ = ["check", "compare_clips", "explore_attention", "explore_blind", "explore_figure", "explore_frames",
           "explore_grid", "explore_noise", "explore_packs", "explore_plan", "explore_rope", "explore_sweep",
           "explore_wipe", "grade", "hint", "new_figure", "notebook_device", "on_ranks", "outcome", "predict",
           "predictions", "progress", "show_clip", "show_figure", "show_rows", "show_source", "solution", "solved",
           "watch", "yours"]

print_advice_plainly()
