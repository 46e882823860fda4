"""The least time each Triton kernel could take on an A100 and an H100, from what it must move and do.

::

    python benchmarks/kernel_floors.py                          # the tables of docs/kernels.md
    python benchmarks/kernel_floors.py --write docs/kernels.md  # replace them between their two marks
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

MARKS = "<!-- floors: begin -->\n", "<!-- floors: end -->\n"


class Device(NamedTuple):
    """Peak rates by the vendor's data sheet, dense: bytes, and operations with a multiply-add as two."""

    name: str
    bandwidth: float
    fp32: float
    tf32: float
    bf16: float


DEVICES = (
    Device("A100 80GB SXM", 2.0e12, 19.5e12, 156e12, 312e12),
    Device("H100 SXM", 3.35e12, 67e12, 495e12, 989e12),
)


class Work(NamedTuple):
    """What a kernel must do at least: bytes of memory, multiply-adds in products, other operations."""

    bytes: float
    products: float
    scalars: float


class Model(NamedTuple):
    """Widths: of the GMF rows, and of the MLP with the two rows side by side first."""

    factors: int
    layers: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.factors}; {'-'.join(map(str, self.layers))}"


SMALL, LARGE = Model(8, (32, 16, 8)), Model(64, (256, 128, 64))


def scoring(users: int, items: int, candidates: int, model: Model, size: int, common: bool = False) -> Work:
    """Score ``users × candidates`` pairs; every row is read from memory once, and again only from caches."""
    pairs = users * candidates
    hidden = model.layers[1:]
    rows = (users + min(items, pairs)) * (hidden[0] + model.factors) * size
    products = sum(into * out for into, out in pairwise(hidden))
    # Add and rectify the halves, round them (fp32: split in two), GMF, biases and rectifiers, head.
    scalars = (2 + (1 if size == 2 else 3)) * hidden[0] + model.factors + 2 * sum(hidden[1:]) + hidden[-1]
    ids = 8 * (candidates if common else pairs) + 8 * users
    return Work(ids + rows + 4 * pairs, products * pairs, scalars * pairs)


def lookup(
    users: int, items: int, batch: int, several: int, model: Model, size: int
) -> tuple[Work, Work, Work]:
    """Forward, backward, and what the two would move more if the rows side by side were materialized."""
    pairs, dim, hidden = batch * several, model.layers[0] // 2, model.layers[1]
    ids = 8 * batch + 8 * pairs
    rows = (min(users, batch) + min(items, pairs)) * (dim + model.factors) * size
    outputs = pairs * (model.factors + hidden) * size
    product = pairs * 2 * dim * hidden
    forward = Work(ids + rows + outputs, product, pairs * (model.factors + 2 * hidden))
    gradients = 2 * pairs * (dim + model.factors) * size
    read = ids + rows + outputs + pairs * hidden * size  # the outputs' gradients, and the hidden layer
    backward = Work(read + gradients, 2 * product, pairs * (2 * model.factors + hidden))
    return forward, backward, Work(4 * pairs * 2 * dim * size, 0, 0)


def update(users: int, items: int, batch: int, several: int, model: Model) -> Work:
    """Row-sparse AdamW of the four tables: gradients, sorted ids and places read, rows and two moments both ways."""
    columns = model.layers[0] // 2 + model.factors
    sides = ((users, batch), (items, batch * several))
    moved = sum(pairs * (4 * columns + 2 * 16) + 24 * min(rows, pairs) * columns for rows, pairs in sides)
    return Work(moved, 0, 10 * sum(min(rows, pairs) for rows, pairs in sides) * columns)


