"""Train a model on sampled negatives, and keep the epoch that is best on the validation set."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import is_dataclass
from os import PathLike
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ncf.data.candidates import Candidates, Catalogue
from ncf.data.interactions import Interactions
from ncf.data.splitting import Split
from ncf.data.vocabulary import check_same_ids
from ncf.distributed.checkpoint import Checkpoints
from ncf.distributed.collectives import all_reduce_sum, group_rank, raise_on_all_ranks
from ncf.distributed.interrupt import Interruption
from ncf.models.base import EmbeddingModel
from ncf.training.batches import (
    TrainingBatches,
    candidates_fingerprint,
    distributed_batches,
    rows_fingerprint,
)
from ncf.training.fused_step import FusedStep, can_be_fused
from ncf.training.losses import LOSSES, Loss, SampledSoftmax
from ncf.training.native_step import NativeStep, can_be_native
from ncf.training.optimizers import learning_rate_at, make_optimizer
from ncf.training.run import SELECTIONS, History, TrainingRun, check_memory, selection_candidates
from ncf.training.steps import CollectiveStep, EagerStep, Step
from ncf.utils.checks import check_choice, whole, whole_or_none
from ncf.utils.threads import cpu_threads

__all__ = ["History", "Trainer"]


class Trainer:
    """Trains a model as a classifier of interactions against sampled negatives (He et al. 2017).

    A model that `ncf.distributed.shard` has sharded is trained by all processes together. Each calls `fit` with the
    interactions of its own users, ``split.for_rank(rank, world_size)``, and samples their negatives; a step's
    ``batch_size`` counts all of them.

    Args:
        model: the model, or what `ncf.distributed.shard` returned; it is trained in place.
        epochs: passes over the training positives.
        batch_size: samples per step, positives and negatives together.
        learning_rate: of the optimizer, at the start; one number, or one for each part of the model by name, see
            `ncf.training.optimizers.make_optimizer`.
        schedule: ``"linear"``, falling to zero over the epochs, or ``"constant"``; or a function of the steps done and
            the steps of the whole run that returns the share of the learning rate.
        optimizer: for all parameters except sharded tables, which have their own (`ncf.distributed.shard`).
            ``"adamw"``, ``"adagrad"``, ``"rowwise_adagrad"`` and ``"sgd"`` update the rows of the batch; ``"adam"``
            every row at every step. Or a function that makes a `torch.optim.Optimizer` from a list of parameters, such
            as ``lambda parameters: torch.optim.NAdam(parameters, lr=1e-3)``; ``learning_rate`` and ``weight_decay``
            are then its own.
        weight_decay: decay, decoupled from the gradient, in units of the learning rate; also by part of the model. With
            ``optimizer="adam"`` an L2 penalty.
        negatives: negatives per positive.
        shared_negatives: items that are drawn for each batch and are negatives of all of its positives, in place of
            their own, unless their user has interacted with them. Hundreds cost little where the logit is a product.
            ``batch_size`` then counts positives.
        negative_sampling: distribution of the negatives, ``"uniform"`` or ``"popularity"``.
        loss: ``"bce"`` (binary cross-entropy), ``"bpr"``, ``"softmax"`` or ``"ccl"`` (cosine contrastive loss), or
            one of `ncf.training.losses` with its settings; or a function of logits ``[P, 1 + n]``, of which column 0
            belongs to the positives, that returns the mean loss over them as a scalar.
        selection: which epoch's weights are kept. ``"validation"``: the best NDCG@k on the validation set;
            ``"paper"``: the best HR@k on the *test* set, as published tables did, which flatters the result;
            ``"last"``: the last one, nothing is selected and no copy of the weights is held. By default
            ``"validation"``, but ``"last"`` where `fit` gets all interactions.
        patience: stop after so many epochs without a better one; never by default.
        k: length of the list that HR and NDCG look at.
        seed: of the batches and of dropout.
        compile: ``False`` runs the training step operation by operation in PyTorch. By default a kernel in C does the
            step on a CPU (`native_step`), and Triton kernels in a CUDA graph on an NVIDIA GPU (`fused_step`), where
            they have the model, the loss and the optimizer. ``True`` compiles the step of the GPU with
            ``torch.compile`` as well.
        precision: of products in training: ``"fp32"``; ``"tf32"``, on NVIDIA GPUs alone; or ``"bf16"``. Parameters,
            sums and the optimizer's state are fp32 always. See the page *Kernels* for its effect on quality.
        threads: CPU threads during `fit`, with the same numbers for any number of them. By default as many as PyTorch
            has where the kernel in C trains, which takes one while that is faster; elsewhere one, since PyTorch's own
            threads cost more than they give on a machine that others use.
        progress: show a progress bar; by default in a terminal and in a notebook. One line for each epoch also goes to
            the logger ``ncf.training``, at the level INFO.
        checkpoint: a folder of checkpoints. The run resumes from the newest one and ends with the same numbers as if it
            had never stopped; the data and all settings that bear on them must be the same. ``epochs`` may be another
            number, to train longer. By default nothing is written.
        checkpoint_every: steps between checkpoints; there is one at the end of each epoch anyway.

    Raises:
        ValueError: for an unknown choice, a number out of range, or settings that exclude each other.
        TypeError: if the model is not ncf's, sharded or not.

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
        learning_rate: float | Mapping[str, float] | None = None,
        schedule: Literal["linear", "constant"] | Callable[[int, int], float] = "linear",
        optimizer: Literal["adamw", "adagrad", "rowwise_adagrad", "sgd", "adam"]
        | Callable[[list[nn.Parameter]], torch.optim.Optimizer] = "adamw",
        weight_decay: float | Mapping[str, float] | None = None,
        negatives: int = 4,
        shared_negatives: int | None = None,
        negative_sampling: Literal["uniform", "popularity"] = "uniform",
        loss: Literal["bce", "bpr", "softmax", "ccl"] | Loss = "bce",
        selection: Literal["validation", "paper", "last"] | None = None,
        patience: int | None = None,
        k: int = 10,
        seed: int = 0,
        compile: bool | None = None,
        precision: Literal["fp32", "tf32", "bf16"] = "fp32",
        threads: int | None = None,
        progress: bool | None = None,
        checkpoint: Checkpoints | str | PathLike[str] | None = None,
        checkpoint_every: int | None = None,
    ) -> None:
        check_choice("schedule", schedule, ("linear", "constant"), "function")
        check_choice("loss", loss, LOSSES, "function")
        check_choice("negative_sampling", negative_sampling, ("uniform", "popularity"))
        check_choice("compile", compile, (None, True, False))
        check_choice("precision", precision, ("fp32", "tf32", "bf16"))
        if selection is not None:
            check_choice("selection", selection, SELECTIONS)
        if patience is not None and selection == "last":
            raise ValueError(
                'patience waits for a better epoch, and selection="last" selects none: give one of them'
            )
        inner = getattr(model, "module", model)
        if not isinstance(inner, EmbeddingModel):
            raise TypeError(f"{type(model).__name__} is not one of ncf's models")
        self.model: EmbeddingModel = inner
        self.wrapped: nn.Module = model
        self.distributed = inner.embeddings.is_sharded
        if self.distributed and model is inner:
            raise ValueError(
                "the model is sharded: train what shard() returned, which averages the gradients"
            )
        if self.distributed and compile:
            raise ValueError("compile=True is for a model in one process, not for a sharded one")
        if callable(optimizer) and (learning_rate is not None or weight_decay is not None):
            raise ValueError(
                "an optimizer of your own has its own learning_rate and weight_decay: set them there"
            )
        self.epochs = whole("epochs", epochs)
        self.batch_size = whole("batch_size", batch_size)
        self.learning_rate = 4e-3 if learning_rate is None else _plain(learning_rate)
        self.weight_decay = 0.0 if weight_decay is None else _plain(weight_decay)
        self.schedule = schedule
        self.negatives = whole("negatives", negatives)
        self.shared_negatives = whole_or_none("shared_negatives", shared_negatives)
        if self.distributed and self.shared_negatives is not None:
            raise ValueError("shared_negatives is for a model in one process, not for a sharded one")
        self.negative_sampling = negative_sampling
        self.loss = loss
        self.selection = selection
        self.patience = whole_or_none("patience", patience)
        self.k = whole("k", k)
        self.seed = whole("seed", seed, least=None)
        self.compile = compile
        self.precision = precision
        if precision == "tf32" and inner.device.type != "cuda":
            raise ValueError(f'precision="tf32" is for NVIDIA GPUs: the model is on {inner.device.type}')
        self.threads = whole_or_none("threads", threads)
        self.progress = progress
        self.checkpoints = Checkpoints(checkpoint) if isinstance(checkpoint, str | PathLike) else checkpoint
        self.checkpoint_every = whole_or_none("checkpoint_every", checkpoint_every)
        self.optimizer_name = optimizer if isinstance(optimizer, str) else _name(optimizer)
        self.optimizer = make_optimizer(
            model, optimizer, learning_rate=self.learning_rate, weight_decay=self.weight_decay
        )

    def __repr__(self) -> str:
        shown = "epochs", "batch_size", "learning_rate", "negatives", "selection", "patience", "seed"
        settings = {"optimizer": self.optimizer_name, "loss": _name(self.loss)}
        settings |= {name: getattr(self, name) for name in shown if getattr(self, name) is not None}
        return f"Trainer({type(self.model).__name__}, {', '.join(f'{k}={v!r}' for k, v in settings.items())})"

    def fit(
        self,
        split: Split | Interactions,
        candidates: Candidates | Catalogue | None = None,
        on_epoch: Callable[[History, EmbeddingModel], bool | None] | None = None,
    ) -> History:
        """Train on ``split.train``, or on all interactions.

        Ctrl-C ends the training early; the model then has the best weights so far. With ``selection="last"`` it has
        those of the last step. `fit` called again trains the same model further.

        Args:
            split: the return value of `leave_one_out` or another split; or `Interactions`, to train on all of them.
            candidates: what each epoch is evaluated on. By default drawn from the validation set or, with
                ``selection="paper"``, from the test set; with ``"last"`` nothing is evaluated.
            on_epoch: called as ``on_epoch(history, model)`` after each epoch; the training stops where it returns
                ``True``. The model then has the weights of that epoch, and must keep its shapes and types.

        Returns:
            The `History`; the model has the weights of ``history.best_epoch``.

        Raises:
            TypeError: if ``split`` is something else, or ``on_epoch`` takes other arguments.
            ValueError: if the split does not fit the model, numbers other raw ids, or has no set to select on.
            FloatingPointError: if the loss is not a finite number; the epoch and step are named.
            MemoryError: if the optimizer's state and a copy of the weights take more memory than is free.
        """
        with raise_on_all_ranks(self.distributed):
            train, candidates, selection = self._checked(split, candidates, on_epoch)
            check_memory(self.model, self.optimizer_name, copies=selection != "last")
        batches = self._batches(train)
        run = TrainingRun(
            self.model,
            self.wrapped,
            self.optimizer,
            self._step(batches),
            batches,
            selection=selection,
            epochs=self.epochs,
            lr_factor=self._lr_factor(self.epochs * len(batches)),
            candidates=candidates,
            k=self.k,
            seed=self.seed,
            checkpoints=self.checkpoints,
            save_every=self.checkpoint_every,
            settings=self._settings(train, candidates, selection),
        )
        self.model.user_ids, self.model.item_ids = (
            getattr(self.model, side) if getattr(train, side) is None else getattr(train, side)
            for side in ("user_ids", "item_ids")
        )
        with self.checkpoints.locked() if self.checkpoints is not None else nullcontext():
            run.resume()
            threads = 1 if self.threads is None else self.threads  # of PyTorch, whose idle threads spin
            with self._progress_bar(run) as bar, cpu_threads(threads), _matrix_precision(self.precision):
                try:
                    with Interruption(distributed=self.distributed) as interruption:
                        while run.epoch < self.epochs and not self._is_patience_over(run.history):
                            run.train_epoch(interruption, bar.update)
                            _show(bar, run.history, self.k)
                            if on_epoch is not None and self._wants_stop(on_epoch(run.history, self.model)):
                                break
                except KeyboardInterrupt:
                    run.interrupt()
                finally:
                    run.restore_best()
                    self.model.eval()
        return run.history

    def _checked(
        self, split: Split | Interactions, candidates: Candidates | Catalogue | None, on_epoch: Any
    ) -> tuple[Interactions, Candidates | Catalogue | None, str]:
        """Return the training set, the candidates of each epoch, and the selection."""
        if not isinstance(split, Split | Interactions):
            raise TypeError(
                f"split must be Split or Interactions, got {type(split).__name__}: "
                "leave_one_out(interactions) makes a split"
            )
        train = split.train if isinstance(split, Split) else split
        for name in ("num_users", "num_items"):
            if getattr(train, name) > getattr(self.model, name):
                raise ValueError(
                    f"the split has {name} = {getattr(train, name)}, the model {getattr(self.model, name)}"
                )
        remedy = (
            "number the data as the model does, with user_ids=model.user_ids and item_ids=model.item_ids, or make a "
            "new model; read its features with the data's vocabulary, Features.from_table(..., ids=train.item_ids)"
        )
        check_same_ids(self.model, train, "the model", "the training data", remedy)
        selection = self.selection
        if selection is None:
            selection = "last" if candidates is None and isinstance(split, Interactions) else "validation"
        if selection == "last" and self.patience is not None:
            raise ValueError(
                "patience waits for a better epoch, and without a validation set none is selected"
            )
        if candidates is None and isinstance(split, Split):
            candidates = selection_candidates(split, selection, seed=self.seed)
        elif candidates is None and selection != "last":
            raise ValueError(
                f'selection = "{selection}" needs a split, or candidates: give leave_one_out(interactions), or train '
                'on all interactions with selection="last"'
            )
        if candidates is not None:
            check_same_ids(train, candidates, "the training data", "the candidates")
        if on_epoch is not None:
            try:
                inspect.signature(on_epoch).bind(None, None)
            except TypeError as error:
                raise TypeError(f"on_epoch is called as on_epoch(history, model): {error}") from None
            except ValueError:  # some of Python's own functions have no signature
                pass
        if not isinstance(self.loss, str):
            _check_loss(self.loss, self.shared_negatives or self.negatives, self.model.device)
        return train, candidates, selection

    def _batches(self, train: Interactions) -> TrainingBatches:
        names = "batch_size", "negatives", "negative_sampling", "seed"
        settings = {"device": self.model.device, **{name: getattr(self, name) for name in names}}
        if self.distributed:
            return distributed_batches(train, num_users=self.model.num_users, **settings)
        return TrainingBatches(train, shared_negatives=self.shared_negatives, **settings)

    def _step(self, batches: TrainingBatches) -> Step:
        model, optimizer = self.model, self.optimizer
        loss = LOSSES[self.loss] if isinstance(self.loss, str) else self.loss
        autocast = torch.bfloat16 if self.precision == "bf16" else None
        if self.distributed:
            return CollectiveStep(self.wrapped, optimizer, loss, autocast=autocast)
        shared = self.shared_negatives is not None
        corrections = batches.corrections if isinstance(loss, SampledSoftmax) else None
        samples = batches.positives_per_batch * batches.samples_of_positive
        size: dict[str, Any] = {"samples_per_batch": samples, "at_most": self.checkpoint_every}
        if self.compile is None and autocast is None and can_be_native(model, optimizer, loss, shared=shared):
            threads = torch.get_num_threads() if self.threads is None else self.threads
            return NativeStep(model, optimizer, loss, corrections=corrections, threads=threads, **size)
        if self.compile is not False and can_be_fused(model, optimizer, loss, shared=shared):
            compiled = self.compile is True
            return FusedStep(model, optimizer, loss, compiled=compiled, autocast=autocast, **size)
        if self.compile:
            raise ValueError(
                "compile=True is for the fused step of NVIDIA GPUs, which does not have this model, optimizer, loss or "
                "device: leave compile out"
            )
        return EagerStep(model, optimizer, loss, corrections, autocast)

    def _lr_factor(self, steps: int) -> Callable[[int], float]:
        schedule = self.schedule
        if isinstance(schedule, str):
            return lambda step: learning_rate_at(step, steps, schedule)
        return lambda step: float(schedule(step, steps))

    def _progress_bar(self, run: TrainingRun) -> Any:
        in_notebook = any(kind.__name__ == "tqdm_notebook" for kind in tqdm.__mro__)
        hidden = None if self.progress is None and not in_notebook else self.progress is False
        return tqdm(
            total=self.epochs * run.batches.samples_of_all,
            initial=run.samples,
            unit=" samples",
            unit_scale=True,
            desc=type(self.model).__name__,
            disable=True if self.distributed and group_rank() else hidden,
        )

    def _is_patience_over(self, history: History) -> bool:
        return self.patience is not None and len(history) - history.best_epoch >= self.patience

    def _wants_stop(self, answer: Any) -> bool:
        if answer not in (None, True, False):
            raise TypeError(f"on_epoch returned {answer!r}: return True to stop the training, else None")
        if not self.distributed:
            return bool(answer)
        wanted = torch.tensor([bool(answer)], dtype=torch.int64, device="cpu")
        return bool(all_reduce_sum(wanted))

    def _settings(
        self, train: Interactions, candidates: Candidates | Catalogue | None, selection: str
    ) -> dict[str, Any]:
        """Return the settings that the numbers depend on: a run that resumes must have the same."""
        if self.checkpoints is None:
            return {}
        names = (
            "batch_size",
            "learning_rate",
            "weight_decay",
            "negatives",
            "shared_negatives",
            "negative_sampling",
            "k",
        )
        return {
            "model": type(self.model).__name__,
            **self.model.config,
            "interactions": rows_fingerprint(train.users, train.items, distributed=self.distributed),
            "ids": train.fingerprint,
            "candidates": candidates_fingerprint(candidates, self.distributed),
            "optimizer": self.optimizer_name,
            "table_optimizer": getattr(self.wrapped, "table_optimizer", None),
            "loss": _name(self.loss),
            "schedule": _name(self.schedule),
            "selection": selection,
            "precision": None if self.precision == "fp32" else self.precision,
            **{name: getattr(self, name) for name in names},
            "training_seed": self.seed,
        }


