from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

from ncf import Interactions, NegativeSampler, Split, leave_one_out

from ..conftest import random_interactions


def interactions_of(sets: list[set[int]], num_items: int) -> Interactions:
    users = torch.tensor([u for u, s in enumerate(sets) for _ in s], dtype=torch.int64)
    items = torch.tensor([i for s in sets for i in sorted(s)], dtype=torch.int64)
    return Interactions(users, items, None, len(sets), num_items)


def test_negatives_are_uniform_over_all_items_without_a_training_interaction() -> None:
    train = interactions_of([{0, 3, 4, 9}, {1}], num_items=12)
    drawn = NegativeSampler(train, seed=3).sample(torch.zeros(2000, dtype=torch.int64), 10)
    counts = torch.bincount(drawn.flatten(), minlength=12)
    assert counts[[0, 3, 4, 9]].sum() == 0
    assert chisquare(counts[counts > 0].numpy()).pvalue > 1e-4
    assert int((counts > 0).sum()) == 8


def test_popularity_law_is_proportional_to_the_powered_counts() -> None:
    sets = [{0}] + [{1, 2}] * 3 + [{2, 3}] * 13
    drawn = NegativeSampler(interactions_of(sets, 5), law="popularity", seed=1)
    counts = torch.bincount(drawn.sample(torch.zeros(4000, dtype=torch.int64), 5).flatten(), minlength=5)
    mass = (
        torch.tensor([0, 3, 16, 13, 0], dtype=torch.float64) ** 0.75
    )  # item 0 is the user's own, 4 is unseen
    mass[4] = 0
    assert counts[0] == 0
    assert counts[4] == 0
    expected = mass[1:4] / mass[1:4].sum() * counts.sum()
    assert chisquare(counts[1:4].numpy(), expected.numpy()).pvalue > 1e-4


@given(
    st.integers(1, 9).flatmap(
        lambda size: st.tuples(
            st.just(size),
            st.lists(st.sets(st.integers(0, size - 1)), min_size=1, max_size=6).filter(lambda x: any(x)),
        )
    ),
    st.sampled_from(["uniform", "popularity"]),
)
def test_no_negative_is_ever_a_positive(case: tuple[int, list[set[int]]], law: str) -> None:
    size, sets = case
    sampler = NegativeSampler(interactions_of(sets, size), law=law)  # type: ignore[arg-type]
    drawn = sampler.sample(torch.arange(len(sets)), 20)
    for user, own in enumerate(sets):
        row = set(drawn[user].tolist())
        assert not row & own
        assert (row == {-1}) == (not bool(sampler.available[user]))


def test_a_user_without_and_one_with_all_interactions() -> None:
    sampler = NegativeSampler(interactions_of([set(), {0, 1, 2}], 3))
    drawn = sampler.sample(torch.tensor([0, 1]), 50)
    assert set(drawn[0].tolist()) == {0, 1, 2}
    assert set(drawn[1].tolist()) == {-1}
    assert sampler.available.tolist() == [True, False]


def test_the_held_out_item_may_be_a_training_negative() -> None:
    split = leave_one_out(Interactions.from_arrays([0] * 4, [0, 1, 2, 3]), validation=False)
    drawn = NegativeSampler(split.train).sample(torch.zeros(50, dtype=torch.int64), 4)
    assert set(drawn.flatten().tolist()) == set(split.test.items.tolist())


def test_an_unknown_law_is_refused(split: Split) -> None:
    with pytest.raises(ValueError, match="law = 'zipf': choose one of 'uniform', 'popularity'"):
        NegativeSampler(split.train, law="zipf")  # type: ignore[arg-type]


def test_same_seed_same_negatives() -> None:
    train = random_interactions(20, 30, 5)
    users = torch.arange(20)
    first, second = (NegativeSampler(train, seed=5).sample(users, 7) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, NegativeSampler(train, seed=6).sample(users, 7))


@pytest.mark.parametrize(
    ("users", "num", "message"),
    [
        ([0, -1], 2, r"users\[1\] = -1 is out of range for num_users = 2: ids go from 0 to 1"),
        ([0, 2], 2, r"users\[1\] = 2 is out of range for num_users = 2"),
        ([0.0], 2, r"users must be an int64 tensor \[B\], got torch.float"),
        ([[0]], 2, r"users must be an int64 tensor \[B\], got torch.int64 \(1, 1\)"),
        ([0], -1, "num = -1"),
    ],
)
def test_users_out_of_range_are_named(users: list, num: int, message: str) -> None:
    sampler = NegativeSampler(interactions_of([{0}, {1}], 3))
    with pytest.raises(ValueError, match=message):
        sampler.sample(torch.tensor(users), num)
    assert sampler.sample(torch.tensor([0, 1]), 0).shape == (2, 0)


@pytest.mark.parametrize("power", [float("nan"), float("inf")])
def test_a_power_that_is_not_finite_is_refused(power: float) -> None:
    with pytest.raises(ValueError, match=f"power = {power}"):
        NegativeSampler(interactions_of([{0}, {1}], 3), law="popularity", power=power)


