from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ncf import Candidates, Interactions, leave_one_out, sample_candidates
from ncf.datasets import ncf_files, read_ncf, write_ncf

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
    merged = split.with_validation_in_train().train
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


def test_compressed_files_are_read_like_plain_ones(prefix: Path) -> None:
    plain, candidates = read_ncf(prefix)
    for file in prefix.parent.iterdir():
        Path(f"{file}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    split, again = read_ncf(prefix)
    assert torch.equal(split.train.items, plain.train.items)
    assert torch.equal(split.train.timestamps, plain.train.timestamps)
    assert torch.equal(again.items, candidates.items)


@pytest.mark.parametrize("ending", [".train.rating", ".test.rating", ".test.negative"])
def test_a_missing_file_is_named(prefix: Path, ending: str) -> None:
    Path(f"{prefix}{ending}").unlink()
    with pytest.raises(FileNotFoundError, match=f"small{ending}"):
        read_ncf(prefix)


def test_fault_12_another_number_of_negatives_is_an_error(prefix: Path) -> None:
    with pytest.raises(ValueError, match="row 1 has 4 negatives, not num_negatives = 100"):
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
    (tmp_path / "nothing.test.rating").write_text("0\t1\t5\t9\n")
    with pytest.raises(FileNotFoundError, match=r"nothing\.test\.negative"):
        read_ncf(tmp_path / "nothing")


def test_lines_as_the_paper_writes_them(tmp_path: Path) -> None:
    (tmp_path / "ml.train.rating").write_text(
        "0\t32\t4\t978824330\n0\t34\t4\t978824330\n1\t4\t5\t978301398\n"
    )
    (tmp_path / "ml.test.rating").write_text("0\t25\t5\t978824351\n1\t133\t3\t978300174\n")
    (tmp_path / "ml.test.negative").write_text(
        "(0,25)\t64\t174\t79\t\n(1,133)\t72\t\t8\t9\n".replace("\t\t", "\t")
    )
    split, candidates = read_ncf(tmp_path / "ml", num_negatives=3)
    assert split.train.items.tolist() == [32, 34, 4]
    assert split.train.timestamps.tolist() == [978824330, 978824330, 978301398]
    assert (split.train.num_users, split.train.num_items) == (2, 175)
    assert candidates.items.tolist() == [[25, 64, 174, 79], [133, 72, 8, 9]]


@settings(max_examples=40)  # each writes files
@given(
    pairs=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 9)), unique=True, min_size=10, max_size=60),
    timed=st.booleans(),
    num_negatives=st.integers(1, 12),
)
def test_whatever_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, pairs: list, timed: bool, num_negatives: int
) -> None:
    users, items = (torch.tensor(column) for column in zip(*pairs, strict=True))
    times = torch.arange(len(users)) % 5 - 2**60 if timed else None
    whole = Interactions(users, items, times, 9, 10)
    split = leave_one_out(whole, validation=False, min_interactions=2)
    candidates = sample_candidates(split, num_negatives=num_negatives)
    prefix = tmp_path_factory.mktemp("ncf") / "x"
    write_ncf(prefix, split, candidates)
    again, read = read_ncf(prefix)
    for part in ("train", "test"):
        for name in ("users", "items", "timestamps"):
            one, two = (getattr(getattr(which, part), name) for which in (split, again))
            assert one is two is None or torch.equal(one, two)
    assert torch.equal(read.users, candidates.users)
    for one, two in zip(read.items.tolist(), candidates.items.tolist(), strict=True):
        assert [item for item in one if item >= 0] == [item for item in two if item >= 0]


def test_fault_1_negatives_that_should_not_be_there_are_read_and_counted(tmp_path: Path) -> None:
    (tmp_path / "x.train.rating").write_text("0\t1\t1\n1\t1\t1\n2\t3\t1\n")
    (tmp_path / "x.test.rating").write_text("0\t2\t1\n1\t3\t1\n2\t3\t1\n")
    (tmp_path / "x.test.negative").write_text("(0,2)\t2\t5\t2\n(1,3)\t1\t4\t6\n(2,3)\t4\t5\t6\n")
    with pytest.warns(UserWarning, match=r"x\.test\.negative: ") as caught:
        _, candidates = read_ncf(tmp_path / "x")
    (warning,) = caught
    for what in (
        "1 users have their positive among their negatives",
        "1 users have a negative twice",
        "1 users have a training item among their negatives",
        "1 users have their positive in the training file",
    ):
        assert what in str(warning.message)
    assert candidates.negatives.tolist() == [[2, 5, 2], [1, 4, 6], [4, 5, 6]]


def test_a_training_pair_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    (tmp_path / "x.train.rating").write_text("0\t7\t1\t30\n2\t5\t1\t10\n0\t7\t1\t20\n")
    (tmp_path / "x.test.rating").write_text("0\t2\t1\t40\n")
    (tmp_path / "x.test.negative").write_text("(0,2)\t3\n")
    train = read_ncf(tmp_path / "x")[0].train
    assert (train.users.tolist(), train.items.tolist(), train.timestamps.tolist()) == (
        [0, 2],
        [7, 5],
        [30, 10],
    )
    assert (train.num_users, train.num_items) == (3, 8)


