from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from ncf.data import sampling
from ncf.data.sampling import UnseenItems
from ncf.kernels.native import draw_unseen, library

SETS = st.integers(1, 12).flatmap(
    lambda size: st.tuples(st.just(size), st.lists(st.sets(st.integers(0, size - 1)), min_size=1, max_size=5))
)


def build(size: int, sets: list[set[int]], weights: torch.Tensor | None = None) -> UnseenItems:
    offsets = torch.tensor([0, *(len(s) for s in sets)]).cumsum(0)
    items = torch.tensor([item for s in sets for item in sorted(s)], dtype=torch.int64)
    return UnseenItems(offsets, items, num_items=size, weights=weights)


@given(SETS)
def test_ranks_address_exactly_the_items_outside(case: tuple[int, list[set[int]]]) -> None:
    size, sets = case
    unseen = build(size, sets)
    for user, own in enumerate(sets):
        outside = [item for item in range(size) if item not in own]
        assert int(unseen.sizes[user]) == len(outside)
        if outside:
            ranks = torch.arange(len(outside))[None]
            assert unseen.nth(torch.tensor([user]), ranks)[0].tolist() == outside


@given(SETS, st.integers(0, 1000))
def test_weights_give_each_item_an_interval_of_its_length(
    case: tuple[int, list[set[int]]], seed: int
) -> None:
    size, sets = case
    weights = torch.randint(0, 4, (size,), generator=torch.Generator().manual_seed(seed))
    unseen = build(size, sets, weights)
    for user, own in enumerate(sets):
        intervals = [item for item in range(size) if item not in own for _ in range(int(weights[item]))]
        assert int(unseen.sizes[user]) == len(intervals)
        if intervals:
            ranks = torch.arange(len(intervals))[None]
            assert unseen.nth(torch.tensor([user]), ranks)[0].tolist() == intervals


def test_distinct_draws_are_uniform_over_subsets() -> None:
    unseen = build(6, [{2}])
    users = torch.zeros(20_000, dtype=torch.int64)
    drawn = unseen.sample_distinct(users, 2, torch.Generator().manual_seed(0)).sort(dim=1).values
    pairs, counts = drawn.unique(dim=0, return_counts=True)
    assert pairs.tolist() == [[a, b] for a in (0, 1, 3, 4) for b in (1, 3, 4, 5) if a < b]
    assert chisquare(counts.numpy()).pvalue > 1e-4


def test_distinct_draws_run_out_into_padding() -> None:
    unseen = build(4, [{0, 1}, {0, 1, 2, 3}])
    drawn = unseen.sample_distinct(torch.tensor([0, 1]), 3, torch.Generator().manual_seed(0))
    assert sorted(drawn[0].tolist()) == [-1, 2, 3]
    assert drawn[1].tolist() == [-1, -1, -1]


def test_weights_too_large_for_64_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="scale the weights down"):
        build(2, [{0}] * 8, torch.tensor([2**60, 2**60]))


@given(SETS, st.integers(0, 1000))
def test_keys_of_32_and_of_64_bits_address_the_same(case: tuple[int, list[set[int]]], seed: int) -> None:
    size, sets = case
    weights = torch.randint(0, 4, (size,), generator=torch.Generator().manual_seed(seed))
    scale = 2**31
    small, large = build(size, sets, weights), build(size, sets, weights * scale)
    for user in range(len(sets)):
        if int(small.sizes[user]):
            ranks = torch.arange(int(small.sizes[user]))[None]
            at = torch.tensor([user])
            expected = small.nth(at, ranks)
            for offset in (0, scale - 1):  # both ends of the interval
                assert torch.equal(large.nth(at, ranks * scale + offset), expected)


@given(SETS, st.integers(1, 5), st.integers(0, 1000))
def test_distinct_draws_are_distinct_and_outside(
    case: tuple[int, list[set[int]]], num: int, seed: int
) -> None:
    size, sets = case
    drawn = build(size, sets).sample_distinct(
        torch.arange(len(sets)), num, torch.Generator().manual_seed(seed)
    )
    for own, row in zip(sets, drawn.tolist(), strict=True):
        real = [item for item in row if item >= 0]
        assert len(real) == len(set(real)) == min(num, size - len(own))
        assert row == real + [-1] * (num - len(real))
        assert not set(real) & own


def test_distinct_draws_refuse_weights() -> None:
    unseen = build(3, [{0}], torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="build UnseenItems without weights"):
        unseen.sample_distinct(torch.tensor([0]), 1, torch.Generator())


