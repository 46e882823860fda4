"""Optimizers, and the parameters that each of them updates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from ncf.kernels.dispatch import can_update_rows, update_rows_adamw

_RULES = ("adamw", "adagrad", "rowwise_adagrad", "sgd")
_CHOICES = (*_RULES, "adam")
Setting = float | Mapping[str, float]  # one number, or one for each part of a model


class RowSparse(torch.optim.Optimizer):
    """Update the rows of a batch and no others: a step costs what it reads, however large the tables are.

    Of a table, moments advance and decay applies for the rows of the batch only; AdamW's bias corrections count the
    steps of all. That is what FBGEMM's fused optimizers do on a GPU. Of a sparse gradient the rows are its
    indices; of a dense one of a table, where processes have averaged it, those that are not zero. Everything else is
    updated as a whole. Decay is decoupled from the gradient: a parameter w moves by rate · decay · (w − target), where
    the target is zero, or one for the head's weights of the product.

    Args:
        groups: of parameters; ``rows`` marks tables, and ``columns`` says how many leading columns of a head
            belong to the product. `make_optimizer` makes them.
        rule: ``"adamw"`` (Loshchilov & Hutter, ICLR 2019), ``"adagrad"`` (Duchi et al., JMLR 2011),
            ``"rowwise_adagrad"`` with one sum of squares for each row of a table, or ``"sgd"``.
        betas: decay rates of AdamW's two moments.
        eps: added to a root; 1e-8 for AdamW, 1e-10 for Adagrad by default.

    Example::

        >>> import torch
        >>> from ncf.training.optimizers import RowSparse
        >>> table = torch.nn.Parameter(torch.ones(3, 2))
        >>> optimizer = RowSparse([{"params": [table], "rows": True, "lr": 0.5, "weight_decay": 0.1}], rule="sgd")
        >>> torch.nn.functional.embedding(torch.tensor([2, 2]), table, sparse=True).sum().backward()
        >>> optimizer.step()
        >>> table.data
        tensor([[ 1.0000,  1.0000],
                [ 1.0000,  1.0000],
                [-0.0500, -0.0500]])
    """

    def __init__(
        self,
        groups: Any,
        *,
        rule: str,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float | None = None,
    ) -> None:
        self.rule = rule
        eps = (1e-8 if rule == "adamw" else 1e-10) if eps is None else eps
        of_product = {"columns": 0, "share": 1.0, "product_share": 1.0, "product_decay": 0.0}
        super().__init__(
            groups, {"lr": 0.0, "weight_decay": 0.0, "rows": False, "betas": betas, "eps": eps, **of_product}
        )

    def started(self, value: Tensor, rows: bool) -> dict[str, Tensor]:
        """A parameter's state, made if no step has made it yet; ``rows`` says that it is a table."""
        state: dict[str, Tensor] = self.state[value]
        if not state and self.rule == "adamw":
            state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(value), torch.zeros_like(value)
        elif not state and self.rule != "sgd":
            by_row = rows and self.rule == "rowwise_adagrad"
            state["sum"] = torch.zeros_like(value[:, 0] if by_row else value)
        return state

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step; see `torch.optim.Optimizer.step`."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for value in group["params"]:
                if value.grad is not None:
                    self._update(value, group)
        return loss

    def _update(self, value: Tensor, group: dict[str, Any]) -> None:
        gradient, state = value.grad, self.started(value, group["rows"])
        assert gradient is not None
        rows: Any = slice(None)
        if gradient.is_sparse and self.rule == "adamw" and can_update_rows(value):
            settings = {"rate": group["lr"], "decay": group["weight_decay"], "eps": group["eps"]}
            moments = state["exp_avg"], state["exp_avg_sq"]
            pairs = gradient._indices()[0], gradient._values()  # [P], [P, D]: as they come, repeated
            scales = step_scales(group["betas"], int(state["step"].add_(1)), [1.0], value.device)[0]
            update_rows_adamw(value, *moments, *pairs, scales, **settings, betas=group["betas"])
            return
        if gradient.is_sparse:
            gradient = gradient.coalesce()
            rows, gradient = gradient.indices()[0], gradient.values()  # [R], [R, D]
        elif group["rows"]:
            rows = gradient.any(dim=1).nonzero().squeeze(1)
            gradient = gradient[rows]
        if self.rule == "sgd":
            direction = gradient
        elif self.rule == "adamw":
            (beta1, beta2), count = group["betas"], int(state["step"].add_(1))
            mean = state["exp_avg"][rows].lerp(gradient, 1 - beta1)
            square = (state["exp_avg_sq"][rows] * beta2).addcmul_(gradient, gradient, value=1 - beta2)
            state["exp_avg"][rows], state["exp_avg_sq"][rows] = mean, square
            root = square.sqrt_().mul_((1 - beta2**count) ** -0.5).add_(group["eps"])
            direction = mean / (1 - beta1**count) / root
        else:
            by_row = state["sum"].dim() < gradient.dim()
            squares = gradient.square().mean(dim=1) if by_row else gradient.square()
            state["sum"][rows] += squares
            root = state["sum"][rows].sqrt().add_(group["eps"])
            direction = gradient / (root[:, None] if by_row else root)
        share, decay, target = by_column(group, value)
        old, rate = value[rows], group["lr"] * share
        value[rows] = old - rate * decay * (old - target) - rate * direction


