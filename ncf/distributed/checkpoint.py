"""The state of a training on disk: which of its checkpoints stay, which one a run resumes from, and how it is read.

Unlike a saved model (`ncf.load`) a checkpoint holds a pickle, ``.metadata``, in which
``torch.distributed.checkpoint`` keeps its index. **Open your own checkpoints only**: the hashes find damage, not
malice.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from ncf.distributed.checkpoint_files import (
    find_corruption,
    folder_of,
    folders_in,
    parse_name,
    read_manifest,
    remove,
    temporary_folders_in,
    temporary_path,
    write,
)
from ncf.distributed.collectives import all_gather_object, group_rank, group_size, raise_on_all_ranks
from ncf.utils.checks import whole


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint; `Checkpoints.latest` and `Checkpoints.best` find it.

    Args:
        folder: its folder.
        step: steps trained.
        metadata: what else was saved.

    Example::

        >>> import tempfile, torch
        >>> from ncf.distributed import Checkpoints
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Checkpoints(folder).save({"weight": torch.arange(3.0)}, {"epoch": 1}, step=100)
        ...     checkpoint, weight = Checkpoints(folder).latest(), torch.empty(3)
        ...     checkpoint.read({"weight": weight})
        ...     checkpoint.folder.name, checkpoint.step, weight
        ('step-0000000100', 100, tensor([0., 1., 2.]))
    """

    folder: Path
    step: int
    metadata: dict[str, Any]

    def read(self, tensors: Mapping[str, Tensor], *, strict: bool = True) -> None:
        """Fill tensors in place, whatever the number of processes and the sharding that they were saved from.

        All processes must call this, each with the tensors it has. Each reads only what its own parts need.

        Weights, and optimizer states that have the weights' shape, are equal to the bit. So is the state of
        row-wise Adagrad while a table is cut into the same columns as before. Otherwise it is converted, for
        row-wise Adagrad keeps one number for each row *of each part*: the mean over the part's columns of the
        squared gradients' sums. A new part gets the mean of the old parts' numbers, weighted by the columns
        they share. Splitting a table and joining it again restores the state exactly. Joining first loses
        information.

        Args:
            tensors: plain tensors and ``ShardedTensor``, by name. The state that FBGEMM keeps of a table is named
                ``fused.<table>.momentum1``, the table ``model.embeddings.ebc.embedding_bags.<table>.weight``.
            strict: the checkpoint may hold no other names.

        Raises:
            ValueError: if the names, shapes or dtypes are of another model or another optimizer. Nothing is
                filled then.
        """
        from ncf.distributed import checkpoint_planner as planner

        with raise_on_all_ranks():
            here = planner.shapes(tensors)
        wanted = {name: shape for shapes in all_gather_object(here) for name, shape in shapes.items()}
        with raise_on_all_ranks():
            planner.fill(self.folder, tensors, wanted, strict=strict)


