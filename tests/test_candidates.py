from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ncf import Candidates, Interactions, Split, leave_one_out, sample_candidates, whole_catalogue


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
        ([0, 1], [1, -4], [[3], [4]], r"positives\[1\] holds -4"),
        ([0, 1], [1, 4], [[3], [-2]], r"negatives\[1\] holds -2"),
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
        sample_candidates(split.merged(), "validation")
