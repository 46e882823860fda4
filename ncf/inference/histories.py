"""Histories as they are given: lists of raw ids or numbers, or interactions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ncf.data.columns import id_column, kind, to_tensor
from ncf.data.interactions import Interactions
from ncf.data.vocabulary import Vocabulary
from ncf.utils.checks import check_ids
from ncf.utils.jagged import lengths_to_offsets


def encoded_histories(
    histories: Interactions | Sequence[Any], vocabulary: Vocabulary | None, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Offsets and distinct ids of each history, ascending, and how many were unknown."""
    if isinstance(histories, Interactions):
        offsets, ids = histories.csr()
        theirs: Vocabulary | None = histories.item_ids
        if vocabulary is not None and theirs is not None and vocabulary is not theirs:
            ids = vocabulary.find(theirs.values, "histories")[ids]
        else:
            check_ids(ids, "histories.items", size, "the model's num_items")
        lengths = offsets.diff()
    else:
        lists = hasattr(histories, "__len__") and not isinstance(histories, str | Mapping)
        if not lists or not all(hasattr(one, "__len__") and not isinstance(one, str) for one in histories):
            raise ValueError("histories must be one list of ids for each user: give [[id, id], ...]")
        if len(histories) == 1 and isinstance(histories[0], Tensor):
            check_ids(histories[0], "histories", size, "the number of ids of the model")
            ids = histories[0].cpu().unique()
            offsets = torch.tensor([0, len(ids)], dtype=torch.int64, device="cpu")
            return offsets, ids, torch.zeros(1, dtype=torch.int64, device="cpu")
        lengths = torch.tensor([len(one) for one in histories], dtype=torch.int64, device="cpu")
        if all(isinstance(one, Tensor) for one in histories):
            ids = torch.cat([one.cpu() for one in histories]) if len(lengths) else lengths
            check_ids(ids, "histories", size, "the number of ids of the model")
        else:
            column = id_column([raw for one in histories for raw in one], "histories")
            if vocabulary is not None:
                ids = vocabulary.find(column, "histories")
            elif len(column) and kind(column) == "strings":
                raise ValueError(
                    f"histories holds strings, but the model has no raw ids: give numbers below {size}"
                )
            else:
                ids = to_tensor(column)
                ids = ids.where((ids >= 0) & (ids < size), -1)
    users = torch.arange(len(lengths), dtype=torch.int64, device="cpu").repeat_interleave(lengths)
    known = ids >= 0
    unknown = users[~known].bincount(minlength=len(lengths))
    keys = (users[known] * size + ids[known]).unique()
    return lengths_to_offsets((keys // size).bincount(minlength=len(lengths))), keys % size, unknown
