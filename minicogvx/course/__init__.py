"""Helpers for notebooks: clips, figures in one style, sliders, source code, exercises."""

from minicogvx.course.device import notebook_device
from minicogvx.course.exercises import check, hint, progress, solution
from minicogvx.course.show import new_figure, show_clip, show_figure, show_rows, show_source
from minicogvx.course.widgets import compare_clips, explore_frames, explore_noise, explore_rope, explore_sweep

__all__ = ["check", "compare_clips", "explore_frames", "explore_noise", "explore_rope", "explore_sweep", "hint",
           "new_figure", "notebook_device", "progress", "show_clip", "show_figure", "show_rows", "show_source",
           "solution"]
