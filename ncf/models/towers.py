"""The two towers of Neural Collaborative Filtering: dense, without ids or tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ncf.utils.seeding import uniform_


class GMFTower(nn.Module):
    """Generalized matrix factorization: the element-wise product (He et al. 2017, equation 8).

    Args:
        factors: width of a user's and of an item's row.
        dropout: probability with which an element of the product is dropped in training.
    """

    def __init__(self, factors: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.out_features = factors
        self.dropout = _probability(dropout)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Multiply: ``[..., F]`` and ``[..., F]`` to ``[..., F]``; leading dimensions broadcast."""
        return self.after_product(user * item)

    def after_product(self, product: Tensor) -> Tensor:
        """The tower from the product on, ``[..., F]`` to ``[..., F]``."""
        return F.dropout(product, self.dropout, self.training)


class MLPTower(nn.Module):
    """A multi-layer perceptron over the user's and the item's row (He et al. 2017, equation 10).

    Its first layer is separable, W·[u; v] = Wᵤu + Wᵥv, and computed so: with several items for a user,
    the user's half is computed once.

    Args:
        layers: widths. ``layers[0]`` is the width of the two rows side by side, the others of the hidden
            layers, each followed by a ReLU; with ``layers[0]`` alone there is no hidden layer.
        dropout: probability with which an element of a hidden layer is dropped in training.
        seed: of the initial values (Glorot's uniform distribution, biases zero, as in the paper's code).
        name: under which the initial values are drawn.

    Raises:
        ValueError: if ``layers`` is empty, has a width below one, or an odd ``layers[0]``; if ``dropout`` is
            no probability.
    """

    def __init__(
        self, layers: Sequence[int], *, dropout: float = 0.0, seed: int = 0, name: str = "towers.mlp"
    ) -> None:
        super().__init__()
        widths = tuple(layers) if isinstance(layers, Iterable) else ()
        whole = all(isinstance(width, Integral) for width in widths)
        if not widths or not whole or min(widths) < 1 or widths[0] % 2:
            raise ValueError(
                f"layers = {widths or layers}: give an even width for the two embeddings side by side, "
                "then one whole width of at least 1 per hidden layer"
            )
        self.widths = tuple(int(width) for width in widths)  # NumPy's numbers are not JSON's
        self.out_features = self.widths[-1]
        self.dropout = _probability(dropout)
        self.layers = nn.ModuleList()
        for index, (fan_in, fan_out) in enumerate(pairwise(self.widths)):
            layer: nn.Linear = nn.utils.skip_init(
                nn.Linear, fan_in, fan_out, dtype=torch.float32, device="cpu"
            )
            uniform_(
                layer.weight, gain=2, fans=fan_in + fan_out, seed=seed, name=f"{name}.layers.{index}.weight"
            )
            nn.init.zeros_(layer.bias)
            self.layers.append(layer)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Run the tower: ``[..., D]`` and ``[..., D]`` to ``[..., layers[-1]]``.

        Without a hidden layer the two rows are returned side by side, ``[..., 2 D]``.
        """
        if not self.layers:
            return _side_by_side(user, item)
        first: Any = self.layers[0]
        of_user, of_item = first.weight.chunk(2, dim=1)  # [H, D] each
        hidden = F.linear(user, of_user, first.bias) + F.linear(item, of_item)
        return self.after_first_layer(F.relu(hidden))

    def after_first_layer(self, hidden: Tensor) -> Tensor:
        """The tower from the first hidden layer on, its ReLU included: ``[..., H]`` to ``[..., layers[-1]]``."""
        hidden = F.dropout(hidden, self.dropout, self.training)
        for layer in self.layers[1:]:
            hidden = F.dropout(F.relu(layer(hidden)), self.dropout, self.training)
        return hidden


def _probability(dropout: float) -> float:
    if not 0.0 <= dropout <= 1.0:
        raise ValueError(f"dropout = {dropout}: give a probability between 0 and 1")
    return dropout


def _side_by_side(user: Tensor, item: Tensor) -> Tensor:
    leading = torch.broadcast_shapes(user.shape[:-1], item.shape[:-1])
    return torch.cat([user.expand(*leading, -1), item.expand(*leading, -1)], dim=-1)


def linear_head(in_features: int, seed: int) -> nn.Linear:
    """The last layer, to one logit, initialised by LeCun's uniform distribution as in the paper's code."""
    head: nn.Linear = nn.utils.skip_init(nn.Linear, in_features, 1, dtype=torch.float32, device="cpu")
    uniform_(head.weight, gain=1, fans=in_features, seed=seed, name="head.weight")
    nn.init.zeros_(head.bias)
    return head


class SumHead(nn.Module):
    """A head with unit weights: the sum of its input and a bias, ``[..., F]`` to ``[..., 1]``."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, dtype=torch.float32, device="cpu"))

    def forward(self, features: Tensor) -> Tensor:
        """Sum the features."""
        return features.sum(dim=-1, keepdim=True) + self.bias
