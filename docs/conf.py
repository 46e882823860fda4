"""Sphinx configuration."""

import sys
from pathlib import Path

import ncf

sys.path.insert(0, str(Path(__file__).parent))  # for executed and mathml, the two extensions of our own

project = "ncf"
author = "the ncf authors"
version = release = ncf.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "executed",
    "mathml",
]
myst_enable_extensions = ["deflist", "dollarmath", "colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"ncf {ncf.__version__}"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["style.css"]
exclude_patterns = ["_build"]
autodoc_typehints = "none"  # the docstrings say more than the signatures
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = True
default_role = "code"
