"""Draws the figures of the documentation into docs/figures: ``make figures``.

The learning curves are not among them: `examples/movielens.py` and `benchmarks.quality` draw those from what they
trained.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Polygon, Rectangle

USER, ITEM, BOTH, HEAD = "#0072B2", "#D55E00", "#7B5EA7", "#009E73"  # Okabe & Ito's, and a purple
INK, FAINT = "#2B2B2B", "#767676"
HERE = Path(__file__).parent


class Drawing:
    """A figure that can be written."""

    def __init__(self, figure: Any) -> None:
        self.figure = figure

    def save(self, path: Path) -> None:
        """Write the drawing as SVG; the same drawing is the same file."""
        FigureCanvasSVG(self.figure)
        with rc_context({"svg.hashsalt": "ncf"}):
            self.figure.savefig(path, format="svg", metadata={"Date": None})


class Canvas(Drawing):
    """A drawing in plain units, 100 to the inch, from the lower left corner."""

    def __init__(self, width: float, height: float) -> None:
        super().__init__(Figure(figsize=(width / 100, height / 100), facecolor="white"))
        self.axis: Any = self.figure.add_axes((0, 0, 1, 1))
        self.axis.set_axis_off()
        self.axis.set_xlim(0, width)
        self.axis.set_ylim(0, height)

    def text(self, x: float, y: float, words: str, size: float = 10, colour: str = INK, **how: Any) -> None:
        """Words, centred by default."""
        self.axis.text(
            x, y, words, **{"ha": "center", "va": "center", "fontsize": size, "color": colour} | how
        )

    def box(self, x: float, y: float, words: str, colour: str, width: float = 92, height: float = 28) -> None:
        """A rounded box around its centre."""
        shape = FancyBboxPatch(
            (x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0,rounding_size=7",
            facecolor=colour, edgecolor="none",
        )  # fmt: skip
        self.axis.add_patch(shape)
        self.text(x, y, words, colour="white")

    def cells(self, x: float, y: float, count: int, colour: str | Sequence[str], size: float = 16) -> None:
        """A vector, as a row of cells around its centre."""
        colours = [colour] * count if isinstance(colour, str) else colour
        left = x - count * size / 2
        for place in range(count):
            corner = (left + place * size, y - size / 2)
            shade = 0.30 + 0.5 * ((place * 7 + count) % 5) / 4  # values differ: a vector, not a bar
            self.axis.add_patch(
                Rectangle(corner, size, size, facecolor=colours[place], alpha=shade, edgecolor="none")
            )
            self.axis.add_patch(
                Rectangle(corner, size, size, facecolor="none", edgecolor="white", linewidth=1)
            )

    def funnel(self, x: float, y: float, widths: tuple[float, float], height: float = 34) -> None:
        """A dense layer: a trapezium from the width of its input to that of its output."""
        below, above = widths
        corners = [
            (-below / 2, -height / 2),
            (below / 2, -height / 2),
            (above / 2, height / 2),
            (-above / 2, height / 2),
        ]
        self.axis.add_patch(
            Polygon(
                [(x + dx, y + dy) for dx, dy in corners], facecolor="#E9E4F1", edgecolor=BOTH, linewidth=1
            )
        )

    def disc(self, x: float, y: float, sign: str, colour: str) -> None:
        """An operation."""
        self.axis.add_patch(Circle((x, y), 13, facecolor="white", edgecolor=colour, linewidth=1.4, zorder=3))
        self.text(x, y, sign, size=13, colour=colour, zorder=4)

    def arrow(self, start: tuple[float, float], end: tuple[float, float], colour: str = FAINT) -> None:
        """From a point to a point."""
        style = {"arrowstyle": "-|>,head_width=0.22,head_length=0.4", "color": colour, "linewidth": 1.2}
        self.axis.annotate("", end, start, arrowprops=style | {"shrinkA": 0, "shrinkB": 0})


def _rows(canvas: Canvas, x: tuple[float, float], tables: tuple[str, str], count: int) -> None:
    """A user's and an item's id at the foot, and above them their rows of two tables; tops at y = 108."""
    signs = (r"$\mathbf{p}_u$", r"$\mathbf{q}_i$")
    for place, table, sign, name, colour in zip(
        x, tables, signs, ("user $u$", "item $i$"), (USER, ITEM), strict=True
    ):
        canvas.box(place, 22, name, colour)
        canvas.arrow((place, 37), (place, 78))
        canvas.text(place + 8, 57, table, size=8.5, colour=FAINT, ha="left", family="monospace")
        canvas.cells(place, 92, count, colour)
        canvas.text(place - count * 8 - 14, 92, sign, size=12, colour=colour)


def _answer(canvas: Canvas, x: float, y: float, start: float) -> None:
    """The head, the logit and the probability; ``start`` is where the arrow into the head begins."""
    canvas.arrow((x, start), (x, y - 15))
    canvas.box(x, y, r"$\mathbf{h}^\top\!\cdot\; +\, b$", HEAD)
    canvas.arrow((x + 47, y), (x + 90, y))
    canvas.text(x + 112, y, "logit", size=10)
    canvas.arrow((x + 134, y), (x + 172, y))
    canvas.text(x + 153, y + 10, r"$\sigma$", size=11, colour=FAINT)
    canvas.text(x + 190, y, r"$\hat{y}_{ui}$", size=14)


def gmf() -> Canvas:
    """Generalized matrix factorization."""
    canvas = Canvas(560, 250)
    _rows(canvas, (130, 330), ("user_gmf", "item_gmf"), 8)
    canvas.arrow((130, 102), (216, 142), USER)
    canvas.arrow((330, 102), (244, 142), ITEM)
    canvas.disc(230, 148, r"$\odot$", BOTH)
    canvas.arrow((230, 162), (230, 172))
    canvas.cells(230, 182, 8, BOTH)
    canvas.text(304, 182, "element-wise product", size=9, colour=FAINT, ha="left")
    _answer(canvas, 230, 226, 191)
    return canvas


def _perceptron(canvas: Canvas, x: float, y: float, names: Sequence[str]) -> float:
    """Layers that halve, from two rows side by side at ``y``; returns the top."""
    width = 16.0 * 16
    for name in names:
        canvas.arrow((x, y), (x, y + 10))
        canvas.funnel(x, y + 28, (width, width / 2))
        canvas.text(x, y + 28, name, size=10)
        canvas.arrow((x, y + 46), (x, y + 55))
        width /= 2
        canvas.cells(x, y + 64, int(width / 16), BOTH)
        y += 73
    return y


def mlp() -> Canvas:
    """The multi-layer perceptron."""
    canvas = Canvas(560, 408)
    _rows(canvas, (130, 330), ("user_mlp", "item_mlp"), 8)
    for place, colour, end in ((130, USER, 166), (330, ITEM, 294)):
        canvas.arrow((place, 102), (end, 125), colour)
    canvas.cells(230, 136, 16, [USER] * 8 + [ITEM] * 8)
    canvas.text(368, 136, "side by side: layers[0]", size=9, colour=FAINT, ha="left")
    top = _perceptron(canvas, 230, 145, (r"ReLU$(\mathbf{W}\,\cdot + \,\mathbf{b})$", "ReLU", "ReLU"))
    canvas.text(304, 209, "layers[1]", size=9, colour=FAINT, ha="left")
    canvas.text(274, 282, "layers[2]", size=9, colour=FAINT, ha="left")
    canvas.text(256, 355, "layers[3]", size=9, colour=FAINT, ha="left")
    _answer(canvas, 230, 387, top)
    return canvas


def neumf() -> Canvas:
    """Neural matrix factorization: the two towers under one head."""
    canvas = Canvas(790, 388)
    _rows(canvas, (110, 270), ("user_gmf", "item_gmf"), 6)
    canvas.arrow((110, 102), (178, 190), USER)
    canvas.arrow((270, 102), (202, 190), ITEM)
    canvas.disc(190, 199, r"$\odot$", BOTH)
    canvas.arrow((190, 213), (190, 271))
    canvas.cells(190, 282, 6, BOTH)
    canvas.text(130, 282, "GMF", size=10, colour=BOTH, ha="right", weight="bold")
    _rows(canvas, (480, 670), ("user_mlp", "item_mlp"), 8)
    for place, colour, end in ((480, USER, 511), (670, ITEM, 639)):
        canvas.arrow((place, 102), (end, 125), colour)
    canvas.cells(575, 136, 16, [USER] * 8 + [ITEM] * 8)
    top = _perceptron(canvas, 575, 145, ("ReLU", "ReLU"))
    canvas.text(617, 282, "MLP", size=10, colour=BOTH, ha="left", weight="bold")
    canvas.arrow((205, top + 1), (312, 316), BOTH)
    canvas.arrow((560, top + 1), (432, 316), BOTH)
    canvas.cells(372, 324, 10, BOTH, size=12)
    canvas.text(372, 305, "side by side", size=9, colour=FAINT)
    _answer(canvas, 372, 364, 332)
    return canvas


def leave_one_out(narrow: bool = False) -> Canvas:
    """The held-out items of each user, and the candidates among which one is ranked; below each other if narrow."""
    canvas = Canvas(450, 466) if narrow else Canvas(830, 236)
    _held_out(canvas, 230 if narrow else 0)
    _ranked(canvas, -380 if narrow else 0)
    return canvas


def _held_out(canvas: Canvas, up: float) -> None:
    people = (("ann", 9), ("bob", 5), ("eve", 7), ("joe", 2))
    train, validation = "#9DB7C9", "#E69F00"
    canvas.text(20, up + 214, "1  Hold out each user's last two", size=11, ha="left", weight="bold")
    for row, (name, count) in enumerate(people):
        y = up + 172 - 36 * row
        canvas.text(34, y, name, size=10, ha="left")
        canvas.arrow((74, y), (330 if count >= 3 else 142, y), "#C9C9C9")
        for place in range(count):
            left = count - place
            held = count >= 3 and left <= 2
            colour = train if not held else HEAD if left == 1 else validation
            canvas.axis.add_patch(
                Circle((92 + 25 * place, y), 8, facecolor=colour, edgecolor="white", zorder=3)
            )
    canvas.text(152, up + 64, "too few: trained on, not tested", size=9, colour=FAINT, ha="left")
    for x, colour, words in ((41, train, "train"), (108, validation, "validation"), (204, HEAD, "test")):
        canvas.axis.add_patch(Circle((x, up + 22), 7, facecolor=colour, edgecolor="white"))
        canvas.text(x + 13, up + 22, words, size=9, ha="left")
    canvas.text(300, up + 22, "time →", size=9, colour=FAINT)


def _ranked(canvas: Canvas, right: float) -> None:
    canvas.text(right + 400, 214, "2  Rank it among 100 unseen items", size=11, ha="left", weight="bold")
    canvas.text(right + 400, 188, "ann's candidates by score, best first:", size=9, colour=FAINT, ha="left")
    for place in range(16):
        mine = place == 3
        corner = (right + 400 + 25 * place, 146)
        canvas.axis.add_patch(
            Rectangle(
                corner,
                22,
                26,
                facecolor=HEAD if mine else "#DADADA" if place < 10 else "#F0F0F0",
                edgecolor="none",
            )
        )
        canvas.text(corner[0] + 11, 159, str(place), size=8, colour="white" if mine else FAINT)
    canvas.text(right + 808, 159, "…", size=11, colour=FAINT)
    canvas.axis.plot(
        [right + 648.5, right + 648.5], [138, 180], color=INK, linewidth=1.2, linestyle=(0, (3, 2))
    )
    canvas.text(right + 652, 184, "$k = 10$", size=9, ha="left")
    canvas.text(
        right + 400, 112, "3  Count the others that score at least as high", size=11, ha="left", weight="bold"
    )
    lines = (
        r"HR@10 $= [\,r < 10\,] = 1$",
        r"NDCG@10 $= 1\,/\,\log_2(3 + 2) \approx 0.43$",
        r"MRR $= 1\,/\,(3 + 1) = 0.25$",
    )
    for row, line in enumerate(lines):
        canvas.text(right + 464, 84 - 24 * row, line, size=10, ha="left")
    canvas.text(right + 400, 84, "$r = 3$:", size=10, ha="left")
    canvas.text(right + 640, 36, "then the mean over users", size=9, colour=FAINT, ha="left")


_ROW = r"^(.+?), (\d+) factors +([\d.]+) +([\d.]+)  ± ([\d.]+), ± ([\d.]+)"


def factors(narrow: bool = False) -> Drawing:
    """The study of factors, as its table on the page of results has it; the panels below each other if narrow."""
    sys.path.insert(0, str(HERE.parent / "examples"))
    import paper

    text = (HERE / "results.md").read_text(encoding="utf-8").split("--part factors")[1]
    (popularity,) = re.findall(r"^ItemPop +([\d.]+) +([\d.]+)", text, re.MULTILINE)[:1]
    curves: Any = {}
    for model, count, *values in re.findall(_ROW, text, re.MULTILINE):
        hr, ndcg, hr_error, ndcg_error = map(float, values)
        curves.setdefault(("hr", model), {})[int(count)] = hr, hr_error
        curves.setdefault(("ndcg", model), {})[int(count)] = ndcg, ndcg_error
    level = {"hr": [float(popularity[0])], "ndcg": [float(popularity[1])]}
    return Drawing(paper.draw_lines("factors", curves, level, paper.published("ml-1m"), narrow))


_SHOWN = ("0", "1", "2", "5", "10", "all")
_COLOURS = {"GMF": USER, "NeuMF": ITEM, "EASE": HEAD, "ItemKNN": BOTH, "popularity": FAINT}


def _fold_in_tables() -> dict[str, dict[str, list[float]]]:
    """HR@10 over the items of history by data set and line, as the pages print them; last, of the trained."""
    tables: dict[str, dict[str, list[float]]] = {"MovieLens-100K": {}}
    text = (HERE / "examples" / "output" / "new_users.txt").read_text(encoding="utf-8")
    for name, hr in re.findall(r"^(\w+), \w+ items +([\d.]+) /", text, re.MULTILINE):
        tables["MovieLens-100K"].setdefault(name, []).append(float(hr))
    for name, hr in re.findall(r"^(\w+), trained on them +([\d.]+) /", text, re.MULTILINE):
        tables["MovieLens-100K"][name].append(float(hr))
    page = (HERE / "new_users.md").read_text(encoding="utf-8").split("## The proof")[1]
    for title, block in re.findall(r"^(.+?)  +items of history.*\n((?:.+\n)+?)```", page, re.MULTILINE):
        found = re.findall(r"^(\w+),? .*?((?:[.]\d+/[.]\d+ *)+)$", block, re.MULTILINE)
        tables[title] = {name: [float(pair.split("/")[0]) for pair in pairs.split()] for name, pairs in found}
    return tables


def fold_in(narrow: bool = False) -> Drawing:
    """New users' HR@10 over the items that they show, from the tables of the pages."""
    tables = _fold_in_tables()
    count = len(tables)
    size, grid = ((4.2, 3.0 * count), (count, 1)) if narrow else ((3.4 * count, 3.3), (1, count))
    figure = Figure(figsize=size, facecolor="white", layout="constrained")
    for number, (title, lines) in enumerate(tables.items()):
        axis: Any = figure.add_subplot(*grid, number + 1)
        for name, colour in _COLOURS.items():
            values = lines.get(name, [])
            level = values[:1] * len(_SHOWN) if name == "popularity" else values[: len(_SHOWN)]
            axis.plot(_SHOWN[: len(level)], level, color=colour, marker=".", linewidth=1.4, label=name)
            if len(values) > len(_SHOWN) and name != "popularity":
                axis.axhline(values[-1], color=colour, linewidth=0.9, linestyle=(0, (4, 3)))
        axis.set_title(title, fontsize=10, color=INK)
        axis.set_xlabel("items of history", fontsize=9, color=INK)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8, colors=INK)
        if number == 0:
            axis.set_ylabel("HR@10", fontsize=9, color=INK)
            axis.legend(fontsize=8, frameon=False, loc="lower right")
    return Drawing(figure)


FIGURES = {
    "gmf": gmf,
    "mlp": mlp,
    "neumf": neumf,
    "leave_one_out": leave_one_out,
    "leave_one_out_narrow": lambda: leave_one_out(narrow=True),
    "fold_in": fold_in,
    "fold_in_narrow": lambda: fold_in(narrow=True),
    "factors": factors,
    "factors_narrow": lambda: factors(narrow=True),
}


def main() -> None:
    """Draw them all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=HERE / "figures", type=Path, help="the folder")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        draw().save(out / f"{name}.svg")


if __name__ == "__main__":
    main()
