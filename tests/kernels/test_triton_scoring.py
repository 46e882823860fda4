from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import ncf
from ncf.kernels import ScoringTables, score_reference

from .examples import amid_nans, random_pairs, random_tables, rounding_bound

# fp32 products are made of three of tf32: what is dropped is the product of two errors of 2⁻¹¹.
EPSILON = {torch.float32: 2.0**-21, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def _score(device: str, tables: ScoringTables, users: Tensor, candidates: Tensor) -> Tensor:
    from ncf.kernels.triton_scoring import score_triton

    return score_triton(tables.to(device), users.to(device), candidates.to(device)).cpu()


def _score_common(device: str, tables: ScoringTables, users: Tensor, items: Tensor) -> Tensor:
    from ncf.kernels.triton_scoring import score_triton

    return score_triton(tables.to(device), users.to(device), items.to(device)).cpu()


def _check(scores: Tensor, tables: ScoringTables, users: Tensor, candidates: Tensor) -> None:
    exact = score_reference(tables.to(torch.float64), users, candidates)
    assert scores.dtype == torch.float32
    assert scores.shape == candidates.shape
    padding = candidates < 0
    assert (scores[padding] == -torch.inf).all()
    errors = (scores.double() - exact).abs()[~padding]
    bounds = rounding_bound(tables, users, candidates, EPSILON[tables.dtype])[~padding]
    assert (errors <= bounds).all(), (
        f"error of {float((errors / bounds).max()):.2f} of what rounding explains"
    )


MODELS = {
    "neumf of the paper": {"hidden": (32, 16, 8), "factors": 8},
    "four hidden layers": {"hidden": (40, 24, 12, 6), "factors": 5},
    "one hidden layer": {"hidden": (16,), "factors": 8},
    "one odd hidden layer": {"hidden": (37,)},
    "odd widths": {"hidden": (33, 21, 1), "factors": 3, "biases": True},
    "wide, in chunks": {"hidden": (150, 70, 20), "factors": 140},
    "the widest later layer": {"hidden": (24, 128, 8)},
    "gmf alone": {"factors": 8},
    "dot product with biases": {"factors": 12, "biases": True},
    "mlp alone": {"hidden": (64, 32)},
    "mlp without hidden layer": {"biases": True},
    "a constant": {},
}


@pytest.mark.parametrize("dtype", list(EPSILON), ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_kernel_equals_the_reference(run: Callable[..., Any], model: str, dtype: torch.dtype) -> None:
    tables = random_tables(**MODELS[model], dtype=dtype)
    users, candidates = random_pairs(tables, 3, 50)  # 150 pairs: a tile and a part of one, across users
    _check(run(_score, tables, users, candidates), tables, users, candidates)
    common = candidates[:1].expand(3, -1)
    _check(run(_score_common, tables, users, common[0]), tables, users, common)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    hidden=st.lists(st.integers(1, 40), max_size=4).map(tuple),
    factors=st.integers(0, 20),
    biases=st.booleans(),
    dtype=st.sampled_from(list(EPSILON)),
    num_users=st.integers(1, 6),
    num_candidates=st.integers(0, 40),
    seed=st.integers(0, 1 << 16),
)
def test_kernel_equals_the_reference_at_random_shapes(
    run: Callable[..., Any],
    hidden: tuple[int, ...],
    factors: int,
    biases: bool,
    dtype: torch.dtype,
    num_users: int,
    num_candidates: int,
    seed: int,
) -> None:
    tables = random_tables(hidden=hidden, factors=factors, biases=biases, dtype=dtype, seed=seed)
    users, candidates = random_pairs(tables, num_users, num_candidates, seed=seed)
    _check(run(_score, tables, users, candidates), tables, users, candidates)
    if num_users > 1:
        common = candidates[:1].expand(num_users, -1)
        _check(run(_score_common, tables, users, common[0]), tables, users, common)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("GMF", {"factors": 8, "init_std": 0.5}),
        ("MLP", {"layers": (32, 16, 8), "init_std": 0.5}),
        ("MLP", {"layers": (16,), "init_std": 0.5}),
        ("NeuMF", {"factors": 8, "layers": (64, 32, 16, 8), "init_std": 0.5}),
        ("MatrixFactorization", {"factors": 8, "init_std": 0.5}),
    ],
)
def test_kernel_scores_as_the_model_does(run: Callable[..., Any], name: str, sizes: dict[str, Any]) -> None:
    model = getattr(ncf, name)(7, 8, **sizes)
    users, items = torch.randint(7, (5,)), torch.randint(8, (5, 30))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1  # so that no bias is zero
        expected = model(users, items)
    scores = run(_score, model.scoring_tables().detach(), users, items)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


def test_more_tiles_than_programs(run: Callable[..., Any]) -> None:
    tables = random_tables(hidden=(8, 4), factors=4)
    users, candidates = random_pairs(
        tables, 90, 11
    )  # 990 pairs: eight tiles for the interpreter's four programs
    _check(run(_score, tables, users, candidates), tables, users, candidates)


def test_more_users_than_a_program_takes_of_a_common_list(run: Callable[..., Any]) -> None:
    tables = random_tables(hidden=(8, 4), factors=4)
    users, candidates = random_pairs(tables, 18, 130)
    common = candidates[:1].expand(18, -1)
    _check(run(_score_common, tables, users, common[0]), tables, users, common)