class Checkpoints:
    """A folder of training states; a run resumes from the newest whole one.

    In a job of several processes each of them makes this object and calls each method, together with the others,
    and sees the same folder. An error in one process is raised in all.

    Args:
        folder: the folder of the checkpoints; it is made if missing.
        keep: how many of the newest stay; the newest that was saved as the best stays too.

    Raises:
        ValueError: if ``keep`` is below 1.
        NotADirectoryError: if ``folder`` is a file.

    Example::

        >>> import tempfile, torch
        >>> from ncf.distributed import Checkpoints
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoints = Checkpoints(folder)
        ...     checkpoints.save({"weight": torch.arange(3.0)}, {"epoch": 1}, step=100)
        ...     checkpoint = checkpoints.latest()
        ...     weight = torch.empty(3)
        ...     checkpoint.read({"weight": weight})
        ...     checkpoint.step, checkpoint.metadata, weight
        (100, {'epoch': 1}, tensor([0., 1., 2.]))
    """

    def __init__(self, folder: str | PathLike[str], *, keep: int = 2) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"{self.folder} is a file: give a folder for the checkpoints")
        self.keep = whole("keep", keep)
        self._damaged: set[str] = set()
        self._is_locked = False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of the folder meanwhile; all processes must call this.

        Raises:
            BlockingIOError: if another run is using the folder.
        """
        if self._is_locked:
            yield
            return
        descriptor = None
        with raise_on_all_ranks():
            if group_rank() == 0:
                descriptor = _lock(self.folder)
        self._is_locked = True
        try:
            yield
        finally:
            self._is_locked = False
            if descriptor is not None:
                os.close(descriptor)  # which ends the lock, as the end of the process does

    def save(
        self, tensors: Mapping[str, Tensor], metadata: dict[str, Any], *, step: int, best: bool = False
    ) -> None:
        """Write a checkpoint, then remove those that are no longer kept.

        A step that is there already is replaced: the new one is complete before the old one is removed.
        Checkpoints of later steps that `latest` passed over as damaged are removed, for the run has left them.

        Args:
            tensors: plain tensors, the same in every process, and ``ShardedTensor``.
            metadata: what else to save, as JSON can hold it; rank 0's counts.
            step: steps trained.
            best: it is the best so far.

        Raises:
            ValueError: if the folder holds a whole checkpoint of a later step.
            TypeError: if ``metadata`` holds what JSON cannot.
            BlockingIOError: if another run is using the folder.
            OSError: if it cannot be written; the earlier ones are as they were.
        """
        from ncf.distributed.checkpoint_planner import PiecewiseSavePlanner

        with self.locked():
            with raise_on_all_ranks():
                manifest = {
                    "step": step,
                    "best": bool(best),
                    "world_size": group_size(),
                    "metadata": json.loads(json.dumps(metadata)),
                }
                places = self._make_room(step) if group_rank() == 0 else None
                planner = PiecewiseSavePlanner(tensors)
            temporary, folder = all_gather_object(places)[0]
            write(temporary, folder, planner, manifest)
            with raise_on_all_ranks():
                if group_rank() == 0:
                    self._remove_old(folder)

    def latest(self) -> Checkpoint | None:
        """Find the newest whole checkpoint; a damaged one is passed over with a warning that names the damage.

        Every file is read and hashed, a part of them by each process.

        Returns:
            The checkpoint, or ``None`` if there is none at all.

        Raises:
            ValueError: if there are some, but not a whole one.
        """
        return self._newest(only_best=False)

    def best(self) -> Checkpoint | None:
        """Find the newest whole checkpoint that was saved as the best.

        Raises:
            ValueError: if it is damaged and there is no earlier one.
        """
        return self._newest(only_best=True)

    def _newest(self, *, only_best: bool) -> Checkpoint | None:
        with raise_on_all_ranks():
            folders = folders_in(self.folder) if group_rank() == 0 else []
        damaged: dict[str, str] = {}
        found = None
        for folder in reversed(all_gather_object(folders)[0]):
            with raise_on_all_ranks():
                manifest = read_manifest(folder) if group_rank() == 0 else None
            manifest = all_gather_object(manifest)[0]
            if isinstance(manifest, str):
                damaged[folder.name] = manifest
            elif manifest["best"] or not only_best:
                damage = self._damage_in(folder, manifest["files"])
                if damage is None:
                    found = Checkpoint(folder, manifest["step"], manifest["metadata"])
                    break
                damaged[folder.name] = damage
        if damaged and found is None:
            which = "that was saved as the best " if only_best else ""
            raise ValueError(
                f"no checkpoint {which}in {self.folder} is whole: {'; '.join(damaged.values())}. Copy one there, or "
                "start anew in another folder"
            )
        for name, damage in damaged.items():
            if group_rank() == 0 and name not in self._damaged:  # said once
                warnings.warn(f"a damaged checkpoint is passed over: {damage}", UserWarning, stacklevel=3)
        self._damaged.update(damaged)
        return found

    def _damage_in(self, folder: Path, files: dict[str, dict[str, Any]]) -> str | None:
        own = sorted(files.items())[group_rank() :: group_size()]
        with raise_on_all_ranks():
            found = (find_corruption(folder / name, **file) for name, file in own)
            damage = next(filter(None, found), None)
        return next(filter(None, all_gather_object(damage)), None)

    def _make_room(self, step: int) -> tuple[Path, Path]:
        """Delete what killed saves have left; return the new checkpoint's temporary folder and its place."""
        step = whole("step", step, least=0)
        for left in temporary_folders_in(self.folder):
            shutil.rmtree(left)
        again = 0
        for folder in folders_in(self.folder):
            number, times = parse_name(folder)
            if number > step and folder.name not in self._damaged:
                raise ValueError(
                    f"{self.folder} holds a checkpoint of step {number}, later than step {step}: resume from "
                    "latest(), or save to another folder"
                )
            if number == step:
                again = times + 1
        while os.path.lexists(folder := folder_of(self.folder, step, again)):
            again += 1  # no checkpoint, but what somebody else has put there
        temporary = temporary_path(folder)
        temporary.mkdir()
        return temporary, folder

    def _remove_old(self, newest: Path) -> None:
        whole = [folder for folder in folders_in(self.folder) if folder.name not in self._damaged]
        newest_of_step = {parse_name(folder)[0]: folder for folder in whole}  # those before it were replaced
        kept = [newest, *list(newest_of_step.values())[-self.keep :]]
        for folder in reversed(whole):
            manifest = read_manifest(folder)
            if isinstance(manifest, dict) and manifest["best"]:
                kept.append(folder)
                break
        for folder in folders_in(self.folder):
            if folder not in kept:
                remove(folder)
                self._damaged.discard(folder.name)


def _lock(folder: Path) -> int | None:
    """Lock a folder, which is made if missing; ``None`` on a file system without locks."""
    import fcntl  # not on Windows, where there is no FBGEMM to train with either

    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            return None
        raise BlockingIOError(
            f"{folder} is in use by another run: give each run a folder of its own for its checkpoints"
        ) from None
    return descriptor
