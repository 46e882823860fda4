from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ncf import HashedVocabulary, Vocabulary
from ncf.inference.raw_ids import RawIds

VOCABULARIES = {
    "none": None,
    "numbers": Vocabulary(range(100, 40, -1)),
    "strings": Vocabulary([f"ü{n}" for n in range(60)]),
    "hashed": HashedVocabulary(60),
}


@pytest.mark.parametrize("name", VOCABULARIES)
def test_one_id_alone_is_found_and_written_as_among_many(name: str) -> None:
    known = RawIds(SimpleNamespace(user_ids=VOCABULARIES[name], num_users=60), None, "user")
    text = name in ("strings", "hashed")
    raw: list[Any] = ["ü7", "ü59", "", "z"] if text else [70, 59, -1, 2**63 - 1, -(2**63)]
    together = known.find(raw, "users").tolist()
    assert together == [number for one in raw for number in known.find([one], "users").tolist()]
    assert together == [int(known.find(one, "users")) for one in raw]
    assert name == "hashed" or {number < 0 for number in together} == {True, False}
    if name != "hashed":
        numbers = torch.arange(60)
        assert known.decode(numbers) == [raw for n in numbers for raw in known.decode(n[None])]


@pytest.mark.parametrize(
    ("name", "raw", "said"),
    [
        ("none", "a", "users holds strings, but there is no vocabulary"),
        ("numbers", "a", "users holds strings, the vocabulary whole numbers"),
        ("strings", 7, "users holds whole numbers, the vocabulary strings"),
        ("numbers", 2**63, "users cannot be read as one column"),
        ("strings", "\ud800", "users cannot be read as one column"),
        ("numbers", True, "users"),
    ],
)
def test_one_id_of_another_kind_is_refused(name: str, raw: object, said: str) -> None:
    known = RawIds(SimpleNamespace(user_ids=VOCABULARIES[name], num_users=60), None, "user")
    for given in (raw, [raw]):
        with pytest.raises(ValueError, match=said):
            known.find(given, "users")
