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


@pytest.mark.parametrize("width", [1, 8, 33, 300])
def test_fused_update_is_row_sparse_adamws(run: Callable[..., Any], width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    draw = partial(torch.randn, generator=generator, dtype=torch.float32)
    batches = [
        (torch.randint(5, 12, (pairs,), generator=generator), draw(pairs, width))
        for pairs in (40, 0, 1, 7, 40)
    ]
    table = draw(17, width)
    found, again = run(_train, True, table, batches), run(_train, True, table, batches)
    expected = _train("cpu", False, table, batches)
    for result, repeated, exact in zip(found, again, expected, strict=True):
        assert torch.equal(result, repeated)
        torch.testing.assert_close(result, exact, rtol=2e-5, atol=2e-6)
    assert torch.equal(found[0][:5], table[:5])  # rows of no batch: neither moved nor decayed
    assert not torch.equal(found[0][5:12], table[5:12])


def _losses_and_scores(
    device: str, fused: bool, step: bool, name: str, loss: str, path: str | None = None
) -> tuple[list[float], Tensor]:
    """Losses of two epochs of `Trainer`, and scores of what it trained, on a CPU.

    With the fused lookup and update in `EagerStep`, or in the step that is all of them.
    """
    ids = torch.randint(12, (60, 2), generator=torch.Generator().manual_seed(0)).unique(dim=0)
    layers = {"layers": (16, 12, 8)} if name in ("MLP", "NeuMF") else {}
    model = getattr(ncf, name)(12, 12, seed=1, **layers).to(device)
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
            batch_size=96,
            negatives=2,
            loss=loss,
            compile=None if step else False,
            weight_decay=0.05,
            progress=False,
        )
        history = trainer.fit(ncf.Interactions.from_arrays(ids[:, 0], ids[:, 1]))
    layer = {"_backward_weight"} if name in ("MLP", "NeuMF") else set()
    assert {*kernels} == ({"_forward", "_backward_rows", "_adamw_rows", *layer} if fused else set())
    model = model.cpu()
    if path is not None:
        model.save(path)
    with torch.no_grad():
        return history.loss, model(torch.arange(12), torch.arange(12).expand(12, -1))


@pytest.mark.parametrize("step", [False, True], ids=["operators", "step"])
@pytest.mark.parametrize("loss", ["bce", "bpr"])
@pytest.mark.parametrize("name", ["GMF", "MLP", "NeuMF", "MatrixFactorization"])
def test_trainer_with_the_fused_kernels_ends_where_pytorch_does(
    run: Callable[..., Any], name: str, loss: str, step: bool
) -> None:
    losses, scores = run(_losses_and_scores, True, step, name, loss)
    # On the same device, which has its own random numbers.
    expected, exact = run(_losses_and_scores, False, False, name, loss)
    assert len(losses) == 2
    assert losses == pytest.approx(expected, rel=1e-5)
    if loss == "bpr":  # a user's level has a gradient of rounding alone, which AdamW scales up
        scores, exact = (each - each.mean(1, keepdim=True) for each in (scores, exact))
    torch.testing.assert_close(scores, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["NeuMF", "MatrixFactorization"])
def test_a_model_trained_by_the_fused_step_is_saved_loaded_and_ranks_as_the_references(
    run: Callable[..., Any], name: str, tmp_path: Path
) -> None:
    run(_losses_and_scores, True, True, name, "bce", str(tmp_path / "fused"))
    run(_losses_and_scores, False, False, name, "bce", str(tmp_path / "reference"))
    users = torch.arange(12)
    candidates = Candidates(users, users, torch.stack([(users + step) % 12 for step in range(1, 12)], dim=1))
    models = [ncf.load(tmp_path / each) for each in ("fused", "reference")]
    fused, reference = (ncf.evaluate(model, candidates, k=3).ranks for model in models)
    assert torch.equal(fused, reference)
    assert len(fused.unique()) > 3


def test_a_table_whose_ids_do_not_fit_two_sides_in_32_bits_is_left_to_pytorch() -> None:
    row = torch.zeros(1, 1)
    with mock.patch("ncf.kernels.dispatch._has_triton", return_value=True):
        assert can_update_rows(row.expand(10**9, 1))
        assert not can_update_rows(row.expand(10**9 + 1, 1))
