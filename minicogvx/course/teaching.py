"""The generated parts of `notebooks/TEACHING.md`: a table of the notebooks, and the common mistakes of each exercise.

    python -m minicogvx.course.teaching          # writes them between their markers

The mistakes are the wrong answers of the guards in `tests/test_exercises_*.py`, each with what the check says to it.
So the list cannot name a mistake that the check does not know.
"""

import argparse
import ast
import re
import sys
from pathlib import Path

from minicogvx.course import minutes, notebook_builder
from minicogvx.course.assignment import EXPLAIN_POINTS
from minicogvx.course.exercises import all_exercises
from minicogvx.files import written_whole

GUIDE = notebook_builder.ROOT / "TEACHING.md"
TESTS = notebook_builder.ROOT.parent / "tests"
MOST, FEW = 5, 3  # mistakes of an exercise; fewer than FEW are filled up with those that say less than
TELLING = 20  # characters
USUAL = ("does your function end in return", "is None")  # of every exercise
PART = re.compile(r"(<!-- (table|mistakes \d\d) -->\n).*?(<!-- end -->)", re.DOTALL)


def wrong_answers(text: str) -> dict[str, list[tuple[str, str]]]:
    """Of each guard in a test's source: (what the learner did, what the check says), as far as the text shows both."""
    found: dict[str, list[tuple[str, str]]] = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "guard" and len(node.args) == 3:
            number, _, answers = node.args
            pairs = [each.elts for each in getattr(answers, "elts", ()) if isinstance(each, ast.Tuple)]
            if isinstance(number, ast.Constant):
                found[number.value] = [(_name(answer), said.value) for said, answer in pairs
                                       if isinstance(said, ast.Constant) and _name(answer)]
    return found


def _name(answer: ast.expr) -> str:
    """The name of a wrong answer in words, or its code if that is short."""
    if isinstance(answer, ast.Name):
        return answer.id.replace("_", " ")
    code = ast.unparse(answer).replace("|", "\\|")
    return f"`{code}`" if len(code) <= 60 else ""


def common(answers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """At most five of them, each with a message of its own, those first that say most."""
    own = {said: (did, said) for did, said in reversed(answers) if not any(each in said for each in USUAL)}
    own = [own[said] for said in dict.fromkeys(said for _, said in answers) if said in own]
    telling = [each for each in own if len(each[1]) >= TELLING]
    rest = [each for each in own if len(each[1]) < TELLING]
    return [*telling, *rest[:max(0, FEW - len(telling))]][:MOST]


def mistakes_of(notebook: int) -> str:
    """The mistakes of all exercises of a notebook, as a folded table."""
    found = {number: pairs for path in sorted(TESTS.glob("test_exercises_*.py"))
             for number, pairs in wrong_answers(path.read_text(encoding="utf-8")).items()}
    lines = ["<details><summary>Common mistakes, and what the check says to them</summary>", "",
             "| exercise | the learner's answer | the check says, among other things |", "|---|---|---|"]
    for exercise in all_exercises():
        if exercise.number.partition(".")[0] == str(notebook):
            for did, said in common(found.get(exercise.number, [])):
                lines.append(f"| {exercise.number} {exercise.title} | {did} | {_cell(said)} |")
    return "\n".join([*lines, "", "</details>", ""])


def _cell(said: str) -> str:
    # A fragment of a message, with what Markdown would take for a mark made plain.
    text = re.sub(r"([|*_<`\\])", r"\\\1", " ".join(said.split()))
    return f"{'' if said[:1].isupper() else '... '}{text}{'' if said[-1] in '.?!' else ' ...'}"


def table() -> str:
    """A line for each notebook: minutes by the course's rule, seconds of its cells, exercises, points."""
    lines = ["| notebook | minutes in all | of them exercises | cells run in | points by machine, by hand |",
             "|---|---|---|---|---|"]
    for source in notebook_builder.sources():
        number = int(source.stem[:2])
        effort = minutes.effort_of(notebook_builder.build(source), number, minutes.stored_seconds(source))
        points = sum(each.difficulty for each in all_exercises() if each.number.partition(".")[0] == str(number))
        lines.append(f"| [{source.stem}]({source.stem}.ipynb) | {effort.minutes} | {effort.exercise_minutes} | "
                     f"{effort.seconds} s | {points} + {EXPLAIN_POINTS} |")
    return "\n".join([*lines, ""])


def filled(text: str) -> str:
    """The guide with its generated parts as they should be now."""
    def part(match: re.Match) -> str:
        kind = match[2]
        return match[1] + (table() if kind == "table" else mistakes_of(int(kind.split()[1]))) + match[3]

    return PART.sub(part, text)


def main(argv: list[str] | None = None) -> int:
    """Writes the generated parts into the guide."""
    parser = argparse.ArgumentParser(prog="python -m minicogvx.course.teaching",
                                     description="The generated parts of notebooks/TEACHING.md.")
    parser.add_argument("--guide", type=Path, default=GUIDE, help="another file with such markers")
    guide = parser.parse_args(argv).guide
    text = filled(guide.read_text(encoding="utf-8"))
    with written_whole(guide) as part:
        part.write_text(text, encoding="utf-8")
    print(f"{guide}: {len(PART.findall(text))} parts are up to date.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
