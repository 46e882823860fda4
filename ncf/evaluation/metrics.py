"""The metrics of a ranking: each a function of the held-out items' ranks.

A rank counts the candidates that score at least as high, so it is 0 for the best place. Several held-out items of a
user stand one behind the other, the best first, and ``offsets`` ``[U + 1]`` say where each user's start.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Metric = Literal["hr", "ndcg", "mrr", "auc", "recall", "precision", "f1", "map"]
METRICS: tuple[Metric, ...] = get_args(Metric)
ALONE: tuple[Metric, ...] = ("hr", "ndcg", "mrr", "auc")  # of one held-out item: the others say nothing more
SEVERAL: tuple[Metric, ...] = ("recall", "ndcg", "precision", "f1", "map", "hr", "mrr", "auc")
UNCUT: tuple[Metric, ...] = ("mrr", "auc")


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


def recall(ranks: Tensor, offsets: Tensor, k: int) -> Tensor:
    """Share of a user's held-out items among the first ``k``, ``[U]``, float64.

    Example::

        >>> import torch
        >>> from ncf.evaluation.metrics import recall
        >>> recall(torch.tensor([0, 3, 12, 1]), torch.tensor([0, 3, 4]), k=10)
        tensor([0.6667, 1.0000], dtype=torch.float64)
    """
    return _sum(hit(ranks, k), offsets) / offsets.diff()


def precision(ranks: Tensor, offsets: Tensor, k: int) -> Tensor:
    """Share of the first ``k`` that are held-out items of the user, ``[U]``, float64.

    Example::

        >>> import torch
        >>> from ncf.evaluation.metrics import precision
        >>> precision(torch.tensor([0, 3, 12, 1]), torch.tensor([0, 3, 4]), k=10)
        tensor([0.2000, 0.1000], dtype=torch.float64)
    """
    return _sum(hit(ranks, k), offsets) / k


def f1(ranks: Tensor, offsets: Tensor, k: int) -> Tensor:
    """Harmonic mean of recall and precision, ``[U]``, float64; 0 where both are.

    Example::

        >>> import torch
        >>> from ncf.evaluation.metrics import f1
        >>> f1(torch.tensor([0, 3, 12]), torch.tensor([0, 3]), k=3)
        tensor([0.3333], dtype=torch.float64)
    """
    return 2 * _sum(hit(ranks, k), offsets) / (offsets.diff() + k)


def average_precision(ranks: Tensor, offsets: Tensor, k: int) -> Tensor:
    """Precision at each held-out item among the first ``k``, summed, over the number of held-out items: ``[U]``.

    This is TREC's average precision, cut at ``k``. RecBole divides by the smaller of ``k`` and that number.

    Example::

        >>> import torch
        >>> from ncf.evaluation.metrics import average_precision
        >>> average_precision(torch.tensor([0, 3, 12, 1]), torch.tensor([0, 3, 4]), k=10)
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    return _sum(hit(ranks, k) * (_place(offsets) + 1) / (ranks + 1), offsets) / offsets.diff()


def ndcg_of_several(ranks: Tensor, offsets: Tensor, k: int) -> Tensor:
    """Sum of `ndcg` over a user's held-out items, over the sum of the best possible list, ``[U]``, float64.

    The best list has all held-out items at its head, as many as ``k`` leaves room for (as in LightGCN and RecBole).

    Example::

        >>> import torch
        >>> from ncf.evaluation.metrics import ndcg_of_several
        >>> ndcg_of_several(torch.tensor([0, 3, 12, 1]), torch.tensor([0, 3, 4]), k=10)
        tensor([0.6714, 0.6309], dtype=torch.float64)
    """
    return _sum(ndcg(ranks, k), offsets) / _sum(ndcg(_place(offsets), k), offsets)


