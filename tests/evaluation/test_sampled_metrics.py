from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from ncf import Interactions, ItemPop, Ranking, evaluate, leave_one_out, sample_candidates, whole_catalogue
from ncf.evaluation.metrics import METRICS, metric_values
from ncf.evaluation.sampled_metrics import _steady_values, correct_for_sampling, sampled_rank_distribution

# How the ranks of a model fall: the weights need not sum to one.
LAWS = {
    "hyperbolic": lambda rank: 1 / (rank + 8) ** 1.1,
    "steep": lambda rank: 1 / (rank + 2) ** 1.5,
    "geometric": lambda rank: 0.99**rank,
    "no better than chance": torch.ones_like,
    "two kinds of users": lambda rank: 0.95**rank / 20 + 1 / len(rank),
}
# Often perfect, else by chance; and always fair, seldom at the top.
LAWS_OF_TWO = {
    "the head": lambda rank: 0.12 * (rank < 4) / 4 + 0.88 / len(rank),
    "the middle": lambda rank: 0.9 * ((rank >= 20) & (rank < 120)) / 100 + 0.1 / len(rank),
}


@cache
def simulate(name: str, size: int, num_users: int, seed: int, drawn: int = 100) -> tuple[Tensor, Ranking]:
    """Ranks in the catalogue, and among so many distinct items drawn from it: counted, not computed."""
    law = (LAWS | LAWS_OF_TWO)[name](torch.arange(size, dtype=torch.float64))
    generator = np.random.default_rng(seed)
    ranks = generator.choice(size, num_users, p=(law / law.sum()).numpy())
    # the items are numbered by rank, the held-out one left out: those below `rank` are ahead of it
    items = generator.random((num_users, size - 1)).argpartition(drawn, axis=1)[:, :drawn]
    sampled = (items < ranks[:, None]).sum(1)
    num_candidates = torch.full((num_users,), drawn + 1)
    return torch.from_numpy(ranks), Ranking(
        torch.arange(num_users), torch.from_numpy(sampled), num_candidates
    )


