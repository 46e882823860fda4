"""How sure a metric is: intervals over users, and a paired test between two models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ncf.metrics import Metric, metric_label

if TYPE_CHECKING:
    from ncf.ranking import Ranking

_DRAWS_AT_ONCE = 1 << 22  # 32 MB of float64


class Interval(NamedTuple):
    """A confidence interval.

    Args:
        low: its lower end.
        high: its upper end.

    Example::

        >>> from ncf.statistics import Interval
        >>> print(Interval(0.25, 0.5))
        [0.250, 0.500]
    """

    low: float
    high: float

    def __str__(self) -> str:
        return f"[{self.low:.3f}, {self.high:.3f}]"


def wilson_interval(successes: int, trials: int, *, confidence: float = 0.95) -> Interval:
    """Interval of a proportion that keeps its coverage near 0 and 1 (Wilson 1927).

    Args:
        successes: how many of the trials succeeded.
        trials: how many there were.
        confidence: coverage, between 0 and 1.

    Returns:
        The interval, within [0, 1].

    Raises:
        ValueError: if ``trials`` is less than one or ``successes`` is not between 0 and ``trials``.

    Example::

        >>> from ncf.statistics import wilson_interval
        >>> print(wilson_interval(0, 20))
        [0.000, 0.161]
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes of {trials} trials: give 0 <= successes <= trials >= 1")
    z = _quantile(confidence)
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
    # at the ends the formula gives exactly 0 and 1 but for rounding
    low = 0.0 if successes == 0 else centre - half
    return Interval(low, 1.0 if successes == trials else centre + half)


def normal_interval(values: Tensor, *, confidence: float = 0.95) -> Interval:
    """Interval of a mean by the central limit theorem, mean ± z · standard error.

    For the metrics of 100 users and more it differs from the bootstrap in the third digit, at no cost.

    Args:
        values: one per user, ``[U]``.
        confidence: coverage, between 0 and 1.

    Returns:
        The interval, in the unit of the values.

    Raises:
        ValueError: if there are fewer than two values.

    Example::

        >>> import torch
        >>> from ncf.statistics import normal_interval
        >>> print(normal_interval(torch.arange(100) / 100))
        [0.438, 0.552]
    """
    values = _checked(values, at_least=2)
    half = _quantile(confidence) * standard_error(values)
    mean = float(values.mean())
    return Interval(mean - half, mean + half)


def bootstrap_interval(
    values: Tensor, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of a mean over users (Efron 1979).

    Args:
        values: one per user, ``[U]``.
        confidence: coverage, between 0 and 1.
        resamples: how many times the users are drawn anew, with replacement.
        seed: of the draws.

    Returns:
        The interval, in the unit of the values.

    Raises:
        ValueError: if there are no values or no resamples.

    Example::

        >>> import torch
        >>> from ncf.statistics import bootstrap_interval
        >>> print(bootstrap_interval(torch.arange(100) / 100))
        [0.438, 0.553]
    """
    values = _checked(values)
    tail = (1 - _confidence(confidence)) / 2
    generator = torch.Generator(values.device).manual_seed(seed)
    users = len(values)
    means = []
    for rows in _chunks(resamples, users):
        drawn = torch.randint(users, (rows, users), generator=generator, device=values.device)
        means.append(values[drawn].mean(dim=1))  # [rows]
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64, device=values.device)
    low, high = torch.quantile(torch.cat(means), ends).tolist()
    return Interval(low, high)


def standard_error(values: Tensor) -> float:
    """Standard error of the mean of independent values, ``[U]``."""
    return float(values.to(torch.float64).std()) / math.sqrt(len(values))


@dataclass(frozen=True)
class PairedTest:
    """What `paired_test` found.

    Args:
        metric: what was compared.
        difference: mean over users of the first model's value less the second's.
        interval: 95% interval of the difference.
        p_value: how often chance alone would give a difference at least as large, in either direction.

    Example::

        >>> from ncf.statistics import Interval, PairedTest
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
        metric: ``"hr"``, ``"ndcg"``, ``"mrr"`` or ``"auc"``.
        resamples: random sign patterns; the smallest possible p-value is 1 / (resamples + 1).
        seed: of the sign patterns.

    Returns:
        `PairedTest` of ``first`` less ``second``.

    Raises:
        ValueError: if the users, their numbers of candidates or the cut-off differ.

    Example::

        >>> import torch
        >>> from ncf import Ranking
        >>> from ncf.statistics import paired_test
        >>> users, sizes = torch.arange(40), torch.full((40,), 101)
        >>> good = Ranking(users, torch.arange(40) // 4, sizes)
        >>> poor = Ranking(users, torch.arange(40) // 2, sizes)
        >>> print(paired_test(good, poor))
        NDCG@10 +0.227 [+0.192, +0.263], p = 0.0001
    """
    for name, mine, theirs in (
        ("users", first.users, second.users),
        ("numbers of candidates", first.num_candidates, second.num_candidates),
    ):
        if not torch.equal(mine, theirs):
            raise ValueError(
                f"the {name} of the two rankings differ: judge both models on the same candidates"
            )
    if first.k != second.k:
        raise ValueError(f"k differs, {first.k} and {second.k}: use `ranking.at(k)` to bring both to one")
    differences = first.values(metric) - second.values(metric)  # [U]
    interval = normal_interval(differences) if len(differences) > 1 else Interval(-1.0, 1.0)
    p_value = sign_flip_p_value(differences, resamples=resamples, seed=seed)
    return PairedTest(metric_label(metric, first.k), float(differences.mean()), interval, p_value)


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
        >>> from ncf.statistics import sign_flip_p_value
        >>> sign_flip_p_value(torch.tensor([0.5, -0.5, 0.25, -0.25]))  # as much to one side as to the other
        1.0
    """
    differences = _checked(differences)
    sizes, counts = torch.unique(differences.abs(), return_counts=True)
    counts = counts.to(torch.float64)
    generator = torch.Generator(differences.device).manual_seed(seed)
    observed = float(differences.sum().abs())
    # a pattern with the same differences added in another order is a tie, not a smaller sum
    observed -= 1e-9 * float(differences.abs().sum())
    extreme = 0
    for rows in _chunks(resamples, len(sizes)):
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

        >>> from ncf.statistics import holm
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for done, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, p_values[index] * (len(p_values) - done)))
        adjusted[index] = highest
    return adjusted


def _quantile(confidence: float) -> float:
    """How many standard errors to each side."""
    return float(torch.special.ndtri(torch.tensor((1 + _confidence(confidence)) / 2, dtype=torch.float64)))


def _confidence(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence}: give a share between 0 and 1, such as 0.95")
    return confidence


def _checked(values: Tensor, at_least: int = 1) -> Tensor:
    if values.dim() != 1 or len(values) < at_least:
        raise ValueError(f"values of shape {tuple(values.shape)}: give one per user, for at least {at_least}")
    return values.to(torch.float64)


def _chunks(total: int, width: int) -> list[int]:
    """Split ``total`` rows so that a chunk of ``width`` columns stays small."""
    if total < 1:
        raise ValueError(f"resamples = {total}: give at least 1")
    rows = max(1, _DRAWS_AT_ONCE // max(1, width))
    return [min(rows, total - start) for start in range(0, total, rows)]
