"""The fused kernels, their references in PyTorch, and for each one function that chooses by device.

Triton is imported when a kernel runs for the first time, never by importing this package.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ncf.kernels.reference import lookup_reference, score_reference
from ncf.kernels.scoring_tables import ScoringTables, check_pairs
from ncf.utils.checks import check_known

__all__ = ["ScoringTables", "fused_lookup", "lookup_reference", "score_candidates", "score_reference"]

# Of the widest intermediate result where nothing is fused: a cache's worth, or enough to fill a GPU.
_BLOCK_BYTES = {"cpu": 1 << 22, "cuda": 1 << 28}
_PAIRS_AT_ONCE = 1 << 24  # whose ids are on the GPU: 128 MB, and as much to sort them
_USERS_AT_ONCE = 1 << 16  # in a catalogue: 64 MB of keys for lists of up to 128


@torch.no_grad()
def score_candidates(tables: ScoringTables, users: Tensor, candidates: Tensor) -> Tensor:
    """Score each user's candidates on the tables' device.

    On an NVIDIA GPU (Ampere or later) a fused Triton kernel does it, if Triton is installed and the tables fit
    (`ncf.kernels.triton_scoring.fits`); else the reference, block by block. Without an MLP, one list for all users
    is a matrix product.

    Args:
        tables: the model's parameters laid out for ranking.
        users: ``[U]``, int64; ids are not checked here.
        candidates: items, ``[U, C]``, or ``[C]`` for one list for all users, int64; a negative one is padding.

    Returns:
        Scores, ``[U, C]``, fp32 or fp64 (`ScoringTables.score_dtype`); padding has ``-inf``.

    Raises:
        ValueError: if shapes, types or devices do not fit together.

    Example::

        >>> import torch
        >>> from ncf.kernels import ScoringTables, score_candidates
        >>> tables = ScoringTables(item_bias=torch.tensor([0.5, 2.0]), bias=torch.zeros(1))
        >>> score_candidates(tables, torch.tensor([0, 7]), torch.tensor([1, 0, -1]))
        tensor([[2.0000, 0.5000,   -inf],
                [2.0000, 0.5000,   -inf]])
    """
    check_pairs(users, candidates, tables.device)
    shape = (len(users), candidates.shape[-1])
    if 0 in shape:
        return torch.empty(shape, dtype=tables.score_dtype, device=tables.device)
    if tables.item_hidden is None and candidates.dim() == 1:
        return _score_product(tables, users, candidates)
    if can_fuse(tables.device):
        from ncf.kernels.triton_scoring import fits, score_triton

        if fits(tables):
            with _on(tables.device):
                return score_triton(tables, users, candidates)
    return _score_blocks(tables, users, candidates)


def can_rank(tables: ScoringTables) -> bool:
    """Return whether `FusedTables` takes these tables: those that `score_candidates` fuses, with rows on both sides."""
    if not can_fuse(tables.device) or tables.num_users is None or tables.num_items is None:
        return False
    from ncf.kernels.triton_scoring import fits

    return fits(tables)


class FusedTables:
    """Ranks and the best items by Triton kernels, which write no table of scores.

    The methods are those of `ncf.kernels.native_scoring.PackedTables`. Ids may be on any device: they go to the tables'
    in blocks of users, and the results come to the CPU.

    Args:
        tables: for which `can_rank` holds.
    """

    def __init__(self, tables: ScoringTables) -> None:
        self.tables = tables

    @torch.no_grad()
    def ranks(self, users: Tensor, positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor] | None:
        """See `ncf.kernels.native_scoring.PackedTables.ranks`; the device is waited for once, at the end.

        Raises:
            IndexError: if an id is unknown.
        """
        from ncf.kernels.triton_ranking import rank_triton

        found = []
        with _on(self.tables.device):
            for block in _blocks(len(users), _PAIRS_AT_ONCE // (1 + negatives.shape[1])):
                here = (ids[block].to(self.tables.device) for ids in (users, positives, negatives))
                found.append(rank_triton(self.tables, *here))
        ranks, counts = (torch.cat(side).cpu() for side in zip(*found, strict=True))
        return (ranks, counts) if self._ranked(ranks, users, positives, negatives) else None

    @torch.no_grad()
    def catalogue_ranks(
        self,
        users: Tensor,
        positives: Tensor,
        num_items: int,
        seen_offsets: Tensor,
        seen_items: Tensor,
        offsets: Tensor | None = None,
    ) -> Tensor | None:
        """See `ncf.kernels.native_scoring.PackedTables.catalogue_ranks`, and `ranks`; ``None`` with ``offsets``."""
        from ncf.kernels.triton_ranking import rank_catalogue_triton

        if offsets is not None:  # several held-out items: counted in scores, block by block
            return None
        device, found = self.tables.device, []
        with _on(device):
            for block in _blocks(len(users), _USERS_AT_ONCE):
                here = users[block].to(device), positives[block].to(device)
                seen = _lists_of(block, seen_offsets, seen_items, device)
                found.append(rank_catalogue_triton(self.tables, *here, num_items, *seen))
        ranks = torch.cat(found).cpu()
        last = torch.tensor([num_items - 1], dtype=torch.int64, device="cpu")
        return ranks if self._ranked(ranks, users, positives, last) else None

    @torch.no_grad()
    def top_k(
        self, users: Tensor, k: int, items: Tensor, left_out: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """See `ncf.kernels.native_scoring.PackedTables.top_k`; ``None`` also for longer lists than the kernel keeps.

        Raises:
            IndexError: if an id is unknown.
        """
        from ncf.kernels.triton_ranking import most_selected, top_k_triton

        if k > most_selected(self.tables):
            return None
        device, found = self.tables.device, []
        there = items.to(device)
        with _on(device):
            for block in _blocks(len(users), _USERS_AT_ONCE):
                hidden = None if left_out is None else _lists_of(block, *left_out, device)
                scores, selected, wrong = top_k_triton(self.tables, users[block].to(device), k, there, hidden)
                if bool(wrong):
                    self._check_known(users, items)
                    return None
                found.append((scores.cpu(), selected.cpu()))
        of_all, items_of_all = (torch.cat(side) for side in zip(*found, strict=True))
        return of_all, items_of_all

    def _ranked(self, ranks: Tensor, users: Tensor, *items: Tensor) -> bool:
        """Return False where a score is NaN: the scores say which."""
        if not bool((ranks < 0).any()):
            return True
        self._check_known(users, *items)
        return False

    def _check_known(self, users: Tensor, *items: Tensor) -> None:
        """Raise for the first unknown id: on a GPU an index out of range is an abort without a message."""
        check_known(users, "user", self.tables.num_users)
        for some in items:
            check_known(some, "item", self.tables.num_items, lowest=None)


def _blocks(size: int, step: int) -> Iterator[slice]:
    """Slices of at most ``step``; at least one, which may be empty."""
    for start in range(0, max(1, size), max(1, step)):
        yield slice(start, min(start + step, size))


def _lists_of(block: slice, offsets: Tensor, items: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """The lists of some users, on a device; their offsets begin at 0."""
    own = offsets[block.start : block.stop + 1]
    return (own - own[0]).to(device), items[int(own[0]) : int(own[-1])].to(device)


def fused_lookup(
    users: Tensor,
    items: Tensor,
    user_gmf: Tensor | None,
    item_gmf: Tensor | None,
    user_mlp: Tensor | None,
    item_mlp: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    factors: int | None = None,
    summed: int = 0,
    sparse: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """Look up a training batch, and make the GMF product and the MLP's first hidden layer of it.

    On an NVIDIA GPU (Ampere or later) fused Triton kernels do it, forward and backward, if Triton is
    installed; else, and in fp64, the reference.
    Both are differentiable in the tables, the weight and the bias.

    Args:
        users: ``[B]``, int64; ids are not checked here.
        items: ``[B]``, or ``[B, C]`` for several items of each user, int64.
        user_gmf: ``[num_users, W]``; ``None``, as ``item_gmf``, without a GMF part.
        item_gmf: ``[num_items, W]``.
        user_mlp: ``[num_users, D]``; ``None``, as the three that follow, without an MLP.
        item_mlp: ``[num_items, D]``.
        weight: of the first layer, over the user's and the item's row side by side, ``[H, 2 D]``.
        bias: of the first layer, ``[H]``.
        factors: leading columns of the GMF tables that the product has, F; all by default.
        summed: how many of them, the last ones, are added in place of multiplied, as biases are.
        sparse: gradients of tables are of the rows looked up alone, one for each pair, uncoalesced.

    Returns:
        The product, ``[B, F]`` or ``[B, C, F]``, and the rectified hidden layer, ``[B, H]`` or ``[B, C, H]``;
        ``None`` in place of an absent part.

    Example::

        >>> import torch
        >>> from ncf.kernels import fused_lookup
        >>> user_rows, item_rows = torch.tensor([[2.0]]), torch.tensor([[3.0], [5.0]])
        >>> users, items = torch.tensor([0]), torch.tensor([[1, 0]])
        >>> fused_lookup(users, items, user_rows, item_rows, None, None, None, None)
        (tensor([[[10.],
                 [ 6.]]]), None)
    """
    table = item_gmf if item_mlp is None else item_mlp
    arguments = users, items, user_gmf, item_gmf, user_mlp, item_mlp, weight, bias
    if table is not None and table.dtype != torch.float64 and can_fuse(table.device):
        from ncf.kernels.triton_operators import DENSE, SPARSE, lookup_triton

        with _on(table.device):
            gradients = SPARSE if sparse else DENSE
            return lookup_triton(*arguments, factors=factors, summed=summed, gradients=gradients)
    return lookup_reference(*arguments, factors=factors, summed=summed, sparse=sparse)


def fused_rows(
    user_gmf: Tensor | None,
    item_gmf: Tensor | None,
    user_mlp: Tensor | None,
    item_mlp: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    factors: int | None = None,
    summed: int = 0,
) -> tuple[Tensor | None, Tensor | None]:
    """`fused_lookup` of rows that were looked up before, such as rows of sharded tables.

    On a GPU, where `can_fuse` holds. The product and the first layer are made in one kernel, and so are the gradients
    of the rows; nothing is broadcast in memory.

    Args:
        user_gmf: ``[B, W]``, or ``[B, 1, W]`` where there are several items of each user.
        item_gmf: ``[B, W]`` or ``[B, C, W]``.
        user_mlp: ``[B, D]`` or ``[B, 1, D]``.
        item_mlp: ``[B, D]`` or ``[B, C, D]``.
        weight: of the first layer, ``[H, 2 D]``.
        bias: of the first layer, ``[H]``.
        factors: see `fused_lookup`.
        summed: see there.

    Returns:
        See there.
    """
    from ncf.kernels.triton_operators import ROWS, lookup_triton

    table = item_gmf if item_mlp is None else item_mlp
    assert table is not None
    shape = table.shape[:-1]
    users = torch.arange(shape[0], dtype=torch.int64, device=table.device)
    items = torch.arange(shape.numel(), dtype=torch.int64, device=table.device).view(shape)
    of_gmf, of_mlp = ([_flat(t) for t in pair] for pair in ((user_gmf, item_gmf), (user_mlp, item_mlp)))
    with _on(table.device):
        return lookup_triton(
            users, items, of_gmf[0], of_gmf[1], of_mlp[0], of_mlp[1], weight, bias,
            factors=factors, summed=summed, gradients=ROWS,
        )  # fmt: skip


def _flat(rows: Tensor | None) -> Tensor | None:
    return None if rows is None else rows.reshape(-1, rows.shape[-1])


def can_update_rows(table: Tensor) -> bool:
    """Return whether `update_rows_adamw` takes a table: fp32, up to a billion rows in order, where the kernels run."""
    plain = table.dtype == torch.float32 and table.stride(-1) == 1
    return plain and len(table) <= 1_000_000_000 and can_fuse(table.device)  # two sides' ids fit in 32 bits


def update_rows_adamw(
    table: Tensor,
    mean: Tensor,
    square: Tensor,
    ids: Tensor,
    gradients: Tensor,
    scales: Tensor,
    *,
    rate: float,
    decay: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """Add up the gradients of each row and update it by AdamW, in place: one Triton kernel, and a sort of the ids.

    Rows without an id stay as they are, and so do their moments. The order of additions is the batch's. The formula is
    that of `ncf.training.optimizers.RowSparse`, with decay towards zero.

    Args:
        table: ``[rows, D]``, one that `can_update_rows` takes.
        mean: first moments, with the table's shape and strides.
        square: second moments, likewise.
        ids: ``[P]``, int64, in any order and with repetitions.
        gradients: ``[P, D]``, one for each id.
        scales: of this step, ``[3]``, fp32, on the table's device: the share of the rate, and the factors of the
            moments that correct their bias, 1 / (1 − β₁ᵗ) and (1 − β₂ᵗ)^−½.
        rate: learning rate.
        decay: decoupled, in units of the rate.
        betas: decay rates of the moments.
        eps: added to the root.
    """
    from ncf.kernels.triton_operators import sort_ids, update_rows

    with _on(table.device), torch.no_grad():
        ((ordered, order),) = sort_ids((ids, len(table)))
        update_rows(table, mean, square, ordered, order, gradients, scales, rate, decay, *betas, eps)


def can_fuse(device: torch.device) -> bool:
    """Return whether the Triton kernels run there: on an NVIDIA GPU of Ampere or later, with Triton."""
    return _has_triton(device)


def _on(device: torch.device) -> Any:
    """Triton launches on the current device; a graph that is traced has no other."""
    return (
        torch.cuda.device(device)
        if device.type == "cuda" and not torch.compiler.is_compiling()
        else nullcontext()
    )


def _has_triton(device: torch.device) -> bool:
    return device.type == "cuda" and _runs_triton(device.index)


def _runs_triton(index: int | None) -> bool:
    return _has_tensor_cores(index)


# As `torch.compiler.assume_constant_result` does, which would import the compiler along with ncf.
_runs_triton._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _has_tensor_cores(index: int | None) -> bool:
    """Return whether the kernels can run on a GPU: they need the tensor cores of Ampere or later."""
    if torch.version.hip is not None or find_spec("triton") is None or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability(index) >= (8, 0)


def _score_product(tables: ScoringTables, users: Tensor, items: Tensor) -> Tensor:
    """Scores ``[U, C]`` of one list of items, ``[C]``, by tables without an MLP."""
    t, rows = tables, items.clamp(min=0)
    scores = torch.empty(len(users), len(items), dtype=t.score_dtype, device=t.device)
    scores.copy_(t.bias)
    if t.user_gmf is not None and t.item_gmf is not None:
        scores.addmm_(t.user_gmf[users].to(scores.dtype), t.item_gmf[rows].to(scores.dtype).T)
    if t.user_bias is not None:
        scores += t.user_bias[users][:, None]
    if t.item_bias is not None:
        scores += t.item_bias[rows]
    return scores.masked_fill_(items < 0, -torch.inf)


def _score_blocks(tables: ScoringTables, users: Tensor, candidates: Tensor) -> Tensor:
    width = candidates.shape[-1]
    scores = torch.empty(len(users), width, dtype=tables.score_dtype, device=tables.device)
    # Half-precision tables are read as fp32: once, not in every block.
    tables = tables.to(tables.score_dtype)
    widths = [t.shape[1] for t in (tables.item_hidden, tables.item_gmf) if t is not None]
    pair_bytes = tables.dtype.itemsize * max(widths, default=1)
    rows = max(1, _BLOCK_BYTES.get(tables.device.type, 1 << 28) // (pair_bytes * width))
    for start in range(0, len(users), rows):
        block = slice(start, start + rows)
        lists = candidates if candidates.dim() == 1 else candidates[block]
        scores[block] = score_reference(tables, users[block], lists)
    return scores
