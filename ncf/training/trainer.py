"""Train a model on sampled negatives, and keep the epoch that the validation part likes best."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any, Literal

from torch import nn
from tqdm.auto import tqdm

from ncf.data.candidates import Candidates
from ncf.data.interactions import Interactions
from ncf.data.splitting import Split
from ncf.distributed.checkpoint import Checkpoints
from ncf.distributed.collectives import all_gather_object, raise_on_all_ranks, rank
from ncf.distributed.interrupt import Interruption
from ncf.models.base import EmbeddingModel
from ncf.training.batches import TrainingBatches, collective_batches
from ncf.training.epoch import run_epoch
from ncf.training.history import History
from ncf.training.losses import LOSSES
from ncf.training.native_step import NativeStep, can_be_native
from ncf.training.optimizers import learning_rate_at, make_optimizer
from ncf.training.run import TrainingState
from ncf.training.selection import SELECTIONS, judge, what_to_judge
from ncf.training.steps import CollectiveStep, CompiledStep, EagerStep, Step, can_be_compiled
from ncf.utils.checks import of_type, whole, whole_or_none
from ncf.utils.threads import cpu_threads

__all__ = ["History", "Trainer"]

_WORTH_COMPILING = 100_000_000  # samples of a whole run; measured, see docs/performance.md


class Trainer:
    """Trains a model as a classifier of interactions against sampled negatives (He et al. 2017).

    A model that `ncf.distributed.shard` has sharded is trained by all processes together. Each calls `fit` with the
    interactions of its own users, ``split.for_rank(rank, world_size)``, and samples their negatives; a step's
    ``batch_size`` is that of all of them.

    Args:
        model: the model, or what `ncf.distributed.shard` returned; it is trained in place.
        epochs: passes over the training positives.
        batch_size: samples per step, positives and negatives together.
        learning_rate: of the optimizer, at the start; one number, or one for each part of the model by name, see
            `ncf.training.optimizers.make_optimizer`.
        schedule: ``"linear"``, falling to zero over the epochs, or ``"constant"``.
        optimizer: of all but the tables that `ncf.distributed.shard` gave one. ``"adamw"``, ``"adagrad"``,
            ``"rowwise_adagrad"`` and ``"sgd"`` update the rows of the batch; ``"adam"`` every row at every step.
        weight_decay: decay, decoupled from the gradient, in units of the learning rate; also by part of the model. With
            ``optimizer="adam"`` an L2 penalty.
        negatives: negatives per positive.
        law: law of the negatives, ``"uniform"`` or ``"popularity"``.
        loss: ``"bce"`` (binary cross-entropy) or ``"bpr"``.
        selection: which epoch's weights are kept. ``"validation"``: the best NDCG@k on the validation part;
            ``"paper"``: the best HR@k on the *test* part, as published tables did, which flatters the result;
            ``"last"``: the last one, nothing is selected.
        patience: stop after so many epochs without a better one; never by default.
        k: length of the list that HR and NDCG look at.
        seed: of the batches and of dropout.
        compile: ``True`` compiles the training step with ``torch.compile``, ``False`` runs it operation by operation.
            By default a kernel in C that came with ncf does the step, where it can (`native_step`); where it
            cannot, the step is compiled if that repays its half minute: on a CPU, from a hundred million samples on.
        threads: CPU threads of PyTorch during `fit`; ``None`` leaves its setting. One is the default: a step of this
            size gains little from a second core, and loses tenfold where another process is using it. The C
            kernel trains on one.
        progress: show a progress bar; by default where the output is a terminal.
        checkpoint: a folder of checkpoints. The run goes on where the newest one is, with the same numbers as if it
            had never stopped; all settings that bear on them must be the same. By default nothing is written.
        checkpoint_every: steps between checkpoints; there is one at the end of each epoch anyway.

    Raises:
        ValueError: for an unknown choice or a number out of range.
        TypeError: if the model is none of ncf's, nor one of them sharded.

    Example::

        >>> import torch
        >>> from ncf import Interactions, NeuMF, Trainer, leave_one_out
        >>> users = torch.arange(20).repeat_interleave(5)
        >>> split = leave_one_out(Interactions.from_arrays(users, (users * 7 + torch.arange(100)) % 30))
        >>> model = NeuMF(split.train.num_users, split.train.num_items)
        >>> history = Trainer(model, epochs=2, batch_size=32).fit(split)
        >>> history.epochs
        [1, 2]
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        epochs: int = 10,
        batch_size: int = 2048,
        learning_rate: float | Mapping[str, float] = 4e-3,
        schedule: Literal["linear", "constant"] = "linear",
        optimizer: Literal["adamw", "adagrad", "rowwise_adagrad", "sgd", "adam"] = "adam",
        weight_decay: float | Mapping[str, float] = 0.0,
        negatives: int = 4,
        law: Literal["uniform", "popularity"] = "uniform",
        loss: Literal["bce", "bpr"] = "bce",
        selection: Literal["validation", "paper", "last"] = "validation",
        patience: int | None = None,
        k: int = 10,
        seed: int = 0,
        compile: bool | None = None,
        threads: int | None = 1,
        progress: bool | None = None,
        checkpoint: Checkpoints | str | PathLike[str] | None = None,
        checkpoint_every: int | None = None,
    ) -> None:
        for name, choice, known in (
            ("schedule", schedule, ("linear", "constant")),
            ("loss", loss, LOSSES),
            ("selection", selection, SELECTIONS),
        ):
            if choice not in known:
                raise ValueError(f"{name} = {choice!r}: choose one of {', '.join(map(repr, known))}")
        if compile not in (None, True, False):
            raise ValueError(f"compile = {compile!r}: choose None, True or False")
        inner = getattr(model, "module", model)
        if not isinstance(inner, EmbeddingModel):
            raise TypeError(f"{type(model).__name__} is not one of ncf's models")
        self.model: EmbeddingModel = inner
        self.wrapped: nn.Module = model
        self.collective = inner.embeddings.is_sharded
        if self.collective and model is inner:
            raise ValueError(
                "the model is sharded: train what shard() returned, which averages the gradients"
            )
        if self.collective and compile:
            raise ValueError("compile=True is for a model in one process, not for a sharded one")
        self.epochs = whole("epochs", epochs)
        self.batch_size = whole("batch_size", batch_size)
        self.learning_rate = dict(learning_rate) if isinstance(learning_rate, Mapping) else learning_rate
        self.schedule = schedule
        self.negatives = whole("negatives", negatives)
        self.law = law
        self.loss = loss
        self.selection = selection
        self.patience = whole_or_none("patience", patience)
        self.k = whole("k", k)
        self.seed = whole("seed", seed, least=None)
        self.compile = compile
        self.threads = whole_or_none("threads", threads)
        self.progress = progress
        self.checkpoints = Checkpoints(checkpoint) if isinstance(checkpoint, str | PathLike) else checkpoint
        self.checkpoint_every = whole_or_none("checkpoint_every", checkpoint_every)
        self.optimizer_name = optimizer
        self.weight_decay = dict(weight_decay) if isinstance(weight_decay, Mapping) else weight_decay
        self.optimizer = make_optimizer(
            model, optimizer, learning_rate=learning_rate, weight_decay=weight_decay
        )

    def __repr__(self) -> str:
        shown = "epochs", "batch_size", "learning_rate", "loss", "selection"
        settings = ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
        return f"Trainer({type(self.model).__name__}, {settings})"

    def fit(
        self,
        split: Split,
        candidates: Candidates | None = None,
        on_epoch: Callable[[History], None] | None = None,
    ) -> History:
        """Train on ``split.train``.

        Ctrl-C ends the training early; the model then has the best weights so far.

        Args:
            split: what `leave_one_out` returned.
            candidates: what each epoch is judged on. By default drawn from the validation part or, with
                ``selection="paper"``, from the test part; with ``"last"`` nothing is judged.
            on_epoch: called after each epoch.

        Returns:
            The `History`; the model has the weights of ``history.best_epoch``.

        Raises:
            TypeError: if ``split`` is something else.
            ValueError: if the split does not fit the model or lacks the part to select on.
            FloatingPointError: if the loss is no longer a finite number; the epoch and step are named.
        """
        with raise_on_all_ranks(self.collective):
            train, candidates = self._checked(split, candidates)
        batches = self._batches(train)
        self.model.user_ids, self.model.item_ids = train.user_ids, train.item_ids
        samples = sum(all_gather_object(batches.samples)) if self.collective else batches.samples
        state = TrainingState(
            self.model,
            self.wrapped,
            self.optimizer,
            steps=len(batches),
            selection=self.selection,
            checkpoints=self.checkpoints,
            settings=self._settings(samples),
        )
        state.resume()
        step = self._step(batches)
        hidden = None if self.progress is None else not self.progress
        bar = tqdm(
            total=self.epochs * samples,
            initial=samples * (state.epoch * len(batches) + state.step) // len(batches),
            unit=" samples",
            unit_scale=True,
            desc=type(self.model).__name__,
            disable=True if rank() else hidden,
        )
        try:
            with cpu_threads(self.threads), Interruption(collective=self.collective) as interruption:
                while state.epoch < self.epochs and not self._is_patience_over(state):
                    run_epoch(
                        state,
                        step,
                        batches,
                        rate_at=lambda position: learning_rate_at(
                            position, self.epochs * len(batches), self.schedule
                        ),
                        seed=self.seed,
                        interruption=interruption,
                        progress=lambda done, more: bar.update(
                            samples * (done + more) // len(batches) - samples * done // len(batches)
                        ),
                        save_every=self.checkpoint_every,
                    )
                    state.end_epoch(samples)
                    score = judge(self.model, candidates, state.history, k=self.k)
                    state.save(best=state.keep_best(score))
                    _show(bar, state.history, self.k)
                    if on_epoch is not None:
                        on_epoch(state.history)
        except KeyboardInterrupt:
            state.history.interrupted = True
        finally:
            bar.close()
            state.restore_best()
            self.model.eval()
        return state.history

    def _checked(self, split: Split, candidates: Candidates | None) -> tuple[Interactions, Candidates | None]:
        """What to train on, and what to judge each epoch on."""
        train = of_type("split", split, Split, "leave_one_out(interactions) makes one").train
        if train is None:
            raise ValueError("split.train is None: there is nothing to train on")
        for name in ("num_users", "num_items"):
            if getattr(train, name) > getattr(self.model, name):
                raise ValueError(
                    f"the split has {name} = {getattr(train, name)}, the model {getattr(self.model, name)}"
                )
        if candidates is None:
            candidates = what_to_judge(split, self.selection, seed=self.seed)
        return train, candidates

    def _batches(self, train: Interactions) -> TrainingBatches:
        names = "batch_size", "negatives", "law", "seed"
        settings = {"device": self.model.device, **{name: getattr(self, name) for name in names}}
        if self.collective:
            return collective_batches(train, num_users=self.model.num_users, **settings)
        return TrainingBatches(train, **settings)

    def _step(self, batches: TrainingBatches) -> Step:
        model, optimizer, loss = self.model, self.optimizer, LOSSES[self.loss]
        positives = batches.positives_per_batch
        if self.collective:
            return CollectiveStep(self.wrapped, optimizer, loss)
        if self.compile is None and can_be_native(model, optimizer, loss):
            samples = positives * (1 + self.negatives)
            return NativeStep(
                model, optimizer, loss, samples_per_batch=samples, at_most=self.checkpoint_every
            )
        long = self.epochs * batches.samples >= _WORTH_COMPILING
        if self.compile or (self.compile is None and long and can_be_compiled(model, optimizer)):
            return CompiledStep(model, optimizer, loss, positives_per_batch=positives)
        return EagerStep(model, optimizer, loss)

    def _is_patience_over(self, state: TrainingState) -> bool:
        return self.patience is not None and state.epoch - state.history.best_epoch >= self.patience

    def _settings(self, samples: int) -> dict[str, Any]:
        """What bears on the numbers: a run that goes on must have the same."""
        of_steps = "epochs", "batch_size", "learning_rate", "schedule", "weight_decay"
        of_what_is_learned = "negatives", "law", "loss", "selection", "k"
        return {
            "model": type(self.model).__name__,
            **self.model.config,
            "samples": samples,
            "optimizer": self.optimizer_name,
            **{name: getattr(self, name) for name in of_steps + of_what_is_learned},
            "training_seed": self.seed,
        }


def _show(bar: tqdm[None], history: History, k: int) -> None:
    shown = {"loss": f"{history.loss[-1]:.4f}"}
    if history.hr[-1] is not None:
        shown |= {f"HR@{k}": f"{history.hr[-1]:.3f}", f"NDCG@{k}": f"{history.ndcg[-1]:.3f}"}
    bar.set_postfix(shown)