def by_column(group: dict[str, Any], value: Tensor) -> tuple[Any, Any, Any]:
    """Share of the rate, decay and what it pulls towards: numbers, or ``[columns]`` where a head has two parts."""
    columns = group["columns"]
    if not columns:
        return group["share"], group["weight_decay"], 0.0
    decays = group["product_decay"], group["weight_decay"]
    share, decay, target = (  # filled on the device: nothing waits for it
        torch.cat([value.new_full((columns,), first), value.new_full((value.shape[1] - columns,), last)])
        for first, last in ((group["product_share"], group["share"]), decays, (1.0, 0.0))
    )
    return share, decay, target


def step_scales(
    betas: tuple[float, float], step: int, rates: Sequence[float], device: torch.device
) -> Tensor:
    """Factors of AdamW's next steps on a device: shares of the rate, and the two corrections of bias.

    Args:
        betas: decay rates of the moments.
        step: number of the first of these steps, from 1.
        rates: share of the learning rates, for each of the steps.
        device: where the steps are taken; the copy to a GPU waits for nothing there.

    Returns:
        ``[steps, 3]``, fp32, as `ncf.kernels.dispatch.update_rows_adamw` takes a row of them.

    Example::

        >>> import torch
        >>> from ncf.training.optimizers import step_scales
        >>> step_scales((0.5, 0.75), 1, [1.0], torch.device("cpu"))
        tensor([[1., 2., 2.]])
    """
    beta1, beta2 = betas
    numbers = range(step, step + len(rates))
    rows = [
        (rate, 1 / (1 - beta1**number), (1 - beta2**number) ** -0.5)
        for rate, number in zip(rates, numbers, strict=True)
    ]
    on_gpu = device.type == "cuda"
    made = torch.tensor(rows, dtype=torch.float32, device="cpu", pin_memory=on_gpu)
    return made.to(device, non_blocking=on_gpu)


