"""Which optimizer updates which parameter."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda params, **kw: torch.optim.Adam(params, fused=True, **kw),
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
}


def dense_optimizer(
    model: nn.Module, name: str, *, learning_rate: float, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """An optimizer whose step touches every parameter: right for tables of up to some 10⁵ rows.

    Args:
        model: whose parameters to update.
        name: ``"adam"``, ``"adagrad"`` or ``"sgd"``.
        learning_rate: step size.
        weight_decay: L2 penalty on every parameter.

    Raises:
        ValueError: for an unknown name or a negative number.
    """
    if name not in _OPTIMIZERS:
        raise ValueError(f"optimizer = {name!r}: choose one of {', '.join(map(repr, _OPTIMIZERS))}")
    for argument, value in (("learning_rate", learning_rate), ("weight_decay", weight_decay)):
        if not value >= 0.0:
            raise ValueError(f"{argument} = {value}: give a number of at least 0")
    return _OPTIMIZERS[name](model.parameters(), lr=learning_rate, weight_decay=weight_decay)


def learning_rate_at(step: int, total: int, schedule: str) -> float:
    """The share of the learning rate at a step: 1 throughout, or falling linearly to 0.

    Args:
        step: steps done.
        total: steps of the whole training.
        schedule: ``"constant"`` or ``"linear"``.
    """
    return 1.0 if schedule == "constant" else 1.0 - step / total
