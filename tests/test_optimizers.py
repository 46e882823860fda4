from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ncf import Interactions
from ncf.optimizers import weight_decay_for


def drawn(num_users: int, num_items: int, share: float, seed: int = 0) -> Interactions:
    """Pure noise: each pair is an interaction with the same chance."""
    touched = torch.rand(num_users, num_items, generator=torch.Generator().manual_seed(seed)) < share
    return Interactions(*touched.nonzero(as_tuple=True), None, num_users, num_items)


@given(st.integers(60, 400), st.integers(60, 400), st.floats(0.05, 0.3), st.integers(0, 9))
def test_weight_decay_grows_as_the_largest_singular_value_of_noise(
    num_users: int, num_items: int, share: float, seed: int
) -> None:
    """Of data in which there is nothing to find, by NumPy's decomposition; a mean loss divides it by N."""
    train = drawn(num_users, num_items, share, seed)
    matrix = np.zeros((num_users, num_items))
    matrix[train.users, train.items] = 1
    density = matrix.mean()
    norm = (
        np.linalg.norm(matrix - density, 2) / (1 - density) ** 0.5
    )  # of coins with variance ρ, not ρ (1 - ρ)
    assert weight_decay_for(train) * len(train) / 0.0553 == pytest.approx(norm, rel=0.12)


@pytest.mark.parametrize(
    ("num_users", "num_items", "number", "expected"),
    [(943, 1682, 99_057, 1e-5), (6040, 3706, 994_169, 1.6e-6)],
)
def test_weight_decay_of_the_movielens_sets(
    num_users: int, num_items: int, number: int, expected: float
) -> None:
    pairs = torch.arange(number)
    train = Interactions(pairs % num_users, pairs // num_users, None, num_users, num_items)
    assert weight_decay_for(train) == expected
