"""Ranks and the best items by the Triton kernels against those of a table of the reference's scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import ncf
from ncf import Candidates, Catalogue
from ncf.kernels import ScoringTables, score_reference
from ncf.models.scoring import Ranker, Scorer
from ncf.utils.jagged import lengths_to_offsets

from .examples import random_tables
from .test_native_ranks import random_catalogue

MODELS = ["GMF", "MatrixFactorization", "MLP", "NeuMF"]
# Of whole numbers: every sum is exact, so that ties are ties, and there are many.
NETWORKS: dict[str, dict[str, Any]] = {
    "neumf": {"hidden": (20, 9), "factors": 5},
    "mlp": {"hidden": (17,), "biases": True},
    "gmf": {"factors": 8},
    "matrix factorization": {"factors": 3, "biases": True},
    "biases alone": {"biases": True},
}
unhurried = settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Reference(Ranker):
    """Ranks and lists by a table of the reference's scores."""

    def __init__(self, tables: ScoringTables) -> None:
        self.tables = tables

    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        return score_reference(self.tables, users, candidates)


def _fused(device: str, tables: ScoringTables, method: str, *arguments: Any) -> Any:
    """A method of `Scorer` on tables of that device: the result, or the text of its error."""
    with (
        mock.patch("ncf.kernels.dispatch._has_triton", return_value=True),
        mock.patch("ncf.models.scoring.fits", return_value=False),  # the kernel in C
        mock.patch("ncf.kernels.dispatch._USERS_AT_ONCE", 3),
        mock.patch.object(Ranker, method, side_effect=AssertionError("by a table of scores")),
    ):
        scorer = Scorer(tables.to(device))
        if method == "top_k" and len(arguments) == 4:
            users, k, items, (offsets, hidden) = arguments
            return scorer.top_k(users, k, items, (offsets, hidden))
        return getattr(scorer, method)(*arguments)


def _raised(device: str, tables: ScoringTables, method: str, *arguments: Any) -> str:
    """The error of a method of `Scorer` on tables of that device."""
    with (
        mock.patch("ncf.kernels.dispatch._has_triton", return_value=True),
        mock.patch("ncf.models.scoring.fits", return_value=False),
    ):
        try:
            getattr(Scorer(tables.to(device)), method)(*arguments)
        except (ValueError, IndexError) as error:
            return f"{type(error).__name__}: {error}"
    return "nothing"


def _same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for result, exact in zip(found, expected, strict=True):
        assert result.dtype == exact.dtype
        assert torch.equal(result, exact), (result, exact)


