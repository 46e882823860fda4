"""One training run: its record, the memory it needs, how an epoch runs, what is selected and kept."""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ncf.data.candidates import Candidates, Catalogue, sample_candidates, whole_catalogue
from ncf.data.interactions import Interactions
from ncf.data.splitting import Split
from ncf.distributed.collectives import all_reduce_sum, group_rank
from ncf.distributed.interrupt import Interruption
from ncf.distributed.sharding import count_steps
from ncf.evaluation.evaluator import evaluate
from ncf.models.base import EmbeddingModel, SupportsScore
from ncf.training.batches import TrainingBatches
from ncf.training.optimizers import make_state, state_tensors
from ncf.training.steps import Step
from ncf.utils.checks import free_memory
from ncf.utils.html import html_table
from ncf.utils.seeding import stream

if TYPE_CHECKING:
    from ncf.distributed.checkpoint import Checkpoint, Checkpoints

# Steps between looks at the loss: each waits for the device, or for the other processes, which may have to stop.
_STEPS_BETWEEN_LOOKS, _STEPS_BETWEEN_LOOKS_TOGETHER = 100, 10

# Numbers kept for each weight: the optimizer's state, and for dense Adam a gradient of the table's size.
_BESIDE_A_WEIGHT = {"adamw": 2, "adam": 3, "adagrad": 1, "rowwise_adagrad": 0, "sgd": 0}

SELECTIONS = ("validation", "paper", "last")

_log = logging.getLogger("ncf.training")


@dataclass(repr=False)
class History:
    """One entry per epoch, and which epoch was kept.

    Args:
        selection: how the kept epoch was chosen; ``"paper"`` means on the test set, as the paper did.
        epochs: epoch numbers, from 1.
        loss: mean training loss of each epoch, over its samples.
        hr: HR@k after each epoch, ``None`` where the epoch was not evaluated.
        ndcg: NDCG@k after each epoch, likewise.
        seconds: training time of each epoch, sampling included, evaluation excluded.
        samples: training samples of each epoch, positives and negatives.
        best_epoch: the epoch whose weights the model has; 0 before the first has ended.
        interrupted: Ctrl-C ended the training. With ``selection="last"`` the weights are then of the step where it
            stopped, after ``best_epoch``.

    Example::

        >>> from ncf import History
        >>> History("last", epochs=[1], loss=[0.5], seconds=[2.0], samples=[1000], best_epoch=1).samples_per_second
        500.0
    """

    selection: str
    epochs: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    hr: list[float | None] = field(default_factory=list)
    ndcg: list[float | None] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    best_epoch: int = 0
    interrupted: bool = False

    def __len__(self) -> int:
        return len(self.epochs)

    def __str__(self) -> str:
        how = {
            "paper": " (chosen on the test set, as in the paper)",
            "validation": " (chosen on the validation set)",
        }
        text = f"{len(self)} epoch{'s' * (len(self) != 1)} in {sum(self.seconds):.1f} s, kept epoch {self.best_epoch}"
        return text + how.get(self.selection, "") + (", interrupted" if self.interrupted else "")

    def __repr__(self) -> str:
        return f"History({self})"

    def _repr_html_(self) -> str:
        columns = (self.epochs, self.loss, self.hr, self.ndcg, self.seconds)
        rows = [
            [str(epoch), *("–" if value is None else f"{value:.4f}" for value in values)]
            for epoch, *values in zip(*columns, strict=False)
        ]
        return html_table(["epoch", "loss", "HR@k", "NDCG@k", "seconds"], rows, str(self))

    @property
    def samples_per_second(self) -> float:
        """Median over the epochs, 0 before the first has ended."""
        rates = [samples / seconds for samples, seconds in zip(self.samples, self.seconds, strict=True)]
        return median(rates) if rates else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Ended:
    """Everything that has to agree when an epoch ends; one assignment replaces it."""

    history: History
    best_score: float = -1.0
    best_in_model: bool = False  # the weights of the best epoch are the model's, and not yet copied


