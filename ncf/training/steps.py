"""One training step in PyTorch: forward, backward and update."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ncf.distributed.collectives import world_size
from ncf.models.base import EmbeddingModel
from ncf.training.batches import Batch
from ncf.training.losses import Corrections, Loss, SampledSoftmax
from ncf.training.optimizers import RowSparse


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
        """A function's logits; its products are rounded to ``autocast``, if given."""
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

    Each process's loss counts by its share of the samples, so the gradient is of the mean over all of them.
    The losses that it returns are parts, which add up over the processes.

    Args:
        model: what `ncf.distributed.sharding.shard` returned.
        optimizer: updates the model's parameters.
        loss: of logits ``[P, 1 + n]``.
    """

    def __call__(self, chunk: Batch, rates: Sequence[float]) -> Tensor:
        """See `Step`; a chunk of one batch, which may be empty."""
        (users,), (items,), (rate,) = chunk.users, chunk.items, rates
        assert chunk.weights is not None
        set_rate(self.optimizer, rate)
        self.optimizer.zero_grad()  # also hands the rate to the tables, which the backward pass updates
        logits = self._rounded(self.model, users, items)
        part = self.loss(logits) * chunk.weights[0] if len(users) else logits.sum()
        (part * world_size()).backward()  # since the gradient is averaged over the processes
        self.optimizer.step()
        return part.detach()[None]


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
