"""Equal numbers that stand for different raw ids are told apart."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ncf import Candidates, Interactions, leave_one_out, sample_candidates, whole_catalogue
from ncf.data import Vocabulary, check_same_ids

IDS = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=5),
    st.lists(st.text("abé", max_size=3), unique=True, max_size=5),
)


@given(IDS, IDS)
def test_fingerprints_are_equal_for_equal_vocabularies_only(one: list, other: list) -> None:
    same = one == other
    assert (Vocabulary(one).fingerprint == Vocabulary(other).fingerprint) == same


@given(IDS)
def test_the_fingerprint_does_not_depend_on_how_arrow_holds_the_ids(ids: list) -> None:
    wanted = Vocabulary(ids).fingerprint
    column = pa.array(ids, pa.string() if ids and isinstance(ids[0], str) else pa.int64())
    padded = pa.concat_arrays([column[:0] if not ids else column[:1], column, column[:1]])
    sliced = padded[min(1, len(ids)) : min(1, len(ids)) + len(ids)]
    assert Vocabulary(sliced).fingerprint == wanted
    assert Vocabulary(pa.chunked_array([column[:2], column[2:]])).fingerprint == wanted


def log(items: list[str]) -> Interactions:
    return Interactions.from_arrays(["ann"] * 4 + ["bob"] * 4, items * 2)


def test_fingerprints_go_from_interactions_to_candidates(tmp_path: Path) -> None:
    interactions = log(["a", "b", "c", "d"])
    split = leave_one_out(interactions)
    candidates, catalogue = sample_candidates(split, num_negatives=2), whole_catalogue(split)
    candidates.save(tmp_path / "candidates")
    wanted = interactions.fingerprint
    assert wanted == f"{interactions.user_ids.fingerprint}/{interactions.item_ids.fingerprint}"
    carriers = (
        interactions.take(torch.tensor([0])),
        split,
        split.for_rank(0, 2),
        split.with_validation_in_train(),
        candidates,
        candidates.for_rank(0, 2),
        candidates.to("cpu"),
        Candidates.load(tmp_path / "candidates"),
        catalogue,
        catalogue.for_rank(1, 2),
    )
    assert [carrier.fingerprint for carrier in carriers] == [wanted] * len(carriers)


def test_other_ids_are_named_and_plain_numbers_fit_everything(tmp_path: Path) -> None:
    ours, theirs = log(["a", "b", "c", "d"]), log(["a", "b", "c", "e"])
    split = leave_one_out(theirs)
    with pytest.raises(ValueError, match=r"the model and the split number different item ids.*item_ids"):
        check_same_ids(ours, split, "the model", "the split")
    plain = Interactions(ours.users, ours.items, None, 2, 4)
    half = Interactions(ours.users, ours.items, None, 2, 4, user_ids=ours.user_ids)
    assert plain.fingerprint is None
    for side in (plain, half):
        check_same_ids(side, split, "a", "b")
        check_same_ids(split, side, "a", "b")
    other_users = Interactions(ours.users, ours.items, None, 2, 4, user_ids=Vocabulary(["ann", "eve"]))
    with pytest.raises(ValueError, match=r"different user ids.*: retrain"):
        check_same_ids(ours, other_users, "a", "b", "retrain")
    bare = sample_candidates(leave_one_out(plain), num_negatives=2)
    bare.save(tmp_path / "bare")
    assert Candidates.load(tmp_path / "bare").fingerprint is None


def test_saved_candidates_whose_bits_flipped_do_not_load(tmp_path: Path) -> None:
    candidates = sample_candidates(leave_one_out(log(["a", "b", "c", "d"])), num_negatives=2)
    candidates.save(tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    for place in range(len(content)):
        for bit in (0, 5):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            (tmp_path / "flipped").write_bytes(flipped)
            try:
                loaded = Candidates.load(tmp_path / "flipped")
            except ValueError:
                continue
            assert loaded.fingerprint == candidates.fingerprint, (place, bit)
            assert torch.equal(loaded.items, candidates.items), (place, bit)
            assert torch.equal(loaded.users, candidates.users), (place, bit)
