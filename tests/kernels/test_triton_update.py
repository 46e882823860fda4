from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import ncf
from ncf.data.candidates import Candidates
from ncf.kernels.dispatch import can_update_rows
from ncf.kernels.triton_launch import Launch
from ncf.training.optimizers import RowSparse

State = list[Tensor]


def _train(device: str, fused: bool, table: Tensor, batches: list[tuple[Tensor, Tensor]]) -> State:
    """A table and its moments after a step of `RowSparse` for each batch of ids and gradients."""
    value = torch.nn.Parameter(table.to(device, copy=True))
    groups = [{"params": [value], "rows": True, "lr": 0.05, "weight_decay": 0.3}]
    optimizer = RowSparse(groups, rule="adamw", betas=(0.8, 0.99))
    with mock.patch("ncf.kernels.dispatch._has_triton", return_value=fused):
        for ids, gradients in batches:
            value.grad = torch.sparse_coo_tensor(
                ids[None].to(device), gradients.to(device), value.shape, check_invariants=True
            )
            optimizer.step()
    state = optimizer.state[value]
    return [each.detach().cpu() for each in (value, state["exp_avg"], state["exp_avg_sq"], state["step"])]


def _batches(width: int, pairs: int) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """A table of 17 rows, and ids and gradients of batches that have seven of them."""
    generator = torch.Generator().manual_seed(width)
    draw = partial(torch.randn, generator=generator, dtype=torch.float32)
    sizes = pairs, 0, 1, 7
    batches = [(torch.randint(5, 12, (size,), generator=generator), draw(size, width)) for size in sizes]
    return draw(17, width), batches


# Rows of one column; ids that begin in one program's places and end in another's; narrow and wide rows, padded.
@pytest.mark.parametrize(("width", "pairs"), [(1, 40), (8, 40), (33, 12), (300, 12)])
def test_fused_update_is_row_sparse_adamws(run: Callable[..., Any], width: int, pairs: int) -> None:
    table, batches = _batches(width, pairs)
    found, expected = run(_train, True, table, batches), _train("cpu", False, table, batches)
    for result, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(result, exact, rtol=2e-5, atol=2e-6)
    assert torch.equal(found[0][:5], table[:5])  # rows of no batch: neither moved nor decayed
    assert not torch.equal(found[0][5:12], table[5:12])


def test_fused_update_repeats_to_the_bit(run: Callable[..., Any]) -> None:
    first, second = (run(_train, True, *_batches(8, 40)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


NUM_USERS, NUM_ITEMS = 12, 24


def _train_and_save(device: str, fused: bool, step: bool, name: str, loss: str, path: Path) -> list[float]:
    """Losses of two epochs of `Trainer`, which saves its model.

    With the fused lookup and update in `EagerStep`, or in the step that is all of them. An epoch has two batches of
    36 pairs, which that step takes in one call, and one of 18: none fills the tiles of its kernels.
    """
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randperm(NUM_USERS * NUM_ITEMS, generator=generator)[:30]
    layers = {"layers": (16, 12, 8)} if name in ("MLP", "NeuMF") else {}
    model = getattr(ncf, name)(NUM_USERS, NUM_ITEMS, seed=1, **layers).to(device)
    kernels = []

    def count(launch: Launch) -> None:
        kernels.append(launch.kernel.fn.__name__)
        own(launch)

    own = Launch.run
    with (
        mock.patch("ncf.kernels.dispatch._has_triton", return_value=fused),
        mock.patch("ncf.training.trainer.can_be_native", return_value=False),
        mock.patch.object(Launch, "run", count),
    ):
        trainer = ncf.Trainer(
            model,
            epochs=2,
            batch_size=36,
            negatives=2,
            loss=loss,
            compile=None if step else False,
            learning_rate=0.01,
            weight_decay=0.5,
            progress=False,
        )
        history = trainer.fit(ncf.Interactions.from_arrays(pairs // NUM_ITEMS, pairs % NUM_ITEMS))
    layer = {"_backward_weight"} if name in ("MLP", "NeuMF") else set()
    assert {*kernels} == ({"_forward", "_backward_rows", "_adamw_rows", *layer} if fused else set())
    model.save(path)
    return history.loss


@pytest.mark.parametrize("step", [False, True], ids=["operators", "step"])
@pytest.mark.parametrize("loss", ["bce", "bpr"])
@pytest.mark.parametrize("name", ["GMF", "MLP", "NeuMF", "MatrixFactorization"])
def test_trainer_with_the_fused_kernels_ends_where_pytorch_does(
    run: Callable[..., Any], name: str, loss: str, step: bool, tmp_path: Path
) -> None:
    """Losses, and scores and ranks of the model that was saved and is loaded on a CPU."""
    losses = run(_train_and_save, True, step, name, loss, tmp_path / "fused")
    # On the same device, which has its own random numbers.
    expected = run(_train_and_save, False, False, name, loss, tmp_path / "reference")
    assert len(losses) == 2
    assert losses == pytest.approx(expected, rel=1e-5)
    users, items = torch.arange(NUM_USERS), torch.arange(NUM_ITEMS).expand(NUM_USERS, -1)
    models = [ncf.load(tmp_path / each) for each in ("fused", "reference")]
    with torch.no_grad():
        scores, exact = (model(users, items) for model in models)
    if loss == "bpr":  # a user's level has a gradient of rounding alone, which AdamW scales up
        scores, exact = (each - each.mean(1, keepdim=True) for each in (scores, exact))
    torch.testing.assert_close(scores, exact, rtol=1e-4, atol=1e-5)
    others = torch.stack([(users + step) % NUM_ITEMS for step in range(1, NUM_ITEMS)], dim=1)
    ranks, exact_ranks = (
        ncf.evaluate(model, Candidates(users, users, others), k=3).ranks for model in models
    )
    assert torch.equal(ranks, exact_ranks)
    assert len(ranks.unique()) > 3


def test_a_table_whose_ids_do_not_fit_two_sides_in_32_bits_is_left_to_pytorch() -> None:
    row = torch.zeros(1, 1)
    with mock.patch("ncf.kernels.dispatch._has_triton", return_value=True):
        assert can_update_rows(row.expand(10**9, 1))
        assert not can_update_rows(row.expand(10**9 + 1, 1))
