"""HTML tables, as notebooks show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> str:
    """Return a table as HTML: the first column to the left, all others to the right.

    Args:
        header: the column names, escaped.
        rows: the cells of each row, escaped.
        note: a line below the table, escaped.
    """
    left, right = 'style="text-align: left"', 'style="text-align: right"'

    def row(cells: Sequence[str], tag: str) -> str:
        styles = [left, *[right] * (len(cells) - 1)]
        return "".join(f"<{tag} {how}>{cell}</{tag}>" for cell, how in zip(cells, styles, strict=True))

    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    below = f"<p><small>{note}</small></p>" if note else ""
    return f"<table><thead><tr>{row(header, 'th')}</tr></thead><tbody>{body}</tbody></table>{below}"
