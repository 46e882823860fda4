"""One training step, forward, backward and update: eager, or compiled as a single region."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ncf.distributed.collectives import world_size
from ncf.models.base import EmbeddingModel
from ncf.training.batches import Batch
from ncf.training.losses import Corrections, Loss, SampledSoftmax
from ncf.training.optimizers import RowSparse, adam_scales, started


class Step(Protocol):
    """Trains on a chunk of batches, one after the other.

    Example::

        >>> import torch
        >>> from ncf.training.steps import Step
        >>> class Idle:
        ...     batches_per_call = 1
        ...     def __call__(self, chunk, rates):
        ...         return torch.zeros(len(rates))
        >>> step: Step = Idle()
    """

    batches_per_call: int

    def __call__(self, chunk: Batch, rates: Sequence[float]) -> Tensor:
        """Take one step per batch, each at a share of the initial learning rates; return the losses, ``[K]``."""
        ...


class EagerStep:
    """Steps that run operation by operation; any model and optimizer.

    Args:
        model: what to train.
        optimizer: updates the model's parameters.
        loss: of logits ``[P, 1 + n]``.
        corrections: what `ncf.training.losses.SampledSoftmax` takes from logits; nothing by default.
        autocast: type to which products are rounded, such as ``torch.bfloat16``; none by default.

    Example::

        >>> import torch
        >>> from ncf import GMF
        >>> from ncf.training.batches import Batch
        >>> from ncf.training.losses import LOSSES
        >>> from ncf.training.optimizers import make_optimizer
        >>> from ncf.training.steps import EagerStep
        >>> model = GMF(10, 20)
        >>> step = EagerStep(model, make_optimizer(model, "adam", learning_rate=0.01), LOSSES["bce"])
        >>> step(Batch(torch.tensor([[3, 8]]), torch.tensor([[[7, 0], [2, 9]]])), rates=[1.0]).shape
        torch.Size([1])
    """

    batches_per_call = 1

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        corrections: Corrections | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.corrections = corrections
        self.autocast = autocast
        self.model = model
        self.optimizer = optimizer
        self.loss = loss

    def __call__(self, chunk: Batch, rates: Sequence[float]) -> Tensor:
        """See `Step`."""
        losses = []
        with self._gradients():
            for k, rate in enumerate(rates):
                set_rate(self.optimizer, rate)
                loss = self.loss(self._logits(chunk, k))
                self.optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
                losses.append(loss.detach())
            self.optimizer.zero_grad()
        return torch.stack(losses)

    def _logits(self, chunk: Batch, k: int) -> Tensor:
        """Logits of a positive and its negatives, ``[P, 1 + n]`` or ``[P, 1 + S]``, as the loss takes them."""
        users, items = chunk.users[k], chunk.items[k]
        logits = self._rounded(self.model, users, items)
        if chunk.shared is not None:
            assert chunk.seen is not None
            assert chunk.seen_offsets is not None
            others = self._rounded(self._logits_of_all, users, chunk.shared[k])  # [P, S]
            seen = torch.zeros(others.numel(), dtype=torch.bool, device=others.device)
            seen[chunk.seen[chunk.seen_offsets[k] : chunk.seen_offsets[k + 1]]] = True
            logits = torch.cat([logits, others.masked_fill(seen.view_as(others), -torch.inf)], dim=1)
            items = torch.cat([items, chunk.shared[k].expand(len(users), -1)], dim=1)
        if self.corrections is None or not isinstance(self.loss, SampledSoftmax):
            return logits
        correction = torch.zeros_like(logits)
        of_items, of_users = self.corrections
        if of_items is not None:
            correction[:, 1:] += of_items[items[:, 1:]]
        if of_users is not None:
            correction[:, 1:] -= of_users[users][:, None]
        return logits - self.loss.temperature * correction

    def _logits_of_all(self, users: Tensor, items: Tensor) -> Tensor:
        """Logits of each user with each item: of a dot product without dropout in one product of matrices."""
        model: Any = self.model
        if isinstance(model, EmbeddingModel) and model.is_separable and not model.config.get("dropout"):
            tables = model.scoring_tables(model.embeddings(users, items, training=model.training))
            if tables.user_hidden is None and tables.user_gmf is not None and tables.item_gmf is not None:
                logits = tables.user_gmf @ tables.item_gmf.T + tables.bias
                logits = logits if tables.user_bias is None else logits + tables.user_bias[:, None]
                return logits if tables.item_bias is None else logits + tables.item_bias
        both: Tensor = model(users, items[None])
        return both

    def _rounded(self, logits_of: Any, users: Tensor, items: Tensor) -> Tensor:
        """A function's logits; its products are rounded where the step was told so."""
        if self.autocast is None:
            exact: Tensor = logits_of(users, items)
            return exact
        with torch.autocast(users.device.type, dtype=self.autocast):
            logits: Tensor = logits_of(users, items)
        return logits.to(torch.float32)

    @contextmanager
    def _gradients(self) -> Iterator[None]:
        """Tables get gradients of the batch's rows alone, if the optimizer reads no others."""
        embeddings = getattr(self.model, "embeddings", None)
        if embeddings is None or not isinstance(self.optimizer, RowSparse):
            yield
            return
        embeddings.sparse_gradients = True
        try:
            yield
        finally:
            embeddings.sparse_gradients = False


