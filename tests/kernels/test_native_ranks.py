"""Ranks by the kernel in C against those of a table of scores."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ncf import Candidates, Catalogue
from ncf.kernels import ScoringTables
from ncf.kernels.native_scoring import PackedTables
from ncf.models.scoring import Ranker, Scorer
from ncf.utils.jagged import lengths_to_offsets

from ..evaluation.test_evaluator import random_candidates, ranks_of
from .examples import random_tables

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


class Scores:
    """The kernel's scores, and no ranks of its own: the default counts in a table of scores."""

    def __init__(self, packed: PackedTables) -> None:
        self.packed = packed

    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        return self.packed.score(users, candidates)


def packed_tables(any_processor: Any, lanes: int | None, **shape: Any) -> PackedTables:
    tables = random_tables(**shape)
    return PackedTables(tables) if lanes is None else PackedTables(tables, lanes, any_processor)


networks = st.fixed_dictionaries(
    {
        "hidden": st.lists(st.integers(1, 20), min_size=1, max_size=3).map(tuple),
        "factors": st.integers(0, 9),
        "biases": st.booleans(),
        "integers": st.booleans(),  # ties abound
        "num_users": st.just(7),
        "num_items": st.integers(1, 300),
        "seed": st.integers(0, 100),
    }
)


@settings(max_examples=60)
@given(st.data(), networks, st.sampled_from([None, 4, 8, 16]), st.integers(0, 6), st.integers(0, 60))
def test_ranks_are_those_of_the_scores(
    any_processor: Any,
    data: st.DataObject,
    network: dict[str, Any],
    lanes: int | None,
    num_users: int,
    width: int,
) -> None:
    packed = packed_tables(any_processor, lanes, **network)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 100)))
    users = torch.randint(7, (num_users,), generator=generator)
    positives = torch.randint(network["num_items"], (num_users,), generator=generator)
    # padding, items twice, and positives among their negatives
    negatives = torch.randint(-1, network["num_items"], (num_users, width), generator=generator)
    if data.draw(st.booleans()) and num_users:
        negatives = negatives[:1].expand(num_users, -1)
    ranked = packed.ranks(users, positives, negatives)
    assert ranked is not None
    expected = ranks_of(Scores(packed), Candidates(users, positives, negatives))
    assert torch.equal(ranked[0], expected[0])
    assert torch.equal(ranked[1], expected[1])


