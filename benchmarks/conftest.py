"""What the benchmarks share: data of MovieLens-100K's shape, and the limits of this machine.

Every benchmark reports a rate as ``extra_info`` and prints it: on a shared machine only ratios between figures
of one run mean something.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from ncf import Candidates, Interactions, NeuMF, Split, leave_one_out, sample_candidates

collect_ignore_glob = ["peers/*/work.py"]  # each wants the library that it measures
FACTORS, LAYERS = 8, (32, 16, 8)
_LINES: list[str] = []


def movielens_like(num_users: int = 943, num_items: int = 1682, rows: int = 100_000) -> Interactions:
    """Random interactions with MovieLens-100K's size and a popularity curve like its own."""
    generator = torch.Generator().manual_seed(0)
    popularity = torch.arange(1, num_items + 1).float().pow(-0.8)
    activity = torch.arange(1, num_users + 1).float().pow(-0.5)
    counts = (activity / activity.sum() * rows).long().clamp(20, num_items // 2)
    noise = torch.rand(num_users, num_items, generator=generator)
    order = (noise.log() / popularity).argsort(dim=1, descending=True)  # weighted, without replacement
    mask = torch.arange(num_items) < counts[:, None]
    users, columns = mask.nonzero(as_tuple=True)
    items = order[users, columns]
    times = torch.randint(0, 10**6, (len(users),), generator=generator)
    return Interactions(users, items, times, num_users, num_items)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--threads``."""
    parser.addoption(
        "--threads", type=int, default=1, help="CPU threads; more than one wants a quiet machine"
    )


@pytest.fixture(autouse=True, scope="session")
def _threads(request: pytest.FixtureRequest) -> None:
    torch.set_num_threads(request.config.getoption("--threads"))


@pytest.fixture(scope="session")
def split() -> Split:
    return leave_one_out(movielens_like(), validation=False)


@pytest.fixture(scope="session")
def candidates(split: Split) -> Candidates:
    return sample_candidates(split)


@pytest.fixture
def model(split: Split) -> NeuMF:
    return NeuMF(split.train.num_users, split.train.num_items, factors=FACTORS, layers=LAYERS)


@pytest.fixture(scope="session")
def copy_bandwidth() -> float:
    """Bytes read and written per second by a large copy."""
    source = torch.zeros(1 << 26)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source))


@pytest.fixture(scope="session")
def matrix_rate() -> float:
    """Floating-point operations per second of a large matrix product."""
    square = torch.randn(1536, 1536)
    return 2 * 1536**3 / _best(lambda: square @ square)


def _best(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


@pytest.fixture
def rate(benchmark: object, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Benchmark some work and report how many of something it does per second."""

    def measure(
        work: Callable[[], object], count: float, unit: str, rounds: int = 5, **limits: float
    ) -> None:
        benchmark.pedantic(work, rounds=rounds, warmup_rounds=1)  # type: ignore[attr-defined]
        per_second = count / benchmark.stats.stats.median  # type: ignore[attr-defined]
        info = {f"{unit}/s": round(per_second)} | {
            f"share of {name.replace('_', ' ')}": round(per_second * share, 3)
            for name, share in limits.items()
        }
        benchmark.extra_info.update(info)  # type: ignore[attr-defined]
        shown = ", ".join(
            f"{value:,} {name}" if "/s" in name else f"{value:.0%} {name}" for name, value in info.items()
        )
        _LINES.append(f"{request.node.name:58} {shown}")

    return measure


def pytest_terminal_summary(terminalreporter: object) -> None:
    """Print the rates, one a line."""
    if _LINES:
        terminalreporter.section(f"rates, median of each, threads: {torch.get_num_threads()}")  # type: ignore[attr-defined]
        for line in _LINES:
            terminalreporter.line(line)  # type: ignore[attr-defined]
