"""Formulas as MathML, which browsers draw themselves: no script, no network, and text that can be read aloud."""

from __future__ import annotations

import html
import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

_TAG = re.compile(r"\\tag\{([^}]*)\}")  # the one command of ours that docutils does not know
_logger = logging.getLogger(__name__)


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(_mathml(node, as_block=False))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    tags = _TAG.findall(node.astext())
    number = f'<span class="math-tag">({html.escape(tags[0])})</span>' if tags else ""
    translator.body.append(f'<div class="math-block">{_mathml(node, as_block=True)}{number}</div>')
    raise nodes.SkipNode


def _mathml(node: nodes.Element, *, as_block: bool) -> str:
    try:
        return str(tex2mathml(_TAG.sub("", node.astext()).strip(), as_block=as_block))
    except MathError as error:
        _logger.warning("the formula %r cannot be drawn: %s", node.astext(), error, location=node)
        return ""


def setup(app: Any) -> dict[str, bool]:
    """Make it the renderer that ``html_math_renderer = "mathml"`` names."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True}
