"""Notebooks match their sources, were run from top to bottom, and are accessible."""

import ast
import copy
import html.parser
import inspect
import re
import textwrap
from functools import cache
from pathlib import Path

import nbformat
import pytest

import minicogvx
from minicogvx.course import minutes, notebook_builder
from minicogvx.course.exercises import all_exercises
from minicogvx.diffusion import guidance
from minicogvx.evaluation.reconstruction import flicker

MAX_BYTES = 600_000  # with figures of 150 dots per inch, and films in 256 colours
MAX_SECONDS = 90
TAGS = {"nbval-ignore-output", "nbval-check-output", "folded"}  # a misspelt tag would be passed over without a word
SOURCES = notebook_builder.sources()


@cache
def notebook_of(source: Path):
    return nbformat.read(notebook_builder.notebook_path(source), as_version=nbformat.NO_CONVERT)


@cache
def built_from(source: Path):
    return notebook_builder.build(source)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook) -> list:
    return [output for cell in code_cells(notebook) for output in cell.outputs]


# ---- problems; each function returns a list of sentences, empty if there are none


def differences(notebook, built) -> list[str]:
    """Differences between a committed notebook and its source."""
    cells, wanted = len(notebook.cells), len(built.cells)
    found = [] if cells == wanted else [f"{cells} cells; the source has {wanted}"]
    for i, (cell, want) in enumerate(zip(notebook.cells, built.cells)):
        same = [cell.get(field) == want.get(field) for field in ("cell_type", "source", "id", "metadata")]
        found += [] if all(same) else [f"cell {i} differs from the source"]
    if notebook.metadata.get("kernelspec") != built.metadata["kernelspec"]:
        found.append(f"the kernel is {notebook.metadata.get('kernelspec')}")
    return found


def not_run(notebook) -> list[str]:
    """Cells that were not run in order, or that stopped."""
    counts = [cell.execution_count for cell in code_cells(notebook)]
    found = [] if counts == list(range(1, len(counts) + 1)) else [f"execution counts are {counts}"]
    found += [f"{output.ename}: {output.evalue}" for output in outputs(notebook) if output.output_type == "error"]
    found += [f"on stderr: {output.text[:80]}" for output in outputs(notebook) if output.get("name") == "stderr"]
    return found


def outdated_code(notebook) -> list[str]:
    """Code of the package in the outputs (`show_source`) that differs from the package's files now."""
    found = []
    for output in outputs(notebook):
        shown_code = re.fullmatch(r"`(minicogvx/\S+)`: `(\S+)`\n\n```python\n(.*)\n```",
                                  output.get("data", {}).get("text/markdown", ""), re.DOTALL)
        if shown_code:
            file, name, code = shown_code.groups()
            path = Path(minicogvx.__file__).parents[1] / file
            now = path.read_text() if path.exists() else ""
            if not any(textwrap.indent(code, " " * margin) in now for margin in (0, 4, 8)):
                found.append(f"{file}: {name} is shown as it was; build the notebook again")
    return found


def widget_state(notebook) -> list[str]:
    found = ["widget state in the notebook's metadata"] if "widgets" in notebook.metadata else []
    return found + ["a widget as output" for output in outputs(notebook)
                    if any("widget" in kind for kind in output.get("data", {}))]


def pictures_without_words(notebook) -> list[str]:
    """Pictures and videos, in outputs and in Markdown, without a text alternative."""
    found = []
    for output in outputs(notebook):
        data, metadata = output.get("data", {}), output.get("metadata", {})
        for kind in data:
            if kind.startswith("image/") and not metadata.get(kind, {}).get("alt", "").strip():
                found.append(f"{kind} without alt")
        found += _tags_without_words(data.get("text/html", ""))
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            pictures = re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", cell.source)
            found += [f"picture {target} without alt" for alt, target in pictures if not alt.strip()]
            found += _tags_without_words(cell.source)
    return found


def _tags_without_words(text: str) -> list[str]:
    found = []

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            need = {"img": "alt", "video": "aria-label"}.get(tag)
            if need and not (dict(attributes).get(need) or "").strip():
                found.append(f"<{tag}> without {need}")

    Reader().feed(text)
    return found


