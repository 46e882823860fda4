"""Matplotlib figures in one look, without its global state; matplotlib is imported when one is made."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from ncf.utils.files import atomic_write

INK, FAINT = "#333333", "#777777"


def new_figure(
    *, rows: int = 1, columns: int = 1, width: float, height: float, share: bool = False
) -> tuple[Any, list[Any]]:
    """Make a figure and its axes, row by row; it belongs to no window and to no global state.

    Args:
        rows: of axes.
        columns: of axes.
        width: in inches.
        height: in inches.
        share: whether all axes have the same scales.

    Raises:
        ImportError: if matplotlib is not installed.

    Example::

        >>> from ncf.evaluation.figures import new_figure
        >>> figure, axes = new_figure(columns=2, width=6, height=3)
        >>> len(axes)
        2
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'ncf[plots]'") from error
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, sharex=share, sharey=share, squeeze=False).ravel().tolist()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(FAINT)
        axis.tick_params(colors=INK)
        axis.grid(color="#EBEBEB", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def save_figure(figure: Any, path: str | PathLike[str]) -> None:
    """Write a figure, complete or not at all; the suffix of its path decides the format, PNG without one.

    Example::

        >>> import tempfile
        >>> from pathlib import Path
        >>> from ncf.evaluation.figures import new_figure, save_figure
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_figure(new_figure(width=6, height=3)[0], f"{folder}/curves.svg")
        ...     Path(folder, "curves.svg").read_text()[:5]
        '<?xml'
    """
    suffix = Path(path).suffix.lstrip(".") or "png"
    with atomic_write(path) as beside:
        figure.savefig(beside, format=suffix, dpi=150)
