"""Docstrings and signatures as autodoc is to show them. The package's docstrings are plain text, no reStructuredText.

In them a word between backticks is code, an indented paragraph is code or a formula, and `Args:` begins a list.
"""

import ast
import importlib
import inspect
import re
from functools import cache
from pathlib import Path

from docs.site.api import PACKAGE, tree

_CODE = re.compile(r"(`+)([^`]+)\1")
_EMPHASIS = re.compile(r"(?<![\w*])\*(\w[\w ,-]*\w)\*(?![\w*])")
_ARGUMENT = re.compile(r"\s+(\*{0,2}\w+(?:, \w+)*): (.*)")


def inline(text: str) -> str:
    """One piece of plain text as reStructuredText."""
    pieces, last = [], 0
    for match in _CODE.finditer(text):
        before, after = text[last:match.start()], text[match.end():match.end() + 1]
        pieces.append(_escaped(before))
        pieces.append("\\ " * bool(re.search(r"[^\s(\[{/'\"-]$", before)) + f"``{match[2].strip()}``")
        pieces.append("\\ " if after.isalnum() else "")
        last = match.end()
    return "".join([*pieces, _escaped(text[last:])])


def _escaped(text: str) -> str:
    text = re.sub(r"(?<=\s)->(?=\s)", "\u2192", text)  # a line could end inside it
    emphasised = _EMPHASIS.search(text)
    if emphasised:
        before, after = text[:emphasised.start()], text[emphasised.end():]
        return f"{_escaped(before)}*{emphasised[1]}*{_escaped(after)}"
    return re.sub(r"([\\*|`])|(?<=\w)_(?!\w)", lambda match: f"\\{match.group()}", text)


def as_rst(lines: list[str]) -> list[str]:
    """The lines of a docstring, without its indentation, as lines of reStructuredText."""
    blocks: list[list[str]] = []
    for text in re.split(r"\n\s*\n", "\n".join(lines).expandtabs().strip("\n")):
        block = text.split("\n")
        if blocks and _is_literal(blocks[-1]) and _is_literal(block):
            blocks[-1] += ["", *block]  # code with an empty line in it
        else:
            blocks.append(block)
    return [line for block in blocks for line in [*_block(block), ""]]


def _is_literal(lines: list[str]) -> bool:
    return all(line.startswith("  ") for line in lines if line) and any(lines)


def _block(lines: list[str]) -> list[str]:
    if not lines or not "".join(lines).strip():
        return []
    if _is_literal(lines):
        return _literal(lines)
    if re.match(r"([-*]|\d+\.) ", lines[0]):
        return inline("\n".join(re.sub(r"^\* ", "- ", line) for line in lines)).split("\n")
    prose = [i for i, line in enumerate(lines) if not line.startswith("  ")]
    if len(prose) == len(lines):
        return _prose(lines)
    end = next(i for i, line in enumerate(lines) if line.startswith("  "))  # words, and something indented under them
    below = next((i for i in range(end, len(lines)) if not lines[i].startswith("  ")), len(lines))
    body = lines[end:below]
    if lines[:end] == ["Returns:"]:
        inside = _prose(["Returns: " + body[0].strip(), *(line.strip() for line in body[1:])])
        return [*inside, "", *_block(lines[below:])]
    listed = _arguments(body) if end and lines[end - 1].rstrip().endswith(":") else None
    return [*_prose(lines[:end]), "", *(listed or _literal(body)), "", *_block(lines[below:])]


def _prose(lines: list[str]) -> list[str]:
    """A paragraph; a list that follows its words without an empty line gets one."""
    for i, line in enumerate(lines):
        if i and re.match(r"- ", line):
            return [*inline("\n".join(lines[:i])).split("\n"), "", *inline("\n".join(lines[i:])).split("\n")]
    return inline("\n".join(lines)).split("\n")


def _literal(lines: list[str]) -> list[str]:
    least = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return [".. code-block:: text", "", *("   " + line[least:] for line in lines)]


def _arguments(lines: list[str]) -> list[str] | None:
    if not _ARGUMENT.fullmatch(lines[0]):
        return None
    least = len(lines[0]) - len(lines[0].lstrip())
    items: list[list[str]] = []
    for line in lines:
        found = _ARGUMENT.fullmatch(line)
        if found and len(line) - len(line.lstrip()) == least:
            items.append([found[1], found[2]])
        elif items:
            items[-1][1] += " " + line.strip()
    return [f"- ``{name}``: {inline(text)}" for name, text in items]


# ---- signatures


class _Named(ast.NodeTransformer):
    """Writes a class of the package that an annotation names with the module in front, so that it becomes a link."""

    def __init__(self, module):
        self.module = module

    def visit_Name(self, node: ast.Name):
        thing = getattr(self.module, node.id, None)
        if inspect.isclass(thing) and thing.__module__.startswith(f"{PACKAGE}."):
            return ast.UnaryOp(ast.Invert(), ast.parse(f"{thing.__module__}.{thing.__qualname__}", mode="eval").body)
        return node


