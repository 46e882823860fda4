"""What the processes of a job tell each other; a job of one has nobody to ask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """The number of this process, from 0.

    Example::

        >>> from ncf.distributed.collectives import rank
        >>> rank()  # of a process by itself
        0
    """
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are.

    Example::

        >>> from ncf.distributed.collectives import world_size
        >>> world_size()  # of a process by itself
        1
    """
    return dist.get_world_size() if dist.is_initialized() else 1


def all_gather_object(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """What each process says, by rank; every process must ask.

    Example::

        >>> from ncf.distributed.collectives import all_gather_object, rank
        >>> all_gather_object(f"I am {rank()}")
        ['I am 0']
    """
    values = [value]
    if world_size() > 1:
        values = [None] * world_size()
        dist.all_gather_object(values, value, group=group)
    return values


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over the processes of a tensor of one shape; every process must ask.

    Example::

        >>> import torch
        >>> from ncf.distributed.collectives import all_reduce_sum
        >>> all_reduce_sum(torch.ones(2))
        tensor([1., 1.])
    """
    if world_size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def all_gather_rows(rows: Tensor) -> Tensor:
    """The rows of every process, ``[R, ...]`` each, one below the other by rank; every process must ask.

    Example::

        >>> import torch
        >>> from ncf.distributed.collectives import all_gather_rows
        >>> all_gather_rows(torch.tensor([[3, 4]]))
        tensor([[3, 4]])
    """
    if world_size() == 1:
        return rows
    lengths = all_gather_object(len(rows))
    padded = rows.new_zeros(max(lengths), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])


@contextmanager
def raise_on_all_ranks(collective: bool = True, group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """What fails in one process fails in all, with the same error: nobody waits for one that is gone.

    Nothing inside may wait for another process.

    Args:
        collective: whether the other processes do the same; without them this does nothing.
        group: through which they tell; by default that of all.

    Raises:
        Exception: the first process's that failed; in the others it names that process's rank.

    Example::

        >>> from ncf.distributed.collectives import rank, raise_on_all_ranks
        >>> with raise_on_all_ranks():
        ...     if rank() == 0:
        ...         print("the others wait to hear whether this worked")
        the others wait to hear whether this worked
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    if collective and world_size() > 1:
        failures = all_gather_object(failure, group)
        if failure is None:
            for number, other in enumerate(failures):
                if other is not None:
                    raise type(other)(f"rank {number}: {other}")
    if failure is not None:
        raise failure
