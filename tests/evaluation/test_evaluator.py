from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from ncf import GMF, Candidates, Catalogue, Interactions, Ranking, evaluate, leave_one_out, sample_candidates
from ncf.models.base import inference_scorer

NAN = float("nan")


def ranks_of(scorer: Any, candidates: Any, **options: Any) -> tuple[Tensor, Tensor]:
    return inference_scorer(scorer).rank(candidates, **options)


class Table:
    """Scores looked up in a table, so that a pair has the same score wherever it is listed."""

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores
        self.calls: list[tuple[int, int]] = []

    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        self.calls.append(tuple(candidates.shape))
        scores = self.scores[users[:, None], candidates.clamp(min=0)]
        return scores.masked_fill(candidates < 0, NAN)  # what stands at padding must not matter


class Constant:
    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        return torch.zeros(candidates.shape)


class Perfect:
    """Knows which item is the positive of a user."""

    def __init__(self, positives: Tensor) -> None:
        self.positives = positives

    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        return (candidates == self.positives[users][:, None]).float()


def rank_by_hand(scores: list[float], positive: int, others: set[int]) -> int:
    """The contract, word for word."""
    return sum(scores[item] >= scores[positive] for item in others - {positive, -1})


@st.composite
def tasks(draw: st.DrawFn) -> tuple[Tensor, Candidates]:
    """Few items and fewer scores: ties, duplicates, padding and positives among their negatives abound."""
    num_users, num_items = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    width = draw(st.integers(0, 9))
    item = st.integers(0, num_items - 1)
    scores = draw(
        st.lists(
            st.lists(st.integers(-2, 2), min_size=num_items, max_size=num_items),
            min_size=num_users,
            max_size=num_users,
        )
    )
    positives = draw(st.lists(item, min_size=num_users, max_size=num_users))
    rows = st.lists(st.integers(-1, num_items - 1), min_size=width, max_size=width)
    negatives = draw(st.lists(rows, min_size=num_users, max_size=num_users))
    users = draw(st.permutations(range(num_users)))
    return torch.tensor(scores, dtype=torch.float32), Candidates(
        torch.tensor(users),
        torch.tensor(positives),
        torch.tensor(negatives, dtype=torch.int64).reshape(num_users, width),
    )


@given(tasks())
def test_ranks_agree_with_counting_by_hand(task: tuple[Tensor, Candidates]) -> None:
    scores, candidates = task
    ranks, num_candidates = ranks_of(Table(scores), candidates)
    for row, user in enumerate(candidates.users.tolist()):
        positive, others = int(candidates.positives[row]), set(candidates.negatives[row].tolist())
        assert ranks[row] == rank_by_hand(scores[user].tolist(), positive, others)
        assert num_candidates[row] == len(others - {positive, -1}) + 1


@given(st.data())
def test_catalogue_ranks_agree_with_counting_by_hand(data: st.DataObject) -> None:
    num_users, num_items = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 9))
    scores = data.draw(
        st.lists(
            st.lists(st.integers(-2, 2), min_size=num_items, max_size=num_items),
            min_size=num_users,
            max_size=num_users,
        )
    )
    positives = data.draw(st.lists(st.integers(0, num_items - 1), min_size=num_users, max_size=num_users))
    seen = [sorted(data.draw(st.sets(st.integers(0, num_items - 1))) - {p}) for p in positives]
    users = list(data.draw(st.permutations(range(num_users))))
    catalogue = catalogue_of(users, positives, seen, num_items)
    block = data.draw(st.integers(1, num_users))
    ranks, num_candidates = ranks_of(
        Table(torch.tensor(scores, dtype=torch.float32)), catalogue, block_users=block
    )
    for row, user in enumerate(users):
        others = set(range(num_items)) - set(seen[row])
        assert ranks[row] == rank_by_hand(scores[user], positives[row], others)
        assert num_candidates[row] == len(others)


def catalogue_of(users: list[int], positives: list[int], seen: list[list[int]], num_items: int) -> Catalogue:
    offsets = torch.tensor([0, *map(len, seen)]).cumsum(0)
    items = torch.tensor([item for row in seen for item in row], dtype=torch.int64)
    return Catalogue(torch.tensor(users), torch.tensor(positives), num_items, offsets, items)