@unhurried
@given(
    network=st.sampled_from(list(NETWORKS)),
    seed=st.integers(0, 1 << 16),
    num_users=st.integers(0, 20),
    width=st.integers(0, 40),
    shared=st.booleans(),
)
def test_ranks_among_candidates_are_those_of_the_reference(
    run: Callable[..., Any], network: str, seed: int, num_users: int, width: int, shared: bool
) -> None:
    tables = random_tables(**NETWORKS[network], integers=True, num_items=30, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    users = torch.randint(7, (num_users,), generator=generator)
    positives = torch.randint(30, (num_users,), generator=generator)
    # padding, items twice, and positives among their negatives
    negatives = torch.randint(-1, 30, (num_users, width), generator=generator)
    if shared and num_users:
        negatives = negatives[:1].expand(num_users, -1)
    candidates = Candidates(users, positives, negatives)
    _same(run(_fused, tables, "rank", candidates), Reference(tables).rank(candidates))


@unhurried
@given(
    network=st.sampled_from(list(NETWORKS)),
    seed=st.integers(0, 1 << 16),
    num_users=st.integers(1, 10),
    num_items=st.integers(1, 260),
)
def test_ranks_in_the_catalogue_are_those_of_the_reference(
    run: Callable[..., Any], network: str, seed: int, num_users: int, num_items: int
) -> None:
    tables = random_tables(**NETWORKS[network], integers=True, num_items=300, seed=seed)
    catalogue = random_catalogue(num_users, num_items, torch.Generator().manual_seed(seed))
    _same(run(_fused, tables, "rank", catalogue), Reference(tables).rank(catalogue))


@unhurried
@given(
    network=st.sampled_from(list(NETWORKS)),
    seed=st.integers(0, 1 << 16),
    num_users=st.integers(0, 4),
    num_items=st.integers(1, 300),
    k=st.sampled_from([1, 16, 17, 128]),
    filtered=st.booleans(),
    seen=st.booleans(),
)
def test_the_best_are_those_of_the_reference(
    run: Callable[..., Any],
    network: str,
    seed: int,
    num_users: int,
    num_items: int,
    k: int,
    filtered: bool,
    seen: bool,
) -> None:
    tables = random_tables(**NETWORKS[network], integers=True, num_items=num_items, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    users, items = torch.randint(7, (num_users,), generator=generator), torch.arange(num_items)
    if filtered:
        items = items[(torch.rand(num_items, generator=generator) < 0.5) | (items == 0)]
    given: tuple[Any, ...] = (users, k, items)
    if seen:
        hidden = torch.rand(num_users, num_items, generator=generator) < torch.rand(
            num_users, 1, generator=generator
        )
        given = (*given, (lengths_to_offsets(hidden.sum(1)), hidden.nonzero()[:, 1]))
    _same(run(_fused, tables, "top_k", *given), Reference(tables).top_k(*given))


@pytest.mark.parametrize("name", MODELS)
def test_models_are_evaluated_and_recommend_by_the_kernels(run: Callable[..., Any], name: str) -> None:
    sizes = {} if name in ("GMF", "MatrixFactorization") else {"layers": (32, 16, 8)}
    tables = getattr(ncf, name)(7, 140, init_std=0.5, **sizes).scoring_tables().detach()
    exact = Reference(tables.to(torch.float64))  # real numbers: no ties, and none near one
    catalogue = random_catalogue(3, 140, torch.Generator().manual_seed(1))
    candidates = Candidates(catalogue.users, catalogue.positives, torch.randint(-1, 140, (3, 45)))
    for task in (candidates, catalogue):
        _same(run(_fused, tables, "rank", task), exact.rank(task))
    seen = catalogue.seen_offsets, catalogue.seen_items
    found = run(_fused, tables, "top_k", catalogue.users, 10, torch.arange(1, 140), seen)
    expected = exact.top_k(catalogue.users, 10, torch.arange(1, 140), seen)
    assert torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[0], expected[0].float(), rtol=1e-5, atol=1e-5)


def test_items_with_equal_rows_tie_to_the_last_bit(
    run: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    # The interpreter's products are NumPy's, whose rows may differ in their last bits.
    hidden = (20, 9) if request.node.callspec.params["run"] == "cuda" else (20,)
    tables = random_tables(hidden=hidden, factors=5, num_items=150)
    assert tables.item_hidden is not None
    assert tables.item_gmf is not None
    for rows in (tables.item_hidden, tables.item_gmf):
        rows[:] = rows[:1].clone()
    catalogue = random_catalogue(3, 150, torch.Generator().manual_seed(0))
    ranks, counts = run(_fused, tables, "rank", catalogue)
    assert torch.equal(ranks, counts - 1)
    lists = Candidates(torch.arange(3), torch.arange(3), torch.arange(150).expand(3, -1))
    assert (run(_fused, tables, "rank", lists)[0] == 149).all()
    assert torch.equal(
        run(_fused, tables, "top_k", torch.arange(3), 20, torch.arange(150))[1],
        torch.arange(20).expand(3, -1),
    )


def test_several_parts_of_the_catalogue_make_one_list(run: Callable[..., Any]) -> None:
    """One user, more tiles than programs, half precision."""
    tables = random_tables(hidden=(20, 9), num_items=600, integers=True, dtype=torch.bfloat16)
    catalogue = random_catalogue(1, 600, torch.Generator().manual_seed(0))
    _same(run(_fused, tables, "rank", catalogue), Reference(tables).rank(catalogue))
    given = catalogue.users, 12, torch.arange(600), (catalogue.seen_offsets, catalogue.seen_items)
    _same(run(_fused, tables, "top_k", *given), Reference(tables).top_k(*given))


@pytest.mark.parametrize("item", [2, 5])  # the held-out item, another
def test_not_a_number_is_refused_where_it_counts(run: Callable[..., Any], item: int) -> None:
    tables = random_tables(hidden=(4, 3), factors=2)
    assert tables.item_hidden is not None
    tables.item_hidden[item, 0] = torch.nan
    users, positives, negatives = torch.tensor([1, 0]), torch.tensor([1, 2]), torch.tensor([[4, 3], [5, -1]])
    raised = run(_raised, tables, "rank", Candidates(users, positives, negatives))
    assert raised.startswith(f"ValueError: the score of item {item} for user 0 is NaN")
    assert len(run(_fused, tables, "rank", Candidates(users[:1], positives[:1], negatives[:1]))[0]) == 1
    none, seen = negatives[0, :0], torch.tensor([5])
    free = Catalogue(users[1:], positives[1:], 8, torch.tensor([0, 0]), none)
    assert run(_raised, tables, "rank", free).startswith(f"ValueError: the score of item {item} for user 0")
    items = torch.arange(8)
    assert f"item {item} for user 1 is NaN" in run(_raised, tables, "top_k", users, 3, items)
    if item == 5:  # seen: it is no candidate
        run(_fused, tables, "rank", Catalogue(users[1:], positives[1:], 8, torch.tensor([0, 1]), seen))
        left_out = torch.tensor([0, 1]), seen
        assert (run(_fused, tables, "top_k", users[:1], 8, items, left_out)[1] >= 0).sum() == 7


def test_an_unknown_id_is_refused(run: Callable[..., Any]) -> None:
    tables = random_tables(hidden=(4,), factors=2)
    lists = torch.tensor([[1, 2], [3, 4]])
    for user, positive, negative, message in [
        (7, 0, 0, "IndexError: user 7 is out of range: ids go from 0 to 6"),
        (0, 8, 0, "IndexError: item 8 is out of range: ids go from 0 to 7"),
        (0, 0, 1 << 40, f"IndexError: item {1 << 40} is out of range"),
    ]:
        lists[1, 1] = negative
        candidates = Candidates(torch.tensor([0, user]), torch.tensor([0, positive]), lists)
        assert run(_raised, tables, "rank", candidates).startswith(message)
    none = torch.zeros(0, dtype=torch.int64)
    larger = Catalogue(torch.tensor([0]), torch.tensor([0]), 9, torch.tensor([0, 0]), none)
    assert run(_raised, tables, "rank", larger).startswith("IndexError: item 8 is out of range")
    assert "user 7 is" in run(_raised, tables, "top_k", torch.tensor([7]), 3, torch.arange(8))


def _longer(device: str, tables: ScoringTables, k: int) -> tuple[Tensor, Tensor]:
    with (
        mock.patch("ncf.kernels.dispatch._has_triton", return_value=True),
        mock.patch("ncf.models.scoring.fits", return_value=False),
    ):
        return Scorer(tables.to(device)).top_k(torch.arange(3), k, torch.arange(200))


def test_longer_lists_than_the_kernel_keeps_are_selected_from_a_table(run: Callable[..., Any]) -> None:
    tables = random_tables(hidden=(4,), factors=2, num_items=200, integers=True)
    _same(run(_longer, tables, 129), Reference(tables).top_k(torch.arange(3), 129, torch.arange(200)))
