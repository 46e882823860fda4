"""The ranks of held-out items, and the metrics that follow from them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from ncf.evaluation.intervals import Interval, normal_interval, wilson_interval
from ncf.evaluation.metrics import ALONE, SEVERAL, UNCUT, Metric, metric_label, metric_values
from ncf.utils.checks import check_k
from ncf.utils.html import html_table


@dataclass(frozen=True, eq=False)
class Ranking:
    """The ranks of every user's held-out items, and the metrics that follow from them.

    Args:
        users: who was evaluated, ``[U]``, int64.
        ranks: how many candidates other than the held-out item score at least as high, ``[U]``, int64;
            0 is best. With ``offsets`` the places of all held-out items in the users' lists, ``[P]``, ascending
            within a user.
        num_candidates: how many distinct items were ranked, the held-out items among them, ``[U]``, int64.
        k: length of the list that the metrics look at; MRR and AUC look at all candidates.
        offsets: where each user's held-out items start in ``ranks``, ``[U + 1]``, int64; by default each user has
            exactly one.
        untested: number of trained users who have no held-out item, and are not in ``users``.

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
        >>> places, offsets = torch.tensor([0, 3, 12, 1]), torch.tensor([0, 3, 4])
        >>> several = Ranking(torch.arange(2), places, torch.full((2,), 50), k=10, offsets=offsets)
        >>> several.values("recall")
        tensor([0.6667, 1.0000], dtype=torch.float64)
    """

    users: Tensor
    ranks: Tensor
    num_candidates: Tensor
    k: int = 10
    offsets: Tensor | None = None
    untested: int = 0

    def __post_init__(self) -> None:
        several, size = self.offsets is not None, len(self.users)
        lengths = {"users": size, "ranks": self.ranks.numel() if several else size, "num_candidates": size}
        for name, length in (lengths | ({"offsets": size + 1} if several else {})).items():
            value = getattr(self, name)
            if value.dtype != torch.int64 or value.shape != (length,):
                raise ValueError(
                    f"{name} must be int64 of shape ({length},), got {value.dtype} {tuple(value.shape)}"
                )
        if len(self.users) == 0:
            raise ValueError("there are no users to evaluate: the candidates are empty")
        rows = torch.arange(size, dtype=torch.int64, device=self.ranks.device)
        if self.offsets is not None:
            counts = self.offsets.diff()
            if int(self.offsets[0]) or int(self.offsets[-1]) != len(self.ranks) or bool((counts < 1).any()):
                raise ValueError(
                    f"offsets must rise from 0 to len(ranks) = {len(self.ranks)}, by at least one a user"
                )
            rows = rows.repeat_interleave(counts)
            falls = ((rows[1:] == rows[:-1]) & (self.ranks[1:] <= self.ranks[:-1])).nonzero()
            if len(falls):
                row = int(falls[0]) + 1
                raise ValueError(
                    f"ranks[{row}] = {int(self.ranks[row])}: the places of a user must ascend, each once"
                )
        outside = (self.ranks < 0) | (self.ranks >= self.num_candidates[rows])
        if bool(outside.any()):
            row = int(outside.nonzero()[0])
            raise ValueError(
                f"ranks[{row}] = {int(self.ranks[row])} is out of range "
                f"for num_candidates[{int(rows[row])}] = {int(self.num_candidates[rows[row]])}"
            )
        check_k(self.k, int(self.num_candidates.max()))

    def __len__(self) -> int:
        return len(self.users)

    @property
    def held_out_per_user(self) -> Tensor:
        """Numbers of held-out items of the users, ``[U]``, int64."""
        return torch.ones_like(self.users) if self.offsets is None else self.offsets.diff()

    @property
    def shown(self) -> tuple[Metric, ...]:
        """The metrics that are worth showing: with one held-out item a user, recall is the hit ratio."""
        return ALONE if self.offsets is None else SEVERAL

    @property
    def hr(self) -> float:
        """Hit ratio: share of users with a held-out item among the first ``k``."""
        return self.mean("hr")

    @property
    def ndcg(self) -> float:
        """Normalised discounted cumulative gain at ``k``: 1 / log₂(rank + 2), or 0 outside the list.

        With several held-out items their sum, over the sum of the best possible list.
        """
        return self.mean("ndcg")

    @property
    def mrr(self) -> float:
        """Mean of 1 / (rank + 1) of a user's first held-out item, not cut at ``k``."""
        return self.mean("mrr")

    @property
    def auc(self) -> float:
        """Chance that a held-out item scores above another candidate of the user."""
        return self.mean("auc")

    @property
    def recall(self) -> float:
        """Share of a user's held-out items among the first ``k``, the mean over users."""
        return self.mean("recall")

    @property
    def precision(self) -> float:
        """Share of the first ``k`` that are held-out items, the mean over users."""
        return self.mean("precision")

    @property
    def f1(self) -> float:
        """Harmonic mean of a user's recall and precision, the mean over users."""
        return self.mean("f1")

    @property
    def map(self) -> float:
        """Mean average precision: over the held-out items, precision at each of them among the first ``k``."""
        return self.mean("map")

    @property
    def intervals(self) -> dict[Metric, Interval]:
        """The 95% interval of every metric; see `interval`."""
        return {metric: self.interval(metric) for metric in self.shown}

    def values(self, metric: Metric) -> Tensor:
        """A metric per user, ``[U]``, float64."""
        return metric_values(metric, self.ranks, self.num_candidates, self.k, self.offsets)

    def mean(self, metric: Metric) -> float:
        """A metric's mean over users."""
        return float(self.values(metric).mean())

    def at(self, k: int) -> Ranking:
        """The same ranks, cut at another ``k``: nothing is scored again."""
        return dataclasses.replace(self, k=k)

    def interval(self, metric: Metric = "hr", *, confidence: float = 0.95) -> Interval:
        """Confidence interval of a metric, over users as if drawn at random.

        It is Wilson's interval for HR, and the normal one, cut to [0, 1], for the others.

        Args:
            metric: ``"hr"``, ``"ndcg"``, ``"mrr"``, ``"auc"``, ``"recall"``, ``"precision"``, ``"f1"`` or ``"map"``.
            confidence: coverage, between 0 and 1.

        Raises:
            ValueError: for an unknown metric or confidence.
        """
        values = self.values(metric)
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
        return {metric_label(m, r.k): r.mean(m) for r in lists for m in self.shown if m not in UNCUT} | {
            metric_label(m, self.k): self.mean(m) for m in self.shown if m in UNCUT
        }

    def __str__(self) -> str:
        line = "  ".join(
            f"{metric_label(m, self.k)} {self.mean(m):.3f} {self.interval(m)}" for m in self._in_a_line()
        )
        return f"{line}  (without held-out items: {self.untested} users)" if self.untested else line

    def _in_a_line(self) -> tuple[Metric, ...]:
        return ("hr", "ndcg", "mrr") if self.offsets is None else ("recall", "ndcg", "precision", "hr")

    def __repr__(self) -> str:
        return f"Ranking({len(self)} users, {self})"

    def _repr_html_(self) -> str:
        rows = [[metric_label(m, self.k), f"{self.mean(m):.3f}", str(self.interval(m))] for m in self.shown]
        return html_table(["metric", "mean", "95% interval"], rows, shown_users(len(self), self.untested))


def shown_users(evaluated: int, untested: int) -> str:
    """Numbers of users that were evaluated and that were not, in words."""
    return f"{evaluated} users" + (f", {untested} more without held-out items" if untested else "")
