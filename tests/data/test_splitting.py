from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ncf import (
    Interactions,
    Split,
    hold_out_users,
    k_folds,
    leave_last,
    leave_one_out,
    split_by_ratio,
    split_by_time,
    whole_catalogue,
)


def columns(part: Interactions) -> list[tuple[int, int]]:
    return list(zip(part.users.tolist(), part.items.tolist(), strict=True))


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=40),
    st.booleans(),
    st.booleans(),
)
def test_against_the_slow_obvious_way(rows: list[tuple], validation: bool, timed: bool) -> None:
    users, items, times = zip(*rows, strict=True)
    whole = Interactions.from_arrays(users, items, times if timed else None)
    per_user: dict[int, list[int]] = {}
    for row, user in enumerate(whole.users.tolist()):
        per_user.setdefault(user, []).append(row)
    test, held = set(), set()
    for own in per_user.values():
        if len(own) >= 3:
            by_time = sorted(own, key=lambda row: (int(whole.timestamps[row]) if timed else 0, row))
            test.add(by_time[-1])
            if validation:
                held.add(by_time[-2])
    if not test:
        with pytest.raises(ValueError, match="no user has 3 interactions"):
            leave_one_out(whole, validation=validation)
        return
    split = leave_one_out(whole, validation=validation)
    pairs = columns(whole)
    assert columns(split.test) == [pairs[row] for row in sorted(test)]
    assert columns(split.train) == [pair for row, pair in enumerate(pairs) if row not in test | held]
    assert (split.validation is None) == (not validation)
    if split.validation is not None:
        assert columns(split.validation) == [pairs[row] for row in sorted(held)]
    merged = split.with_validation_in_train()
    assert sorted(columns(merged.train)) == sorted(pair for row, pair in enumerate(pairs) if row not in test)


def touched(split: Split) -> list[list[int]]:
    offsets, items = split.csr()
    return [part.tolist() for part in items.split(offsets.diff().tolist())]


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), unique=True, min_size=1, max_size=40),
    st.integers(2, 4),
)
def test_nothing_is_lost_and_every_user_is_held_out_or_reported(pairs: list[tuple], least: int) -> None:
    users, items = (torch.tensor(column) for column in zip(*pairs, strict=True))
    whole = Interactions(users, items, None, 6, 10)
    if int(users.bincount().max()) < least:
        with pytest.raises(ValueError, match=f"no user has {least} interactions"):
            leave_one_out(whole, validation=False, min_interactions=least)
        return
    split = leave_one_out(whole, validation=False, min_interactions=least)
    assert sorted(pair for part in split.sets for pair in columns(part)) == sorted(pairs)
    assert touched(split) == [sorted(item for user, item in pairs if user == one) for one in range(6)]
    counts = users.bincount(minlength=6)
    assert split.users_without_test.tolist() == [user for user in range(6) if 0 < counts[user] < least]
    assert split.test.users.bincount(minlength=6).tolist() == [int(count >= least) for count in counts]


def test_times_before_1970_and_extreme_ones() -> None:
    lowest = torch.iinfo(torch.int64).min
    whole = Interactions.from_arrays([0] * 4, [0, 1, 2, 3], [-5, -1, lowest, -1])
    split = leave_one_out(whole)
    assert columns(split.test) == [(0, 3)]  # tied with 1, later in the file
    assert columns(split.validation) == [(0, 1)]
    split = leave_one_out(Interactions.from_arrays([0, 0, 0], [0, 1, 2], [lowest] * 3))
    assert columns(split.test) == [(0, 2)]
    assert columns(split.validation) == [(0, 1)]


def test_users_with_too_few_interactions_are_reported() -> None:
    split = leave_one_out(Interactions.from_arrays([0, 0, 0, 1, 1], [0, 1, 2, 0, 1]))
    assert "users without test interactions: 1" in repr(split)
    assert split.users_without_test.tolist() == [1]
    assert columns(split.train) == [(0, 0), (1, 0), (1, 1)]


def test_nobody_is_left_without_training_data() -> None:
    interactions = Interactions.from_arrays([0, 0, 0], [0, 1, 2])
    with pytest.raises(ValueError, match="min_interactions = 2: with 2 held out a user needs at least 3"):
        leave_one_out(interactions, min_interactions=2)


