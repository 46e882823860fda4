"""Several held-out items of a user: places, metrics, intervals, comparison, against trec_eval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytrec_eval
import torch
from torch import Tensor

from ncf import (
    GMF,
    Candidates,
    Catalogue,
    Interactions,
    ItemPop,
    MatrixFactorization,
    NeuMF,
    Ranking,
    compare,
    evaluate,
    leave_one_out,
    list_statistics,
    sample_candidates,
    split_by_ratio,
    whole_catalogue,
)
from ncf.evaluation.metrics import SEVERAL
from ncf.evaluation.plots import rank_histogram
from ncf.evaluation.significance import paired_test
from ncf.models.scoring import Ranker


class Table:
    """Scores from a table, ``[U, I]``."""

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores

    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        rows = self.scores[users]
        return rows[:, candidates] if candidates.dim() == 1 else rows.gather(1, candidates.clamp(min=0))


def _catalogue(random: np.random.Generator, num_users: int, num_items: int) -> Catalogue:
    """Users with one to six held-out items and up to eight seen ones; some users have none and are left out."""
    users, positives, seen, bounds, seen_bounds = [], [], [], [0], [0]
    for user in range(num_users):
        if random.random() < 0.2:
            continue
        some = random.permutation(num_items)
        held_out, known = random.integers(1, 7), random.integers(0, 9)
        users.append(user)
        positives += sorted(some[:held_out])
        seen += sorted(some[held_out : held_out + known])
        bounds.append(len(positives))
        seen_bounds.append(len(seen))
    lists = (torch.tensor(ids, dtype=torch.int64) for ids in (users, positives))
    later = (torch.tensor(ids, dtype=torch.int64) for ids in (seen_bounds, seen))
    return Catalogue(*lists, num_items, *later, positive_offsets=torch.tensor(bounds))


def _runs(catalogue: Catalogue, scores: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
    """Relevant items and lists in trec_eval's form: ties lose, by hand."""
    relevant, lists = {}, {}
    offsets, positives = catalogue.held_out_offsets.tolist(), catalogue.positives.tolist()
    seen_offsets, seen = catalogue.seen_offsets.tolist(), catalogue.seen_items.tolist()
    for at, user in enumerate(catalogue.users.tolist()):
        own = set(positives[offsets[at] : offsets[at + 1]])
        left_out = set(seen[seen_offsets[at] : seen_offsets[at + 1]])
        rows = [item for item in range(catalogue.num_items) if item not in left_out]
        rows.sort(key=lambda item: (-float(scores[user, item]), item in own))
        relevant[str(user)] = {str(item): 1 for item in own}
        lists[str(user)] = {str(item): float(len(rows) - place) for place, item in enumerate(rows)}
    return relevant, lists


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("levels", [3, 1000])
def test_metrics_are_those_of_trec_eval_ties_and_short_lists_included(seed: int, levels: int) -> None:
    random = np.random.default_rng(seed)
    catalogue = _catalogue(random, 30, int(random.integers(16, 60)))
    scores = torch.from_numpy(random.integers(0, levels, (30, catalogue.num_items))).to(torch.float32)
    ranking = evaluate(Table(scores), catalogue, k=10, block_users=7)
    relevant, lists = _runs(catalogue, scores)
    for k in (1, 5, 10):
        names = {
            "recall": f"recall_{k}",
            "precision": f"P_{k}",
            "ndcg": f"ndcg_cut_{k}",
            "map": f"map_cut_{k}",
            "hr": f"success_{k}",
            "mrr": "recip_rank",
        }
        measures = {f"{name}.{k}" for name in ("recall", "P", "ndcg_cut", "map_cut", "success")}
        theirs = pytrec_eval.RelevanceEvaluator(relevant, measures | {"recip_rank"}).evaluate(lists)
        for metric, name in names.items():
            expected = [theirs[str(user)][name] for user in ranking.users.tolist()]
            assert ranking.at(k).values(metric).tolist() == pytest.approx(expected, abs=1e-12), metric
        recall, precision = (ranking.at(k).values(name) for name in ("recall", "precision"))
        both = torch.where(recall + precision > 0, 2 * recall * precision / (recall + precision), 0.0)
        torch.testing.assert_close(ranking.at(k).values("f1"), both)


@pytest.mark.parametrize("kind", [GMF, NeuMF, MatrixFactorization])
def test_every_path_gives_the_places_of_a_sorted_list(kind: Any) -> None:
    random = np.random.default_rng(0)
    catalogue = _catalogue(random, 40, 50)
    model = kind(40, 50, init_std=1.0)
    scores = model.score(torch.arange(40), torch.arange(50).expand(40, -1))
    fast, plain = evaluate(model, catalogue), evaluate(Table(scores), catalogue)
    assert torch.equal(fast.ranks, plain.ranks)
    in_parts = Ranker()
    in_parts.score = Table(scores).score  # type: ignore[method-assign]
    lists = catalogue.users, catalogue.positives, catalogue.seen_items
    counts = catalogue.held_out_offsets.diff(), catalogue.seen_offsets.diff()
    whole, parts = (in_parts._ranks_in_catalogue(*lists, *counts, 50, step, []) for step in (50, 7))
    assert torch.equal(whole, parts)


