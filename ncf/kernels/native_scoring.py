"""Scores and ranks on a CPU, by the kernels in C: a model's parameters in their layout."""

from __future__ import annotations

import os
from contextlib import suppress
from ctypes import byref, c_int64, c_void_p
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ncf.kernels.native import Tables, lanes_for, library, raise_kernel_error
from ncf.kernels.scoring_tables import ScoringTables, check_pairs

_COLUMNS = 64  # COLUMNS of sift.h
_USERS_FOR_BYTES = 16  # for fewer, to lay some of the items out takes longer than it saves


def fits(tables: ScoringTables) -> bool:
    """Return whether the kernel is there and can score these tables: fp32, on a CPU, with rows on both sides.

    Example::

        >>> import torch
        >>> from ncf import GMF
        >>> from ncf.kernels.native import library
        >>> from ncf.kernels.native_scoring import fits
        >>> tables = GMF(num_users=2, num_items=3).scoring_tables()
        >>> fits(tables) == (library() is not None)
        True
        >>> fits(tables.to(torch.float64))
        False
    """
    rows = tables.item_hidden is not None or tables.item_gmf is not None
    return rows and tables.dtype == torch.float32 and tables.device.type == "cpu" and library() is not None


class PackedTables:
    """Scoring tables in the kernel's layout, copied: rows side by side, weights in panels, all padded with zeros.

    A pair's score has the same bits whatever else is scored, on any number of threads.

    Args:
        tables: for which `fits` holds.
        lanes: width of the vector unit in floats: 4, 8 (AVX2) or 16 (AVX-512); see `lanes_for`.
        kernel: what `library` returned; its default by default.

    Example::

        >>> import torch
        >>> from ncf import NeuMF
        >>> from ncf.kernels.native import library
        >>> from ncf.kernels.native_scoring import PackedTables
        >>> model = NeuMF(num_users=10, num_items=20)
        >>> if library() is not None:
        ...     scores = PackedTables(model.scoring_tables()).score(torch.tensor([3]), torch.tensor([[1, -1]]))
        ...     assert torch.allclose(scores[0, 0], model(torch.tensor([3]), torch.tensor([1])))
        ...     assert scores[0, 1] == -torch.inf
    """

    @torch.no_grad()
    def __init__(self, tables: ScoringTables, lanes: int | None = None, kernel: Any = None) -> None:
        self._kernel = library() if kernel is None else kernel
        rows = [half for half in (tables.item_hidden, tables.item_gmf) if half is not None]
        widths = [half.shape[1] for half in rows] + [len(bias) for _, bias in tables.layers]
        self._lanes = lanes_for(self._kernel, widths) if lanes is None else lanes
        self._users = self._side_by_side(tables.user_hidden, tables.user_gmf)  # [U, H + F], padded
        self._items = self._side_by_side(tables.item_hidden, tables.item_gmf)  # [I, H + F], padded
        biases = [None if bias is None else bias.clone() for bias in (tables.user_bias, tables.item_bias)]
        weights = [self._panels(weight, at > 0) for at, (weight, _) in enumerate(tables.layers)]
        layer_biases = [self._padded(bias) for _, bias in tables.layers]
        head = None if tables.mlp_head is None else self._padded(tables.mlp_head)
        inputs = 0 if tables.item_hidden is None else tables.item_hidden.shape[1]
        hidden = inputs + -inputs % self._lanes
        outputs = [len(bias) for bias in layer_biases]
        self._held = (biases, weights, layer_biases, head)  # the structure has only their addresses
        rows_and_columns = len(self._users), len(self._items), hidden, self._items.shape[1] - hidden
        widest = max([hidden, *outputs])
        self._numbers = (*rows_and_columns, inputs, len(outputs), widest, float(tables.bias))
        self._of_all: tuple[Tensor, Tensor] | None = None
        self._tables = self._described()

    def _described(self) -> Tables:
        """The structure with the present addresses of all tensors."""
        biases, weights, layer_biases, head = self._held
        outputs = [len(bias) for bias in layer_biases]
        return Tables(
            *(None if t is None else t.data_ptr() for t in (self._users, self._items, *biases, head)),
            *((c_void_p * len(outputs))(*(t.data_ptr() for t in side)) for side in (weights, layer_biases)),
            (c_int64 * len(outputs))(*outputs),
            *self._numbers,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value for name, value in vars(self).items() if name not in ("_kernel", "_tables", "_of_all")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._of_all = None
        self._kernel = library()
        if self._kernel is None or self._kernel.ncf_lanes() < self._lanes:
            raise RuntimeError(
                "this scorer was laid out for another machine's vector unit: make it here, by model.scorer()"
            )
        self._tables = self._described()

    def share(self, file: Path) -> None:
        """Map the tensors from a file in place of copies in memory; of several processes the first writes it.

        Args:
            file: in a folder that nobody else can write to, for the same tables on the same machine.

        Raises:
            OSError: if the file cannot be written.
        """
        if not file.exists():
            with TemporaryDirectory(dir=file.parent) as folder, suppress(FileExistsError):
                written = Path(folder) / file.name
                with written.open("wb") as opened:
                    torch.save({**self.__getstate__(), "_of_all": self._of_all}, opened)
                os.link(written, file)  # unless another process was faster
        state = torch.load(file, mmap=True, weights_only=True)
        of_all = state.pop("_of_all")
        self.__setstate__(state)
        self._of_all = of_all

    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        """Score each user's candidates, on as many threads as PyTorch has.

        Args:
            users: ``[U]``, int64.
            candidates: items, ``[U, C]``, or ``[C]`` for one list for all users, int64; a negative one is padding.

        Returns:
            Scores, ``[U, C]``, fp32; padding has ``-inf``.

        Raises:
            ValueError: if shapes or types do not fit together.
            IndexError: if a user or an item is unknown.
        """
        check_pairs(users, candidates, self._users.device)
        width, shared = candidates.shape[-1], candidates.dim() == 1
        scores = torch.empty(len(users), width, dtype=torch.float32, device="cpu")
        users, candidates = users.contiguous(), candidates.contiguous()
        if scores.numel():
            failed = self._call("ncf_score", users, candidates, 0 if shared else width, width, scores)
            raise_kernel_error(failed, users, candidates.view(-1, width), len(self._users), len(self._items))
        return scores

    def ranks(self, users: Tensor, positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor] | None:
        """Rank each user's held-out item among its negatives: ties lose, an item counts once.

        Args:
            users: ``[U]``, int64.
            positives: the held-out item of each, ``[U]``, int64.
            negatives: items, ``[U, C]``, int64; a negative one is padding.

        Returns:
            Ranks and numbers of distinct candidates, both ``[U]``, int64; ``None`` if an id is unknown or a score not
            a number: the scores say which.

        Raises:
            ValueError: if shapes or types do not fit together.
        """
        check_pairs(users, positives[:, None], self._users.device, "positives")
        check_pairs(users, negatives, self._users.device, "negatives")
        width = negatives.shape[1]
        users, positives, negatives = users.contiguous(), positives.contiguous(), _rows(negatives)
        ranks, counts = torch.empty_like(users), torch.empty_like(users)
        lists = positives, negatives, _step(negatives), width
        return (ranks, counts) if self._call("ncf_rank", users, *lists, ranks, counts) else None

    def catalogue_ranks(
        self,
        users: Tensor,
        positives: Tensor,
        num_items: int,
        seen_offsets: Tensor,
        seen_items: Tensor,
        offsets: Tensor | None = None,
    ) -> Tensor | None:
        """Rank each user's held-out items among the first ``num_items`` items, less those that the user has seen.

        Args:
            users: ``[U]``, int64.
            positives: the held-out items, one user behind the other, ``[P]``, int64.
            num_items: how many items are ranked.
            seen_offsets: where each user's items begin in ``seen_items``, ``[U + 1]``; the first need not be 0.
            seen_items: the items to leave out, ascending within a user, without the positives.
            offsets: where each user's items begin in ``positives``, ``[U + 1]``; by default each user has one.

        Returns:
            Ranks, ``[P]``, int64; ``None`` where `ranks` gives it, and if there are fewer items or the lists are not
            such lists.
        """
        one_each = positives[:, None] if offsets is None else positives
        check_pairs(users, one_each, self._users.device, "positives")
        if offsets is None:
            offsets = torch.arange(len(users) + 1, dtype=torch.int64, device="cpu")
        if num_items > len(self._items) or not len(seen_offsets) == len(offsets) == len(users) + 1:
            return None
        users, positives = users.contiguous(), positives.contiguous()
        offsets, seen_offsets, seen_items = (
            tensor.to("cpu", torch.int64).contiguous() for tensor in (offsets, seen_offsets, seen_items)
        )
        ranks, seen = torch.empty_like(positives), (seen_offsets, seen_items, len(seen_items))
        lists = offsets, positives, len(positives), num_items, *seen
        return ranks if self._call("ncf_rank_catalogue", users, *lists, ranks) else None

    def top_k(
        self, users: Tensor, k: int, items: Tensor, left_out: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Select the best items of each user, with the arguments of `ncf.models.scoring.Ranker.top_k`.

        No table of scores is made.

        Returns:
            Scores, ``[U, k]``, fp32, and items, ``[U, k]``, int64, as `ncf.kernels.reference.largest_k` selects them
            from the scores; past the end of a list ``-inf`` and -1. ``None`` where `ranks` gives it.

        Raises:
            ValueError: if shapes or types do not fit together.
        """
        check_pairs(users, items, self._users.device, "items")
        users, items = users.contiguous(), items.contiguous()
        offsets, hidden = (None, None) if left_out is None else (t.contiguous() for t in left_out)
        if offsets is not None and hidden is not None:
            check_pairs(users, hidden, self._users.device, "left_out")
            check_pairs(users, offsets, self._users.device, "offsets")
            if len(offsets) != len(users) + 1:
                raise ValueError(f"left_out has {len(offsets)} offsets for {len(users)} users: give one more")
        panel, numbers = self._bytes(items, len(users)) or (None, None)
        first_pass = panel, numbers, 0 if panel is None else len(panel)
        scores = torch.empty(len(users), k, dtype=torch.float32, device="cpu")
        selected = torch.empty(len(users), k, dtype=torch.int64, device="cpu")
        lists = offsets, hidden, 0 if hidden is None else len(hidden)
        done = self._call("ncf_top_k", users, items, len(items), *lists, k, *first_pass, scores, selected)
        return (scores, selected) if done else None

    def _bytes(self, items: Tensor, num_users: int) -> tuple[Tensor, Tensor] | None:
        """Lay items out for the first pass of a selection; all of them once, some for many users only.

        ``None`` where there is no such pass: the scores are not a product alone.
        """
        every, factors = len(items) == len(self._items), self._items.shape[1]
        if self._numbers[2] or not len(items) or not (every or num_users >= _USERS_FOR_BYTES):
            return None
        if every and self._of_all is not None:
            return self._of_all
        columns = len(items) + -len(items) % _COLUMNS
        panel = torch.empty(columns, factors, dtype=torch.uint8, device="cpu")
        numbers = torch.empty(4 * columns + 1, dtype=torch.float32, device="cpu")
        if not self._call("ncf_bytes", items, columns, panel, numbers):  # an unknown item
            return None
        if every:
            self._of_all = panel, numbers
        return panel, numbers

    def _call(self, function: str, users: Tensor, *arguments: Tensor | int | None) -> int:
        """Call a function of the library on as many threads as PyTorch has; ctypes lets others run meanwhile."""
        given = [
            c_int64(a) if isinstance(a, int) else c_void_p(None if a is None else a.data_ptr())
            for a in (torch.get_num_threads(), users, len(users), *arguments)
        ]
        answer: int = getattr(self._kernel, function)(byref(self._tables), self._lanes, *given)
        return answer

    def _padded(self, tensor: Tensor) -> Tensor:
        """The last dimension filled up to whole vectors with zeros; always a copy."""
        padded = F.pad(tensor, (0, -tensor.shape[-1] % self._lanes))
        return padded.clone(memory_format=torch.contiguous_format)

    def _side_by_side(self, *rows: Tensor | None) -> Tensor:
        parts = [part for part in rows if part is not None]
        widths = [part.shape[1] + -part.shape[1] % self._lanes for part in parts]
        packed = torch.empty(len(parts[0]), sum(widths), dtype=torch.float32, device="cpu")
        for part, place in zip(parts, packed.split(widths, dim=1), strict=True):
            rows_of, width = place.numpy(), part.shape[1]  # NumPy wakes none of PyTorch's threads
            rows_of[:, :width], rows_of[:, width:] = part.detach().numpy(), 0.0
        return packed

    def _panels(self, weight: Tensor, padded_input: bool) -> Tensor:
        """A layer's weight ``[out, in]`` as panels ``[in, 2 · lanes]`` one after another, flat."""
        by_input = self._padded(weight.T)  # [in, out]
        if padded_input:  # what the layer before leaves has whole vectors
            by_input = F.pad(by_input, (0, 0, 0, -len(by_input) % self._lanes))
        return torch.cat([panel.reshape(-1) for panel in by_input.split(2 * self._lanes, dim=1)])


def _rows(ids: Tensor) -> Tensor:
    """Rows that lie in one piece each, such as rows of one expanded list."""
    return ids if ids.stride(1) == 1 else ids.contiguous()


def _step(lists: Tensor) -> int:
    """From a user's list to the next one's; 0 only where it is the same."""
    return lists.stride(0) if len(lists) > 1 else lists.shape[1]