class TrainingRun:
    """The model, its optimizer, the place in the run, the losses, and the best weights so far.

    An interruption at any line leaves the run as it was after a whole epoch. What an epoch changes is replaced by one
    assignment, and the best weights are in the model until they are copied. Random numbers are no part of it:
    batches and dropout depend on the seed, the epoch and the step alone.

    Args:
        model: the model, trained in place.
        wrapped: the model, or what `ncf.distributed.sharding.shard` put around it.
        optimizer: of its parameters.
        step: trains on a chunk of batches.
        batches: of the run.
        candidates: what each epoch is evaluated on; ``None`` where nothing is.
        selection: see `History`. With ``"last"`` no copy of the weights is held.
        epochs: length of the whole run.
        lr_factor: share of the learning rates at a step of the whole run.
        k: length of the list that HR and NDCG look at.
        seed: of dropout.
        checkpoints: where the run is saved, and resumed from; nowhere by default.
        save_every: steps between checkpoints, besides the one at the end of each epoch.
        settings: of the run, which a run that resumes must have.
    """

    def __init__(
        self,
        model: EmbeddingModel,
        wrapped: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        step: Step,
        batches: TrainingBatches,
        *,
        selection: str,
        epochs: int,
        lr_factor: Callable[[int], float] = lambda step: 1.0,
        candidates: Candidates | Catalogue | None = None,
        k: int = 10,
        seed: int = 0,
        checkpoints: Checkpoints | None = None,
        save_every: int | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.model, self.wrapped, self.optimizer = model, wrapped, optimizer
        self.train_on, self.batches, self.candidates = step, batches, candidates
        self.selection, self.epochs, self.lr_factor = selection, epochs, lr_factor
        self.k, self.seed = k, seed
        self.checkpoints, self.save_every = checkpoints, save_every
        self.settings = json.loads(json.dumps(settings or {}))  # as a checkpoint gives them back
        self.distributed = model.embeddings.is_sharded
        self.step = 0  # steps done of the epoch that runs
        self.seconds = 0.0  # that it has taken
        # Of that epoch's steps.
        self.losses = torch.zeros(len(batches), dtype=torch.float32, device=model.device)
        self._ended = _Ended(History(selection))
        self._built = _layout(model)
        self._kept = None if selection == "last" else [weight.clone() for weight in local_weights(model)]

    @property
    def history(self) -> History:
        """Of the whole epochs so far."""
        return self._ended.history

    @property
    def epoch(self) -> int:
        """Whole epochs done."""
        return len(self.history)

    @property
    def samples(self) -> int:
        """Samples trained on, in the running epoch too."""
        done = self.epoch * len(self.batches) + self.step
        return self.batches.samples_of_all * done // len(self.batches)

    def train_epoch(self, interruption: Interruption, progress: Callable[[int], object]) -> None:
        """Train to the end of the epoch, evaluate it, keep it if it is the best so far, and save.

        Args:
            interruption: the user wants to stop, where several processes must stop together.
            progress: called with the number of samples after each call of the step.

        Raises:
            FloatingPointError: if the loss is not a finite number; the epoch and step are named.
            ValueError: if the model's parameters have other shapes or types than when the run began.
            KeyboardInterrupt: if a process was asked to stop.
        """
        self._check_layout()
        self._take_steps(interruption, progress)
        self._end_epoch()

    def _take_steps(self, interruption: Interruption, progress: Callable[[int], object]) -> None:
        self.model.train()
        steps, before = len(self.batches), self.epoch * len(self.batches)
        dropout = any(self.model.config.get(kind) for kind in ("dropout", "id_dropout"))
        of_rank = (group_rank(),) if self.distributed and group_rank() else ()
        between = _STEPS_BETWEEN_LOOKS_TOGETHER if self.distributed else _STEPS_BETWEEN_LOOKS
        device = self.model.device
        began, seconds = time.perf_counter(), self.seconds
        looked = saved = self.step
        count_steps(self.wrapped, before + self.step)
        with torch.random.fork_rng([device] if device.type == "cuda" else [], enabled=dropout):
            for chunk in self.batches.epoch(
                self.epoch, start=self.step, per_chunk=self.train_on.batches_per_call
            ):
                first, last, samples = self.step, self.step + len(chunk.users), self.samples
                if dropout:  # its own stream for each step, so that a run can be resumed within an epoch
                    torch.manual_seed(
                        stream(self.seed, "dropout", self.epoch, first, *of_rank).initial_seed()
                    )
                factors = [self.lr_factor(before + number) for number in range(first, last)]
                self.losses[first:last] = self.train_on(chunk, factors)
                self.step = last
                progress(self.samples - samples)
                due = self.save_every is not None and last - saved >= self.save_every and last < steps
                if due or last == steps or last - looked >= between:
                    self._look_at_losses(looked, interruption)
                    looked = last
                if due:
                    self.seconds = seconds + time.perf_counter() - began
                    self._save()
                    saved = last
        self.seconds = seconds + time.perf_counter() - began

    def _look_at_losses(self, since: int, interruption: Interruption) -> None:
        """Add up the processes' parts of the losses; stop if one is not finite, or if a process wants to stop."""
        losses = self.losses[since : self.step]
        if self.distributed:
            wanted = losses.new_tensor([float(interruption.wanted)])
            both = all_reduce_sum(torch.cat([losses, wanted]))
            losses.copy_(both[:-1])
            if float(both[-1]):
                raise KeyboardInterrupt
        bad = (~torch.isfinite(losses)).nonzero()
        if len(bad):
            place = int(bad[0])
            raise FloatingPointError(
                f"the loss is {float(losses[place])} at epoch {self.epoch + 1}, step {since + place + 1}: "
                "lower the learning rate, or look for huge values in the model's initial weights"
            )

    def _end_epoch(self) -> None:
        hr, ndcg, score = evaluate_epoch(self.model, self.candidates, self.selection, k=self.k)
        is_best = score is None or score > self._ended.best_score
        positives = self.batches.positives_of_steps.to(self.losses.device)  # [steps]
        loss = float((self.losses.double() @ positives.double()) / positives.sum())
        old, epoch = self.history, self.epoch + 1
        history = replace(
            old,
            epochs=[*old.epochs, epoch],
            loss=[*old.loss, loss],
            hr=[*old.hr, hr],
            ndcg=[*old.ndcg, ndcg],
            seconds=[*old.seconds, self.seconds],
            samples=[*old.samples, self.batches.samples_of_all],
            best_epoch=epoch if is_best else old.best_epoch,
        )
        best_score = self._ended.best_score if score is None or not is_best else score
        self.step, self.seconds = 0, 0.0
        self._ended = _Ended(history, best_score, best_in_model=is_best)
        if is_best:
            self._keep()
        self._save(best=is_best)
        if group_rank() == 0:
            figures = "" if hr is None else f", HR@{self.k} {hr:.4f}, NDCG@{self.k} {ndcg:.4f}"
            seconds = history.seconds[-1]
            name = type(self.model).__name__
            _log.info(
                "%s: epoch %d of %d: loss %.4f%s, %.1f s", name, epoch, self.epochs, loss, figures, seconds
            )

    def _keep(self) -> None:
        """Copy the model's weights, which are the best so far."""
        self._ended = replace(self._ended, best_in_model=True)
        if self._kept is not None:
            for kept, weight in zip(self._kept, local_weights(self.model), strict=True):
                kept.copy_(weight)
            self._ended = replace(self._ended, best_in_model=False)

    def interrupt(self) -> None:
        """Note in the history that the user ended the run."""
        self._ended = replace(self._ended, history=replace(self.history, interrupted=True))

    def restore_best(self) -> None:
        """Give the model the best weights so far; Ctrl-C meanwhile starts this anew."""
        while self._kept is not None and not self._ended.best_in_model:
            try:
                for kept, weight in zip(self._kept, local_weights(self.model), strict=True):
                    if kept.shape == weight.shape:  # else the caller has changed the model
                        weight.copy_(kept)
                return
            except KeyboardInterrupt:
                self.interrupt()

    def _check_layout(self) -> None:
        for (name, was), (_, now) in zip(self._built.items(), _layout(self.model).items(), strict=True):
            if was != now:
                raise ValueError(
                    f"{name} was {was} when the training began and is {now} now: change and save a copy in on_epoch, "
                    "copy.deepcopy(model).half()"
                )

    # Checkpoints.

    def _save(self, *, best: bool = False) -> None:
        if self.checkpoints is None:
            return
        metadata = {
            "settings": self.settings,
            "epochs": self.epochs,
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "best_score": self._ended.best_score,
            "history": self.history.to_dict(),
        }
        position = self.epoch * len(self.batches) + self.step
        self.checkpoints.save(self._tensors(), metadata, step=position, best=best)

    def resume(self) -> None:
        """Go to where the newest checkpoint is, if there is one; all processes must call this.

        Raises:
            ValueError: if the checkpoint is of a run with other settings or other data, or of another model.
        """
        newest = None if self.checkpoints is None else self.checkpoints.latest()
        if self.checkpoints is None or newest is None:
            return
        self._check_settings(newest)
        make_state(self.optimizer)
        saved = newest.metadata
        history = History(**saved["history"])
        try:
            is_best_known = self._kept is None or not history.best_epoch or self._read_best(self.checkpoints)
            newest.read(self._tensors())
            if is_best_known:
                in_model = self._kept is None
                self._ended = _Ended(history, saved["best_score"], best_in_model=in_model)
            else:  # any epoch that follows is better than one that is not known
                self._keep()
                self._ended = _Ended(replace(history, best_epoch=0 if saved["step"] else saved["epoch"]))
        except BaseException:
            self.restore_best()
            raise
        self.step, self.seconds = saved["step"], saved["seconds"]

    def _check_settings(self, newest: Checkpoint) -> None:
        theirs, own = newest.metadata["settings"], self.settings
        for name in {**theirs, **own}:
            if theirs.get(name) != own.get(name):
                raise ValueError(
                    f"{newest.folder} is of a run with {name} = {theirs.get(name)!r}, here it is {own.get(name)!r}: "
                    "resume with the same settings and the same data, or choose another folder"
                )
        epochs, done = newest.metadata["epochs"], newest.metadata["epoch"]
        if done > self.epochs:
            raise ValueError(f"{newest.folder} has {done} epochs, more than epochs = {self.epochs}")
        if epochs != self.epochs and own.get("schedule") != "constant" and group_rank() == 0:
            warnings.warn(
                f"{newest.folder} is of a run of {epochs} epochs, which is now one of {self.epochs}: its learning "
                "rates so far were the other schedule's",
                stacklevel=4,
            )

    def _read_best(self, checkpoints: Checkpoints) -> bool:
        try:
            best = checkpoints.best()
        except ValueError as error:
            if group_rank() == 0:
                warnings.warn(f"{error} The newest weights are taken for the best.", stacklevel=4)
            return False
        if best is None:
            return False
        best.read(self._weights(), strict=False)
        self._keep()
        return True

    def _weights(self) -> dict[str, Any]:
        return {f"model.{name}": value for name, value in self.model.state_dict().items()}

    def _tensors(self) -> dict[str, Any]:
        return self._weights() | {"losses": self.losses} | state_tensors(self.wrapped, self.optimizer)


def local_weights(model: EmbeddingModel) -> Iterator[Tensor]:
    """The weights that this process holds: its shards where the tables are sharded."""
    for value in model.state_dict().values():
        if hasattr(value, "local_shards"):
            yield from (shard.tensor.detach() for shard in value.local_shards())
        else:
            yield value.detach()


def _layout(model: EmbeddingModel) -> dict[str, str]:
    """Type, shape and device of each parameter, in words."""
    return {
        name: f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)} on {value.device}"
        for name, value in model.named_parameters()
    }