@pytest.mark.parametrize(
    ("num_users", "num_candidates"), [(0, 5), (5, 0), (0, 0), (1, 1), (1, 300), (200, 1)]
)
def test_few_of_one_side(run: Callable[..., Any], num_users: int, num_candidates: int) -> None:
    tables = random_tables(hidden=(8, 4), factors=4, biases=True)
    users, candidates = random_pairs(tables, num_users, num_candidates)
    _check(run(_score, tables, users, candidates), tables, users, candidates)


def test_all_padding_is_minus_infinity(run: Callable[..., Any]) -> None:
    tables = random_tables(hidden=(8, 4), factors=4, biases=True)
    padding = torch.full((3, 5), -1)
    assert (run(_score, tables, torch.arange(3), padding) == -torch.inf).all()
    assert (run(_score_common, tables, torch.arange(3), padding[0]) == -torch.inf).all()


def _score_views(device: str, user: Tensor, item: Tensor, users: Tensor, candidates: Tensor) -> Tensor:
    from ncf.kernels.triton_scoring import score_triton

    return score_triton(
        _views(user.to(device), item.to(device)), users.to(device), candidates.to(device).T
    ).cpu()


def _views(user: Tensor, item: Tensor) -> ScoringTables:
    """As matrix factorization has them: columns of a table with padded rows; one stored column by column."""
    return ScoringTables(
        user_gmf=user[:, :5],
        item_gmf=item[:, :5],
        user_hidden=user[:, 6:10],
        item_hidden=item.T.contiguous().T[:, 6:10],
        layers=((item[:4, :4].T, item[:4, 5]),),
        mlp_head=item[:4, 6],
        user_bias=user[:, 5],
        item_bias=item[:, 5],
        bias=user.new_zeros(()),
    )


def test_strided_tables_and_candidates(run: Callable[..., Any]) -> None:
    user, item = (torch.randn(count, 12, dtype=torch.float32) for count in (7, 8))
    users, candidates = torch.tensor([2, 0, 6]), torch.randint(-1, 8, (13, 3))
    scores = run(_score_views, user, item, users, candidates)
    _check(scores, _views(user, item), users, candidates.T)


def _score_amid_nans(device: str, tables: ScoringTables, users: Tensor, candidates: Tensor) -> Tensor:
    tables = tables.to(device)
    named = {
        field.name: amid_nans(value)
        for field in fields(tables)
        if isinstance(value := getattr(tables, field.name), Tensor)
    }
    layers = tuple((amid_nans(weight), amid_nans(bias)) for weight, bias in tables.layers)
    return _score(device, replace(tables, **named, layers=layers), users, candidates)


def test_nothing_outside_the_tables_is_read(run: Callable[..., Any]) -> None:
    tables = random_tables(hidden=(33, 21, 5), factors=7, biases=True)
    users, candidates = random_pairs(tables, 9, 31)
    _check(run(_score_amid_nans, tables, users, candidates), tables, users, candidates)


def test_not_a_number_reaches_the_score(run: Callable[..., Any]) -> None:
    """A GPU's maximum of NaN and 0 is 0, where PyTorch's rectifier keeps NaN: a model that diverged must show."""
    tables = random_tables(hidden=(20, 8, 4), factors=2)
    assert tables.item_hidden is not None
    users, candidates = torch.tensor([3]), torch.tensor([[0, 5]])
    for place in (tables.item_hidden[5], tables.layers[0][1], tables.layers[1][1]):
        kept = place.clone()
        place[2] = torch.nan
        found = run(_score, tables, users, candidates)
        assert torch.equal(found.isnan(), score_reference(tables, users, candidates).isnan())
        assert found[0, 1].isnan()
        place.copy_(kept)


def test_scores_do_not_depend_on_the_batch(run: Callable[..., Any]) -> None:
    """Results that change with the evaluation batch size: a user alone and among others, to the bit."""
    tables = random_tables(hidden=(33, 21), factors=8, integers=True)
    users, candidates = random_pairs(tables, 12, 31)
    together = run(_score, tables, users, candidates)
    assert torch.equal(together, score_reference(tables, users, candidates))
    alone = [run(_score, tables, users[u : u + 1], candidates[u : u + 1]) for u in (0, 5, 11)]
    assert torch.equal(together[[0, 5, 11]], torch.cat(alone))


def _fits(device: str, tables: ScoringTables) -> bool:
    from ncf.kernels.triton_scoring import fits

    return fits(tables.to(device))


@pytest.mark.parametrize(
    ("hidden", "dtype", "expected"),
    [
        ((1000, 128), torch.float32, True),
        ((1000, 129), torch.float32, False),
        ((16, 256, 8), torch.bfloat16, True),
        ((16, 257, 8), torch.bfloat16, False),
        ((16, 8), torch.float64, False),
        ((), torch.float32, True),
    ],
)
def test_what_fits(
    run: Callable[..., Any], hidden: tuple[int, ...], dtype: torch.dtype, expected: bool
) -> None:
    assert run(_fits, random_tables(hidden=hidden, factors=2, dtype=dtype)) == expected
