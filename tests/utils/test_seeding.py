from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from ncf.utils.seeding import normal_rows, stream, uniform_

ROWS, COLUMNS, DRAWN = 2500, 8, 6  # three streams of rows; two columns stay zero


def whole_table(seed: int = 0, table: str = "user_gmf") -> torch.Tensor:
    out = torch.full((ROWS, COLUMNS), torch.nan)
    normal_rows(out, std=0.5, seed=seed, table=table, width=DRAWN)
    return out


WHOLE = whole_table()


@given(
    st.tuples(st.integers(0, ROWS), st.integers(0, ROWS)).map(sorted),
    st.tuples(st.integers(0, COLUMNS), st.integers(0, COLUMNS)).map(sorted),
)
def test_any_rectangle_is_filled_as_the_whole_table_is(rows: list[int], columns: list[int]) -> None:
    (top, bottom), (left, right) = rows, columns
    out = torch.full((bottom - top, right - left), torch.nan)
    normal_rows(out, std=0.5, seed=0, table="user_gmf", width=DRAWN, row=top, column=left)
    assert torch.equal(out, WHOLE[top:bottom, left:right])


def test_rows_follow_the_normal_law_and_the_rest_is_zero() -> None:
    drawn = WHOLE[:, :DRAWN]
    assert kstest(drawn.flatten().numpy(), "norm", args=(0, 0.5)).pvalue > 1e-4
    assert drawn.unique(dim=0).shape == drawn.shape  # no stream is used twice
    assert bool((WHOLE[:, DRAWN:] == 0).all())


def test_values_depend_on_the_seed_and_the_name() -> None:
    assert torch.equal(WHOLE, whole_table())
    for other in (whole_table(seed=1), whole_table(table="item_gmf")):
        correlation = np.corrcoef(WHOLE[:, :DRAWN].flatten(), other[:, :DRAWN].flatten())[0, 1]
        assert abs(correlation) < 0.04  # five standard errors


@pytest.mark.parametrize(("gain", "fans"), [(2, 48), (1, 16)])
def test_dense_weights_are_uniform_within_their_bound(gain: float, fans: int) -> None:
    weight = torch.empty(200, 100)
    uniform_(weight, gain=gain, fans=fans, seed=0, name="head.weight")
    bound = (3 * gain / fans) ** 0.5
    assert kstest(weight.flatten().numpy(), "uniform", args=(-bound, 2 * bound)).pvalue > 1e-4


def test_glorots_law_is_that_of_pytorch() -> None:
    ours, theirs = torch.empty(64, 256), torch.empty(64, 256)
    uniform_(ours, gain=2, fans=64 + 256, seed=0, name="w")
    torch.nn.init.xavier_uniform_(theirs, generator=torch.Generator().manual_seed(0))
    assert kstest(ours.flatten().numpy(), theirs.flatten().numpy()).pvalue > 1e-4
    assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=0.02)


def test_streams_are_apart_and_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    seeds = {
        stream(*purpose).initial_seed()
        for purpose in [(0, "a"), (0, "b"), (1, "a"), (0, "a", 0), (0, "a", 1)]
    }
    whole_table()
    assert len(seeds) == 5
    assert stream(0, "a").initial_seed() in seeds
    assert torch.equal(state, torch.get_rng_state())


def test_a_seed_of_numpy_is_the_same_seed() -> None:
    assert stream(np.int64(3), "a").initial_seed() == stream(3, "a").initial_seed()  # type: ignore[arg-type]
