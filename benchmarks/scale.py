"""Training at real sizes: samples a second, bits by threads, and peak memory beside tables and moments.

    python -m benchmarks.scale

Each shape runs in a process of its own, on random interactions. On a machine that others use, wall time measures them,
too: calls that are compared take turns, and rates are also given of CPU time and of the best tenth of the calls.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import time

import torch

from benchmarks.path import peak, set_back
from ncf import Interactions, MatrixFactorization, NeuMF, Trainer
from ncf.kernels.native import draw_unseen, library
from ncf.training.batches import Batch, TrainingBatches
from ncf.training.losses import binary_cross_entropy
from ncf.training.native_step import NativeStep
from ncf.training.optimizers import make_optimizer

SHAPES = {
    "MovieLens-100K": (943, 1682),
    "10K": (10_000, 10_000),
    "MovieLens-20M": (138_493, 26_744),
    "million": (1_000_000, 200_000),
}


def build(shape: str) -> NeuMF:
    """NeuMF with 32 factors and layers 64-32-16."""
    users, items = SHAPES[shape]
    return NeuMF(users, items, factors=32, layers=(64, 32, 16))


def chunks(shape: str, batch_size: int, count: int) -> list[Batch]:
    """Random batches with four negatives for each positive."""
    return _chunks(*SHAPES[shape], batch_size, count)


def _chunks(users: int, items: int, batch_size: int, count: int) -> list[Batch]:
    random, positives = torch.Generator().manual_seed(0), batch_size // 5
    batches = max(1, (1 << 14) // batch_size)
    return [
        Batch(
            torch.randint(users, (batches, positives), generator=random),
            torch.randint(items, (batches, positives, 5), generator=random),
        )
        for _ in range(count)
    ]


def steps(shape: str, batch_size: int, calls: int) -> None:
    """Print the rates of the step on one thread and on all, whose calls take turns, and compare the trained bits."""
    threads = sorted({1, os.cpu_count() or 1})
    models = [build(shape) for _ in threads]
    made = [
        NativeStep(
            model,
            make_optimizer(model, "adamw", learning_rate=1e-3),
            binary_cross_entropy,
            samples_per_batch=batch_size,
            threads=number,
            adaptive=False,
        )
        for model, number in zip(models, threads, strict=True)
    ]
    some = chunks(shape, batch_size, 8)
    walls: list[list[float]] = [[] for _ in threads]
    cpus = [0.0 for _ in threads]
    for call in range(calls + 1):
        chunk = some[call % len(some)]
        for number, step in enumerate(made):
            wall, cpu = time.perf_counter(), time.process_time()
            step(chunk, [1.0] * len(chunk.users))
            if call:
                walls[number].append(time.perf_counter() - wall)
                cpus[number] += time.process_time() - cpu
    samples = some[0].items.numel() / 1e6
    bits = {_digest(model) for model in models}
    for of_calls, cpu_time, number in zip(walls, cpus, threads, strict=True):
        of_calls.sort()
        best, median = (samples / of_calls[len(of_calls) // part] for part in (10, 2))
        print(
            f"{shape:14} batch {batch_size:6} threads {number}  {best:5.2f} million samples/s in the best tenth of "
            f"calls, {median:5.2f} in the median, {samples * calls / cpu_time:5.2f} a CPU second",
            flush=True,
        )
    one, all_of_them = walls[0], walls[-1]
    ratios = [f"{one[len(one) // part] / all_of_them[len(one) // part]:.2f} ×" for part in (10, 2)]
    print(
        f"{shape:14} batch {batch_size:6} all threads beside one: {ratios[0]} in the best tenth, {ratios[1]} in the "
        f"median; {'the same bits' if len(bits) == 1 else 'OTHER BITS'}",
        flush=True,
    )


def _digest(model: NeuMF) -> str:
    digest = hashlib.sha256()
    for value in model.parameters():
        digest.update(value.detach().numpy().tobytes())
    return digest.hexdigest()


def rows(calls: int) -> None:
    """Print what a step over five million rows costs beside one over ten thousand; their calls take turns."""
    made, some, cpus = [], [], [0.0, 0.0]
    for users, items in ((5_000, 5_000), (4_000_000, 1_000_000)):
        model = NeuMF(users, items, factors=32, layers=(64, 32, 16))
        optimizer = make_optimizer(model, "adamw", learning_rate=1e-3)
        made.append(NativeStep(model, optimizer, binary_cross_entropy, samples_per_batch=2048))
        some.append(_chunks(users, items, 2048, 8))
    for call in range(calls + 1):
        for number, step in enumerate(made):
            chunk, cpu = some[number][call % 8], time.process_time()
            step(chunk, [1.0] * len(chunk.users))
            cpus[number] += time.process_time() - cpu if call else 0.0
    print(
        f"a step over 5 million rows: {cpus[1] / cpus[0]:.2f} × one over ten thousand, in CPU time",
        flush=True,
    )


def sampling(shape: str, interactions: int) -> None:
    """Print how many negatives a CPU second draws, and how many samples it puts into batches."""
    data = _interactions(shape, interactions)
    batches = TrainingBatches(data, batch_size=2048)
    drawn = torch.empty(len(batches.users), 4, dtype=torch.int32)
    cpu = time.process_time()
    batches.sampler.sample(batches.users, 4, out=drawn, draw=draw_unseen if library() is not None else None)
    draws, cpu = drawn.numel() / (time.process_time() - cpu), time.process_time()
    for _ in batches.epoch(0, per_chunk=8):
        pass
    rate = batches.samples / (time.process_time() - cpu)
    print(
        f"{shape:14} {draws / 1e6:.0f} million negatives, {rate / 1e6:.0f} million samples in batches a CPU second",
        flush=True,
    )


def _interactions(shape: str, interactions: int) -> Interactions:
    users, items = SHAPES[shape]
    random = torch.Generator().manual_seed(0)
    pairs = torch.randint(users * items, (interactions,), generator=random).unique()
    return Interactions(pairs // items, pairs % items, None, users, items)


def epoch(shape: str, interactions: int) -> None:
    """Print the rate of a whole epoch with its sampling, and the peak of memory beside tables and moments."""
    build("MovieLens-100K")  # imports TorchRec, whose memory is no training's
    data = _interactions(shape, interactions)
    set_back()
    before = peak()
    model = build(shape)
    tables = sum(value.numel() for value in model.parameters()) * 4 / 2**20
    cpu = time.process_time()
    history = Trainer(model, epochs=1, selection="last", progress=False).fit(data)
    cpu = time.process_time() - cpu
    taken = (peak() - before) * 1024
    print(
        f"{shape:14} epoch of {interactions * 5 / 1e6:.0f} million: "
        f"{history.samples[0] / history.seconds[0] / 1e6:.2f} million samples/s, "
        f"{history.samples[0] / cpu / 1e6:.2f} a CPU second of fit; peak {taken:,.0f} MiB above the data, "
        f"{taken / (3 * tables):.2f} × tables and moments of {3 * tables:,.0f} MiB",
        flush=True,
    )


def bpr(shape: str, interactions: int, whose: str) -> None:
    """Print the rate and the peak of memory of the dot product trained by BPR, by ncf's optimizers or `implicit`.

    64 factors, all cores, one epoch. `implicit` draws one negative for a positive, and so do we. Its rule is plain SGD.
    """
    build("MovieLens-100K")
    data = _interactions(shape, interactions)
    set_back()
    before = peak()
    wall, cpu = time.perf_counter(), time.process_time()
    if whose == "implicit":
        import numpy as np
        from implicit.cpu.bpr import BayesianPersonalizedRanking
        from scipy.sparse import csr_matrix

        ones = np.ones(len(data), np.float32)
        matrix = csr_matrix((ones, (data.users.numpy(), data.items.numpy())), shape=SHAPES[shape])
        wall, cpu = time.perf_counter(), time.process_time()
        BayesianPersonalizedRanking(factors=64, iterations=1).fit(matrix, show_progress=False)
    else:
        model = MatrixFactorization(*SHAPES[shape], factors=64)
        settings = {"loss": "bpr", "negatives": 1, "epochs": 1, "selection": "last", "progress": False}
        settings["optimizer"] = whose
        wall, cpu = time.perf_counter(), time.process_time()
        Trainer(model, **settings).fit(data)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    taken = (peak() - before) * 1024
    print(
        f"{shape:14} BPR, {whose:8} {2 * len(data) / wall / 1e6:.2f} million samples/s, "
        f"{2 * len(data) / cpu / 1e6:.2f} a CPU second; peak {taken:,.0f} MiB above the data",
        flush=True,
    )


def main() -> None:
    """Run from the command line; without arguments, everything."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--steps", nargs=3, metavar=("SHAPE", "BATCH", "CALLS"))
    parser.add_argument("--rows", nargs=1, type=int, metavar="CALLS")
    parser.add_argument("--sampling", nargs=2, metavar=("SHAPE", "INTERACTIONS"))
    parser.add_argument("--epoch", nargs=2, metavar=("SHAPE", "INTERACTIONS"))
    parser.add_argument("--bpr", nargs=3, metavar=("SHAPE", "INTERACTIONS", "WHOSE"))
    options = parser.parse_args()
    if options.steps:
        steps(options.steps[0], *map(int, options.steps[1:]))
    if options.rows:
        rows(*options.rows)
    if options.sampling:
        sampling(options.sampling[0], int(options.sampling[1]))
    if options.epoch:
        epoch(options.epoch[0], int(options.epoch[1]))
    if options.bpr:
        bpr(options.bpr[0], int(options.bpr[1]), options.bpr[2])
    if any(vars(options).values()):
        return
    runs = [["--steps", shape, size, "200"] for shape in SHAPES for size in ("2048", "8192")]
    runs += [["--rows", "200"], ["--sampling", "MovieLens-20M", "4000000"]]
    runs += [["--epoch", "MovieLens-20M", "4000000"], ["--epoch", "million", "4000000"]]
    runs += [["--bpr", "MovieLens-20M", "20000000", whose] for whose in ("adamw", "sgd", "implicit")]
    for run in runs:
        subprocess.run([sys.executable, "-m", "benchmarks.scale", *run], check=True)


if __name__ == "__main__":
    main()
