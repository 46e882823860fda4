"""Train a model on sampled negatives, and keep the epoch that the validation part likes best."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from ncf.batches import TrainingBatches
from ncf.candidates import Candidates, sample_candidates
from ncf.evaluation import evaluate
from ncf.history import History
from ncf.initialization import stream
from ncf.losses import LOSSES
from ncf.optimizers import dense_optimizer, learning_rate_at
from ncf.recommender import Recommender
from ncf.splitting import Split
from ncf.steps import CompiledStep, EagerStep, Step

__all__ = ["History", "Trainer"]

_CHECK_EVERY = 100  # steps between looks at the loss: each look waits for the device


class Trainer:
    """Trains a model as a classifier of interactions against sampled negatives (He et al. 2017).

    Args:
        model: the model; it is trained in place.
        epochs: passes over the training positives.
        batch_size: samples per step, positives and negatives together.
        learning_rate: of the optimizer, at the start.
        schedule: ``"linear"``, falling to zero over the epochs, or ``"constant"``.
        optimizer: ``"adam"``, ``"adagrad"`` or ``"sgd"``.
        weight_decay: L2 penalty on every parameter.
        negatives: negatives per positive.
        law: law of the negatives, ``"uniform"`` or ``"popularity"``.
        loss: ``"bce"`` (binary cross-entropy) or ``"bpr"``.
        selection: which epoch's weights are kept. ``"validation"``: the best NDCG@k on the validation part;
            ``"paper"``: the best HR@k on the *test* part, as published tables did, which flatters the result;
            ``"last"``: the last one, nothing is selected.
        patience: stop after so many epochs without a better one; never by default.
        k: length of the list that HR and NDCG look at.
        seed: of the batches and of dropout.
        compile: compile the training step with ``torch.compile``; it pays only in long jobs.
        threads: CPU threads during `fit`; ``None`` leaves PyTorch's setting. One is the default: a step of this
            size gains little from a second core, and loses tenfold where another process is using it.
        progress: show a progress bar; by default where the output is a terminal.

    Raises:
        ValueError: for an unknown choice or a number out of range.

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
        model: Recommender,
        *,
        epochs: int = 10,
        batch_size: int = 2048,
        learning_rate: float = 4e-3,
        schedule: Literal["linear", "constant"] = "linear",
        optimizer: Literal["adam", "adagrad", "sgd"] = "adam",
        weight_decay: float = 0.0,
        negatives: int = 4,
        law: Literal["uniform", "popularity"] = "uniform",
        loss: Literal["bce", "bpr"] = "bce",
        selection: Literal["validation", "paper", "last"] = "validation",
        patience: int | None = None,
        k: int = 10,
        seed: int = 0,
        compile: bool = False,
        threads: int | None = 1,
        progress: bool | None = None,
    ) -> None:
        _choose("schedule", schedule, ("linear", "constant"))
        _choose("loss", loss, tuple(LOSSES))
        _choose("selection", selection, ("validation", "paper", "last"))
        for name, value in (("epochs", epochs), ("patience", patience), ("threads", threads)):
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value}: give at least 1")
        self.model = model
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.negatives = negatives
        self.law = law
        self.loss = loss
        self.selection = selection
        self.patience = patience
        self.k = k
        self.seed = seed
        self.compile = compile
        self.threads = threads
        self.progress = progress
        self.optimizer = dense_optimizer(
            model, optimizer, learning_rate=learning_rate, weight_decay=weight_decay
        )

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
            ValueError: if the split does not fit the model or lacks the part to select on.
            FloatingPointError: if the loss is no longer a finite number; the epoch and step are named.
        """
        train = split.train
        if train is None:
            raise ValueError("split.train is None: there is nothing to train on")
        model = self.model
        for name in ("num_users", "num_items"):
            if getattr(train, name) > getattr(model, name):
                raise ValueError(
                    f"the split has {name} = {getattr(train, name)}, the model {getattr(model, name)}"
                )
        if candidates is None and self.selection != "last":
            part: Literal["test", "validation"] = "test" if self.selection == "paper" else "validation"
            if getattr(split, part) is None:
                raise ValueError(
                    f'selection = "{self.selection}" needs the {part} part of the split, which is missing: '
                    'split with leave_one_out(..., validation=True), or train with selection="last"'
                )
            candidates = sample_candidates(split, part, seed=self.seed)
        model.user_ids, model.item_ids = train.user_ids, train.item_ids
        batches = TrainingBatches(
            train,
            batch_size=self.batch_size,
            negatives=self.negatives,
            law=self.law,
            seed=self.seed,
            device=model.device,
        )
        step = self._step(batches)
        history = History(selection=self.selection)
        best_score, best = -1.0, _weights(model)
        total = self.epochs * batches.samples
        bar = tqdm(
            total=total,
            unit=" samples",
            unit_scale=True,
            desc=type(model).__name__,
            disable=None if self.progress is None else not self.progress,
        )
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads or threads)
        try:
            for epoch in range(self.epochs):
                self._run_epoch(epoch, step, batches, history, bar)
                score = self._judge(candidates, history)
                if score is None or score > best_score:
                    best_score = -1.0 if score is None else score
                    best = _weights(model)
                    history.best_epoch = epoch + 1
                _show(bar, history, self.k)
                if on_epoch is not None:
                    on_epoch(history)
                if self.patience is not None and epoch + 1 - history.best_epoch >= self.patience:
                    break
        except KeyboardInterrupt:
            history.interrupted = True
        finally:
            torch.set_num_threads(threads)
            bar.close()
            model.load_state_dict(best)
            model.eval()
        return history

    def _run_epoch(
        self, epoch: int, step: Step, batches: TrainingBatches, history: History, bar: tqdm[None]
    ) -> None:
        model = self.model.train()
        dropout = bool(model.config.get("dropout"))
        losses = torch.zeros(len(batches), device=model.device)
        began = time.perf_counter()
        total = self.epochs * len(batches)
        done = checked = 0
        with torch.random.fork_rng(enabled=dropout):
            for chunk in batches.epoch(epoch, per_chunk=step.batches_per_call):
                if dropout:  # its own stream per step, so that a run can go on in the middle of an epoch
                    torch.manual_seed(stream(self.seed, "dropout", epoch, done).initial_seed())
                now = range(done, done + len(chunk.users))
                position = epoch * len(batches)
                rates = [
                    self.learning_rate * learning_rate_at(position + k, total, self.schedule) for k in now
                ]
                losses[now.start : now.stop] = step(chunk, rates)
                done = now.stop
                bar.update(chunk.items.numel())
                if done - checked >= _CHECK_EVERY:
                    _check_finite(losses[:done], epoch)
                    checked = done
        _check_finite(losses, epoch)
        history.seconds.append(time.perf_counter() - began)
        history.epochs.append(epoch + 1)
        history.samples.append(batches.samples)
        history.loss.append(float(losses.mean()))

    def _step(self, batches: TrainingBatches) -> Step:
        loss = LOSSES[self.loss]
        if self.compile:
            return CompiledStep(
                self.model, self.optimizer, loss, positives_per_batch=batches.positives_per_batch
            )
        return EagerStep(self.model, self.optimizer, loss)

    def _judge(self, candidates: Candidates | None, history: History) -> float | None:
        if candidates is None:
            history.hr.append(None)
            history.ndcg.append(None)
            return None
        ranking = evaluate(self.model, candidates, k=self.k)
        history.hr.append(ranking.hr)
        history.ndcg.append(ranking.ndcg)
        if self.selection == "last":
            return None
        return ranking.hr if self.selection == "paper" else ranking.ndcg


def _choose(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} = {value!r}: choose one of {', '.join(map(repr, choices))}")


def _weights(model: Recommender) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _check_finite(losses: Tensor, epoch: int) -> None:
    bad = (~torch.isfinite(losses)).nonzero()
    if len(bad):
        step = int(bad[0])
        raise FloatingPointError(
            f"the loss is {float(losses[step])} at epoch {epoch + 1}, step {step + 1}: "
            "lower the learning rate, or look for huge values in the model's initial weights"
        )


def _show(bar: tqdm[None], history: History, k: int) -> None:
    shown = {"loss": f"{history.loss[-1]:.4f}"}
    if history.hr[-1] is not None:
        shown |= {f"HR@{k}": f"{history.hr[-1]:.3f}", f"NDCG@{k}": f"{history.ndcg[-1]:.3f}"}
    bar.set_postfix(shown)
