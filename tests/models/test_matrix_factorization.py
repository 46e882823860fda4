from __future__ import annotations

import torch

from ncf import MatrixFactorization


def test_matrix_factorization_is_a_dot_product_with_biases() -> None:
    model = MatrixFactorization(4, 6, factors=5, init_std=1.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    weights = model.state_dict()
    user, item = (weights[f"embeddings.ebc.embedding_bags.{side}_mf.weight"] for side in ("user", "item"))
    assert user.shape[1] % 4 == 0  # FBGEMM's rows
    expected = user[:, :5] @ item[:, :5].T + user[:, 5][:, None] + item[:, 5] + weights["head.bias"]
    pairs = torch.arange(4), torch.arange(6).expand(4, -1)
    torch.testing.assert_close(model(*pairs).detach(), expected)