def definitions(text: str) -> list[ast.AST]:
    return [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.FunctionDef, ast.ClassDef))]


def outer(text: str) -> list[ast.AST]:
    """The definitions that stand in no other."""
    return [node for node in ast.parse(text).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]


def body(node: ast.AST) -> str:
    """The statements of a definition, without its docstring."""
    statements = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return "\n".join(ast.unparse(statement) for statement in statements)


@cache
def package_definitions() -> tuple[set[str], set[str]]:
    """Names of all public functions and classes of the package, and all bodies of more than one line.

    Names of methods and inner functions are free: every module of PyTorch has a `forward`.
    """
    texts = [path.read_text() for path in Path(minicogvx.__file__).parent.rglob("*.py")]
    return ({node.name for text in texts for node in outer(text) if not node.name.startswith("_")},
            {body(node) for text in texts for node in definitions(text) if "\n" in body(node)})


def pasted(notebook) -> list[str]:
    """Definitions that are the package's own: a notebook shows those with show_source."""
    names, bodies = package_definitions()
    named = [node for cell in code_cells(notebook) for node in outer(cell.source) if node.name in names]
    copied = [node for cell in code_cells(notebook) for node in definitions(cell.source) if body(node) in bodies]
    return list(dict.fromkeys(f"{node.name} is the package's own" for node in (*named, *copied)))


def unwanted_code(notebook) -> list[str]:
    """Cells that run, but whose output nbval does not compare."""
    found = []
    for i, cell in enumerate(code_cells(notebook)):
        found += [f"code cell {i} has the tag {tag!r}" for tag in set(cell.metadata.get("tags", [])) - TAGS]
        found += [f"code cell {i} ends in a semicolon"] if cell.source.rstrip().endswith(";") else []
        found += [f"code cell {i} has a marker comment; use a tag"] if re.search(r"#\s*NBVAL", cell.source) else []
    return found


def assumed_machine(notebook) -> list[str]:
    """Code cells that assume a dtype or a device, which some machine emulates or does not have.

    16 bits may be named where they are compared with float32, or on the meta device, where nothing is computed.
    """
    found = []
    for i, cell in enumerate(code_cells(notebook)):
        compared = "torch.float32" in cell.source or 'torch.device("meta")' in cell.source
        if re.search(r"\bb?float16\b|\.half\(", cell.source) and not compared:
            found.append(f"code cell {i} computes in 16 bits; use choose_dtype(device)")
        if re.search(r"minicogvx\.load\((?!.*\bdevice\b)", cell.source):
            found.append(f"code cell {i} loads a model without a device; use notebook_device()")
        found += [f"code cell {i} names a GPU"] if re.search(r"[\"']cuda|[\"']mps|\.cuda\(", cell.source) else []
    return found


# ---- every notebook


def test_every_source_has_its_notebook_and_every_notebook_its_source():
    assert {path.stem for path in notebook_builder.ROOT.glob("*.ipynb")} == {source.stem for source in SOURCES}
    assert [source.stem for source in SOURCES] == [
        "00_first_video", "01_video_tensors", "02_causal_vae", "03_vae_losses", "04_diffusion", "05_text_and_guidance",
        "06_patches_and_rope", "07_expert_adaptive_norm", "08_full_attention", "09_expert_transformer",
        "10_progressive_training", "11_frame_pack", "12_uniform_sampling", "13_image_to_video", "14_evaluation",
        "15_ablations", "16_full_size", "17_oracle_as_teacher"]


def test_the_readme_has_a_line_for_each_notebook():
    readme = (notebook_builder.ROOT.parent / "README.md").read_text()
    for source in SOURCES:
        seconds = notebook_of(source).metadata["minicogvx"]["seconds"]
        number = int(source.stem[:2])
        exercises = sum(exercise.number.partition(".")[0] == str(number) for exercise in all_exercises())
        line = next(line for line in readme.splitlines() if f"](notebooks/{source.stem}.ipynb) |" in line)
        assert f"| {seconds} s |" in line, line
        assert f"| {exercises} (" in line if exercises else "| none |" in line, line
        effort = minutes.effort_of(built_from(source), number, seconds)
        assert minutes.readme_line(line, effort) == line, "run: python -m minicogvx.course.minutes --readme"