@pytest.mark.parametrize(("size", "drawn"), [(30, 7), (8, 7), (101, 100), (400, 1)])
def test_sampled_rank_distribution_agrees_with_scipy(size: int, drawn: int) -> None:
    expected = [stats.hypergeom(size - 1, rank, drawn).pmf(np.arange(drawn + 1)) for rank in range(size)]
    np.testing.assert_allclose(sampled_rank_distribution(size, drawn).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", LAWS)
def test_fault_11_estimate_is_unbiased_within_its_stated_error(name: str, metric: str) -> None:
    """The mean over simulated evaluations lies where the stated bias says; each interval holds the truth."""
    size, num_users, trials = 600, 900, 30
    law = LAWS[name](torch.arange(size, dtype=torch.float64))
    truth = float(law @ metric_values(metric, torch.arange(size), torch.tensor(size), 10) / law.sum())
    found = [correct_for_sampling(simulate(name, size, num_users, t)[1], size, metric) for t in range(trials)]
    mean = float(np.mean([estimate.value for estimate in found]))
    error_of_mean = found[0].standard_error / trials**0.5
    stated = float(np.mean([estimate.bias for estimate in found]))
    assert abs(mean - truth) <= abs(stated) + 4 * error_of_mean
    assert np.std([e.value for e in found]) == pytest.approx(found[0].standard_error, rel=0.5)
    covered = sum(e.interval.low <= truth <= e.interval.high for e in found)
    assert stats.binomtest(covered, trials, 0.95, alternative="less").pvalue > 1e-3


def test_fault_11_sampled_metric_is_not_the_exact_one() -> None:
    ranks, ranking = simulate("hyperbolic", 1500, 2000, seed=0)
    exact = float((ranks < 10).double().mean())
    assert ranking.hr > 2.5 * exact
    estimate = correct_for_sampling(ranking, 1500)
    assert estimate.interval.low < exact < estimate.interval.high


def test_sampled_metric_can_order_two_models_the_other_way_round() -> None:
    """Krichene & Rendle's point: the best at the head falls behind the fair one; the correction mends it."""
    size, num_users = 1500, 3000
    _, of_head = simulate("the head", size, num_users, seed=0)
    _, of_middle = simulate("the middle", size, num_users, seed=1)
    assert of_head.hr < of_middle.hr
    assert correct_for_sampling(of_head, size).value > correct_for_sampling(of_middle, size).value


def test_sampling_the_whole_catalogue_needs_no_correction() -> None:
    ranks = torch.arange(101).repeat(5)
    ranking = Ranking(torch.arange(505), ranks, torch.full((505,), 101))
    for metric in METRICS:
        estimate = correct_for_sampling(ranking, 101, metric, method="rank")
        assert estimate.value == pytest.approx(ranking.mean(metric))
        assert estimate.bias == pytest.approx(0, abs=1e-9)
        steady = correct_for_sampling(ranking, 101, metric)
        assert steady.value == pytest.approx(ranking.mean(metric), abs=0.01)


def test_estimated_rank_is_unbiased_for_auc() -> None:
    law = sampled_rank_distribution(300, 20)
    estimated = 299 / 20 * torch.arange(21, dtype=torch.float64)
    torch.testing.assert_close(law @ estimated, torch.arange(300, dtype=torch.float64))
    ranks = torch.randint(21, (400,), generator=torch.Generator().manual_seed(0))
    estimate = correct_for_sampling(
        Ranking(torch.arange(400), ranks, torch.full((400,), 21)), 300, "auc", method="rank"
    )
    assert estimate.bias == pytest.approx(0, abs=1e-3)  # the estimated rank is rounded


def test_users_with_catalogues_and_candidates_of_their_own() -> None:
    """Each user's rank is corrected for its own numbers: groups apart agree with groups together."""
    generator = torch.Generator().manual_seed(0)
    ranks = torch.randint(10, (200,), generator=generator)
    num_candidates = torch.where(torch.arange(200) < 80, 101, 41)
    sizes = torch.where(torch.arange(200) % 2 == 0, 500, 900)
    together = correct_for_sampling(Ranking(torch.arange(200), ranks, num_candidates), sizes)
    expected = 0.0
    for count in (101, 41):
        for size in (500, 900):
            of = (num_candidates == count) & (sizes == size)
            part = Ranking(torch.arange(200)[of], ranks[of], num_candidates[of])
            expected += correct_for_sampling(part, size).value * len(part) / 200
    assert together.value == pytest.approx(expected)


@pytest.mark.parametrize("gamma", [0.01, 0.5, 1.0])
def test_values_of_the_trade_off_minimise_bias_and_variance(gamma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    law, target = sampled_rank_distribution(40, 6), (torch.arange(40) < 10).double()
    prior = torch.rand(40, generator=generator, dtype=torch.float64)

    def cost(values: Tensor) -> float:
        mean = law @ values
        variance = law @ values**2 - mean**2
        return float((prior / prior.sum()) @ ((mean - target) ** 2 + gamma * variance))

    values = _steady_values(law, target, prior, gamma)
    for _ in range(50):
        assert cost(values + 0.05 * torch.randn(7, generator=generator, dtype=torch.float64)) > cost(values)


def test_more_gamma_is_steadier() -> None:
    _, ranking = simulate("hyperbolic", 1000, 800, seed=0)
    errors = [
        correct_for_sampling(ranking, 1000, gamma=gamma).standard_error for gamma in (0.001, 0.01, 0.1, 0.5)
    ]
    assert errors == sorted(errors, reverse=True)


def test_catalogue_in_place_of_its_sizes() -> None:
    interactions = Interactions(
        *(torch.rand(60, 150, generator=torch.Generator().manual_seed(0)) < 0.2).nonzero(as_tuple=True),
        None,
        60,
        150,
    )
    split = leave_one_out(interactions, validation=False)
    ranking = evaluate(ItemPop(split.train), sample_candidates(split, num_negatives=20))
    catalogue = whole_catalogue(split)
    sizes = evaluate(ItemPop(split.train), catalogue).num_candidates
    assert correct_for_sampling(ranking, catalogue) == correct_for_sampling(ranking, sizes)
    with pytest.raises(ValueError, match="users of the catalogue and the ranking differ"):
        correct_for_sampling(Ranking(ranking.users + 1, ranking.ranks, ranking.num_candidates), catalogue)


def test_arguments_out_of_range() -> None:
    ranking = Ranking(torch.arange(3), torch.tensor([0, 1, 2]), torch.full((3,), 101))
    with pytest.raises(ValueError, match=r"catalogue\[1\] = 100 items is less than the 101 candidates"):
        correct_for_sampling(ranking, torch.tensor([200, 100, 200]))
    with pytest.raises(ValueError, match="method = 'cls'"):
        correct_for_sampling(ranking, 200, method="cls")
    with pytest.raises(ValueError, match=r"gamma = 1\.5"):
        correct_for_sampling(ranking, 200, gamma=1.5)
    with pytest.raises(ValueError, match="metric = 'lift'"):
        correct_for_sampling(ranking, 200, "lift")
