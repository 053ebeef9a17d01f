"""The site's own parts: pages and links, docstrings, formulas, the check of links. The last test builds all of it."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from docs.site import api, build, checks, notebooks
from docs.site.docstrings import as_rst, fields_of, inline, lines_of, signature_of
from docs.site.pages import Links, pages

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def links(tmp_path):
    """A small repository and its links."""
    for name in ("docs/index.md", "docs/guide.md", "docs/picture.png", "notebooks/01_first.ipynb", "tests/test_x.py",
                 "minicogvx/vae/layers.py", "data/README.md", "data/clips/one.mp4"):
        path = tmp_path / "repository" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    return Links(tmp_path / "repository", tmp_path / "pages", {"minicogvx/vae/layers.py": "api/vae.layers.rst"})


@pytest.mark.parametrize("written, becomes", [
    ("[a](guide.md#part)", "[a](guide.md#part)"), ("[a](../notebooks/01_first.ipynb)", "[a](course/01_first.ipynb)"),
    ("[`x`](../minicogvx/vae/layers.py)", "[`x`](api/vae.layers.rst)"), ("[a](../README.md#course)", "[a](index.md)"),
    ("[a](../tests/test_x.py)", "[a](files/tests/test_x.py)"), ("[a](../tests)", "a"), ("[a](../data)", "[a](data.md)"),
    ("[a](https://arxiv.org/x.md)", "[a](https://arxiv.org/x.md)"), ("`[a](nowhere.md)`", "`[a](nowhere.md)`"),
    ("```\n[a](nowhere.md)\n```", "```\n[a](nowhere.md)\n```"), ("![a](picture.png)", "![a](files/docs/picture.png)"),
    ('<img src="picture.png">', '<img src="media/picture.png">'), ('<a href="guide.md">', '<a href="guide.html">'),
])
def test_a_link_of_the_repository_is_one_of_the_site(links, written, becomes):
    assert links.in_markdown(written, "docs/index.md", "index.md") == becomes
    assert links.broken == []


def test_a_link_is_relative_to_its_page_and_one_to_nothing_is_told(links):
    text = links.in_markdown("[a](../docs/guide.md) [b](gone.md)", "notebooks/01_first.ipynb", "course/01_first.ipynb")
    assert text == "[a](../guide.md) b"
    assert links.broken == ["notebooks/01_first.ipynb: a link to notebooks/gone.md, which is not there"]


def test_a_notebook_is_shown_as_stored_its_answers_folded_and_its_pictures_as_files(links):
    picture, clip = "iVBORw0KGgo=", "AAAA"
    cells = [nbformat.v4.new_markdown_cell("# First\n\nWords."), nbformat.v4.new_code_cell("run()")]
    cells[1].metadata.update(tags=["folded"], jupyter={"outputs_hidden": True})
    cells[1].outputs = [
        nbformat.v4.new_output("display_data", {}),
        nbformat.v4.new_output("display_data", {"image/png": picture, "text/plain": "A <star>."},
                               metadata={"image/png": {"alt": "A <star>.", "width": 300}}),
        nbformat.v4.new_output("display_data", {"text/markdown": "*A <star>.*", "text/plain": "A <star>."}),
        nbformat.v4.new_output("display_data", {"text/html": f'<video src="data:video/mp4;base64,{clip}"></video>'}),
    ]
    path = links.root / "notebooks" / "01_first.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"minicogvx": {"minutes": 75}}), path)
    page = notebooks.page_of(path, "notebooks/01_first.ipynb", "course/01_first.ipynb", links)
    assert page.cells[0].source.startswith("# 01 First\n") and "about 75 minutes" in page.cells[0].source
    assert "hide-output" in page.cells[1].metadata.tags
    figure, film = (output.data["text/html"] for output in page.cells[1].outputs)
    assert 'alt="A &lt;star&gt;."' in figure and 'width="300"' in figure and "base64" not in figure + film
    names = {path.suffix: path.read_bytes() for path in (links.target / "extra" / "media").iterdir()}
    assert names == {".png": b"\x89PNG\r\n\x1a\n", ".mp4": b"\0\0\0"}
    assert '<video src="../media/' in film


def test_a_list_tells_what_is_not_there_and_the_rest_comes_last(capsys):
    index = "```{toctree}\n:hidden:\n\nguide\nIn short <long>\ngone\napi/index\ncourse/*\n```\n<!-- rest -->"
    told, missing = build.listed(index, {"index.md", "guide.md", "long.md", "other.md", "course/01_first.ipynb"})
    assert told.count("guide") == 1 and "In short <long>" in told and "gone" not in told and "api/index" in told
    assert told.endswith("other\n```") and missing == ["docs/index.md lists gone, which is not there"]
    assert capsys.readouterr().out == "docs/index.md does not list other; it comes last\n"


# ---- the API


def test_a_docstring_is_plain_text():
    text = as_rst(["The *n* best of `a`s: x_, |x|.", "", "    x = 1", "    y", "", "Args:", "    out: where,",
                   "        or None.", "    b, c: two", "", "- one", "- two"])
    assert text[0] == "The \\*n\\* best of ``a``\\ s: x\\_, \\|x\\|."
    assert text[2:6] == [".. code-block:: text", "", "   x = 1", "   y"]
    assert "- ``out``: where, or None." in text and "- ``b, c``: two" in text and text[-3:] == ["- one", "- two", ""]
    assert inline("*all words* of *args") == "*all words* of \\*args"
    assert as_rst(["  x = 1", "", "  y = 2"]) == [".. code-block:: text", "", "   x = 1", "   ", "   y = 2", ""]
    assert inline("(`a`)") == "(``a``)" and inline("a_b __init__") == "a_b __init_\\_"


def test_a_signature_is_the_source_s_with_links_to_classes_of_the_package():
    from minicogvx.diffusion.samplers import DDIMSampler
    from minicogvx.diffusion.sampling import sample_loop
    from minicogvx.presets import VAEConfig

    arguments, returns = signature_of(sample_loop)
    assert "text: Float[Tensor, 'b2 n d']" in arguments and returns == "Float[Tensor, 'b c t h w']"
    assert "sampler: ~minicogvx.diffusion.samplers.DDIMSampler" in arguments
    assert signature_of(DDIMSampler)[0].startswith("(schedule: ~minicogvx.diffusion.schedule.NoiseSchedule")
    assert signature_of(VAEConfig)[0].startswith("(in_channels: int = 3, ")
    assert "- ``sample_height``: pixels" in fields_of(VAEConfig)


def test_code_in_a_docstring_keeps_its_place_and_a_class_without_arguments_has_none():
    import minicogvx.course.exercises
    from minicogvx.data.clips.clips import Clips
    from minicogvx.vae.layers import Conv3d

    text = as_rst(lines_of(minicogvx.course.exercises))  # its first line, and code alone below it
    assert text[2] == ".. code-block:: text" and text[4].startswith("   pad_past")
    assert signature_of(Clips) == ("", None)
    assert signature_of(Conv3d) is None  # torch's own constructor, which autodoc knows


def test_every_public_module_has_a_page_and_every_function_on_it(tmp_path):
    written = {}
    api.write(ROOT, tmp_path, written.__setitem__)
    for path in sorted((ROOT / "minicogvx").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if any(part.startswith("_") for part in parts) or "shipped" in parts:
            continue
        page = written[f"api/{'.'.join(parts[1:])}.rst"]
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert f":: {'.'.join(parts)}.{node.name}\n" in page


# ---- formulas and links


def test_formulas_are_mathml_and_what_is_not_known_is_told():
    pytest.importorskip("sphinx", reason="Sphinx is missing; run: make site")
    from docutils.utils.math import MathError

    from docs.site.mathml import mathml

    assert mathml(r"\sqrt{\bar\alpha_t}", False).startswith("<math")
    assert "<munderover" not in mathml(r"\bar\alpha_t", False)  # else the index stands below the letter
    assert "<mo" in mathml(r"\mathbb{E}\big[\log q(z)\big]", True)
    with pytest.raises(MathError):
        mathml(r"\nosuchcommand", False)


def test_broken_links_and_other_servers_are_found(tmp_path):
    (tmp_path / "a.html").write_text('<p id="here"><a href="b.html#there"></a><a href="#here"></a><a href="c.html"></a>'
                                     '<img src="gone.png"><a href="https://x.org/"></a>')
    (tmp_path / "b.html").write_text('<script src="https://cdn.org/x.js"></script><a href="a.html#here"></a>')
    (tmp_path / "x.css").write_text("@font-face { src: url(https://fonts.org/a.woff) }")
    assert checks.broken_links(tmp_path) == ["a.html: b.html#there leads to a page without that name on it",
                                             "a.html: c.html leads to nothing", "a.html: gone.png leads to nothing"]
    assert checks.other_servers(tmp_path) == ["b.html: loads https://cdn.org/x.js",
                                              "x.css: loads from another server"]


def test_no_page_of_the_repository_has_a_broken_link(tmp_path):
    assert build.gather(tmp_path / "pages") == []
    made = {path.relative_to(tmp_path / "pages").as_posix() for path in (tmp_path / "pages").rglob("*.*")}
    assert made >= {*pages(ROOT).values(), "api/index.rst", "api/vae.autoencoder.rst", "course/00_first_video.ipynb"}


def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("sphinx_book_theme", reason="Sphinx and its theme are missing; run: make site")
    nowhere = {f"{name}_proxy": "http://127.0.0.1:9" for name in ("http", "https", "all")}
    done = subprocess.run([sys.executable, "-m", "docs.site.build", "--jobs", "1", "--out", tmp_path / "site"],
                          cwd=ROOT, env=os.environ | nowhere, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "site" / "course" / "00_first_video.html").read_text()
    assert "<video" in page and "base64" not in page and "<details" in page
