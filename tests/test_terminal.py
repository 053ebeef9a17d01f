"""Clips as coloured characters: the colours are the pixels', no line is too long, and nothing is sent to a pipe."""

import io
import re

import pytest
import torch

from minicogvx import terminal
from minicogvx.terminal import Redrawn, Screen, frames_as_text, play, screen_of
from minicogvx.visible import Visible

CODES = re.compile(r"\x1b\[[0-9;]*m")


class Stream(io.StringIO):
    """A stream that says whether it is a terminal, and how it encodes."""

    def __init__(self, terminal: bool, encoding: str = "utf-8"):
        super().__init__()
        self.terminal, self.kind = terminal, encoding

    encoding = property(lambda self: self.kind)

    def isatty(self) -> bool:
        return self.terminal


def quarters() -> torch.Tensor:
    """Three frames of 64x64: red above, blue below, and in the second frame a white square."""
    video = torch.zeros(3, 64, 64, 3)
    video[:, :32, :, 0] = video[:, 32:, :, 2] = 1
    video[1, 16:48, 16:48] = 1
    return video


def pixels(line: str) -> list[tuple[str, str]]:
    """(colour above, colour below) of every half block of a line."""
    found, now = [], None
    for code, block in re.findall(r"\x1b\[([0-9;]*)m|(\u2580)", line):
        if block:
            found.append(now)
        elif code != "0":
            above, below = re.fullmatch(r"38;(.*);48;(.*)", code).groups()
            now = (above, below)
    return found


def test_every_half_block_has_the_colours_of_two_pixels():
    lines = frames_as_text(quarters(), Screen("24-bit", True, 80, True))
    side = 2 * len(lines)
    assert pixels(lines[0])[0] == ("2;255;0;0", "2;255;0;0") and pixels(lines[-1])[-1] == ("2;0;0;255", "2;0;0;255")
    shown = [pixels(line) for line in lines]
    assert all(len(line) == 3 * side for line in shown)
    assert shown[side // 4 + 1][side + side // 2] == ("2;255;255;255",) * 2  # the square in the second frame
    assert shown[side // 4 + 1][side // 2] != ("2;255;255;255",) * 2
    assert all(line.endswith("\x1b[0m") for line in lines)


def test_with_256_colours_it_is_the_nearest():
    assert terminal._of_256([255, 0, 0]) == "5;196" and terminal._of_256([0, 0, 255]) == "5;21"
    assert terminal._of_256([0, 0, 0]) == "5;16" and terminal._of_256([128, 128, 128]) == "5;244"
    levels = [(0, 95, 135, 175, 215, 255)[i] for i in (1, 2, 3)]
    assert terminal._of_256(levels) == f"5;{16 + 36 + 12 + 3}"
    line = frames_as_text(quarters(), Screen("256", True, 80, True))[0]
    assert pixels(line)[0] == ("5;196", "5;196")


def test_without_colours_the_object_is_marked_and_the_border_is_not():
    video = torch.full((2, 64, 64, 3), 0.4)
    video[:, 24:40, 24:40] = torch.tensor([1.0, 0.0, 0.0])
    lines = frames_as_text(video, Screen("no", True, 80, True))
    assert "\x1b" not in "".join(lines) and set("".join(lines)) <= set(" .:*#")
    assert lines[0].strip() == "" and "#" in lines[len(lines) // 2]


@pytest.mark.parametrize("kind", ["24-bit", "256", "no"])
def test_no_line_is_wider_than_the_terminal(kind):
    for width in (20, 21, 34, 39, 40, 52, 80, 100, 250):
        lines = frames_as_text(quarters().repeat(4, 1, 1, 1), Screen(kind, True, width, True))
        seen = [CODES.sub("", line) for line in lines]
        assert lines and max(map(len, seen)) < width and len(set(map(len, seen))) == 1
    assert frames_as_text(quarters()[:1], Screen("24-bit", True, 80, True))  # a single frame, too


def test_what_a_stream_can_show_is_what_its_environment_says(subtests):
    full = {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
    for stream, variables, colours, codes in (
            (Stream(True), full, "24-bit", True), (Stream(True), {"TERM": "xterm-256color"}, "256", True),
            (Stream(True), {"TERM": "xterm"}, "no", True), (Stream(True), full | {"NO_COLOR": "1"}, "no", True),
            (Stream(True), full | {"NO_COLOR": ""}, "24-bit", True), (Stream(True), full | {"TERM": "dumb"},
            "no", False), (Stream(True), {}, "no", False), (Stream(True, "ascii"), full, "no", True),
            (Stream(False), full, "no", False)):
        with subtests.test(variables=variables, terminal=stream.terminal):
            screen = screen_of(stream, variables)
            assert (screen.colours, screen.codes, screen.terminal) == (colours, codes, stream.terminal)
    assert frames_as_text(quarters(), screen_of(Stream(False), full)) == []


def test_lines_are_drawn_again_in_place_and_never_wrap(monkeypatch):
    stream = Stream(True)
    monkeypatch.setattr(terminal.sys, "stdout", Visible(stream))
    live = Redrawn(Screen("256", True, 20, True))
    live.show(["one", "x" * 50])
    live.show(["two"])
    live.clear()
    live.clear()
    assert stream.getvalue() == f"\x1b[Jone\n{'x' * 19}\n\x1b[2A\x1b[Jtwo\n\x1b[1A\x1b[J\x1b[J"
    quiet = Redrawn(Screen())
    quiet.show(["never"])
    assert "never" not in stream.getvalue()


def test_only_the_programs_own_codes_pass():
    stream = Stream(True)
    shown = Visible(stream)
    shown.write("\x1b[31mcaption\n")
    shown.write_codes("\x1b[0m")
    assert stream.getvalue() == "\\x1b[31mcaption\n\x1b[0m"


def test_a_clip_plays_in_place_and_leaves_nothing(monkeypatch):
    stream, waits = Stream(True), []
    monkeypatch.setattr(terminal.sys, "stdout", Visible(stream))
    monkeypatch.setattr(terminal.time, "sleep", waits.append)
    play(quarters(), 8, Screen("256", True, 30, True))
    height = len(frames_as_text(quarters()[:1], Screen("256", True, 30, True)))
    assert waits == [1 / 8] * 3 and stream.getvalue().count(f"\x1b[{height}A") == 3
    assert stream.getvalue().endswith(f"\x1b[{height}A\x1b[J")
    before = stream.getvalue()
    play(quarters(), 8, Screen("no", True, 30, True))
    assert stream.getvalue() == before and len(waits) == 3
