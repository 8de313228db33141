"""Sphinx configuration. `make docs` builds ``docs/_build/html``; a warning is an error."""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))

from api_pages import keep_line_breaks, read_property, resolve_short_name, skip_member, write_pages
from deit import __version__

project = "deit"
author = "The deit team"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

# Markdown. Headings get the anchors that GitHub gives them.
myst_heading_anchors = 4

# API reference, from the docstrings.
autodoc_class_signature = "mixed"
autodoc_default_options = {"no-value": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autosummary_generate = False  # api_pages.py writes the pages
napoleon_numpy_docstring = False
napoleon_use_rtype = False  # `height, width: ...` below `Returns:` are names, not types

# Every reference within the project must resolve. Names of other libraries cannot: their inventories need the network.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:(class|obj|exc|data)", r"(?!deit\.).*"),  # types in signatures
    (r"py:.*", r"(torch|torchvision|timm|transformers|numpy|PIL)\..*"),
    (r"py:(class|obj)", r"deit\.(.*\.)?(_\w+|[A-Z])"),  # private base classes and type variables
]

# Links between pages and to headings are checked by this build. External links are not fetched, because the build must work
# offline; `sphinx-build -b linkcheck docs docs/_build/linkcheck` checks them.

smartquotes = False  # would turn --option into a dash
html_theme = "furo"
html_title = f"deit {release}"
html_show_sourcelink = False
html_copy_source = False


def setup(app: Sphinx) -> None:
    """Connects the hooks of the API pages."""
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("autodoc-process-docstring", read_property, priority=600)  # after napoleon
    app.connect("autodoc-process-docstring", keep_line_breaks, priority=700)
    app.connect("missing-reference", resolve_short_name)
