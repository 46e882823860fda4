"""The whole path at size: drawn, written, read, split, trained, ranked, saved and loaded in one process.

    python -m benchmarks.path --interactions 100000000

Each item belongs to a group, each user likes four groups; items within a group follow a power law. That is planted, so
the table also says how well the true probabilities rank. Memory is the highest of the stage (Linux).
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ncf import GMF, Interactions, ItemPop, Trainer, evaluate, leave_one_out, load, sample_candidates

GROUPS, LIKED, SHARE, POWER = 64, 4, 0.8, 0.8
USERS_PER_BLOCK = 20_000
_stages: list[tuple[str, float, float, float]] = []


def peak() -> float:
    """Highest memory since it was last set back, in GiB."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Note what the block takes."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # sets the highest memory back to the present one
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    _stages.append((name, time.perf_counter() - wall, time.process_time() - cpu, peak()))
    print("{:32} {:8.1f} s  {:8.1f} CPU s  {:6.2f} GiB".format(*_stages[-1]), flush=True)


class Planted:
    """The true probabilities, in the numbers of raw ids: what no model can beat but by luck."""

    def __init__(self, users: int, items: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.group = random.integers(0, GROUPS, items)  # [items]
        self.liked = random.integers(0, GROUPS, (users, LIKED))
        self.weight = random.permutation(1 / np.arange(1, items + 1) ** POWER)
        order = np.argsort(self.group, kind="stable")
        self.items_by_group, ends = order, np.cumsum(self.weight[order])
        self.starts = np.searchsorted(self.group[order], np.arange(GROUPS + 1))
        self.ends = ends / ends[-1]  # [items], cumulative over groups, one behind the other
        self.mass = np.diff(np.concatenate([[0.0], self.ends])[self.starts])
        self.share = self.weight / self.weight.sum()

    def draw(self, first: int, last: int, per_user: int, random: np.random.Generator) -> pa.Table:
        """Distinct pairs of some users, in random order, with random times."""
        counts = np.maximum(3, random.lognormal(0.0, 0.8, last - first) / 1.377 * per_user * 1.4)
        users = np.repeat(np.arange(first, last), np.minimum(counts, len(self.group) // 8).astype(np.int64))
        group = self.liked[users, random.integers(0, LIKED, len(users))]
        before = np.concatenate([[0.0], self.ends])[self.starts]
        place = before[group] + random.random(len(users)) * self.mass[group]
        other = random.random(len(users)) >= SHARE
        place[other] = random.random(int(other.sum()))
        items = self.items_by_group[np.searchsorted(self.ends, place).clip(max=len(self.group) - 1)]
        keys = random.permutation(np.unique(users * len(self.group) + items))
        keys = keys[: (last - first) * per_user]
        times = random.integers(0, 2**31, len(keys))
        return pa.table({"user": keys // len(self.group), "item": keys % len(self.group), "timestamp": times})


class ByTruth:
    """Scores of pairs by `Planted`, for ids as the interactions number them."""

    def __init__(self, planted: Planted, log: Interactions) -> None:
        users, items = (np.asarray(list(ids or ())) for ids in (log.user_ids, log.item_ids))
        self.liked, self.group = planted.liked[users], planted.group[items]
        self.share = planted.share[items]
        self.within = self.share / planted.mass[self.group]

    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        """Probability of each candidate, ``[U, C]``."""
        items = candidates.clamp(min=0).numpy()
        likes = (self.liked[users.numpy()][:, None, :] == self.group[items][:, :, None]).sum(2)  # [U, C]
        scores = (1 - SHARE) * self.share[items] + SHARE * likes / LIKED * self.within[items]
        return torch.from_numpy(np.where(candidates.numpy() < 0, -np.inf, scores))


def generate(folder: Path, planted: Planted, users: int, per_user: int, seed: int) -> int:
    """Write Parquet files of blocks of users; return the number of rows."""
    rows = 0
    blocks = range(0, users, USERS_PER_BLOCK)
    for number, first in enumerate(tqdm(blocks, "drawing", unit="block", disable=None)):
        random = np.random.default_rng((seed, number))
        table = planted.draw(first, min(first + USERS_PER_BLOCK, users), per_user, random)
        pq.write_table(table, folder / f"log-{number:05}.parquet")
        rows += len(table)
    return rows


def main() -> None:
    """Run the stages and print them as a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--interactions", type=int, default=100_000_000)
    parser.add_argument("--per-user", type=int, default=100)
    parser.add_argument("--items", type=int, default=None, help="a fifth of the users by default")
    parser.add_argument("--factors", type=int, default=32)
    parser.add_argument("--negatives", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=8192)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("ncf").setLevel(logging.INFO)
    torch.set_num_threads(options.threads)
    users = options.interactions // options.per_user
    items = options.items or users // 5
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        planted = Planted(users, items, options.seed)
        with stage("draw, write Parquet"):
            rows = generate(folder, planted, users, options.per_user, options.seed)
        size = sum(file.stat().st_size for file in folder.iterdir()) / 2**30
        print(f"{rows:,} rows of {users:,} users and {items:,} items, {size:.2f} GiB of Parquet")
        with stage("read"):
            log = Interactions.from_files(folder / "*.parquet")
        truth = ByTruth(planted, log)
        del planted
        with stage("leave_one_out"):
            split = leave_one_out(log)
        del log
        with stage("sample_candidates"):
            candidates = sample_candidates(split)
        model = GMF(split.train.num_users, split.train.num_items, factors=options.factors)
        with stage("train, one epoch"):
            history = Trainer(
                model,
                epochs=1,
                batch_size=options.batch_size,
                negatives=options.negatives,
                learning_rate=options.learning_rate,
                selection="last",
                threads=options.threads,
                seed=options.seed,
            ).fit(split)
        rate = history.samples[0] / history.seconds[0] / 1e6
        print(f"{history.samples[0]:,} samples, {rate:.2f} million a second")
        with stage("evaluate, 1 + 100"):
            ours = evaluate(model, candidates)
        popular = evaluate(ItemPop(split.train), candidates)
        every = max(1, len(candidates) // 50_000)
        best = evaluate(truth, candidates.for_rank(0, every))  # type: ignore[arg-type]
        print(f"popularity {popular}\nGMF {ours}\nplanted (of every {every}th user) {best}")
        with stage("save, with seen items"):
            model.save(folder / "model", seen=split.train.csr())
        saved = sum(file.stat().st_size for file in (folder / "model").rglob("*") if file.is_file()) / 2**20
        with stage("load"):
            loaded = load(folder / "model")
        same = torch.equal(
            loaded(split.test.users[:1000], split.test.items[:1000]),
            model(split.test.users[:1000], split.test.items[:1000]),
        )
        print(f"{saved:,.0f} MiB saved, loaded scores are {'equal' if same else 'NOT EQUAL'}")
    print(f"\n| stage, {os.cpu_count()} cores, {options.threads} thread(s) | seconds | CPU seconds | GiB |")
    print("|---|---|---|---|")
    for name, wall, cpu, memory in _stages:
        print(f"| {name} | {wall:.1f} | {cpu:.1f} | {memory:.2f} |")


if __name__ == "__main__":
    main()
