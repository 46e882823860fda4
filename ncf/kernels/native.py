"""The kernels for CPUs: C, compiled when ncf is installed, and called through ctypes.

Where there was no C compiler, there is no kernel, and ncf works in PyTorch: the same numbers, more slowly.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Iterable, Sequence
from ctypes import POINTER, c_float, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ABI = 3  # NCF_ABI of native.c: raise both when a function's arguments or a structure's meaning change
MAX_LAYERS = 16  # of native.c


class Tables(ctypes.Structure):
    """`Tables` of native.c."""

    _fields_ = (
        *((name, c_void_p) for name in ("users", "items", "user_bias", "item_bias", "head")),
        *((name, POINTER(c_void_p)) for name in ("weights", "biases")),
        ("outputs", POINTER(c_int64)),
        *((name, c_int64) for name in ("num_users", "num_items", "hidden", "factors", "inputs", "layers")),
        ("widest", c_int64),
        ("bias", c_float),
    )


class Parameter(ctypes.Structure):
    """`Parameter` of native.c."""

    _fields_ = (
        *((name, c_void_p) for name in ("value", "mean", "square")),
        *((name, c_int64) for name in ("size", "row")),
        *((name, c_float) for name in ("rate", "decay", "target")),
    )


class Model(ctypes.Structure):
    """`Model` of native.c."""

    _fields_ = (
        *((name, Parameter) for name in ("user_gmf", "item_gmf", "user_mlp", "item_mlp")),
        *((name, Parameter) for name in ("gmf_head", "mlp_head", "bias")),
        *((name, Parameter * MAX_LAYERS) for name in ("weights", "biases")),
        ("outputs", c_int64 * MAX_LAYERS),
        *((name, c_int64) for name in ("num_users", "num_items", "factors", "biased", "cosine", "dim")),
        *((name, c_int64) for name in ("layers", "rule", "loss")),
        *((name, c_void_p) for name in ("item_correction", "user_correction")),
        *((name, c_float) for name in ("beta1", "beta2", "epsilon", "temperature", "margin", "weight")),
    )


class Chunk(ctypes.Structure):
    """`Chunk` of native.c."""

    _fields_ = (
        *((name, c_void_p) for name in ("users", "items", "shared", "seen", "seen_offsets")),
        *((name, c_void_p) for name in ("shares", "firsts", "corrections", "losses")),
        *((name, c_int64) for name in ("batches", "positives", "each", "num_shared")),
    )


RULES = "adamw", "adagrad", "rowwise_adagrad", "sgd", "adam"  # in the order of native.c, as its losses are
_STRUCTURES = Tables, Parameter, Model, Chunk  # in the order of ncf_abi


@cache
def library(folder: Path = Path(__file__).parent) -> Any:
    """The compiled kernels, or ``None`` if there is none that this version of ncf can call.

    Args:
        folder: where to look for ``_native*.so``.

    Warns:
        RuntimeWarning: if all that is there was built from another version's sources.

    Example::

        >>> import tempfile
        >>> from pathlib import Path
        >>> from ncf.kernels.native import library
        >>> with tempfile.TemporaryDirectory() as empty:
        ...     print(library(Path(empty)))
        None
    """
    stale = []
    for path in sorted(folder.glob("_native*.so")):
        try:
            found = ctypes.CDLL(str(path))
        except OSError:  # built for another machine
            continue
        if not _is_current(found):
            stale.append(path.name)
            continue
        ranking = found.ncf_rank, found.ncf_rank_catalogue, found.ncf_top_k
        for function in (found.ncf_score, *ranking, found.ncf_train):
            function.restype = c_int64
        return found
    if stale:
        warnings.warn(
            f"{folder / stale[0]} was built from other sources than this version's: ncf works in PyTorch, more slowly, "
            "until it is built again (pip install, or python setup.py build_ext --inplace)",
            RuntimeWarning,
            stacklevel=2,
        )
    return None


def _is_current(found: Any) -> bool:
    """The library's structures and functions are those that are declared here."""
    if not hasattr(found, "ncf_abi"):
        return False
    sizes = (c_int64 * len(_STRUCTURES))()
    return found.ncf_abi(sizes, len(sizes)) == ABI and list(sizes) == [*map(ctypes.sizeof, _STRUCTURES)]


def address(name: str, tensor: Tensor, dtype: torch.dtype, shape: Sequence[int]) -> c_void_p:
    """Return a tensor's address, after checking that C may use it.

    Args:
        name: of the tensor, for messages.
        tensor: whose address is wanted.
        dtype: that it must have.
        shape: that it must have.

    Raises:
        ValueError: if the tensor has another dtype or shape, is not contiguous, or is not on the CPU.

    Example::

        >>> import torch
        >>> from ncf.kernels.native import address
        >>> address("rows", torch.zeros(2, 3, dtype=torch.float16), torch.float32, (2, 3))
        Traceback (most recent call last):
        ValueError: rows is torch.float16 (2, 3) on cpu: the kernel works on contiguous torch.float32 (2, 3) on cpu
    """
    if (
        tensor.dtype != dtype
        or tensor.shape != tuple(shape)
        or not tensor.is_cpu
        or not tensor.is_contiguous()
    ):
        kind = "" if tensor.is_contiguous() else "non-contiguous "
        raise ValueError(
            f"{name} is {kind}{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}: "
            f"the kernel works on contiguous {dtype} {tuple(shape)} on cpu"
        )
    return c_void_p(tensor.data_ptr())


def lanes_for(kernel: Any, widths: Iterable[int]) -> int:
    """Return the floats per vector: the processor's widest, but 8 where a layer would half fill 16.

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
