"""Scores of many candidates per user, fast: what depends on a user or an item alone is worked out once.

The first layer of the MLP is separable, W·[u; v] = Wᵤu + Wᵥv, and the head's GMF weights fold into the user
rows. A pair then costs an add, a ReLU and the small layers, in place of the whole network.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ncf.kernels.tables import ScoringTables

_BLOCK_BYTES = 1 << 20  # the intermediate results of a block should stay in the second-level caches


class Scorer:
    """A frozen view of a model for ranking.

    Args:
        tables: the model's parameters laid out for ranking; see `ncf.recommender.Recommender.scoring_tables`.

    Example::

        >>> import torch
        >>> from ncf import NeuMF
        >>> scorer = NeuMF(num_users=10, num_items=20).scorer()
        >>> scorer.score(torch.tensor([0, 3]), torch.tensor([[1, 2, 3], [4, 5, -1]])).isinf()
        tensor([[False, False, False],
                [False, False,  True]])
    """

    def __init__(self, tables: ScoringTables) -> None:
        self.tables = tables.detach()
        self._width = sum(t.shape[1] for t in (tables.item_half, tables.item_gmf) if t is not None)

    @torch.no_grad()
    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        """Scores of each user's candidates; ids are not checked here, `Recommender.score` does that.

        Args:
            users: ``[U]``, int64.
            candidates: items, ``[U, C]``, int64; ``-1`` is padding. An expanded list (the same for every user,
                ``stride(0) == 0``) costs no gather.

        Returns:
            Scores, ``[U, C]``; padding has ``-inf``.
        """
        shape = candidates.shape
        scores = torch.empty(shape, dtype=self.tables.bias.dtype, device=self.tables.bias.device)
        if scores.numel() == 0:
            return scores
        if scores.is_cuda:
            from ncf.kernels import score_candidates

            return score_candidates(self.tables, users, candidates)
        shared = candidates.stride(0) == 0 and len(users) > 1
        items = self._gather(candidates[:1]) if shared else None  # [1, C, ·]
        rows = max(1, _BLOCK_BYTES // (4 * max(1, self._width) * shape[1]))
        for start in range(0, len(users), rows):
            block = slice(start, start + rows)
            of_items = items if items is not None else self._gather(candidates[block])
            self._score_block(users[block], of_items, out=scores[block])
        if bool((candidates[:1] if shared else candidates).min() < 0):
            scores.masked_fill_(candidates < 0, -torch.inf)
        return scores

    def _gather(self, candidates: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The item rows of a block, ``[b, C, H]``, ``[b, C, F]`` and ``[b, C]``."""
        t = self.tables
        candidates = candidates.clamp(min=0)
        return (
            None if t.item_half is None else F.embedding(candidates, t.item_half),
            None if t.item_gmf is None else F.embedding(candidates, t.item_gmf),
            None if t.item_bias is None else t.item_bias[candidates],
        )

    def _score_block(
        self, users: Tensor, items: tuple[Tensor | None, Tensor | None, Tensor | None], out: Tensor
    ) -> None:
        t = self.tables
        item_half, item_gmf, item_bias = items
        out.copy_(t.bias)
        if t.user_bias is not None:
            out += t.user_bias[users][:, None]
        if item_bias is not None:
            out += item_bias
        if t.user_gmf is not None and item_gmf is not None:
            user_gmf = t.user_gmf[users]  # [b, F]
            if len(item_gmf) == 1:
                out.addmm_(user_gmf, item_gmf[0].T)
            else:
                out += torch.bmm(item_gmf, user_gmf[:, :, None])[:, :, 0]
        if t.user_half is not None and item_half is not None and t.head_mlp is not None:
            hidden = (t.user_half[users][:, None] + item_half).relu_()  # [b, C, H]
            hidden = hidden.flatten(0, 1)
            for weight, bias in t.layers:
                hidden = torch.addmm(bias, hidden, weight.T).relu_()
            out += (hidden @ t.head_mlp).view(out.shape)
