from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ncf import GMF, HashedVocabulary, Interactions, Recommender, Trainer, extend
from ncf.data.columns import id_column
from ncf.data.vocabulary import Vocabulary, encode_column

IDS = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1),
    st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1),
)


@given(IDS)
def test_there_and_back_in_ascending_order(raw: list) -> None:
    numbers, ids = encode_column(id_column(raw, "raw"))
    distinct = sorted(set(raw))
    assert ids.decode(torch.arange(len(ids))) == distinct
    assert numbers.tolist() == [distinct.index(value) for value in raw]
    assert ids.encode(raw).tolist() == numbers.tolist()
    assert ids.decode(numbers) == raw


@given(IDS.map(dict.fromkeys).map(list), st.integers(0, 3))
def test_a_vocabulary_is_its_arrays(raw: list, start: int) -> None:
    ids = Vocabulary(id_column(raw, "raw")[start:])
    assert ids.ascends == (list(ids) == sorted(ids))
    for again in (Vocabulary.from_arrays(*ids.arrays), pickle.loads(pickle.dumps(ids))):
        assert list(again) == ids.values.to_pylist() == again.values.to_pylist() == raw[start:]
        assert again.values.equals(ids.values)
        assert again.fingerprint == ids.fingerprint


def test_unknown_ids_are_named() -> None:
    words = Vocabulary(["b", "a"])
    assert words.encode(["a", "b", "a"]).tolist() == [1, 0, 1]
    assert words.encode([]).tolist() == []
    with pytest.raises(ValueError, match=r"raw\[1\] = 'z' is not among the 2 known ids"):
        words.encode(["a", "z"])
    with pytest.raises(ValueError, match=r"users\[0\] = 7 is not among"):
        Vocabulary([1, 2]).encode(torch.tensor([7]), "users")


def test_numbers_and_strings_are_not_the_same() -> None:
    with pytest.raises(ValueError, match="raw holds strings, the vocabulary whole numbers"):
        Vocabulary([1, 2]).encode(["1"])
    with pytest.raises(ValueError, match="raw holds whole numbers, the vocabulary strings"):
        Vocabulary(["1", "2"]).encode([1])


@pytest.mark.parametrize("wrong", [2, -1])
def test_numbers_that_stand_for_nothing_are_named(wrong: int) -> None:
    with pytest.raises(
        ValueError, match=rf"ids\[1\] = {wrong} is out of range for the number of known ids = 2"
    ):
        Vocabulary(["b", "a"]).decode(torch.tensor([0, wrong]))


def test_an_id_twice_or_missing() -> None:
    with pytest.raises(ValueError, match="'b' more than once"):
        Vocabulary(["a", "b", "b"])
    with pytest.raises(ValueError, match=r"values\[1\] is missing"):
        Vocabulary(["a", None])


def test_restrict_keeps_the_given_order() -> None:
    assert Vocabulary([10, 20, 30]).restrict(torch.tensor([2, 0])).values.to_pylist() == [30, 10]


def test_a_vocabulary_says_how_much_of_what_it_holds() -> None:
    assert repr(Vocabulary(["a", "b"])) == "Vocabulary(2 strings)"
    assert repr(Vocabulary([7])) == "Vocabulary(1 whole numbers)"


def test_a_vocabulary_iterates_answers_in_and_is_a_column() -> None:
    for raw in (["b", "a", "é"], [7, -3, 2**40]):
        ids = Vocabulary(raw)
        assert list(ids) == raw
        assert all(one in ids for one in raw)
        assert ids.encode(ids).tolist() == [0, 1, 2]
        assert Vocabulary(ids).fingerprint == ids.fingerprint
        assert np.asarray(ids).tolist() == raw
        for other in ("z", 8, None, True, 7.0, 2**70, "\ud800", [1]):
            assert other not in ids
    assert np.int64(7) in Vocabulary([7])


