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

ABI = 9  # NCF_ABI of native.c: raise both when a function's arguments or a structure's meaning change
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
        *((name, c_void_p) for name in ("rate_factors", "adam_rate_factors", "moment_corrections")),
        ("losses", c_void_p),
        *((name, c_int64) for name in ("batches", "positives", "samples_per_positive", "num_shared")),
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
        ranking = found.ncf_rank, found.ncf_rank_catalogue, found.ncf_top_k, found.ncf_bytes
        for function in (found.ncf_score, *ranking, found.ncf_train, found.ncf_seen_places):
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


_LARGE = 1 << 22  # bytes: the processor's map of small pages covers no more


def use_huge_pages(tensor: Tensor) -> None:
    """Have a large tensor's memory in pages of 2 MiB, where Linux does so when asked; a hint, which may do nothing.

    Rows at random of a large table then wait for fewer looks at the maps of memory.

    Args:
        tensor: contiguous, on the CPU.

    Example::

        >>> import torch
        >>> from ncf.kernels.native import use_huge_pages
        >>> table = torch.ones(1 << 20, 2, dtype=torch.float32)
        >>> use_huge_pages(table)
        >>> float(table.sum())
        2097152.0
    """
    kernel = library()
    if kernel is not None and tensor.is_cpu and tensor.is_contiguous() and tensor.nbytes >= _LARGE:
        kernel.ncf_use_huge_pages(c_void_p(tensor.data_ptr()), c_int64(tensor.nbytes))


def draw_unseen(
    seen: Tensor, offsets: Tensor, num_items: int, users: Tensor, uniform: Tensor, items: Tensor
) -> None:
    """Write items outside the users' sets, by their ranks; see `ncf.data.sampling.UnseenItems`.

    Args:
        seen: the items of all users, ascending within a user, ``[N]``, int64.
        offsets: where each user's begin, ``[num_users + 1]``, int64.
        num_items: size of the catalogue.
        users: ``[B]``, int64.
        uniform: ranks as shares of the numbers of items outside, in ``[0, 1)``, ``[B, n]``, double.
        items: written here, ``[B, n]``, int32; its rows may be apart. -1 for a user with every item.

    Example::

        >>> import torch
        >>> from ncf.kernels.native import draw_unseen, library
        >>> seen, offsets = torch.tensor([1, 2]), torch.tensor([0, 2])
        >>> items = torch.empty(1, 2, dtype=torch.int32)
        >>> if library() is not None:
        ...     draw_unseen(seen, offsets, 4, torch.tensor([0]), torch.tensor([[0.1, 0.9]]).double(), items)
        ...     assert items.tolist() == [[0, 3]]
    """
    count, num = uniform.shape
    assert items.dtype == torch.int32
    assert items.shape == uniform.shape
    assert items.is_cpu
    assert num == 1 or items.stride(1) == 1
    library().ncf_draw(
        address("seen", seen, torch.int64, seen.shape),
        address("offsets", offsets, torch.int64, offsets.shape),
        c_int64(num_items),
        address("users", users, torch.int64, (count,)),
        *(c_int64(count), c_int64(num)),
        address("uniform", uniform, torch.float64, (count, num)),
        c_void_p(items.data_ptr()),
        c_int64(items.stride(0)),
    )


def reorder(order: Tensor, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows of users and items in an order, as PyTorch's indexing does, with prefetched memory.

    Args:
        order: rows, of any shape, int64.
        users: ``[N]``, int64.
        items: ``[N, n]``, int32.

    Returns:
        ``users[order]``, and ``items[order]`` as int64.

    Example::

        >>> import torch
        >>> from ncf.kernels.native import library, reorder
        >>> users, items = torch.tensor([5, 6]), torch.tensor([[1, 2], [3, 4]], dtype=torch.int32)
        >>> if library() is not None:
        ...     assert reorder(torch.tensor([1, 0]), users, items)[1].tolist() == [[3, 4], [1, 2]]
    """
    order = order.contiguous()
    rows, each = items.shape
    to_users = torch.empty(order.shape, dtype=torch.int64, device="cpu")
    to_items = torch.empty(*order.shape, each, dtype=torch.int64, device="cpu")
    library().ncf_reorder(
        address("order", order, torch.int64, order.shape),
        c_int64(order.numel()),
        address("users", users, torch.int64, (rows,)),
        address("items", items, torch.int32, (rows, each)),
        c_int64(each),
        c_void_p(to_users.data_ptr()),
        c_void_p(to_items.data_ptr()),
    )
    return to_users, to_items


def seen_places(seen: Tensor, offsets: Tensor, users: Tensor, shared: Tensor, mark: Tensor) -> Tensor:
    """Find the items shared by a batch that users have seen.

    Args:
        seen: the items of all users, ascending within a user, ``[N]``, int64.
        offsets: where each user's begin, ``[num_users + 1]``, int64.
        users: of the positives, ``[P]``, int64.
        shared: items, ``[S]``, int64; one may occur twice.
        mark: zeros for all items, ``[num_items]``, int32; they are zeros again in the end.

    Returns:
        The places ``p * S + s`` where the user of positive p has seen shared item s, ascending, int64.

    Example::

        >>> import torch
        >>> from ncf.kernels.native import library, seen_places
        >>> seen, offsets = torch.tensor([1, 2]), torch.tensor([0, 2])
        >>> if library() is not None:
        ...     mark = torch.zeros(4, dtype=torch.int32)
        ...     places = seen_places(seen, offsets, torch.tensor([0]), torch.tensor([3, 2, 1]), mark)
        ...     assert places.tolist() == [1, 2]
    """
    size = len(shared)
    before = torch.empty(size, dtype=torch.int32, device="cpu")
    found = torch.zeros(-(-size // 64), dtype=torch.int64, device="cpu")
    places = torch.empty(len(users) * size, dtype=torch.int64, device="cpu")
    count = library().ncf_seen_places(
        address("seen", seen, torch.int64, seen.shape),
        address("offsets", offsets, torch.int64, offsets.shape),
        address("users", users, torch.int64, users.shape),
        c_int64(len(users)),
        address("shared", shared, torch.int64, (size,)),
        c_int64(size),
        address("mark", mark, torch.int32, mark.shape),
        *(c_void_p(tensor.data_ptr()) for tensor in (before, found, places)),
    )
    return places[:count].clone()


def raise_kernel_error(failed: int, users: Tensor, items: Tensor, num_users: int, num_items: int) -> None:
    """Raise the exception for a kernel's return code; -1 means success.

    Args:
        failed: the return code, see native.c.
        users: user ids that the kernel was given, ``[U]``.
        items: item ids of each user, ``[U, C]``.
        num_users: rows of the user tables.
        num_items: rows of the item tables.

    Raises:
        IndexError: if a user or an item is unknown.
        MemoryError: if there was no memory.

    Example::

        >>> import torch
        >>> from ncf.kernels.native import raise_kernel_error
        >>> raise_kernel_error(-1, torch.tensor([0, 1]), torch.tensor([[2, 3], [4, 9]]), num_users=5, num_items=5)
        >>> raise_kernel_error(2 + 3, torch.tensor([0, 1]), torch.tensor([[2, 3], [4, 9]]), num_users=5, num_items=5)
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
