"""What every scoring path is held against: the formula of `ScoringTables`, written as it reads."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ncf.kernels.tables import ScoringTables


def score_reference(tables: ScoringTables, users: Tensor, candidates: Tensor) -> Tensor:
    """Score each user's candidates, one pair at a time in meaning and all at once in memory.

    Args:
        tables: the model's parameters laid out for ranking.
        users: ``[U]``, int64.
        candidates: items, ``[U, C]``, int64; a negative one is padding.

    Returns:
        Scores, ``[U, C]``, fp32 or fp64 (`ScoringTables.score_dtype`); padding has ``-inf``. Half-precision
        tables are read as they are and summed in fp32.

    Example::

        >>> import torch
        >>> from ncf.kernels.reference import score_reference
        >>> from ncf.kernels.tables import ScoringTables
        >>> tables = ScoringTables(item_bias=torch.tensor([0.5, 2.0]), bias=torch.tensor(1.0))
        >>> score_reference(tables, torch.tensor([0]), torch.tensor([[1, 0, -1]]))
        tensor([[3.0000, 1.5000,   -inf]])
    """
    t = tables.to(tables.score_dtype)
    items = candidates.clamp(min=0)
    scores = t.bias.reshape(1, 1).expand(candidates.shape)
    if t.user_bias is not None:
        scores = scores + t.user_bias[users][:, None]
    if t.item_bias is not None:
        scores = scores + t.item_bias[items]
    if t.user_gmf is not None and t.item_gmf is not None:
        scores = scores + (t.user_gmf[users][:, None] * t.item_gmf[items]).sum(-1)  # [U, C]
    if t.user_half is not None and t.item_half is not None and t.head_mlp is not None:
        hidden = F.relu(t.user_half[users][:, None] + t.item_half[items])  # [U, C, H]
        for weight, bias in t.layers:
            hidden = F.relu(F.linear(hidden, weight, bias))  # [U, C, H_out]
        scores = scores + hidden @ t.head_mlp
    return scores.masked_fill(candidates < 0, -torch.inf)