def test_each_notebook_is_what_its_source_gives(subtests):
    for source in SOURCES:
        with subtests.test(msg=source.stem):
            assert differences(notebook_of(source), built_from(source)) == [], "run: make notebooks"


def test_each_notebook_was_run_from_top_to_bottom(subtests):
    for source in SOURCES:
        with subtests.test(msg=source.stem):
            notebook = notebook_of(source)
            assert not_run(notebook) == []
            assert outdated_code(notebook) == []
            assert notebook.metadata["minicogvx"]["seconds"] <= MAX_SECONDS


def test_each_notebook_is_small_and_everybody_can_read_it(subtests):
    for source in SOURCES:
        with subtests.test(msg=source.stem):
            notebook = notebook_of(source)
            nbformat.validate(notebook)
            assert notebook_builder.notebook_path(source).stat().st_size < MAX_BYTES
            assert widget_state(notebook) == []
            assert pictures_without_words(notebook) == []


def test_each_notebook_teaches_with_code_of_its_own(subtests):
    for source in SOURCES:
        with subtests.test(msg=source.stem):
            built = built_from(source)
            assert pasted(built) == []
            assert unwanted_code(built) == []
            assert assumed_machine(built) == []
            words = sum(len(cell.source.split()) for cell in built.cells if cell.cell_type == "markdown")
            assert len(built.cells) <= 50 and 1000 <= words <= 2500


# ---- the checks themselves can fail


@pytest.fixture
def good():
    """A notebook as it should be: one text, one computation, one picture."""
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": dict(notebook_builder.KERNEL)})
    picture = nbformat.v4.new_output("display_data", {"image/png": "AAAA", "text/plain": "a dot"},
                                     metadata={"image/png": {"alt": "a dot"}})
    film = nbformat.v4.new_output("display_data", {"text/html": '<video aria-label="a dot" src="x">a dot</video>'})
    notebook.cells = [nbformat.v4.new_markdown_cell("# One dot"),
                      nbformat.v4.new_code_cell("print(1)", execution_count=1),
                      nbformat.v4.new_code_cell("show()", execution_count=2, outputs=[picture, film])]
    return notebook


def everything_wrong(notebook, built) -> list[str]:
    return [*differences(notebook, built), *not_run(notebook), *outdated_code(notebook), *widget_state(notebook),
            *pictures_without_words(notebook), *pasted(notebook), *unwanted_code(notebook),
            *assumed_machine(notebook)]


def test_a_good_notebook_passes(good):
    good.cells[1].outputs.append(_shown(inspect.getsource(flicker).rstrip()))  # as it stands in its file
    assert everything_wrong(good, copy.deepcopy(good)) == []


def _error():
    return nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])


def _set(notebook, cell, **fields):
    notebook.cells[cell].update(fields)


def _shown(code):
    text = f"`minicogvx/evaluation/reconstruction.py`: `flicker`\n\n```python\n{code}\n```"
    return nbformat.v4.new_output("display_data", {"text/markdown": text})


SPOILT = {
    "edited": lambda n: _set(n, 1, source="print(2)"),
    "short": lambda n: n.cells.pop(),
    "not run": lambda n: _set(n, 1, execution_count=None),
    "out of order": lambda n: _set(n, 2, execution_count=5),
    "error": lambda n: n.cells[1].outputs.append(_error()),
    "old code": lambda n: n.cells[1].outputs.append(_shown("def flicker(video):\n    return 0.0")),
    "warning": lambda n: n.cells[1].outputs.append(nbformat.v4.new_output("stream", name="stderr", text="careful")),
    "widget state": lambda n: n.metadata.update(widgets={"state": {}}),
    "widget": lambda n: n.cells[2].outputs[0].data.update({"application/vnd.jupyter.widget-view+json": {}}),
    "blank alt": lambda n: n.cells[2].outputs[0].metadata["image/png"].update(alt=" "),
    "no alt": lambda n: n.cells[2].outputs[0].metadata.clear(),
    "silent film": lambda n: n.cells[2].outputs[1].data.update({"text/html": "<video src='x'></video>"}),
    "kernel": lambda n: n.metadata["kernelspec"].update(name="mine"),
}


