"""Popularity: the same list for everyone."""

from __future__ import annotations

import torch
from torch import Tensor

from ncf.data.interactions import Interactions
from ncf.models.baselines.base import Baseline


class ItemPop(Baseline):
    """Rank by popularity: the score of an item is its number of training interactions, for every user.

    Args:
        train: the training interactions.

    Example::

        >>> import torch
        >>> from ncf import Interactions, ItemPop
        >>> train = Interactions.from_arrays([0, 1, 2, 2], [5, 5, 5, 9])
        >>> ItemPop(train).score(torch.tensor([0]), torch.tensor([[0, 1]]))
        tensor([[3., 1.]])
    """

    popularity: Tensor  # [num_items]

    def __init__(self, train: Interactions) -> None:
        super().__init__(train)
        counts = torch.bincount(train.items, minlength=train.num_items).to(torch.float32)
        self.register_buffer("popularity", counts)

    def _shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"popularity": ((self.num_items,), torch.float32)}

    def _score(self, users: Tensor, candidates: Tensor) -> Tensor:
        return self.popularity[candidates]