@cache
def _definition(path: str, qualname: str):
    body = tree(Path(path)).body
    node = None
    for name in qualname.split("."):
        node = next((each for each in body if getattr(each, "name", None) == name), None)
        if node is None:
            return None
        body = node.body
    return node


def signature_of(thing) -> tuple[str | None, str | None] | None:
    """(arguments, what is returned) as the source has them; None for what has no source of its own."""
    thing = inspect.unwrap(getattr(thing, "__func__", thing))
    module = inspect.getmodule(thing)
    if module is None or not module.__name__.startswith(PACKAGE) or not getattr(module, "__file__", None):
        return None
    node = _definition(module.__file__, thing.__qualname__)
    if isinstance(node, ast.ClassDef):
        return _of_class(node, module, thing)
    if not isinstance(node, ast.FunctionDef):
        return None
    bound = "." in thing.__qualname__ and "staticmethod" not in map(ast.unparse, node.decorator_list)
    return _arguments_of(node, module, bound), _annotation(node.returns, module)


def _of_class(node: ast.ClassDef, module, thing: type) -> tuple[str | None, str | None] | None:
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and each.name == "__init__":
            return _arguments_of(each, module, True), None
    decorators = " ".join(map(ast.unparse, node.decorator_list))
    tuple_like = any(ast.unparse(base).endswith("NamedTuple") for base in node.bases)
    if not decorators.startswith("dataclass") and not tuple_like:
        base = next((each for each in thing.__mro__[1:] if each.__module__.startswith(f"{PACKAGE}.")), None)
        if base or issubclass(thing, BaseException):
            return signature_of(base) if base else None
        return ("", None) if str(inspect.signature(thing)) == "(*args, **kwargs)" else None  # which says nothing
    fields = [f"{each.target.id}: {_annotation(each.annotation, module)}" + _default(each.value)
              for each in node.body if isinstance(each, ast.AnnAssign) and not each.target.id.startswith("_")]
    return f"({', '.join(fields)})", None


def _default(value: ast.expr | None) -> str:
    if value is None:
        return ""
    text = ast.unparse(value)
    return f" = {'...' if text.startswith('field(') else text}"


def _annotation(node: ast.expr | None, module) -> str | None:
    if node is None:
        return None
    if isinstance(node, ast.Constant) and isinstance(node.value, str):  # a class that is not defined yet
        return _annotation(ast.parse(node.value, mode="eval").body, module)
    copy = ast.parse(ast.unparse(node), mode="eval")
    return ast.unparse(_Named(module).visit(copy).body)


def _arguments_of(node: ast.FunctionDef, module, bound: bool) -> str:
    copy = ast.parse(ast.unparse(ast.FunctionDef(node.name, node.args, [ast.Pass()], [], None, None, type_params=[],
                                                 lineno=1))).body[0].args
    for each in (*copy.posonlyargs, *copy.args, *copy.kwonlyargs, copy.vararg, copy.kwarg):
        if each is not None and each.annotation is not None:
            each.annotation = _Named(module).visit(each.annotation)
    if bound:
        (copy.posonlyargs or copy.args).pop(0)
    return f"({ast.unparse(copy)})"


def fields_of(thing: type) -> list[str]:
    """The fields of a dataclass with the comments at the end of their lines, as a list; [] where no field has one."""
    module = inspect.getmodule(thing)
    node = _definition(module.__file__, thing.__qualname__)
    source, found = Path(module.__file__).read_text(encoding="utf-8").splitlines(), []
    for each in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(each, ast.AnnAssign) and not each.target.id.startswith("_"):
            rest = source[each.end_lineno - 1].encode()[each.end_col_offset:].decode().strip()
            if rest.startswith("#"):
                found.append(f"- ``{each.target.id}``: {inline(rest.lstrip('# '))}")
    return [*found, ""] if found else []


def lines_of(thing) -> list[str] | None:
    """The lines of a docstring without its indentation; None for what has no source of its own.

    autodoc takes away as much as all lines but the first have, also where they are code and belong further in.
    """
    if inspect.ismodule(thing):
        margin = 0
    else:
        thing = inspect.unwrap(getattr(thing, "fget", None) or getattr(thing, "__func__", thing))
        module = inspect.getmodule(thing)
        if module is None or not module.__name__.startswith(PACKAGE) or not hasattr(thing, "__qualname__"):
            return None
        node = _definition(module.__file__, thing.__qualname__)
        if node is None or ast.get_docstring(node) is None:
            return None
        margin = node.body[0].col_offset
    first, *rest = (thing.__doc__ or "").expandtabs().split("\n")
    return [first.lstrip(), *(line.lstrip() if line[:margin].strip() else line[margin:] for line in rest)]


def _on_docstring(app, what, name, thing, options, lines) -> None:
    lines[:] = as_rst(lines_of(thing) or lines)
    if what == "class":
        lines += fields_of(thing)


def _on_signature(app, what, name, thing, options, signature, returns):
    if what in ("module", "property"):
        return None
    return signature_of(thing)


def setup(app) -> dict:
    """Makes autodoc show docstrings and signatures as this module does."""
    importlib.import_module(PACKAGE)
    app.connect("autodoc-process-docstring", _on_docstring)
    app.connect("autodoc-process-signature", _on_signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
