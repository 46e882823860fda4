"""The kernels' references: the same signatures, and the formulas written as they read."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ncf.kernels.scoring_tables import ScoringTables


def score_reference(tables: ScoringTables, users: Tensor, candidates: Tensor) -> Tensor:
    """Score each user's candidates, one pair at a time in meaning and all at once in memory.

    Args:
        tables: the model's parameters laid out for ranking.
        users: ``[U]``, int64.
        candidates: items, ``[U, C]``, or ``[C]`` for one list for all users, int64; a negative one is padding.

    Returns:
        Scores, ``[U, C]``, fp32 or fp64 (`ScoringTables.score_dtype`); padding has ``-inf``. Half-precision
        tables are read as they are and summed in fp32.

    Example::

        >>> import torch
        >>> from ncf.kernels.reference import score_reference
        >>> from ncf.kernels.scoring_tables import ScoringTables
        >>> tables = ScoringTables(item_bias=torch.tensor([0.5, 2.0]), bias=torch.tensor(1.0))
        >>> score_reference(tables, torch.tensor([0]), torch.tensor([[1, 0, -1]]))
        tensor([[3.0000, 1.5000,   -inf]])
    """
    t = tables.to(tables.score_dtype)
    if candidates.dim() == 1:
        candidates = candidates.expand(len(users), -1)
    items = candidates.clamp(min=0)
    scores = t.bias.reshape(1, 1).expand(candidates.shape)
    if t.user_bias is not None:
        scores = scores + t.user_bias[users][:, None]
    if t.item_bias is not None:
        scores = scores + t.item_bias[items]
    if t.user_gmf is not None and t.item_gmf is not None:
        scores = scores + (t.user_gmf[users][:, None] * t.item_gmf[items]).sum(-1)  # [U, C]
    if t.user_hidden is not None and t.item_hidden is not None and t.mlp_head is not None:
        hidden = F.relu(t.user_hidden[users][:, None] + t.item_hidden[items])  # [U, C, H]
        for weight, bias in t.layers:
            hidden = F.relu(F.linear(hidden, weight, bias))  # [U, C, H_out]
        scores = scores + hidden @ t.mlp_head
    return scores.masked_fill(candidates < 0, -torch.inf)


def lookup_reference(
    users: Tensor,
    items: Tensor,
    user_gmf: Tensor | None,
    item_gmf: Tensor | None,
    user_mlp: Tensor | None,
    item_mlp: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    factors: int | None = None,
    summed: int = 0,
    sparse: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """Compute what `ncf.kernels.fused_lookup` does, operation by operation.

    Args:
        users: ``[B]``, int64.
        items: ``[B]`` or ``[B, C]``, int64.
        user_gmf: ``[num_users, W]``.
        item_gmf: ``[num_items, W]``.
        user_mlp: ``[num_users, D]``.
        item_mlp: ``[num_items, D]``.
        weight: ``[H, 2 D]``.
        bias: ``[H]``.
        factors: see `fused_lookup`, as all others.
        summed: how many of them are added.
        sparse: gradients of tables are of the rows looked up alone.

    Returns:
        As `fused_lookup`.

    Example::

        >>> import torch
        >>> from ncf.kernels import lookup_reference
        >>> users, items = torch.tensor([0]), torch.tensor([[1, 0]])
        >>> rows, weight = torch.tensor([[2.0], [3.0]]), torch.tensor([[1.0, -1.0]])
        >>> lookup_reference(users, items, rows, rows, rows, rows, weight, torch.zeros(1))
        (tensor([[[6.],
                 [4.]]]), tensor([[[0.],
                 [0.]]]))
    """
    users = users[:, None] if items.dim() == 2 else users
    product = hidden = None
    if user_gmf is not None and item_gmf is not None:
        sides = (F.embedding(ids, t, sparse=sparse) for ids, t in ((users, user_gmf), (items, item_gmf)))
        of_user, of_item = (rows[..., :factors] for rows in sides)
        product = of_user * of_item  # [B, F] or [B, C, F]
        if summed:
            product = torch.cat([product[..., :-summed], (of_user + of_item)[..., -summed:]], dim=-1)
    if user_mlp is not None and item_mlp is not None and weight is not None and bias is not None:
        of_user, of_item = weight.chunk(2, dim=1)  # [H, D] each
        halves = (
            F.linear(F.embedding(users, user_mlp, sparse=sparse), of_user, bias),
            F.linear(F.embedding(items, item_mlp, sparse=sparse), of_item),
        )
        hidden = F.relu(halves[0] + halves[1])  # [B, H] or [B, C, H]
    return product, hidden


def num_at_least(scores: Tensor, own: Tensor) -> Tensor:
    """1 where a score, ``[U, C]``, is at least the user's own, ``[U, 1]``, else 0; floats, whose sums are fast."""
    exact = torch.float32 if scores.shape[1] < 1 << 24 else torch.float64
    return torch.ge(scores, own, out=torch.empty(scores.shape, dtype=exact, device=scores.device))


