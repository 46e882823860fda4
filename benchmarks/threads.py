"""Ranking and selection on all cores beside one thread, on the same lists.

    python -m benchmarks.threads

Calls with one thread and with all take turns, on a view of the model that is made before; `evaluate` also makes the
view, checks the ids, and counts the metrics. The results are compared. On a machine that others use, look at the best
tenth of the calls.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.scale import SHAPES
from benchmarks.top_k_at_size import K, seen_items
from ncf import GMF, Candidates, Catalogue, NeuMF, evaluate

SEEN = 20
Task = tuple[str, Callable[[], Any]]


def tasks(shape: str, users_of_catalogue: int) -> list[Task]:
    """The calls, by name. Lists over all items are of so many users at most."""
    users, items = SHAPES[shape]
    random = torch.Generator().manual_seed(0)
    models = {
        "GMF": GMF(users, items, factors=32),
        "NeuMF": NeuMF(users, items, factors=32, layers=(64, 32, 16)),
    }
    lists = Candidates(
        torch.arange(users),
        torch.randint(items, (users,), generator=random),
        torch.randint(items, (users, 100), generator=random),
    )
    some = min(users, users_of_catalogue)
    offsets, seen = seen_items(some, items, SEEN)
    positives = (seen[::SEEN] + 1) % items
    keep = ~(seen.view(some, SEEN) == positives[:, None])  # a held-out item has not been seen
    left = torch.cat([offsets[:1], keep.sum(1).cumsum(0)]), seen[keep.flatten()]
    catalogue = Catalogue(torch.arange(some), positives, items, *left)
    every = torch.arange(items)
    found: list[Task] = []
    for name, model in models.items():
        view = model.scorer()
        found += [
            (f"{name}, rank 1 + 100", lambda view=view: view.rank(lists)),
            (f"{name}, evaluate 1 + 100", lambda model=model: (evaluate(model, lists).ranks,)),
            (f"{name}, rank in the catalogue", lambda view=view: view.rank(catalogue)),
            (f"{name}, top {K}", lambda view=view: view.top_k(torch.arange(some), K, every, (offsets, seen))),
        ]
    return found


def compare(shape: str, name: str, call: Callable[[], tuple[Tensor, ...]], seconds: float) -> None:
    """Print the ratios of one task, measured for so long, seven calls of each kind at least."""
    threads = 1, os.cpu_count() or 1
    walls: tuple[list[float], list[float]] = ([], [])
    cpus, results, began = [0.0, 0.0], [], time.perf_counter()
    while len(walls[0]) < 8 or time.perf_counter() - began < seconds:
        for which, number in enumerate(threads):
            torch.set_num_threads(number)
            wall, cpu = time.perf_counter(), time.process_time()
            result = call()
            walls[which].append(time.perf_counter() - wall)
            cpus[which] += time.process_time() - cpu
            if len(results) < 2:
                results.append(result)
    same = all(torch.equal(*pair) for pair in zip(*results, strict=True))
    one, more = (sorted(taken[1:]) for taken in walls)  # the first call of each is not counted
    best, median = (one[len(one) // part] / more[len(one) // part] for part in (10, 2))
    print(
        f"{shape:14} {name:28} {1e3 * one[len(one) // 10]:8.1f} ms on one; {threads[1]} threads: {best:.2f} x in "
        f"the best tenth, {median:.2f} x in the median, {cpus[1] / cpus[0]:.2f} x its CPU time, "
        f"{'the same lists' if same else 'OTHER LISTS'}",
        flush=True,
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=["MovieLens-100K", "MovieLens-20M"], choices=SHAPES)
    parser.add_argument("--users", type=int, default=6000, help="of lists over all items, at most")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each task")
    options = parser.parse_args()
    for shape in options.shapes:
        for name, call in tasks(shape, options.users):
            compare(shape, name, call, options.seconds)


if __name__ == "__main__":
    main()