def make_optimizer(
    model: nn.Module,
    name: str | Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    *,
    learning_rate: Setting,
    weight_decay: Setting = 0.0,
) -> torch.optim.Optimizer:
    """Create the optimizer of a model, combined with the optimizers fused into its sharded tables.

    The tables of a sharded model that are large are updated in their backward (FBGEMM): then the two are one TorchRec
    `KeyedOptimizer`. Each group of parameters has its rate at the start as ``initial_lr``.

    A model has parts, and `learning_rate` and `weight_decay` are one number for all, or a number for each by name,
    where ``"default"`` is for parts without a name. Parts are the tables' kinds, ``"gmf"`` and ``"mlp"``, or
    ``"mf"``; ``"tower"``, the hidden layers; ``"head"``; and ``"gmf_head"``, the head's weights of the product, whose
    decay pulls them towards one, and which a rate of zero holds where they are. Biases do not decay.

    Args:
        model: whose parameters to update; perhaps one that `ncf.distributed.sharding.shard` has sharded.
        name: ``"adamw"``, ``"adagrad"``, ``"rowwise_adagrad"`` or ``"sgd"``, see `RowSparse`; or ``"adam"``, the dense
            one (Kingma & Ba, ICLR 2015), which updates every row at every step, and whose decay is an L2 penalty on
            every parameter. Or a function that makes an optimizer from a list of parameters; rates and decays are then
            its own.
        learning_rate: step size.
        weight_decay: decay, in units of the learning rate; with ``"adam"`` an L2 penalty.

    Raises:
        ValueError: for an unknown name or part, or a number that is negative or not finite.
        TypeError: if a function makes something else than an optimizer.

    Example::

        >>> from ncf import NeuMF
        >>> from ncf.training.optimizers import make_optimizer
        >>> model = NeuMF(num_users=2, num_items=3)
        >>> optimizer = make_optimizer(
        ...     model, "adamw", learning_rate={"mlp": 1e-3, "default": 4e-3}, weight_decay={"gmf": 0.2, "default": 0.0}
        ... )
        >>> [(group["part"], group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
        ... # doctest: +NORMALIZE_WHITESPACE
        [('gmf', 0.004, 0.2), ('mlp', 0.001, 0.0), ('tower', 0.004, 0.0), ('tower', 0.004, 0.0), ('head', 0.004, 0.0),
         ('head', 0.004, 0.0)]
    """
    if not callable(name) and name not in _CHOICES:
        # An optimizer's repr has 14 lines.
        given = repr(name) if isinstance(name, str) else type(name).__name__
        raise ValueError(
            f"optimizer = {given}: choose one of {', '.join(map(repr, _CHOICES))}, or give a function such as "
            "lambda parameters: torch.optim.AdamW(parameters, lr=1e-3)"
        )
    inner: Any = getattr(model, "module", model)
    parts = dict.fromkeys(_part(key) for key, _ in model.named_parameters())
    columns = 0
    if "gmf" in getattr(inner, "towers", ()) and hasattr(inner.head, "weight"):
        columns = inner.towers["gmf"].out_features
        parts["gmf_head"] = None
    rates = _of_parts("learning_rate", learning_rate, parts)
    decays = _of_parts("weight_decay", weight_decay, parts)

    def dense(parameters: Mapping[str, Any]) -> torch.optim.Optimizer:
        if callable(name):
            made: Any = name([*parameters.values()])
            if not isinstance(made, torch.optim.Optimizer):
                raise TypeError(f"optimizer returned {type(made).__name__}: return a torch.optim.Optimizer")
            return made
        if name == "adam":
            if len({*rates.values()}) > 1 or len({*decays.values()}) > 1:
                raise ValueError(
                    "optimizer = 'adam' has one rate and one decay for all parts: choose 'adamw'"
                )
            rate, decay = next(iter(rates.values())), next(iter(decays.values()))
            return torch.optim.Adam([*parameters.values()], fused=True, lr=rate, weight_decay=decay)
        groups: dict[tuple[str, bool], dict[str, Any]] = {}
        for key, value in parameters.items():
            part, bias = _part(key), value.dim() == 1
            group = groups.setdefault((part, bias), {"part": part, "params": [], "rows": _is_table(key)})
            group["params"].append(value)
            group |= {"lr": rates[part], "weight_decay": 0.0 if bias else decays[part]}
            if part == "head" and not bias and columns:
                top = max(rates["head"], rates["gmf_head"])
                group |= {"lr": top, "columns": columns, "product_decay": decays["gmf_head"]}
                group |= {
                    "share": rates["head"] / (top or 1.0),
                    "product_share": rates["gmf_head"] / (top or 1.0),
                }
        return RowSparse([*groups.values()], rule=name)

    fused = getattr(model, "fused_optimizer", None)
    own = {key: value for key, value in model.named_parameters() if value.requires_grad}
    optimizer = dense(own) if fused is None else _combined(model, fused, dense)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def _is_table(name: str) -> bool:
    return name.startswith("embeddings.")


