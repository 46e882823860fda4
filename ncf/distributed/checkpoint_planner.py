"""The tensors of a checkpoint, written and read by ``torch.distributed.checkpoint`` a piece at a time.

A tensor goes to disk as rectangles of whole rows of some megabytes each. Reading takes a stored rectangle into
memory whole. With the default planner that is a whole table: filling two tables of 256 MB took 489 MB above the
tables, with this one 1 MB. A tensor that all processes have is divided between them by the piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult

from ncf.distributed.collectives import group_size
from ncf.distributed.rowwise_adagrad import (
    ColumnSplits,
    Shape,
    average_over_columns,
    changed_column_splits,
    table_of_state,
)
from ncf.utils.warnings import suppress_warnings

_PIECE = 1 << 24  # bytes


class PiecewiseSavePlanner(DefaultSavePlanner):
    """This process's parts of some tensors, cut for the disk; a plain tensor must be the same in every process."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.parts: dict[MetadataIndex, tuple[torch.Size, Tensor]] = {}
        for name, tensor in tensors.items():
            # A ShardedTensor's own size() warns that it is deprecated, each time.
            size = tensor.metadata().size if isinstance(tensor, ShardedTensor) else tensor.size()
            for part, offsets in _parts(tensor):
                for rows, offset in _cut(part, offsets):
                    self.parts[MetadataIndex(name, offset)] = size, rows

    def create_local_plan(self) -> SavePlan:
        """A write for each piece."""
        return SavePlan(
            [
                WriteItem(
                    index=index,
                    type=WriteItemType.SHARD,
                    tensor_data=TensorWriteData(
                        chunk=ChunkStorageMetadata(index.offset or torch.Size(), part.size()),
                        properties=TensorProperties(part.dtype),
                        size=size,
                    ),
                )
                for index, (size, part) in self.parts.items()
            ]
        )

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        """The values of a piece."""
        return self.parts[index][1]


class _Writer(FileSystemWriter):
    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:  # torch.save's own, over the one that says why: that the disk is full
            if isinstance(cause := error.__context__, OSError):
                raise OSError(cause.errno, cause.strerror, str(self.path)) from None
            raise


def write(folder: Path, planner: PiecewiseSavePlanner) -> None:
    """Write the pieces of every process to a folder; all processes must call this.

    The error of the first process that failed is raised in all.
    """
    writer = _Writer(folder, single_file_per_rank=True, sync_files=True, thread_count=1)
    try:
        with suppress_warnings():
            # The planner has the tensors.
            save({}, storage_writer=writer, planner=planner, no_dist=group_size() == 1)
    except CheckpointException as failure:
        raise _first(failure) from None


def stored(folder: Path) -> dict[str, TensorStorageMetadata]:
    """Shapes and pieces of the tensors in a folder. Unpickles."""
    metadata = FileSystemReader(folder).read_metadata().state_dict_metadata
    return {name: tensor for name, tensor in metadata.items() if isinstance(tensor, TensorStorageMetadata)}


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Shape, ColumnSplits]]:
    """Shape of each whole tensor, and how it is cut into columns."""
    found = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, ShardedTensor):
            whole = tensor.metadata()
            size, dtype = whole.size, whole.tensor_properties.dtype
            cuts = [(shard.shard_offsets, shard.shard_sizes) for shard in whole.shards_metadata]
        else:
            size, dtype = tensor.size(), tensor.dtype
            cuts = [([0] * tensor.dim(), list(size))]
        found[name] = (tuple(size), str(dtype)), _columns(cuts)
    return found