@settings(max_examples=60)
@given(st.data(), networks, st.sampled_from([None, 4, 8, 16]), st.integers(1, 6))
def test_catalogue_ranks_are_those_of_the_scores(
    any_processor: Any, data: st.DataObject, network: dict[str, Any], lanes: int | None, num_users: int
) -> None:
    packed = packed_tables(any_processor, lanes, **network)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 100)))
    catalogue = random_catalogue(num_users, data.draw(st.integers(1, network["num_items"])), generator)
    expected, _ = ranks_of(Scores(packed), catalogue)
    for first in (0, num_users // 2):
        ranks = packed.catalogue_ranks(
            catalogue.users[first:],
            catalogue.positives[first:],
            catalogue.num_items,
            catalogue.seen_offsets[first:],
            catalogue.seen_items,
        )
        assert ranks is not None
        assert torch.equal(ranks, expected[first:])


@settings(max_examples=60)
@given(st.data(), networks, st.sampled_from([None, 4, 8, 16]), st.integers(1, 6))
def test_ranks_of_several_held_out_items_are_those_of_the_scores(
    any_processor: Any, data: st.DataObject, network: dict[str, Any], lanes: int | None, num_users: int
) -> None:
    packed = packed_tables(any_processor, lanes, **network)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 100)))
    num_items = data.draw(st.integers(1, network["num_items"]))
    catalogue = with_several(random_catalogue(num_users, num_items, generator), generator)
    offsets = catalogue.positive_offsets
    assert offsets is not None
    expected, _ = ranks_of(Scores(packed), catalogue)
    for first in (0, num_users // 2):
        lists = catalogue.positives, num_items, catalogue.seen_offsets[first:], catalogue.seen_items
        ranks = packed.catalogue_ranks(catalogue.users[first:], *lists, offsets[first:])
        assert ranks is not None
        assert torch.equal(ranks[offsets[first] :], expected[offsets[first] :])


def with_several(catalogue: Catalogue, generator: torch.Generator) -> Catalogue:
    """Half of the seen items are held out as well."""
    kept = torch.rand(len(catalogue.seen_items), generator=generator) < 0.5
    rows = torch.repeat_interleave(catalogue.seen_offsets.diff())
    own = torch.arange(len(catalogue), dtype=torch.int64) * catalogue.num_items + catalogue.positives
    keys = torch.cat([own, rows[~kept] * catalogue.num_items + catalogue.seen_items[~kept]]).sort().values
    counts = (keys // catalogue.num_items).bincount(minlength=len(catalogue))
    none = torch.zeros(1, dtype=torch.int64)
    seen_offsets = torch.cat([none, rows[kept].bincount(minlength=len(catalogue)).cumsum(0)])
    offsets = torch.cat([none, counts.cumsum(0)])
    return Catalogue(
        catalogue.users,
        keys % catalogue.num_items,
        catalogue.num_items,
        seen_offsets,
        catalogue.seen_items[kept],
        positive_offsets=offsets,
    )


def random_catalogue(num_users: int, num_items: int, generator: torch.Generator) -> Catalogue:
    positives = torch.randint(num_items, (num_users,), generator=generator)
    seen = torch.rand(num_users, num_items, generator=generator) < torch.rand(
        num_users, 1, generator=generator
    )
    seen[torch.arange(num_users), positives] = False
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), seen.sum(1).cumsum(0)])
    users = torch.randint(7, (num_users,), generator=generator)
    return Catalogue(users, positives, num_items, offsets, seen.nonzero()[:, 1])


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_a_large_catalogue_is_walked_in_parts_by_several_threads(
    monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    packed = PackedTables(random_tables(hidden=(20, 9), factors=5, biases=True, num_users=7, num_items=5000))
    catalogue = random_catalogue(50, 4990, torch.Generator().manual_seed(0))
    candidates = Candidates(catalogue.users, catalogue.positives, torch.randint(-1, 5000, (50, 900)))
    of_all = ranks_of(Scores(packed), catalogue)[0]
    of_some, counts = ranks_of(Scores(packed), candidates)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    seen = catalogue.seen_offsets, catalogue.seen_items
    ranks = packed.catalogue_ranks(catalogue.users, catalogue.positives, catalogue.num_items, *seen)
    assert ranks is not None
    assert torch.equal(ranks, of_all)
    ranked = packed.ranks(candidates.users, candidates.positives, candidates.negatives)
    assert ranked is not None
    assert torch.equal(ranked[0], of_some)
    assert torch.equal(ranked[1], counts)
    several = with_several(catalogue, torch.Generator().manual_seed(1))
    seen = several.seen_offsets, several.seen_items
    ranks = packed.catalogue_ranks(
        several.users, several.positives, several.num_items, *seen, several.positive_offsets
    )
    assert ranks is not None
    assert torch.equal(ranks, ranks_of(Scores(packed), several)[0])


def test_ties_lose_to_the_last_bit_and_without_the_kernel_it_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tables = random_tables(hidden=(4, 3), factors=2, num_users=50, num_items=300, integers=True)
    candidates = random_candidates()
    catalogue = random_catalogue(50, 300, torch.Generator().manual_seed(0))
    fast = [ranks_of(Scorer(tables), task) for task in (candidates, catalogue)]
    monkeypatch.setattr("ncf.models.scoring.fits", lambda tables: False)
    slow = [ranks_of(Scorer(tables), task) for task in (candidates, catalogue)]
    for (ranks, counts), (expected, expected_counts) in zip(fast, slow, strict=True):
        assert torch.equal(ranks, expected)
        assert torch.equal(counts, expected_counts)
    assert (fast[1][0] > 20).any()  # many of a few integers are equal


@pytest.mark.parametrize("item", [2, 5])  # the positive, a negative
def test_not_a_number_is_refused_where_it_counts(item: int) -> None:
    tables = random_tables(hidden=(4, 3), factors=2)
    assert tables.item_hidden is not None
    tables.item_hidden[item, 0] = torch.nan
    scorer = Scorer(tables)
    users, positives, negatives = torch.tensor([1, 0]), torch.tensor([1, 2]), torch.tensor([[4, 3], [5, -1]])
    with pytest.raises(ValueError, match=f"item {item} for user 0 is NaN"):
        ranks_of(scorer, Candidates(users, positives, negatives))
    assert len(ranks_of(scorer, Candidates(users[:1], positives[:1], negatives[:1]))[0]) == 1
    offsets, all_but_positive = torch.tensor([0, 1]), torch.tensor([5])
    with pytest.raises(ValueError, match=f"item {item} for user 0 is NaN"):
        ranks_of(scorer, Catalogue(users[1:], positives[1:], 8, torch.tensor([0, 0]), negatives[0, :0]))
    if item == 5:  # seen: it is no candidate
        ranks_of(scorer, Catalogue(users[1:], positives[1:], 8, offsets, all_but_positive))


@pytest.mark.parametrize(
    ("user", "positive", "negative", "message"),
    [
        (7, 0, 0, "user 7 is out of range: ids go from 0 to 6"),
        (0, 8, 0, "item 8 is out of range: ids go from 0 to 7"),
        (0, 0, 1 << 40, f"item {1 << 40} is out of range"),
    ],
)
def test_an_unknown_id_is_refused(user: int, positive: int, negative: int, message: str) -> None:
    scorer = Scorer(random_tables(hidden=(4,), factors=2))
    lists = torch.tensor([[1, 2], [3, negative]])
    with pytest.raises(IndexError, match=message):
        ranks_of(scorer, Candidates(torch.tensor([0, user]), torch.tensor([0, positive]), lists))


def test_an_unknown_id_of_a_catalogue_is_refused() -> None:
    scorer = Scorer(random_tables(hidden=(4,), factors=2))
    users, positives, none = torch.tensor([0, 7]), torch.tensor([0, 1]), torch.zeros(0, dtype=torch.int64)
    with pytest.raises(IndexError, match="user 7 is out of range: ids go from 0 to 6"):
        ranks_of(scorer, Catalogue(users, positives, 8, torch.tensor([0, 0, 0]), none))
    with pytest.raises(IndexError, match="item 8 is out of range: ids go from 0 to 7"):
        ranks_of(scorer, Catalogue(users[:1], positives[:1], 9, torch.tensor([0, 0]), none))


@pytest.mark.parametrize(
    ("offsets", "seen"),
    [([0, 2, 2], [4, 3]), ([-1, 1, 2], [3, 4]), ([0, 1, 3], [3, 4]), ([0, 2], [3, 4])],
    ids=["descending", "before the list", "after the list", "of another number of users"],
)
def test_lists_that_are_none_are_not_read(offsets: list[int], seen: list[int]) -> None:
    packed = PackedTables(random_tables(hidden=(60,), num_items=2000))
    users, positives = torch.tensor([0, 1]), torch.tensor([0, 1])
    seen_items = torch.tensor(seen) + 1000 * torch.tensor([1, 0])  # in another part of the catalogue
    assert packed.catalogue_ranks(users, positives, 2000, torch.tensor(offsets), seen_items) is None
    none = torch.zeros(3, dtype=torch.int64), seen_items
    assert packed.catalogue_ranks(users, positives, 2000, *none, torch.tensor([0, 1, 3])) is None
    assert packed.catalogue_ranks(users, positives, 2000, *none, torch.tensor([0, 2, 1])) is None
    assert packed.catalogue_ranks(users, positives, 2000, *none, torch.tensor([-1, 1, 2])) is None


def test_other_types_are_refused() -> None:
    packed = PackedTables(random_tables(hidden=(4,)))
    users, negatives = torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"positives is torch\.int32 on cpu"):
        packed.ranks(users, users.int(), negatives)
    with pytest.raises(ValueError, match=r"positives \(1, 1\)"):
        packed.ranks(users, users[:1], negatives)


