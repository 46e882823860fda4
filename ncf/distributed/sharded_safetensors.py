"""One safetensors file of a model whose tables are spread over processes.

The tables go through rank 0, a block of rows at a time: no process holds more than its own part and one block,
the file is written once from its beginning to its end, and only rank 0 needs to see the folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from os import PathLike
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ncf.distributed.collectives import raise_on_all_ranks, rank
from ncf.utils.files import atomic_write, header, rows_per_block


def write_sharded_tensors(path: str | PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Write the file that `ncf.utils.files.write_tensors` writes of the whole tensors; every process must call it.

    Args:
        path: the file, complete or absent in the end; only rank 0 writes.
        tensors: by name, the same names in every process: a sharded table, or what is alike in all.

    Raises:
        OSError: in every process, if the file cannot be written.
    """
    with ExitStack() as stack:
        with raise_on_all_ranks():
            start, names = header(tensors)
            if rank() == 0:
                beside = stack.enter_context(atomic_write(path))
                file = stack.enter_context(beside.open("wb"))
                file.write(start)
        for name in names:
            for block in _blocks(tensors[name]):
                with raise_on_all_ranks():
                    if rank() == 0:
                        file.write(block.reshape(-1).view(torch.uint8).numpy().data)
        with raise_on_all_ranks():
            stack.close()  # flushed and renamed: this, too, may fail


def _blocks(tensor: Any) -> Iterator[Tensor]:
    """The rows of a tensor in order, on the CPU of rank 0; elsewhere as many blocks of nothing."""
    if not hasattr(tensor, "local_shards"):
        yield tensor.detach().cpu() if rank() == 0 else tensor
        return
    local = {tuple(part.metadata.shard_offsets): part.tensor.detach() for part in tensor.local_shards()}
    parts = tensor.metadata().shards_metadata
    count, columns = tensor.shape
    step = rows_per_block(columns)
    for first in range(0, count, step):
        block = torch.empty(
            min(step, count - first) if rank() == 0 else 0, columns, dtype=tensor.dtype, device="cpu"
        )
        for part in parts:
            (row, column), (height, width) = part.shard_offsets, part.shard_sizes
            start, stop = max(first, row), min(first + step, row + height)
            if start >= stop:
                continue
            owner = part.placement.rank()
            rows = torch.empty(0, dtype=tensor.dtype, device="cpu")
            if owner == rank():
                rows = local[row, column][start - row : stop - row]
                if owner != 0:
                    dist.send(rows.contiguous(), 0)
            elif rank() == 0:
                rows = torch.empty(
                    stop - start, width, dtype=tensor.dtype, device=part.placement.device().type
                )
                dist.recv(rows, owner)
            if rank() == 0:
                block[start - first : stop - first, column : column + width] = rows
        yield block