@pytest.mark.parametrize("weights", [None, torch.tensor([1, 5, 0, 2, 7])])
@pytest.mark.parametrize("per_block", [1, 7, 12])
def test_what_is_drawn_does_not_depend_on_the_blocks(
    per_block: int, weights: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = build(5, [{0, 3}, {0, 1, 2, 3, 4}, set()], weights)
    users = torch.randint(0, 3, (50,), generator=torch.Generator().manual_seed(0))
    whole = outside.sample(users, 3, torch.Generator().manual_seed(1))
    monkeypatch.setattr(sampling, "_DRAWS_PER_BLOCK", per_block)
    assert torch.equal(outside.sample(users, 3, torch.Generator().manual_seed(1)), whole)
    assert (whole[users == 1] == -1).all()
    assert (whole[users != 1] >= 0).all()


@pytest.mark.parametrize(("size", "own", "num"), [(9, {4}, 4), (40, {0, 7}, 9), (7, {1}, 6)])
def test_every_item_is_as_likely_in_every_place(size: int, own: set, num: int) -> None:
    unseen = build(size, [own])
    users = torch.zeros(20_000, dtype=torch.int64)
    drawn = unseen.sample_distinct(users, num, torch.Generator().manual_seed(1))
    assert drawn.sort(dim=1).values.diff(dim=1).min() > 0
    for column in drawn.T:  # both by shuffling and by drawing again
        counts = column.bincount(minlength=size)
        assert not counts[sorted(own)].any()
        assert chisquare(counts[counts > 0].numpy()).pvalue > 1e-4
        assert int((counts > 0).sum()) == size - len(own)


def test_more_draws_than_there_are_items_cost_no_more_than_the_items() -> None:
    unseen = build(50, [set(range(user)) for user in range(50)])
    drawn = unseen.sample_distinct(torch.arange(50), 200_000, torch.Generator().manual_seed(0))
    assert (drawn >= 0).sum(1).tolist() == [50 - user for user in range(50)]


def distinct_one_by_one(
    sets: list[set[int]], size: int, users: list[int], num: int, seed: int
) -> list[list[int]]:
    """The draws of `sample_distinct` in plain Python, for users with at least twice as many items as are drawn."""
    random = torch.Generator().manual_seed(seed)
    free = [[item for item in range(size) if item not in sets[user]] for user in users]
    uniform = torch.rand(len(users), num, dtype=torch.float64, generator=random).tolist()
    ranks = [[int(x * len(own)) for x in row] for row, own in zip(uniform, free, strict=True)]
    while True:
        again = [
            (row, column)
            for row in range(len(users))
            for column in range(num)
            if ranks[row][column] in ranks[row][:column]
        ]
        if not again:
            return [[own[rank] for rank in row] for row, own in zip(ranks, free, strict=True)]
        uniform = torch.rand(len(again), dtype=torch.float64, generator=random).tolist()
        for (row, column), x in zip(again, uniform, strict=True):
            ranks[row][column] = int(x * len(free[row]))


@given(st.integers(1, 12), st.integers(1, 40), st.data())
def test_distinct_draws_are_those_of_plain_python(num: int, num_users: int, data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 1000))
    random = torch.Generator().manual_seed(seed)
    size = 2 * num + 20
    sets = [
        set(torch.randint(size, (int(n),), generator=random).tolist())
        for n in torch.randint(21, (9,), generator=random)
    ]
    users = torch.randint(9, (num_users,), generator=random)  # in no order
    drawn = build(size, sets).sample_distinct(users, num, torch.Generator().manual_seed(seed))
    assert drawn.tolist() == distinct_one_by_one(sets, size, users.tolist(), num, seed)


@pytest.mark.skipif(library() is None, reason="there is no C compiler")
@given(SETS, st.integers(1, 5), st.integers(0, 1000))
def test_draws_in_c_are_those_in_pytorch(case: tuple[int, list[set[int]]], num: int, seed: int) -> None:
    size, sets = case
    unseen = build(size, sets)
    users = torch.randint(len(sets), (30,), generator=torch.Generator().manual_seed(seed))
    expected = unseen.sample(users, num, torch.Generator().manual_seed(seed))
    out = torch.empty(30, num + 1, dtype=torch.int32)[:, 1:]  # rows that are apart
    unseen.sample(users, num, torch.Generator().manual_seed(seed), out, draw_unseen)
    assert torch.equal(out.to(torch.int64), expected)
