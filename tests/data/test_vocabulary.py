from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ncf.data.columns import id_column
from ncf.data.vocabulary import Vocabulary, encode_column


@given(
    st.one_of(
        st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1),
        st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1),
    )
)
def test_there_and_back_in_ascending_order(raw: list) -> None:
    numbers, ids = encode_column(id_column(raw, "raw"))
    distinct = sorted(set(raw))
    assert ids.decode(torch.arange(len(ids))) == distinct
    assert numbers.tolist() == [distinct.index(value) for value in raw]
    assert ids.encode(raw).tolist() == numbers.tolist()
    assert ids.decode(numbers) == raw


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
