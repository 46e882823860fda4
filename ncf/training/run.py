"""Where a training run is: everything it needs to go on as if it had never stopped."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ncf.distributed.collectives import rank
from ncf.models.base import EmbeddingModel
from ncf.training.history import History
from ncf.training.optimizers import state_tensors

if TYPE_CHECKING:
    from ncf.distributed.checkpoint import Checkpoints


class TrainingState:
    """The model, its optimizer, the best weights so far, and the place in the run.

    Random numbers are no part of it: batches and dropout depend on the seed, the epoch and the step alone.

    Args:
        model: the model; its parameters are used as they are.
        wrapped: what is trained: the model, or what `ncf.distributed.sharding.shard` put around it.
        optimizer: of its parameters.
        steps: in an epoch.
        selection: see `History`.
        checkpoints: where it is written; nowhere by default.
        settings: of the run, which one that goes on must have.

    Example::

        >>> from ncf import GMF
        >>> from ncf.training.optimizers import make_optimizer
        >>> from ncf.training.run import TrainingState
        >>> model = GMF(2, 3)
        >>> optimizer = make_optimizer(model, "adam", learning_rate=0.01)
        >>> state = TrainingState(model, model, optimizer, steps=4, selection="validation")
        >>> state.end_epoch(samples=20)
        >>> state.epoch, state.keep_best(0.5), state.keep_best(0.4)
        (1, True, False)
    """

    def __init__(
        self,
        model: EmbeddingModel,
        wrapped: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        steps: int,
        selection: str,
        checkpoints: Checkpoints | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.wrapped = wrapped
        self.optimizer = optimizer
        self.collective = model.embeddings.is_sharded
        self.checkpoints = checkpoints
        self.settings = json.loads(json.dumps(settings or {}))  # as a checkpoint gives them back
        self.history = History(selection)
        self.epoch = 0  # epochs done
        self.step = 0  # steps done of the epoch that runs
        self.seconds = 0.0  # that it has taken
        self.losses = torch.zeros(steps, dtype=torch.float32, device=model.device)
        self.best_score = -1.0
        self._best = [weight.clone() for weight in local_weights(model)]

    def keep_best(self, score: float | None) -> bool:
        """Remember the weights if they are the best so far, as the last ones are where nothing is scored."""
        if score is not None and score <= self.best_score:
            return False
        self.best_score = -1.0 if score is None else score
        self.history.best_epoch = self.epoch
        self._remember()
        return True

    def restore_best(self) -> None:
        """Give the model the best weights so far."""
        for kept, weight in zip(self._best, local_weights(self.model), strict=True):
            weight.copy_(kept)

    def end_epoch(self, samples: int) -> None:
        """Write an epoch down and go to the start of the next."""
        self.epoch += 1
        self.history.seconds.append(self.seconds)
        self.history.epochs.append(self.epoch)
        self.history.samples.append(samples)
        self.history.loss.append(float(self.losses.mean()))
        self.step, self.seconds = 0, 0.0
        self.losses.zero_()

    def save(self, *, best: bool = False) -> None:
        """Write a checkpoint, if that is asked for; every process must call it.

        Args:
            best: whether the weights are the best so far.
        """
        if self.checkpoints is None:
            return
        about = {
            "settings": self.settings,
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "best_score": self.best_score,
            "history": self.history.to_dict(),
        }
        position = self.epoch * len(self.losses) + self.step
        self.checkpoints.save(self._tensors(), about, step=position, best=best)

    def resume(self) -> None:
        """Go to where the newest checkpoint is, if there is one; every process must call it.

        Raises:
            ValueError: if the checkpoint is of a run with other settings, or of another model.
        """
        if self.checkpoints is None:
            return
        newest = self.checkpoints.latest()
        if newest is None:
            return
        theirs, own = newest.metadata["settings"], self.settings
        if theirs != own:
            name = next(key for key in {**theirs, **own} if theirs.get(key) != own.get(key))
            raise ValueError(
                f"{newest.folder} is of a run with {name} = {theirs.get(name)!r}, here it is {own.get(name)!r}: "
                "go on with the same settings, or choose another folder"
            )
        self.history, self.best_score = History(**newest.metadata["history"]), newest.metadata["best_score"]
        self.epoch, self.step, self.seconds = (newest.metadata[name] for name in ("epoch", "step", "seconds"))
        if self.history.best_epoch and not self._read_best(self.checkpoints):
            newest.read(self._tensors())
            self._remember()
            self.best_score = -1.0  # any epoch that follows is better than one that is not known
        newest.read(self._tensors())

    def _read_best(self, checkpoints: Checkpoints) -> bool:
        try:
            best = checkpoints.best()
        except ValueError as error:
            if rank() == 0:
                warnings.warn(f"{error} The newest weights stand for the best.", stacklevel=2)
            return False
        if best is None:
            return False
        best.read(self._tensors())
        self._remember()
        return True

    def _remember(self) -> None:
        for kept, weight in zip(self._best, local_weights(self.model), strict=True):
            kept.copy_(weight)

    def _tensors(self) -> dict[str, Any]:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        return tensors | {"losses": self.losses} | state_tensors(self.wrapped, self.optimizer)


def local_weights(model: EmbeddingModel) -> Iterator[Tensor]:
    """The weights that this process holds: those of its shards where the tables are sharded.

    Example::

        >>> from ncf import GMF
        >>> from ncf.training.run import local_weights
        >>> [tuple(weight.shape) for weight in local_weights(GMF(2, 3, factors=4))]
        [(2, 4), (3, 4), (1, 4), (1,)]
    """
    for value in model.state_dict().values():
        if hasattr(value, "local_shards"):
            yield from (shard.tensor.detach() for shard in value.local_shards())
        else:
            yield value.detach()
