from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ncf.kernels import ScoringTables, lookup_reference, score_reference

from .examples import random_pairs, random_tables


def test_scores_equal_a_perceptron_over_rows_side_by_side() -> None:
    """The oracle has no separable layer: it concatenates, and runs PyTorch's own modules in fp64."""
    torch.manual_seed(0)
    dim, factors, sizes = 5, 3, (7, 4)
    gmf, mlp = (
        [nn.Embedding(n, factors).double() for n in (6, 9)],
        [nn.Embedding(n, dim).double() for n in (6, 9)],
    )
    network = nn.Sequential(nn.Linear(2 * dim, 7), nn.ReLU(), nn.Linear(*sizes), nn.ReLU()).double()
    head = nn.Linear(factors + 4, 1).double()
    of_user, of_item = network[0].weight.chunk(2, dim=1)
    tables = ScoringTables(
        user_hidden=mlp[0].weight @ of_user.T + network[0].bias,
        item_hidden=mlp[1].weight @ of_item.T,
        layers=((network[2].weight, network[2].bias),),
        mlp_head=head.weight[0, factors:],
        user_gmf=gmf[0].weight * head.weight[:, :factors],
        item_gmf=gmf[1].weight,
        bias=head.bias,
    )
    users, items = torch.randint(6, (4,)), torch.randint(9, (4, 11))
    pairs = users[:, None].expand(items.shape)
    product = gmf[0](pairs) * gmf[1](items)
    hidden = network(torch.cat([mlp[0](pairs), mlp[1](items)], dim=-1))
    expected = head(torch.cat([product, hidden], dim=-1))[..., 0]
    torch.testing.assert_close(score_reference(tables, users, items), expected)


def test_scores_equal_the_formula_pair_by_pair() -> None:
    tables = random_tables(hidden=(5, 4, 3), factors=2, biases=True)
    users, candidates = random_pairs(tables, 3, 9)
    scores = score_reference(tables, users, candidates)
    assert (candidates < 0).any()
    t = {
        name: getattr(tables, name).tolist()
        for name in (
            "user_hidden",
            "item_hidden",
            "mlp_head",
            "user_gmf",
            "item_gmf",
            "user_bias",
            "item_bias",
            "bias",
        )
    }
    for row, user in enumerate(users.tolist()):
        for column, item in enumerate(candidates[row].tolist()):
            if item < 0:
                assert scores[row, column] == -math.inf
                continue
            hidden = [
                max(0.0, p + q) for p, q in zip(t["user_hidden"][user], t["item_hidden"][item], strict=True)
            ]
            for weight, bias in tables.layers:
                sums = [sum(w * h for w, h in zip(unit, hidden, strict=True)) for unit in weight.tolist()]
                hidden = [max(0.0, total + b) for total, b in zip(sums, bias.tolist(), strict=True)]
            expected = t["bias"][0] + t["user_bias"][user] + t["item_bias"][item]
            expected += sum(p * q for p, q in zip(t["user_gmf"][user], t["item_gmf"][item], strict=True))
            expected += sum(w * h for w, h in zip(t["mlp_head"], hidden, strict=True))
            assert float(scores[row, column]) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_fp32(dtype: torch.dtype) -> None:
    tables = random_tables(hidden=(33, 20), factors=50, dtype=dtype)
    users, candidates = random_pairs(tables, 3, 9)
    scores = score_reference(tables, users, candidates)
    assert scores.dtype == torch.float32
    exact = score_reference(tables.to(torch.float64), users, candidates)
    torch.testing.assert_close(scores.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("several", [False, True])
def test_lookup_equals_the_layer_over_rows_side_by_side(several: bool) -> None:
    torch.manual_seed(0)
    rows = [torch.randn(n, width, dtype=torch.float64) for n, width in ((6, 3), (9, 3), (6, 5), (9, 5))]
    layer = nn.Linear(10, 7).double()
    users, items = torch.randint(6, (4,)), torch.randint(9, (4, 2) if several else (4,))
    product, hidden = lookup_reference(users, items, *rows, layer.weight, layer.bias)
    users = users[:, None].expand(items.shape) if several else users
    torch.testing.assert_close(product, rows[0][users] * rows[1][items])
    expected = torch.relu(layer(torch.cat([rows[2][users], rows[3][items]], dim=-1)))
    torch.testing.assert_close(hidden, expected)
