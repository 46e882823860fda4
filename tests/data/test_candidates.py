from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from ncf import Candidates, Catalogue, Interactions, Split, leave_one_out, sample_candidates, whole_catalogue


def touched(interactions: Interactions) -> list[set[int]]:
    sets: list[set[int]] = [set() for _ in range(interactions.num_users)]
    for user, item in zip(interactions.users.tolist(), interactions.items.tolist(), strict=True):
        sets[user].add(item)
    return sets


@pytest.mark.parametrize("part", ["test", "validation"])
def test_fault_1_and_10_no_candidate_is_an_interaction_of_any_part_nor_twice_there(
    interactions: Interactions, split: Split, part: str
) -> None:
    candidates = sample_candidates(split, part, num_negatives=40)  # type: ignore[arg-type]
    own = touched(interactions)
    assert candidates.users.tolist() == getattr(split, part).users.tolist()
    for user, negatives in zip(candidates.users.tolist(), candidates.negatives.tolist(), strict=True):
        assert len(set(negatives)) == 40
        assert not set(negatives) & own[user]


def test_fault_13_candidates_are_drawn_once_and_are_the_same_for_the_same_seed(split: Split) -> None:
    first, second = (sample_candidates(split, num_negatives=20, seed=4) for _ in range(2))
    assert torch.equal(first.negatives, second.negatives)
    assert not torch.equal(first.negatives, sample_candidates(split, num_negatives=20, seed=5).negatives)


def test_a_user_who_has_touched_nearly_everything_is_padded() -> None:
    split = leave_one_out(Interactions.from_arrays([0] * 5 + [1] * 3, [0, 1, 2, 3, 4, 0, 1, 2]))
    candidates = sample_candidates(split, num_negatives=3)
    assert candidates.negatives[0].tolist() == [-1, -1, -1]
    assert sorted(candidates.negatives[1].tolist()) == [-1, 3, 4]


def test_whole_catalogue_lists_what_was_seen_in_any_part(interactions: Interactions, split: Split) -> None:
    catalogue = whole_catalogue(split)
    own = touched(interactions)
    for row, (user, positive) in enumerate(
        zip(catalogue.users.tolist(), catalogue.positives.tolist(), strict=True)
    ):
        seen = catalogue.seen_items[catalogue.seen_offsets[row] : catalogue.seen_offsets[row + 1]]
        assert seen.tolist() == sorted(own[user] - {positive})


def test_saved_and_loaded(split: Split, tmp_path: Path) -> None:
    candidates = sample_candidates(split)
    candidates.save(tmp_path / "candidates.safetensors")
    again = Candidates.load(tmp_path / "candidates.safetensors")
    for name in ("users", "positives", "negatives"):
        assert torch.equal(getattr(candidates, name), getattr(again, name))
    assert [path.name for path in tmp_path.iterdir()] == ["candidates.safetensors"]


def test_a_truncated_file_is_one_clear_error(split: Split, tmp_path: Path) -> None:
    file = tmp_path / "candidates.safetensors"
    sample_candidates(split).save(file)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        Candidates.load(file)


