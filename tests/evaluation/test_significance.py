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
from ncf.evaluation.significance import (
    holm,
    paired_test,
    sign_flip_p_value,
)


def ranking(ranks: Tensor, k: int = 10) -> Ranking:
    return Ranking(torch.arange(len(ranks)), ranks, torch.full_like(ranks, 101), k)


def share_within(hits: int, trials: int, expected: float) -> bool:
    """Whether a share agrees with its expectation, wrongly refused once in 10,000 times."""
    return stats.binomtest(hits, trials, expected).pvalue > 1e-4


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
    with pytest.raises(ValueError, match="metric = 'lift'"):
        paired_test(first, first, "lift")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p_values: list[float]) -> None:
    """A hypothesis is rejected when Bonferroni rejects every set of hypotheses that holds it."""
    indexes = range(len(p_values))
    subsets = [s for size in indexes for s in itertools.combinations(indexes, size + 1)]
    for index, adjusted in enumerate(holm(p_values)):
        expected = max(min(1.0, len(s) * min(p_values[i] for i in s)) for s in subsets if index in s)
        assert adjusted == pytest.approx(expected)


def test_results_are_printed_for_people() -> None:
    good, poor = ranking(torch.zeros(50, dtype=torch.int64)), ranking(torch.arange(50))
    assert str(paired_test(good, poor)).startswith("NDCG@10 +0.9")
    assert str(paired_test(good, poor)).endswith("p = 0.0001")
