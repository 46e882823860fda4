from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ncf import GMF, Interactions, ItemPop, list_statistics, split_by_ratio, whole_catalogue
from ncf.evaluation.beyond_accuracy import ListStatistics
from ncf.evaluation.intervals import normal_interval
from ncf.evaluation.significance import sign_flip_p_value


def _split(seed: int = 0) -> tuple[Interactions, object]:
    random = np.random.default_rng(seed)
    users, items = random.integers(0, 30, 600), np.minimum(random.geometric(0.06, 600) - 1, 49)
    split = split_by_ratio(Interactions.from_arrays(users, items), test=0.3)
    return split.train, whole_catalogue(split)


def test_each_statistic_is_its_definition_pair_by_pair() -> None:
    train, catalogue = _split()
    features = torch.from_numpy(np.random.default_rng(1).integers(0, 2, (train.num_items, 5))).float()
    model = GMF(train.num_users, train.num_items, init_std=1.0)
    found = list_statistics(model, catalogue, train, k=7, item_features=features)
    counts = train.item_counts().tolist()
    scores = model.score(catalogue.users, torch.arange(train.num_items).expand(len(catalogue), -1))
    listed = []
    for at, row in enumerate(found.items.tolist()):
        seen = set(catalogue.seen_items[catalogue.seen_offsets[at] : catalogue.seen_offsets[at + 1]].tolist())
        allowed = [item for item in range(train.num_items) if item not in seen]
        assert row == sorted(allowed, key=lambda item: (-float(scores[at, item]), item))[:7]
        listed += row
        assert float(found.popularity[at]) == pytest.approx(sum(counts[i] for i in row) / 7)
        bits = [-math.log2(max(1, counts[i]) / sum(counts)) for i in row]
        assert float(found.novelty[at]) == pytest.approx(sum(bits) / 7)
        pairs = [
            0.0 if not features[a].any() or not features[b].any() else _cosine(features[a], features[b])
            for a in row
            for b in row
            if a != b
        ]
        assert found.diversity is not None
        assert float(found.diversity[at]) == pytest.approx(1 - sum(pairs) / len(pairs))
    assert found.coverage == len(set(listed)) / train.num_items
    shown = [listed.count(item) for item in range(train.num_items)]
    differences = sum(abs(a - b) for a in shown for b in shown)
    assert found.gini == pytest.approx(differences / (2 * train.num_items * sum(shown)))


def _cosine(first: Tensor, second: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(first, second, dim=0))


def test_popular_lists_are_popular_and_short_lists_end() -> None:
    train, catalogue = _split()
    popular = list_statistics(ItemPop(train), catalogue, train)
    other = list_statistics(GMF(train.num_users, train.num_items), catalogue, train)
    assert popular.popularity.mean() > other.popularity.mean()
    assert popular.novelty.mean() < other.novelty.mean()
    assert popular.coverage <= other.coverage
    assert popular.gini >= other.gini
    assert "diversity" not in str(popular)
    assert "Gini" in popular._repr_html_()
    whole = list_statistics(ItemPop(train), catalogue, train, k=train.num_items)
    assert (whole.items == -1).any()
    assert torch.isfinite(whole.novelty).all()


def test_other_numbers_of_items_and_long_lists_are_errors() -> None:
    train, catalogue = _split()
    model = ItemPop(train)
    with pytest.raises(ValueError, match="item_features has 3 items, the catalogue"):
        list_statistics(model, catalogue, train, item_features=torch.ones(3, 2))
    with pytest.raises(ValueError, match="train has"):
        list_statistics(model, catalogue, Interactions.from_arrays([0, 1], [0, 1]))
    with pytest.raises(ValueError, match=f"k = 999: the catalogue has {train.num_items} items"):
        list_statistics(model, catalogue, train, k=999)


def test_one_item_for_all_covers_least_and_is_most_unequal() -> None:
    ones = torch.ones(4, dtype=torch.float64)
    same = ListStatistics(torch.arange(4), torch.zeros(4, 1, dtype=torch.int64), 4, ones, ones, None)
    each = ListStatistics(torch.arange(4), torch.arange(4)[:, None], 4, ones, ones, None)
    assert (same.coverage, same.gini) == (0.25, 0.75)
    assert (each.coverage, each.gini) == (1.0, 0.0)


def test_two_models_lists_are_compared_user_by_user() -> None:
    train, catalogue = _split()
    features = torch.eye(train.num_items)
    popular = list_statistics(ItemPop(train), catalogue, train)
    other = list_statistics(GMF(train.num_users, train.num_items, init_std=1.0), catalogue, train)
    found = popular.test(other, "novelty")
    differences = popular.novelty - other.novelty
    assert found.metric == "novelty@10"
    assert found.difference == pytest.approx(float(differences.mean()))
    assert found.interval == normal_interval(differences)
    assert found.p_value == sign_flip_p_value(differences) < 0.01
    assert popular.test(popular, "popularity").p_value == 1.0
    with pytest.raises(ValueError, match="name = 'coverage'"):
        popular.test(other, "coverage")
    with pytest.raises(ValueError, match="diversity was not computed"):
        popular.test(list_statistics(ItemPop(train), catalogue, train, item_features=features), "diversity")
    with pytest.raises(ValueError, match="lengths of lists differ"):
        popular.test(list_statistics(ItemPop(train), catalogue, train, k=3), "novelty")