@pytest.mark.parametrize(
    ("users", "positives", "negatives", "message"),
    [
        ([0], [1, 2], [[3]], "positives has 2 rows for 1 users"),
        ([0], [1], [3], "negatives must be an int64 tensor with 2"),
        ([0, 1], [1, -4], [[3], [4]], r"positives\[1\] = -4 is out of range: ids are 0 or more"),
        ([0, 1], [1, 4], [[3], [-2]], r"negatives\[1, 0\] = -2 is out of range: ids are -1 or more"),
        ([0.5], [1], [[3]], "users must be an int64 tensor"),
    ],
)
def test_bad_candidates(users: list, positives: list, negatives: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Candidates(torch.tensor(users), torch.tensor(positives), torch.tensor(negatives))


def test_bad_arguments(split: Split) -> None:
    with pytest.raises(ValueError, match="num_negatives = 0"):
        sample_candidates(split, num_negatives=0)
    with pytest.raises(ValueError, match="part = 'train'"):
        sample_candidates(split, "train")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the validation part of the split is empty"):
        sample_candidates(split.with_validation_in_train(), "validation")


def test_candidates_are_uniform_over_all_untouched_items(split: Split) -> None:
    """Over many seeds, one user; a generator of one seed per list must not favour an item."""
    counts = torch.zeros(60, dtype=torch.int64)
    for seed in range(300):
        candidates = sample_candidates(split, num_negatives=5, seed=seed)
        counts += torch.bincount(candidates.negatives[7], minlength=60)
    drawn = counts[counts > 0].numpy()
    assert len(drawn) == 60 - 12
    # without replacement the counts vary less than a multinomial's: the statistic is shrunk by (n - k) / (n - 1)
    statistic = ((drawn - drawn.mean()) ** 2 / drawn.mean()).sum() * (48 - 1) / (48 - 5)
    assert 1e-4 < chi2.sf(statistic, 47) < 1 - 1e-4


def test_the_two_parts_draw_different_candidates(split: Split) -> None:
    test, validation = (sample_candidates(split, part, num_negatives=20) for part in ("test", "validation"))  # type: ignore[arg-type]
    assert torch.equal(test.users, validation.users)
    assert not torch.equal(test.negatives, validation.negatives)


@given(st.integers(2, 6), st.integers(3, 9), st.integers(0, 1000))
def test_whole_catalogue_against_brute_force(num_users: int, num_items: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(num_users, num_items, generator=generator) < 0.6
    mask[0, :3] = True  # somebody has enough to hold out
    users, items = mask.nonzero(as_tuple=True)
    order = torch.randperm(len(users), generator=generator)
    interactions = Interactions(users[order], items[order], None, num_users, num_items)
    split = leave_one_out(interactions)
    for part in ("test", "validation"):
        catalogue = whole_catalogue(split, part)  # type: ignore[arg-type]
        assert catalogue.num_items == num_items
        lengths = catalogue.seen_offsets.diff().tolist()
        for user, positive, seen in zip(
            catalogue.users.tolist(),
            catalogue.positives.tolist(),
            catalogue.seen_items.split(lengths),
            strict=True,
        ):
            assert mask[user, positive]
            assert seen.tolist() == [i for i in range(num_items) if mask[user, i] and i != positive]


GOOD = {
    "users": [0, 3],
    "positives": [2, 1],
    "num_items": 5,
    "seen_offsets": [0, 2, 3],
    "seen_items": [0, 4, 2],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"users": [0.0, 3.0]}, r"users must be int64 of shape \(2,\), got torch.float"),
        ({"users": [[0, 3]]}, r"users must be int64 of shape \(2,\), got torch.int64 \(1, 2\)"),
        ({"users": [0, -3]}, r"users\[1\] = -3 is out of range: ids are 0 or more"),
        ({"positives": [2]}, r"positives must be int64 of shape \(2,\)"),
        ({"positives": [2, 5]}, r"positives\[1\] = 5 is out of range for num_items = 5"),
        ({"seen_items": [0, 4, -1]}, r"seen_items\[2\] = -1 is out of range"),
        ({"seen_items": [4, 0, 2]}, r"seen_items\[1\] = 0: the items of a user must ascend"),
        ({"seen_items": [4, 4, 2]}, r"seen_items\[1\] = 4: the items of a user must ascend"),
        ({"seen_items": [0, 2, 2]}, r"seen_items\[1\] = 2 is one of the user's held-out items"),
        ({"seen_offsets": [0, 2, 4]}, "seen_offsets must rise from 0 to len"),
        ({"seen_offsets": [0, 4, 3]}, "seen_offsets must rise from 0 to len"),
        ({"seen_offsets": [1, 2, 3]}, "seen_offsets must rise from 0 to len"),
        ({"seen_offsets": [0, 3]}, r"seen_offsets must be int64 of shape \(3,\)"),
    ],
)
def test_bad_catalogues(change: dict, message: str) -> None:
    def build(**values: object) -> Catalogue:
        return Catalogue(**{k: torch.tensor(v) if isinstance(v, list) else v for k, v in values.items()})  # type: ignore[arg-type]

    assert len(build(**GOOD)) == 2
    with pytest.raises(ValueError, match=message):
        build(**GOOD | change)


