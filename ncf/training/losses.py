"""Losses over a positive and its sampled negatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor], Tensor]
# Log of how often an item is expected among a positive's negatives: of items [num_items], less of users [num_users].
Corrections = tuple[Tensor | None, Tensor | None]


def binary_cross_entropy(logits: Tensor) -> Tensor:
    """Log loss of a binary classifier (He et al. 2017, equation 7), mean over samples.

    Args:
        logits: ``[P, 1 + n]``; column 0 belongs to the positives.

    Returns:
        A scalar, in nats.

    Example::

        >>> import torch
        >>> from ncf.training.losses import binary_cross_entropy
        >>> binary_cross_entropy(torch.zeros(3, 5))
        tensor(0.6931)
    """
    # −log σ(x) = softplus(x) − x: the label only enters for the positives
    return (F.softplus(logits).sum() - logits[:, 0].sum()) / logits.numel()


def bpr(logits: Tensor) -> Tensor:
    """Bayesian personalized ranking (Rendle et al., UAI 2009): −log σ(positive − negative), mean over pairs.

    Args:
        logits: ``[P, 1 + n]``; column 0 belongs to the positives.

    Returns:
        A scalar, in nats.

    Example::

        >>> import torch
        >>> from ncf.training.losses import bpr
        >>> bpr(torch.zeros(3, 5))
        tensor(0.6931)
    """
    return F.softplus(logits[:, 1:] - logits[:, :1]).mean()


@dataclass(frozen=True)
class SampledSoftmax:
    """The positive against its negatives by a softmax, mean over positives (Jean et al., ACL 2015).

    With `Corrections` the sum over the negatives estimates that over the whole catalogue: a negative's logit, over the
    temperature, falls by the logarithm of how often it is expected among the draws (Bengio & Senécal, 2008).

    Args:
        temperature: what logits are divided by; about 0.1 for cosines.

    Raises:
        ValueError: if the temperature is not positive and finite.

    Example::

        >>> import torch
        >>> from ncf.training.losses import SampledSoftmax
        >>> SampledSoftmax()(torch.zeros(3, 5))
        tensor(1.6094)
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.temperature < math.inf:
            raise ValueError(f"temperature = {self.temperature}: give a positive number")

    def __call__(self, logits: Tensor) -> Tensor:
        """The loss of logits ``[P, 1 + n]``, in nats; column 0 belongs to the positives."""
        return (torch.logsumexp(logits / self.temperature, dim=1) - logits[:, 0] / self.temperature).mean()


@dataclass(frozen=True)
class CosineContrastive:
    """Cosine contrastive loss (SimpleX; Mao et al., CIKM 2021): (1 − x) + weight · mean of (y − margin)₊.

    It is for cosines x of positives and y of negatives, ``ncf.MatrixFactorization(..., cosine=True)``.

    Args:
        margin: cosine up to which a negative costs nothing.
        weight: of the negatives against the positive.

    Raises:
        ValueError: if the margin is not finite, or the weight negative or not finite.

    Example::

        >>> import torch
        >>> from ncf.training.losses import CosineContrastive
        >>> CosineContrastive(margin=0.5, weight=10.0)(torch.tensor([[0.9, 0.7, 0.3]]))
        tensor(1.1000)
    """

    margin: float = 0.6
    weight: float = 100.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.margin):
            raise ValueError(f"margin = {self.margin}: give a finite number")
        if not 0.0 <= self.weight < math.inf:
            raise ValueError(f"weight = {self.weight}: give a number of at least 0")

    def __call__(self, logits: Tensor) -> Tensor:
        """The loss of cosines ``[P, 1 + n]``; column 0 belongs to the positives."""
        over = F.relu(logits[:, 1:] - self.margin).mean(dim=1)
        return (1.0 - logits[:, 0] + self.weight * over).mean()


LOSSES: dict[str, Loss] = {
    "bce": binary_cross_entropy,
    "bpr": bpr,
    "softmax": SampledSoftmax(),
    "ccl": CosineContrastive(),
}
