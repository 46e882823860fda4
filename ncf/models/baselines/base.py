"""What the baselines share: the vocabularies, the check of ids, and padding."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ncf.data.interactions import Interactions
from ncf.utils.checks import check_ids, of_type

_SCORES_PER_BLOCK = 1 << 22  # 16 MB of float32


def training_interactions(train: Interactions) -> Interactions:
    """What a baseline was given, if it can learn from it.

    Example::

        >>> from ncf import Interactions, leave_one_out
        >>> from ncf.models.baselines.base import training_interactions
        >>> training_interactions(leave_one_out(Interactions.from_arrays([0, 0, 0], [5, 6, 7])))
        Traceback (most recent call last):
        TypeError: train must be Interactions, got Split: a split has them as split.train
    """
    return of_type("train", train, Interactions, "a split has them as split.train")


class Baseline:
    """What the baselines share: the vocabularies, the check of ids, and padding.

    Args:
        train: the training interactions.

    Example::

        >>> import torch
        >>> from ncf import Interactions
        >>> from ncf.models.baselines.base import Baseline
        >>> class ByNumber(Baseline):
        ...     def _score(self, users, candidates):
        ...         return candidates.float()
        >>> model = ByNumber(Interactions.from_arrays([0, 1], [0, 1]))
        >>> model.score(torch.tensor([1]), torch.tensor([[1, 0, -1]]))
        tensor([[1., 0., -inf]])
    """

    def __init__(self, train: Interactions) -> None:
        train = training_interactions(train)
        self.num_users, self.num_items = train.num_users, train.num_items
        self.user_ids, self.item_ids = train.user_ids, train.item_ids
        self.device = train.items.device

    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        """Score each user's candidates.

        Args:
            users: ``[U]``, int64.
            candidates: items, ``[U, C]``, int64; ``-1`` is padding. An expanded list, the same for every
                user, is looked up once.

        Returns:
            Scores, ``[U, C]``, float32; padding has ``-inf``.

        Raises:
            ValueError: if an id is out of range, or the shapes do not fit.
        """
        shared = candidates.dim() == 2 and len(candidates) > 1 and candidates.stride(0) == 0
        listed = candidates[:1] if shared else candidates
        self._check(users, candidates)
        if not candidates.numel():
            return torch.empty(candidates.shape, dtype=torch.float32, device=self.device)
        scores = self._score(users, listed.clamp(min=0)).expand(candidates.shape).contiguous()
        return scores.masked_fill(listed < 0, -torch.inf) if bool((listed < 0).any()) else scores

    def _score(self, users: Tensor, candidates: Tensor) -> Tensor:
        """Scores of real items, ``[U, C]``; where ``candidates`` has one row for all, so may the result."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.num_users} users, {self.num_items} items)"

    def _check(self, users: Tensor, candidates: Tensor) -> None:
        if users.dim() != 1 or candidates.dim() != 2 or len(users) != len(candidates):
            raise ValueError(
                f"candidates {tuple(candidates.shape)} must be [U, C] for users {tuple(users.shape)}"
            )
        check_ids(users, "users", self.num_users, "num_users")
        check_ids(candidates, "candidates", self.num_items, "num_items", lowest=-1)


def blocks_of(rows: int, width: int) -> Iterator[slice]:
    """Cut rows so that a block of ``width`` columns stays small.

    Example::

        >>> from ncf.models.baselines.base import blocks_of
        >>> list(blocks_of(rows=5, width=1 << 21))
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = max(1, _SCORES_PER_BLOCK // max(1, width))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
