"""The metrics of leave-one-out ranking: each a function of the held-out item's rank.

A rank counts the candidates that score at least as high, so it is 0 for the best place.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Metric = Literal["hr", "ndcg", "mrr", "auc"]
METRICS: tuple[Metric, ...] = get_args(Metric)


def hit(ranks: Tensor, k: int) -> Tensor:
    """Hit ratio: is the item among the first ``k``? 1 or 0, ``[...]``, float64.

    Example::

        >>> import torch
        >>> from ncf.evaluation.metrics import hit
        >>> hit(torch.tensor([0, 9, 10]), k=10)
        tensor([1., 1., 0.], dtype=torch.float64)
    """
    return (ranks < k).to(torch.float64)


def ndcg(ranks: Tensor, k: int) -> Tensor:
    """Normalised discounted cumulative gain: 1 / log₂(rank + 2) among the first ``k``, else 0.

    The logarithm is to base 2 (Järvelin & Kekäläinen 2002); with one relevant item the ideal gain is 1.

    Example::

        >>> import torch
        >>> from ncf.evaluation.metrics import ndcg
        >>> ndcg(torch.tensor([0, 2, 10]), k=10)
        tensor([1.0000, 0.5000, 0.0000], dtype=torch.float64)
    """
    return hit(ranks, k) / torch.log2(ranks.to(torch.float64) + 2)


def reciprocal_rank(ranks: Tensor) -> Tensor:
    """1 / (rank + 1), over all candidates, not cut at ``k``.

    Example::

        >>> import torch
        >>> from ncf.evaluation.metrics import reciprocal_rank
        >>> reciprocal_rank(torch.tensor([0, 3]))
        tensor([1.0000, 0.2500], dtype=torch.float64)
    """
    return 1 / (ranks.to(torch.float64) + 1)


def auc(ranks: Tensor, num_candidates: Tensor) -> Tensor:
    """Share of the other candidates that score below the held-out item; 1 where there is no other.

    Example::

        >>> import torch
        >>> from ncf.evaluation.metrics import auc
        >>> auc(torch.tensor([0, 1, 0]), torch.tensor([5, 5, 1]))
        tensor([1.0000, 0.7500, 1.0000], dtype=torch.float64)
    """
    others = (num_candidates - 1).to(torch.float64)
    return torch.where(others > 0, 1 - ranks / others.clamp(min=1), 1.0)


def metric_values(metric: Metric, ranks: Tensor, num_candidates: Tensor, k: int) -> Tensor:
    """The value of a metric for every rank.

    Args:
        metric: ``"hr"``, ``"ndcg"``, ``"mrr"`` or ``"auc"``.
        ranks: ``[...]``, 0 is best.
        num_candidates: how many were ranked, the held-out item among them; ``[...]``, used by ``"auc"``.
        k: length of the list, used by ``"hr"`` and ``"ndcg"``.

    Returns:
        ``[...]``, float64.

    Raises:
        ValueError: for an unknown metric.

    Example::

        >>> import torch
        >>> from ncf.evaluation.metrics import metric_values
        >>> metric_values("ndcg", torch.tensor([0, 2, 10]), torch.tensor([101, 101, 101]), k=10)
        tensor([1.0000, 0.5000, 0.0000], dtype=torch.float64)
    """
    if metric == "hr":
        return hit(ranks, k)
    if metric == "ndcg":
        return ndcg(ranks, k)
    if metric == "mrr":
        return reciprocal_rank(ranks)
    if metric == "auc":
        return auc(ranks, num_candidates)
    raise ValueError(f"metric = {metric!r}: choose one of {', '.join(METRICS)}")


def metric_label(metric: Metric, k: int) -> str:
    """Return the name of a metric for tables and plots: ``HR@10``, ``NDCG@10``, ``MRR``, ``AUC``.

    Example::

        >>> from ncf.evaluation.metrics import metric_label
        >>> metric_label("hr", 10), metric_label("mrr", 10)
        ('HR@10', 'MRR')
    """
    return f"{metric.upper()}@{k}" if metric in ("hr", "ndcg") else metric.upper()
