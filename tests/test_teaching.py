"""The teacher's guide is up to date, speaks of every notebook, and its commands are real; so is the tutors' guide."""

import re
from pathlib import Path

import pytest

from minicogvx.course import notebook_builder, teaching
from minicogvx.course.exercises import all_exercises

ROOT = Path(__file__).resolve().parents[1]
GUIDE = teaching.GUIDE.read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### (\d\d) [^\n]*\n(.*?)(?=^##|\Z)", GUIDE, re.MULTILINE | re.DOTALL))


def test_the_generated_parts_are_up_to_date():
    assert teaching.filled(GUIDE) == GUIDE, "run: python -m minicogvx.course.teaching"
    assert len(teaching.PART.findall(GUIDE)) == 1 + len(SECTIONS)


def test_every_notebook_has_its_section(subtests):
    asked = {source.stem[:2]: re.findall(r'^predict\("(\d+\.\d+)"', source.read_text(), re.MULTILINE)
             for source in notebook_builder.sources()}
    assert SECTIONS.keys() == asked.keys()
    for notebook, section in SECTIONS.items():
        with subtests.test(notebook):
            assert re.search(r"^\*\*Goal\.\*\* \S", section, re.MULTILINE)
            votes = re.search(r"^\*\*Votes\.\*\* (.*?)\n\n", section, re.MULTILINE | re.DOTALL)[1]
            named = re.findall(rf"\b{int(notebook)}\.\d\b", votes)
            assert len(set(named) & set(asked[notebook])) == 2, named
            assert f"<!-- mistakes {notebook} -->" in section


def test_every_exercise_has_common_mistakes_and_none_too_many(subtests):
    rows = re.findall(r"^\| (\d+\.\d+) \w+ \| (.+?) \| (.+) \|$", GUIDE, re.MULTILINE)
    for exercise in all_exercises():
        with subtests.test(exercise.number):
            mine = [said for number, _, said in rows if number == exercise.number]
            assert 1 <= len(mine) == len(set(mine)) <= teaching.MOST


def test_mistakes_are_read_from_guards(subtests):
    text = '''
guard("5.3", right, [
    ("holds NaN or infinity", dividing), ("wrong end", at_the_wrong_end), ("is None; does your function end", nothing),
    ("holds NaN or infinity", another), (f"{x} is not", formatted), ("no name", lambda x: x + 1),
    ("half of the signal is missing", halved(2)),
    ("long", lambda x: a_function_with_a_long_name(x, x, x, x) + another_function_with_a_long_name(x)),
])
guard(exercise, right, [])
'''
    answers = teaching.wrong_answers(text)
    assert list(answers) == ["5.3"]
    assert teaching.common(answers["5.3"]) == [
        ("dividing", "holds NaN or infinity"), ("`halved(2)`", "half of the signal is missing"),
        ("at the wrong end", "wrong end")]
    assert len(teaching.common([(f"way {i}", f"a message that says enough {i}") for i in range(9)])) == 5
    for said, cell in (("it has x_1 | 2", "... it has x\\_1 \\| 2 ..."), ("Do that.", "Do that.")):
        with subtests.test(said):
            assert teaching._cell(said) == cell


def test_a_part_that_is_outdated_is_written_anew(tmp_path, capsys):
    guide = tmp_path / "guide.md"
    guide.write_text("# Guide\n<!-- table -->\nold\n<!-- end -->\nby hand\n<!-- mistakes 02 -->\n<!-- end -->\n")
    assert teaching.main(["--guide", str(guide)]) == 0
    text = guide.read_text()
    assert "old" not in text and "by hand" in text and "| 2.1 pad_past |" in text and "[02_causal_vae]" in text
    assert capsys.readouterr().out.endswith("2 parts are up to date.\n")
    assert teaching.filled(text) == text


@pytest.mark.parametrize("page", ["notebooks/TEACHING.md", "AGENTS.md"])
def test_what_a_guide_names_is_there(page, subtests):
    text = (ROOT / page).read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)):
        with subtests.test(f"make {target}"):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    for module in set(re.findall(r"-m (minicogvx[.\w]+)", text)):
        with subtests.test(module):
            assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        with subtests.test(link):
            assert ((ROOT / page).parent / link).exists()
    for number in set(re.findall(r"\b(?:check|hint|solution|grade|find)\(\"(\d+\.\d+)\"", text)):
        with subtests.test(number):
            assert number in [each.number for each in all_exercises()]
