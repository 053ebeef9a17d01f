"""Every test has one level, and tests that are slow by nature are not quick."""

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import LEVELS, level_of

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
FILES = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("test_*.py")}
TESTS = {name: [node.name for node in ast.walk(ast.parse(text))
                if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")] for name, text in FILES.items()}
# The text of files that start processes as torchrun does, or run a notebook.
KINDS = {"ranks": r"torch\.distributed\.run\b.*nproc|start_ranks\(|[\"']--nproc-per-node",
         "notebooks": r"notebook_builder\.execute\(|[\"']pytest[\"'], [\"']--nbval[\"']"}


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_names_tests_that_are_there_once(level):
    every = [name for names in LEVELS.values() for name in names]
    for name in LEVELS[level]:
        file, _, function = name.partition("::")
        assert file in TESTS and (not function or function in TESTS[file]), f"there is no test {name}"
        assert every.count(name) == 1 and (not function or file not in every), f"{name} is named twice"


@pytest.mark.parametrize("kind", KINDS)
def test_what_starts_ranks_or_notebooks_is_not_quick(kind):
    found = {name for name, text in FILES.items() if name != Path(__file__).name and re.search(KINDS[kind], text)}
    assert len(found) >= 2
    for name in found:
        assert kind in {level_of(name, test) for test in TESTS[name]}, f"{name} has no test of level {kind}"


def test_the_level_is_that_of_the_file_or_of_the_function():
    assert level_of("test_train_ranks.py", "test_both_ranks_end_in_the_same_bits") == "ranks"
    assert level_of("test_widgets.py", "test_nbval_finds_no_difference") == "notebooks"
    assert level_of("test_widgets.py", "test_the_frame_that_is_asked_for_is_shown") == "quick"
    assert level_of("test_new.py", "test_nbval_finds_no_difference") == "quick"


def test_pytest_and_make_know_every_level(request):
    told = "\n".join(request.config.getini("markers"))
    assert all(f"{level}: " in told for level in ("quick", *LEVELS))
    assert request.node.get_closest_marker("quick") is not None
    assert all(f"test-{level}" in (ROOT / "Makefile").read_text() for level in ("quick", *LEVELS))
