"""Scores of many candidates per user, fast: what depends on a user or an item alone is worked out once.

The first layer of the MLP is separable, W·[u; v] = Wᵤu + Wᵥv, and the head's GMF weights fold into the user
rows. A pair then costs an add, a ReLU and the small layers, in place of the whole network.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ncf.kernels import ScoringTables, score_candidates

# Both measured: a block's intermediate results should stay in the caches.
_BLOCK_BYTES = 2 << 20
_THIN = 48  # input width of a layer


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
        self.tables = tables._map(lambda table: table.detach().clone())
        halves = [t for t in (tables.item_half, tables.item_gmf) if t is not None]
        # One row per item, so that a candidate costs one gather: [I, H + F]
        self._items = torch.cat(halves, dim=1).detach() if halves else None
        self._width = 0 if tables.item_half is None else tables.item_half.shape[1]

    @torch.no_grad()
    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        """Scores of each user's candidates; ids are not checked here, `Recommender.score` does that.

        Args:
            users: ``[U]``, int64.
            candidates: items, ``[U, C]``, int64; ``-1`` is padding. An expanded list (the same for every user,
                ``stride(0) == 0``) is looked up once.

        Returns:
            Scores, ``[U, C]``; padding has ``-inf``.
        """
        if self.tables.device.type != "cpu":
            return score_candidates(self.tables, users, candidates)
        scores = torch.empty(candidates.shape, dtype=self.tables.dtype)
        if scores.numel() == 0:
            return scores
        shared = len(users) > 1 and candidates.stride(0) == 0
        distinct = candidates[:1] if shared else candidates
        padded = int(distinct.min()) < 0
        if padded:
            distinct = distinct.clamp(min=0)
        width = 1 if self._items is None else self._items.shape[1]
        pairs = max(1, _BLOCK_BYTES // (4 * width))
        if not shared:
            for block in _blocks(len(users), max(1, pairs // candidates.shape[1])):
                self._score_block(users[block], self._lookup(distinct[block]), out=scores[block])
        else:  # one list for all: blocks of items too, since a list may be the whole catalogue
            for some in _blocks(candidates.shape[1], pairs):
                of_items = self._lookup(distinct[:, some])
                for block in _blocks(len(users), max(1, pairs // candidates.shape[1])):
                    self._score_block(users[block], of_items, out=scores[block, some])
        if padded:
            scores.masked_fill_(candidates < 0, -torch.inf)
        return scores

    def _lookup(self, items: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The rows ``[b, C, H + F]`` and the biases ``[b, C]`` of a block of items."""
        bias = self.tables.item_bias
        return (
            None if self._items is None else F.embedding(items, self._items),
            None if bias is None else bias[items],
        )

    def _score_block(self, users: Tensor, items: tuple[Tensor | None, Tensor | None], out: Tensor) -> None:
        t, (rows, item_bias) = self.tables, items
        out.copy_(t.bias if t.user_bias is None else (t.user_bias[users] + t.bias)[:, None])
        if item_bias is not None:
            out += item_bias
        if t.user_gmf is not None and rows is not None:
            user, item = t.user_gmf[users], rows[..., self._width :]  # [b, F], [b or 1, C, F]
            if len(item) == 1:
                out.addmm_(user, item[0].T)
            else:  # a row times a matrix: three times faster than the matrix times a column
                out[:, None].baddbmm_(user[:, None], item.transpose(1, 2))
        if t.user_half is not None and t.head_mlp is not None and rows is not None:
            hidden = (rows[..., : self._width] + t.user_half[users][:, None]).relu_()  # [b, C, H]
            hidden = hidden.flatten(0, 1)  # [b · C, H]
            for weight, bias in t.layers:
                if weight.shape[1] < _THIN:  # W · Xᵀ: for thin layers several times faster than X · Wᵀ
                    hidden = torch.addmm(bias[:, None], weight, hidden.T).relu_().T
                else:
                    hidden = torch.addmm(bias, hidden, weight.T).relu_()
            out += torch.mv(hidden, t.head_mlp).view(out.shape)


def _blocks(size: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, size, step))
