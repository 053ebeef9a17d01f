"""The pages of the API reference: one for each module of the package, one for each folder, and their signatures.

Names and signatures are read from the source, so a page shows `Float[Tensor, "b c t h w"]` as its author wrote it;
autodoc brings the docstrings, and viewcode the source.
"""

import ast
import posixpath
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = "minicogvx"
FOLDERS = ("vae", "transformer", "diffusion", "text", "data", "data.world", "data.films", "data.clips", "training",
           "evaluation", "ablation", "course", "course.exercises", "interop", "engine", "speedrun")
FIRST = ("presets", "pipeline")  # of the modules beside the folders, these come first
Definition = ast.FunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Module:
    """A module or a folder of the package: its dotted name, the file with its docstring, and what it defines."""

    name: str
    path: Path

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, whose docstring is in `__init__.py`."""
        return self.path.name == "__init__.py"

    @property
    def short(self) -> str:
        """The name without that of the package."""
        return self.name.removeprefix(f"{PACKAGE}.")

    @property
    def page(self) -> str:
        """Its page on the site."""
        return f"api/{self.short}.rst"

    @property
    def summary(self) -> str:
        """The first sentence of its docstring."""
        text = (ast.get_docstring(tree(self.path)) or "").split("\n\n")[0]
        return " ".join(text.split())

    def definitions(self) -> list[Definition]:
        """Public functions and classes, in the order of the source."""
        return [node for node in tree(self.path).body
                if isinstance(node, Definition) and not node.name.startswith("_")]


@cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def modules(root: Path) -> list[Module]:
    """Every public module and folder of the package."""
    found = []
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if len(parts) > 1 and not any(part.startswith("_") or part == "shipped" for part in parts):
            found.append(Module(".".join(parts), path))
    return found


def addresses(root: Path) -> dict[str, str]:
    """File or folder of the package -> its page, for links in other pages."""
    found = {PACKAGE: "api/index.rst", f"{PACKAGE}/__init__.py": "api/index.rst"}
    for module in modules(root):
        path = module.path.relative_to(root).as_posix()
        found[path] = module.page
        if module.is_folder:
            found[posixpath.dirname(path)] = module.page
    return found


def write(root: Path, target: Path, put) -> None:
    """All pages, by `put(page, text)`."""
    every = {module.short: module for module in modules(root)}
    folders = {name: every[name] for name in FOLDERS if name in every}
    folders |= {name: module for name, module in every.items() if module.is_folder and name not in folders}
    alone = [name for name, module in every.items() if "." not in name and not module.is_folder]
    first = [name for name in FIRST if name in alone]
    top = [*first, *(name for name in folders if "." not in name)]
    others = [name for name in alone if name not in first]
    put("api/index.rst", _index([every[name] for name in top], [every[name] for name in others]))
    for name, module in every.items():
        put(module.page, _folder_page(module, every) if module.is_folder else _module_page(module))


def _title(words: str) -> str:
    return f"{words}\n{'=' * len(words)}\n\n"


def _table(entries: list[Module]) -> str:
    lines = [".. list-table::", "   :widths: 30 70", "   :class: modules", ""]
    for module in entries:
        name = module.short.rpartition(".")[2]
        lines += [f"   * - :doc:`{name} <{Path(module.page).stem}>`", f"     - {plain(module.summary)}"]
    return "\n".join(lines) + "\n\n"


def _toctree(entries: list[Module]) -> str:
    lines = [f"   {each.short.rpartition('.')[2]} <{Path(each.page).stem}>" for each in entries]  # short in the bar
    return "\n".join([".. toctree::", "   :hidden:", "", *lines]) + "\n\n"


def _index(top: list[Module], others: list[Module]) -> str:
    return (_title("API reference") +
            "The package as its folders divide it: each name leads to a page, and on it *[source]* to the code. Shapes "
            "stand in the annotations: ``b`` batch, ``c`` channels, ``t`` frames, ``h w`` height and width, ``n`` "
            "tokens, ``d`` width of the model. ``minicogvx.load`` is :py:meth:`minicogvx.pipeline.Pipeline.load`.\n\n"
            + _table(top) + _toctree(top) + "The command, and what everything uses\n"
            "-------------------------------------\n\n" + _table(others) + _toctree(others))


def _folder_page(module: Module, every: dict[str, Module]) -> str:
    inside = [each for each in every.values() if each.short.rpartition(".")[0] == module.short]
    inside.sort(key=lambda each: not each.is_folder)
    body = _title(module.short) + f".. automodule:: {module.name}\n\n"
    return body + (_table(inside) + _toctree(inside) if inside else "") + _definitions(module)


def _module_page(module: Module) -> str:
    return _title(module.short) + f".. automodule:: {module.name}\n\n" + _definitions(module)


def _definitions(module: Module) -> str:
    text = ""
    for node in module.definitions():
        kind = "class" if isinstance(node, ast.ClassDef) else "function"
        text += f".. auto{kind}:: {module.name}.{node.name}\n"
        members = [each.name for each in node.body if isinstance(each, ast.FunctionDef)
                   and not each.name.startswith("_")] if kind == "class" else []
        text += f"   :members: {', '.join(dict.fromkeys(members))}\n" if members else ""
        text += "\n"
    return text


def plain(text: str) -> str:
    """A line of a docstring as reStructuredText: its code marked as such, all else as it stands."""
    from docs.site.docstrings import inline

    return inline(text)
