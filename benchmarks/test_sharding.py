"""A sharded model's training step against the size of its tables: row-wise Adagrad in the backward, and dense Adam.

Tables are cut as for one process of many, in a world of one: nothing travels. `python -m benchmarks.sharded_steps`
measures the sizes alternately, which a shared machine needs, and several processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from benchmarks.sharded_workers import SAMPLES, batch, build, sharded, training_step

Rate = Callable[..., None]


@pytest.fixture(autouse=True, scope="module")
def _alone() -> Iterator[None]:
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("rows", [10_000, 1_000_000, 5_000_000])
def test_step_with_fused_row_wise_adagrad(rate: Rate, rows: int) -> None:
    _measure(rate, rows, "table_wise", rounds=40)


@pytest.mark.parametrize("rows", [10_000, 100_000, 1_000_000])
def test_step_with_dense_adam(rate: Rate, rows: int) -> None:
    _measure(rate, rows, "data_parallel", rounds=40 if rows < 100_000 else 3)


def _measure(rate: Rate, rows: int, sharding: str, rounds: int) -> None:
    step = training_step(sharded(build("gmf", rows, constant=True), sharding))
    batches = [batch(rows, SAMPLES, seed) for seed in range(rounds + 1)]
    remaining = iter(batches)  # none twice: its rows would still be in the cache
    rate(lambda: step(next(remaining)), batches[0].items.numel(), "samples", rounds=rounds)