def _part(name: str) -> str:
    """The part of a model that a parameter belongs to."""
    if _is_table(name):
        return name.split(".")[-2].split("_", 1)[-1]  # user_gmf, item_gmf
    return "head" if name.startswith("head.") else "tower"


def _of_parts(argument: str, setting: Setting, parts: Mapping[str, Any]) -> dict[str, float]:
    given = setting if isinstance(setting, Mapping) else {"default": setting}
    for part, value in given.items():
        if part not in (*parts, "default"):
            raise ValueError(f"{argument} names the part {part!r}: the model has {', '.join(parts)}")
        if isinstance(value, bool) or not isinstance(value, Real) or not 0.0 <= value < math.inf:
            raise ValueError(f"{argument} = {setting!r}: give a finite number of at least 0")
    for part in parts:
        if part not in given and "default" not in given:
            raise ValueError(f'{argument} has no number for the part {part!r}: name it, or give a "default"')
    return {part: float(given[part] if part in given else given["default"]) for part in parts}


def _combined(model: nn.Module, fused: Any, dense: Callable[[Any], torch.optim.Optimizer]) -> Any:
    from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
    from torchrec.optim.optimizers import in_backward_optimizer_filter

    rest = {
        name: parameter
        for name, parameter in in_backward_optimizer_filter(model.named_parameters())
        if parameter.numel()  # an empty one is of a table that another process holds
    }
    return CombinedOptimizer([fused, KeyedOptimizerWrapper(rest, dense, pass_params_dict=True)])


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
                found |= {
                    f"optimizer.{name}.{key}": tensor for key, tensor in state.items() if tensor is not None
                }
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{name} is {type(tensor).__name__}: a checkpoint takes optimizers whose state is tensors"
            )
    return found


def make_state(optimizer: Any) -> None:
    """Let an optimizer of the user's own make its state, to be read into: a step without gradients, undone."""
    for _, part in getattr(optimizer, "optimizers", [("", getattr(optimizer, "_optimizer", optimizer))]):
        inner: Any = getattr(part, "_optimizer", part)
        if inner.state or isinstance(inner, RowSparse | torch.optim.Adam) or hasattr(inner, "params"):
            continue  # `params`: TorchRec's, of tables that are updated in their backward
        parameters = [value for group in inner.param_groups for value in group["params"]]
        values = [value.detach().clone() for value in parameters]
        for value in parameters:
            value.grad = torch.zeros_like(value)
        inner.step()
        inner.zero_grad()
        with torch.no_grad():
            for value, old in zip(parameters, values, strict=True):
                value.copy_(old)


def started(optimizer: Any, parameter: Tensor) -> dict[str, Tensor]:
    """A parameter's state, made if no step has made it yet, since there is nothing to read into else.

    Example::

        >>> import torch
        >>> from ncf.training.optimizers import started
        >>> bias = torch.nn.Parameter(torch.ones(2))
        >>> started(torch.optim.Adam([bias]), bias)
        {'step': tensor(0.), 'exp_avg': tensor([0., 0.]), 'exp_avg_sq': tensor([0., 0.])}
    """
    inner = getattr(optimizer, "_optimizer", optimizer)
    state: dict[str, Tensor] = inner.state[parameter]
    if isinstance(inner, RowSparse):
        rows = any(
            value is parameter for group in inner.param_groups if group["rows"] for value in group["params"]
        )
        return inner.started(parameter, rows)
    if not state and isinstance(inner, torch.optim.Adam):
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    return state


def adam_scales(
    group: Mapping[str, Any], done: int, rates: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Return the factors of Adam's next steps (Kingma & Ba, ICLR 2015, algorithm 1, the order of section 2).

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
