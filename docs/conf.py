"""Sphinx configuration of the documentation site; `make docs` builds it into build/docs."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

project = "alexlab"
author = "the alexlab authors"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
templates_path = ["_templates"]
exclude_patterns = ["data"]

html_theme = "furo"
html_title = "alexlab"
html_show_copyright = False

myst_heading_anchors = 3  # [text](page.md#a-heading) works, as it does on GitHub
myst_enable_extensions = ["colon_fence"]

autosummary_generate = True
autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_inherit_docstrings = False  # those of torch and Lightning use directives of their own
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_ivar = True


def to_rst(app, what, name, obj, options, lines):
    """Convert the Markdown of docstrings, `code` and tables, to reStructuredText."""
    converted = []
    for line in lines:
        if not line.lstrip().startswith("|"):
            converted.append(re.sub(r"(?<![`:\\])`([^`]+)`(?![`_])", r"``\1``", line))
            continue
        if not (converted and converted[-1].startswith("    |")):
            converted += ["::", ""]
        converted.append(f"    {line.strip()}")
    lines[:] = converted


def setup(app):
    app.connect("autodoc-process-docstring", to_rst, priority=100)  # before napoleon
