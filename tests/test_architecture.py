"""docs/architecture.md: its picture and its floors are those of the code, and every path that it names is there."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("make_architecture", ROOT / "docs" / "make_architecture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_picture_and_floors_are_those_of_the_imports(maker):
    how = "run: python docs/make_architecture.py"
    assert maker.PICTURE.read_text(encoding="utf-8") == maker.picture(), how
    assert maker.filled(TEXT) == TEXT, how


def test_the_picture_shows_every_room_once_and_arrows_lead_down(maker):
    boxed = [name for _, _, names, _ in maker.BOXES.values() for name in names]
    every = {maker.room(name) for name in maker.modules()} - {"", "data"}
    assert sorted([*boxed, *maker.ground()]) == sorted(every)
    for user, used in maker.arrows():
        assert maker.BOXES[user][1] < maker.BOXES[used][1], f"{user} -> {used} leads up in the picture"
    assert ("training", "pipeline") in maker.arrows() and ("training", "vae") not in maker.arrows()
    assert not any("engine" in pair and "pipeline" in pair for pair in maker.arrows())


def test_every_path_on_the_page_is_there(subtests):
    named = set(re.findall(r"`([a-z_]+/[\w./]*)`", TEXT))
    assert len(named) > 60
    for path in named:
        with subtests.test(path):
            assert (ROOT / path).exists() or (ROOT / "minicogvx" / path).exists()


def test_the_table_names_a_file_for_many_changes():
    table = TEXT.split("## To change X, open Y")[1].split("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 25
    for what, where, _ in rows:
        (path,) = re.findall("`(.+?)`", where)
        assert what.strip() and (ROOT / path).is_file(), path


def test_the_two_walks_name_the_files_in_the_order_in_which_they_are_met():
    for title, first, last in (("From a caption to an mp4", "cli.py", "oracle_sentence.py"),
                               ("From a folder of films", "finetune_command.py", "result.py")):
        walk = TEXT.split(f"## {title}")[1].split("\n## ")[0]
        files = re.findall(r"`minicogvx/([\w/]+\.py)`", walk)
        assert files[0].endswith(first) and files[-1].endswith(last) and len(set(files)) >= 12
