from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ncf import Interactions, leave_one_out, sample_candidates
from ncf.datasets import read_ncf, write_ncf

from ..conftest import random_interactions


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    split = leave_one_out(random_interactions(6, 20, 5), validation=False)
    write_ncf(tmp_path / "small", split, sample_candidates(split, num_negatives=4))
    return tmp_path / "small"


def replace(prefix: Path, ending: str, old: str, new: str) -> None:
    file = Path(f"{prefix}{ending}")
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_round_trip(tmp_path: Path) -> None:
    interactions = random_interactions(30, 50, 8)
    split = leave_one_out(interactions)
    candidates = sample_candidates(split, num_negatives=20)
    write_ncf(tmp_path / "x", split, candidates)
    again, read = read_ncf(tmp_path / "x", num_negatives=20)
    assert torch.equal(read.users, candidates.users)
    assert torch.equal(read.items, candidates.items)
    merged = split.merged().train
    for name in ("users", "items", "timestamps"):
        assert torch.equal(getattr(again.train, name), getattr(merged, name))
        assert torch.equal(getattr(again.test, name), getattr(split.test, name))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "x.test.negative",
        "x.test.rating",
        "x.train.rating",
    ]


def test_padding_is_left_out_and_comes_back(tmp_path: Path) -> None:
    split = leave_one_out(
        Interactions.from_arrays([0] * 4 + [1] * 3, [0, 1, 2, 3, 0, 1, 2]), validation=False
    )
    candidates = sample_candidates(split, num_negatives=2)
    write_ncf(tmp_path / "x", split, candidates)
    assert torch.equal(read_ncf(tmp_path / "x")[1].negatives, torch.tensor([[-1], [3]]))


def test_the_training_part_is_optional(prefix: Path) -> None:
    Path(f"{prefix}.train.rating").unlink()
    split, candidates = read_ncf(prefix)
    assert split.train is None
    assert len(split.test) == len(candidates) == 6


def test_fault_12_another_number_of_negatives_is_an_error(prefix: Path) -> None:
    with pytest.raises(ValueError, match="row 1 has 4 negatives, num_negatives = 100 were asked for"):
        read_ncf(prefix, num_negatives=100)


def test_malformed_lines_are_named(prefix: Path) -> None:
    replace(prefix, ".test.negative", "\n(1,", "\n[1;")
    with pytest.raises(ValueError, match=r"test\.negative, row 2 is malformed, expected '\(user,item\)'"):
        read_ncf(prefix)


def test_malformed_ratings_are_named(prefix: Path) -> None:
    replace(prefix, ".test.rating", "\n1\t", "\none\t")
    with pytest.raises(ValueError, match="Row #2: CSV conversion error to int64: invalid value 'one'"):
        read_ncf(prefix)
    replace(prefix, ".test.rating", "\none\t", "\n1\t1\t")
    with pytest.raises(ValueError, match="Row #2: Expected 4 columns, got 5"):
        read_ncf(prefix)


def test_test_files_of_different_splits(prefix: Path) -> None:
    text = Path(f"{prefix}.test.negative").read_text().splitlines(keepends=True)
    Path(f"{prefix}.test.negative").write_text("".join(text[:3] + text[4:]))
    with pytest.raises(ValueError, match="differ from row 4 on"):
        read_ncf(prefix)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.test\.rating"):
        read_ncf(tmp_path / "nothing")
