"""The benchmarks that say how good a model could be: their bounds are what they claim to be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.ceiling import Mixture, best_weights, chance_of_hit, chance_of_showing
from benchmarks.planted import Truth, plant
from ncf import EASE, ItemPop, Ranking, evaluate, leave_one_out, sample_candidates


@given(st.integers(20, 1700), st.integers(1, 19), st.data())
def test_chance_of_a_hit_over_all_draws_agrees_with_scipy(size: int, drawn: int, data: st.DataObject) -> None:
    ranks = torch.tensor(data.draw(st.lists(st.integers(0, size), min_size=1, max_size=5)))
    k = data.draw(st.integers(1, 12))
    chances = chance_of_hit(
        Ranking(torch.arange(len(ranks)), ranks, torch.full_like(ranks, size + 1)), k, drawn
    )
    expected = stats.hypergeom(size, ranks.numpy(), drawn).cdf(k - 1)
    np.testing.assert_allclose(chances, expected, atol=1e-8)


@pytest.mark.parametrize(("target", "true"), [(0.702, 0.68), (0.5, 0.5), (1.0, 0.9), (0.0, 0.3)])
def test_chance_of_showing_a_figure_agrees_with_scipy(target: float, true: float) -> None:
    expected = stats.binom(943, true).sf(int(np.ceil(target * 943)) - 1)
    assert chance_of_showing(target, true, 943) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_planted_truth_hits_as_often_as_bayes_rule_says_and_nothing_beats_it() -> None:
    """Of the candidates one is the touched one; the odds of each, made to sum to one, are its chances."""
    interactions, truth = plant(1500, 400, 40.0, seed=3)
    assert len(interactions) == pytest.approx(1500 * 40, rel=0.1)
    split = leave_one_out(interactions, validation=False)
    candidates = sample_candidates(split, num_negatives=60)
    chances = (
        truth.score(candidates.users, candidates.items).double().softmax(1).topk(10, dim=1).values.sum(1)
    )
    best = evaluate(truth, candidates)
    error = float((chances * (1 - chances)).sum().sqrt()) / len(chances)
    assert best.hr == pytest.approx(float(chances.mean()), abs=4 * error)
    noise = torch.randn(truth.log_odds.shape, generator=torch.Generator().manual_seed(0))
    for other in (
        Truth(truth.log_odds + noise),
        Truth(-truth.log_odds),
        ItemPop(split.train),
        EASE(split.train),
    ):
        assert evaluate(other, candidates).hr < best.hr - 0.01


def test_the_best_mixture_is_at_least_as_good_as_each_of_its_parts() -> None:
    interactions, truth = plant(300, 200, 25.0, seed=1)
    split = leave_one_out(interactions, validation=False)
    candidates = sample_candidates(split, num_negatives=50)
    models = {"EASE": EASE(split.train), "ItemPop": ItemPop(split.train), "truth": truth}
    hr, weights = best_weights(models, candidates)
    assert hr >= max(evaluate(model, candidates).hr for model in models.values())
    mixture = Mixture([*models.values()], [*weights.values()])
    assert evaluate(mixture, candidates).hr == pytest.approx(hr)
