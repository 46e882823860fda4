"""Links names in code type to their entries in the API reference, in prose and in docstrings."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.util.nodes import make_refnode

_NAME = re.compile(r"(?:ncf\.)?([A-Za-z_][\w.]*)(?:\(.*)?", re.DOTALL)


def reference_names(objects: dict[str, Any]) -> dict[str, str]:
    """Map each short name that prose may use to the full name of a documented object.

    Args:
        objects: Sphinx's Python objects by full name.

    Returns:
        ``Trainer`` and ``Trainer.fit`` to ``ncf.Trainer`` and ``ncf.Trainer.fit``; the shortest full name wins. A
        module has its full name only.
    """
    short: dict[str, str] = {}
    for name in sorted(objects, key=lambda name: (name.count("."), name)):
        if objects[name].objtype == "module":
            continue
        parts = name.split(".")
        if objects[name].objtype in ("class", "function", "exception"):
            short.setdefault(parts[-1], name)
        for start in range(1, len(parts) - 1):
            short.setdefault(".".join(parts[start:]), name)
    return short


def _link(app: Any, document: nodes.document, page: str) -> None:
    objects = app.env.get_domain("py").objects
    names = reference_names(objects)
    for literal in list(document.findall(nodes.literal)):
        text = literal.astext()
        found = _NAME.fullmatch(text)
        full = text if text in objects else names.get(found[1]) if found else None
        if full is None or isinstance(literal.parent, nodes.reference | nodes.title):
            continue
        target = objects[full]
        if target.docname == page and not page.startswith("api"):
            continue
        link = make_refnode(app.builder, page, target.docname, target.node_id, literal.deepcopy())
        literal.replace_self(link)


def setup(app: Any) -> dict[str, bool]:
    """Let Sphinx link the names when the pages are resolved."""
    app.connect("doctree-resolved", _link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
