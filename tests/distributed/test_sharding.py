"""Sharded models against the local one, in real processes."""

from __future__ import annotations

import logging
from typing import Any
from unittest import TestCase

import pytest
import torch

from ncf import GMF, MLP, Features, MatrixFactorization, NeuMF
from ncf.distributed.sharding import rectangles, shard
from ncf.models.base import EmbeddingModel
from ncf.training.losses import binary_cross_entropy

from .workers import launch

PLANS: list[str | dict[str, str]] = [
    "auto",
    "data_parallel",
    "table_wise",
    "column_wise",
    {
        "user_gmf": "table_wise",
        "item_gmf": "column_wise",
        "user_mlp": "data_parallel",
        "item_mlp": "table_wise",
    },
]


def build(device: str | None = None) -> NeuMF:
    return NeuMF(50, 70, factors=16, layers=(32, 16), init_std=0.5, seed=3, device=device)


def batch(rank: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 * step + rank)
    users = torch.randint(0, 50, (8,), generator=generator)
    return users, torch.randint(0, 70, (8, 5), generator=generator)


def table_values(model: EmbeddingModel, name: str) -> torch.Tensor:
    return model.embeddings.weight(name).detach()


def check_tables(sharded: torch.nn.Module, local: EmbeddingModel, tolerance: float) -> None:
    for table in local.embeddings.tables:
        whole = table_values(local, table.name)
        for part, row, column in rectangles(sharded, table.name):
            expected = whole[row : row + len(part), column : column + part.shape[1]]
            torch.testing.assert_close(part, expected, atol=tolerance, rtol=0)


def advice(rank: int, world: int) -> list[str]:
    with TestCase().assertLogs("ncf", logging.INFO) as logged:
        logging.getLogger("ncf").info("at least one line")
        shard(build("meta"), "table_wise", verbose=False)
    return [record.getMessage() for record in logged.records[1:] if record.name == "ncf.distributed"]


def test_one_of_two_processes_on_cpus_says_that_one_would_be_faster() -> None:
    first, second = launch(advice, 2)
    assert len(first) == 1
    assert first[0].startswith(
        "2 processes share 0.05 MB of tables and moments: on CPUs one process without shard()"
    )
    assert second == []
    assert advice(0, 1) == []


def scores_and_initial_values(rank: int, world: int) -> None:
    local = build()
    for plan in PLANS:
        sharded = shard(build("meta"), plan, verbose=False)
        check_tables(sharded, local, 0)
        users, items = batch(rank, 0)
        users, items = users[: 3 + rank], items[: 3 + rank]  # the ranks bring different numbers of ids
        for columns in (items, items[:, 0]):
            with torch.no_grad():
                torch.testing.assert_close(sharded(users, columns), local(users, columns), atol=1e-6, rtol=0)
    for other in (GMF, MLP, MatrixFactorization):
        sharded = shard(other(50, 70, seed=1, device="meta"), "table_wise", verbose=False)
        users, items = batch(rank, 0)
        torch.testing.assert_close(
            sharded(users, items), other(50, 70, seed=1)(users, items), atol=1e-6, rtol=0
        )


@pytest.mark.parametrize("world", [2, 4])
def test_scores_equal_the_local_model_under_every_plan(world: int) -> None:
    launch(scores_and_initial_values, world)


def training_steps(rank: int, world: int, optimizer: str) -> None:
    rate = 0.1
    for plan in PLANS[1:]:
        local = build()
        sharded = shard(build("meta"), plan, optimizer=optimizer, learning_rate=rate, verbose=False)  # type: ignore[arg-type]
        dense = [p for name, p in sharded.named_parameters() if not _fused(name, plan)]
        sharded_dense = torch.optim.SGD(dense, lr=rate)
        reference = _Reference(local, optimizer, rate, plan, world)
        for step in range(6):
            losses = []
            for peer in range(world):
                losses.append(binary_cross_entropy(local(*batch(peer, step))))
            reference.step(torch.stack(losses).mean())
            loss = binary_cross_entropy(sharded(*batch(rank, step)))
            torch.testing.assert_close(loss, losses[rank], atol=1e-5, rtol=0)
            sharded_dense.zero_grad()
            loss.backward()
            sharded_dense.step()
        check_tables(sharded, local, 1e-5)
        for name, value in local.state_dict().items():
            if "embedding_bags" not in name:
                torch.testing.assert_close(sharded.state_dict()[name], value, atol=1e-5, rtol=0)


def _fused(name: str, plan: str | dict[str, str]) -> bool:
    if "embedding_bags" not in name:
        return False
    table = name.split(".")[-2]
    return (plan if isinstance(plan, str) else plan.get(table, "auto")) != "data_parallel"


