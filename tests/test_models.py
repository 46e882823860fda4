from __future__ import annotations

import pytest
import torch

from ncf import GMF, MLP, MatrixFactorization, NeuMF


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


def test_matrix_factorization_is_a_dot_product_with_biases() -> None:
    model = MatrixFactorization(4, 6, factors=5, init_std=1.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    weights = model.state_dict()
    user, item = (weights[f"embeddings.ebc.embedding_bags.{side}_mf.weight"] for side in ("user", "item"))
    assert user.shape[1] % 4 == 0  # FBGEMM's rows
    expected = user[:, :5] @ item[:, :5].T + user[:, 5][:, None] + item[:, 5] + weights["head.bias"]
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
    table = model.embeddings.tables[0]
    whole = model.embeddings.weight("user_mf")
    part = torch.empty(1300, 4)
    model.embeddings.fill(table, part, seed=5, row=900, column=4)
    assert torch.equal(part, whole[900:2200, 4:8])
