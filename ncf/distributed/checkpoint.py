"""The state of a training on disk: which of its checkpoints stay, which one a run goes on with, and how it is read.

Unlike a saved model (`ncf.load`) a checkpoint holds a pickle, ``.metadata``, in which
``torch.distributed.checkpoint`` keeps its index. **Open your own checkpoints only**: the hashes tell damage, not
malice.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor

from ncf.distributed.checkpoint_files import (
    damage_of,
    described,
    folder_of,
    folders_in,
    number_of,
    part_of,
    write,
)
from ncf.distributed.collectives import all_gather_object, raise_on_all_ranks, rank, world_size
from ncf.utils.checks import whole

if TYPE_CHECKING:
    from ncf.distributed.checkpoint_planner import Pieces


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint; `Checkpoints.latest` and `Checkpoints.best` find it.

    Args:
        folder: where it lies.
        step: steps trained.
        about: what else was kept.

    Example::

        >>> import tempfile, torch
        >>> from ncf.distributed.checkpoint import Checkpoints
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Checkpoints(folder).save({"weight": torch.arange(3.0)}, {"epoch": 1}, step=100)
        ...     checkpoint, weight = Checkpoints(folder).latest(), torch.empty(3)
        ...     checkpoint.read({"weight": weight})
        ...     checkpoint.folder.name, checkpoint.step, weight
        ('step-0000000100', 100, tensor([0., 1., 2.]))
    """

    folder: Path
    step: int
    about: dict[str, Any]

    def read(self, tensors: Mapping[str, Tensor], *, strict: bool = True) -> None:
        """Fill tensors in place, whatever the number of processes and the sharding that they were saved from.

        Every process must call it, with the tensors it has. Each reads only what its own parts need.

        Weights, and optimizer states that have the weights' shape, come out equal to the bit. So does the state of
        row-wise Adagrad while a table is cut into the same columns as before. Otherwise it has to be converted,
        for row-wise Adagrad keeps one number for each row *of each part*: the mean over the part's columns of the
        squared gradients' sums. A new part gets the mean of the old parts' numbers, weighted by the columns
        they share. Joining parts (column-wise to table-wise) so gives what one part would have had, up to
        rounding. Splitting (table-wise to column-wise) gives each part its row's number, unrounded, since the
        numbers that the columns had by themselves were never kept. A checkpoint opened there and back is equal
        to the bit, if split first; joining forgets how the parts differed.

        Args:
            tensors: plain tensors and ``ShardedTensor``, by name. The state that FBGEMM keeps of a table is named
                ``fused.<table>.momentum1``, the table ``model.embeddings.ebc.embedding_bags.<table>.weight``.
            strict: the checkpoint may hold no names that are not asked for.

        Raises:
            ValueError: if the names, shapes or dtypes are of another model or another optimizer. Nothing is
                filled then.
        """
        from ncf.distributed import checkpoint_planner as pieces

        with raise_on_all_ranks():
            here = pieces.shapes(tensors)
        wanted = {name: shape for shapes in all_gather_object(here) for name, shape in shapes.items()}
        with raise_on_all_ranks():
            pieces.fill(self.folder, tensors, wanted, strict=strict)


