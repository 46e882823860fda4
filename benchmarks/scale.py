"""Training at real sizes: samples a second, bits by threads, and peak memory beside tables and moments.

    python -m benchmarks.scale

Each shape runs in a process of its own, on random interactions. Rates are of the step alone, and of wall and CPU time:
on a machine that others use, wall time measures them, too.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import subprocess
import sys
import time

import torch

from ncf import Interactions, NeuMF, Trainer
from ncf.training.batches import Batch
from ncf.training.losses import binary_cross_entropy
from ncf.training.native_step import NativeStep
from ncf.training.optimizers import make_optimizer

SHAPES = {"10K": (10_000, 10_000), "MovieLens-20M": (138_493, 26_744), "million": (1_000_000, 200_000)}


def build(shape: str) -> NeuMF:
    """NeuMF with 32 factors and layers 64-32-16."""
    users, items = SHAPES[shape]
    return NeuMF(users, items, factors=32, layers=(64, 32, 16))


def chunks(shape: str, batch_size: int, count: int) -> list[Batch]:
    """Random batches with four negatives for each positive."""
    users, items = SHAPES[shape]
    random, positives = torch.Generator().manual_seed(0), batch_size // 5
    batches = max(1, (1 << 14) // batch_size)
    return [
        Batch(
            torch.randint(users, (batches, positives), generator=random),
            torch.randint(items, (batches, positives, 5), generator=random),
        )
        for _ in range(count)
    ]


def steps(shape: str, batch_size: int, threads: int, calls: int) -> None:
    """Print the rate of the step with so many threads, and a hash of the trained weights."""
    model = build(shape)
    step = NativeStep(
        model,
        make_optimizer(model, "adamw", learning_rate=1e-3),
        binary_cross_entropy,
        samples_per_batch=batch_size,
        threads=threads,
        adaptive=False,
    )
    some = chunks(shape, batch_size, 8)
    step(some[0], [1.0] * len(some[0].users))
    wall, cpu, samples = time.perf_counter(), time.process_time(), 0
    for call in range(calls):
        chunk = some[call % len(some)]
        step(chunk, [1.0] * len(chunk.users))
        samples += chunk.items.numel()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    digest = hashlib.sha256()
    for value in model.parameters():
        digest.update(value.detach().numpy().tobytes())
    print(
        f"{shape:14} batch {batch_size:6} threads {threads}  {samples / wall / 1e6:5.2f} million samples/s, "
        f"{samples / cpu / 1e6:5.2f} a CPU second, bits {digest.hexdigest()[:8]}",
        flush=True,
    )


def epoch(shape: str, interactions: int) -> None:
    """Print the rate of a whole epoch with its sampling, and the peak of memory beside tables and moments."""
    users, items = SHAPES[shape]
    random = torch.Generator().manual_seed(0)
    pairs = torch.randint(users * items, (interactions,), generator=random).unique()
    data = Interactions(pairs // items, pairs % items, None, users, items)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    model = build(shape)
    tables = sum(value.numel() for value in model.parameters()) * 4 / 2**20
    history = Trainer(model, epochs=1, selection="last", progress=False).fit(data)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{shape:14} epoch of {interactions * 5 / 1e6:.0f} million: "
        f"{history.samples[0] / history.seconds[0] / 1e6:.2f} million samples/s; "
        f"peak {peak - before:,.0f} MiB above the data, "
        f"{(peak - before) / (3 * tables):.2f} × tables and moments of {3 * tables:,.0f} MiB",
        flush=True,
    )


def main() -> None:
    """Run from the command line; without arguments, everything."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--steps", nargs=4, metavar=("SHAPE", "BATCH", "THREADS", "CALLS"))
    parser.add_argument("--epoch", nargs=2, metavar=("SHAPE", "INTERACTIONS"))
    options = parser.parse_args()
    if options.steps:
        shape, *numbers = options.steps
        steps(shape, *map(int, numbers))
        return
    if options.epoch:
        epoch(options.epoch[0], int(options.epoch[1]))
        return
    runs = [
        ["--steps", shape, str(batch_size), str(threads), "200"]
        for shape in SHAPES
        for batch_size in (2048, 8192)
        for threads in sorted({1, os.cpu_count() or 1})
    ]
    runs += [["--epoch", "MovieLens-20M", "4000000"], ["--epoch", "million", "4000000"]]
    for run in runs:
        subprocess.run([sys.executable, "-m", "benchmarks.scale", *run], check=True)


if __name__ == "__main__":
    main()
