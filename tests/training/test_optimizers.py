from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ncf import GMF, Interactions, MatrixFactorization
from ncf.training.optimizers import weight_decay_for


def of_length(number: int) -> Interactions:
    pairs = torch.arange(number)
    return Interactions(pairs % 6040, pairs // 6040, None, 6040, 1 + number // 6040)


@pytest.mark.parametrize(
    ("number", "expected"), [(98_114, 1e-5), (99_057, 1e-5), (989_136, 3.2e-6)]
)  # MovieLens-100K without and with its validation part, and drawn data of MovieLens-1M's shape
def test_weight_decay_is_what_was_best_on_the_data_that_decided_it(number: int, expected: float) -> None:
    assert weight_decay_for(of_length(number)) == expected


@given(st.integers(1, 20_000))
def test_weight_decay_of_four_times_the_data_is_half_of_it(number: int) -> None:
    whole, part = weight_decay_for(of_length(4 * number)), weight_decay_for(of_length(number))
    assert whole == pytest.approx(part / 2, rel=0.1)  # both have two digits


@pytest.mark.parametrize(("users", "items", "expected"), [(943, 1682, 1e-5), (6040, 3706, 5.2e-6)])
def test_weight_decay_of_gmf_goes_by_the_size_of_the_tables(users: int, items: int, expected: float) -> None:
    train = Interactions(torch.arange(900), torch.arange(900), None, users, items)
    assert weight_decay_for(train, GMF(users, items, factors=4)) == expected
    assert weight_decay_for(train, MatrixFactorization(users, items, factors=4)) == weight_decay_for(train)
