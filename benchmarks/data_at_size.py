"""Time and memory of each step from files to negatives, on a log of MovieLens-20M's shape (or any other).

    python -m benchmarks.data_at_size --rows 20000000 --users 138493 --items 26744

Each step prints its wall time, the processor time of all threads, and the highest memory so far.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import torch

from ncf import Interactions, NegativeSampler, leave_one_out, sample_candidates, whole_catalogue


@contextmanager
def step(name: str, count: int) -> Iterator[None]:
    """Print what the block took."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{name:28} {wall:7.2f} s  {cpu:7.2f} CPU s  {count / wall / 1e6:7.1f} M/s  peak {peak:5.2f} GiB",
        flush=True,
    )


def draw(rows: int, users: int, items: int, seed: int = 0) -> pa.Table:
    """About so many distinct pairs: log-normal numbers of items per user, items by a power law, random times."""
    random = np.random.default_rng(seed)
    share = random.lognormal(0.0, 1.1, users)
    counts = np.maximum(3, share / share.sum() * rows * 1.3).astype(np.int64)
    owners = np.repeat(np.arange(users), np.minimum(counts, items // 3))
    popularity = np.cumsum(1 / np.arange(1, items + 1) ** 0.9)
    chosen = np.searchsorted(popularity / popularity[-1], random.random(len(owners)))
    keys = random.permutation(np.unique(owners * items + chosen))[:rows]
    times = random.integers(0, 2**31, len(keys))
    return pa.table({"user": keys // items + 1, "item": keys % items + 1, "timestamp": times})


def main() -> None:
    """Run the steps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--users", type=int, default=138_493)
    parser.add_argument("--items", type=int, default=26_744)
    parser.add_argument("--threads", type=int, default=None, help="of PyTorch; by default all")
    parser.add_argument("--csv", action="store_true", help="read a CSV file too")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        table = draw(options.rows, options.users, options.items)
        rows = len(table)
        pq.write_table(table, Path(folder, "log.parquet"))
        if options.csv:
            pa_csv.write_csv(table, Path(folder, "log.csv"))
        del table
        print(f"{rows} rows, {torch.get_num_threads()} threads")
        if options.csv:
            with step("CSV in", rows):
                Interactions.from_files(Path(folder, "log.csv"))
        with step("Parquet in", rows):
            log = Interactions.from_files(Path(folder, "log.parquet"))
    print(log)
    with step("leave_one_out", rows):
        split = leave_one_out(log)
    with step("Split.csr", rows):
        split.csr()
    with step("sample_candidates", 100 * len(split.test)):
        sample_candidates(split)
    with step("whole_catalogue", rows):
        whole_catalogue(split)
    with step("NegativeSampler", rows):
        sampler = NegativeSampler(split.train)
    users = split.train.users.sort().values
    with step("negatives, users ascending", 4 * len(users)):
        sampler.sample(users, 4)


if __name__ == "__main__":
    main()