def test_a_notebook_edited_by_hand_or_badly_run_is_refused(good, subtests):
    for name, spoil in SPOILT.items():
        with subtests.test(msg=name):
            spoilt = copy.deepcopy(good)
            spoil(spoilt)
            assert everything_wrong(spoilt, good)


def test_bad_sources_are_refused(good, subtests):
    for find_in, *sources in (
        (pasted, "def patchify(x):\n    return x", "class CausalVAE:\n    pass"),
        (unwanted_code, "x = 1;", "x = 1  # NBVAL_IGNORE_OUTPUT"),
        (assumed_machine, "vae(video.bfloat16())", "x = torch.zeros(1, dtype=torch.float16)", "net.half()",
         'pipe = minicogvx.load("toy", dtype=torch.float32)', 'net.to("cuda:0")', "net.cuda()"),
        (pictures_without_words, "![](dot.png)", '<img src="dot.png">'),
    ):
        for source in sources:
            with subtests.test(msg=source):
                spoilt = copy.deepcopy(good)
                spoilt.cells[0 if find_in is pictures_without_words else 1].source = source
                assert find_in(spoilt)
    good.cells[1].metadata["tags"] = ["nbval-ignore-outputs"]
    assert unwanted_code(good)


def test_a_pasted_body_is_found_under_another_name(good):
    text = Path(guidance.__file__).read_text().split("\n\n\n")[1].replace("def guide(", "def mine(")
    good.cells[1].source = text
    assert pasted(good) == ["mine is the package's own"]


def test_a_module_of_the_notebook_may_have_a_forward(good):
    good.cells[1].source = "class Mine(torch.nn.Module):\n    def forward(self, x):\n        return 3 * x"
    assert pasted(good) == []


# ---- the builder


def test_building_twice_gives_the_same(tmp_path):
    source = tmp_path / "00_dot.py"
    source.write_text('# %% [markdown]\n# # Dot\n\n# %% tags=["nbval-ignore-output"]\nprint(1)\n')
    first, second = notebook_builder.build(source), notebook_builder.build(source)
    assert nbformat.writes(first) == nbformat.writes(second)
    assert [cell.cell_type for cell in first.cells] == ["markdown", "code"]
    assert first.cells[1].metadata == {"tags": ["nbval-ignore-output"]}
    path = tmp_path / "00_dot.ipynb"
    notebook_builder.write(first, path)
    assert [p.name for p in tmp_path.iterdir() if p.suffix not in (".py", ".ipynb")] == []
    assert nbformat.read(path, as_version=4).cells[1].source == "print(1)"


def test_running_stores_counts_and_outputs(tmp_path):
    source = tmp_path / "00_dot.py"
    source.write_text("# %%\nx = 1\n\n# %%\nprint(x + 1)\n")
    notebook = notebook_builder.build(source)
    notebook_builder.execute(notebook, tmp_path)
    assert not_run(notebook) == [] and notebook.cells[1].outputs[0].text == "2\n"
    assert "execution" not in notebook.cells[1].metadata


def test_what_answers_a_prediction_is_folded_and_its_options_stay_as_text(tmp_path):
    source = tmp_path / "00_dot.py"
    source.write_text('# %%\nfrom minicogvx.course import outcome, predict\n\npredict("0.1", "more", "less")\n\n'
                      '# %% tags=["folded"]\nprint(1)\noutcome("0.1", "more")\n')
    notebook = notebook_builder.build(source)
    assert [cell.metadata.get("jupyter") for cell in notebook.cells] == [None, {"outputs_hidden": True}]
    nbformat.validate(notebook)
    notebook_builder.execute(notebook, tmp_path)
    assert [dict(output.data) for output in notebook.cells[0].outputs] == [{"text/plain": "a) more\nb) less"}]
    cover, text = notebook.cells[1].outputs  # JupyterLab shows the first line of a collapsed output
    assert cover.data == {} and text.text == "1\nPrediction 0.1: more. You made no prediction.\n"
    nbformat.validate(notebook)


def test_an_unknown_notebook_is_named(capsys):
    with pytest.raises(SystemExit):
        notebook_builder.main(["99_nothing"])
    assert "99_nothing" in capsys.readouterr().err
