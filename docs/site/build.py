"""Builds the site: gathers its pages in one folder, lets Sphinx make HTML of them, and checks every link of the result.

    python -m docs.site.build [--out build/site]

Nothing is executed and nothing is loaded from elsewhere. A warning of Sphinx, a broken link, or an address of another
server in a script, a style or a picture ends it with status 1.
"""

import argparse
import re
import shutil
import sys
import time
from pathlib import Path

from docs.site import api, checks, notebooks
from docs.site.pages import ROOT, Links, pages

_TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```", re.MULTILINE | re.DOTALL)
_TITLED = re.compile(r".+ <(\S+)>")
REST = "<!-- rest -->"  # in index.md: where pages are listed that no other list names


def gather(target: Path, root: Path = ROOT) -> list[str]:
    """Writes the source of every page into the folder `target`. Returns what is wrong, as sentences."""
    for folder in ("extra", "files"):
        shutil.rmtree(target / folder, ignore_errors=True)
    links, written = Links(root, target, api.addresses(root)), set()

    def put(page: str, text: str) -> None:
        written.add(target / page)
        _write_if_new(target / page, text)

    for source, page in pages(root).items():
        path = root / source
        if path.suffix == ".ipynb":
            import nbformat

            put(page, nbformat.writes(notebooks.page_of(path, source, page, links)))
        else:
            text = links.in_markdown(path.read_text(encoding="utf-8"), source, page)
            if page == "index.md":
                text, missing = listed(text, set(pages(root).values()))
                links.broken += missing
            put(page, text)
    api.write(root, target, put)
    for path in target.rglob("*"):
        inside = path.relative_to(target).parts[0] not in ("extra", "files")
        if inside and path.is_file() and path not in written and path.suffix in (".md", ".rst", ".ipynb"):
            path.unlink()  # of a page that is gone
    return links.broken


def listed(index: str, there: set[str]) -> tuple[str, list[str]]:
    """The index, with all pages that no list names in a last one; and a sentence for each entry without a page.

    An entry of a list is the path of a page without its ending, alone or as `Title <path>`; `course/*` stands for all
    in that folder.
    """
    named: set[str] = set()
    missing: list[str] = []

    def keep(match: re.Match) -> str:
        lines = []
        for line in match[1].splitlines():
            titled = _TITLED.fullmatch(line.strip())
            entry = titled[1] if titled else line.strip()
            if entry and not entry.startswith(":"):
                found = [page for page in (f"{entry}.md", f"{entry}.ipynb", f"{entry}.rst") if page in there]
                if not found and "*" not in entry and not entry.startswith("api/"):
                    missing.append(f"docs/index.md lists {entry}, which is not there")
                    continue
                named.update(found)
            lines.append(line)
        return "```{toctree}\n" + "\n".join(lines) + "\n```"

    index = _TOCTREE.sub(keep, index)
    rest = sorted(page.rpartition(".")[0] for page in there - named
                  if not page.startswith("course/") and page != "index.md")
    for entry in rest:
        print(f"docs/index.md does not list {entry}; it comes last")
    more = "\n".join(["```{toctree}", ":hidden:", ":caption: More", "", *rest, "```"]) if rest else ""
    return index.replace(REST, more), missing


def _write_if_new(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:  # else Sphinx would read it again
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def build(out: Path, source: Path, jobs: str = "1", root: Path = ROOT) -> list[str]:
    """Builds the site in the folder `out`, from pages gathered in `source`. Returns what is wrong, as sentences."""
    from sphinx.cmd.build import build_main

    if (out / ".buildinfo").is_file():  # an earlier site, of which pages may be gone
        shutil.rmtree(out)
    wrong = gather(source, root)
    # -E: everything is read anew, or a warning would be given once and then no more
    status = build_main(["-b", "html", "-E", "-W", "--keep-going", "-q", "-j", jobs, "-c", str(root / "docs"),
                         "-d", str(source.parent / f"{source.name}-doctrees"),
                         "-D", f"html_extra_path={source / 'extra'}", str(source), str(out)])
    for path in [out / "objects.inv", *out.rglob("*.map")]:  # for other projects, and for the theme's own authors
        path.unlink(missing_ok=True)
    wrong += ["Sphinx gave warnings; they stand above"] if status else []
    return wrong + checks.broken_links(out) + checks.other_servers(out)


def main(argv: list[str] | None = None) -> int:
    """Builds the site and prints where it is, how large it is, and what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m docs.site.build", description="Build the site.")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site", metavar="FOLDER",
                        help="where to (default: build/site)")
    parser.add_argument("--jobs", default="auto", metavar="N", help="processes (default: as many as cores)")
    arguments = parser.parse_args(argv)
    start, out = time.perf_counter(), arguments.out.resolve()
    wrong = build(out, out.parent / f"{out.name}-pages", arguments.jobs)
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    files = [path for path in out.rglob("*") if path.is_file()]
    print(f"{out / 'index.html'}: {sum(path.suffix == '.html' for path in files)} pages, "
          f"{sum(path.stat().st_size for path in files) / 1e6:.1f} MB, built in {time.perf_counter() - start:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