def assert_best(
    best: tuple[Tensor, Tensor] | None, scores: Tensor, items: Tensor, hidden: Tensor, k: int
) -> None:
    """Compare lists with the scores ``[U, I]`` of ``items``, sorted; ``hidden[u, item]`` is not offered."""
    assert best is not None
    for row in range(len(scores)):
        free = ~hidden[row, items]
        order = scores[row, free].sort(descending=True, stable=True).indices[:k]
        rest = k - len(order)
        assert best[1][row].tolist() == items[free][order].tolist() + [-1] * rest
        assert best[0][row].tolist() == scores[row, free][order].tolist() + [-torch.inf] * rest


@settings(max_examples=120)
@given(
    st.data(),
    networks,
    st.booleans(),
    st.sampled_from([None, 4, 8, 16]),
    st.integers(0, 15),
    st.integers(1, 30),
)
def test_the_best_are_those_of_the_scores_to_the_bit(
    any_processor: Any,
    data: st.DataObject,
    network: dict[str, Any],
    product: bool,
    lanes: int | None,
    num_users: int,
    k: int,
) -> None:
    if product:
        network = {**network, "hidden": (), "factors": data.draw(st.integers(1, 70))}
    packed = packed_tables(any_processor, lanes, **network)
    num_items, generator = network["num_items"], torch.Generator().manual_seed(data.draw(st.integers(0, 100)))
    users = torch.randint(7, (num_users,), generator=generator)
    items = torch.arange(num_items)
    if data.draw(st.booleans()):
        items = items[torch.rand(num_items, generator=generator) < 0.5]
    hidden = torch.rand(num_users, num_items, generator=generator) < torch.rand(
        num_users, 1, generator=generator
    )
    if data.draw(st.booleans()):
        hidden[:] = False
    left_out = lengths_to_offsets(hidden.sum(1)), hidden.nonzero()[:, 1]
    best = packed.top_k(users, k, items, left_out if bool(hidden.any()) else None)
    scores = packed.score(users, items.expand(num_users, -1).contiguous())
    assert_best(best, scores, items, hidden, k)


