"""Formulas as MathML, which browsers draw themselves: no script, no font and nothing from another server."""

import re
from xml.etree import ElementTree

from docutils.utils.math import MathError, latex2mathml
from sphinx.util import logging

_MATHML = "http://www.w3.org/1998/Math/MathML"
_ACCENTS = tuple("\u02c9\u02c6\u02dc\u02d9\u00a8\u02c7\u2192")  # bar, hat, tilde, dot, ddot, check, vec
_logger = logging.getLogger(__name__)


def mathml(formula: str, block: bool) -> str:
    """A formula in LaTeX's notation as a `<math>` element. Raises docutils' MathError for what it does not know."""
    formula = re.sub(r"\\big(?=[\[(|{\\])", r"\\bigl", formula)
    formula = re.sub(r"\\big(?=[\])}])", r"\\bigr", formula)
    formula = formula.replace("\\textstyle", "")
    return _with_indices(latex2mathml.tex2mathml(formula, as_block=block))


def _with_indices(element: str) -> str:
    """With the index of an accented letter beside it: docutils sets the t of `\\bar\\alpha_t` below the letter."""
    if "<munderover" not in element:
        return element
    ElementTree.register_namespace("", _MATHML)
    root = ElementTree.fromstring(element)
    for node in list(root.iter(f"{{{_MATHML}}}munderover")):
        letter, index, accent = node
        if accent.text in _ACCENTS:
            accented = ElementTree.Element(f"{{{_MATHML}}}mover", accent="true")
            accented.extend([letter, accent])
            node.tag, node[:] = f"{{{_MATHML}}}msub", [accented, index]
    return ElementTree.tostring(root, encoding="unicode")


def _visit(block: bool):
    def visit(translator, node) -> None:
        from docutils import nodes

        try:
            element = mathml(node.astext(), block)
        except MathError as error:
            _logger.warning("a formula cannot be shown as MathML: %s: %s", error, node.astext(), location=node)
            element = f"<code>{translator.encode(node.astext())}</code>"
        translator.body.append(f'<div class="formula">{element}</div>' if block else element)
        raise nodes.SkipNode

    return visit


def setup(app) -> dict:
    """Registers `html_math_renderer = "mathml"`."""
    app.add_html_math_renderer("mathml", (_visit(False), None), (_visit(True), None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
