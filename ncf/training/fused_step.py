"""Training steps on an NVIDIA GPU: Triton kernels from the ids to the updated rows, captured in a CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ncf.kernels.dispatch import can_update_rows
from ncf.models.base import EmbeddingModel
from ncf.training.batches import Batch
from ncf.training.losses import CosineContrastive, Loss, binary_cross_entropy, bpr
from ncf.training.optimizers import RowSparse, started, step_scales

# Worked out: a wide model's millisecond, beside which launching a graph is little.
_SAMPLES_PER_CALL = 1 << 16
_MOST_BATCHES = 16  # in a graph: capturing takes memory for each
_CALLS_BEFORE_CAPTURE = 2  # kernels are compiled by the first


class FusedStep:
    """Several steps on a GPU in one call: lookups, towers, loss, gradients and updates, without a dense gradient.

    ``ncf::lookup`` makes the product and the first hidden layer. PyTorch differentiates from there to the loss,
    ``ncf::lookup_backward`` makes the gradients of the rows, and ``ncf::update_rows`` updates them. The numbers equal
    `ncf.training.steps.EagerStep`'s up to rounding. The state stays in the optimizer, so that one can take over from
    the other.

    On a GPU the first calls run kernel by kernel; then a call is captured in a CUDA graph, and later ones replay it. A
    chunk of another shape, such as the last of an epoch, runs kernel by kernel. Nothing waits for the device.

    Args:
        model: what to train, one for which `can_be_fused` holds.
        optimizer: holder of the settings and state.
        loss: of logits ``[P, 1 + n]``.
        samples_per_batch: positives and negatives; a call takes as many batches as make some ten thousand.
        at_most: batches in a call.
        compiled: compile the step with ``torch.compile`` as well, which takes half a minute.
        backend: of ``torch.compile``.
        autocast: type to which products are rounded, such as ``torch.bfloat16``; none by default.

    Example::

        >>> import torch
        >>> from ncf import GMF
        >>> from ncf.training.fused_step import FusedStep, can_be_fused
        >>> from ncf.training.losses import binary_cross_entropy
        >>> from ncf.training.optimizers import make_optimizer
        >>> model = GMF(num_users=3, num_items=9)
        >>> optimizer = make_optimizer(model, "adamw", learning_rate=0.01)
        >>> can_be_fused(model, optimizer, binary_cross_entropy)  # on a CPU
        False
        >>> FusedStep(model, optimizer, binary_cross_entropy, samples_per_batch=10_000).batches_per_call
        6
    """

    def __init__(
        self,
        model: EmbeddingModel,
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        *,
        samples_per_batch: int,
        at_most: int | None = None,
        compiled: bool = False,
        backend: str = "inductor",
        autocast: torch.dtype | None = None,
    ) -> None:
        most = min(_MOST_BATCHES, at_most or _MOST_BATCHES)
        self.batches_per_call = max(1, min(most, _SAMPLES_PER_CALL // samples_per_batch))
        self._model, self._optimizer, self._loss = model, optimizer, loss
        self._autocast = autocast
        parts = model.fused_parts()
        assert parts is not None
        *tensors, factors, summed = parts.arguments(model.embeddings.weights(), model.towers)
        width = 0 if tensors[0] is None else tensors[0].shape[1]
        self._columns = width if factors is None else factors, summed
        self._groups = [(value, group) for group in optimizer.param_groups for value in group["params"]]
        self._betas, self._eps = (optimizer.param_groups[0][name] for name in ("betas", "eps"))
        self._rest = _Rest(model)
        # Places among the parameters: of the lookup's six tensors, and of all that PyTorch differentiates.
        place = {id(value): number for number, (value, _) in enumerate(self._groups)}
        self._looked_up = [None if value is None else place[id(value)] for value in tensors]
        self._dense = {
            name: place[id(value)]
            for name, value in self._rest.named_parameters()
            if place[id(value)] not in self._looked_up
        }
        # Columns of the parameters that are no tables: place, columns, rate, decay and what it pulls towards.
        self._others = [
            (place, columns, group["initial_lr"] * share, decay, target)
            for place, (_, group) in enumerate(self._groups)
            if place not in self._looked_up[:4]
            for columns, share, decay, target in _by_column(group)
        ]
        self._steps: Callable[..., Tensor] = self._take_steps
        if compiled:
            self._steps = torch.compile(self._take_steps, fullgraph=True, dynamic=False, backend=backend)
        self._calls = 0
        self._graph: Any = None
        self._given: tuple[Tensor, Tensor, Tensor] | None = None
        self._losses: Tensor | None = None

    def __call__(self, chunk: Batch, rates: Sequence[float]) -> Tensor:
        """See `ncf.training.steps.Step`."""
        states = [started(self._optimizer, value) for value, _ in self._groups]
        device = chunk.users.device
        scales = step_scales(self._betas, int(states[0]["step"]) + 1, rates, device)  # [K, 3]
        given = chunk.users, chunk.items, scales
        with torch.no_grad(), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            losses = self._run(given)
        for state in states:
            state["step"] += len(rates)
        return losses

    def _run(self, given: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        whole = given[0].is_cuda and len(given[0]) == self.batches_per_call
        if self._given is None and whole:
            self._calls += 1
            if self._calls > _CALLS_BEFORE_CAPTURE:
                self._capture(given)
        if self._graph is None or self._given is None or given[1].shape != self._given[1].shape:
            return self._steps(*given, *self._state())
        for held, new in zip(self._given, given, strict=True):
            held.copy_(new)
        self._graph.replay()
        assert self._losses is not None
        return self._losses.clone()

    def _capture(self, given: tuple[Tensor, Tensor, Tensor]) -> None:
        """Record a call's kernels, without running them."""
        users, items, scales = (each.clone() for each in given)
        held = self._given = users, items, scales
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._losses = self._steps(*held, *self._state())
            self._graph = graph
        except RuntimeError as error:
            warnings.warn(
                f"the step cannot be captured in a CUDA graph and runs kernel by kernel: {error}",
                stacklevel=2,
            )

    def _state(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Values and their two moments, in the order of the groups."""
        states = [started(self._optimizer, value) for value, _ in self._groups]
        values = [value.detach() for value, _ in self._groups]
        return values, [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]

    def _take_steps(
        self,
        users: Tensor,  # [K, P]
        items: Tensor,  # [K, P, 1 + n]
        scales: Tensor,  # [K, 3]
        values: list[Tensor],
        means: list[Tensor],
        squares: list[Tensor],
    ) -> Tensor:
        losses = [
            self._take_step(users[k], items[k], scales[k], values, means, squares) for k in range(len(users))
        ]
        return torch.stack(losses)

    def _take_step(
        self,
        users: Tensor,  # [P]
        items: Tensor,  # [P, 1 + n]
        scales: Tensor,  # [3]
        values: list[Tensor],
        means: list[Tensor],
        squares: list[Tensor],
    ) -> Tensor:
        from ncf.kernels.triton_operators import SPARSE, lookup, lookup_backward, sort_ids, update_rows

        tensors = [None if place is None else values[place] for place in self._looked_up]
        dtype = self._autocast or torch.float32
        product, hidden = lookup(users, items, *tensors, *self._columns, dtype, SPARSE)
        dense = {name: values[place] for name, place in self._dense.items()}

        def loss_of(features: tuple[Tensor, Tensor], parameters: dict[str, Tensor]) -> Tensor:
            with torch.autocast(users.device.type, dtype=self._autocast, enabled=self._autocast is not None):
                logits: Tensor = torch.func.functional_call(self._rest, parameters, features)
            return self._loss(logits.to(torch.float32))

        found = torch.func.grad_and_value(loss_of, argnums=(0, 1))((product, hidden), dense)
        (of_features, of_dense), loss = found
        loss_of_step: Tensor = loss
        gradients = lookup_backward(*of_features, hidden, users, items, *tensors, *self._columns, dtype)
        rows = [next(len(t) for t in tensors[side:4:2] if t is not None) for side in (0, 1)]
        ids = sort_ids((users, rows[0]), (items.flatten(), rows[1]))
        others = {place: of_dense[name] for name, place in self._dense.items()}
        for number, place in enumerate(self._looked_up):
            if place is None:
                continue
            if number < 4:
                own, group = (values[place], means[place], squares[place]), self._groups[place][1]
                settings = group["initial_lr"], group["weight_decay"], *self._betas, self._eps
                update_rows(*own, *ids[number % 2], gradients[number], scales, *settings)
            else:
                others[place] = gradients[number]
        self._update(values, means, squares, others, scales)
        return loss_of_step

    def _update(
        self,
        values: list[Tensor],
        means: list[Tensor],
        squares: list[Tensor],
        gradients: dict[int, Tensor],
        scales: Tensor,
    ) -> None:
        """Update the parameters that are no tables by AdamW, as `RowSparse` does; a kernel takes all of them."""
        if not self._others:
            return
        places, columns, rates, decays, targets = zip(*self._others, strict=True)
        value, mean, square, gradient = (
            [each[place][..., part] for place, part in zip(places, columns, strict=True)]
            for each in (values, means, squares, gradients)
        )
        torch._foreach_lerp_(mean, gradient, 1 - self._betas[0])
        torch._foreach_mul_(square, self._betas[1])
        torch._foreach_addcmul_(square, gradient, gradient, 1 - self._betas[1])
        root = torch._foreach_sqrt(square)
        torch._foreach_mul_(root, scales[2])
        torch._foreach_add_(root, self._eps)
        move = torch._foreach_div(mean, root)
        torch._foreach_mul_(move, scales[1])
        pull = torch._foreach_sub(value, targets)
        torch._foreach_mul_(pull, decays)
        torch._foreach_add_(move, pull)
        torch._foreach_mul_(move, rates)
        torch._foreach_mul_(move, scales[0])
        torch._foreach_sub_(value, move)


def _by_column(group: dict[str, Any]) -> list[tuple[slice, float, float, float]]:
    """Columns, share of the rate, decay and what it pulls towards: of the head's two parts, or of a whole parameter."""
    columns, own = group["columns"], (group["share"], group["weight_decay"], 0.0)
    if not columns:
        return [(slice(None), *own)]
    of_product = group["product_share"], group["product_decay"], 1.0
    return [(slice(columns), *of_product), (slice(columns, None), *own)]


class _Rest(nn.Module):
    """A model from the results of the lookup to the logits."""

    def __init__(self, model: EmbeddingModel) -> None:
        super().__init__()
        self.towers, self.head = model.towers, model.head
        self._model = [model]  # no submodule: the tables are not parameters of this

    def forward(self, product: Tensor, hidden: Tensor) -> Tensor:
        logits: Tensor = self._model[0].logits_of(product, hidden)
        return logits


def can_be_fused(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, *, shared: bool = False
) -> bool:
    """Return whether `FusedStep` can train a model: fp32 on an NVIDIA GPU, row-sparse AdamW, one of ncf's losses.

    Example::

        >>> from ncf import MLP
        >>> from ncf.training.fused_step import can_be_fused
        >>> from ncf.training.losses import bpr
        >>> from ncf.training.optimizers import make_optimizer
        >>> model = MLP(10, 20)
        >>> can_be_fused(model, make_optimizer(model, "adamw", learning_rate=0.01), bpr)  # on a CPU
        False
    """
    if shared or not isinstance(model, EmbeddingModel) or not isinstance(optimizer, RowSparse):
        return False
    if optimizer.rule != "adamw" or not (
        loss in (binary_cross_entropy, bpr) or isinstance(loss, CosineContrastive)
    ):
        return False
    if model.embeddings.is_sharded or model.embeddings.features or model.config.get("dropout"):
        return False
    updated = {id(value) for group in optimizer.param_groups for value in group["params"]}
    parameters = [*model.parameters()]
    return (
        model.is_fused_as_written
        and model.fused_parts() is not None
        and all(id(value) in updated and can_update_rows(value) for value in parameters)
    )