def check_memory(model: EmbeddingModel, optimizer: str, *, copies: int) -> None:
    """Report the bytes per row where a training takes more than half of the free memory.

    Args:
        model: the model, whose weights are in memory.
        optimizer: its name; an optimizer of the user's own is taken for one with two numbers for each weight.
        copies: of the weights: 1 where the best epoch is kept.

    Raises:
        MemoryError: if it takes more than there is.
    """
    free = free_memory(model.device)
    held = sum(weight.nbytes for weight in local_weights(model))
    beside = copies + (0 if model.embeddings.is_sharded else _BESIDE_A_WEIGHT.get(optimizer, 2))
    if free is None or (1 + beside) * held <= (free + held) / 2:
        return
    sizes = {"user": model.num_users, "item": model.num_items}
    rows = ", ".join(
        f"{sizes[table.side]:,} of {table.name} at {4 * (1 + beside) * table.dim:,} bytes"
        for table in model.embeddings.tables
    )
    text = (
        f"training takes {beside * held / 1e9:.2f} GB beside the model's {held / 1e9:.2f} GB, of "
        f"{free / 1e9:.2f} GB that are free; rows: {rows}"
    )
    if beside * held > free:
        raise MemoryError(
            f'{text}. Choose an optimizer with less state ("rowwise_adagrad", "sgd"), selection="last", which holds no '
            "copy of the weights, fewer columns, or several processes (ncf.distributed.shard)"
        )
    _log.warning("%s", text)