class Checkpoints:
    """A folder of training states, the newest whole one of which a run goes on with.

    In a job of several processes each of them makes this object and calls each method, together with the others,
    and sees the same folder. What fails in one process is the same error in all.

    Args:
        folder: where the checkpoints lie; it is made if missing.
        keep: how many of the newest stay; the newest that was saved as the best stays beside them.
        in_background: `save` copies the tensors and returns; the copy, which needs as much memory again, is
            written while the training goes on.

    Raises:
        ValueError: if ``keep`` is below 1.
        NotADirectoryError: if ``folder`` is a file.

    Example::

        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoints = Checkpoints(folder)
        ...     checkpoints.save({"weight": torch.arange(3.0)}, {"epoch": 1}, step=100)
        ...     checkpoint = checkpoints.latest()
        ...     weight = torch.empty(3)
        ...     checkpoint.read({"weight": weight})
        ...     checkpoint.step, checkpoint.about, weight
        (100, {'epoch': 1}, tensor([0., 1., 2.]))
    """

    def __init__(self, folder: str | PathLike[str], *, keep: int = 2, in_background: bool = False) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"{self.folder} is a file: give a folder for the checkpoints")
        self.keep = whole("keep", keep)
        self.in_background = in_background
        self._damaged: set[str] = set()
        self._group: dist.ProcessGroup | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._under_way: Future[None] | None = None

    def save(
        self, tensors: Mapping[str, Tensor], about: dict[str, Any], *, step: int, best: bool = False
    ) -> None:
        """Write a checkpoint, then remove those that are no longer kept.

        A step that is there already is replaced: the new one is complete beside it before the old one goes.
        Checkpoints of later steps that `latest` passed over as damaged are removed, for the run has left them.

        Args:
            tensors: plain tensors, the same in every process, and ``ShardedTensor``.
            about: what else to keep, as JSON can hold it; that of rank 0 is kept.
            step: steps trained.
            best: whether it is the best so far.

        Raises:
            ValueError: if the folder holds a whole checkpoint of a later step.
            TypeError: if ``about`` holds what JSON cannot.
            OSError: if it cannot be written; those before it are as they were.
        """
        self.wait()
        from ncf.distributed.checkpoint_planner import Pieces

        if self.in_background and self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
            if world_size() > 1:  # the training goes on talking over its own
                self._group = dist.new_group(backend="gloo")
        with raise_on_all_ranks():
            description = {
                "step": step,
                "best": best,
                "world_size": world_size(),
                "about": json.loads(json.dumps(about)),  # as it is now, and as it will be read
            }
            target = self._make_room(step) if rank() == 0 else Path()
            pieces = Pieces(tensors, copy=self.in_background)
        target = all_gather_object(target)[0]
        if self._thread is None:
            self._write(pieces, description, target)
        else:
            self._under_way = self._thread.submit(self._write, pieces, description, target)

    def wait(self) -> None:
        """Wait until a save in the background is in its place.

        Raises:
            Exception: what became of it, as `save` would have raised it.
        """
        if self._under_way is not None:
            under_way, self._under_way = self._under_way, None
            under_way.result()

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint; a damaged one is passed over with a warning that says what ails it.

        Every file is read and hashed, a part of them by each process.

        Returns:
            The checkpoint, or ``None`` if there is none at all.

        Raises:
            ValueError: if there are some, but not a whole one.
        """
        return self._newest(only_best=False)

    def best(self) -> Checkpoint | None:
        """The newest whole checkpoint that was saved as the best.

        Raises:
            ValueError: if it is damaged and there is no earlier one.
        """
        return self._newest(only_best=True)

    def _newest(self, *, only_best: bool) -> Checkpoint | None:
        self.wait()
        with raise_on_all_ranks():
            folders = folders_in(self.folder) if rank() == 0 else []
        found = None
        damaged: dict[str, str] = {}
        for folder in reversed(all_gather_object(folders)[0]):
            with raise_on_all_ranks():
                description = described(folder) if rank() == 0 else None
            description = all_gather_object(description)[0]
            if isinstance(description, dict):
                if only_best and not description["best"]:
                    continue
                files = sorted(description["files"].items())[rank() :: world_size()]
                with raise_on_all_ranks():
                    damage = next(
                        filter(None, (damage_of(folder / name, **file) for name, file in files)), None
                    )
                damage = next(filter(None, all_gather_object(damage)), None)
                if damage is None:
                    found = Checkpoint(folder, description["step"], description["about"])
                    break
            else:
                damage = str(description)
            damaged[folder.name] = damage
        if damaged and found is None:
            which = "that was saved as the best " if only_best else ""
            raise ValueError(
                f"no checkpoint {which}in {self.folder} is whole: {'; '.join(damaged.values())}. Copy one there, or "
                "start anew in another folder"
            )
        for name, damage in damaged.items():
            if rank() == 0 and name not in self._damaged:  # said once
                warnings.warn(f"a damaged checkpoint is passed over: {damage}", UserWarning, stacklevel=3)
        self._damaged.update(damaged)
        return found

    def _make_room(self, step: int) -> Path:
        """Clear what killed saves have left; say where the checkpoint is to be."""
        step = whole("step", step, least=0)
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(".step-*.part"):
            shutil.rmtree(left)
        again = 0
        for folder in folders_in(self.folder):
            number, times = number_of(folder)
            if number > step and folder.name not in self._damaged:
                raise ValueError(
                    f"{self.folder} holds a checkpoint of step {number}, later than step {step}: go on from "
                    "latest(), or save to another folder"
                )
            if number == step:
                again = times + 1
        target = folder_of(self.folder, step, again)
        part_of(target).mkdir()
        return target

    def _write(self, pieces: Pieces, description: dict[str, Any], target: Path) -> None:
        write(target, pieces, description, self._group)
        with raise_on_all_ranks(group=self._group):
            if rank() == 0:
                self._remove_old(target, description["best"])

    def _remove_old(self, newest: Path, newest_is_best: bool) -> None:
        folders = [folder for folder in folders_in(self.folder) if folder.name not in self._damaged]
        newest_of_step = {number_of(folder)[0]: folder for folder in folders}  # those before it were replaced
        kept = list(newest_of_step.values())[-self.keep :]
        for folder in reversed(folders):
            if folder == newest:
                is_best = newest_is_best
            else:
                description = described(folder)
                is_best = isinstance(description, dict) and description["best"]
            if is_best:
                kept.append(folder)
                break
        for folder in folders_in(self.folder):
            if folder not in kept:
                folder.rename(part_of(folder))  # never a part of it under its own name
                shutil.rmtree(part_of(folder))
                self._damaged.discard(folder.name)
