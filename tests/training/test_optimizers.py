from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ncf import GMF, NeuMF
from ncf.training.optimizers import RowSparse, make_optimizer


def table() -> torch.nn.Parameter:
    values = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return torch.nn.Parameter(values)


def loss(rows: Tensor, step: int) -> Tensor:
    return (rows * torch.arange(1.0, 4.0, dtype=torch.float64) - 0.1 * step).square().sum()


BATCHES = [torch.tensor(rows) for rows in ([0, 2, 2, 5], [2], [0, 1, 6, 6, 6], [5, 0], [3, 3])]


@pytest.mark.parametrize("sparse", [True, False], ids=["rows of a sparse gradient", "rows that are not zero"])
def test_rows_move_by_the_lazy_adam_of_pytorch(sparse: bool) -> None:
    ours, theirs = table(), table()
    first = RowSparse([{"params": [ours], "rows": True, "lr": 0.1}], rule="adamw")
    second = torch.optim.SparseAdam([theirs], lr=0.1)
    for step, rows in enumerate(BATCHES):
        for value, optimizer, kind in ((ours, first, sparse), (theirs, second, True)):
            optimizer.zero_grad()
            loss(F.embedding(rows, value, sparse=kind), step).backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)  # the two add epsilon in other places


@pytest.mark.parametrize("rule", ["adamw", "adagrad", "rowwise_adagrad", "sgd"])
def test_a_row_is_left_alone_but_in_its_batches(rule: str) -> None:
    value = table()
    optimizer = RowSparse([{"params": [value], "rows": True, "lr": 0.1, "weight_decay": 0.5}], rule=rule)
    for step, rows in enumerate(BATCHES):
        before = value.detach().clone()
        optimizer.zero_grad()
        loss(F.embedding(rows, value, sparse=True), step).backward()
        optimizer.step()
        moved = (before != value).any(dim=1).nonzero().squeeze(1)
        assert torch.equal(moved, rows.unique())


@pytest.mark.parametrize("rule", ["adamw", "adagrad", "rowwise_adagrad", "sgd"])
def test_decay_is_decoupled_and_pulls_the_head_towards_one(rule: str) -> None:
    """The step is that without decay, and rate · decay · (w − target) beside it; a rate of zero holds."""
    rates = {"gmf": 0.1, "gmf_head": 0.0, "mlp": 0.2, "tower": 0.3, "head": 0.4}
    decays = {"gmf": 0.5, "gmf_head": 9.0, "mlp": 1.0, "tower": 0.7, "head": 0.6}
    users, items = torch.tensor([0, 1]), torch.tensor([[0, 2], [1, 2]])
    ended: list[NeuMF] = []
    for weight_decay in (decays, 0.0):
        model = NeuMF(2, 3, factors=2, layers=(4, 3), init_std=0.5)
        optimizer = make_optimizer(model, rule, learning_rate=rates, weight_decay=weight_decay)
        model(users, items).square().sum().backward()
        optimizer.step()
        ended.append(model)
    start = dict(NeuMF(2, 3, factors=2, layers=(4, 3), init_std=0.5).named_parameters())
    for (name, with_decay), without in zip(ended[0].named_parameters(), ended[1].parameters(), strict=True):
        part = name.split(".")[-2].split("_")[-1] if "embeddings" in name else name.split(".")[0].rstrip("s")
        pull = 0.0 if name.endswith("bias") else rates[part] * decays[part]
        expected = without - pull * start[name]
        if name == "head.weight":
            expected = torch.cat([start[name][:, :2], expected[:, 2:]], dim=1)
        torch.testing.assert_close(with_decay, expected)
    model = GMF(2, 3, factors=2)
    optimizer = make_optimizer(model, rule, learning_rate=0.1, weight_decay={"gmf_head": 0.5, "default": 0.0})
    before = model.head.weight.detach().clone()
    model.head.weight.grad = torch.zeros_like(before)
    optimizer.step()
    torch.testing.assert_close(model.head.weight, before - 0.05 * (before - 1.0))


def test_row_wise_adagrad_keeps_one_number_for_each_row() -> None:
    value = table()
    optimizer: Any = RowSparse([{"params": [value], "rows": True, "lr": 0.1}], rule="rowwise_adagrad")
    before = value.detach().clone()
    F.embedding(torch.tensor([4]), value, sparse=True).sum().mul(3.0).backward()
    optimizer.step()
    assert optimizer.state[value]["sum"].tolist() == [0, 0, 0, 0, 9.0, 0, 0]  # the mean of squares
    torch.testing.assert_close(value[4], before[4] - 0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": {"gmf": 0.1}}, "learning_rate has no number for the part 'head'"),
        (
            {"learning_rate": 0.1, "weight_decay": {"mpl": 1.0, "default": 0.1}},
            "weight_decay names the part 'mpl'",
        ),
        ({"learning_rate": float("inf")}, "learning_rate = inf: give a finite number"),
        ({"learning_rate": 0.1, "weight_decay": -1}, "weight_decay = -1: give a finite number of at least 0"),
    ],
)
def test_settings_by_part_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_optimizer(GMF(2, 3), "adamw", **settings)


def test_dense_adam_has_one_setting_for_all_parts() -> None:
    with pytest.raises(ValueError, match="choose 'adamw'"):
        make_optimizer(GMF(2, 3), "adam", learning_rate={"gmf": 0.1, "default": 0.2})