def selection_candidates(split: Split, selection: str, *, seed: int = 0) -> Candidates | Catalogue | None:
    """Draw what each epoch is evaluated on, if the caller brings no candidates.

    ``"validation"`` draws for the validation set, ``"paper"`` for the test set; with ``"last"`` nothing is evaluated.
    Where the set holds several interactions of a user, each epoch is evaluated in the whole catalogue.

    Raises:
        ValueError: if the split has no such set.
    """
    if selection == "last":
        return None
    part: Literal["test", "validation"] = "test" if selection == "paper" else "validation"
    held_out: Interactions | None = getattr(split, part)
    if held_out is None:
        raise ValueError(
            f'selection = "{selection}" needs the {part} part of the split, which is missing: '
            'split with leave_one_out(..., validation=True), or train with selection="last"'
        )
    if len(held_out.users.unique()) < len(held_out):
        return whole_catalogue(split, part)
    return sample_candidates(split, part, seed=seed)


def evaluate_epoch(
    model: SupportsScore, candidates: Candidates | Catalogue | None, selection: str, *, k: int = 10
) -> tuple[float | None, float | None, float | None]:
    """Evaluate a model after an epoch.

    Returns:
        HR@k, NDCG@k, and the one of them whose best epoch is kept: NDCG@k on the validation set and, as the paper
        did, HR@k on the test set. ``None`` where there is no such figure.
    """
    if candidates is None:
        return None, None, None
    ranking = evaluate(model, candidates, k=k)
    selected = {"paper": ranking.hr, "validation": ranking.ndcg, "last": None}[selection]
    return ranking.hr, ranking.ndcg, selected
