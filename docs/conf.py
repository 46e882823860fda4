"""Sphinx configuration."""

import ncf

project = "ncf"
author = "the ncf authors"
version = release = ncf.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"ncf {ncf.__version__}"
exclude_patterns = ["_build"]
autodoc_typehints = "none"  # the docstrings say more than the signatures
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = True
default_role = "code"
