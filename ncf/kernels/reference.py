"""What the kernels are held against: the same signatures, and the formulas written as they read."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ncf.kernels.scoring_tables import ScoringTables


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
        >>> from ncf.kernels.scoring_tables import ScoringTables
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
) -> tuple[Tensor | None, Tensor | None]:
    """Look up a training batch, and make the GMF product and the MLP's first hidden layer of it.

    Args:
        users: ``[B]``, int64.
        items: ``[B]``, or ``[B, C]`` for several items of each user, int64.
        user_gmf: ``[num_users, F]``; ``None``, as ``item_gmf``, without a GMF part.
        item_gmf: ``[num_items, F]``.
        user_mlp: ``[num_users, D]``; ``None``, as the three that follow, without an MLP.
        item_mlp: ``[num_items, D]``.
        weight: of the first layer, over the user's and the item's row side by side, ``[H, 2 D]``.
        bias: of the first layer, ``[H]``.

    Returns:
        The product, ``[B, F]`` or ``[B, C, F]``, and the rectified hidden layer, ``[B, H]`` or ``[B, C, H]``;
        ``None`` in place of an absent part.

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
        product = F.embedding(users, user_gmf) * F.embedding(items, item_gmf)  # [B, F] or [B, C, F]
    if user_mlp is not None and item_mlp is not None and weight is not None and bias is not None:
        of_user, of_item = weight.chunk(2, dim=1)  # [H, D] each
        halves = (
            F.linear(F.embedding(users, user_mlp), of_user, bias),
            F.linear(F.embedding(items, item_mlp), of_item),
        )
        hidden = F.relu(halves[0] + halves[1])  # [B, H] or [B, C, H]
    return product, hidden
