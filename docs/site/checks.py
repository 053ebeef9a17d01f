"""What a built site must keep: every link leads to something on it, and nothing comes from another server."""

import posixpath
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"script": "src", "img": "src", "video": "src", "source": "src", "iframe": "src", "link": "href"}


class _Page(HTMLParser):
    """Names (ids) on a page, its links, and the addresses of what it loads."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.names: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs) -> None:
        attributes = dict(attrs)
        self.names.update(value for key in ("id", "name") if (value := attributes.get(key)))
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        if tag in LOADED and attributes.get(LOADED[tag]):
            if tag != "link" or attributes.get("rel") not in ("canonical", "next", "prev", "search", "index"):
                self.loaded.append(attributes[LOADED[tag]])


@cache
def _read(path: Path) -> _Page:
    return _Page(path.read_text(encoding="utf-8"))


def _pages(folder: Path) -> list[Path]:
    """All pages; `_static` also holds the theme's templates."""
    return [path for path in sorted(folder.rglob("*.html")) if "_static" not in path.parts]


def broken_links(folder: Path) -> list[str]:
    """A sentence for every link, picture, clip, style or script of a page that leads to nothing in `folder`."""
    wrong = []
    for path in _pages(folder):
        page = _read(path)
        for address in dict.fromkeys([*page.links, *page.loaded]):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            where = path.parent / unquote(parts.path) if parts.path else path
            where = Path(posixpath.normpath(where))
            where = where / "index.html" if where.is_dir() else where
            name = path.relative_to(folder)
            if not where.is_file():
                wrong.append(f"{name}: {address} leads to nothing")
            elif parts.fragment and where.suffix == ".html" and unquote(parts.fragment) not in _read(where).names:
                wrong.append(f"{name}: {address} leads to a page without that name on it")
    return wrong


def other_servers(folder: Path) -> list[str]:
    """A sentence for every script, style, picture or clip that a page would load from elsewhere."""
    wrong = []
    for path in _pages(folder):
        wrong += [f"{path.relative_to(folder)}: loads {address}" for address in _read(path).loaded
                  if urlsplit(address).netloc]
    for path in sorted(folder.rglob("*.css")):
        text = path.read_text(encoding="utf-8", errors="replace")
        if "url(http" in text or "url(//" in text or "@import url(\"http" in text or "@import \"http" in text:
            wrong.append(f"{path.relative_to(folder)}: loads from another server")
    return wrong