def distinct_negatives(positives: Tensor, negatives: Tensor) -> Tensor | None:
    """Return the negatives that count, ``[U, C]``, bool: distinct, real, not the positive. ``None`` if all do."""
    if negatives.is_cpu:  # numpy sorts short rows ten times faster; a wrapped id can only look like a repeat
        ordered = torch.from_numpy(np.sort(negatives.to(torch.int32).numpy(), axis=1))
    else:
        ordered = negatives.sort(dim=1).values
    own = negatives == positives[:, None]
    if not bool((ordered[:, 1:] == ordered[:, :-1]).any() | (ordered[:, :1] < 0).any() | own.any()):
        return None
    ordered, order = negatives.sort(dim=1, stable=True)
    first = torch.ones_like(own)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return torch.empty_like(own).scatter_(1, order, first) & (negatives >= 0) & ~own


def largest_k(scores: Tensor, items: Tensor, k: int, left_out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Select the items with the highest scores; of equal ones the earlier.

    Args:
        scores: ``[U, C]``, none of them NaN but those left out.
        items: ``[C]``, int64.
        k: how many to select.
        left_out: ``[U, C]``, bool: not to be selected.

    Returns:
        Scores and items, ``[U, min(k, C)]``, best first; whole numbers as float64. Where there are fewer items, the
        scores end with ``-inf`` and the items with -1.
    """
    k = min(k, len(items))
    lowest = -torch.inf if scores.is_floating_point() else torch.iinfo(scores.dtype).min
    if left_out is not None:
        scores = scores.masked_fill(left_out, lowest)
    values, places = scores.topk(k, dim=1)  # of equal scores, any
    places, by_place = places.sort(dim=1)
    values, by_value = values.gather(1, by_place).sort(dim=1, descending=True, stable=True)
    places = places.gather(1, by_value)
    unclear = (scores >= values[:, -1:]).sum(1) != k
    if left_out is not None:
        unclear |= (values[:, -1] == lowest) & left_out.any(1)
    chosen = items[places]
    if not values.is_floating_point():
        values = values.to(torch.float64)
    for row in unclear.nonzero()[:, 0].tolist():  # a tie across the end of the list, or too few items
        free = torch.arange(len(items), dtype=torch.int64, device=items.device)
        free = free if left_out is None else free[~left_out[row]]
        best = scores[row, free].sort(descending=True, stable=True).indices[:k]
        values[row], chosen[row] = -torch.inf, -1
        values[row, : len(best)] = scores[row, free[best]].to(values.dtype)
        chosen[row, : len(best)] = items[free[best]]
    return values, chosen


def merge_largest(best: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    """Merge two results of `largest_k`, the first from earlier items, into that of both."""
    scores, items = (torch.cat(pair, dim=1) for pair in zip(best, other, strict=True))
    order = scores.sort(dim=1, descending=True, stable=True).indices
    order = order.gather(1, (items.gather(1, order) < 0).sort(dim=1, stable=True).indices[:, :k])
    return scores.gather(1, order), items.gather(1, order)
