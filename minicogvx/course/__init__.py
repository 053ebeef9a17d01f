"""Helpers for notebooks: clips, figures in one style, sliders, source code, exercises, predictions."""

from minicogvx.course.attention_map import explore_attention
from minicogvx.course.clips import compare_clips, show_clip, show_rows
from minicogvx.course.device import notebook_device
from minicogvx.course.exercises import check, hint, progress, solution, solved
from minicogvx.course.explore import explore_figure, explore_grid
from minicogvx.course.predicting import outcome, predict, predictions
from minicogvx.course.show import new_figure, show_figure, show_source
from minicogvx.course.watching import watch
from minicogvx.course.widgets import explore_frames, explore_noise, explore_rope, explore_sweep, explore_wipe
from minicogvx.course.yours import yours

__all__ = ["check", "compare_clips", "explore_attention", "explore_figure", "explore_frames", "explore_grid",
           "explore_noise", "explore_rope", "explore_sweep", "explore_wipe", "hint", "new_figure", "notebook_device",
           "outcome", "predict", "predictions", "progress", "show_clip", "show_figure", "show_rows", "show_source",
           "solution", "solved", "watch", "yours"]
