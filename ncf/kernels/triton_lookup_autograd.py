"""The fused lookup as a differentiable function: launches of `ncf.kernels.triton_lookup`, forward and backward.

Row gradients leave the backward kernel one per pair, and are added up per id by PyTorch's own embedding
backward, in an order that does not change from run to run.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from ncf.kernels.triton_launch import Launch, dot_precision, dot_types, padded, resident_programs
from ncf.kernels.triton_lookup import _backward_rows, _backward_weight, _forward

_PAIRS = 64  # in a tile
_TILE = 64  # widest tile of the hidden layer, or of a table's columns


class Lookup:
    """The launches of one batch's lookup, forward and backward.

    Args:
        users: ``[B]``, int64.
        items: ``[B]`` or ``[B, C]``, int64.
        tables: user_gmf, item_gmf, user_mlp, item_mlp; a pair may be ``None``.
        weight: ``[H, 2 D]``, or ``None`` without an MLP.
        bias: ``[H]``, or ``None``.
        dot_dtype: to which the operands of products are rounded.

    Example::

        >>> import torch
        >>> from ncf.kernels.triton_lookup_autograd import Lookup
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
    ) -> None:
        user_gmf, _, user_mlp, _ = tables
        self.num_pairs = items.numel()
        self.factors = 0 if user_gmf is None else user_gmf.shape[1]
        self.dim = 0 if user_mlp is None else user_mlp.shape[1]
        self.hidden = 0 if weight is None else len(weight)
        self.device = users.device
        self._bias = None if bias is None else bias.contiguous()
        self._weight = None if weight is None else weight.contiguous()
        rows = [t if t is None or t.stride(1) == 1 else t.contiguous() for t in tables]
        self._common: dict[str, Any] = {
            "users": users.contiguous(),
            "items": items.contiguous(),
            "num_pairs": self.num_pairs,
            "items_per_user": items.shape[1] if items.dim() == 2 else 1,
            "tables": tuple(rows),
            "strides": tuple(0 if t is None else t.stride(0) for t in rows),
            "DIM": self.dim,
            "HIDDEN": self.hidden,
            "PRECISION": dot_precision(),
            **dot_types(dot_dtype),
            "num_stages": 2,
        }
        self._by_pair = self._common | {
            "weight": self._weight,
            "FACTORS": self.factors,
            "FACTOR_TILE": min(_TILE, padded(self.factors, 1)),
            "PAIRS": _PAIRS,
        }
        self._chunk = max(16, 64 // dot_dtype.itemsize)

    def forward(self, product: Tensor | None, hidden: Tensor | None) -> Launch:
        """Fill ``product [B C, F]`` and ``hidden [B C, H]``."""
        tile = min(_TILE, padded(self.hidden))
        grid = (triton.cdiv(self.num_pairs, _PAIRS), max(1, triton.cdiv(self.hidden, tile)))
        own = {"product": product, "hidden": hidden, "bias": self._bias}
        return Launch(_forward, grid, self._by_pair | self._tiling(tile) | own)

    def backward_rows(
        self,
        gradients: tuple[Tensor | None, ...],
        product_gradient: Tensor | None,
        hidden_gradient: Tensor | None,
        hidden: Tensor | None,
    ) -> Launch:
        """Fill the gradient of each pair's rows, in the order of the tables, ``[B C, F]`` or ``[B C, D]``."""
        tile = min(_TILE, padded(self.dim))
        grid = (triton.cdiv(self.num_pairs, _PAIRS), max(1, triton.cdiv(self.dim, tile)))
        own = {
            "gradients": gradients,
            "product_gradient": product_gradient,
            "hidden_gradient": hidden_gradient,
            "hidden": hidden,
        }
        return Launch(_backward_rows, grid, self._by_pair | self._tiling(tile) | own)

    def backward_weight(self, hidden_gradient: Tensor, hidden: Tensor) -> tuple[Launch, Tensor, Tensor]:
        """The launch, and what it fills: parts of the gradients, ``[parts, H, 2 D]`` and ``[parts, H]``."""
        tile = min(_TILE, max(padded(self.hidden), padded(self.dim)))
        tiles = triton.cdiv(self.hidden, tile), triton.cdiv(self.dim, tile)
        # As many parts as fill the device; the parts are then added up in a fixed order.
        chunks = triton.cdiv(self.num_pairs, self._chunk)
        parts = max(1, resident_programs(self.device, chunks) // (tiles[0] * tiles[1]))
        weights = torch.empty(parts, self.hidden, 2 * self.dim, dtype=torch.float32, device=self.device)
        biases = torch.empty(parts, self.hidden, dtype=torch.float32, device=self.device)
        own = {
            "weight_gradient": weights,
            "bias_gradient": biases,
            "hidden_gradient": hidden_gradient,
            "hidden": hidden,
            "pairs_per_part": triton.cdiv(chunks, parts) * self._chunk,
        }
        return (
            Launch(_backward_weight, (*tiles, parts), self._common | self._tiling(tile) | own),
            weights,
            biases,
        )

    def _tiling(self, tile: int) -> dict[str, int]:
        # With the widest tile, four warps would have to spill: docs/kernels.md has the figures.
        return {"TILE": tile, "CHUNK": self._chunk, "num_warps": 4 if tile < _TILE else 8}


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        users: Tensor,
        items: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        *tables: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        dot_dtype = _dot_dtype(next(t for t in tables if t is not None))
        lookup = Lookup(users, items, tables, weight, bias, dot_dtype)
        product = hidden = None
        user_gmf = tables[0]
        if user_gmf is not None:
            product = user_gmf.new_empty(lookup.num_pairs, lookup.factors)
        if weight is not None:
            hidden = weight.new_empty(lookup.num_pairs, lookup.hidden, dtype=dot_dtype)
        lookup.forward(product, hidden).run()
        ctx.save_for_backward(users, items, weight, bias, hidden, *tables)
        ctx.dot_dtype = dot_dtype
        return (
            None if product is None else product.view(*items.shape, lookup.factors),
            None if hidden is None else hidden.view(*items.shape, lookup.hidden),
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, product_gradient: Tensor | None, hidden_gradient: Tensor | None) -> Any:
        users, items, weight, bias, hidden, *tables = ctx.saved_tensors
        lookup = Lookup(users, items, tuple(tables), weight, bias, ctx.dot_dtype)
        if product_gradient is not None:
            product_gradient = product_gradient.contiguous()
        if hidden_gradient is not None:
            hidden_gradient = hidden_gradient.contiguous()
        rows = tuple(None if t is None else t.new_empty(lookup.num_pairs, t.shape[1]) for t in tables)
        lookup.backward_rows(rows, product_gradient, hidden_gradient, hidden).run()
        weight_gradient = bias_gradient = None
        if weight is not None and bias is not None and hidden_gradient is not None:
            launch, weights, biases = lookup.backward_weight(hidden_gradient, hidden)
            launch.run()
            weight_gradient, bias_gradient = weights.sum(0).to(weight.dtype), biases.sum(0).to(bias.dtype)
        gradients = [
            None if table is None or of_row is None else _sum_by_id(of_row, ids, items, table)
            for table, of_row, ids in zip(tables, rows, (users, items, users, items), strict=True)
        ]
        return None, None, weight_gradient, bias_gradient, *gradients


def _sum_by_id(of_rows: Tensor, ids: Tensor, items: Tensor, table: Tensor) -> Tensor:
    """Gradient of a table from those of each pair's row; a user's pairs are added up first."""
    if ids.dim() < items.dim():
        of_rows = of_rows.view(*items.shape, of_rows.shape[1]).sum(1)  # [B, D]
    gradient: Tensor = torch.ops.aten.embedding_dense_backward(of_rows, ids.flatten(), len(table), -1, False)
    return gradient


def _dot_dtype(table: Tensor) -> torch.dtype:
    """The type of products: autocast's, where it is on; else that of the tables."""
    device = table.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else table.dtype


def lookup_triton(
    users: Tensor,
    items: Tensor,
    user_gmf: Tensor | None,
    item_gmf: Tensor | None,
    user_mlp: Tensor | None,
    item_mlp: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """`ncf.kernels.lookup_reference`, fused; differentiable once, in the tables, the weight and the bias.

    Under autocast the operands of products are rounded to its type, and so is the hidden layer.

    Example::

        >>> import torch
        >>> from ncf.kernels.triton_lookup_autograd import lookup_triton
        >>> rows, nobody = torch.ones(5, 8), torch.empty(0, dtype=torch.int64)
        >>> lookup_triton(nobody, nobody, rows, rows, None, None, None, None)  # no pair: no GPU is needed
        (tensor([], size=(0, 8)), None)
    """
    outputs: tuple[Tensor | None, Tensor | None] = _Lookup.apply(  # type: ignore[no-untyped-call]
        users, items, weight, bias, user_gmf, item_gmf, user_mlp, item_mlp
    )
    return outputs
