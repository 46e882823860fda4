"""What every contestant does alike: reads the files, is timed, and has its scores ranked.

NumPy alone, since this runs inside each library's own environment.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

AT_SIZE = "NCF_PEERS_AT_SIZE" in os.environ  # set by `benchmarks.peers --at-size`: wider, and only trained
FACTORS, LAYERS = (32, (64, 32, 16)) if AT_SIZE else (8, (32, 16, 8))
NEGATIVES, K = 4, 10
TARGET = 0.65  # HR@10 that the time to quality is taken to

Ints = NDArray[np.int64]
Floats = NDArray[Any]


@dataclass(frozen=True)
class Setting:
    """One training run.

    Args:
        batch_size: samples per step, positives and negatives together.
        learning_rate: of Adam.
        epochs: passes over the positives.
    """

    batch_size: int
    learning_rate: float
    epochs: int


def settings(epochs: int, quick: bool = False) -> dict[str, Setting]:
    """The training runs of a contestant: the paper's, one of large batches, and one for a soon result.

    The last is what ``benchmarks.time_to_quality`` found; every contestant gets it.
    """
    if quick:
        return {
            "small": Setting(256, 1e-3, 3),
            "large": Setting(8192, 1e-3, 3),
            "recipe": Setting(2048, 16e-3, 3),
        }
    return {
        "small": Setting(256, 1e-3, epochs),
        "large": Setting(8192, 1e-3, 4),
        "recipe": Setting(2048, 16e-3, 7),
    }


@dataclass(frozen=True, eq=False)
class Data:
    """The paper's three files.

    Args:
        users: of the training interactions, ``[N]``.
        items: of the training interactions, ``[N]``.
        test_users: who is ranked, ``[U]``.
        candidates: the held-out item and then the negatives, ``[U, 1 + C]``.
    """

    users: Ints
    items: Ints
    test_users: Ints
    candidates: Ints

    @property
    def num_users(self) -> int:
        """One more than the highest user id."""
        return 1 + int(max(self.users.max(), self.test_users.max()))

    @property
    def num_items(self) -> int:
        """One more than the highest item id."""
        return 1 + int(max(self.items.max(), self.candidates.max()))

    @property
    def samples(self) -> int:
        """Samples in an epoch."""
        return len(self.users) * (1 + NEGATIVES)

    def pairs(self) -> tuple[Ints, Ints]:
        """Every candidate with its user, each ``[U · (1 + C)]``."""
        return np.repeat(self.test_users, self.candidates.shape[1]), self.candidates.ravel()


def read(prefix: str | Path) -> Data:
    """Read ``.train.rating`` and ``.test.negative``.

    Raises:
        ValueError: if users have different numbers of negatives.
    """
    train = np.loadtxt(f"{prefix}.train.rating", dtype=np.int64, delimiter="\t", usecols=(0, 1), ndmin=2)
    lines = Path(f"{prefix}.test.negative").read_text().splitlines()
    rows = [
        [int(cell) for cell in line.replace("(", "").replace(")", "").replace(",", "\t").split()]
        for line in lines
    ]
    widths = {len(row) for row in rows}
    if len(widths) != 1:
        raise ValueError(f"{prefix}.test.negative: lines of {sorted(widths)} numbers, expected one width")
    table = np.array(rows, dtype=np.int64)  # [U, 2 + C]
    return Data(train[:, 0].copy(), train[:, 1].copy(), table[:, 0].copy(), table[:, 1:].copy())


def ranks(scores: Floats) -> Ints:
    """How many negatives score at least as high as the held-out item: ties lose.

    Args:
        scores: ``[U, 1 + C]``, the held-out item first.

    Returns:
        ``[U]``; 0 is best.

    Raises:
        ValueError: for a NaN.
    """
    if np.isnan(scores).any():
        raise ValueError("a score is NaN")
    placed: Ints = (scores[:, 1:] >= scores[:, :1]).sum(axis=1)
    return placed


def hr(ranks: Ints, k: int = K) -> float:
    """Share of held-out items among the first ``k``."""
    return float((ranks < k).mean())


def ndcg(ranks: Ints, k: int = K) -> float:
    """Mean of 1 / log₂(rank + 2), 0 outside the first ``k``."""
    return float(np.where(ranks < k, 1 / np.log2(ranks + 2.0), 0.0).mean())


@dataclass
class Clock:
    """Times the epochs of a run, and judges each with the clock stopped.

    Args:
        judge: gives the ranks of the model as it is.
        wall: seconds from anywhere.
    """

    judge: Callable[[], Ints]
    wall: Callable[[], float] = time.perf_counter
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    hr: list[float] = field(default_factory=list)
    ndcg: list[float] = field(default_factory=list)
    _since: float | None = None
    _cpu_since: float = 0.0

    def start(self) -> None:
        """Call this where training starts: what comes before, such as reading data, is not counted."""
        self._since, self._cpu_since = self.wall(), time.process_time()

    def epoch(self) -> None:
        """Call this at the end of every epoch."""
        if self._since is None:
            raise RuntimeError("start() was not called")
        self.seconds.append(self.wall() - self._since)
        self.cpu_seconds.append(time.process_time() - self._cpu_since)
        placed = self.judge()
        self.hr.append(hr(placed))
        self.ndcg.append(ndcg(placed))
        self.start()

    def seconds_to(self, target: float) -> float | None:
        """Seconds of training until HR first reached the target; None if it never did."""
        for epoch, value in enumerate(self.hr):
            if value >= target:
                return sum(self.seconds[: epoch + 1])
        return None


class Contestant(Protocol):
    """What a ``work.py`` offers."""

    def fit(self, setting: Setting, seed: int, clock: Clock) -> None:
        """Train anew, with ``clock.start()`` where training starts and ``clock.epoch()`` after each epoch."""
        ...

    def score(self, users: Ints, items: Ints) -> Floats:
        """Score pairs, ``[P]`` and ``[P]`` to ``[P]``, in one call of the library's prediction function."""
        ...

    # Optional: documented(users [U], candidates [U, 1 + C]) -> scores, the way that the library's
    #               documentation shows, where score() takes a faster one;
    #           ranks() -> [U], where the library ranks by itself;
    #           top(users, k), the best unseen items of the whole catalogue.


