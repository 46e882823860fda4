"""Compile the Triton kernels ahead of time, without a GPU, and print what each takes of one.

::

    python benchmarks/aot_kernels.py                      # the table of docs/kernels.md
    python benchmarks/aot_kernels.py --write docs/kernels.md   # replace the table between its two marks
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from ncf.kernels import ScoringTables
from ncf.kernels.triton_launch import Launch
from ncf.kernels.triton_operators import Lookup, adamw_rows_launch, sort_ids
from ncf.kernels.triton_ranking import catalogue_launch, rank_launch, select_launch
from ncf.kernels.triton_scoring import scoring_launch

TARGETS = (80, 90, 100)
# Factors of the product, widths of the MLP with the two rows side by side first, and type.
MODELS = {
    ("paper", "fp32"): (8, (64, 32, 16, 8), torch.float32),
    ("factor-64", "bf16"): (64, (256, 128, 64), torch.bfloat16),
}
MARKS = "<!-- resources: begin -->\n", "<!-- resources: end -->\n"


class Resources(NamedTuple):
    """What a compiled kernel takes: registers a thread, bytes shared by a program, bytes spilled a thread."""

    registers: int
    shared: int
    spill_stores: int
    spill_loads: int


class _Target:
    """Stands in for the CUDA driver: says for what to compile, and never launches."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_device(self) -> int:
        return self._capability  # compiled kernels are cached by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)


def _with_log(backend: Any = None, stages: Any = None, *_: Any) -> tuple[str, str] | None:
    """Add what ``ptxas -v`` says to the metadata of a kernel, which Triton caches with it; or name that change."""
    if backend is None:
        return "ptxas log", "ptxas log"
    assemble = stages["cubin"]

    def and_log(ptx: str, metadata: dict[str, Any]) -> bytes:
        log = io.StringIO()
        with contextlib.redirect_stdout(log):
            binary: bytes = assemble(ptx, metadata)
        metadata["ptxas_log"] = log.getvalue()
        return binary

    stages["cubin"] = and_log
    return None


def compile_for(launch: Launch, capability: int) -> tuple[Any, Resources]:
    """Compile one launch for a compute capability, such as 80, and read ``ptxas -v``.

    Triton's cache holds kernels by their source, types, sizes and options, and the versions of its own and of ptxas.
    """
    driver.set_active(_Target(capability))
    triton.knobs.nvidia.dump_ptxas_log = True
    triton.knobs.compilation.store_binary_only = True
    triton.knobs.runtime.add_stages_inspection_hook = _with_log
    kernel = launch.compile()
    log = kernel.metadata.ptxas_log
    registers = re.search(r"Used (\d+) registers", log)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    if registers is None or spills is None:
        raise RuntimeError(f"ptxas said nothing of registers and spills:\n{log}")
    return kernel, Resources(int(registers[1]), kernel.metadata.shared, int(spills[1]), int(spills[2]))


def launches(factors: int, layers: tuple[int, ...], dtype: torch.dtype) -> Iterator[tuple[str, Launch]]:
    """The kernels for one model, at 6,040 users × 101 candidates and batches of 8,192 × 5 pairs."""

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    num_users, num_items = 6040, 3706
    dim, hidden = layers[0] // 2, layers[1]
    gmf = {"user_gmf": empty(num_users, factors), "item_gmf": empty(num_items, factors)}
    tables = ScoringTables(
        **gmf,
        user_hidden=empty(num_users, hidden),
        item_hidden=empty(num_items, hidden),
        layers=tuple((empty(out, into), empty(out)) for into, out in pairwise(layers[1:])),
        mlp_head=empty(layers[-1]),
        bias=empty(1),
    )
    users, scores = torch.empty(num_users, dtype=torch.int64), torch.empty(num_users, 101)
    lists = torch.empty(num_users, 101, dtype=torch.int64)
    yield "scores, a list per user", scoring_launch(tables, users, lists, scores)
    yield "scores, a common list", scoring_launch(tables, users, lists[0], scores)
    ranks = torch.empty_like(users)
    yield "ranks among a list", rank_launch(tables, users, users, lists, ranks, ranks)
    seen = torch.empty(num_users + 1, dtype=torch.int64), users
    yield "ranks in the catalogue", catalogue_launch(tables, users, users, num_items, *seen)[0]
    every = torch.empty(num_items, dtype=torch.int64)
    yield "the best 10", select_launch(tables, users, 10, every, seen)[0]
    batch, items = users.new_empty(8192), users.new_empty(8192, 5)
    pairs = items.numel()
    rows = (*gmf.values(), empty(num_users, dim), empty(num_items, dim))
    lookup = Lookup(batch, items, rows, empty(hidden, 2 * dim), empty(hidden), dtype)
    product, units = empty(pairs, factors), empty(pairs, hidden)
    yield "lookup, forward", lookup.forward(product, units)
    gradients = tuple(empty(pairs, row.shape[1]) for row in rows)
    yield "lookup, backward of rows", lookup.backward_rows(gradients, product, units, units)
    yield "lookup, backward of the weight", lookup.backward_weight(units, units)[0]
    if dtype == torch.float32:  # tables that train have no other
        moments, ids = torch.empty_like(rows[3]), sort_ids((items.flatten(), num_items))[0]
        settings = {"rate": 1e-3, "decay": 0.1, "betas": (0.9, 0.999), "eps": 1e-8}
        update = adamw_rows_launch(rows[3], moments, moments, ids, gradients[3], torch.ones(3), **settings)
        yield "update of rows, AdamW", update


def table(targets: list[int]) -> str:
    """A Markdown table with a row per kernel, model and type."""
    heads = [
        f"sm_{target}: {name}" for target in targets for name in ("registers", "shared, KiB", "spills, B")
    ]
    lines = [["kernel", "model", "type", "pairs × warps", *heads]]
    for (model, kind), sizes in MODELS.items():
        for title, launch in launches(*sizes):
            given = launch.arguments
            pairs = given.get("BLOCK") or given.get("PAIRS") or given.get("CHUNK") or given["PLACES"]
            line = [title, model, kind, f"{pairs} × {given['num_warps']}"]
            for target in targets:
                _, r = compile_for(launch, target)
                line += [
                    str(r.registers),
                    f"{r.shared / 1024:.1f}",
                    f"{r.spill_stores} + {r.spill_loads}",
                ]
            lines.append(line)
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(arguments: list[str] | None = None) -> None:
    """Print the table, or write it into a document."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--targets", nargs="+", type=int, default=list(TARGETS), help="compute capabilities")
    parser.add_argument("--write", type=Path, help="a document with the two marks of this script")
    options = parser.parse_args(arguments)
    text = table(options.targets)
    text = f"Triton {triton.__version__}, by `python benchmarks/aot_kernels.py`.\n\n{text}"
    if options.write is None:
        print(text)
        return
    before, rest = options.write.read_text().split(MARKS[0])
    options.write.write_text(f"{before}{MARKS[0]}{text}{MARKS[1]}{rest.split(MARKS[1])[1]}")


if __name__ == "__main__":
    main()
