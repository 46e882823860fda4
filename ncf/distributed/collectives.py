"""Collectives over the processes of a job; each is a plain function of its argument in a job of one process."""

from __future__ import annotations

import builtins
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Return the number of this process, from 0.

    Before the processes have met (`ncf.distributed.start_processes`) it is the number that ``torchrun`` gave.

    Returns:
        0 in a job of one process.

    Example::

        >>> from ncf.distributed import rank
        >>> rank()  # of a process by itself
        0
    """
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Return the number of processes of the job.

    Before the processes have met (`ncf.distributed.start_processes`) it is the number that ``torchrun`` gave.

    Returns:
        1 in a job of one process.

    Example::

        >>> from ncf.distributed import world_size
        >>> world_size()  # of a process by itself
        1
    """
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", 1))


def group_rank() -> int:
    """Rank among the processes that have met, between which collectives pass; 0 before that."""
    return dist.get_rank() if dist.is_initialized() else 0


def group_size() -> int:
    """Number of the processes that have met, between which collectives pass; 1 before that."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_gather_object(value: Any) -> list[Any]:
    """One object from every process, by rank; all processes must call this."""
    values = [value]
    if group_size() > 1:
        values = [None] * group_size()
        dist.all_gather_object(values, value)
    return values


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over the processes of a tensor of one shape; all processes must call this."""
    if group_size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def all_gather_rows(rows: Tensor) -> Tensor:
    """The rows of every process, ``[R, ...]`` each, in the order of ranks; all processes must call this."""
    if group_size() == 1:
        return rows
    lengths = all_gather_object(len(rows))
    padded = rows.new_zeros(max(lengths), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])


@contextmanager
def raise_on_all_ranks(distributed: bool = True) -> Iterator[None]:
    """Raise in every process if any process raises, so that none is left waiting.

    Nothing inside may wait for another process.

    Args:
        distributed: all processes run this block; without them it does nothing.

    Raises:
        BaseException: the error itself where it happened. In the other processes the nearest kind of error that
            Python has, with the number of that process and the same text. KeyboardInterrupt counts as an error.

    Example::

        >>> from ncf.distributed.collectives import raise_on_all_ranks, rank
        >>> with raise_on_all_ranks():
        ...     if rank() == 0:
        ...         print("the other processes wait until this has worked")
        the other processes wait until this has worked
    """
    failure: BaseException | None = None
    try:
        yield
    except BaseException as error:
        failure = error
    if distributed and group_size() > 1:
        # Names and text: an error itself may not be fit to be pickled, or to be made from a text.
        kinds = [kind.__name__ for kind in type(failure).__mro__] if failure is not None else []
        everyones = all_gather_object((kinds, str(failure)))
        if failure is None:
            for number, (names, text) in enumerate(everyones):
                if names:
                    raise _error(names, f"rank {number}: {text}")
    if failure is not None:
        raise failure


def _error(names: list[str], text: str) -> BaseException:
    """An error of the first of some classes that is Python's own and can be made from a text."""
    for name in names:
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, BaseException):
            try:
                return kind(text)
            except TypeError:  # UnicodeDecodeError and its like have other arguments
                continue
    return RuntimeError(text)