def rate(call: Callable[[], object], least: int = 5, seconds: float = 2.0) -> float:
    """Calls per second: the median of at least some calls, after one that is not counted."""
    call()
    taken: list[float] = []
    while len(taken) < least or sum(taken) < seconds:
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return 1 / statistics.median(taken)


def peak_megabytes() -> float:
    """The most memory this process has held; its parent's, which `getrusage` may show, not included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def measure(contestant: Contestant, data: Data, runs: dict[str, Setting], seed: int) -> dict[str, Any]:
    """Everything that is measured of a contestant; figures it does not have are absent.

    Args:
        contestant: what is measured.
        data: the same for all.
        runs: training runs by name; ranking is timed on the model of the first.
        seed: of the training.

    Raises:
        RuntimeError: if the library's own ranks are not those of its scores.
    """
    users, items = data.pairs()
    own = getattr(contestant, "ranks", None)

    def ranked() -> Ints:
        return ranks(np.asarray(contestant.score(users, items)).reshape(data.candidates.shape))

    def judge() -> Ints:
        placed = ranked()
        if own is not None and not np.array_equal(own(), placed):
            raise RuntimeError("the library's own ranks are not those of its scores")
        return placed

    results: dict[str, Any] = {"memory_mb_imported": peak_megabytes()}
    for number, (name, setting) in enumerate(runs.items()):
        clock = Clock(judge)
        contestant.fit(setting, seed, clock)
        results[name] = {
            "samples_per_s": data.samples / statistics.median(clock.seconds),
            "seconds": clock.seconds,
            "hr": clock.hr,
            "ndcg": clock.ndcg,
            "seconds_to_target": clock.seconds_to(TARGET),
        }
        if number == 0:
            results |= _ranking(contestant, data, own or ranked)
    return results


def measure_at_size(contestant: Contestant, data: Data, seed: int) -> dict[str, Any]:
    """Rates of one epoch at two batch sizes, and memory: nothing is ranked."""
    results: dict[str, Any] = {"memory_mb_with_data": peak_megabytes()}
    for batch_size in (2048, 8192):
        clock = Clock(lambda: np.zeros(1, dtype=np.int64))
        contestant.fit(Setting(batch_size, 1e-3, 1), seed, clock)
        results[f"samples_per_s_{batch_size}"] = data.samples / clock.seconds[0]
        results[f"samples_per_cpu_s_{batch_size}"] = data.samples / clock.cpu_seconds[0]
        results["memory_mb"] = peak_megabytes()
        print(results, flush=True)
    return results


def _ranking(contestant: Contestant, data: Data, ranked: Callable[[], object]) -> dict[str, float]:
    count = len(data.test_users)
    results = {"ranking_users_per_s": count * rate(ranked), "memory_mb": peak_megabytes()}
    documented = getattr(contestant, "documented", None)
    if documented is not None:
        shape = data.candidates.shape
        results["documented_users_per_s"] = count * rate(
            lambda: ranks(np.asarray(documented(data.test_users, data.candidates)).reshape(shape)), least=3
        )
    top = getattr(contestant, "top", None)
    if top is not None:
        results["top_users_per_s"] = count * rate(lambda: top(data.test_users, K), least=3)
    return results


def main(
    make: Callable[[Data, str], Contestant], *, version: str, model: str, only: tuple[str, ...] | None = None
) -> None:
    """Run a worker from its command line and write its JSON.

    Args:
        make: makes the contestant from the data and the files' prefix.
        version: of the library.
        model: what is trained, in words.
        only: which settings make sense; all by default.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    options, _ = parser.parse_known_args()
    data = read(options.data)
    contestant = make(data, options.data)
    if AT_SIZE:
        results = measure_at_size(contestant, data, options.seed)
    else:
        runs = settings(options.epochs, options.quick)
        some = {name: setting for name, setting in runs.items() if only is None or name in only}
        results = measure(contestant, data, some, options.seed)
    options.out.write_text(
        json.dumps({"version": version, "model": model, "seed": options.seed, **results}, indent=1)
    )