class CollectiveStep(EagerStep):
    """Steps of several processes, whose batches together are the batch of one.

    Each process's loss counts by its share of the samples, so the gradient is that of the mean over all of them.
    The losses that it returns are parts, which add up over the processes.

    Args:
        model: what `ncf.distributed.sharding.shard` returned.
        optimizer: updates the model's parameters.
        loss: of logits ``[P, 1 + n]``.

    Example::

        >>> import torch
        >>> from ncf import GMF
        >>> from ncf.training.batches import Batch
        >>> from ncf.training.losses import LOSSES
        >>> from ncf.training.optimizers import make_optimizer
        >>> from ncf.distributed.sharding import shard
        >>> from ncf.training.steps import CollectiveStep
        >>> model = shard(GMF(10, 20, device="meta"), "table_wise", verbose=False)  # a world of one
        >>> step = CollectiveStep(model, make_optimizer(model, "adam", learning_rate=0.01), LOSSES["bce"])
        >>> chunk = Batch(torch.tensor([[3, 8]]), torch.tensor([[[7, 0], [2, 9]]]), weights=torch.ones(1))
        >>> step(chunk, rates=[1.0]).shape
        torch.Size([1])
    """

    def __call__(self, chunk: Batch, rates: Sequence[float]) -> Tensor:
        """See `Step`; a chunk of one batch, which may be empty."""
        (users,), (items,), (rate,) = chunk.users, chunk.items, rates
        assert chunk.weights is not None
        set_rate(self.optimizer, rate)
        self.optimizer.zero_grad()  # tells the tables, which are updated in the backward, the rate
        logits = self._rounded(self.model, users, items)
        part = self.loss(logits) * chunk.weights[0] if len(users) else logits.sum()
        (part * world_size()).backward()  # since the gradient is averaged over the processes
        self.optimizer.step()
        return part.detach()[None]


