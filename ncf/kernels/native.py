"""The kernels for CPUs: C, compiled when ncf is installed, and called through ctypes; scores by one of them.

Where there was no C compiler, there is no kernel, and ncf works in PyTorch: the same numbers, more slowly.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ncf.kernels.tables import ScoringTables, check_pairs

_PAIRS_PER_THREAD = 1 << 14  # fewer are not worth starting a thread for


class _Tables(ctypes.Structure):
    """`Tables` of native.c."""

    _fields_ = (
        *((name, c_void_p) for name in ("users", "items", "user_bias", "item_bias", "head")),
        *((name, POINTER(c_void_p)) for name in ("weights", "biases")),
        ("outputs", POINTER(c_int64)),
        *((name, c_int64) for name in ("num_users", "num_items", "hidden", "factors", "inputs", "layers")),
        ("widest", c_int64),
        ("bias", c_float),
    )


@cache
def library(folder: Path = Path(__file__).parent) -> Any:
    """The compiled kernel, or ``None`` if there is none.

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
        found.ncf_score.restype = found.ncf_train.restype = c_int64
        found.ncf_score.argtypes = [
            POINTER(_Tables), c_int, c_void_p, c_int64, c_void_p, c_int64, c_int64, c_void_p
        ]  # fmt: skip
        return found
    return None


def fits(tables: ScoringTables) -> bool:
    """Whether the kernel is there and can score by these tables: fp32, on a CPU, with rows on both sides.

    Example::

        >>> import torch
        >>> from ncf import GMF
        >>> from ncf.kernels.native import fits, library
        >>> tables = GMF(num_users=2, num_items=3).scoring_tables()
        >>> fits(tables) == (library() is not None)
        True
        >>> fits(tables.to(torch.float64))
        False
    """
    rows = tables.item_half is not None or tables.item_gmf is not None
    return rows and tables.dtype == torch.float32 and tables.device.type == "cpu" and library() is not None


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


class PackedTables:
    """Scoring tables in the kernel's layout, copied: rows side by side, weights in panels, all padded with zeros.

    A pair's score has the same bits whoever else is scored, on however many threads.

    Args:
        tables: for which `fits` holds.
        lanes: width of the vector unit in floats: 4, 8 (AVX2) or 16 (AVX-512); this processor's by default.
        kernel: what `library` returned; its default by default.

    Example::

        >>> import torch
        >>> from ncf import NeuMF
        >>> from ncf.kernels.native import PackedTables, library
        >>> model = NeuMF(num_users=10, num_items=20)
        >>> if library() is not None:
        ...     scores = PackedTables(model.scoring_tables()).score(torch.tensor([3]), torch.tensor([[1, -1]]))
        ...     assert torch.allclose(scores[0, 0], model(torch.tensor([3]), torch.tensor([1])))
        ...     assert scores[0, 1] == -torch.inf
    """

    @torch.no_grad()
    def __init__(self, tables: ScoringTables, lanes: int | None = None, kernel: Any = None) -> None:
        self._kernel = library() if kernel is None else kernel
        self._lanes = self._kernel.ncf_lanes() if lanes is None else lanes
        self._users = self._side_by_side(tables.user_half, tables.user_gmf)  # [U, H + F], padded
        self._items = self._side_by_side(tables.item_half, tables.item_gmf)  # [I, H + F], padded
        biases = [None if bias is None else bias.clone() for bias in (tables.user_bias, tables.item_bias)]
        weights = [self._panels(weight, at > 0) for at, (weight, _) in enumerate(tables.layers)]
        layer_biases = [self._padded(bias) for _, bias in tables.layers]
        head = None if tables.head_mlp is None else self._padded(tables.head_mlp)
        inputs = 0 if tables.item_half is None else tables.item_half.shape[1]
        hidden = inputs + -inputs % self._lanes
        outputs = [len(bias) for bias in layer_biases]
        self._held = (biases, weights, layer_biases, head)  # the structure has only their addresses
        self._tables = _Tables(
            *(None if t is None else t.data_ptr() for t in (self._users, self._items, *biases, head)),
            *((c_void_p * len(outputs))(*(t.data_ptr() for t in side)) for side in (weights, layer_biases)),
            (c_int64 * len(outputs))(*outputs),
            *(
                len(self._users),
                len(self._items),
                hidden,
                self._items.shape[1] - hidden,
                inputs,
                len(outputs),
            ),
            max([hidden, *outputs]),
            float(tables.bias),
        )

    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        """Score each user's candidates, on as many threads as PyTorch has.

        Args:
            users: ``[U]``, int64.
            candidates: items, ``[U, C]``, int64; a negative one is padding.

        Returns:
            Scores, ``[U, C]``, fp32; padding has ``-inf``.

        Raises:
            ValueError: if shapes or types do not fit together.
            IndexError: if a user or an item is unknown.
        """
        check_pairs(users, candidates, self._users.device)
        width = candidates.shape[1]
        scores = torch.empty(candidates.shape)
        if scores.numel() == 0:
            return scores
        users = users.contiguous()
        if candidates.stride(1) != 1:
            candidates = candidates.contiguous()
        parts = min(torch.get_num_threads(), 1 + scores.numel() // _PAIRS_PER_THREAD, len(users))
        step = -(-len(users) // parts)
        failures: list[Exception] = []

        def work(start: int) -> None:
            try:
                rows = slice(start, start + step)
                self._score(users[rows], candidates[rows], width, scores[rows])
            except Exception as error:
                failures.append(error)

        others = [Thread(target=work, args=(start,)) for start in range(step, len(users), step)]
        for thread in others:
            thread.start()
        work(0)
        for thread in others:
            thread.join()
        if failures:
            raise failures[0]
        return scores

    def _score(self, users: Tensor, candidates: Tensor, width: int, out: Tensor) -> None:
        step = candidates.stride(0) if len(users) > 1 else width
        failed = self._kernel.ncf_score(
            self._tables, self._lanes, users.data_ptr(), len(users), candidates.data_ptr(), step, width, out.data_ptr()
        )  # fmt: skip
        refuse(failed, users, candidates, len(self._users), len(self._items))

    def _padded(self, tensor: Tensor) -> Tensor:
        """The last dimension filled up to whole vectors with zeros; always a copy."""
        padded = F.pad(tensor, (0, -tensor.shape[-1] % self._lanes))
        return padded.clone(memory_format=torch.contiguous_format)

    def _side_by_side(self, *rows: Tensor | None) -> Tensor:
        parts = [part for part in rows if part is not None]
        widths = [part.shape[1] + -part.shape[1] % self._lanes for part in parts]
        packed = torch.zeros(len(parts[0]), sum(widths))  # one copy, since a table may be large
        for part, place in zip(parts, packed.split(widths, dim=1), strict=True):
            place[:, : part.shape[1]] = part
        return packed

    def _panels(self, weight: Tensor, padded_input: bool) -> Tensor:
        """A layer's weight ``[out, in]`` as panels ``[in, 2 · lanes]`` one after another, flat."""
        by_input = self._padded(weight.T)  # [in, out]
        if padded_input:  # what the layer before leaves has whole vectors
            by_input = F.pad(by_input, (0, 0, 0, -len(by_input) % self._lanes))
        return torch.cat([panel.reshape(-1) for panel in by_input.split(2 * self._lanes, dim=1)])
