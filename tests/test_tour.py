"""`minicogvx tour` as a user meets it: in a terminal, in a pipe, stopped at any moment, and with bad input."""

import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from minicogvx import cli, tour, tour_command
from minicogvx.ablation.nano import KINDS
from minicogvx.data.films.decode import read_video
from minicogvx.terminal import Redrawn, Screen
from tests.test_readme import parse

pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
COMMAND = [sys.executable, "-m", "minicogvx", "tour"]
QUICK = ["--minutes", "0.001"]  # the fewest training steps
CODES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Terminal:
    """A process in a pseudo-terminal of so many columns."""

    def __init__(self, argv: list[str], folder: Path, columns: int = 80, **variables: str):
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (40, columns))
        environment = {name: value for name, value in os.environ.items()
                       if name not in ("COLUMNS", "LINES", "NO_COLOR", "COLORTERM")}
        self.process = subprocess.Popen(argv, cwd=folder, stdin=slave, stdout=slave, stderr=slave, close_fds=True,
                                        env=environment | {"TERM": "xterm-256color"} | variables,
                                        start_new_session=True, preexec_fn=_own_terminal)
        os.close(slave)
        self.shown = ""

    def until(self, words: str, seconds: float = 200) -> None:
        """Reads until `words` are shown; "" reads to the end."""
        stop = time.monotonic() + seconds
        while not (words and words in " ".join(self.shown.split())) and time.monotonic() < stop:
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    piece = os.read(self.master, 65536)
                except OSError:
                    piece = b""  # the other end is closed
                if not piece:
                    break
                self.shown += piece.decode(errors="replace")
        assert words in " ".join(self.shown.split()), self.shown[-2000:]

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def end(self) -> int:
        self.until("")
        os.close(self.master)
        return self.process.wait(30)


def _own_terminal() -> None:
    import fcntl

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C reaches the process


def test_in_a_narrow_colour_terminal_it_asks_draws_trains_and_goes_on(tmp_path):
    there = Terminal([*COMMAND, *QUICK, "--out", "here"], tmp_path, columns=40)
    there.until("moves up):", 60)
    assert "Shapes: circle" in there.shown
    there.type("a green ring mves left\n")
    there.until("did you mean moves?", 20)
    there.type("a green ring moves left\n")
    assert there.end() == 0
    lines = [CODES.sub("", line) for line in there.shown.replace("\r", "").split("\n")]
    drawn = [line for line in lines if "\u2580" in line]
    assert len(drawn) > 20 and max(map(len, drawn)) < 40 and "\x1b[38;5;" in there.shown
    text = [line for line in lines if "\u2580" not in line and " " in line.strip()]
    commands = [line for line in text if line.startswith("  ")]
    shown = " ".join(" ".join(lines).split())
    assert all(words in shown for words in ("Loading PyTorch ...", "Loading the model ...", "Measuring how fast",
                                            "60 steps do not fit into 0.06 s", "gain in loss", "as asked: background"))
    last = len(lines) - lines[::-1].index("gain in loss (heard: above 0.01)")
    heard = [line.split()[0] for line in lines[last:last + 4] if line.endswith(" heard")]
    assert "background" in heard and f"that it hears: {', '.join(heard)}." in shown
    assert all(len(line) < 40 for line in text if line not in commands and "): " not in line)
    assert "The oracle sees" in " ".join(lines) and "removing noise: step 25 of 25" in there.shown
    assert [line[:1] for line in lines if re.match(r"\d of 3: ", line)] == ["1", "2", "3"]
    assert {path.name for path in (tmp_path / "here").iterdir()} == set(tour_command.FILES)


