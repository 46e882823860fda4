"""Runs the Python blocks of a page, and puts their output below them: the outputs shown are real."""

from __future__ import annotations

import ast
import io
import os
import re
import sys
import tempfile
from contextlib import redirect_stdout
from typing import Any

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_UNFETCHED = """
:::{{note}}
This page was built where MovieLens-100K could not be had, so its code did not run and its outputs are left out: {error}
:::
"""


def executed(text: str, name: str) -> str:
    """Run a page's blocks in order, in one namespace and in a folder of their own.

    Args:
        text: the page, in Markdown.
        name: what to call it in a traceback, whose line numbers are those of the page.

    Returns:
        The page, each block followed by its output and, as in a notebook, the value of its last line: as a table,
        if the value has one.
    """
    if "movielens.load(" in text and _BLOCK.search(text):
        from ncf.datasets import movielens

        try:
            movielens.load("100k")
        except OSError as error:
            return text + _UNFETCHED.format(error=error)
    namespace: dict[str, Any] = {"__name__": "__main__"}

    def run(match: re.Match[str]) -> str:
        first_line = text.count("\n", 0, match.start(1))
        output, table = _output("\n" * first_line + match[1], name, namespace)
        shown = match[0]
        if output:
            shown += f"\n\n```{{code-block}} text\n:class: output\n\n{output}```"
        if table:
            shown += f'\n\n```{{raw}} html\n<div class="output table-wrapper">{table}</div>\n```'
        return shown

    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            return _BLOCK.sub(run, text)
        finally:
            os.chdir(before)


def _output(code: str, name: str, namespace: dict[str, Any]) -> tuple[str, str]:
    """Return what a block prints, and the HTML table of its last value."""
    tree = ast.parse(code, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, tables = io.StringIO(), []

    def show(value: Any) -> None:
        if hasattr(value, "_repr_html_"):
            tables.append(value._repr_html_())
        elif value is not None:
            print(repr(value))

    before, sys.displayhook = sys.displayhook, show
    try:
        with redirect_stdout(printed):
            exec(compile(tree, name, "exec"), namespace)
            if last is not None:  # compiled as at the prompt, which shows the value if it is not None
                exec(compile(ast.Interactive([last]), name, "single"), namespace)
    finally:
        sys.displayhook = before
    return printed.getvalue(), "".join(tables)


def setup(app: Any) -> dict[str, bool]:
    """Let Sphinx run the pages as it reads them."""

    def read(app: Any, page: str, source: list[str]) -> None:
        source[0] = executed(source[0], f"{page}.md")

    app.connect("source-read", read)
    return {"parallel_read_safe": False}
