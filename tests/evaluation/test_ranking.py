from __future__ import annotations

import math

import pytest
import torch

from ncf import Ranking
from ncf.evaluation.metrics import METRICS, metric_values


@pytest.mark.parametrize("k", [1, 5, 11])
def test_metrics_agree_with_their_definitions(k: int) -> None:
    ranks = list(range(11)) * 2
    ranking = Ranking(torch.arange(22), torch.tensor(ranks), torch.full((22,), 11), k)
    expected = {
        "hr": [1.0 if rank + 1 <= k else 0.0 for rank in ranks],
        "ndcg": [1 / math.log2(rank + 2) if rank + 1 <= k else 0.0 for rank in ranks],
        "mrr": [1 / (rank + 1) for rank in ranks],
        "auc": [(10 - rank) / 10 for rank in ranks],
        "recall": [1.0 if rank + 1 <= k else 0.0 for rank in ranks],
        "precision": [1 / k if rank + 1 <= k else 0.0 for rank in ranks],
        "f1": [2 / (k + 1) if rank + 1 <= k else 0.0 for rank in ranks],
        "map": [1 / (rank + 1) if rank + 1 <= k else 0.0 for rank in ranks],
    }
    for metric in METRICS:
        assert ranking.values(metric).tolist() == pytest.approx(expected[metric])
        assert getattr(ranking, metric) == pytest.approx(sum(expected[metric]) / 22)


def test_fault_3_ndcg_has_logarithm_to_base_two() -> None:
    ranking = Ranking(torch.arange(4), torch.tensor([0, 1, 2, 6]), torch.full((4,), 101))
    assert ranking.values("ndcg").tolist() == pytest.approx([1, 1 / math.log2(3), 1 / 2, 1 / 3])


@pytest.mark.parametrize(
    ("ranks", "num_candidates", "message"),
    [
        ([0, 5], [5, 5], r"ranks\[1\] = 5 is out of range for num_candidates\[1\] = 5"),
        ([-1, 0], [5, 5], r"ranks\[0\] = -1"),
        ([0], [5, 5], r"ranks must be int64 of shape \(2,\)"),
        ([0, 0], [5.0, 5.0], "num_candidates must be int64"),
    ],
)
def test_a_ranking_that_cannot_be(ranks: list[int], num_candidates: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ranking(torch.arange(2), torch.tensor(ranks), torch.tensor(num_candidates), k=1)


def test_a_user_with_nothing_to_rank_against_has_nothing_to_lose() -> None:
    alone = Ranking(torch.tensor([0]), torch.tensor([0]), torch.tensor([1]), k=1)
    assert alone.metrics() == {"HR@1": 1, "NDCG@1": 1, "MRR": 1, "AUC": 1}
    assert alone.interval("ndcg") == (0, 1)  # one user says nothing of the spread


def test_unknown_names() -> None:
    ranking = Ranking(torch.arange(2), torch.tensor([0, 1]), torch.tensor([5, 5]), k=1)
    with pytest.raises(ValueError, match="metric = 'lift': choose one of hr, ndcg, mrr, auc"):
        ranking.mean("lift")
    with pytest.raises(ValueError, match="k = 6: a user has at most 5"):
        ranking.at(6)
    with pytest.raises(ValueError, match="metric"):
        metric_values("p", ranking.ranks, ranking.num_candidates, 1)