def test_parts_keep_times_and_vocabularies() -> None:
    split = leave_one_out(Interactions.from_arrays(["a"] * 3, ["x", "y", "z"], [3, 1, 2]))
    assert split.test.item_ids.decode(split.test.items) == ["x"]
    assert split.validation.timestamps.tolist() == [2]
    assert torch.equal(split.with_validation_in_train().train.timestamps, torch.tensor([1, 2]))


@pytest.mark.parametrize("world_size", [1, 2, 3, 30])
def test_the_parts_of_all_processes_are_the_whole(world_size: int) -> None:
    generator = torch.Generator().manual_seed(world_size)
    users = torch.randint(0, 30, (300,), generator=generator)
    split = leave_one_out(Interactions.from_arrays(users, torch.randint(0, 40, (300,), generator=generator)))
    parts = [split.for_rank(rank, world_size) for rank in range(world_size)]
    for name in ("train", "validation", "test"):
        whole = getattr(split, name)
        rows = [
            pair
            for part in parts
            for pair in zip(
                getattr(part, name).users.tolist(), getattr(part, name).items.tolist(), strict=True
            )
        ]
        assert sorted(rows) == sorted(zip(whole.users.tolist(), whole.items.tolist(), strict=True))
        assert {getattr(part, name).num_users for part in parts} == {whole.num_users}
    owners = [set(part.train.users.tolist()) for part in parts]
    assert sum(map(len, owners)) == len(set.union(*owners))
    with pytest.raises(ValueError, match="rank = 4 is out of range for world_size = 4"):
        split.for_rank(4, 4)
    with pytest.raises(ValueError, match="rank 30 of world_size = 31 would have no users"):
        split.for_rank(0, 31)


def logs() -> st.SearchStrategy[Interactions]:
    rows = st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(-3, 3)), min_size=1, max_size=60
    )
    columns_of = rows.map(lambda found: list(zip(*found, strict=True)))
    return columns_of.map(lambda found: Interactions.from_arrays(*found))


def by_user(part: Interactions) -> dict[int, list[int]]:
    """Rows of each user in the order of time, then of the file."""
    rows = sorted(range(len(part)), key=lambda row: (int(part.timestamps[row]), row))
    return {user: [row for row in rows if int(part.users[row]) == user] for user in range(part.num_users)}


def split_or_none(make: Callable[[], Split]) -> Split | None:
    try:
        return make()
    except ValueError as error:
        if "would be empty" in str(error) or "nothing can be held out" in str(error):
            return None
        raise


def expected(log: Interactions, rows: Iterable[int]) -> list[tuple[int, int]]:
    return [columns(log)[row] for row in sorted(rows)]


@given(logs(), st.integers(1, 3), st.booleans())
def test_leave_last_against_the_slow_obvious_way(log: Interactions, n: int, validation: bool) -> None:
    split = split_or_none(lambda: leave_last(log, n, validation=validation))
    per_user = {u: rows for u, rows in by_user(log).items() if len(rows) > n * (1 + validation)}
    assert (split is None) == (not per_user)
    if split is not None:
        assert columns(split.test) == expected(log, [row for rows in per_user.values() for row in rows[-n:]])
        if validation:
            held = [row for rows in per_user.values() for row in rows[-2 * n : -n]]
            assert columns(split.validation) == expected(log, held)
        assert sorted(pair for part in split.sets for pair in columns(part)) == sorted(columns(log))


@given(logs(), st.integers(-3, 3), st.one_of(st.none(), st.integers(-3, 3)))
def test_a_split_by_time_trains_on_nothing_later_than_its_test(
    log: Interactions, at: int, before: int | None
) -> None:
    if before is not None and before >= at:
        with pytest.raises(ValueError, match="is not before"):
            split_by_time(log, at, validation_at=before)
        return
    split = split_or_none(lambda: split_by_time(log, at, validation_at=before))
    if split is None:
        return
    times, early = log.timestamps.tolist(), at if before is None else before
    known = {int(user) for user, time in zip(log.users, times, strict=True) if time < early}
    rows = {
        "train": [row for row, time in enumerate(times) if time < early],
        "validation": [row for row, time in enumerate(times) if early <= time < at],
        "test": [row for row, time in enumerate(times) if time >= at],
    }
    for name, wanted in rows.items():
        if name != "validation" or before is not None:
            known_only = [row for row in wanted if int(log.users[row]) in known]
            assert columns(getattr(split, name)) == expected(log, known_only)


