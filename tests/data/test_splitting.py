from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ncf import Interactions, Split, leave_one_out


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
    merged = split.merged()
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
    assert sorted(pair for part in split.parts for pair in columns(part)) == sorted(pairs)
    assert touched(split) == [sorted(item for user, item in pairs if user == one) for one in range(6)]
    counts = users.bincount(minlength=6)
    assert split.unheld.tolist() == [user for user in range(6) if 0 < counts[user] < least]
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


def test_a_split_without_a_training_part() -> None:
    test = Interactions(torch.tensor([1]), torch.tensor([2]), None, 2, 3)
    split = Split(None, None, test)
    assert split.unheld.tolist() == []
    assert split.merged() is split
    assert repr(split) == "Split(test 1)"


def test_users_with_too_few_interactions_are_reported() -> None:
    split = leave_one_out(Interactions.from_arrays([0, 0, 0, 1, 1], [0, 1, 2, 0, 1]))
    assert "users too short to hold one out: 1" in repr(split)
    assert split.unheld.tolist() == [1]
    assert columns(split.train) == [(0, 0), (1, 0), (1, 1)]


def test_nobody_is_left_without_training_data() -> None:
    interactions = Interactions.from_arrays([0, 0, 0], [0, 1, 2])
    with pytest.raises(ValueError, match="min_interactions = 2: with 2 held out a user needs at least 3"):
        leave_one_out(interactions, min_interactions=2)


def test_parts_keep_times_and_vocabularies() -> None:
    split = leave_one_out(Interactions.from_arrays(["a"] * 3, ["x", "y", "z"], [3, 1, 2]))
    assert split.test.item_ids.decode(split.test.items) == ["x"]
    assert split.validation.timestamps.tolist() == [2]
    assert torch.equal(split.merged().train.timestamps, torch.tensor([1, 2]))


@pytest.mark.parametrize("world_size", [1, 2, 3, 30])
def test_the_parts_of_all_processes_are_the_whole(world_size: int) -> None:
    generator = torch.Generator().manual_seed(world_size)
    users = torch.randint(0, 30, (300,), generator=generator)
    split = leave_one_out(Interactions.from_arrays(users, torch.randint(0, 40, (300,), generator=generator)))
    parts = [split.part(rank, world_size) for rank in range(world_size)]
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
    owners = [set(part.train.users.tolist()) for part in parts if part.train is not None]
    assert sum(map(len, owners)) == len(set.union(*owners))
    with pytest.raises(ValueError, match="rank = 4 is out of range for world_size = 4"):
        split.part(4, 4)
    with pytest.raises(ValueError, match="rank 30 of world_size = 31 would have no users"):
        split.part(0, 31)
