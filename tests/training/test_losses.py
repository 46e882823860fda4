from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from ncf.training.losses import LOSSES, CosineContrastive, SampledSoftmax, binary_cross_entropy, bpr


def logits(scale: float) -> torch.Tensor:
    values = scale * torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return values.requires_grad_()


@pytest.mark.parametrize("scale", [0.1, 3.0, 200.0])
def test_binary_cross_entropy_is_that_of_pytorch_with_its_gradient(scale: float) -> None:
    ours, theirs = logits(scale), logits(scale)
    labels = torch.zeros(7, 5, dtype=torch.float64)
    labels[:, 0] = 1
    expected = F.binary_cross_entropy_with_logits(theirs, labels)
    loss = binary_cross_entropy(ours)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, ours), torch.autograd.grad(expected, theirs))


@pytest.mark.parametrize("scale", [0.1, 3.0, 200.0])
def test_bpr_is_its_formula_pair_by_pair(scale: float) -> None:
    values = logits(scale)
    pairs = [
        -F.logsigmoid(values[row, 0] - values[row, column]) for row in range(7) for column in range(1, 5)
    ]
    torch.testing.assert_close(bpr(values), torch.stack(pairs).mean())


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_logits_stay_finite_and_their_gradient_has_the_right_sign(name: str) -> None:
    values = torch.tensor([[-1e4, 1e4], [0.0, 0.0]], requires_grad=True)
    loss = LOSSES[name](values)
    loss.backward()
    assert bool(loss.isfinite())
    assert values.grad is not None
    assert bool((values.grad[:, 0] < 0).all())
    assert bool((values.grad[:, 1] >= 0).all())
    assert float(values.grad[0, 1]) > 0


def test_softmax_is_the_cross_entropy_of_pytorch() -> None:
    values = logits(3.0)
    expected = F.cross_entropy(values / 0.3, torch.zeros(7, dtype=torch.int64))
    torch.testing.assert_close(SampledSoftmax(0.3)(values), expected)


def test_cosine_contrastive_loss_is_its_formula_pair_by_pair() -> None:
    values = logits(1.0)
    losses = [
        1 - row[0] + 7.0 * sum(max(0.0, float(x) - 0.4) for x in row[1:]) / 4 for row in values.detach()
    ]
    torch.testing.assert_close(CosineContrastive(0.4, 7.0)(values), torch.stack(losses).mean())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SampledSoftmax(0.0), "temperature = 0.0"),
        (lambda: CosineContrastive(margin=float("nan")), "margin = nan"),
        (lambda: CosineContrastive(weight=-1.0), "weight = -1.0"),
    ],
)
def test_settings_of_losses_are_checked(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
