"""Confidence intervals of metrics, over users."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ncf.utils.checks import whole

_DRAWS_AT_ONCE = 1 << 22  # 32 MB of float64


class Interval(NamedTuple):
    """A confidence interval.

    Args:
        low: its lower end.
        high: its upper end.

    Example::

        >>> from ncf.evaluation.intervals import Interval
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

        >>> from ncf.evaluation.intervals import wilson_interval
        >>> print(wilson_interval(0, 20))
        [0.000, 0.161]
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes of {trials} trials: give 0 <= successes <= trials >= 1")
    z = _quantile(confidence)
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
    # at the ends the formula gives 0 and 1, up to rounding
    low = 0.0 if successes == 0 else centre - half
    return Interval(low, 1.0 if successes == trials else centre + half)


def normal_interval(values: Tensor, *, confidence: float = 0.95) -> Interval:
    """Interval of a mean by the central limit theorem, mean ± z · standard error.

    For the metrics of 100 users and more, drawing the users anew (the bootstrap) differs in the third digit.

    Args:
        values: one per user, ``[U]``.
        confidence: coverage, between 0 and 1.

    Returns:
        The interval, in the unit of the values.

    Raises:
        ValueError: if there are fewer than two values.

    Example::

        >>> import torch
        >>> from ncf.evaluation.intervals import normal_interval
        >>> print(normal_interval(torch.arange(100) / 100))
        [0.438, 0.552]
    """
    values = one_per_user(values, at_least=2)
    half = _quantile(confidence) * standard_error(values)
    mean = float(values.mean())
    return Interval(mean - half, mean + half)


def standard_error(values: Tensor) -> float:
    """Standard error of the mean of independent values, ``[U]``.

    Example::

        >>> import torch
        >>> from ncf.evaluation.intervals import standard_error
        >>> standard_error(torch.tensor([0.0, 1.0]))
        0.5
    """
    return float(values.to(torch.float64).std()) / math.sqrt(len(values))


def one_per_user(values: Tensor, at_least: int = 1) -> Tensor:
    """Values, ``[U]``, in float64.

    Args:
        values: one per user, ``[U]``.
        at_least: how many there must be.

    Raises:
        ValueError: if they have another shape, or are fewer.

    Example::

        >>> import torch
        >>> from ncf.evaluation.intervals import one_per_user
        >>> one_per_user(torch.tensor([1, 0]))
        tensor([1., 0.], dtype=torch.float64)
    """
    if values.dim() != 1 or len(values) < at_least:
        raise ValueError(f"values of shape {tuple(values.shape)}: give one per user, for at least {at_least}")
    return values.to(torch.float64)


def draws_at_once(resamples: int, width: int) -> list[int]:
    """Split the resamples so that those drawn at once, of ``width`` numbers each, stay small.

    Args:
        resamples: how many there are to be.
        width: numbers in each.

    Returns:
        How many to draw at a time; together ``resamples``.

    Raises:
        ValueError: if there are no resamples.

    Example::

        >>> from ncf.evaluation.intervals import draws_at_once
        >>> draws_at_once(2000, width=4096)
        [1024, 976]
    """
    whole("resamples", resamples)
    rows = max(1, _DRAWS_AT_ONCE // max(1, width))
    return [min(rows, resamples - start) for start in range(0, resamples, rows)]


def _quantile(confidence: float) -> float:
    """Return the number of standard errors to each side."""
    return float(
        torch.special.ndtri(
            torch.tensor((1 + _confidence(confidence)) / 2, dtype=torch.float64, device="cpu")
        )
    )


def _confidence(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence}: give a share between 0 and 1, such as 0.95")
    return confidence
