"""The map of notebook 00 shows the shapes of the model that it is given."""

from minicogvx.course.machine_map import draw_machine
from tests.tiny import tiny_pipe


def test_the_map_has_the_shapes_of_the_model():
    figure = draw_machine(tiny_pipe())
    (axis,) = figure.axes
    said = {text.get_text() for text in axis.texts}
    assert {"tokens\n32", "text features\n32 x 16", "noise\n4 x 3 x 8 x 8", "latents\n4 x 3 x 8 x 8",
            "video\n9 x 32 x 32 x 3"} <= said
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axis.texts if text.get_text()]
    overlaps = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    assert overlaps == []  # no word lies on another
    frame = figure.bbox
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)
