from __future__ import annotations

from typing import Any

import pytest
import torch

from ncf import MLP, Interactions, Trainer


def _trained(precision: Any, **settings: Any) -> tuple[MLP, list[float]]:
    users = torch.arange(20).repeat_interleave(5)
    data = Interactions.from_arrays(users, (users * 7 + torch.arange(100)) % 30)
    model = MLP(20, 30, layers=(16, 8), init_std=0.3)
    trainer = Trainer(model, epochs=3, batch_size=50, precision=precision, progress=False, **settings)
    return model, trainer.fit(data).loss


def test_bf16_rounds_products_alone() -> None:
    model, losses = _trained("bf16")
    _, exact = _trained("fp32")
    assert losses == pytest.approx(exact, rel=1e-2)
    assert losses != pytest.approx(exact, rel=1e-6)
    assert {value.dtype for value in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("precision", "settings", "message"),
    [
        ("fp16", {}, "precision = 'fp16': choose one of 'fp32', 'tf32', 'bf16'"),
        ("tf32", {}, "is for NVIDIA GPUs: the model is on cpu"),
    ],
)
def test_what_cannot_be_done_is_said(precision: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _trained(precision, **settings)
