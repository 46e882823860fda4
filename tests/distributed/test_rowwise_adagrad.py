"""The conversion of row-wise sums between cuts of the columns, against one column at a time."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from ncf.distributed.rowwise_adagrad import ColumnSplits, average_over_columns

CUTS = st.sets(st.integers(1, 11), max_size=4)


def columns(cuts: set[int]) -> ColumnSplits:
    """Twelve columns cut at some of them."""
    return tuple((first, last - first) for first, last in itertools.pairwise([0, *sorted(cuts), 12]))


@given(rows=st.integers(1, 7), old=CUTS, new=CUTS, seed=st.integers(0, 999))
def test_each_new_part_has_the_mean_over_its_columns(
    rows: int, old: set[int], new: set[int], seed: int
) -> None:
    before, after = columns(old), columns(new)
    sums = torch.rand(len(before), rows, generator=torch.Generator().manual_seed(seed))
    by_column = torch.empty(12, rows, dtype=torch.float64)
    for part, (first, width) in enumerate(before):
        by_column[first : first + width] = sums[part].double()
    for part, (first, width) in enumerate(after):
        for begin in range(rows):  # a process may have some of the rows only
            found = average_over_columns(sums.flatten(), before, after, part * rows + begin, rows - begin)
            expected = by_column[first : first + width, begin:].mean(0)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
            if any(
                a <= first and first + width <= a + b for a, b in before
            ):  # split, or as it was: no rounding
                assert torch.equal(found, by_column[first, begin:])
