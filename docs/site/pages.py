"""Which files of the repository are pages of the site, and where a link in one of them leads there.

The site shows the files that people also read in the repository, so their links are paths in the repository. Here each
becomes a link to a page; to a page of the API reference, which has the whole source, for a module of the package; or
to a copy of the file. A link to nothing is an error.
"""

import posixpath
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMED = {  # file of the repository -> page of the site
    "notebooks/TEACHING.md": "teaching.md", "benchmarks/README.md": "benchmarks.md",
    "benchmarks/speedrun/README.md": "speedrun.md", "data/README.md": "data.md", "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md", "AGENTS.md": "tutors.md",
}
FILES = "files"  # the folder for copies of files that are no pages
MEDIA = "media"  # ... for what raw HTML shows: clips and pictures
_CODE = re.compile(r"^(`{3,}|~{3,}).*?^\1|(?<!`)(`+)(?!`).+?(?<!`)\2(?!`)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*)\]\(([^()\s]+(?:\([^()\s]*\))?)\)")
_ATTRIBUTE = re.compile(r'\b(src|href|poster)="([^"]+)"')
_OUTSIDE = re.compile(r"[a-z]+:|#|//")


def pages(root: Path = ROOT) -> dict[str, str]:
    """File of the repository -> page of the site, for all that are there; both are paths with `/`."""
    found = {f"docs/{path.name}": path.name for path in sorted((root / "docs").glob("*.md"))}
    found |= {f"notebooks/{path.name}": f"course/{path.name}"
              for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))}
    return found | {source: page for source, page in NAMED.items() if (root / source).is_file()}


class Links:
    """Turns links in files of the repository into links of the site, and copies into `target` what they need.

    modules: file or folder of the package -> its page. `broken` collects what is not there, as sentences.
    """

    def __init__(self, root: Path, target: Path, modules: dict[str, str]):
        self.root, self.target = root, target
        self.pages = pages(root) | modules | {"README.md": "index.md", "": "index.md"}
        self.broken: list[str] = []

    def in_markdown(self, text: str, source: str, page: str) -> str:
        """The text of `source` with its links as those of `page`; code stays as it is."""
        kept: list[str] = []

        def keep(match: re.Match) -> str:
            kept.append(match.group())
            return f"\0{len(kept) - 1}\0"

        text = _CODE.sub(keep, text)
        text = _LINK.sub(lambda match: self._link(match, source, page), text)
        text = _ATTRIBUTE.sub(lambda match: self._attribute(match, source, page), text)
        return re.sub("\0(\\d+)\0", lambda match: kept[int(match[1])], text)

    def _link(self, match: re.Match, source: str, page: str) -> str:
        image, words, address = match.groups()
        if "](" in words:  # a picture that is a link
            words = _LINK.sub(lambda inner: self._link(inner, source, page), words)
        if _OUTSIDE.match(address):
            return f"{image}[{words}]({address})"
        path, _, anchor = address.partition("#")
        there = self._there(path, source)
        if there is None:
            return words
        anchor = f"#{anchor}" if anchor and there != "index.md" else ""  # the README's headings are not the index's
        return f"{image}[{words}]({_relative(there, page)}{anchor})"

    def _attribute(self, match: re.Match, source: str, page: str) -> str:
        name, address = match.groups()
        if _OUTSIDE.match(address):
            return match.group()
        path, _, anchor = address.partition("#")
        there = self._there(path, source, MEDIA if name != "href" else FILES)
        if there is None:
            return match.group()
        there = re.sub(r"\.(md|rst|ipynb)$", ".html", there)
        if there.startswith(f"{FILES}/"):  # Sphinx does not see this link, so the file goes where it leads
            there = self._media(self.root / posixpath.normpath(posixpath.join(posixpath.dirname(source), path)))
        return f'{name}="{_relative(there, page)}{"#" + anchor if anchor else ""}"'

    def _there(self, path: str, source: str, kind: str = FILES) -> str | None:
        """Where a path in the file `source` leads on the site; None for a folder that has no page."""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path)).rstrip("/")
        path = "" if path == "." else path
        for each in (path, f"{path}/README.md"):
            if each in self.pages:
                return self.pages[each]
        file = self.root / path
        if path.startswith("..") or not file.exists():
            self.broken.append(f"{source}: a link to {path}, which is not there")
            return None
        if file.is_dir():
            return None
        if kind == MEDIA:
            return self._media(file)
        copy = self.target / FILES / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, copy)
        return f"{FILES}/{path}"

    def _media(self, file: Path) -> str:
        copy = self.target / "extra" / MEDIA / file.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, copy)
        return f"{MEDIA}/{file.name}"


def _relative(there: str, page: str) -> str:
    return posixpath.relpath(there, posixpath.dirname(page) or ".")
