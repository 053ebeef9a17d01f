"""Settings of the site for Sphinx; `make site` (docs/site/build.py) gathers the pages and calls it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for minicogvx and docs.site

import minicogvx  # noqa: E402

project = "minicogvx"
author = "The authors of minicogvx"
copyright = "The authors of minicogvx. Code: Apache-2.0"
release = minicogvx.__version__
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "docs.site.mathml", "docs.site.docstrings",
              "docs.site.code_words"]
exclude_patterns = ["extra", "files"]
suppress_warnings = ["mystnb.unknown_mime_type"]

# Pages and notebooks
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4
myst_dmath_double_inline = True
nb_execution_mode = "off"  # what is shown is what is stored
nb_merge_streams = True
nb_code_prompt_show = "Make your guess first, then open the outcome"
nb_code_prompt_hide = "Hide the outcome"
html_math_renderer = "mathml"
smartquotes = False  # option names such as --tile keep both their hyphens

# The API reference
add_module_names = False
autodoc_class_signature = "mixed"
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
maximum_signature_line_length = 90
python_display_short_literal_types = True
toc_object_entries_show_parents = "hide"
nitpicky = True  # a link to a class of the package that leads nowhere is an error ...
nitpick_ignore_regex = [("py:.*", r"(?!minicogvx).*")]  # ... and torch's, for which we have no pages, is none

# What it looks like: no fonts, scripts or pictures of other servers
html_theme = "sphinx_book_theme"
html_title = "minicogvx"
html_static_path = ["site/static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_context = {"default_mode": "auto"}
html_sidebars = {"**": ["navbar-logo.html", "search-button-field.html", "sbt-sidebar-nav.html"]}
html_theme_options = {
    "home_page_in_toc": False, "show_navbar_depth": 1, "collapse_navbar": True, "show_toc_level": 2,
    "navbar_persistent": [], "use_download_button": False, "use_fullscreen_button": False,
    "footer_content_items": "copyright.html",
    "pygments_light_style": "a11y-high-contrast-light", "pygments_dark_style": "a11y-high-contrast-dark",
    "navigation_with_keys": False, "back_to_top_button": False,
}
