from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ncf.evaluation.intervals import Interval, draws_at_once, normal_interval, wilson_interval
from ncf.evaluation.metrics import metric_values


@given(st.integers(1, 2000), st.data(), st.sampled_from([0.5, 0.9, 0.95, 0.999]))
def test_wilson_interval_agrees_with_scipy(trials: int, data: st.DataObject, confidence: float) -> None:
    successes = data.draw(st.integers(0, trials))
    expected = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    ours = wilson_interval(successes, trials, confidence=confidence)
    assert ours == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= ours.low <= successes / trials <= ours.high <= 1


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_intervals_of_a_mean_agree_with_scipy(confidence: float) -> None:
    values = metric_values(
        "ndcg", torch.randint(40, (500,), generator=torch.Generator().manual_seed(0)), torch.tensor(101), 10
    )
    sample = values.numpy()
    t = stats.norm.interval(confidence, sample.mean(), stats.sem(sample))
    assert normal_interval(values, confidence=confidence) == pytest.approx(t, abs=1e-12)
    theirs = stats.bootstrap((sample,), np.mean, confidence_level=confidence, method="percentile", rng=0)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert normal_interval(values, confidence=confidence) == pytest.approx(
        theirs.confidence_interval, abs=0.06 * width
    )


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(1)
    chances = torch.tensor([0.9**rank for rank in range(101)])
    truth = float(
        (chances / chances.sum()).double() @ metric_values("ndcg", torch.arange(101), torch.tensor(101), 10)
    )
    trials = 600
    drawn = torch.multinomial(chances.expand(trials, -1), 300, replacement=True, generator=generator)
    covered = 0
    for ranks in drawn:
        low, high = normal_interval(metric_values("ndcg", ranks, torch.tensor(101), 10))
        covered += low <= truth <= high
    assert stats.binomtest(covered, trials, 0.95).pvalue > 1e-4  # fails by chance once in 10,000 times


@pytest.mark.parametrize(("successes", "trials"), [(-1, 5), (6, 5), (0, 0)])
def test_shares_that_cannot_be(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} successes of {trials} trials"):
        wilson_interval(successes, trials)


def test_arguments_out_of_range() -> None:
    with pytest.raises(ValueError, match="confidence = 95"):
        wilson_interval(1, 2, confidence=95)
    with pytest.raises(ValueError, match="resamples = 0"):
        draws_at_once(0, width=5)
    with pytest.raises(ValueError, match="at least 2"):
        normal_interval(torch.rand(1))


def test_an_interval_is_printed_for_people() -> None:
    assert str(Interval(0.12345, 0.5)) == "[0.123, 0.500]"