def test_a_share_of_the_time_is_the_share_of_the_interactions_before() -> None:
    log = Interactions.from_arrays([0] * 100, range(100), range(1000, 1100))
    split = split_by_time(log, at=0.9, validation_at=0.8)
    assert [len(part) for part in split.sets] == [80, 10, 10]
    assert split.test.timestamps.min() == 1090
    for bad in (1.5, True, "x"):
        with pytest.raises(ValueError, match="at = "):
            split_by_time(log, at=bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no timestamps"):
        split_by_time(Interactions.from_arrays([0], [0]), at=3)


@given(logs(), st.sampled_from([0.1, 0.2, 0.5]), st.sampled_from([0.0, 0.25]), st.booleans())
def test_shares_of_each_user_against_the_slow_obvious_way(
    log: Interactions, test: float, validation: float, timed: bool
) -> None:
    by = "time" if timed else "random"
    split = split_or_none(lambda: split_by_ratio(log, test, validation=validation, by=by))  # type: ignore[arg-type]
    if split is None:
        return
    assert sorted(pair for part in split.sets for pair in columns(part)) == sorted(columns(log))
    tested, held = set(), set()
    for user, rows in by_user(log).items():
        num_test, num_held = math.floor(len(rows) * test), math.floor(len(rows) * validation)
        assert int((split.test.users == user).sum()) == num_test
        assert split.validation is None or int((split.validation.users == user).sum()) == num_held
        tested |= set(rows[len(rows) - num_test :])
        held |= set(rows[len(rows) - num_test - num_held : len(rows) - num_test])
    if timed:
        assert columns(split.test) == expected(log, tested)
        assert split.validation is None or columns(split.validation) == expected(log, held)


@given(logs(), st.integers(2, 4))
def test_each_interaction_is_tested_in_one_fold(log: Interactions, k: int) -> None:
    folds = split_or_none(lambda: list(k_folds(log, k)))  # type: ignore[arg-type, return-value]
    if folds is None:
        return
    counts = log.users.bincount(minlength=log.num_users)
    tested = sorted(pair for split in folds for pair in columns(split.test))
    assert tested == sorted(pair for pair in columns(log) if counts[pair[0]] > 1)
    for split in folds:
        assert sorted(columns(split.train) + columns(split.test)) == sorted(columns(log))
        assert set(split.test.users.tolist()) <= set(split.train.users.tolist())
        per_user = split.test.users.bincount(minlength=log.num_users)
        assert bool((per_user[counts > 1] <= -(-counts[counts > 1] // k)).all())


@given(logs(), st.sampled_from([0.2, 0.5]), st.sampled_from([0.2, 0.6]))
def test_users_held_out_altogether_are_not_trained_on(log: Interactions, share: float, held: float) -> None:
    split = split_or_none(lambda: hold_out_users(log, share, held_out=held))
    if split is None:
        return
    assert split.history is not None
    assert sorted(pair for part in split.sets for pair in columns(part)) == sorted(columns(log))
    tested = set(split.test.users.tolist())
    assert tested == set(split.history.users.tolist())
    assert not tested & set(split.train.users.tolist())
    for user, rows in by_user(log).items():
        if user in tested:
            assert int((split.test.users == user).sum()) == max(1, math.floor(len(rows) * held))
    catalogue = whole_catalogue(split)
    assert len(catalogue.seen_items) == len(split.history)


def test_random_splits_are_even_and_depend_on_the_seed_alone() -> None:
    log = Interactions.from_arrays(torch.arange(2000) // 10, torch.arange(2000) % 10)
    first, again, other = (split_by_ratio(log, 0.3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.test.items, again.test.items)
    assert not torch.equal(first.test.items, other.test.items)
    counts = first.test.items.bincount()
    assert int(counts.min()) > 30
    assert int(counts.max()) < 90  # 60 expected, deviation 6.5
    sizes = [len(split.test) for split in k_folds(log, 7)]
    assert max(sizes) - min(sizes) < 40
