from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from ncf import Ranking
from ncf.metrics import metric_values
from ncf.statistics import (
    Interval,
    bootstrap_interval,
    holm,
    normal_interval,
    paired_test,
    sign_flip_p_value,
    wilson_interval,
)


def ranking(ranks: Tensor, k: int = 10) -> Ranking:
    return Ranking(torch.arange(len(ranks)), ranks, torch.full_like(ranks, 101), k)


def share_within(hits: int, trials: int, expected: float) -> bool:
    """Whether a share agrees with its expectation, wrongly refused once in 10,000 times."""
    return stats.binomtest(hits, trials, expected).pvalue > 1e-4


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
    ours = bootstrap_interval(values, confidence=confidence, resamples=9999)
    assert ours == pytest.approx(theirs.confidence_interval, abs=0.04 * width)


@pytest.mark.parametrize(
    "interval", [normal_interval, lambda values: bootstrap_interval(values, resamples=400)]
)
def test_interval_covers_the_truth_as_often_as_it_says(interval) -> None:
    generator = torch.Generator().manual_seed(1)
    chances = torch.tensor([0.9**rank for rank in range(101)])
    truth = float(
        (chances / chances.sum()).double() @ metric_values("ndcg", torch.arange(101), torch.tensor(101), 10)
    )
    trials = 600
    drawn = torch.multinomial(chances.expand(trials, -1), 300, replacement=True, generator=generator)
    covered = 0
    for ranks in drawn:
        low, high = interval(metric_values("ndcg", ranks, torch.tensor(101), 10))
        covered += low <= truth <= high
    assert share_within(covered, trials, 0.95)


def test_bootstrap_is_the_same_in_one_block_and_in_many(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.rand(200, generator=torch.Generator().manual_seed(0))
    whole = bootstrap_interval(values, resamples=300)
    monkeypatch.setattr("ncf.statistics._DRAWS_AT_ONCE", 200 * 7)
    assert bootstrap_interval(values, resamples=300) == pytest.approx(whole, abs=0.01)


@pytest.mark.parametrize(
    "differences",
    [[0.5, -0.2, 1.0, 0.3, 0.3, 0.1, -0.3, 0.9], [1, 1, 1, 0, 0, -1, 1, 1, 0], [0.25] * 7, [0.0] * 4],
)
def test_p_value_agrees_with_all_sign_patterns(differences: list[float]) -> None:
    patterns = np.array(list(itertools.product([1, -1], repeat=len(differences))))
    sums = np.abs(patterns @ np.array(differences))
    exact = float((sums >= abs(sum(differences)) - 1e-12).mean())
    resamples = 40_000
    ours = sign_flip_p_value(torch.tensor(differences, dtype=torch.float64), resamples=resamples)
    assert ours == pytest.approx(exact, abs=4 * (exact * (1 - exact) / resamples) ** 0.5 + 1e-4)


def test_p_value_agrees_with_scipy() -> None:
    generator = np.random.default_rng(3)
    differences = generator.normal(0.2, 1, size=60)
    theirs = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=20_000, rng=0
    )
    assert sign_flip_p_value(torch.from_numpy(differences)) == pytest.approx(theirs.pvalue, abs=0.015)


@pytest.mark.parametrize("metric", ["hr", "ndcg", "mrr", "auc"])
def test_paired_test_has_its_nominal_level(metric: str) -> None:
    """Two models of the same quality, on easy and hard users: 5% of the tests may say they differ."""
    generator = torch.Generator().manual_seed(7)
    trials, rejected = 500, 0
    for trial in range(trials):
        difficulty = torch.rand(120, generator=generator) * 60
        first, second = ((torch.rand(120, generator=generator) * difficulty).long() for _ in range(2))
        rejected += (
            paired_test(ranking(first), ranking(second), metric, resamples=400, seed=trial).p_value <= 0.05
        )
    # ties make the test of HR milder than its level, never sharper
    assert rejected / trials < 0.05 if metric == "hr" else share_within(rejected, trials, 0.05)


def test_paired_test_sees_what_separate_intervals_do_not() -> None:
    generator = torch.Generator().manual_seed(0)
    difficulty = torch.rand(943, generator=generator) * 60
    good = difficulty.long()
    poor = (difficulty * 1.2).long()
    first, second = ranking(good), ranking(poor)
    assert first.interval("ndcg").low < second.interval("ndcg").high  # they overlap
    result = paired_test(first, second)
    assert result.p_value == pytest.approx(1 / 10_001)
    assert result.difference == pytest.approx(first.ndcg - second.ndcg)
    assert 0 < result.interval.low < result.difference < result.interval.high
    turned = paired_test(second, first)
    assert (turned.difference, turned.p_value) == (-result.difference, result.p_value)


def test_a_model_does_not_differ_from_itself() -> None:
    same = ranking(torch.arange(50))
    result = paired_test(same, same)
    assert (result.difference, result.p_value) == (0, 1)


def test_paired_test_needs_the_same_users_and_candidates() -> None:
    first = ranking(torch.arange(20))
    with pytest.raises(ValueError, match="users of the two rankings differ"):
        paired_test(first, ranking(torch.arange(19)))
    with pytest.raises(ValueError, match="numbers of candidates of the two rankings differ"):
        paired_test(first, Ranking(first.users, first.ranks, first.num_candidates - 1))
    with pytest.raises(ValueError, match="k differs, 10 and 5"):
        paired_test(first, first.at(5))
    with pytest.raises(ValueError, match="metric = 'recall'"):
        paired_test(first, first, "recall")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p_values: list[float]) -> None:
    """A hypothesis is rejected when Bonferroni rejects every set of hypotheses that holds it."""
    indexes = range(len(p_values))
    subsets = [s for size in indexes for s in itertools.combinations(indexes, size + 1)]
    for index, adjusted in enumerate(holm(p_values)):
        expected = max(min(1.0, len(s) * min(p_values[i] for i in s)) for s in subsets if index in s)
        assert adjusted == pytest.approx(expected)


@pytest.mark.parametrize(("successes", "trials"), [(-1, 5), (6, 5), (0, 0)])
def test_shares_that_cannot_be(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} successes of {trials} trials"):
        wilson_interval(successes, trials)


def test_arguments_out_of_range() -> None:
    with pytest.raises(ValueError, match="confidence = 95"):
        wilson_interval(1, 2, confidence=95)
    with pytest.raises(ValueError, match="resamples = 0"):
        bootstrap_interval(torch.rand(5), resamples=0)
    with pytest.raises(ValueError, match=r"values of shape \(0,\)"):
        bootstrap_interval(torch.rand(0))
    with pytest.raises(ValueError, match="at least 2"):
        normal_interval(torch.rand(1))


def test_results_are_printed_for_people() -> None:
    assert str(Interval(0.12345, 0.5)) == "[0.123, 0.500]"
    good, poor = ranking(torch.zeros(50, dtype=torch.int64)), ranking(torch.arange(50))
    assert str(paired_test(good, poor)).startswith("NDCG@10 +0.9")
    assert str(paired_test(good, poor)).endswith("p = 0.0001")
