"""What the course promises of each notebook: predictions before experiments, minutes by one rule, something to turn."""

import ast
import re
from dataclasses import replace

import nbformat

from minicogvx.course import minutes, notebook_builder
from minicogvx.course.exercises import all_exercises
from tests.test_notebooks import SOURCES, built_from, notebook_of, outputs


def careless_predictions(notebook, number: int) -> list[str]:
    """What is wrong with the predictions of notebook `number`: each is asked, shown folded, told and counted.

    A question is one sentence above the cell that asks; that cell does nothing else. Its outcome comes later, from a
    cell that is folded itself or follows a folded one, and more than eight words explain it.
    """
    calls = [(i, *call) for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"
             for call in _course_calls(cell.source)]
    asked = [(i, arguments[0]) for i, name, arguments in calls if name == "predict"]
    told = {arguments[0]: i for i, name, arguments in calls if name == "outcome"}
    found = [] if 2 <= len(asked) <= 4 else [f"there are {len(asked)} predictions; a notebook has two to four"]
    wanted = [f"{number}.{k}" for k in range(1, len(asked) + 1)]
    found += [] if [each for _, each in asked] == wanted else [f"{[each for _, each in asked]} are asked, not {wanted}"]
    found += [f"{each} is told, but not asked" for each in set(told) - {each for _, each in asked}]
    for i, each in asked:
        found += _careless(notebook, i, each, told.get(each))
    counted = [arguments for _, name, arguments in calls if name == "predictions"]
    return found + ([] if counted == [[str(number)]] else [f"predictions(\"{number}\") is not called at the end"])


def _careless(notebook, place: int, each: str, outcome: int | None) -> list[str]:
    cells = notebook.cells
    question = re.search(rf"\*\*Prediction {re.escape(each)}\.\*\*\s+([^?]+\?)", cells[place - 1].source)
    found = [] if question else [f"{each} has no question above it, such as **Prediction {each}.** Which one wins?"]
    found += [] if len(ast.parse(cells[place].source).body) == 1 else [f"the cell that asks {each} does more"]
    if outcome is None or outcome <= place:
        return [*found, f"{each} is never told after it was asked"]
    folded = [i for i in range(place + 1, outcome + 1) if "folded" in cells[i].metadata.get("tags", ())]
    found += [] if folded else [f"nothing is folded between the question {each} and its outcome"]
    after = next((cell.source for cell in cells[outcome + 1:] if cell.cell_type == "markdown"), "")
    return found + ([] if len(after.split()) >= 8 else [f"nothing explains the outcome of {each}"])


def _course_calls(source: str) -> list[tuple[str, list]]:
    """(name, constant arguments) of each call of a helper for predictions."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)
             and isinstance(node.func, ast.Name) and node.func.id in ("predict", "outcome", "predictions")]
    return [(node.func.id, [getattr(each, "value", None) for each in node.args]) for node in nodes]


def truths_for_numbers(notebook) -> list[str]:
    """Printed lines that end in True or False, where a learner should see the number."""
    return [line for output in outputs(notebook) for line in output.get("text", "").splitlines()
            if re.search(r": (True|False)\.?$", line)]


# ---- every notebook


def test_minutes_follow_the_rule_everywhere(subtests):
    """In the notebook's opening and in its metadata; the test of the README's line has the third place."""
    for source in SOURCES:
        with subtests.test(msg=source.stem):
            stored = notebook_of(source).metadata["minicogvx"]
            effort = minutes.effort_of(built_from(source), int(source.stem[:2]), stored["seconds"])
            assert stored["minutes"] == effort.minutes
            assert minutes.stated_minutes(built_from(source)) == [effort.minutes], "in the opening, once"


def test_each_exercise_is_announced_with_its_difficulty_and_minutes(subtests):
    texts = {source.stem[:2]: source.read_text() for source in SOURCES}
    for exercise in all_exercises():
        with subtests.test(exercise.number):
            text = texts[f"{int(exercise.number.partition('.')[0]):02d}"]
            header = re.search(rf"^# ### Exercise {re.escape(exercise.number)}: .*$", text, re.MULTILINE)
            assert header, "there is no header"
            said = rf"\(difficulty {exercise.difficulty}( of 3)?, {exercise.minutes} minutes\)$"
            assert re.search(said, header[0]), header[0]


def test_predictions_are_asked_before_their_experiments(subtests):
    for source in SOURCES:
        with subtests.test(msg=source.stem):
            assert careless_predictions(built_from(source), int(source.stem[:2])) == []


def test_each_notebook_has_something_to_turn(subtests):
    for source in SOURCES:
        with subtests.test(msg=source.stem):
            assert re.search(r"^explore_\w+\(", source.read_text(), re.MULTILINE)


def test_numbers_are_printed_for_people(subtests):
    for source in SOURCES:
        with subtests.test(msg=source.stem):
            assert truths_for_numbers(notebook_of(source)) == []


# ---- the rules themselves can fail


PREDICTING = """# %% [markdown]
# **Prediction 6.1.** Does it
# rise?

