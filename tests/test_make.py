"""The Makefile, as far as it can be tested without installing anything."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("Makefile", "pyproject.toml", "setup.py", "constraints.txt")

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


@pytest.fixture
def clone(tmp_path) -> Path:
    """A folder in which nothing is installed yet."""
    for name in NEEDED:
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs make without what an outer `make test` sets."""
    clean = {name: value for name, value in os.environ.items()
             if not name.startswith("MAKE") and name not in ("PYTHON", "TORCH_INDEX", "ARGS")}
    return subprocess.run(["make", *arguments], cwd=folder, env=clean | environment, capture_output=True, text=True,
                          timeout=60)


def interpreter(folder: Path, name: str, version: str) -> str:
    """A command that answers as a Python of that version does."""
    major, minor, _ = version.split(".")
    script = folder / name
    script.write_text(f'''#!/bin/sh
if [ "$1" = --version ]; then echo "Python {version}"; exit 0; fi
if [ "$1" = -c ]; then exec "{sys.executable}" -c "import sys; sys.version_info = ({major}, {minor}, 0); $2"; fi
echo "installed with {version}" >> "{folder}/log"
''')
    script.chmod(0o755)
    return str(script)


def test_make_alone_lists_every_target(clone):
    told = make(clone).stdout
    phony = re.search(r"^\.PHONY: ((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    targets = set(phony.replace("\\", " ").split())
    assert targets >= {"setup", "doctor", "test-quick", "check-gpu", "clean"}
    for target in targets - {"help", "chromium", "test-slow", "test-ranks", "test-notebooks"}:
        assert re.search(rf"^make {target}\b ", told, re.MULTILINE), target
    assert re.search(r"test-LEVEL .*slow, ranks or notebooks", told) and "TORCH_INDEX=https://" in told


def test_a_python_that_does_not_fit_or_is_not_there_is_refused_in_one_sentence(clone, subtests):
    for version in ("3.10.13", "3.14.0", "2.7.18"):
        with subtests.test(version):
            done = make(clone, "doctor", f"PYTHON={interpreter(clone, 'mine', version)}")
            lines = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
            assert done.returncode != 0 and len(lines) == 1, done.stderr
            assert f"is Python {version}; minicogvx needs 3.11, 3.12 or 3.13" in lines[0]
            assert not (clone / ".venv").exists() and not (clone / "log").exists()
    done = make(clone, "demo", "PYTHON=python9")
    assert done.returncode != 0 and "python9 is not there; install Python 3.11, 3.12 or 3.13" in done.stderr
    nothing = clone / "nothing"
    nothing.mkdir()
    for name in ("sh", "make", "sed", "touch", "mkdir", "rm"):
        (nothing / name).symlink_to(shutil.which(name))
    done = make(clone, "demo", PATH=str(nothing))
    assert done.returncode != 0 and "There is no Python 3.11, 3.12 or 3.13 here; install one" in done.stderr


def test_the_first_python_that_fits_is_taken(clone, subtests):
    commands = clone / "commands"
    commands.mkdir()
    interpreter(commands, "python3.11", "3.10.1")  # a name is no promise
    interpreter(commands, "python3.12", "3.14.0")
    interpreter(commands, "python3.13", "2.7.1")
    for version in ("3.11.2", "3.12.1", "3.13.0"):
        with subtests.test(version):
            name = Path(interpreter(commands, "python3", version)).name
            dry = make(clone, "--dry-run", "setup", PATH=f"{commands}:{os.environ['PATH']}")
            assert f'"{name}" -m venv .venv' in dry.stdout, dry.stdout


def test_torch_comes_from_the_index_that_is_named_and_all_else_from_the_ordinary_one(clone, subtests):
    for index in ("", *(f"https://download.pytorch.org/whl/{kind}" for kind in ("cpu", "cu130"))):
        with subtests.test(index):
            told = make(clone, "--dry-run", "setup", f"TORCH_INDEX={index}").stdout
            pip = [line for line in told.splitlines() if " pip install " in line]
            torch = [line for line in pip if "torch==2.13.0" in line]
            assert len(torch) == 1 and len(pip) == 4
            assert all("--constraint constraints.txt" in line for line in pip)
            assert [line for line in pip if "--index-url" in line] == (torch if index else [])
            if index:
                assert f'--no-deps --index-url "{index}" torch==2.13.0 torchvision' in torch[0]
            assert pip[0] == torch[0]  # before anything that would bring another torch


def test_setup_ends_with_what_to_do_next_if_it_installed_something(clone):
    said = 'echo "Done. In each terminal: source .venv/bin/activate"'
    assert make(clone, "--dry-run", "setup").stdout.splitlines()[-1] == said
    assert said not in make(clone, "--dry-run", "lab").stdout
    there = "--old-file=.venv/.core-installed", "--old-file=.venv/.installed"
    assert said not in make(clone, "--dry-run", *there, "setup").stdout


def test_levels_are_chosen_by_their_markers(clone):
    for level in ("quick", "slow", "ranks", "notebooks"):
        told = make(clone, "--dry-run", f"test-{level}").stdout
        assert f" -m {level} " in told and ("--nbval" in told) == (level == "notebooks")
    whole = make(clone, "--dry-run", "test").stdout
    chosen = re.findall(r"-m pytest.* -m (\"[^\"]*\"|\w+) ", whole)
    assert "--nbval" in whole and chosen == ['"not ranks and not browser"', "ranks"]  # between them, every test once


def test_chosen_tests_are_none_of_a_runs_or_fail_whatever_quotes_choose_them(clone, subtests):
    python, ruff = clone / ".venv" / "bin" / "python", clone / ".venv" / "bin" / "ruff"
    python.parent.mkdir(parents=True)
    ruff.write_text("#!/bin/sh\n")
    ruff.chmod(0o755)
    for status, chosen, failed in ((5, "-k 'this or that'", False), (5, '-k "this or that"', False), (5, "", True),
                                   (1, "-k 'this or that'", True)):
        with subtests.test(f"{status} {chosen}"):
            python.write_text(f'#!/bin/sh\nfor each; do echo "$each"; done >> "{clone}/log"\nexit {status}\n')
            python.chmod(0o755)
            done = make(clone, "--old-file=.venv/.core-installed", "--old-file=.venv/.installed", "test",
                        f"ARGS={chosen}")
            assert (done.returncode != 0) == failed, done.stderr
            assert "this or that" in (clone / "log").read_text().splitlines()


def test_the_lab_opens_the_learners_copies_which_nothing_removes(clone):
    told = make(clone, "--dry-run", "--old-file=.venv/.core-installed", "--old-file=.venv/.installed", "lab").stdout
    allowed = ["--allow-root"] * (os.geteuid() == 0)  # Jupyter refuses root otherwise
    assert told.split() == [".venv/bin/python", "-m", "minicogvx.course.copies", ".venv/bin/jupyter", "lab", *allowed,
                            "my_notebooks/00_first_video.ipynb"]
    assert "/my_notebooks/" in (ROOT / ".gitignore").read_text().splitlines()
    mine = clone / "my_notebooks" / "00_first_video.ipynb"
    mine.parent.mkdir()
    mine.write_text("{}")
    assert make(clone, "clean").returncode == 0 and mine.exists()


def test_what_is_handed_on_is_handed_on_whole(clone):
    dry = make(clone, "--dry-run", "--old-file=.venv/.core-installed", "demo", "PROMPT=a \"red\" 'star' $$(ls)")
    assert dry.returncode == 0
    assert dry.stdout.strip() == '.venv/bin/minicogvx generate --model toy  -- "$PROMPT"'
    assert "python -m benchmarks.check_gpu --tiny" in make(clone, "--dry-run", "check-gpu", "ARGS=--tiny").stdout


def test_the_shipped_model_is_replaced_only_where_that_is_asked_for(clone):
    trainer, shipped = clone / ".venv" / "bin" / "minicogvx", clone / "data" / "toy" / "model"
    trainer.parent.mkdir(parents=True)
    trainer.write_text("#!/bin/sh\nmkdir -p runs/toy/pipeline && echo mine > runs/toy/pipeline/model\n")
    trainer.chmod(0o755)
    shipped.parent.mkdir(parents=True)
    shipped.write_text("theirs\n")
    for words, text in (([], "theirs\n"), (["SHIP=no"], "theirs\n"), (["SHIP=yes"], "mine\n")):
        done = make(clone, "--old-file=.venv/.core-installed", "--old-file=.venv/.installed", "train-toy", *words)
        assert done.returncode == 0, done.stderr
        assert shipped.read_text() == text
        assert [path.name for path in (clone / "data").iterdir()] == ["toy"]
