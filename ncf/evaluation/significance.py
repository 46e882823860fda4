"""Significance tests: the paired sign-flip test and Holm's correction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ncf.evaluation.intervals import (
    Interval,
    draws_at_once,
    normal_interval,
    one_per_user,
    standard_error,
    wilson_interval,
)
from ncf.evaluation.metrics import Metric, metric_label
from ncf.evaluation.ranking import Ranking

__all__ = [
    "Interval",
    "PairedTest",
    "holm",
    "normal_interval",
    "paired_test",
    "sign_flip_p_value",
    "standard_error",
    "wilson_interval",
]


@dataclass(frozen=True)
class PairedTest:
    """Result of `paired_test`.

    Args:
        metric: what was compared.
        difference: mean over users of the first model's value less the second's.
        interval: 95% interval of the difference.
        p_value: how often chance alone would give a difference at least as large, in either direction.

    Example::

        >>> from ncf.evaluation.significance import Interval, PairedTest
        >>> print(PairedTest("HR@10", 0.02, Interval(-0.01, 0.05), 0.19))
        HR@10 +0.020 [-0.010, +0.050], p = 0.190
    """

    metric: str
    difference: float
    interval: Interval
    p_value: float

    def __str__(self) -> str:
        low, high = self.interval
        p = f"p = {self.p_value:.3f}" if self.p_value >= 0.001 else f"p = {self.p_value:.1g}"
        return f"{self.metric} {self.difference:+.3f} [{low:+.3f}, {high:+.3f}], {p}"


def paired_test(
    first: Ranking, second: Ranking, metric: Metric = "ndcg", *, resamples: int = 10_000, seed: int = 0
) -> PairedTest:
    """Test whether two models differ, on the same users and the same candidates.

    The sign-flip permutation test (Fisher 1935): if the models were alike, each user's difference could as
    well have had the other sign. It needs no normality, and its level is exact. The difference of two models
    on the same users is known better than their separate intervals suggest: easy users are easy for both.

    Args:
        first: ranking of one model.
        second: ranking of another.
        metric: one of `Ranking.values`, such as ``"ndcg"`` or ``"recall"``.
        resamples: random sign patterns; the smallest possible p-value is 1 / (resamples + 1).
        seed: of the sign patterns.

    Returns:
        `PairedTest` of ``first`` less ``second``.

    Raises:
        ValueError: if the users, their numbers of candidates or the cut-off differ.

    Example::

        >>> import torch
        >>> from ncf import Ranking
        >>> from ncf.evaluation.significance import paired_test
        >>> users, sizes = torch.arange(40), torch.full((40,), 101)
        >>> good = Ranking(users, torch.arange(40) // 4, sizes)
        >>> poor = Ranking(users, torch.arange(40) // 2, sizes)
        >>> print(paired_test(good, poor))
        NDCG@10 +0.227 [+0.192, +0.263], p = 0.0001
    """
    for name, mine, theirs in (
        ("users", first.users, second.users),
        ("numbers of candidates", first.num_candidates, second.num_candidates),
        ("numbers of held-out items", first.held_out_per_user, second.held_out_per_user),
    ):
        if not torch.equal(mine, theirs):
            raise ValueError(
                f"the {name} of the two rankings differ: evaluate both models on the same candidates"
            )
    if first.k != second.k:
        raise ValueError(f"k differs, {first.k} and {second.k}: use `ranking.at(k)` to bring both to one")
    differences = first.values(metric) - second.values(metric)  # [U]
    return paired_values(metric_label(metric, first.k), differences, resamples=resamples, seed=seed)


def paired_values(label: str, differences: Tensor, *, resamples: int = 10_000, seed: int = 0) -> PairedTest:
    """Test differences of two models, ``[U]``, float64, one per user; see `paired_test`."""
    interval = normal_interval(differences) if len(differences) > 1 else Interval(-1.0, 1.0)
    p_value = sign_flip_p_value(differences, resamples=resamples, seed=seed)
    return PairedTest(label, float(differences.mean()), interval, p_value)


def sign_flip_p_value(differences: Tensor, *, resamples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of the hypothesis that the differences are symmetric about zero.

    Differences of the same size are flipped together: of ``n`` such, Binomial(n, ½) keep their sign. There
    are far fewer sizes than users, so the cost hardly grows with the users.

    Args:
        differences: one per user, ``[U]``.
        resamples: random sign patterns.
        seed: of the patterns.

    Returns:
        (1 + patterns at least as extreme) / (1 + patterns), never zero (Phipson & Smyth 2010).

    Example::

        >>> import torch
        >>> from ncf.evaluation.significance import sign_flip_p_value
        >>> sign_flip_p_value(torch.tensor([0.5, -0.5, 0.25, -0.25]))  # as much to one side as to the other
        1.0
    """
    differences = one_per_user(differences)
    sizes, counts = torch.unique(differences.abs(), return_counts=True)
    counts = counts.to(torch.float64)
    generator = torch.Generator(differences.device).manual_seed(seed)
    observed = float(differences.sum().abs())
    # a pattern with the same differences added in another order is a tie, not a smaller sum
    observed -= 1e-9 * float(differences.abs().sum())
    extreme = 0
    for rows in draws_at_once(resamples, len(sizes)):
        kept = torch.binomial(counts.expand(rows, -1), counts.new_full((rows, len(sizes)), 0.5), generator)
        sums = (2 * kept - counts) @ sizes  # [rows]
        extreme += int((sums.abs() >= observed).sum())
    return (1 + extreme) / (1 + resamples)


def holm(p_values: list[float]) -> list[float]:
    """Adjust p-values for having made several tests (Holm 1979): the chance of any false finding is kept.

    Args:
        p_values: of the tests, in any order.

    Returns:
        The adjusted p-values in the same order, none above 1.

    Example::

        >>> from ncf.evaluation.significance import holm
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for done, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, p_values[index] * (len(p_values) - done)))
        adjusted[index] = highest
    return adjusted
