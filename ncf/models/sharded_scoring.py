"""Scores from a model whose tables are spread over processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ncf.models.scoring import Scorer


class CollectiveScorer:
    """Scores for a sharded model, whose rows are looked up call by call.

    Every process must call it as often as the others, each with its own users and candidates: any number of
    them, or none. No process ever holds more rows than those of one call.

    Args:
        model: a model that `ncf.distributed.sharding.shard` has sharded.

    Example::

        >>> import torch
        >>> from ncf import GMF
        >>> from ncf.models.sharded_scoring import CollectiveScorer
        >>> from ncf.distributed.sharding import shard
        >>> sharded = shard(GMF(10, 20, device="meta"), "table_wise", verbose=False)  # a world of one
        >>> CollectiveScorer(sharded.module).score(torch.tensor([3]), torch.tensor([[7, 8, -1]])).isinf()
        tensor([[False, False,  True]])
    """

    collective = True

    def __init__(self, model: Any) -> None:
        self.model = model

    @torch.no_grad()
    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        """See `Scorer.score`: ``[U]`` and ``[U, C]`` to ``[U, C]``; each distinct item is looked up once."""
        shared = len(users) > 1 and candidates.stride(0) == 0
        listed = candidates[:1] if shared else candidates
        items, places = listed.unique(return_inverse=True)  # ascending: padding comes first
        padding = int(len(items) > 0 and int(items[0]) < 0)
        rows = self.model.embeddings.collective_lookup(users, items[padding:])
        scorer = Scorer(self.model.scoring_tables(rows))
        places = (places.view(listed.shape) - padding).expand(candidates.shape)
        return scorer.score(torch.arange(len(users), dtype=torch.int64, device=users.device), places)