def test_one_held_out_item_in_the_form_of_several_is_the_same() -> None:
    random = np.random.default_rng(1)
    scores = torch.from_numpy(random.normal(size=(20, 30)))
    positives = torch.from_numpy(random.integers(0, 30, 20))
    empty = torch.zeros(21, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    one = Catalogue(torch.arange(20), positives, 30, *empty)
    listed = Catalogue(torch.arange(20), positives, 30, *empty, positive_offsets=torch.arange(21))
    first, second = (evaluate(Table(scores), catalogue) for catalogue in (one, listed))
    for metric in SEVERAL:
        torch.testing.assert_close(first.values(metric), second.values(metric), rtol=0, atol=1e-15)


def test_a_constant_scorer_gains_nothing() -> None:
    random = np.random.default_rng(2)
    catalogue = _catalogue(random, 30, 40)
    ranking = evaluate(Table(torch.zeros(30, 40)), catalogue, k=10)
    assert [ranking.mean(metric) for metric in ("recall", "ndcg", "map", "hr", "auc")] == [0.0] * 5


def test_nan_is_an_error_unless_the_item_was_seen() -> None:
    catalogue = Catalogue(
        torch.tensor([0]), torch.tensor([1, 2]), 5, torch.tensor([0, 1]), torch.tensor([4]),
        positive_offsets=torch.tensor([0, 2]),
    )  # fmt: skip
    scores = torch.tensor([[0.1, 0.5, 0.4, 0.2, float("nan")]])
    assert evaluate(Table(scores), catalogue, k=2).recall == 1.0
    scores[0, 3] = float("nan")
    with pytest.raises(ValueError, match="item 3 for user 0 is NaN"):
        evaluate(Table(scores), catalogue, k=2)


def test_a_split_with_several_held_out_items_is_compared_and_drawn(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    users, items = random.integers(0, 40, 900), random.integers(0, 50, 900) // random.integers(1, 4, 900)
    split = split_by_ratio(Interactions.from_arrays(users, items), validation=0.0, test=0.3)
    catalogue = whole_catalogue(split)
    assert catalogue.positive_offsets is not None
    constant = Table(torch.zeros(split.train.num_users, split.train.num_items))
    comparison = compare({"popularity": ItemPop(split.train), "constant": constant}, catalogue, k=5)
    assert comparison.best == "popularity"
    assert "Recall@5" in str(comparison)
    assert list(comparison.to_dict()["popularity"]["sampled"]) == [
        "Recall@5", "NDCG@5", "Precision@5", "F1@5", "MAP@5", "HR@5", "MRR", "AUC",
    ]  # fmt: skip
    comparison.plot(tmp_path / "comparison.svg")
    rank_histogram(dict(comparison.rankings), tmp_path / "ranks.svg")
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("comparison.svg", "ranks.svg"))


def test_users_without_held_out_items_are_counted_and_printed(tmp_path: Path) -> None:
    users = torch.tensor([0, 0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 3])
    split = split_by_ratio(Interactions.from_arrays(users, torch.arange(12) % 7), test=0.4)
    catalogue = whole_catalogue(split)
    model = ItemPop(split.train)
    ranking = evaluate(model, catalogue, k=3)
    assert (len(ranking), ranking.untested, catalogue.for_rank(1, 2).untested) == (2, 2, 2)
    assert ranking.at(1).untested == len(split.users_without_test) == 2
    assert str(ranking).endswith("(without held-out items: 2 users)")
    assert "2 users, 2 more without held-out items" in ranking._repr_html_()
    assert "2 users, 2 more without held-out items; " in str(compare({"popularity": model}, catalogue, k=3))
    lists = list_statistics(model, catalogue, split.train, k=3)
    assert str(lists).endswith("(without held-out items: 2 users)")
    one_each = leave_one_out(Interactions.from_arrays(users, torch.arange(12) % 7), validation=False)
    candidates = sample_candidates(one_each, num_negatives=2)
    candidates.save(tmp_path / "candidates.safetensors")
    assert Candidates.load(tmp_path / "candidates.safetensors").untested == candidates.untested == 2
    assert evaluate(model, candidates, k=1).untested == 2
    full = split_by_ratio(Interactions.from_arrays(users // 2, torch.arange(12)), test=0.4)
    assert "without" not in str(evaluate(ItemPop(full.train), whole_catalogue(full), k=3))


def test_places_must_ascend_and_every_user_must_have_one() -> None:
    sizes = torch.tensor([9, 9])
    for ranks, offsets, message in (
        ([3, 3, 1], [0, 2, 3], r"ranks\[1\] = 3: the places of a user must ascend"),
        ([1, 3, 1], [0, 3, 3], "by at least one a user"),
        ([1, 9, 1], [0, 2, 3], r"ranks\[1\] = 9 is out of range for num_candidates\[0\] = 9"),
    ):
        with pytest.raises(ValueError, match=message):
            Ranking(torch.arange(2), torch.tensor(ranks), sizes, 5, torch.tensor(offsets))


def test_rankings_of_other_numbers_of_held_out_items_are_not_compared() -> None:
    sizes = torch.tensor([9, 9])
    first = Ranking(torch.arange(2), torch.tensor([0, 1, 2]), sizes, 5, torch.tensor([0, 2, 3]))
    second = Ranking(torch.arange(2), torch.tensor([0, 1, 2]), sizes, 5, torch.tensor([0, 1, 3]))
    with pytest.raises(ValueError, match="numbers of held-out items"):
        paired_test(first, second)
