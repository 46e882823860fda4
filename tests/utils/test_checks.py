from __future__ import annotations

import numpy as np
import pytest
import torch

from ncf import EASE, Interactions, ItemKNN, ItemPop, Split, leave_one_out, recommend, sample_candidates
from ncf.models.baselines import ALS
from ncf.utils.checks import free_memory, of_type, whole


@pytest.mark.parametrize("value", [3, np.int32(3), np.uint8(3)])
def test_whole_numbers_become_pythons(value: object) -> None:
    assert type(whole("x", value)) is int
    assert whole("x", value) == 3


@pytest.mark.parametrize("value", [2.0, "2", None, True, 0, -1, torch.tensor(2)])
def test_what_is_no_whole_number_of_at_least_one_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"^x = .*: give a whole number of at least 1$"):
        whole("x", value)


def test_bounds() -> None:
    assert whole("x", 0, least=0) == 0
    assert whole("seed", -5, least=None) == -5
    with pytest.raises(ValueError, match=r"^seed = 0\.5: give a whole number$"):
        whole("seed", 0.5, least=None)


def test_another_type_is_refused() -> None:
    assert of_type("x", 3, int, "count") == 3
    with pytest.raises(TypeError, match=r"^x must be int, got str: count$"):
        of_type("x", "3", int, "count")


def test_public_functions_say_what_they_want_in_place_of_what_they_got(
    interactions: Interactions, split: Split
) -> None:
    for baseline in (ItemPop, ItemKNN, EASE, ALS):
        with pytest.raises(TypeError, match=r"train must be Interactions, got Split: .* split\.train"):
            baseline(split)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"interactions must be Interactions, got Tensor"):
        leave_one_out(interactions.users)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"split must be Split, got Interactions: leave_one_out"):
        sample_candidates(interactions)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"num_negatives = 2\.5: give a whole number"):
        sample_candidates(split, num_negatives=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"k = 2\.5: give a whole number of at least 1"):
        recommend(ItemPop(split.train), [0], k=2.5)  # type: ignore[arg-type]


def test_free_memory_is_that_of_this_machine() -> None:
    free = free_memory(torch.device("cpu"))
    assert free is not None
    assert 1e6 < free < 1e15
