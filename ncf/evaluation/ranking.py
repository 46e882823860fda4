"""The rank of every held-out item, and the metrics that follow from it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ncf.evaluation.intervals import Interval, bootstrap_interval, normal_interval, wilson_interval
from ncf.evaluation.metrics import METRICS, Metric, metric_label, metric_values
from ncf.utils.checks import check_k
from ncf.utils.html import html_table


@dataclass(frozen=True, eq=False)
class Ranking:
    """The rank of every user's held-out item, and the metrics that follow from it.

    Args:
        users: who was judged, ``[U]``, int64.
        ranks: how many candidates other than the held-out item score at least as high, ``[U]``, int64;
            0 is best.
        num_candidates: how many distinct items were ranked, the held-out item among them, ``[U]``, int64.
        k: length of the list that HR and NDCG look at.

    Raises:
        ValueError: if the shapes or types differ, a rank is out of range, or ``k`` exceeds every list.

    Example::

        >>> import torch
        >>> from ncf import Ranking
        >>> ranking = Ranking(torch.arange(4), torch.tensor([0, 2, 9, 50]), torch.full((4,), 101), k=10)
        >>> ranking.hr, ranking.at(5).hr
        (0.75, 0.5)
        >>> print(ranking)
        HR@10 0.750 [0.301, 0.954]  NDCG@10 0.447 [0.034, 0.860]  MRR 0.363 [0.000, 0.799]
    """

    users: Tensor
    ranks: Tensor
    num_candidates: Tensor
    k: int = 10

    def __post_init__(self) -> None:
        for name in ("users", "ranks", "num_candidates"):
            value = getattr(self, name)
            if value.dtype != torch.int64 or value.shape != (len(self.users),):
                raise ValueError(
                    f"{name} must be int64 of shape ({len(self.users)},), "
                    f"got {value.dtype} {tuple(value.shape)}"
                )
        if len(self.users) == 0:
            raise ValueError("there are no users to judge: the candidates are empty")
        outside = (self.ranks < 0) | (self.ranks >= self.num_candidates)
        if bool(outside.any()):
            row = int(outside.nonzero()[0])
            raise ValueError(
                f"ranks[{row}] = {int(self.ranks[row])} is out of range "
                f"for num_candidates[{row}] = {int(self.num_candidates[row])}"
            )
        check_k(self.k, int(self.num_candidates.max()))

    def __len__(self) -> int:
        return len(self.users)

    @property
    def hr(self) -> float:
        """Hit ratio: share of users whose item is among the first ``k``."""
        return self.mean("hr")

    @property
    def ndcg(self) -> float:
        """Normalised discounted cumulative gain at ``k``: 1 / log₂(rank + 2), or 0 outside the list."""
        return self.mean("ndcg")

    @property
    def mrr(self) -> float:
        """Mean of 1 / (rank + 1) over all candidates, not cut at ``k``."""
        return self.mean("mrr")

    @property
    def auc(self) -> float:
        """Chance that the held-out item scores above another candidate of the user."""
        return self.mean("auc")

    @property
    def intervals(self) -> dict[Metric, Interval]:
        """The 95% interval of every metric; see `interval`."""
        return {metric: self.interval(metric) for metric in METRICS}

    def values(self, metric: Metric) -> Tensor:
        """A metric per user, ``[U]``, float64."""
        return metric_values(metric, self.ranks, self.num_candidates, self.k)

    def mean(self, metric: Metric) -> float:
        """A metric's mean over users."""
        return float(self.values(metric).mean())

    def at(self, k: int) -> Ranking:
        """The same ranks, cut at another ``k``: nothing is scored again."""
        return dataclasses.replace(self, k=k)

    def interval(
        self,
        metric: Metric = "hr",
        *,
        confidence: float = 0.95,
        method: Literal["formula", "bootstrap"] = "formula",
    ) -> Interval:
        """Confidence interval of a metric, over users as if drawn at random.

        Args:
            metric: ``"hr"``, ``"ndcg"``, ``"mrr"`` or ``"auc"``.
            confidence: coverage, between 0 and 1.
            method: ``"formula"`` is Wilson's interval for HR and the normal one, cut to [0, 1], for the
                others; ``"bootstrap"`` draws the users anew 2,000 times.

        Raises:
            ValueError: for an unknown metric, method or confidence.
        """
        values = self.values(metric)
        if method == "bootstrap":
            return bootstrap_interval(values, confidence=confidence)
        if method != "formula":
            raise ValueError(f'method = {method!r}: choose "formula" or "bootstrap"')
        if metric == "hr":
            return wilson_interval(int(values.sum()), len(self), confidence=confidence)
        if len(self) == 1:  # one value says nothing of the spread
            return Interval(0.0, 1.0)
        low, high = normal_interval(values, confidence=confidence)
        return Interval(max(0.0, low), min(1.0, high))

    def metrics(self, *ks: int) -> dict[str, float]:
        """Every metric by its label, at several ``k`` in one pass, ready for JSON.

        Args:
            ks: lengths of the list; ``self.k`` by default.

        Example::

            >>> import torch
            >>> from ncf import Ranking
            >>> Ranking(torch.arange(2), torch.tensor([0, 6]), torch.tensor([9, 9]), k=5).metrics(1, 5)
            {'HR@1': 0.5, 'NDCG@1': 0.5, 'HR@5': 0.5, 'NDCG@5': 0.5, 'MRR': 0.5714285714285714, 'AUC': 0.625}
        """
        lists = [self.at(k) for k in ks] or [self]
        of_lists = {metric_label(m, r.k): r.mean(m) for r in lists for m in METRICS if m in ("hr", "ndcg")}
        return of_lists | {metric_label(m, self.k): self.mean(m) for m in METRICS if m not in ("hr", "ndcg")}

    def __str__(self) -> str:
        return "  ".join(
            f"{metric_label(m, self.k)} {self.mean(m):.3f} {self.interval(m)}" for m in METRICS if m != "auc"
        )

    def __repr__(self) -> str:
        return f"Ranking({len(self)} users, {self})"

    def _repr_html_(self) -> str:
        rows = [[metric_label(m, self.k), f"{self.mean(m):.3f}", str(self.interval(m))] for m in METRICS]
        return html_table(["metric", "mean", "95% interval"], rows, f"{len(self)} users")
