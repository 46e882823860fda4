"""Seconds of a sharded training step: against the size of the tables, and of two processes against one.

Sizes are measured in turn, step by step, so that what else the machine does falls on all of them alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from benchmarks.sharded_workers import SAMPLES, batch, build, sharded, training_step
from tests.distributed.workers import launch

SIZES = (10_000, 100_000, 1_000_000, 5_000_000)
ROWS, WARM_UP = 100_000, 5
# What a profiler's event belongs to, by a part of its name; the first that fits.
_PARTS = {
    "all-reduce": ("allreduce", "DistributedDataParallel", "Reducer"),
    "exchange": (
        "alltoall",
        "All2All",
        "all2all",
        "AllToAll",
        "splits_dist",
        "output_dist",
        "input_dist",
        "NoWait",
    ),
    "tables": ("fbgemm", "lookup", "SplitLookup"),
    "matrices": ("aten::mm", "aten::addmm"),
}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sharded_steps", description=__doc__)
    parser.add_argument("what", choices=["sizes", "processes"])
    parser.add_argument("--model", choices=["gmf", "neumf"], default="gmf")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of a step, of all processes together")
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    {"sizes": by_size, "processes": by_processes}[options.what](options.model, options.samples, options.steps)


def by_size(model: str, samples: int, steps: int) -> None:
    """Print a step's milliseconds by rows of each table, in a world of one."""
    torch.set_num_threads(1)
    training = {
        rows: training_step(sharded(build(model, rows, constant=True), "table_wise")) for rows in SIZES
    }
    lookups = {rows: lookup(rows, samples) for rows in SIZES}
    for name, works in (("step", training), ("lookup and update alone", lookups)):
        seconds: dict[int, list[float]] = {rows: [] for rows in SIZES}
        for number in range(steps + WARM_UP):
            for rows, work in works.items():
                ids = batch(rows, samples, number)
                began = time.perf_counter()
                work(ids)
                seconds[rows].append(time.perf_counter() - began)
        for at, of in (("median", 0.5), ("fastest tenth", 0.1)):
            taken = {rows: sorted(all_[WARM_UP:])[int(of * steps)] for rows, all_ in seconds.items()}
            shown = "  ".join(f"{rows:,}: {1e3 * value:.2f} ms" for rows, value in taken.items())
            print(
                f"{model} {name}, {at}: {shown}; largest / smallest {taken[SIZES[-1]] / taken[SIZES[0]]:.2f}"
            )


def lookup(rows: int, samples: int) -> Callable[..., None]:
    """FBGEMM's lookup of two tables and the update in its backward, without TorchRec, tower and loss around it."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    from benchmarks.sharded_workers import DIM

    table = (rows, DIM, EmbeddingLocation.HOST, ComputeDevice.CPU)
    tables = SplitTableBatchedEmbeddingBagsCodegen([table] * 2, optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD)
    with torch.no_grad():
        for weight in tables.split_embedding_weights():
            weight.fill_(0.01)

    def work(ids: object) -> None:
        users, items = ids.users[0], ids.items[0]  # type: ignore[attr-defined]
        both = torch.cat([users[:, None].expand_as(items).reshape(-1), items.reshape(-1)])
        rows_ = tables(both, torch.arange(len(both) + 1))
        rows_.backward(torch.full_like(rows_, 1e-6))

    return work


def by_processes(model: str, samples: int, steps: int) -> None:
    """Print the steps per second of one process and of two, and where the time goes on rank 0."""
    print(
        f"{model}, {samples} samples a step of all processes, tables of {ROWS:,} rows; load {os.getloadavg()[0]:.1f}"
    )
    for world, plan in ((1, "table_wise"), (2, "table_wise"), (2, "column_wise")):
        seconds, fastest, busy, parts = launch(process, world, model, samples, steps, plan)[0]
        shown = ", ".join(f"{name} {value:.0%}" for name, value in parts.items())
        print(
            f"{world} x {plan:11}  {1 / seconds:6.1f} steps/s  median {1e3 * seconds:6.1f} ms  fastest tenth "
            f"{1e3 * fastest:6.1f} ms  CPU of a process {1e3 * busy:6.1f} ms  {shown}",
            flush=True,
        )


def process(
    rank: int, world: int, model: str, samples: int, steps: int, plan: str
) -> tuple[float, float, float, dict[str, float]]:
    """Seconds of a step: median, fastest tenth, on the CPU; and the share of each of its parts."""
    step = training_step(sharded(build(model, ROWS, constant=True), plan))
    batches = [batch(ROWS, samples // world, 8 * rank + number, 1 / world) for number in range(8)]
    for ids in batches:
        step(ids)
    seconds, busy = [], time.process_time()
    for number in range(steps):
        dist.barrier()
        began = time.perf_counter()
        step(batches[number % 8])
        seconds.append(time.perf_counter() - began)
    busy = (time.process_time() - busy) / steps
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for ids in batches:
            step(ids)
    parts = dict.fromkeys([*_PARTS, "rest"], 0.0)
    for event in profiler.key_averages():
        name = next((part for part, keys in _PARTS.items() if any(key in event.key for key in keys)), "rest")
        parts[name] += event.self_cpu_time_total
    total = sum(parts.values())
    return (
        statistics.median(seconds),
        sorted(seconds)[steps // 10],
        busy,
        {k: v / total for k, v in parts.items()},
    )


if __name__ == "__main__":
    main()