# %%
predict("6.1", "yes", "no")

# %% tags=["folded"]
print(2)
outcome("6.1", "yes" if 2 > 1 else "no")

# %% [markdown]
# It does rise, and this is why it does.
#
# **Prediction 6.2.** And then?

# %%
predict("6.2", "up", "down")

# %% tags=["folded"]
print(3)

# %%
outcome("6.2", "up")

# %% [markdown]
# More than eight words say why it goes up again here.

# %%
progress()
predictions("6")
"""


def test_careless_predictions_are_found(tmp_path, subtests):
    path = tmp_path / "06_rise.py"
    for old, new, problem in (
        ("", "", None),
        ('predictions("6")', "", 'predictions("6") is not called'),
        ('predictions("6")', 'predictions("5")', 'predictions("6") is not called'),
        ('predict("6.2", "up", "down")', "pass", "there are 1 predictions"),
        ('predict("6.2"', 'predict("6.3"', "are asked, not ['6.1', '6.2']"),
        ("rise?", "rise.", "6.1 has no question"),
        ("**Prediction 6.2.** And", "And", "6.2 has no question"),
        ('outcome("6.2", "up")', "pass", "6.2 is never told"),
        ('outcome("6.2", "up")', 'outcome("6.2", "up"), outcome("6.4", "up")', "6.4 is told, but not asked"),
        ('# %% tags=["folded"]\nprint(3)', "# %%\nprint(3)", "nothing is folded between the question 6.2"),
        ('predict("6.1", "yes", "no")', 'x = 1\npredict("6.1", "yes", "no")', "asks 6.1 does more"),
        ("# More than eight words say why it goes up again here.", "# So there.", "nothing explains the outcome of"),
    ):
        with subtests.test(problem):
            path.write_text(PREDICTING.replace(old, new))
            found = careless_predictions(notebook_builder.build(path), 6)
            assert found == [] if problem is None else any(problem in each for each in found), found


def test_truths_in_place_of_numbers_are_found():
    text = "at least twice: True\nTrue is a word\n3 > 2\n"
    cell = nbformat.v4.new_code_cell("print()", outputs=[nbformat.v4.new_output("stream", text=text)])
    assert truths_for_numbers(nbformat.v4.new_notebook(cells=[cell])) == ["at least twice: True"]


def test_the_rule_of_minutes(tmp_path):
    source = tmp_path / "02_words.py"
    words = "word " * 400
    source.write_text(f"# %% [markdown]\n# {words}\n# It takes about 45\n# minutes.\n#\n# ## Next\n# In 3 minutes.\n"
                      "\n# %%\nx = 1\n\n# %%\ny = 1\n")
    notebook = notebook_builder.build(source)
    effort = minutes.effort_of(notebook, 99, 75)  # without exercises
    assert (effort.words, effort.code_cells, effort.exercises) == (410, 2, 0)
    assert effort.minutes == 5 and replace(effort, seconds=200).minutes == 10  # 410/200 + 2/3 + 75/60 is 3.97
    assert replace(effort, exercise_minutes=40).minutes == 45
    assert minutes.stated_minutes(notebook) == [45]
    two = minutes.effort_of(notebook, 2, 75)
    mine = [each for each in all_exercises() if each.number.startswith("2.")]
    assert two.exercise_minutes == sum(each.minutes for each in mine) and two.exercises == len(mine)
    line = "| [02 Words](notebooks/02_words.ipynb) | words | 5 min | 19 s | 5 (65 min) | 2.1 |"
    assert minutes.readme_line(line, replace(effort, exercises=2, exercise_minutes=40)) == (
        "| [02 Words](notebooks/02_words.ipynb) | words | 45 min | 75 s | 2 (40 min) | 2.1 |")
