"""Where a line may end inside code within prose: between its words, and only in a very long one also inside it."""

import re

_LONG = re.compile(r'<span class="pre">(?=[^<]{33,}</span>)')  # wider than a phone may be


def _mark(app, pagename, templatename, context, doctree) -> None:
    if "body" in context:
        context["body"] = _LONG.sub('<span class="pre long">', context["body"])


def setup(app) -> dict:
    """Marks the long words for site.css, which keeps all others on one line."""
    app.connect("html-page-context", _mark)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
