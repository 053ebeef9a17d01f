"""Every test has one level, and tests that are slow by nature are not quick."""

import ast
import re
from pathlib import Path

from tests.conftest import LEVELS, level_of

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
FILES = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("test_*.py")}
TESTS = {name: [node.name for node in ast.walk(ast.parse(text))
                if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")] for name, text in FILES.items()}
# The text of files that start processes as torchrun does, or run a notebook.
KINDS = {"ranks": r"torch\.distributed\.run\b.*nproc|start_ranks\(|[\"']--nproc-per-node",
         "notebooks": r"notebook_builder\.execute\(|[\"']pytest[\"'], [\"']--nbval[\"']"}


def test_a_level_names_tests_that_are_there_once(subtests):
    every = [name for names in LEVELS.values() for name in names]
    for name in every:
        with subtests.test(name):
            file, _, function = name.partition("::")
            assert file in TESTS and (not function or function in TESTS[file]), f"there is no test {name}"
            assert every.count(name) == 1 and (not function or file not in every), f"{name} is named twice"


def test_what_starts_ranks_or_notebooks_is_not_quick(subtests):
    for kind, starts in KINDS.items():
        found = {name for name, text in FILES.items() if name != Path(__file__).name and re.search(starts, text)}
        assert found
        for name in found:
            with subtests.test(name, kind=kind):
                assert kind in {level_of(name, test) for test in TESTS[name]}, f"{name} has no test of level {kind}"


def test_the_level_is_that_of_the_file_or_of_the_function():
    file, function = next(name for name in LEVELS["notebooks"] if "::" in name).split("::")
    assert level_of(file, function) == "notebooks" and level_of(file, "test_new") == "quick"
    assert level_of("test_new.py", function) == "quick" and level_of(LEVELS["ranks"][0], "test_new") == "ranks"


def test_pytest_and_make_know_every_level(request):
    told = "\n".join(request.config.getini("markers"))
    assert all(f"{level}: " in told for level in ("quick", *LEVELS))
    assert request.node.get_closest_marker("quick") is not None
    assert all(f"test-{level}" in (ROOT / "Makefile").read_text() for level in ("quick", *LEVELS))