@given(st.integers(2, 6), st.integers(3, 12), st.integers(0, 1000))
def test_a_catalogue_of_several_held_out_items_against_brute_force(
    num_users: int, num_items: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    where = torch.randint(
        0, 4, (num_users, num_items), generator=generator
    )  # nowhere, train, validation, test
    where[0, :3] = torch.tensor([1, 2, 3])

    def part(number: int) -> Interactions:
        users, items = (where == number).nonzero(as_tuple=True)
        order = torch.randperm(len(users), generator=generator)
        return Interactions(users[order], items[order], None, num_users, num_items)

    split = Split(part(1), part(2), part(3))
    for name, number in (("validation", 2), ("test", 3)):
        catalogue = whole_catalogue(split, name)  # type: ignore[arg-type]
        held = [(where[user] == number).nonzero()[:, 0].tolist() for user in range(num_users)]
        assert sorted(catalogue.users.tolist()) == [user for user in range(num_users) if held[user]]
        lists = zip(
            catalogue.users.tolist(),
            catalogue.positives.split(catalogue.held_out_offsets.diff().tolist()),
            catalogue.seen_items.split(catalogue.seen_offsets.diff().tolist()),
            strict=True,
        )
        for user, positives, seen in lists:
            assert positives.tolist() == held[user]
            assert seen.tolist() == [i for i in range(num_items) if where[user, i] not in (0, number)]
        assert (catalogue.positive_offsets is None) == (max(map(len, held)) == 1)
        parts = [catalogue.for_rank(rank, 2) for rank in range(2)]
        assert torch.equal(parts[0].users, catalogue.users[::2])
        assert sum(len(one.positives) for one in parts) == len(catalogue.positives)
        assert sum(len(one.seen_items) for one in parts) == len(catalogue.seen_items)
    if max(map(len, held)) > 1:
        with pytest.raises(ValueError, match="several interactions of a user"):
            sample_candidates(split)


@pytest.mark.parametrize(
    ("offsets", "positives", "message"),
    [
        ([0, 2, 2], [1, 2], "a user has no held-out item"),
        ([0, 2, 3], [2, 1, 3], r"positives\[1\] = 1: the items of a user must ascend"),
        ([0, 2, 3], [1, 2, 2], r"seen_items\[2\] = 2 is one of the user's held-out items"),
        ([0, 1, 3], [1, 3], r"positive_offsets must rise from 0 to len\(positives\) = 2"),
    ],
)
def test_bad_lists_of_held_out_items(offsets: list, positives: list, message: str) -> None:
    good = {name: torch.tensor(value) for name, value in GOOD.items()} | {"num_items": 5}
    good["positives"], good["positive_offsets"] = torch.tensor(positives), torch.tensor(offsets)
    with pytest.raises(ValueError, match=message):
        Catalogue(**good)  # type: ignore[arg-type]


def test_short_descriptions(split: Split) -> None:
    assert repr(sample_candidates(split, num_negatives=7)) == "Candidates(40 users, 1 + 7 items each)"
    assert repr(whole_catalogue(split)) == "Catalogue(40 users, 60 items less those seen)"
    assert len(sample_candidates(split)) == 40


def test_to_another_device(split: Split) -> None:
    moved = sample_candidates(split, num_negatives=7).to("cpu")
    assert moved.items.shape == (40, 8)
    assert torch.equal(moved.items[:, 0], split.test.items)


@pytest.mark.parametrize("world_size", [1, 2, 5, 40])
def test_every_user_is_judged_in_one_part(world_size: int) -> None:
    generator = torch.Generator().manual_seed(world_size)
    users = torch.randint(0, 30, (300,), generator=generator)
    split = leave_one_out(Interactions.from_arrays(users, torch.randint(0, 40, (300,), generator=generator)))
    sampled, catalogue = sample_candidates(split, num_negatives=7), whole_catalogue(split)
    judged = {int(user): row for row, user in enumerate(sampled.users)}
    seen = 0
    for rank in range(world_size):
        some, rest = sampled.for_rank(rank, world_size), catalogue.for_rank(rank, world_size)
        assert some.users.tolist() == rest.users.tolist()
        for row, user in enumerate(some.users.tolist()):
            place = judged.pop(user)
            assert some.items[row].tolist() == sampled.items[place].tolist()
            assert int(rest.positives[row]) == int(catalogue.positives[place])
            start, end = catalogue.seen_offsets[place : place + 2].tolist()
            first, last = rest.seen_offsets[row : row + 2].tolist()
            assert rest.seen_items[first:last].tolist() == catalogue.seen_items[start:end].tolist()
            seen += last - first
    assert not judged
    assert seen == len(catalogue.seen_items)
    with pytest.raises(ValueError, match="rank = -1 is out of range"):
        catalogue.for_rank(-1, 2)
