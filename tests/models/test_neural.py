from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ncf import GMF, MLP, MatrixFactorization, NeuMF
from ncf.data.interactions import Vocabulary


def every_pair(num_users: int, num_items: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(num_users), torch.arange(num_items).expand(num_users, -1)


def test_gmf_with_unit_head_is_a_dot_product() -> None:
    model = GMF(5, 7, factors=3, init_std=1.0)
    with torch.no_grad():
        model.head.weight.fill_(1.0)
        model.head.bias.zero_()
    weights = model.state_dict()
    user, item = (weights[f"embeddings.ebc.embedding_bags.{side}_gmf.weight"] for side in ("user", "item"))
    torch.testing.assert_close(model(*every_pair(5, 7)).detach(), user @ item.T)


def test_mlp_is_a_perceptron_over_the_rows_side_by_side() -> None:
    model = MLP(4, 6, layers=(8, 5, 3), init_std=1.0)
    weights = model.state_dict()
    user, item = (weights[f"embeddings.ebc.embedding_bags.{side}_mlp.weight"] for side in ("user", "item"))
    hidden = torch.cat([user[:, None].expand(4, 6, 4), item.expand(4, 6, 4)], dim=-1)
    for index in range(2):
        layer = (weights[f"towers.mlp.layers.{index}.{name}"] for name in ("weight", "bias"))
        hidden = torch.relu(torch.nn.functional.linear(hidden, *layer))
    expected = hidden @ weights["head.weight"][0] + weights["head.bias"]
    torch.testing.assert_close(model(*every_pair(4, 6)).detach(), expected)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_fault_14_fusion_mixes_weights_and_bias_and_keeps_nothing_else(alpha: float) -> None:
    gmf, mlp = GMF(5, 7, factors=3, init_std=1.0), MLP(5, 7, layers=(8, 4), init_std=1.0)
    with torch.no_grad():
        gmf.head.bias.fill_(0.7)
        mlp.head.bias.fill_(-0.2)
    fused = NeuMF.from_pretrained(gmf, mlp, alpha=alpha)
    pairs = every_pair(5, 7)
    torch.testing.assert_close(fused(*pairs), alpha * gmf(*pairs) + (1 - alpha) * mlp(*pairs))
    plain = NeuMF(5, 7, factors=3, layers=(8, 4))
    count = [sum(parameter.numel() for parameter in model.parameters()) for model in (fused, plain)]
    assert count[0] == count[1]
    with torch.no_grad():
        fused.embeddings.weight("user_gmf").zero_()
    assert bool((gmf.embeddings.weight("user_gmf") != 0).all())


def test_parts_of_different_sizes_do_not_fuse() -> None:
    with pytest.raises(ValueError, match="num_items differs: 7 in gmf, 8 in mlp"):
        NeuMF.from_pretrained(GMF(5, 7), MLP(5, 8))
    with pytest.raises(ValueError, match=r"alpha = 1\.5"):
        NeuMF.from_pretrained(GMF(5, 7), MLP(5, 7), alpha=1.5)


@pytest.mark.parametrize("bad", [0, -3, 2.5, True])
def test_sizes_must_be_positive_whole_numbers(bad: object) -> None:
    with pytest.raises(ValueError, match="num_items = "):
        GMF(5, bad)  # type: ignore[arg-type]


def test_impossible_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="factors = 0"):
        GMF(5, 7, factors=0)
    with pytest.raises(ValueError, match=r"layers = \(7, 3\)"):
        MLP(5, 7, layers=(7, 3))


def test_initial_values_follow_the_paper_and_the_seed() -> None:
    model = NeuMF(3000, 500, seed=1)
    table = model.embeddings.weight("user_gmf").detach()
    assert abs(float(table.std()) - 0.01) < 5e-4
    assert abs(float(table.mean())) < 5e-4
    assert torch.equal(table, NeuMF(3000, 500, seed=1).embeddings.weight("user_gmf"))
    assert not torch.equal(table, NeuMF(3000, 500, seed=2).embeddings.weight("user_gmf"))
    first = model.towers["mlp"].layers[0]
    bound = (6 / (first.in_features + first.out_features)) ** 0.5
    assert 0.95 * bound < float(first.weight.detach().abs().max()) <= bound
    assert bool((first.bias == 0).all())


def test_a_rectangle_of_a_table_is_filled_as_the_whole_would_be() -> None:
    model = MatrixFactorization(2500, 4, factors=6, seed=5)
    whole = model.embeddings.weight("user_mf")
    part = torch.empty(1300, 4)
    model.embeddings.table_fillers["user_mf"](part, row=900, column=4)
    assert torch.equal(part, whole[900:2200, 4:8])


@pytest.mark.parametrize("bad", [0, -1, 2.5, True])
def test_factors_must_be_a_positive_whole_number(bad: object) -> None:
    for model in (GMF, NeuMF, MatrixFactorization):
        with pytest.raises(ValueError, match=f"factors = {bad}: give a whole number of at least 1"):
            model(5, 7, factors=bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [GMF, MLP, NeuMF, MatrixFactorization])
def test_dropout_and_deviation_are_checked_when_built(model: type) -> None:
    with pytest.raises(ValueError, match=r"dropout = 1\.5: give a probability"):
        model(5, 7, dropout=1.5)
    with pytest.raises(ValueError, match=r"init_std = -1\.0"):
        model(5, 7, init_std=-1.0)


def test_numpys_numbers_build_the_same_model() -> None:
    wide = np.int64
    model = NeuMF(wide(5), wide(7), factors=wide(4), layers=np.array([8, 4]), seed=wide(3))  # type: ignore[arg-type]
    plain = NeuMF(5, 7, factors=4, layers=(8, 4), seed=3)
    assert json.dumps(model.config) == json.dumps(plain.config)
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_parts_trained_on_other_raw_ids_do_not_fuse() -> None:
    gmf, mlp = GMF(2, 3), MLP(2, 3)
    gmf.user_ids, mlp.user_ids = Vocabulary(["a", "b"]), Vocabulary(["b", "a"])
    with pytest.raises(ValueError, match="user_ids differs"):
        NeuMF.from_pretrained(gmf, mlp)
    gmf.user_ids = None
    assert NeuMF.from_pretrained(gmf, mlp).user_ids is mlp.user_ids
    gmf.user_ids = Vocabulary(["b", "a"])
    assert NeuMF.from_pretrained(gmf, mlp).user_ids is gmf.user_ids


def test_models_of_one_seed_share_no_numbers_between_their_tables() -> None:
    model = NeuMF(500, 500, factors=8, layers=(16, 8))
    tables = [model.embeddings.weight(table.name).detach().flatten() for table in model.embeddings.tables]
    correlations = torch.corrcoef(torch.stack(tables)) - torch.eye(4)
    assert float(correlations.abs().max()) < 0.08  # five standard errors


def test_a_model_prints_the_arguments_it_was_built_with() -> None:
    assert "num_users=5, num_items=7, factors=4, dropout=0.0, init_std=0.01, seed=0" in repr(
        GMF(5, 7, factors=4)
    )
