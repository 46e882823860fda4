from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ncf.kernels import ScoringTables, score_reference

NUM_USERS, NUM_ITEMS = 7, 8


def random_tables(
    *,
    hidden: tuple[int, ...] = (),
    factors: int = 0,
    biases: bool = False,
    dtype: torch.dtype = torch.float32,
    num_users: int = NUM_USERS,
    num_items: int = NUM_ITEMS,
    seed: int = 0,
    integers: bool = False,
) -> ScoringTables:
    """Tables with normal entries: ``hidden`` has a width per hidden layer, none without an MLP.

    With ``integers`` the entries are -1, 0 and 1: every sum is exact, in whatever order.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        if integers:
            return torch.randint(-1, 2, shape, generator=generator).to(dtype)
        return torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype)

    parts: dict[str, Any] = {"bias": normal(1)}
    if hidden:
        spread = [1 if integers else into**0.5 for into in hidden]
        parts |= {
            "user_hidden": normal(num_users, hidden[0]),
            "item_hidden": normal(num_items, hidden[0]),
            "layers": tuple(
                (normal(out, into) / scale, normal(out))
                for (into, out), scale in zip(pairwise(hidden), spread, strict=False)
            ),
            "mlp_head": normal(hidden[-1]),
        }
    if factors:
        parts |= {"user_gmf": normal(num_users, factors), "item_gmf": normal(num_items, factors)}
    if biases:
        parts |= {"user_bias": normal(num_users), "item_bias": normal(num_items)}
    return ScoringTables(**parts)


def random_pairs(
    tables: ScoringTables, users: int, candidates: int, *, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Users ``[U]``, and candidates ``[U, C]`` of which about one in nine is padding."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(tables.num_users or NUM_USERS, (users,), generator=generator),
        torch.randint(-1, tables.num_items or NUM_ITEMS, (users, candidates), generator=generator),
    )


def rounding_bound(tables: ScoringTables, users: Tensor, candidates: Tensor, epsilon: float) -> Tensor:
    """How far scores may be from exact ones if operands are rounded with that relative error, ``[U, C]``.

    Running the network on absolute values bounds each layer's magnitude; a rounding at each of its layers
    adds at most epsilon of it. Twice that leaves room for the sums themselves.
    """
    absolute = tables.to(torch.float64)
    absolute = replace(
        absolute,
        **{
            name: value.abs()
            for name in (
                *("user_hidden", "item_hidden", "mlp_head", "user_gmf", "item_gmf"),
                *("user_bias", "item_bias", "bias"),
            )
            if (value := getattr(absolute, name)) is not None
        },
        layers=tuple((weight.abs(), bias.abs()) for weight, bias in absolute.layers),
    )
    magnitude = score_reference(absolute, users, candidates.clamp(min=0))
    return 2 * (len(tables.layers) + 1) * epsilon * magnitude


def amid_nans(tensor: Tensor) -> Tensor:
    """The same values with NaN before and after them in memory: a read beyond an end shows in any sum."""
    margin = 64
    buffer = tensor.new_full((tensor.numel() + 2 * margin,), torch.nan)
    amid = buffer[margin : margin + tensor.numel()].view(tensor.shape)
    amid.copy_(tensor)
    return amid