def test_in_a_pipe_it_asks_nothing_and_writes_plain_text(monkeypatch, tmp_path):
    done = subprocess.run([*COMMAND, *QUICK, "--seed", "3"], cwd=tmp_path, capture_output=True, text=True, timeout=200,
                          input="a red circle grows\n")
    assert done.returncode == 0 and done.stderr == ""
    assert "\x1b" not in done.stdout and "\\x1b" not in done.stdout and "\u2580" not in done.stdout
    assert f"for: {tour_command.SUGGESTED[0]}" in " ".join(done.stdout.split())
    assert "step 60 of 60, loss" in done.stdout and all(f"{kind} 0." in done.stdout for kind in KINDS[:2])
    assert "Making that clip ..." in done.stdout and "Measuring how fast this machine trains ..." in done.stdout
    assert read_video(tmp_path / "outputs" / "tour" / "trained.mp4", 9, 64, 64, fps=8).shape == (9, 64, 64, 3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tour_command, "_run", lambda *given: None)
    assert cli.main(["tour"]) == 0  # its own files may be written over


def test_ctrl_c_at_any_moment_ends_it_with_one_sentence(tmp_path, subtests):
    moments = {"the question": ("moves up):", []), "loading": ("Loading PyTorch", ["a", "star"]),
               "training": ("s left", ["a", "star", "--minutes", "5"])}
    for moment, (seen, words) in moments.items():
        with subtests.test(moment):
            there = Terminal([*COMMAND, *words, "--out", "here"], tmp_path, NO_COLOR="1")
            there.until(seen)
            time.sleep(0.3)
            there.type("\x03")
            assert there.end() == 130
            told = there.shown.replace("\r", "").split("\n")
            assert told[-1] == "" and told[-2].startswith("minicogvx: the tour was stopped")
            assert ("files are in here" in told[-2]) == (moment == "training")
            assert "Traceback" not in there.shown and "\x1b[38" not in there.shown
            assert not [path for path in tmp_path.rglob("*") if ".part" in path.name]


def test_a_stop_from_elsewhere_is_one_line_on_stderr(monkeypatch, tmp_path, capsys):
    def stop(*given):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(tour_command, "_run", stop)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["tour"]) == 130
    assert capsys.readouterr().err == "minicogvx: the tour was stopped\n"


def test_bad_input_is_one_sentence_before_any_work(monkeypatch, tmp_path, capsys, subtests):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tour_command, "_run", lambda *given: pytest.fail("it began"))
    Path("file").write_text("mine")
    Path("mine").mkdir()
    Path("mine/first.png").write_text("mine")
    for argv, message in ((["--minutes", "0"], "--minutes is 0; it must be above 0, at most 60"),
                          (["--minutes", "nan"], "--minutes is nan"), (["--seed", "-1"], "--seed is -1"),
                          (["--out", "file"], "file cannot be written"), (["--out", ""], "--out is empty"),
                          (["--out", "mine"], "mine/first.png would be written over"),
                          (["--minuets", "1"], "did you mean --minutes?")):
        with subtests.test(argv=argv):
            assert cli.main(["tour", *argv]) == 2
            told = capsys.readouterr().err
            assert message in told and told.count("\n") == 1
    assert Path("mine/first.png").read_text() == "mine"


def test_an_empty_answer_or_none_takes_the_first_caption(monkeypatch, capsys):
    monkeypatch.setattr(tour_command.sys, "stdin", type("T", (), {"isatty": lambda self: True})())
    monkeypatch.setattr(tour_command.sys.stdout, "isatty", lambda: True, raising=False)
    for answers, wanted in (([""], tour_command.SUGGESTED[0]), ([EOFError()], tour_command.SUGGESTED[0]),
                            (["a cat", "a cat"], "a cat"), (["a cat", ""], tour_command.SUGGESTED[0]),
                            (["a red star grows"], "a red star grows")):
        given = iter(answers)

        def answer(prompt):
            each = next(given)
            if isinstance(each, Exception):
                raise each
            return each

        monkeypatch.setattr("builtins.input", answer)
        assert tour_command._ask() == wanted and next(given, None) is None
        assert ("never seen 'cat'" in capsys.readouterr().out) == (answers[0] == "a cat")


