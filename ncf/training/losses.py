"""Losses over a positive and its sampled negatives."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor], Tensor]


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


LOSSES: dict[str, Loss] = {"bce": binary_cross_entropy, "bpr": bpr}
