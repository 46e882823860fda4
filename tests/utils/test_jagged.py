from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from ncf.utils.jagged import lengths_to_offsets, select_lists


@given(st.data(), st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=6))
def test_lists_are_those_of_python(data: st.DataObject, lists: list[list[int]]) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=8)) if lists else []
    offsets = lengths_to_offsets(torch.tensor([len(each) for each in lists], dtype=torch.int64))
    values = torch.tensor([value for each in lists for value in each], dtype=torch.int64)
    assert [values[a:b].tolist() for a, b in pairwise(offsets)] == lists
    taken, found = select_lists(offsets, values, torch.tensor(chosen, dtype=torch.int64))
    assert [found[a:b].tolist() for a, b in pairwise(taken)] == [lists[n] for n in chosen]
    assert len(found) == taken[-1]