def test_hashed_ids_have_the_row_of_their_hash_and_collisions_are_counted() -> None:
    hashed, names = HashedVocabulary(7), [f"v{number}" for number in range(20)]
    expected = [
        int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") % 7 for name in names
    ]
    assert hashed.encode(names).tolist() == expected
    assert hashed.encode(names * 2).tolist() == expected * 2
    assert hashed.encode([5, -3]).tolist() == hashed.encode(["5", "-3"]).tolist()
    assert hashed.shared(names * 2) == sum(expected.count(row) > 1 for row in expected)
    log = Interactions.from_arrays([*names, None], list("ab") * 10 + ["a"], missing="drop", user_ids=hashed)
    assert (log.num_users, log.shared, log.users.tolist()) == (7, hashed.shared(names), sorted_pairs(log))
    assert f"{log.shared} users share a row" in repr(log)
    assert log.take(torch.tensor([0])).shared == 0


def sorted_pairs(log: Interactions) -> list[int]:
    """The rows of each pair once, in the order of its last interaction."""
    rows = {}
    for number in range(20):
        row = HashedVocabulary(7).encode([f"v{number}"]).tolist()[0]
        rows.pop((row, number % 2), None)
        rows[row, number % 2] = row
    assert len(rows) == len(log)
    return list(rows.values())


def test_hashed_ids_are_no_list() -> None:
    hashed = HashedVocabulary(7)
    assert (len(hashed), "ann" in hashed, 3 in hashed, None in hashed) == (7, True, True, False)
    assert repr(hashed) == "HashedVocabulary(7 rows)"
    assert hashed.fingerprint == HashedVocabulary(7).fingerprint != HashedVocabulary(8).fingerprint
    for use in (
        lambda: hashed.decode(torch.tensor([1])),
        lambda: list(hashed),
        lambda: hashed.restrict(torch.tensor([1])),
    ):
        with pytest.raises(ValueError, match="hashed ids are not kept"):
            use()
    with pytest.raises(ValueError, match="rows = 0"):
        HashedVocabulary(0)
    with pytest.raises(ValueError, match="hash users only"):
        Interactions.from_arrays(["ann"], ["tea"], item_ids=hashed)


def test_a_model_of_hashed_users_is_saved_grown_and_asked(tmp_path: Path) -> None:
    hashed, names = HashedVocabulary(16), [f"v{number}" for number in range(30)]
    log = Interactions.from_arrays(names, [f"i{number % 6}" for number in range(30)], user_ids=hashed)
    model = GMF(16, 6, init_std=0.5)
    Trainer(model, epochs=1, selection="last", progress=False).fit(log)
    recommender = Recommender(model, seen=log)
    recommender.save(tmp_path)
    loaded = Recommender.load(tmp_path)
    assert isinstance(loaded.model.user_ids, HashedVocabulary)
    asked = ["v7", "never seen"]
    lists = recommender.recommend(asked, k=3)
    assert lists.items == loaded.recommend(asked, k=3).items
    assert (lists.users, lists.sources) == (asked, ["model", "model"])
    rows = hashed.encode(names)
    seen = {f"i{number % 6}" for number in range(30) if int(rows[number]) == int(rows[7])}
    assert set(loaded.history("v7")) == seen
    assert not seen & set(recommender.recommend("v7", k=6).items[0])
    assert loaded.recommend(loaded.some_user(), k=1).sources == ["model"]
    with pytest.raises(ValueError, match="hashed ids are not kept"):
        loaded.recommend()
    week = Interactions.from_arrays(["new", "v7"], ["i1", "i9"], user_ids=hashed)
    grown = extend(loaded.model, week).model
    assert (grown.num_users, grown.num_items) == (16, 7)
    assert torch.equal(grown.score(rows, torch.arange(6)), model.score(rows, torch.arange(6)))
    for other in (HashedVocabulary(17), None):
        with pytest.raises(ValueError, match="hashed ids are not kept"):
            extend(loaded.model, Interactions.from_arrays(["new"], ["i1"], user_ids=other))
