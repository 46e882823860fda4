"""One process against two that share the tables, an epoch of the `Trainer` each, on MovieLens-100K's shape.

    python -m benchmarks.sharded_training

CPU seconds are those of all processes: on a machine that others use, wall time measures them, too.
"""

from __future__ import annotations

import argparse
import time

import torch

from benchmarks.sharded_workers import DIM
from ncf import GMF, Interactions, NeuMF, Trainer
from ncf.distributed.sharding import shard
from tests.distributed.workers import launch


def log(users: int, items: int, rows: int) -> Interactions:
    """Random interactions."""
    random = torch.Generator().manual_seed(0)
    pairs = torch.randint(users * items, (rows,), generator=random).unique()
    return Interactions(pairs // items, pairs % items, None, users, items)


def train(rank: int, world: int, name: str, shape: tuple[int, int, int], batch_size: int) -> list[float]:
    """Seconds and CPU seconds of the second epoch of this process, and the samples of all processes."""
    users, items, rows = shape
    data = log(users, items, rows)
    device = "meta" if world > 1 else "cpu"
    sizes = {"num_users": users, "num_items": items, "device": device}
    model = GMF(**sizes, factors=DIM) if name == "GMF" else NeuMF(**sizes, factors=DIM, layers=(128, 64, 32))
    wrapped = shard(model, "auto", verbose=False) if world > 1 else model
    mine = data.take(data.users % world == rank)
    marks: list[tuple[float, float]] = []

    def mark(*_: object) -> None:
        marks.append((time.perf_counter(), time.process_time()))

    trainer = Trainer(wrapped, epochs=2, batch_size=batch_size, selection="last", progress=False)
    trainer.fit(mine, on_epoch=mark)
    (wall, cpu), (end, cpu_end) = marks
    return [end - wall, cpu_end - cpu, 5.0 * len(data)]


def main() -> None:
    """Print rates of one and of two processes, and their ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=943)
    parser.add_argument("--items", type=int, default=1682)
    parser.add_argument("--rows", type=int, default=100_000)
    options = parser.parse_args()
    shape = (options.users, options.items, options.rows)
    print("million samples a second of wall time (of CPU time of all processes)")
    for name in ("GMF", "NeuMF"):
        for batch_size in (2048, 65_536):
            rates = []
            for world in (1, 2):
                of_ranks = launch(train, world, name, shape, batch_size)
                samples = of_ranks[0][2] / 1e6
                wall, cpu = max(one[0] for one in of_ranks), sum(one[1] for one in of_ranks)
                rates.append((samples / wall, samples / cpu))
            (one, one_cpu), (two, two_cpu) = rates
            print(
                f"{name:6} batch {batch_size:6}  one {one:5.2f} ({one_cpu:5.2f})  two {two:5.2f} ({two_cpu:5.2f})  "
                f"two / one {two / one:4.2f} ({two_cpu / one_cpu:4.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
