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

GROUPS, LIKED, SHARE, HEAD = 64, 4, 0.8, 3
USERS_PER_BLOCK = 20_000
_stages: list[tuple[str, float, float, float]] = []


def peak() -> float:
    """Highest memory since it was last set back, in GiB."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def set_back() -> None:
    """Set the highest memory back to the present one."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Note what the block takes."""
    set_back()
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    _stages.append((name, time.perf_counter() - wall, time.process_time() - cpu, peak()))
    print("{:32} {:8.1f} s  {:8.1f} CPU s  {:6.2f} GiB".format(*_stages[-1]), flush=True)


class Planted:
    """The true probabilities, in the numbers of raw ids: what no model can beat but by luck.

    All groups are of one size. Within a group the item of place x has a probability in proportion to
    (x + HEAD)^-0.8, so that a uniform number's fifth power, shifted and scaled, draws a place.
    """

    def __init__(self, users: int, items: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.size = items // GROUPS  # of a group
        self.ids = random.permutation(self.size * GROUPS)  # item of each place, group by group
        place = np.empty_like(self.ids)
        place[self.ids] = np.arange(len(self.ids))
        self.group, x = np.divmod(place, self.size)  # of each item
        self.low, self.high = HEAD**0.2, (self.size + HEAD) ** 0.2
        self.within = ((x + 1 + HEAD) ** 0.2 - (x + HEAD) ** 0.2) / (self.high - self.low)
        self.liked = random.integers(0, GROUPS, (users, LIKED))

    def draw(self, first: int, last: int, per_user: int, random: np.random.Generator) -> pa.Table:
        """Distinct pairs of some users, user by user, with random times."""
        counts = random.lognormal(0.0, 0.8, last - first) / 1.377 * per_user * 1.4
        counts = counts.clip(3, len(self.ids) // 8).astype(np.int64)
        users = np.repeat(np.arange(first, last), counts)
        group = self.liked[users, random.integers(0, LIKED, len(users))]
        other = random.random(len(users), np.float32) >= SHARE
        group[other] = random.integers(0, GROUPS, int(other.sum()))
        root = self.low + random.random(len(users)) * (self.high - self.low)
        square = root * root
        place = (square * square * root - HEAD).astype(np.int64).clip(0, self.size - 1)
        keys = users * len(self.ids) + self.ids[group * self.size + place]
        keys.sort()
        keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])]
        wanted = (last - first) * per_user
        if len(keys) > wanted:
            keys = keys[random.random(len(keys), np.float32) < wanted / len(keys)]
        times = random.integers(0, 2**31, len(keys))
        return pa.table({"user": keys // len(self.ids), "item": keys % len(self.ids), "timestamp": times})


class ByTruth:
    """Scores of pairs by `Planted`, for ids as the interactions number them."""

    def __init__(self, planted: Planted, log: Interactions) -> None:
        users, items = (np.asarray(list(ids or ())) for ids in (log.user_ids, log.item_ids))
        self.liked, self.group = planted.liked[users], planted.group[items]
        self.within = planted.within[items]

    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        """Probability of each candidate, ``[U, C]``."""
        items = candidates.clamp(min=0).numpy()
        likes = (self.liked[users.numpy()][:, None, :] == self.group[items][:, :, None]).sum(2)  # [U, C]
        scores = self.within[items] * (SHARE * likes / LIKED + (1 - SHARE) / GROUPS)
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