class _Reference:
    """SGD everywhere but in fused tables, which have plain SGD or row-wise Adagrad written out.

    Row-wise Adagrad keeps a number per row *of a shard*: column-wise parts of a row are scaled on their own.
    """

    def __init__(
        self, model: EmbeddingModel, optimizer: str, rate: float, plan: str | dict[str, str], world: int
    ) -> None:
        self.model, self.rate = model, rate
        self.sums = {}
        for name, value in model.named_parameters():
            if optimizer == "rowwise_adagrad" and _fused(name, plan):
                kind = plan if isinstance(plan, str) else plan.get(name.split(".")[-2])
                self.sums[name] = torch.zeros(len(value), world if kind == "column_wise" else 1, 1)

    def step(self, loss: torch.Tensor) -> None:
        parameters = dict(self.model.named_parameters())
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        with torch.no_grad():
            for (name, value), gradient in zip(parameters.items(), gradients, strict=True):
                if name in self.sums:
                    sums = self.sums[name]
                    parts = gradient.view(len(value), sums.shape[1], -1)  # [rows, shards, columns]
                    sums += parts.square().mean(2, keepdim=True)
                    gradient = (parts / (sums.sqrt() + 1e-8)).flatten(1)
                value -= self.rate * gradient


@pytest.mark.slow
@pytest.mark.parametrize(("world", "optimizer"), [(2, "sgd"), (2, "rowwise_adagrad")])
def test_training_equals_one_process_on_the_same_batches(world: int, optimizer: str) -> None:
    launch(training_steps, world, optimizer)


def bad_plans(rank: int, world: int) -> None:
    with pytest.raises(
        ValueError, match="sharding of user_gmf = 'row_wise': on cpu choose one of 'auto', 'data_par"
    ):
        shard(build("meta"), "row_wise")
    with pytest.raises(ValueError, match="names the table 'films': the model has user_gmf"):
        shard(build("meta"), {"films": "table_wise"})
    with pytest.raises(ValueError, match="has 4 columns: column_wise over 2 processes needs 8"):
        shard(GMF(50, 70, factors=4, device="meta"), "column_wise")
    with pytest.raises(ValueError, match="has 6 columns: FBGEMM"):
        shard(GMF(50, 70, factors=6, device="meta"), "table_wise")
    with pytest.raises(ValueError, match="optimizer = 'adam'"):
        shard(build("meta"), "table_wise", optimizer="adam")  # type: ignore[arg-type]


def test_bad_plans_are_one_clear_error_on_every_rank() -> None:
    launch(bad_plans, 2)


def a_trained_model(rank: int, world: int) -> None:
    local = build()
    with torch.no_grad():
        for parameter in local.parameters():
            parameter.add_(0.25)
    values = {name: value.clone() for name, value in local.state_dict().items()}
    sharded = shard(local, "table_wise", verbose=False)
    again = build()
    again.load_state_dict(values)
    users, items = batch(rank, 0)
    torch.testing.assert_close(sharded(users, items), again(users, items), atol=1e-6, rtol=0)


def test_a_model_that_has_values_keeps_them() -> None:
    launch(a_trained_model, 2)


def bags_and_training(rank: int, world: int) -> None:
    """Features travel as bags: logits and scores are those of one process, and a step moves features' rows."""
    tags = Features.from_table(
        {
            "id": range(70),
            "tags": [[n % 5, 5 + n % 3][: n % 3] for n in range(70)],
            "price": [n / 7 for n in range(70)],
        },
        "id",
    )
    for plan in PLANS:
        made: Any = {"item_features": tags, "factors": 8, "layers": (16, 8), "init_std": 1.0, "seed": 1}
        local = NeuMF(50, 70, **made)
        settings: Any = {"optimizer": "sgd", "learning_rate": 0.1, "verbose": False}
        sharded = shard(NeuMF(50, 70, device="meta", **made), plan, **settings)
        users, items = batch(rank, 0)
        torch.testing.assert_close(sharded(users, items), local(users, items), atol=1e-5, rtol=1e-5)
        every = torch.arange(70)
        torch.testing.assert_close(
            sharded.module.score(users[:3], every), local.score(users[:3], every), atol=1e-5, rtol=1e-5
        )
        if plan in ("table_wise", "column_wise"):
            sharded(users, items).square().mean().backward()  # the tables' SGD is part of it
            torch.stack([local(*batch(peer, 0)).square().mean() for peer in range(world)]).mean().backward()
            with torch.no_grad():
                for table in local.embeddings.tables:
                    weight = local.embeddings.weight(table.name)
                    assert weight.grad is not None
                    weight -= 0.1 * weight.grad
            check_tables(sharded, local, 1e-5)


def test_features_travel_as_bags() -> None:
    launch(bags_and_training, 2)