@pytest.mark.parametrize(
    ("ending", "text", "message"),
    [
        (".test.rating", "", r"x\.test\.rating, row 1: 1 columns"),
        (".test.rating", "0 2 1 40\n", r"x\.test\.rating, row 1: 1 columns"),
        (".test.rating", "0\t2\t1\t40\t5\n", r"row 1: 5 columns"),
        (
            ".test.rating",
            "0\t2\t1\t40\n1\t\t1\t40\n",
            "Row #2: CSV conversion error to int64: invalid value ''",
        ),
        (".test.rating", "0\t2\t1\t40\n1\t1.5\t1\t40\n", "Row #2: .*invalid value '1.5'"),
        (".test.rating", "0\t2\t1\t40\n-1\t1\t1\t40\n", "row 2: user -1 is negative"),
        (".test.rating", "0\t2\t1\t40\n0\t3\t1\t40\n", r"rows\) differ from row 2 on"),
        (".test.rating", "0\t2\t1\tsoon\n", r"x\.test\.rating: timestamp\[0\] = 'soon' is no time"),
        (".train.rating", "0\t2\t1\t40\n-1\t1\t1\t40\n", r"x\.train\.rating, row 2: user -1 is negative"),
        (".test.negative", "", r"x\.test\.negative is empty"),
        (".test.negative", "(0,2)\t3\t-4\n", r"x\.test\.negative, row 1 is malformed"),
        (".test.negative", "(0,2)\t3\t4.0\n", r"x\.test\.negative, row 1 is malformed"),
        (".test.negative", "(0,2) 3 4\n", r"x\.test\.negative, row 1 is malformed"),
        (".test.negative", "0,2\t3\n", r"x\.test\.negative, row 1 is malformed"),
        (".test.negative", f"(0,2)\t{10**30}\n", r"x\.test\.negative, row 1 is malformed"),
        (".test.negative", "(0,3)\t4\n", "differ from row 1 on"),
    ],
)
def test_bad_files_are_one_clear_error(tmp_path: Path, ending: str, text: str, message: str) -> None:
    (tmp_path / "x.train.rating").write_text("0\t1\t1\t30\n")
    (tmp_path / "x.test.rating").write_text("0\t2\t1\t40\n")
    (tmp_path / "x.test.negative").write_text("(0,2)\t3\t4\n")
    read_ncf(tmp_path / "x", num_negatives=2)
    (tmp_path / f"x{ending}").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_ncf(tmp_path / "x")


def test_a_user_twice_in_the_test_part(tmp_path: Path) -> None:
    (tmp_path / "x.train.rating").write_text("0\t1\t1\t30\n")
    (tmp_path / "x.test.rating").write_text("1\t2\t1\n0\t3\t1\n1\t4\t1\n")
    (tmp_path / "x.test.negative").write_text("(1,2)\t5\n(0,3)\t5\n(1,4)\t5\n")
    with pytest.raises(ValueError, match=r"x\.test\.rating, row 3: user 1 is there a second time"):
        read_ncf(tmp_path / "x")


def test_candidates_of_another_split_are_not_written(tmp_path: Path) -> None:
    split = leave_one_out(random_interactions(6, 20, 5))
    with pytest.raises(
        ValueError, match=r"split\.test \(6 rows\) and candidates \(6 rows\) differ from row 1 on"
    ):
        write_ncf(tmp_path / "x", split, sample_candidates(split, "validation", num_negatives=4))
    short = sample_candidates(split, num_negatives=4)
    short = Candidates(short.users[:4], short.positives[:4], short.negatives[:4])
    with pytest.raises(ValueError, match=r"differ from row 5 on"):
        write_ncf(tmp_path / "x", split, short)
    assert list(tmp_path.iterdir()) == []


def test_all_files_are_written_or_none(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file.name: file.read_bytes() for file in prefix.parent.iterdir()}
    split = leave_one_out(random_interactions(8, 20, 5, seed=1))
    written = []

    def full(interactions: Interactions, path: Path) -> None:
        path.write_text("0\t")
        written.append(path)
        if len(written) == 2:
            raise OSError("No space left on device")

    monkeypatch.setattr(ncf_files, "_write_ratings", full)
    with pytest.raises(OSError, match="No space"):
        write_ncf(prefix, split, sample_candidates(split, num_negatives=4))
    assert len(written) == 2
    assert {file.name: file.read_bytes() for file in prefix.parent.iterdir()} == before


@pytest.mark.parametrize("failing", range(6))
def test_a_failure_while_the_files_change_places_leaves_the_earlier_ones(
    prefix: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Three files go away and three come: each of the six renames is the one that fails."""
    before = {file.name: file.read_bytes() for file in prefix.parent.iterdir()}
    split = leave_one_out(random_interactions(8, 20, 5, seed=1))
    replace, calls = Path.replace, 0

    def failing_once(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == failing + 1:
            raise PermissionError("no")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing_once)
    with pytest.raises(PermissionError):
        write_ncf(prefix, split, sample_candidates(split, num_negatives=4))
    assert {file.name: file.read_bytes() for file in prefix.parent.iterdir()} == before
