"""Checks of arguments: kind, size, ids in range; and how much memory is free."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def is_whole(value: Any) -> bool:
    """Return whether it is a whole number: NumPy's integers are, floats and truth values are not.

    Example::

        >>> import numpy as np
        >>> from ncf.utils.checks import is_whole
        >>> is_whole(np.int64(8)), is_whole(8.0), is_whole(True)
        (True, False, False)
    """
    return isinstance(value, Integral) and not isinstance(value, bool)


def whole(name: str, value: Any, least: int | None = 1) -> int:
    """A whole number as Python's own, which JSON and PyTorch take.

    Args:
        name: of the argument.
        value: what was given; see `is_whole`.
        least: what it must be at least, if anything.

    Raises:
        ValueError: if it is something else.

    Example::

        >>> import numpy as np
        >>> from ncf.utils.checks import whole
        >>> whole("factors", np.int64(8))
        8
        >>> whole("epochs", 2.5)
        Traceback (most recent call last):
        ValueError: epochs = 2.5: give a whole number of at least 1
    """
    if not is_whole(value) or (least is not None and value < least):
        bound = "" if least is None else f" of at least {least}"
        raise ValueError(f"{name} = {value!r}: give a whole number{bound}")
    return int(value)


def whole_or_none(name: str, value: Any) -> int | None:
    """As `whole`, where ``None`` will do as well.

    Example::

        >>> from ncf.utils.checks import whole_or_none
        >>> whole_or_none("patience", 3), whole_or_none("patience", None)
        (3, None)
    """
    return None if value is None else whole(name, value)


def check_choice(name: str, choice: Any, known: Iterable[Any], other: str = "") -> None:
    """Raise a ValueError for what is not among the choices nor, where ``other`` names a function, callable.

    Example::

        >>> from ncf.utils.checks import check_choice
        >>> check_choice("part", "train", ("validation", "test"))
        Traceback (most recent call last):
        ValueError: part = 'train': choose one of 'validation', 'test'
    """
    if (other and callable(choice)) or choice in (known := tuple(known)):
        return
    raise ValueError(
        f"{name} = {choice!r}: choose one of {', '.join(map(repr, known))}"
        + (f", or give a {other}" if other else "")
    )


def of_type(name: str, value: Any, kind: type[T], remedy: str) -> T:
    """Return the value if it is of the type.

    Args:
        name: of the argument.
        value: what was given.
        kind: what it must be.
        remedy: where to get one.

    Raises:
        TypeError: if it is something else.

    Example::

        >>> from ncf import Interactions, Split
        >>> from ncf.utils.checks import of_type
        >>> of_type("split", Interactions.from_arrays([0], [0]), Split, "leave_one_out(interactions) makes one")
        Traceback (most recent call last):
        TypeError: split must be Split, got Interactions: leave_one_out(interactions) makes one
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {kind.__name__}, got {type(value).__name__}: {remedy}")
    return value


def check_ids(
    ids: Any, name: str, size: int | None = None, of: str = "", *, lowest: int = 0, remedy: str = ""
) -> None:
    """Raise for ids out of range: on a GPU they would be an abort without a message.

    Args:
        ids: int64, of any shape.
        name: the argument that they are.
        size: ids lie below it; by default they may be of any size.
        of: what ``size`` is.
        lowest: what they may be at least; ``-1`` where there may be padding.
        remedy: what else to say.

    Raises:
        ValueError: if they are no int64 tensor, or one is out of range: the first such is named.

    Example::

        >>> import torch
        >>> from ncf.utils.checks import check_ids
        >>> check_ids(torch.tensor([[3, -1], [0, 5]]), "items", 5, "num_items", lowest=-1)
        Traceback (most recent call last):
        ValueError: items[1, 1] = 5 is out of range for num_items = 5: ids go from -1 to 4
    """
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
        got = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"{name} must be an int64 tensor of ids, got {got}")
    # NumPy does not wake PyTorch's threads, which then wait for more work on the cores that a kernel is about to use.
    plain: Any = ids.numpy() if ids.is_cpu else ids
    if not ids.numel() or (int(plain.min()) >= lowest and (size is None or int(plain.max()) < size)):
        return
    wrong = ids < lowest if size is None else (ids < lowest) | (ids >= size)
    place = tuple(wrong.nonzero()[0].tolist())
    bound = (
        f" for {of} = {size}: ids go from {lowest} to {size - 1}"
        if size is not None
        else f": ids are {lowest} or more"
    )
    raise ValueError(
        f"{name}[{', '.join(map(str, place))}] = {int(ids[place])} is out of range{bound}"
        + (f"; {remedy}" if remedy else "")
    )


def check_known(ids: Tensor, name: str, size: int | None, *, lowest: int | None = 0) -> None:
    """Raise an IndexError for the first id that no table has a row for; by itself indexing lets negative ones pass."""
    wrong = torch.zeros_like(ids, dtype=torch.bool) if lowest is None else ids < lowest
    wrong = wrong if size is None else wrong | (ids >= size)
    if bool(wrong.any()):
        bound = "0 or more" if size is None else f"from 0 to {size - 1}"
        raise IndexError(f"{name} {int(ids[wrong][0])} is out of range: ids go {bound}")


def check_rank(rank: int, world_size: int) -> None:
    """Raise a ValueError for a rank outside the world size.

    Example::

        >>> from ncf.utils.checks import check_rank
        >>> check_rank(4, world_size=4)
        Traceback (most recent call last):
        ValueError: rank = 4 is out of range for world_size = 4
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank = {rank} is out of range for world_size = {world_size}")


def check_k(k: int, most: int) -> None:
    """Check that a list is no longer than the candidates of a user.

    Example::

        >>> from ncf.utils.checks import check_k
        >>> check_k(200, most=101)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: k = 200: a user has at most 101 candidates, choose a whole number from 1 to 101 (...
    """
    if not is_whole(k) or not 1 <= k <= most:
        raise ValueError(
            f"k = {k!r}: a user has at most {most} candidates, choose a whole number from 1 to {most} "
            "(k is an argument of evaluate and of Trainer, 10 by default)"
        )


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a GPU or, on Linux, for this process; ``None`` where it cannot be read."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    with suppress(OSError, ValueError):  # a container's own limit; "max" is no number
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        found.append(limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return min(found, default=None)
