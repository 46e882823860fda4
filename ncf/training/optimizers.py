"""Which optimizer updates which parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from ncf.data.interactions import Interactions

_DECAY_OF_ONE = 0.00315  # by the number of interactions
_DECAY_OF_GMF = 0.000355  # by the size of the tables

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda params, **kw: torch.optim.Adam(params, fused=True, **kw),
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
}


def make_optimizer(
    model: nn.Module, name: str, *, learning_rate: float, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """The optimizer of a model: one that touches every parameter, and beside it what the tables have of their own.

    A step of it costs the size of a table, which is right up to some 10⁵ rows. The tables of a sharded model
    that are larger are updated in their backward (FBGEMM): then the two are one TorchRec `KeyedOptimizer`. Each
    group of parameters has its rate at the start as ``initial_lr``.

    Args:
        model: whose parameters to update; perhaps one that `ncf.distributed.sharding.shard` has sharded.
        name: ``"adam"``, ``"adagrad"`` or ``"sgd"``, of all parameters that are not updated in their backward.
        learning_rate: step size of these.
        weight_decay: L2 penalty on these.

    Raises:
        ValueError: for an unknown name or a negative number.

    Example::

        >>> from ncf import GMF
        >>> from ncf.training.optimizers import make_optimizer
        >>> optimizer = make_optimizer(GMF(num_users=2, num_items=3), "adam", learning_rate=0.01)
        >>> type(optimizer).__name__, optimizer.param_groups[0]["initial_lr"]
        ('Adam', 0.01)
    """
    if name not in _OPTIMIZERS:
        raise ValueError(f"optimizer = {name!r}: choose one of {', '.join(map(repr, _OPTIMIZERS))}")
    for argument, value in (("learning_rate", learning_rate), ("weight_decay", weight_decay)):
        if not isinstance(value, Real) or not value >= 0.0:
            raise ValueError(f"{argument} = {value!r}: give a number of at least 0")

    def dense(parameters: Any) -> torch.optim.Optimizer:
        return _OPTIMIZERS[name](parameters, lr=learning_rate, weight_decay=weight_decay)

    fused = getattr(model, "fused_optimizer", None)
    optimizer = dense(model.parameters()) if fused is None else _combined(model, fused, dense)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def weight_decay_for(train: Interactions, model: nn.Module | None = None) -> float:
    """An L2 penalty for data of this size.

    The penalty on user and item rows is one on the nuclear norm of their product (Srebro, Rennie & Jaakkola, NIPS
    2004): it has to outweigh what is noise in the data, which grows more slowly than N interactions do, while a loss
    that is a mean divides by N. Between 1e-5, best on the validation part of MovieLens-100K, and three times 1e-6,
    best on drawn data of MovieLens-1M's shape (`benchmarks.planted`), lies the law 1 / √N.

    In `ncf.GMF` a third factor, the head, takes part in the product. That makes the penalty weaker on what has
    grown and stronger on what is small, so that other strengths are right: 1e-5 on MovieLens-100K again, five to six
    times 1e-6 on the drawn data. One that is too strong kills all rows, and on less dense draws 1 / √N was. Hence
    1 / √M, for M rows in the geometric mean of the two sides.

    Args:
        train: the training interactions.
        model: what is to be trained on them; it matters only whether it is a `ncf.GMF`.

    Returns:
        ``weight_decay`` for `ncf.Trainer`, to two digits: 0.00315 / √N, for a `GMF` 0.000355 / √M.

    Example::

        >>> from ncf import GMF, Interactions
        >>> from ncf.training.optimizers import weight_decay_for
        >>> train = Interactions.from_arrays(range(10_000), range(10_000))
        >>> weight_decay_for(train)
        3.1e-05
        >>> weight_decay_for(train, GMF(10_000, 10_000))
        3.5e-06
    """
    towers = getattr(getattr(model, "module", model), "towers", ())
    if list(towers) == ["gmf"]:
        decay = _DECAY_OF_GMF / (train.num_users * train.num_items) ** 0.25
    else:
        decay = _DECAY_OF_ONE / len(train) ** 0.5
    return float(f"{decay:.1e}")


def _combined(model: nn.Module, fused: Any, dense: Callable[[Any], torch.optim.Optimizer]) -> Any:
    from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
    from torchrec.optim.optimizers import in_backward_optimizer_filter

    rest = {
        name: parameter
        for name, parameter in in_backward_optimizer_filter(model.named_parameters())
        if parameter.numel()  # an empty one stands for a table that another process holds
    }
    return CombinedOptimizer([fused, KeyedOptimizerWrapper(rest, dense)])


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state by name, as it is, and never empty: it can be read into.

    Args:
        model: the model that `make_optimizer` got.
        optimizer: what it returned.

    Returns:
        ``optimizer.<parameter>.<state>``: tensors, of the parameter's shape or scalars. ``fused.<table>.<state>``: of
        tables that are updated in their backward, TorchRec's `ShardedTensor`.

    Example::

        >>> from ncf import GMF
        >>> from ncf.training.optimizers import make_optimizer, state_tensors
        >>> model = GMF(num_users=2, num_items=3)
        >>> state = state_tensors(model, make_optimizer(model, "adam", learning_rate=0.01))
        >>> [name for name in state if "head.bias" in name]
        ['optimizer.head.bias.step', 'optimizer.head.bias.exp_avg', 'optimizer.head.bias.exp_avg_sq']
    """
    found: dict[str, Any] = {}
    fused: Any = getattr(model, "fused_optimizer", None)
    parts: list[tuple[str, Any]] = getattr(optimizer, "optimizers", [("", optimizer)])
    for _, part in parts:
        if part is fused:
            for states in fused.state_dict()["state"].values():
                found |= {f"fused.{name}": value for name, value in states.items()}
            continue
        held = {id(value) for group in part.param_groups for value in group["params"]}
        for name, value in model.named_parameters():
            if id(value) in held:
                state = started(part, value)
                found |= {f"optimizer.{name}.{key}": tensor for key, tensor in state.items()}
    return found