def random_scores(num_users: int = 50, num_items: int = 300) -> Tensor:
    return torch.rand(num_users, num_items, generator=torch.Generator().manual_seed(1))


def random_candidates(
    num_users: int = 50, num_items: int = 300, num_negatives: int = 40, seed: int = 0
) -> Candidates:
    generator = torch.Generator().manual_seed(seed)
    items = torch.stack(
        [torch.randperm(num_items, generator=generator)[: num_negatives + 1] for _ in range(num_users)]
    )
    return Candidates(torch.arange(num_users), items[:, 0], items[:, 1:])


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("levels", [2, 15, 1000])
def test_metrics_agree_with_torchmetrics(k: int, levels: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the oracle's own deprecations
        from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR, RetrievalNormalizedDCG

    generator = torch.Generator().manual_seed(levels)
    scores = torch.randint(levels, (50, 300), generator=generator).float()
    candidates = random_candidates()
    ranking = evaluate(Table(scores), candidates, k)
    predictions = scores[candidates.users[:, None], candidates.items].double()  # [U, 1 + C]
    predictions[:, 0] -= 0.5  # whole numbers: the positive now loses its ties and nothing else
    targets = torch.zeros(predictions.shape, dtype=torch.bool)
    targets[:, 0] = True
    indexes = candidates.users[:, None].expand_as(predictions)
    for metric, oracle in (
        (ranking.hr, RetrievalHitRate(top_k=k)),
        (ranking.ndcg, RetrievalNormalizedDCG(top_k=k)),
        (ranking.mrr, RetrievalMRR()),
    ):
        expected = oracle(predictions.flatten(), targets.flatten(), indexes=indexes.flatten())
        assert metric == pytest.approx(float(expected), abs=1e-6)  # torchmetrics counts in float32


def test_auc_agrees_with_scikit_style_counting() -> None:
    candidates = random_candidates()
    scores = torch.rand(50, 300, generator=torch.Generator().manual_seed(0))
    of_all = scores[candidates.users[:, None], candidates.items]
    share_below = (of_all[:, 1:] < of_all[:, :1]).double().mean(1)  # no ties among random reals
    assert evaluate(Table(scores), candidates).auc == pytest.approx(float(share_below.mean()), abs=1e-12)


def test_fault_1_positive_among_its_negatives_and_duplicate_negatives() -> None:
    scores = torch.tensor([[5.0, 9.0, 7.0, 1.0]])
    candidates = Candidates(torch.tensor([0]), torch.tensor([0]), torch.tensor([[0, 1, 1, 2, 0, 3]]))
    ranking = evaluate(Table(scores), candidates, k=3)
    assert ranking.ranks.tolist() == [2]  # items 1 and 2
    assert ranking.num_candidates.tolist() == [4]


def test_fault_2_ties_do_not_win() -> None:
    ranking = evaluate(Constant(), random_candidates(), k=10)
    assert (ranking.hr, ranking.ndcg, ranking.auc) == (0, 0, 0)
    assert ranking.ranks.unique().tolist() == [40]


def test_fault_2_ties_do_not_win_in_the_whole_catalogue() -> None:
    catalogue = catalogue_of([0, 1], [3, 4], [[0, 1], []], num_items=30)
    ranking = evaluate(Constant(), catalogue, k=10)
    assert ranking.ranks.tolist() == [27, 29]
    assert ranking.hr == 0


def test_fault_4_evaluation_leaves_the_candidates_as_they_are() -> None:
    candidates = random_candidates()
    before = dataclasses.replace(candidates, negatives=candidates.negatives.clone())
    first, second = evaluate(Constant(), candidates), evaluate(Constant(), candidates)
    assert torch.equal(candidates.negatives, before.negatives)
    assert torch.equal(first.num_candidates, second.num_candidates)


def test_fault_8_users_are_scored_together_and_in_bounded_blocks() -> None:
    small = Table(random_scores())
    evaluate(small, random_candidates())
    assert small.calls == [(50, 41)]

    class Wide(Constant):
        calls: list[tuple[int, int]] = []  # noqa: RUF012

        def score(self, users: Tensor, candidates: Tensor) -> Tensor:
            self.calls.append(tuple(candidates.shape))
            assert candidates.stride(0) == 0  # the list of all items is not written out per user
            return torch.zeros(1).expand(candidates.shape)

    num_users, num_items = 40, 100_000
    catalogue = catalogue_of(list(range(num_users)), [0] * num_users, [[1, 2]] * num_users, num_items)
    assert evaluate(Wide(), catalogue).ranks.unique().tolist() == [num_items - 3]
    assert max(users * items for users, items in Wide.calls) <= 1 << 20
    assert sum(users for users, _ in Wide.calls) == num_users


@pytest.mark.parametrize("block_users", [1, 7, 49, 50, 1000])
def test_fault_9_result_does_not_depend_on_the_block_size(block_users: int) -> None:
    scores, candidates = random_scores(), random_candidates()
    catalogue = catalogue_of(candidates.users.tolist(), candidates.positives.tolist(), [[]] * 50, 300)
    for task in (candidates, catalogue):
        whole = evaluate(Table(scores), task)
        assert torch.equal(evaluate(Table(scores), task, block_users=block_users).ranks, whole.ranks)


@pytest.mark.parametrize("num_negatives", [1, 37, 100])
def test_fault_12_perfect_scorer_gets_one_and_constant_scorer_nothing(num_negatives: int) -> None:
    candidates = random_candidates(num_negatives=num_negatives)
    padded = torch.cat([candidates.negatives, torch.full((50, 3), -1)], dim=1)
    candidates = Candidates(candidates.users, candidates.positives, padded)
    perfect = evaluate(Perfect(candidates.positives), candidates, k=1)
    assert (perfect.hr, perfect.ndcg, perfect.mrr, perfect.auc) == (1, 1, 1, 1)
    assert evaluate(Constant(), candidates, k=1).hr == 0
    assert perfect.num_candidates.unique().tolist() == [num_negatives + 1]


def test_fault_13_duplicates_are_not_an_easier_ranking() -> None:
    distinct = random_candidates()
    doubled = Candidates(distinct.users, distinct.positives, distinct.negatives.repeat(1, 3))
    scores = random_scores()
    once, thrice = evaluate(Table(scores), distinct), evaluate(Table(scores), doubled)
    assert torch.equal(once.ranks, thrice.ranks)
    assert torch.equal(once.num_candidates, thrice.num_candidates)


@pytest.mark.parametrize("place", [0, 17])
def test_nan_raises_and_names_user_and_item(place: int) -> None:
    candidates = random_candidates()
    scores = random_scores()
    item = int(candidates.items[31, place])
    scores[31, item] = NAN
    with pytest.raises(ValueError, match=f"item {item} for user 31 is NaN"):
        evaluate(Table(scores), candidates)


def test_nan_of_a_seen_item_is_not_a_candidates_score() -> None:
    scores = random_scores(2, 20)
    scores[1, 5] = NAN
    seen_by_one = catalogue_of([0, 1], [3, 4], [[], [5]], num_items=20)
    assert len(evaluate(Table(scores), seen_by_one)) == 2
    seen_by_the_other = catalogue_of([0, 1], [3, 4], [[5], []], num_items=20)
    with pytest.raises(ValueError, match="item 5 for user 1 is NaN"):
        evaluate(Table(scores), seen_by_the_other)


def test_infinite_scores_are_scores() -> None:
    scores = torch.tensor([[-math.inf, math.inf, 0.0, -math.inf]])
    candidates = Candidates(torch.tensor([0]), torch.tensor([0]), torch.tensor([[1, 2, 3, -1]]))
    assert evaluate(Table(scores), candidates, k=1).ranks.tolist() == [3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_scores_of_any_real_type(dtype: torch.dtype) -> None:
    scores = torch.randint(100, (50, 3000), generator=torch.Generator().manual_seed(0))
    positives = list(range(50))
    catalogue = catalogue_of(positives, positives, [[]] * 50, 3000)

    class Typed:
        def score(self, users: Tensor, candidates: Tensor) -> Tensor:
            return scores[users].to(dtype)

    ranks = evaluate(Typed(), catalogue).ranks
    assert ranks.tolist() == [rank_by_hand(scores[u].tolist(), u, set(range(3000))) for u in range(50)]


def test_scores_may_come_as_an_array() -> None:
    class Array:
        def score(self, users: Tensor, candidates: Tensor) -> np.ndarray:
            return candidates.numpy().astype(np.float64)

    candidates = Candidates(torch.tensor([0]), torch.tensor([2]), torch.tensor([[0, 1, 3]]))
    assert evaluate(Array(), candidates, k=1).ranks.tolist() == [1]


class Net(nn.Module):
    """Has dropout, refuses to be judged while training or with gradients, and gives a view once."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(50, 300)
        self.frozen = nn.Dropout().eval()
        self.views = 0

    def scorer(self) -> Net:
        self.views += 1
        return self

    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        return self.rows(users).gather(1, candidates)


def test_a_module_is_evaluated_in_evaluation_mode_and_left_alone() -> None:
    net = Net()
    ranking = evaluate(net, random_candidates(), block_users=8)
    assert net.training
    assert not net.frozen.training
    assert net.views == 1
    assert torch.equal(ranking.ranks, evaluate(Table(net.rows.weight.detach()), random_candidates()).ranks)


def test_a_scorer_of_ones_own_may_rank() -> None:
    class Ranks(Constant):
        def rank(self, candidates: Candidates) -> tuple[Tensor, Tensor]:
            return torch.full_like(candidates.users, 3), torch.full_like(candidates.users, 41)

    assert evaluate(Ranks(), random_candidates()).ranks.unique().tolist() == [3]


def test_candidates_of_other_raw_ids_are_refused() -> None:
    spring = Interactions.from_arrays([1, 1, 1, 2, 2, 2], [1, 2, 3, 3, 4, 5])
    autumn = Interactions.from_arrays([1, 1, 1, 2, 2, 2], [1, 2, 3, 3, 4, 6])
    model = GMF(2, 5)
    model.user_ids, model.item_ids = spring.user_ids, spring.item_ids
    own, others = (sample_candidates(leave_one_out(each), num_negatives=2) for each in (spring, autumn))
    assert len(evaluate(model, own, k=1)) == 2
    with pytest.raises(
        ValueError, match=r"the model and the candidates number different item ids.*item_ids="
    ):
        evaluate(model, others, k=1)


def test_minus_infinity_ties_as_any_other_score_however_the_catalogue_is_cut() -> None:
    scores = torch.tensor([[-torch.inf, -torch.inf, 1.0, -torch.inf, 0.0]])
    scorer = inference_scorer(Table(scores))
    catalogue = Catalogue(
        *(torch.tensor(x) for x in ([0], [0])), 5, *(torch.tensor(x) for x in ([0, 1], [3]))
    )
    assert scorer.rank(catalogue)[0].tolist() == [3]
    scorer.distributed = True  # a world of one: a few items at a time
    assert scorer.rank(catalogue)[0].tolist() == [3]
    assert scorer.rank(catalogue, block_users=1 << 20)[0].tolist() == [3]  # beyond all pairs of a block


def test_parts_of_the_users_can_be_ranked_apart_and_merged() -> None:
    candidates, table = random_candidates(), Table(random_scores())
    parts = [
        ranks_of(
            table, Candidates(candidates.users[rows], candidates.positives[rows], candidates.negatives[rows])
        )
        for rows in (slice(0, 20), slice(20, 50))
    ]
    ranks, num_candidates = (torch.cat(column) for column in zip(*parts, strict=True))
    merged = Ranking(candidates.users, ranks, num_candidates)
    assert repr(merged) == repr(evaluate(table, candidates))


def test_several_k_in_one_pass() -> None:
    candidates, table = random_candidates(), Table(random_scores())
    metrics = evaluate(table, candidates).metrics(1, 5, 20)
    for k in (1, 5, 20):
        assert metrics[f"HR@{k}"] == evaluate(table, candidates, k).hr
        assert metrics[f"NDCG@{k}"] == evaluate(table, candidates, k).ndcg
    assert metrics.keys() == {"HR@1", "NDCG@1", "HR@5", "NDCG@5", "HR@20", "NDCG@20", "MRR", "AUC"}


def test_intervals_hold_the_metrics() -> None:
    ranking = evaluate(Table(random_scores()), random_candidates())
    for metric, (low, high) in ranking.intervals.items():
        assert 0 <= low < ranking.mean(metric) < high <= 1
        sample = (ranking.values(metric).numpy(),)
        by_draws = stats.bootstrap(sample, np.mean, n_resamples=2000, method="percentile", rng=0)
        lowest, highest = by_draws.confidence_interval
        assert highest - lowest == pytest.approx(high - low, rel=0.15)


@pytest.mark.parametrize("k", [0, -1, 42, True, 2.5])
def test_k_must_fit_the_candidates(k: int) -> None:
    with pytest.raises(ValueError, match=r"k = .*at most 41 candidates"):
        evaluate(Constant(), random_candidates(), k)


def test_k_must_fit_what_is_left_of_the_candidates() -> None:
    candidates = Candidates(torch.tensor([0]), torch.tensor([0]), torch.tensor([[1, 1, 1, -1]]))
    with pytest.raises(ValueError, match="at most 2 candidates"):
        evaluate(Constant(), candidates, k=3)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (torch.zeros(3, 41), r"shape \(3, 41\) for 50 users and 41 candidates each"),
        (torch.zeros(50, 41, 1), r"return \(50, 41\)"),
        (torch.zeros(50, 41, dtype=torch.bool), "returned torch.bool"),
        ([0.0], "returned list"),
        (None, "returned NoneType"),
    ],
)
def test_scores_of_a_wrong_kind(returned: object, message: str) -> None:
    class Wrong:
        def score(self, users: Tensor, candidates: Tensor) -> object:
            return returned

    with pytest.raises(ValueError, match=message):
        evaluate(Wrong(), random_candidates())


def test_what_cannot_be_judged() -> None:
    with pytest.raises(TypeError, match="Linear has no method score"):
        evaluate(nn.Linear(1, 1), random_candidates())
    with pytest.raises(TypeError, match="candidates must be Candidates or Catalogue, got list"):
        evaluate(Constant(), [0])
    with pytest.raises(ValueError, match="block_users = 0"):
        evaluate(Constant(), random_candidates(), block_users=0)
    nobody = Candidates(torch.arange(0), torch.arange(0), torch.zeros(0, 10, dtype=torch.int64))
    with pytest.raises(ValueError, match="no users to evaluate"):
        evaluate(Constant(), nobody)


def test_ids_unknown_to_the_model() -> None:
    class Small(Constant):
        num_users, num_items = 50, 300

    assert len(evaluate(Small(), random_candidates())) == 50
    with pytest.raises(
        ValueError, match=r"users\[50\] = 50 is out of range for the model's num_users = 50: .*; evaluate"
    ):
        evaluate(Small(), random_candidates(num_users=51))
    negatives = random_candidates().negatives
    negatives[7, 3] = 300
    with pytest.raises(
        ValueError, match=r"negatives\[7, 3\] = 300 is out of range for the model's num_items = 300"
    ):
        evaluate(Small(), dataclasses.replace(random_candidates(), negatives=negatives))
    with pytest.raises(ValueError, match="catalogue has 301 items"):
        evaluate(Small(), catalogue_of([0], [0], [[]], num_items=301))


@pytest.mark.parametrize(
    ("seen", "positive", "message"),
    [
        ([2, 2], 0, r"seen_items\[1\] = 2"),
        ([2, 1], 0, r"seen_items\[1\] = 1"),
        ([1, 2], 2, r"seen_items\[1\] = 2"),
        ([9], 0, "out of range"),
        ([1], 9, r"positives\[0\] = 9"),
    ],
)
def test_a_catalogue_that_cannot_be(seen: list[int], positive: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        catalogue_of([0], [positive], [seen], num_items=9)


@settings(max_examples=30)
@given(tasks())
def test_order_of_the_negatives_does_not_matter(task: tuple[Tensor, Candidates]) -> None:
    scores, candidates = task
    turned = dataclasses.replace(candidates, negatives=candidates.negatives.flip(1))
    assert torch.equal(ranks_of(Table(scores), candidates)[0], ranks_of(Table(scores), turned)[0])