def fill(
    folder: Path,
    tensors: Mapping[str, Tensor],
    wanted: Mapping[str, tuple[Shape, ColumnSplits]],
    *,
    strict: bool = True,
) -> None:
    """Fill this process's parts of the tensors.

    Args:
        folder: what `write` wrote.
        tensors: this process's.
        wanted: `shapes` of the tensors of all processes.
        strict: the folder may hold no other names.

    Raises:
        ValueError: if a name is missing or not wanted, or a shape or dtype is another.
    """
    there = stored(folder)
    had = {
        name: (
            (tuple(tensor.size), str(tensor.properties.dtype)),
            _columns([(chunk.offsets, chunk.sizes) for chunk in tensor.chunks]),
        )
        for name, tensor in there.items()
    }
    cuts = changed_column_splits(wanted, had)
    _check(folder, wanted, had, cuts, strict)
    # DCP reads a vector of the stored cut; what this process has of the new one is made from it.
    vectors = {
        name: torch.empty(there[name].size, dtype=there[name].properties.dtype, device="cpu")
        for name in cuts
        if name in tensors
    }
    try:
        with suppress_warnings():
            load(
                {**tensors, **vectors},
                storage_reader=FileSystemReader(folder),
                planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
                no_dist=True,  # to read, no process needs another's plan
            )
    except CheckpointException as failure:
        raise _first(failure) from None
    for name, vector in vectors.items():
        for part, (offset,) in _parts(tensors[name]):
            part.copy_(average_over_columns(vector, *cuts[name], offset, len(part)))


def _check(
    folder: Path,
    wanted: Mapping[str, tuple[Shape, ColumnSplits]],
    had: Mapping[str, tuple[Shape, ColumnSplits]],
    cuts: Mapping[str, object],
    strict: bool,
) -> None:
    missing = sorted(wanted.keys() - had.keys())
    extra = sorted(had.keys() - wanted.keys()) if strict else []
    for name in [*missing, *extra]:
        table, weight = table_of_state(name)
        if weight in wanted.keys() & had.keys():
            here, there = ("has", "has not") if name in wanted else ("has not", "has")
            raise ValueError(
                f"table {table} {here} the state of an optimizer fused into its lookup, and in {folder} "
                f"it {there}: it was {'data-parallel' if name in wanted else 'sharded'} or had another optimizer "
                "then, whose state says nothing to the one now. Resume with the sharding and the optimizer of the "
                "checkpoint"
            )
    other = [
        f"{name} is {_show(had[name][0])} in it and {_show(wanted[name][0])} here"
        for name in sorted(wanted.keys() & had.keys() - cuts.keys())
        if wanted[name][0] != had[name][0]
    ]
    if missing or extra or other:
        said = [f"it has no {_list(missing)}"] * bool(missing) + [f"it also has {_list(extra)}"] * bool(extra)
        if other:
            said.append(_list(other))
        raise ValueError(
            f"{folder} is of another model: {'; '.join(said)}. Build the model and its optimizer as they were"
        )


def _parts(tensor: Tensor) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
    """This process's rectangles of a tensor, and where in the whole they begin."""
    if isinstance(tensor, ShardedTensor):
        for shard in tensor.local_shards():
            yield shard.tensor.detach(), tuple(shard.metadata.shard_offsets)
    else:
        yield tensor.detach(), (0,) * tensor.dim()


def _cut(part: Tensor, offsets: tuple[int, ...]) -> Iterator[tuple[Tensor, torch.Size]]:
    if part.nbytes <= _PIECE:
        yield part, torch.Size(offsets)
        return
    rows = max(1, _PIECE // (part.nbytes // len(part)))
    for row in range(0, len(part), rows):
        yield part[row : row + rows], torch.Size((offsets[0] + row, *offsets[1:]))


def _columns(cuts: list[tuple[Any, Any]]) -> ColumnSplits:
    return tuple(sorted({(int(offset[1]), int(size[1])) for offset, size in cuts if len(offset) == 2}))


def _first(failure: CheckpointException) -> BaseException:
    rank, (error, _) = min(failure.failures.items())
    if group_size() > 1 and isinstance(error, OSError):
        return OSError(f"rank {rank}: {error}")
    return error


def _list(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _show(shape: Shape) -> str:
    return f"{shape[1].removeprefix('torch.')} {list(shape[0])}"