def started(optimizer: Any, parameter: Tensor) -> dict[str, Tensor]:
    """A parameter's state; Adam's is made if no step has made it yet, since there is nothing to read into else.

    Example::

        >>> import torch
        >>> from ncf.training.optimizers import started
        >>> bias = torch.nn.Parameter(torch.ones(2))
        >>> started(torch.optim.Adam([bias]), bias)
        {'step': tensor(0.), 'exp_avg': tensor([0., 0.]), 'exp_avg_sq': tensor([0., 0.])}
    """
    inner = getattr(optimizer, "_optimizer", optimizer)
    state: dict[str, Tensor] = inner.state[parameter]
    if not state and isinstance(inner, torch.optim.Adam):
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    return state


def adam_scales(
    group: Mapping[str, Any], done: int, rates: Sequence[float]
) -> tuple[list[float], list[float]]:
    """What Adam's next steps multiply with (Kingma & Ba, ICLR 2015, algorithm 1, the order of section 2).

    Args:
        group: the optimizer's parameter group, which has the rate at the start as ``initial_lr``.
        done: steps that it has taken.
        rates: share of that rate, for each of the steps to come.

    Returns:
        For each step the rate with the first bias correction, η / (1 − β₁ᵗ), and the second, (1 − β₂ᵗ)^−½.

    Example::

        >>> from ncf.training.optimizers import adam_scales
        >>> adam_scales({"initial_lr": 0.1, "betas": (0.5, 0.75)}, done=0, rates=[1.0])
        ([0.2], [2.0])
    """
    beta1, beta2 = group["betas"]
    counts = range(done + 1, done + 1 + len(rates))
    scaled = [
        group["initial_lr"] * rate / (1 - beta1**count) for rate, count in zip(rates, counts, strict=True)
    ]
    return scaled, [(1 - beta2**count) ** -0.5 for count in counts]


def learning_rate_at(step: int, total: int, schedule: str) -> float:
    """The share of the learning rate at a step: 1 throughout, or falling linearly to 0.

    Args:
        step: steps done.
        total: steps of the whole training.
        schedule: ``"constant"`` or ``"linear"``.

    Example::

        >>> from ncf.training.optimizers import learning_rate_at
        >>> learning_rate_at(25, 100, "linear"), learning_rate_at(25, 100, "constant")
        (0.75, 1.0)
    """
    return 1.0 if schedule == "constant" else 1.0 - step / total
