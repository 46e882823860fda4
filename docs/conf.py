"""Sphinx configuration."""

import sys
from pathlib import Path

import ncf

sys.path.insert(0, str(Path(__file__).parent))  # for the four extensions of our own

project = "ncf"
author = "the ncf authors"
copyright = "2026, the ncf authors"
version = release = ncf.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "executed",
    "linked",
    "mathml",
    "reference",
]
myst_enable_extensions = ["deflist", "dollarmath", "colon_fence", "attrs_inline"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"ncf {ncf.__version__}"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["style.css"]
exclude_patterns = ["_build"]
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 84
autodoc_member_order = "bysource"
autodoc_default_options = {
    "members": True,
    "special-members": "__call__",
    "exclude-members": "extra_repr",
}
napoleon_google_docstring = True
default_role = "code"