def test_power_zero_is_uniform_over_the_items_that_occur() -> None:
    sampler = NegativeSampler(
        interactions_of([{0}, {1, 2}, {2}, {2}], 5), law="popularity", power=0.0, seed=2
    )
    counts = torch.bincount(sampler.sample(torch.zeros(2000, dtype=torch.int64), 5).flatten(), minlength=5)
    assert counts[[0, 3, 4]].sum() == 0
    assert chisquare(counts[1:3].numpy()).pvalue > 1e-4


def test_draws_of_different_users_and_columns_are_independent() -> None:
    train = interactions_of([{0, 1}, {2, 3}], 6)
    drawn = NegativeSampler(train, seed=4).sample(torch.tensor([0, 1] * 3000), 2).view(3000, 4)
    for a in range(4):
        for b in range(a):
            table = np.zeros((6, 6))
            np.add.at(table, (drawn[:, a].numpy(), drawn[:, b].numpy()), 1)
            table = table[table.sum(1) > 0][:, table.sum(0) > 0]
            assert chi2_contingency(table).pvalue > 1e-5


@pytest.mark.parametrize("power", [300.0, 1e6, -1000.0])
def test_a_large_power_draws_nothing_but_unseen_items(power: float) -> None:
    sets = [{0, 1}, {1, 2}, {1, 3}, {2, 3}, {3}]
    sampler = NegativeSampler(interactions_of(sets, 60), law="popularity", power=power, seed=1)
    drawn = sampler.sample(torch.arange(5), 500)
    for user, own in enumerate(sets):
        assert set(drawn[user].tolist()) <= {0, 1, 2, 3} - own
    if power > 0:
        assert (drawn[0] == 3).float().mean() > 0.99  # of items 2 and 3 the one that more users have


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([1.0, -1.0, 1.0], r"counts\[1\] = -1\.0"),
        ([1.0, float("nan"), 1.0], r"counts\[1\] = nan"),
        ([0.0, 0.0, 0.0], "counts are all zero"),
        ([1.0], r"counts has shape \(1,\): give one for each of 3 items"),
    ],
)
def test_counts_that_are_none_are_named(counts: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NegativeSampler(interactions_of([{0}, {1}], 3), law="popularity", counts=torch.tensor(counts))
    with pytest.raises(ValueError, match=r"power = 1e\+308 is too large"):
        NegativeSampler(
            interactions_of([{0}], 2), law="popularity", power=1e308, counts=torch.tensor([1.0, 1e6])
        )


def test_numbers_of_numpy_and_large_seeds_are_taken() -> None:
    train = interactions_of([{0}, {1}], 3)
    sampler = NegativeSampler(train, seed=2**63 + 5)
    assert sampler.sample(torch.tensor([0, 1]), np.int64(2)).shape == (2, 2)
    assert repr(sampler) == "NegativeSampler(2 users, uniform)"
    with pytest.raises(ValueError, match=r"users must be an int64 tensor \[B\], got list"):
        sampler.sample([0, 1], 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("law", ["uniform", "popularity"])
def test_negatives_are_written_where_they_are_wanted_and_users_may_come_in_any_order(law: Any) -> None:
    random = torch.Generator().manual_seed(3)
    pairs = torch.randint(40 * 30, (500,), generator=random).unique()
    train = Interactions(pairs // 30, pairs % 30, None, 40, 30)
    users = torch.randint(40, (3000,), generator=random)
    for some in (users, users.sort().values, users[:0]):
        out = torch.full((len(some), 4), 7, dtype=torch.int32)
        drawn = NegativeSampler(train, law=law, seed=5).sample(some, 3)
        assert NegativeSampler(train, law=law, seed=5).sample(some, 3, out=out[:, 1:]).dtype == torch.int32
        assert torch.equal(out[:, 1:].long(), drawn)
        assert bool((out[:, 0] == 7).all())
        assert not torch.isin(some[:, None] * 30 + drawn, pairs).any()
    with pytest.raises(ValueError, match=r"out has shape \(2, 3\): it must have \(2, 2\)"):
        NegativeSampler(train).sample(users[:2], 2, out=torch.empty(2, 3, dtype=torch.int64))


def test_the_lists_of_users_whose_pairs_need_32_33_and_64_bits() -> None:
    random = torch.Generator().manual_seed(4)
    for num_users, num_items in ((70_000, 60_000), (2**16, 2**16), (2**16 + 1, 2**16), (2**31, 2**31)):
        num_users = min(num_users, 100_000)
        users = torch.randint(num_users, (999,), generator=random)
        items = torch.randint(num_items, (999,), generator=random)
        users[0], items[0] = num_users - 1, num_items - 1
        offsets, listed = Interactions(users, items, None, num_users, num_items).csr()
        pairs = sorted(zip(users.tolist(), items.tolist(), strict=True))
        assert listed.tolist() == [item for _, item in pairs]
        assert torch.equal(offsets.diff(), users.bincount(minlength=num_users))
