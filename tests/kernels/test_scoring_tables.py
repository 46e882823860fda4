from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ncf.kernels import ScoringTables, score_candidates

from .examples import random_tables


def test_a_part_without_its_counterpart_is_named() -> None:
    tables = random_tables(hidden=(4, 3), factors=2)
    with pytest.raises(ValueError, match="item_gmf is missing"):
        replace(tables, item_gmf=None)
    with pytest.raises(ValueError, match="user_hidden, mlp_head is missing"):
        replace(tables, user_hidden=None, mlp_head=None)
    with pytest.raises(ValueError, match="layers are given without"):
        replace(tables, user_hidden=None, item_hidden=None, mlp_head=None)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("item_hidden", (8, 5), "(8, 4)"),
        ("user_gmf", (6, 2), "(7, 2)"),
        ("item_gmf", (8, 3), "(8, 2)"),
        ("user_bias", (7, 1), "(7,)"),
        ("item_bias", (9,), "(8,)"),
        ("mlp_head", (4,), "(3,)"),
    ],
)
def test_a_wrong_shape_is_named(name: str, shape: tuple[int, ...], expected: str) -> None:
    tables = random_tables(hidden=(4, 3), factors=2, biases=True)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        replace(tables, **{name: torch.zeros(shape)})
    assert str(error.value) == f"{name} has shape {shape}, the other tables need {expected}"


def test_a_wrong_layer_is_named() -> None:
    tables = random_tables(hidden=(4, 3, 2), factors=0)
    first, (weight, bias) = tables.layers
    with pytest.raises(ValueError, match=r"layers\[1\]\.weight has shape \(2, 3\), .* need \(5, 3\)"):
        replace(tables, layers=(first, (weight, torch.zeros(5))))
    with pytest.raises(ValueError, match=r"layers\[0\]\.weight has shape \(2, 3\), .* need \(2, 4\)"):
        replace(tables, layers=((weight, bias),))


def test_mixed_types_are_rejected_and_to_brings_them_together() -> None:
    tables = random_tables(hidden=(4, 3), factors=2)
    assert tables.item_gmf is not None
    with pytest.raises(ValueError, match=r"item_gmf is torch.float16 on cpu, but bias is torch.float32"):
        replace(tables, item_gmf=tables.item_gmf.half())
    half = tables.to(torch.float16)
    assert {half.dtype, half.layers[0][0].dtype} == {torch.float16}
    with pytest.raises(ValueError, match="bias must hold one element"):
        replace(tables, bias=torch.zeros(2))


def test_counts_come_from_any_table() -> None:
    assert (random_tables(hidden=(4,)).num_users, random_tables(factors=2).num_items) == (7, 8)
    assert ScoringTables(bias=torch.zeros(())).num_users is None


def test_detached_tables_share_memory_and_carry_no_graph() -> None:
    tables = random_tables(hidden=(4, 3), factors=2)
    weight, bias = tables.layers[0]
    tables = replace(
        tables, layers=((weight.requires_grad_(), bias),), bias=weight.new_zeros(1).requires_grad_()
    )
    detached = tables.detach()
    assert not detached.bias.requires_grad
    assert not detached.layers[0][0].requires_grad
    assert detached.layers[0][0].data_ptr() == weight.data_ptr()
    assert not score_candidates(tables, torch.tensor([0]), torch.tensor([[1]])).requires_grad
