"""Scores of many candidates per user, fast: what depends on a user or an item alone is worked out once.

The first layer of the MLP is separable, W·[u; v] = Wᵤu + Wᵥv, and the head's GMF weights fold into the user
rows. A pair then costs an add, a ReLU and the small layers, in place of the whole network.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ncf.kernels import ScoringTables, score_candidates
from ncf.kernels.native_scoring import PackedTables, fits


class Scorer:
    """A frozen view of a model for ranking.

    On a CPU a kernel in C takes a few pairs at a time through the whole network (`ncf.kernels`); elsewhere, in
    other types than fp32, and where ncf was installed without a C compiler, `ncf.kernels.score_candidates` does.

    Args:
        tables: the model's parameters laid out for ranking; see `ncf.models.base.EmbeddingModel.scoring_tables`. They
            are copied.

    Example::

        >>> import torch
        >>> from ncf import NeuMF
        >>> scorer = NeuMF(num_users=10, num_items=20).scorer()
        >>> scorer.score(torch.tensor([0, 3]), torch.tensor([[1, 2, 3], [4, 5, -1]])).isinf()
        tensor([[False, False, False],
                [False, False,  True]])
    """

    def __init__(self, tables: ScoringTables) -> None:
        self._packed = PackedTables(tables) if fits(tables) else None
        # Of one list for all users, the product alone is a matrix product, faster still.
        plain = self._packed is None or tables.item_hidden is None
        self._tables = tables.copied() if plain else None

    @torch.no_grad()
    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        """Scores of each user's candidates.

        Args:
            users: ``[U]``, int64.
            candidates: items, ``[U, C]``, int64; ``-1`` is padding. An expanded list is the same for every user
                (``stride(0) == 0``).

        Returns:
            Scores, ``[U, C]``; padding has ``-inf``.

        Raises:
            IndexError: on a CPU, if an id is unknown; see `EmbeddingModel.score` for ids that were not checked.
        """
        shared = len(users) > 1 and candidates.stride(0) == 0
        if self._packed is not None and (self._tables is None or not shared):
            return self._packed.score(users, candidates)
        assert self._tables is not None
        return score_candidates(self._tables, users, candidates)

    def ranks(self, users: Tensor, positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor] | None:
        """Ranks of held-out items, where no table of scores is needed for them; else ``None``.

        Args and results are those of `PackedTables.ranks`. ``None`` as well if an id is unknown or a
        score not a number.
        """
        return None if self._packed is None else self._packed.ranks(users, positives, negatives)

    def catalogue_ranks(
        self, users: Tensor, positives: Tensor, num_items: int, seen_offsets: Tensor, seen_items: Tensor
    ) -> Tensor | None:
        """Ranks in the whole catalogue, as `ranks`; see `ncf.kernels.native_scoring.PackedTables.catalogue_ranks`."""
        if self._packed is None or self._tables is not None:
            return None
        return self._packed.catalogue_ranks(users, positives, num_items, seen_offsets, seen_items)