def floor(work: Work, device: Device, size: int) -> tuple[float, str]:
    """The longest of three times that may overlap, in microseconds, and its name."""
    # In fp32 a product is three of tf32. An operation other than a multiply-add takes the time of one.
    matrix = 2 * work.products / device.bf16 if size == 2 else 3 * 2 * work.products / device.tf32
    times = {
        "memory": work.bytes / device.bandwidth,
        "products": matrix,
        "scalars": 2 * work.scalars / device.fp32,
    }
    name = max(times, key=lambda name: times[name])
    return times[name] * 1e6, name


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _time(microseconds: float) -> str:
    if microseconds >= 1e5:
        return f"{microseconds / 1e3:,.0f} ms"
    return f"{microseconds / 1e3:.2f} ms" if microseconds >= 1e3 else f"{microseconds:.3g} µs"


def _line(title: str, model: Model, name: str, size: int, work: Work) -> list[str]:
    line = [title, str(model), name, _number(work.bytes / 1e6), _number(2 * work.products / 1e9)]
    for device in DEVICES:
        time, bound = floor(work, device, size)
        line.append(f"{_time(time)}, {bound}" if work.scalars else _time(time))
    return line


def tables() -> str:
    """The floors of scoring and of the lookup, as two Markdown tables."""
    scores, lookups = [], []
    for name, size in (("fp32", 4), ("bf16", 2)):
        for users, items, candidates, model in (
            (6040, 3706, 101, SMALL),
            (6040, 3706, 101, LARGE),
            (138_493, 26_744, 101, LARGE),
            (6040, 3706, 3706, LARGE),
            (138_493, 26_744, 26_744, LARGE),
        ):
            common = candidates == items
            work = scoring(users, items, candidates, model, size, common)
            title = f"{users:,} × {candidates:,}" + (", a common list" if common else "")
            scores.append(_line(title, model, name, size, work))
        for users, items, model in ((6040, 3706, SMALL), (138_493, 26_744, LARGE)):
            works = lookup(users, items, 8192, 5, model, size)
            for title, work in zip(("forward", "backward", "saved by fusing"), works, strict=True):
                lookups.append(_line(f"8,192 × 5, {title}", model, name, size, work))
            if name == "fp32":
                work = update(users, items, 8192, 5, model)
                lookups.append(_line("8,192 × 5, update of the rows", model, name, size, work))
    heads = ["factors; layers", "type", "MB", "GFLOP of products", *(device.name for device in DEVICES)]
    text = []
    for first, lines in (("users × candidates", scores), ("users × items of each", lookups)):
        for line in [[first, *heads], ["---"] * (1 + len(heads)), *lines]:
            text.append(f"| {' | '.join(line)} |\n")
        text.append("\n")
    return "".join(text)


def step() -> str:
    """The bytes of a step of `FusedStep` with a batch of 8,192 × 5 pairs in fp32, as a Markdown table."""
    columns = []
    for users, items, model in ((6040, 3706, SMALL), (138_493, 26_744, LARGE)):
        forward, backward, saved = lookup(users, items, 8192, 5, model, 4)
        row = 4 * (model.layers[0] // 2 + model.factors)
        parts = [
            forward.bytes,
            backward.bytes,
            row * 8192 * (5 + 1),
            update(users, items, 8192, 5, model).bytes,
        ]
        columns.append([*parts, sum(parts), saved.bytes])
    titles = (
        "forward of the lookup",
        "backward",
        "sum of each user's five gradients",
        "update of the rows",
        "the fused step, lookups and updates",
        "saved: rows side by side, in forward and backward",
    )
    lines = [
        f"| {title} | {_number(a / 1e6)} | {_number(b / 1e6)} |\n"
        for title, a, b in zip(titles, *columns, strict=True)
    ]
    return f"| MB a step | {SMALL} | {LARGE} |\n|---|---|---|\n{''.join(lines)}"


def main(arguments: list[str] | None = None) -> None:
    """Print the tables, or write them into a document."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--write", type=Path, help="a document with the two marks of this script")
    options = parser.parse_args(arguments)
    if options.write is None:
        print(tables())
        return
    before, rest = options.write.read_text().split(MARKS[0])
    options.write.write_text(f"{before}{MARKS[0]}{tables()}{MARKS[1]}{rest.split(MARKS[1])[1]}")


if __name__ == "__main__":
    main()
