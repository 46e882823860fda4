"""The kernels for CPUs: C, compiled when ncf is installed, and called through ctypes.

Where there was no C compiler, there is no kernel, and ncf works in PyTorch: the same numbers, more slowly.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from ctypes import c_int64
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor


@cache
def library(folder: Path = Path(__file__).parent) -> Any:
    """The compiled kernels, or ``None`` if there is none.

    Args:
        folder: where to look for ``_native*.so``.

    Example::

        >>> import tempfile
        >>> from pathlib import Path
        >>> from ncf.kernels.native import library
        >>> with tempfile.TemporaryDirectory() as empty:
        ...     print(library(Path(empty)))
        None
    """
    for path in folder.glob("_native*.so"):
        try:
            found = ctypes.CDLL(str(path))
        except OSError:  # built for another machine
            continue
        for function in (found.ncf_score, found.ncf_rank, found.ncf_rank_catalogue, found.ncf_train):
            function.restype = c_int64
        return found
    return None


def lanes_for(kernel: Any, widths: Iterable[int]) -> int:
    """How many floats a vector should hold: as many as this processor has, but no vectors of 16 with half to do.

    Args:
        kernel: what `library` returned.
        widths: of the rows and layers that are cut into vectors.

    Example::

        >>> from types import SimpleNamespace
        >>> from ncf.kernels.native import lanes_for
        >>> avx512 = SimpleNamespace(ncf_lanes=lambda: 16)
        >>> lanes_for(avx512, [64, 32, 16]), lanes_for(avx512, [32, 15]), lanes_for(avx512, [32, 8])
        (16, 16, 8)
    """
    lanes = int(kernel.ncf_lanes())
    return 8 if lanes == 16 and any(0 < width % 16 <= 8 for width in widths) else lanes


def refuse(failed: int, users: Tensor, items: Tensor, num_users: int, num_items: int) -> None:
    """Raise what a kernel's answer stands for; -1 stands for nothing.

    Args:
        failed: the answer: see native.c.
        users: those that it was given, ``[U]``.
        items: those of each, ``[U, C]``.
        num_users: users that it knows.
        num_items: items that it knows.

    Raises:
        IndexError: if a user or an item is unknown.
        MemoryError: if there was no memory.

    Example::

        >>> import torch
        >>> from ncf.kernels.native import refuse
        >>> refuse(-1, torch.tensor([0, 1]), torch.tensor([[2, 3], [4, 9]]), num_users=5, num_items=5)
        >>> refuse(2 + 3, torch.tensor([0, 1]), torch.tensor([[2, 3], [4, 9]]), num_users=5, num_items=5)
        Traceback (most recent call last):
        IndexError: item 9 is out of range: ids go from 0 to 4
    """
    if failed == -1:
        return
    if failed == -2:
        raise MemoryError(f"no memory for the intermediate results of {len(users)} users")
    name, wrong, size = "user", users, num_users
    if failed >= len(users):
        row, failed = divmod(failed - len(users), items.shape[1])
        name, wrong, size = "item", items[row], num_items
    raise IndexError(f"{name} {int(wrong[failed])} is out of range: ids go from 0 to {size - 1}")
