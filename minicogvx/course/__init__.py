"""What a notebook needs besides the model: clips, figures in one style, source from its own file, exercises."""

from minicogvx.course.exercises import check, hint, progress, solution
from minicogvx.course.show import new_figure, show_clip, show_figure, show_rows, show_source

__all__ = ["check", "hint", "new_figure", "progress", "show_clip", "show_figure", "show_rows", "show_source",
           "solution"]
