"""Logits of new rows with all others of a model, and their derivatives by the rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ncf.kernels import ScoringTables

Parts = tuple[Tensor, ...]  # of one side: hidden, gmf and bias, [R, ...]; perhaps of no columns


def parts_of(tables: ScoringTables, side: str, rows: int) -> Parts:
    """A side's hidden, gmf and bias, ``[R, ...]``; of no columns, or zero, where the model has none."""
    hidden, gmf, bias = (getattr(tables, f"{side}_{part}") for part in ("hidden", "gmf", "bias"))
    nothing = tables.bias.new_zeros(rows, 0)
    return (
        nothing if hidden is None else hidden,
        nothing if gmf is None else gmf,
        tables.bias.new_zeros(rows, 1) if bias is None else bias[:, None],
    )


def logits_of(tables: ScoringTables, own: Parts, others: Parts) -> Tensor:
    """Logits of rows, ``[B, ...]``, with others that are the same for all, ``[S, ...]``, or not, ``[B, n, ...]``."""
    (hidden, gmf, bias), (other_hidden, other_gmf, other_bias) = own, others
    product = gmf @ other_gmf.T if other_gmf.dim() == 2 else (other_gmf @ gmf[:, :, None])[:, :, 0]
    logits = product + (tables.bias + bias + other_bias[..., 0])
    if not hidden.shape[1]:
        return logits
    assert tables.mlp_head is not None
    return logits + _tower(tables, hidden[:, None] + other_hidden)[-1] @ tables.mlp_head


class PreparedLogits:
    """Logits of new rows that are linear in them before the tower, as functions of z, the rows' place around a mean.

    Args:
        tables: the model.
        others: the parts of the other side, ``[N, ...]``.
        background: numbers of the sample that represents all others, ``[S]``.
        start: the own parts at z = 0, ``[1, ...]``.
        slopes: their derivatives by z, ``[r, ...]``.
    """

    def __init__(
        self, tables: ScoringTables, others: Parts, background: Tensor, start: Parts, slopes: Sequence[Tensor]
    ) -> None:
        self.tables, self.background = tables, background
        self.own_hidden, self.hidden_slopes = start[0], slopes[0]
        self.hidden = others[0]  # [N, H]
        # Not read where there is no tower.
        self.head = tables.bias if tables.mlp_head is None else tables.mlp_head
        # Without the tower's: at z = 0, [N], and the derivatives by z, [N, r].
        self.base = torch.addmv(tables.bias + start[2][0] + others[2][:, 0], others[1], start[1][0])
        self.flat = others[1] @ slopes[1].T + slopes[2][:, 0]
        self.outside = self.hidden[background], self.base[background], self.flat[background]

    @property
    def has_tower(self) -> bool:
        """The logits have a part that is not linear."""
        return self.hidden.shape[1] > 0

    @cached_property
    def packed(self) -> Tensor:
        """Products of two derivatives of the background, ``[S, r (r + 1) / 2]``: their sums are Hessians."""
        flat = self.outside[2]
        row, column = torch.tril_indices(flat.shape[1], flat.shape[1], device=flat.device, dtype=torch.int64)
        return flat[:, row] * flat[:, column]


class BlockLogits:
    """Logits of the background and of the histories of a block, as functions of its z; see `minimizers.Logits`."""

    def __init__(self, prepared: PreparedLogits, listed: Tensor) -> None:
        self.prepared = prepared
        # [B, n, ...] each
        self.inside = prepared.hidden[listed], prepared.base[listed], prepared.flat[listed]
        self.start = prepared.hidden_slopes.new_zeros(1, len(prepared.hidden_slopes))
        self.packed = None if prepared.has_tower else prepared.packed

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """See `minimizers.Logits`."""
        prepared = self.prepared
        (hidden, base, flat), (listed_hidden, listed_base, listed_flat) = prepared.outside, self.inside
        outside, inside = torch.addmm(base, z, flat.T), (listed_flat @ z[:, :, None])[:, :, 0] + listed_base
        if prepared.has_tower:
            outside = outside + self._inner(z, hidden)[-1] @ prepared.head
            inside = inside + self._inner(z, listed_hidden)[-1] @ prepared.head
        return outside, inside

    def slopes(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """See `minimizers.Logits`."""
        prepared = self.prepared
        if not prepared.has_tower:
            return prepared.outside[2], self.inside[2]
        head, by_z = prepared.head, prepared.hidden_slopes.T
        outside, inside = (
            (_slopes(prepared.tables, self._inner(z, hidden), head) @ by_z).add_(flat)
            for hidden, _, flat in (prepared.outside, self.inside)
        )
        return outside, inside

    def _inner(self, z: Tensor, hidden: Tensor) -> list[Tensor]:
        own = torch.addmm(self.prepared.own_hidden, z, self.prepared.hidden_slopes)  # [B, H]
        return _tower(self.prepared.tables, own[:, None] + hidden)


class OneHistoryLogits:
    """Logits of one history, and of the background before it with the other sign; see `minimizers.SignedLogits`."""

    def __init__(self, prepared: PreparedLogits, history: Tensor) -> None:
        self.prepared = prepared
        inside = prepared.hidden[history], prepared.base[history], prepared.flat[history]
        self.hidden, self.base, self.flat = map(torch.cat, zip(prepared.outside, inside, strict=True))
        self.signs = torch.ones_like(self.base)
        self.signs[len(prepared.background) :] = -1.0
        self.base *= self.signs
        self.flat *= self.signs[:, None]
        if prepared.has_tower:
            self.signed_head = self.signs[:, None] * prepared.head

    def __call__(self, z: Tensor) -> tuple[Tensor, Any]:
        """See `minimizers.SignedLogits`."""
        logits, prepared = torch.addmv(self.base, self.flat, z), self.prepared
        if not prepared.has_tower:
            return logits, None
        own = torch.addmv(prepared.own_hidden[0], prepared.hidden_slopes.T, z)  # [H]
        inner = _tower(prepared.tables, self.hidden + own)
        return torch.addcmul(logits, self.signs, torch.mv(inner[-1], prepared.head)), inner

    def slopes(self, inner: Any) -> Tensor:
        """See `minimizers.SignedLogits`."""
        if inner is None:
            return self.flat
        by_hidden = _slopes(self.prepared.tables, inner, self.signed_head)
        return torch.addmm(self.flat, by_hidden, self.prepared.hidden_slopes.T)


def _tower(tables: ScoringTables, first: Tensor) -> list[Tensor]:
    """The values of every layer above sums of both halves of the first, ``[..., H]``, which are overwritten."""
    inner = [first.relu_()]
    for weight, offset in tables.layers:
        inner.append(F.linear(inner[-1], weight, offset).relu_())
    return inner


def _slopes(tables: ScoringTables, inner: list[Tensor], head: Tensor) -> Tensor:
    """Derivatives of logits by the sums of both halves of the first layer, ``[..., H]``."""
    back = (inner[-1] > 0) * head
    for (weight, _), below in zip(reversed(tables.layers), reversed(inner[:-1]), strict=True):
        back = (back @ weight).mul_(below > 0)
    return back
