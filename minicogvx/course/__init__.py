"""What a notebook needs besides the model: clips, labelled figures in one style, source from its own file."""

from minicogvx.course.show import new_figure, show_clip, show_figure, show_rows, show_source

__all__ = ["new_figure", "show_clip", "show_figure", "show_rows", "show_source"]
