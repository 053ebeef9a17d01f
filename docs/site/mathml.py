"""Formulas as MathML, which browsers draw themselves: no script, no font and nothing from another server."""

import re

from docutils.utils.math import MathError, latex2mathml
from sphinx.util import logging

_logger = logging.getLogger(__name__)


def mathml(formula: str, block: bool) -> str:
    """A formula in LaTeX's notation as a `<math>` element. Raises docutils' MathError for what it does not know."""
    formula = re.sub(r"\\big(?=[\[(|{\\])", r"\\bigl", formula)
    formula = re.sub(r"\\big(?=[\])}])", r"\\bigr", formula)
    formula = formula.replace("\\textstyle", "")
    return latex2mathml.tex2mathml(formula, as_block=block)


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
