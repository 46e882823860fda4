from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ncf.models.towers import GMFTower, MLPTower, SumHead, linear_head


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("layers", [(8,), (8, 5), (8, 5, 7, 3)])
def test_the_tower_is_a_plain_perceptron_over_the_rows_side_by_side(layers: tuple[int, ...]) -> None:
    tower = MLPTower(layers, seed=1)
    plain = nn.Sequential(*(module for layer in tower.layers for module in (layer, nn.ReLU())))
    with torch.no_grad():
        for layer in tower.layers:
            layer.bias.copy_(rows(len(layer.bias)))
    user, item = rows(6, 1, 4), rows(6, 3, 4, seed=1)
    expected = plain(torch.cat([user.expand(6, 3, 4), item], dim=-1))
    torch.testing.assert_close(tower(user, item), expected)
    torch.testing.assert_close(tower(user[:, 0], item[:, 0]), expected[:, 0])
    assert expected.shape[-1] == tower.out_features
    assert tower.widths == layers


def test_the_product_broadcasts() -> None:
    user, item = rows(6, 1, 4), rows(6, 3, 4, seed=1)
    assert torch.equal(GMFTower(4)(user, item), user.expand(6, 3, 4) * item)


@pytest.mark.parametrize("tower", [GMFTower(40, dropout=0.25), MLPTower((80, 40), dropout=0.25)])
def test_dropout_drops_its_share_in_training_alone_and_keeps_the_mean(tower: nn.Module) -> None:
    user, item = rows(500, 40).abs(), rows(500, 40, seed=1).abs()
    plain = tower.eval()(user, item)
    assert torch.equal(plain, tower(user, item))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dropped = tower.train()(user, item)
    real = plain != 0
    share = float((dropped[real] == 0).float().mean())
    assert share == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / int(real.sum())) ** 0.5)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], plain[kept] / 0.75)


@pytest.mark.parametrize("layers", [(), (7, 3), (8, 0), (0,), (8, -2), (8.0, 4), (8, 2.5)])
def test_impossible_widths_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"layers = \(.*give an even width"):
        MLPTower(layers)


@pytest.mark.parametrize("dropout", [-0.1, 1.1, float("nan")])
def test_what_is_no_probability_is_refused(dropout: float) -> None:
    for build in (lambda: GMFTower(4, dropout=dropout), lambda: MLPTower((8, 4), dropout=dropout)):
        with pytest.raises(ValueError, match=f"dropout = {dropout}"):
            build()


def test_a_single_width_is_no_list_of_them() -> None:
    with pytest.raises(ValueError, match="layers = 8: give an even width"):
        MLPTower(8)  # type: ignore[arg-type]


def test_widths_may_be_numpys() -> None:
    assert MLPTower(np.array([8, 4])).widths == (8, 4)  # type: ignore[arg-type]


def test_heads() -> None:
    features = rows(5, 4)
    head = SumHead()
    with torch.no_grad():
        head.bias.fill_(0.5)
    torch.testing.assert_close(head(features)[:, 0], features.sum(1) + 0.5)
    linear = linear_head(12, seed=0)
    assert float(linear.weight.detach().abs().max()) <= 0.5  # LeCun: sqrt(3 / 12)
    assert float(linear.bias.detach()) == 0