class CompiledStep:
    """Several steps, with their Adam updates, compiled by ``torch.compile`` into one call.

    Nothing returns to Python between the lookups and the updated parameters, nor between the batches of a
    chunk. The numbers are those of `EagerStep` with `torch.optim.Adam` up to rounding, and Adam's state stays
    in the optimizer, so one can take over from the other. Compiling takes tens of seconds the first time.

    Args:
        model: what to train; without dropout.
        optimizer: holder of Adam's settings and state.
        loss: of logits ``[P, 1 + n]``.
        positives_per_batch: rows of the batches that are compiled for; others run eagerly.

    Raises:
        ValueError: if the optimizer is not Adam, or the model has dropout.

    Example::

        >>> from ncf import GMF
        >>> from ncf.training.losses import LOSSES
        >>> from ncf.training.optimizers import make_optimizer
        >>> from ncf.training.steps import CompiledStep
        >>> model = GMF(10, 20)
        >>> optimizer = make_optimizer(model, "adam", learning_rate=0.01)
        >>> CompiledStep(model, optimizer, LOSSES["bce"], positives_per_batch=100).batches_per_call
        4
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, *, positives_per_batch: int
    ) -> None:
        if not isinstance(optimizer, torch.optim.Adam):
            raise ValueError(f"compile=True works with Adam, not with {type(optimizer).__name__}")
        if getattr(model, "config", {}).get("dropout"):
            raise ValueError("compile=True works without dropout: its random numbers would not be the seed's")
        if _has_features(model):
            raise ValueError("compile=True works without features, whose lists have different lengths")
        # Below some thousand samples a step costs less than its call: let a call take several.
        self.batches_per_call = max(1, min(4, 400 // positives_per_batch))
        self.positives_per_batch = positives_per_batch
        self.optimizer = optimizer
        self._eager = EagerStep(model, optimizer, loss)
        self._group: dict[str, Any] = optimizer.param_groups[0]
        self._names = [name for name, _ in model.named_parameters()]
        self._leaves = [parameter for _, parameter in model.named_parameters()]
        self._compiled = torch.compile(self._steps, fullgraph=True, dynamic=False)
        self._loss_of = lambda parameters, users, items: loss(
            torch.func.functional_call(model, dict(zip(self._names, parameters, strict=True)), (users, items))
        )

    def __call__(self, chunk: Batch, rates: Sequence[float]) -> Tensor:
        """See `Step`."""
        if chunk.users.shape != (self.batches_per_call, self.positives_per_batch):
            return torch.cat(
                [
                    self._eager(Batch(chunk.users[k : k + 1], chunk.items[k : k + 1]), rates[k : k + 1])
                    for k in range(len(rates))
                ]
            )
        state = [started(self.optimizer, leaf) for leaf in self._leaves]
        scales = adam_scales(self._group, int(state[0]["step"]), rates)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's own deprecations
            losses: Tensor = self._compiled(
                [leaf.detach() for leaf in self._leaves],
                [each["exp_avg"] for each in state],
                [each["exp_avg_sq"] for each in state],
                chunk.users,
                chunk.items,
                *torch.tensor(scales, dtype=torch.float32, device=chunk.users.device).unbind(),
            )
        for each in state:
            each["step"] += len(rates)
        return losses

    def _steps(
        self,
        parameters: list[Tensor],
        means: list[Tensor],
        squares: list[Tensor],
        users: Tensor,  # [K, P]
        items: Tensor,  # [K, P, 1 + n]
        rates: Tensor,  # [K], with Adam's first bias correction
        corrections: Tensor,  # [K], Adam's second
    ) -> Tensor:
        beta1, beta2 = self._group["betas"]
        decay, eps = self._group["weight_decay"], self._group["eps"]
        losses = []
        for k in range(len(users)):
            gradients, loss = torch.func.grad_and_value(self._loss_of)(parameters, users[k], items[k])
            for value, gradient, mean, square in zip(parameters, gradients, means, squares, strict=True):
                if decay:
                    gradient = gradient + decay * value
                mean.lerp_(gradient, 1 - beta1)
                square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                value.sub_(rates[k] * mean / (square.sqrt() * corrections[k] + eps))
            losses.append(loss)
        return torch.stack(losses)


def can_be_compiled(model: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
    """Return whether `CompiledStep` takes a model, and this machine has a compiler for PyTorch.

    Example::

        >>> from ncf import GMF
        >>> from ncf.training.optimizers import make_optimizer
        >>> from ncf.training.steps import can_be_compiled
        >>> model = GMF(10, 20)
        >>> can_be_compiled(model, make_optimizer(model, "sgd", learning_rate=0.01))
        False
    """
    on_cpu = all(parameter.is_cpu for parameter in model.parameters())
    dropout = getattr(model, "config", {}).get("dropout")
    compiler = any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++")))
    fits = not dropout and not _has_features(model)
    return on_cpu and compiler and fits and isinstance(optimizer, torch.optim.Adam)


def _has_features(model: Any) -> bool:
    return bool(getattr(getattr(model, "embeddings", None), "features", ()))


def set_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set every learning rate to a share of what it was at the start.

    Example::

        >>> from ncf import GMF
        >>> from ncf.training.optimizers import make_optimizer
        >>> from ncf.training.steps import set_rate
        >>> optimizer = make_optimizer(GMF(10, 20), "adam", learning_rate=0.01)
        >>> set_rate(optimizer, 0.5)
        >>> optimizer.param_groups[0]["lr"]
        0.005
    """
    for group in optimizer.param_groups:
        group["lr"] = share * group["initial_lr"]