@settings(max_examples=150)
@given(
    st.data(),
    st.sampled_from(["this processor", "this processor, 8 lanes", "plain"]),
    st.integers(1, 70),
    st.sampled_from([1, 5, 6, 7, 16, 25]),
    st.integers(1, 700),
    st.sampled_from([1, 3, 10, 64, 65, 200]),
    st.integers(0, 10_000),
)
def test_the_first_pass_in_bytes_leaves_the_best_as_they_are(
    any_processor: Any,
    data: st.DataObject,
    how: str,
    factors: int,
    num_users: int,
    num_items: int,
    k: int,
    seed: int,
) -> None:
    """Rows that differ by less than a byte can tell, rows of any magnitude, ties, items that are not offered."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float32)

    apart, magnitude = data.draw(st.sampled_from([0.0, 1e-6, 1e-3, 1.0])), data.draw(st.integers(-30, 15))
    rows = normal(1, factors) + apart * normal(num_items, factors)
    if data.draw(st.booleans()):
        rows *= 10.0 ** torch.randint(magnitude, magnitude + 4, (num_items, 1), generator=random)
    users = normal(9, factors) * 10.0 ** data.draw(st.integers(-30, 15))
    tables = ScoringTables(user_gmf=users, item_gmf=rows, bias=normal(1))
    if data.draw(st.booleans()):
        tables = replace(tables, user_bias=normal(9), item_bias=apart * normal(num_items))
    narrow = min(8, any_processor.ncf_lanes())
    packed = PackedTables(
        tables, *((4, any_processor) if how == "plain" else (narrow,) if "8" in how else ())
    )
    some, items = torch.randint(9, (num_users,), generator=random), torch.arange(num_items)
    if data.draw(st.booleans()):
        items = items[torch.rand(num_items, generator=random) < 0.7]
    hidden = torch.rand(num_users, num_items, generator=random) < data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    best = packed.top_k(some, k, items, (lengths_to_offsets(hidden.sum(1)), hidden.nonzero()[:, 1]))
    scores = packed.score(some, items.expand(num_users, -1).contiguous())
    assert_best(best, scores, items, hidden, k)


def test_items_out_of_order_are_selected_without_the_kernel() -> None:
    scorer, users = Scorer(random_tables(factors=3, num_items=4)), torch.arange(7)
    expected = scorer.top_k(users, 2, torch.arange(4))
    assert torch.equal(
        scorer.top_k(users, 2, torch.tensor([0, 1, 1, 3]))[0],
        Ranker.top_k(scorer, users, 2, torch.tensor([0, 1, 1, 3]))[0],
    )
    assert torch.equal(scorer.top_k(users, 2, torch.arange(4))[1], expected[1])


@pytest.mark.parametrize(
    "shape", [{"hidden": (20, 9), "factors": 5}, {"factors": 40}], ids=["mlp", "product"]
)
def test_the_best_of_a_large_catalogue_for_any_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, shape: dict[str, Any]
) -> None:
    tables = random_tables(**shape, biases=True, num_users=600, num_items=5000)
    users, items = torch.randperm(600), torch.arange(3, 5000)
    hidden = torch.randint(5000, (600, 30)).sort(dim=1).values.view(-1)
    left_out = torch.arange(601) * 30, hidden
    expected = Ranker.top_k(Scorer(tables), users[:50], 10, items, (left_out[0][:51], hidden))
    found: list[Tensor] = []
    for threads in (1, 2, 7):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        scores, selected = Scorer(tables).top_k(users, 10, items, left_out)
        assert torch.equal(selected[:50], expected[1])
        torch.testing.assert_close(scores[:50], expected[0], atol=1e-5, rtol=1e-5)
        found.append(scores)
        assert torch.equal(scores, found[0])


@pytest.mark.parametrize("shape", [{"hidden": (4, 3), "factors": 2}, {"factors": 2}], ids=["mlp", "product"])
def test_a_score_that_is_not_a_number_is_no_candidate_for_the_best(shape: dict[str, Any]) -> None:
    tables = random_tables(**shape)
    rows = tables.item_gmf
    assert rows is not None
    rows[5, 0] = torch.nan
    users, items = torch.arange(7), torch.arange(8)
    with pytest.raises(ValueError, match="item 5 for user 0 is NaN"):
        Scorer(tables).top_k(users, 3, items)
    everyone = torch.arange(8), torch.full((7,), 5)
    assert bool((Scorer(tables).top_k(users, 8, items, everyone)[1] >= 0).sum() == 7 * 7)
    rows[5, 0] = torch.inf  # no bound holds, and the scores are infinite or not a number
    rows[6] = 3e38
    _, selected = Scorer(tables).top_k(users, 8, items, everyone)
    assert torch.equal(selected, Ranker.top_k(Scorer(tables), users, 8, items, everyone)[1])