def test_every_command_that_it_prints_is_one_that_the_program_takes(monkeypatch, tmp_path):
    monkeypatch.setattr(tour_command, "_program", lambda: "minicogvx")
    lines = [line for _, lines in tour_command.further(tmp_path / "a b") for line in lines]
    own = [shlex.split(line)[1:] for line in lines if line.startswith("minicogvx ")]
    assert len(own) >= 6 and any("lab" in line for line in lines)
    made = [parse(words)[1] for words in own]
    folder = made[3].folder
    assert folder == str(tmp_path / "a b" / "ten-clips") == made[4].data and made[4].out == made[5].lora
    for words in tour_command.SUGGESTED:
        assert tour_command._unknown(words) == ""


def test_the_program_is_called_as_the_shell_finds_it(monkeypatch, tmp_path):
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    monkeypatch.setattr(tour_command.sys, "executable", str(python))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tour_command.shutil, "which", lambda name: None)
    assert tour_command._program() == "env/bin/python -m minicogvx"
    python.with_name("minicogvx").write_text("")
    assert tour_command._program() == "env/bin/minicogvx"
    monkeypatch.setattr(tour_command.shutil, "which", lambda name: str(python.with_name(name)))
    assert tour_command._program() == "minicogvx"
    monkeypatch.setattr(tour_command.shutil, "which", lambda name: f"/elsewhere/{name}")
    assert tour_command._program() == "env/bin/minicogvx"


def test_a_long_command_is_printed_in_pieces_that_the_shell_joins(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tour_command, "_program", lambda: "echo")
    monkeypatch.setenv("COLUMNS", "60")
    out = Path("it's a --folder of mine")
    commands = [line for what, lines in tour_command.further(out) if "Your own" in what for line in lines]
    tour_command._go_on(out)
    printed = capsys.readouterr().out.split("use it:\n")[1].split("To read")[0]
    assert printed.count("\\\n") > 3 and "--style sepia \\" not in printed
    both = [subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=True).stdout
            for text in (printed, "\n".join(commands))]
    assert both[0] == both[1] and "it's a --folder of mine/lora" in both[0]
    for words in (line for line in printed.splitlines() if "folder" not in line):
        assert len(words) < 60


def test_the_plan_fills_the_time_with_steps_and_looks_take_a_third_at_most():
    assert tour.plan_for(60, 0.25, 1.0) == tour.Plan(208, tour.LOOKS, 60.0)
    assert tour.plan_for(300, 0.25, 1.0).steps > 5 * 208
    assert tour.plan_for(60, 0.25, 9.0) == tour.Plan(168, 2, 60.0)  # looks are dear
    assert tour.plan_for(60, 5.0, 30.0) == tour.Plan(tour.FEWEST, 3, 390.0)  # all is slow
    assert tour.plan_for(0.06, 0.25, 90.0) == tour.Plan(tour.FEWEST, 1, 105.0)


def test_a_slow_first_step_does_not_count_in_the_plan(monkeypatch):
    now = [0.0]

    def pass_by(seconds):
        now[0] += seconds

    def slow_at_first(*given, **named):
        for seconds in (90, 90, 90, 0.25, 0.25, 0.25):
            pass_by(seconds)
            yield 1.0

    monkeypatch.setattr(tour, "train_nano", slow_at_first)
    monkeypatch.setattr(tour, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    training = SimpleNamespace(look=lambda: pass_by(1), world=None, pipe=SimpleNamespace(schedule_config=None))
    assert tour.Training.plan(training, 60, 0, Redrawn(Screen())) == tour.plan_for(60, 0.25, 1)


def test_bars_grow_with_the_gain_and_say_what_is_heard():
    heading, *bars = tour.gain_lines({"background": 1.0, "colour": 0.03, "shape": -0.001, "motion": 0.0}, 80)
    assert heading == "gain in loss (heard: above 0.01)"
    assert [line.endswith(" heard") for line in bars] == [True, True, False, False]
    lengths = [line.count("=") for line in bars]
    assert lengths[0] > lengths[1] > lengths[2] == lengths[3] == 0
    assert all(len(line) < 40 for line in tour.gain_lines({"background": 1.0, "shape": -0.001}, 40))