@contextmanager
def _matrix_precision(precision: str) -> Iterator[None]:
    """Let products of fp32 matrices be rounded to tf32 meanwhile, if that is wanted."""
    before = torch.get_float32_matmul_precision()
    if precision == "tf32":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        if precision == "tf32":
            torch.set_float32_matmul_precision(before)


def _plain(setting: float | Mapping[str, float]) -> float | dict[str, float]:
    return dict(setting) if isinstance(setting, Mapping) else setting


def _name(choice: Any) -> str:
    """The name of a choice, or where a function of the user's own is defined."""
    if isinstance(choice, str):
        return choice
    if is_dataclass(choice):
        return repr(choice)  # with its settings
    named = choice if hasattr(choice, "__qualname__") else type(choice)
    return f"{named.__module__}.{named.__qualname__}"


def _check_loss(loss: Loss, negatives: int, device: torch.device) -> None:
    logits = torch.zeros(2, 1 + negatives, dtype=torch.float32, device=device, requires_grad=True)
    with torch.enable_grad():
        value = loss(logits)
    if not isinstance(value, Tensor) or value.dim() or not value.requires_grad:
        shape = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"loss returned {shape} for logits {list(logits.shape)}: return a scalar that is computed from the logits"
        )


def _show(bar: Any, history: History, k: int) -> None:
    shown = {"loss": f"{history.loss[-1]:.4f}"}
    if history.hr[-1] is not None:
        shown |= {f"HR@{k}": f"{history.hr[-1]:.3f}", f"NDCG@{k}": f"{history.ndcg[-1]:.3f}"}
    bar.set_postfix(shown)