def auc_of_several(ranks: Tensor, offsets: Tensor, num_candidates: Tensor) -> Tensor:
    """Mean over a user's held-out items of the share of the other candidates below it, ``[U]``, float64.

    Other held-out items do not count; 1 where there is no other candidate.

    Example::

        >>> import torch
        >>> from ncf.evaluation.metrics import auc_of_several
        >>> auc_of_several(torch.tensor([0, 2]), torch.tensor([0, 2]), torch.tensor([4]))
        tensor([0.7500], dtype=torch.float64)
    """
    held_out = offsets.diff()
    ahead = _sum((ranks - _place(offsets)).to(torch.float64), offsets) / held_out
    others = (num_candidates - held_out).to(torch.float64)
    return torch.where(others > 0, 1 - ahead / others.clamp(min=1), 1.0)


def _sum(values: Tensor, offsets: Tensor) -> Tensor:
    """Sum over each user's held-out items, ``[P]`` to ``[U]``."""
    return torch.segment_reduce(values, "sum", offsets=offsets)


def _place(offsets: Tensor) -> Tensor:
    """Number each user's held-out items from 0, ``[P]``, int64."""
    place = torch.arange(int(offsets[-1]), dtype=torch.int64, device=offsets.device)
    return place - offsets[:-1].repeat_interleave(offsets.diff())


def metric_values(
    metric: Metric, ranks: Tensor, num_candidates: Tensor, k: int, offsets: Tensor | None = None
) -> Tensor:
    """The value of a metric for every user.

    Args:
        metric: ``"hr"``, ``"ndcg"``, ``"mrr"``, ``"auc"``, ``"recall"``, ``"precision"``, ``"f1"`` or ``"map"``.
        ranks: ``[U]``, 0 is best; with ``offsets`` the ranks of all held-out items, ``[P]``, ascending within a user.
        num_candidates: how many were ranked, the held-out items among them; ``[U]``, used by ``"auc"``.
        k: length of the list; ``"mrr"`` and ``"auc"`` are not cut.
        offsets: where each user's held-out items start, ``[U + 1]``; by default each user has one.

    Returns:
        ``[U]``, float64.

    Raises:
        ValueError: for an unknown metric.

    Example::

        >>> import torch
        >>> from ncf.evaluation.metrics import metric_values
        >>> metric_values("ndcg", torch.tensor([0, 2, 10]), torch.tensor([101, 101, 101]), k=10)
        tensor([1.0000, 0.5000, 0.0000], dtype=torch.float64)
    """
    if metric not in METRICS:
        raise ValueError(f"metric = {metric!r}: choose one of {', '.join(METRICS)}")
    if offsets is None and metric == "ndcg":
        return ndcg(ranks, k)
    if offsets is None and metric == "auc":
        return auc(ranks, num_candidates)
    if offsets is None:
        offsets = torch.arange(len(ranks) + 1, dtype=torch.int64, device=ranks.device)
    best = ranks[offsets[:-1]]  # [U]
    return {
        "hr": lambda: hit(best, k),
        "mrr": lambda: reciprocal_rank(best),
        "ndcg": lambda: ndcg_of_several(ranks, offsets, k),
        "auc": lambda: auc_of_several(ranks, offsets, num_candidates),
        "recall": lambda: recall(ranks, offsets, k),
        "precision": lambda: precision(ranks, offsets, k),
        "f1": lambda: f1(ranks, offsets, k),
        "map": lambda: average_precision(ranks, offsets, k),
    }[metric]()


def metric_label(metric: Metric, k: int) -> str:
    """Return the name of a metric for tables and plots: ``HR@10``, ``NDCG@10``, ``MRR``, ``AUC``.

    Example::

        >>> from ncf.evaluation.metrics import metric_label
        >>> metric_label("hr", 10), metric_label("recall", 20), metric_label("mrr", 10)
        ('HR@10', 'Recall@20', 'MRR')
    """
    name = metric.capitalize() if metric in ("recall", "precision") else metric.upper()
    return name if metric in UNCUT else f"{name}@{k}"
