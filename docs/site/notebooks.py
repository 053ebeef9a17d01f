"""A stored notebook as a page: nothing runs, what answers a prediction stays folded, and clips are files of their own.

A notebook holds its clips and pictures as text inside it. A page that did so would load them all before it shows
anything; here they become files, which a browser loads when they come into sight and keeps from page to page.
"""

import base64
import binascii
import hashlib
import html
import posixpath
import re
import struct
from pathlib import Path

import nbformat

from docs.site.pages import MEDIA, Links

FOLDED = "folded"  # the course's tag for a cell whose output answers a prediction
HIDDEN = "hide-output"  # ... and MyST-NB's
_EMBEDDED = re.compile(r'src="data:(?:video|image)/([a-z0-9]+);base64,([A-Za-z0-9+/=\s]+)"')


def page_of(path: Path, source: str, page: str, links: Links):
    """The notebook at `path`, a file `source` of the repository, as the notebook that Sphinx reads as `page`."""
    notebook = nbformat.read(path, as_version=4)
    number = path.name[:2]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = links.in_markdown(cell.source, source, page)
            continue
        if FOLDED in cell.metadata.get("tags", ()):
            cell.metadata.tags = [*cell.metadata.tags, HIDDEN]
        cell.metadata.pop("jupyter", None)
        cell.outputs = _outputs(cell.outputs, page, links.target)
    first = notebook.cells[0]
    title, _, rest = first.source.partition("\n")
    first.source = f"{title.replace('# ', f'# {number} ', 1)}\n\n{_how_to_run(notebook, number)}\n{rest}"
    return notebook


def _how_to_run(notebook, number: str) -> str:
    known = notebook.metadata.get("minicogvx")
    minutes = f" With its exercises it takes about {known['minutes']} minutes." if known else ""
    return (f":::{{note}}\nThis page is notebook {number} as it was stored, with its outputs. `make lab` opens your "
            f"own copy, in which you write code and the exercises are checked.{minutes}\n:::\n")


def _outputs(outputs: list, page: str, target: Path) -> list:
    """Clips and pictures as files, a picture together with its caption, and no empty outputs."""
    kept: list = []
    for output in outputs:
        data = output.get("data")
        if data is not None and not data:
            continue  # what covers a folded output in JupyterLab
        if data and "image/png" in data:
            words = output.metadata.get("image/png", {}).get("alt") or data.get("text/plain", "")
            width = output.metadata.get("image/png", {}).get("width")
            picture = base64.b64decode(data["image/png"])
            output = _html(_figure(_file(picture, "png", page, target), words, _size(picture, width)), words)
        elif data and "text/html" in data:
            output = _html(_EMBEDDED.sub(lambda match: _address(match, page, target), data["text/html"]),
                           data.get("text/plain", ""))
        elif data and kept and data.get("text/markdown", "").strip() == f"*{data.get('text/plain', '')}*":
            before = kept[-1].get("data", {}).get("text/html", "")
            if before.startswith("<figure") and html.escape(data["text/plain"]) in before:
                continue  # the picture above has this caption already
        kept.append(output)
    return kept


def _figure(source: str, words: str, size: str) -> str:
    words = html.escape(words)
    return (f'<figure class="picture"><img alt="{words}" src="{source}"{size} loading="lazy">'
            f"<figcaption>{words}</figcaption></figure>")


def _size(png: bytes, width: int | None) -> str:
    """Attributes that keep a picture's place free until it is loaded, so that links to a heading land on it.

    `--width` is for small screens (site.css): there a figure may be wider than the page, but not a strip of frames.
    """
    if not width:
        return ""
    if png[12:16] != b"IHDR":
        return f' width="{width}"'
    across, down = struct.unpack(">II", png[16:24])
    strip = across > 4.5 * down
    return f' width="{width}" height="{round(width * down / across)}"' + f' style="--width: {width}px"' * (not strip)


def _html(source: str, words: str):
    return nbformat.v4.new_output("display_data", {"text/html": source, "text/plain": words})


def _address(match: re.Match, page: str, target: Path) -> str:
    kind, code = match.groups()
    return f'src="{_file(binascii.a2b_base64(code), kind, page, target)}"'


def _file(data: bytes, kind: str, page: str, target: Path) -> str:
    """Writes the file, whose name follows from what is in it; returns its address from `page`."""
    name = f"{hashlib.sha256(data).hexdigest()[:16]}.{kind}"
    path = target / "extra" / MEDIA / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return posixpath.relpath(f"{MEDIA}/{name}", posixpath.dirname(page) or ".")
