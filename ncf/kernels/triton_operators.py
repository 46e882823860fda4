"""The kernels of a training step as PyTorch operators: ``ncf::lookup``, its backward, and ``ncf::update_rows``.

``torch.compile``, ``torch.export`` and CUDA graphs see through them. They have fake and autograd rules, launch on the
current stream, and wait for nothing on the device. Row gradients leave the backward one per pair. The update adds them
up per id in the order of the batch, so that a step repeats to the bit.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
import triton
from torch import Tensor
from torch.library import triton_op

from ncf.kernels.triton_launch import Launch, dot_precision, dot_types, padded, resident_programs
from ncf.kernels.triton_training import _adamw_rows, _backward_rows, _backward_weight, _forward

DENSE, SPARSE, ROWS = range(3)  # gradients of tables: whole, of the batch's rows, or of rows looked up before
# The fastest of those tried on an H100: docs/kernels.md.
_PAIRS = 64  # in a tile of the forward
_PAIRS_BACK = 32  # in a tile of the rows' gradients, of which there are two
_TILE = 64  # widest tile of the hidden layer, or of a table's columns
_CHUNK = 128  # bytes of rows, or of pairs, that a product takes at once
_UPDATED = 256  # numbers of a table that a program updates


class Lookup:
    """The launches of one batch's lookup, forward and backward.

    Args:
        users: ``[B]``, int64.
        items: ``[B]`` or ``[B, C]``, int64.
        tables: user_gmf, item_gmf, user_mlp, item_mlp; a pair may be ``None``.
        weight: ``[H, 2 D]``, or ``None`` without an MLP.
        bias: ``[H]``, or ``None``.
        dot_dtype: to which the operands of products are rounded.
        factors: leading columns of the GMF tables that the product has; all by default.
        summed: how many of them, the last ones, are added in place of multiplied, as biases are.

    Example::

        >>> import torch
        >>> from ncf.kernels.triton_operators import Lookup
        >>> users, items = torch.arange(50), torch.zeros(50, 2, dtype=torch.int64)
        >>> tables, weight = (torch.ones(50, 8),) * 4, torch.ones(100, 16)
        >>> lookup = Lookup(users, items, tables, weight, torch.zeros(100), torch.float32)
        >>> lookup.num_pairs, lookup.factors, lookup.hidden
        (100, 8, 100)
        >>> lookup.forward(torch.empty(100, 8), torch.empty(100, 100)).grid  # by 64 pairs and 64 columns
        (2, 2)
    """

    def __init__(
        self,
        users: Tensor,
        items: Tensor,
        tables: tuple[Tensor | None, ...],
        weight: Tensor | None,
        bias: Tensor | None,
        dot_dtype: torch.dtype,
        factors: int | None = None,
        summed: int = 0,
    ) -> None:
        user_gmf, item_gmf, user_mlp, item_mlp = tables
        sizes = [
            next(t.shape[0] for t in side if t is not None)
            for side in ((user_gmf, user_mlp), (item_gmf, item_mlp))
        ]
        self.num_pairs = items.numel()
        self.columns = 0 if user_gmf is None else user_gmf.shape[1]
        self.factors = self.columns if factors is None else factors
        self.dim = 0 if user_mlp is None else user_mlp.shape[1]
        self.hidden = 0 if weight is None else len(weight)
        self.device = users.device
        self._bias = None if bias is None else bias.contiguous()
        self._weight = None if weight is None else weight.contiguous()
        rows = [t if t is None or t.stride(1) == 1 else t.contiguous() for t in tables]
        names = "user_gmf", "item_gmf", "user_mlp", "item_mlp"
        held: dict[str, Any] = dict(zip(names, rows, strict=True))
        held |= {
            f"{name}_stride": 0 if t is None else t.stride(0) for name, t in zip(names, rows, strict=True)
        }
        self._gmf = {name: value for name, value in held.items() if "gmf" in name}
        self._mlp = {name: value for name, value in held.items() if "mlp" in name}
        self._common: dict[str, Any] = {
            "users": users.contiguous(),
            "items": items.contiguous(),
            "num_pairs": self.num_pairs,
            "items_per_user": items.shape[1] if items.dim() == 2 else 1,
            "num_users": sizes[0],
            "num_items": sizes[1],
            "DIM": self.dim,
            "HIDDEN": self.hidden,
            "PRECISION": dot_precision(),
            **dot_types(dot_dtype),
            "num_stages": 2,
            "num_warps": 4,
        }
        self._by_pair = self._common | {
            "weight": self._weight,
            "FACTORS": self.factors,
            "SUMMED": summed,
            "FACTOR_TILE": min(_TILE, padded(self.columns, 1)),
        }
        self._chunk = _CHUNK // dot_dtype.itemsize

    def forward(self, product: Tensor | None, hidden: Tensor | None) -> Launch:
        """Fill ``product [B C, F]`` and ``hidden [B C, H]``."""
        tile = min(_TILE, padded(self.hidden))
        grid = (triton.cdiv(self.num_pairs, _PAIRS), max(1, triton.cdiv(self.hidden, tile)))
        own = {
            "product": product,
            "hidden": hidden,
            "bias": self._bias,
            "PAIRS": _PAIRS,
            "TILE": tile,
            "CHUNK": min(self._chunk, padded(self.dim)),
        }
        return Launch(_forward, grid, self._by_pair | self._gmf | self._mlp | own)

    def backward_rows(
        self,
        gradients: tuple[Tensor | None, ...],
        product_gradient: Tensor | None,
        hidden_gradient: Tensor | None,
        hidden: Tensor | None,
    ) -> Launch:
        """Fill the gradient of each pair's rows, in the order of the tables, ``[B C, columns]`` or ``[B C, D]``."""
        tile = min(_TILE, padded(self.dim))
        grid = (triton.cdiv(self.num_pairs, _PAIRS_BACK), max(1, triton.cdiv(self.dim, tile)))
        names = "of_user_gmf", "of_item_gmf", "of_user_mlp", "of_item_mlp"
        own = {
            **dict(zip(names, gradients, strict=True)),
            "product_gradient": product_gradient,
            "hidden_gradient": hidden_gradient,
            "hidden": hidden,
            "COLUMNS": self.columns,
            "PAIRS": _PAIRS_BACK,
            "TILE": tile,
            "CHUNK": min(self._chunk, padded(self.hidden)),
        }
        return Launch(_backward_rows, grid, self._by_pair | self._gmf | own)

    def backward_weight(self, hidden_gradient: Tensor, hidden: Tensor) -> tuple[Launch, Tensor, Tensor]:
        """The launch, and what it fills: parts of the gradients, ``[parts, H, 2 D]`` and ``[parts, H]``."""
        tile = min(_TILE, max(padded(self.hidden), padded(self.dim)))
        tiles = triton.cdiv(self.hidden, tile), triton.cdiv(self.dim, tile)
        # As many parts as fill the device; the parts are then added up in a fixed order.
        chunk = min(self._chunk, tile)  # pairs
        chunks = triton.cdiv(self.num_pairs, chunk)
        parts = max(1, resident_programs(self.device, chunks) // (tiles[0] * tiles[1]))
        weights = torch.empty(parts, self.hidden, 2 * self.dim, dtype=torch.float32, device=self.device)
        biases = torch.empty(parts, self.hidden, dtype=torch.float32, device=self.device)
        own = {
            "weight_gradient": weights,
            "bias_gradient": biases,
            "hidden_gradient": hidden_gradient,
            "hidden": hidden,
            "pairs_per_part": triton.cdiv(chunks, parts) * chunk,
            "TILE": tile,
            "CHUNK": chunk,
        }
        return Launch(_backward_weight, (*tiles, parts), self._common | self._mlp | own), weights, biases


@triton_op("ncf::lookup", mutates_args={})
def lookup(
    users: Tensor,
    items: Tensor,
    user_gmf: Tensor | None,
    item_gmf: Tensor | None,
    user_mlp: Tensor | None,
    item_mlp: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    factors: int,
    summed: int,
    dot_dtype: torch.dtype,
    gradients: int,
) -> tuple[Tensor, Tensor]:
    """The product, ``[..., factors]``, and the first hidden layer, ``[..., H]``; of width zero where absent."""
    tables = user_gmf, item_gmf, user_mlp, item_mlp
    batch = Lookup(users, items, tables, weight, bias, dot_dtype, factors, summed)
    dtype = next(t.dtype for t in tables if t is not None)
    product = users.new_empty((*items.shape, batch.factors), dtype=dtype)
    hidden = users.new_empty((*items.shape, batch.hidden), dtype=dot_dtype)
    batch.forward(_present(product), _present(hidden)).run()
    return product, hidden


@triton_op("ncf::lookup_backward", mutates_args={})
def lookup_backward(
    product_gradient: Tensor,
    hidden_gradient: Tensor,
    hidden: Tensor,
    users: Tensor,
    items: Tensor,
    user_gmf: Tensor | None,
    item_gmf: Tensor | None,
    user_mlp: Tensor | None,
    item_mlp: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    factors: int,
    summed: int,
    dot_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the rows, ``[B, D]`` of users and ``[B C, D]`` of items by table, of the weight and the bias."""
    tables = user_gmf, item_gmf, user_mlp, item_mlp
    batch = Lookup(users, items, tables, weight, bias, dot_dtype, factors, summed)
    product_gradient, hidden_gradient = (
        each if each.is_contiguous() else each.clone(memory_format=torch.contiguous_format)
        for each in (product_gradient, hidden_gradient)
    )
    rows = [
        users.new_empty(
            (batch.num_pairs, 0 if t is None else t.shape[1]), dtype=torch.float32 if t is None else t.dtype
        )
        for t in tables
    ]
    filled = tuple(_present(row) for row in rows)
    batch.backward_rows(filled, *map(_present, (product_gradient, hidden_gradient, hidden))).run()
    if items.dim() == 2:  # a user's pairs are added up first
        for side in (0, 2):
            rows[side] = rows[side].view(*items.shape, rows[side].shape[1]).sum(1)  # [B, D]
    if weight is None or bias is None:
        none = users.new_empty((0,), dtype=torch.float32)
        return rows[0], rows[1], rows[2], rows[3], none, torch.empty_like(none)
    launch, weights, biases = batch.backward_weight(hidden_gradient, hidden)
    launch.run()
    of_weight, of_bias = weights.sum(0).to(weight.dtype), biases.sum(0).to(bias.dtype)
    return rows[0], rows[1], rows[2], rows[3], of_weight, of_bias


def _present(value: Tensor) -> Tensor | None:
    return value if value.shape[-1] else None


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.factors, ctx.summed, ctx.dot_dtype, ctx.gradients = inputs
    ctx.save_for_backward(output[1], *tensors)


def _gradients(ctx: Any, product_gradient: Tensor, hidden_gradient: Tensor) -> tuple[Any, ...]:
    hidden, users, items, *tables, weight, bias = ctx.saved_tensors
    *rows, of_weight, of_bias = lookup_backward(
        product_gradient, hidden_gradient, hidden, users, items, *tables, weight, bias,
        ctx.factors, ctx.summed, ctx.dot_dtype,
    )  # fmt: skip
    ids = users.flatten(), items.flatten()
    of_tables = [
        None if table is None else _of_table(ctx.gradients, ids[place % 2], row, table)
        for place, (row, table) in enumerate(zip(rows, tables, strict=True))
    ]
    of_layer = (None, None) if weight is None else (of_weight, of_bias)
    return None, None, *of_tables, *of_layer, None, None, None, None


def _of_table(kind: int, ids: Tensor, of_rows: Tensor, table: Tensor) -> Tensor:
    """Gradient of a table from the gradients of the rows looked up, ``[P, D]``."""
    if kind == ROWS:
        return of_rows
    if kind == SPARSE:
        return torch.sparse_coo_tensor(
            ids[None],
            of_rows,
            table.shape,
            dtype=of_rows.dtype,
            device=of_rows.device,
            check_invariants=False,
        )
    ids = ids.clamp(0, len(table) - 1)  # the gradient of an unknown id is NaN by now, wherever it is added
    gradient: Tensor = torch.ops.aten.embedding_dense_backward(of_rows, ids, len(table), -1, False)
    return gradient


lookup.register_autograd(_gradients, setup_context=_save)


@triton_op("ncf::update_rows", mutates_args={"table", "mean", "square"})
def update_rows(
    table: Tensor,
    mean: Tensor,
    square: Tensor,
    ordered: Tensor,
    order: Tensor,
    gradients: Tensor,
    scales: Tensor,
    rate: float,
    decay: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """Row-sparse AdamW of a table, in place; see `ncf.kernels.dispatch.update_rows_adamw`.

    ``ordered`` and ``order`` are what `sort_ids` returns. The program at the first place of an id adds up its gradients
    in the order of the batch and updates its row; no two programs write one row.
    """
    adamw_rows_launch(
        table, mean, square, (ordered, order), gradients, scales,
        rate=rate, decay=decay, betas=(beta1, beta2), eps=eps,
    ).run()  # fmt: skip


def sort_ids(*sides: tuple[Tensor, int]) -> list[tuple[Tensor, Tensor]]:
    """Sort the ids of each side's rows stably; return them and their places, by side.

    A sort's time is that of its passes: one of all sides in 32 bits has a quarter of those of two in 64.

    Args:
        sides: ids, ``[P]``, int64, and the number of rows that they belong to.

    Returns:
        For each side its ids in order, int32, and their places in the side. Of an id without a row remains -1 or the
        number of rows.

    Example::

        >>> import torch
        >>> from ncf.kernels.triton_operators import sort_ids
        >>> (users, places), _ = sort_ids((torch.tensor([2, 1 << 40, 0, 2]), 3), (torch.tensor([5]), 9))
        >>> users, places
        (tensor([0, 2, 2, 3], dtype=torch.int32), tensor([2, 0, 3, 1]))
    """
    firsts = [*accumulate((rows + 2 for _, rows in sides), initial=0)]  # a side's id 0, among the keys
    sizes = [len(ids) for ids, _ in sides]
    keys = [ids.clamp(-1, rows) + first for (ids, rows), first in zip(sides, firsts, strict=False)]
    ordered, order = torch.cat(keys).to(torch.int32).sort(stable=True)
    parts = zip(ordered.split(sizes), order.split(sizes), firsts, accumulate(sizes, initial=0), strict=False)
    return [(ids - first, places - start) for ids, places, first, start in parts]


def adamw_rows_launch(
    table: Tensor,
    mean: Tensor,
    square: Tensor,
    ids: tuple[Tensor, Tensor],
    gradients: Tensor,
    scales: Tensor,
    *,
    rate: float,
    decay: float,
    betas: tuple[float, float],
    eps: float,
) -> Launch:
    """The update of a table's rows by AdamW; see `ncf.kernels.dispatch.update_rows_adamw`. Ids come sorted.

    Example::

        >>> import torch
        >>> from ncf.kernels.triton_operators import adamw_rows_launch, sort_ids
        >>> table, scales = torch.ones(9, 20), torch.ones(3)
        >>> ((ids, places),) = sort_ids((torch.tensor([4, 1, 4, 2, 2, 2, 0, 3, 4]), 9))
        >>> settings = {"rate": 0.1, "decay": 0.0, "betas": (0.9, 0.999), "eps": 1e-8}
        >>> gradients = torch.ones(9, 20)
        >>> launch = adamw_rows_launch(table, table, table, (ids, places), gradients, scales, **settings)
        >>> launch.grid, launch.arguments["COLUMNS"]  # by eight places
        ((2,), 32)
    """
    ordered, order = ids
    columns = padded(table.shape[1], 1)
    places = max(1, _UPDATED // columns)
    arguments = {
        "table": table,
        "mean": mean,
        "square": square,
        "gradients": gradients.contiguous(),
        "ids": ordered,
        "order": order,
        "scales": scales,
        "num_ids": len(ordered),
        "num_rows": table.shape[0],
        "stride": table.stride(0),
        "new_of_mean": 1 - betas[0],
        "beta2": betas[1],
        "new_of_square": 1 - betas[1],
        "eps": eps,
        "rate": rate,
        "decay": decay,
        "DIM": table.shape[1],
        "COLUMNS": columns,
        "PLACES": places,
        "num_warps": 1 if columns <= 256 else 4,
    }
    return Launch(_adamw_rows, (triton.cdiv(len(ordered), places),), arguments)


def lookup_triton(
    users: Tensor,
    items: Tensor,
    user_gmf: Tensor | None,
    item_gmf: Tensor | None,
    user_mlp: Tensor | None,
    item_mlp: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    factors: int | None = None,
    summed: int = 0,
    gradients: int = DENSE,
) -> tuple[Tensor | None, Tensor | None]:
    """`ncf.kernels.lookup_reference`, fused; differentiable once, in the tables, the weight and the bias.

    Under autocast the operands of products are rounded to its type, and so is the hidden layer. ``gradients`` says how
    those of tables are given: ``DENSE``, ``SPARSE``, or, where each row is looked up once and in order, ``ROWS``.

    Example::

        >>> import torch
        >>> from ncf.kernels.triton_operators import lookup_triton
        >>> rows, nobody = torch.ones(5, 8), torch.empty(0, dtype=torch.int64)
        >>> lookup_triton(nobody, nobody, rows, rows, None, None, None, None)  # no pair: no GPU is needed
        (tensor([], size=(0, 8)), None)
    """
    table = item_gmf if item_mlp is None else item_mlp
    assert table is not None
    device = table.device.type
    autocast = torch.is_autocast_enabled(device)
    dot_dtype = torch.get_autocast_dtype(device) if autocast else table.dtype
    width = 0 if user_gmf is None else user_gmf.shape[1]
    product, hidden = lookup(
        users, items, user_gmf, item_gmf, user_mlp, item_mlp, weight, bias,
        width if factors is None else factors, summed, dot_dtype, gradients,
    )  # fmt: skip
    return None if user_gmf is None else product, None if weight is None else hidden
