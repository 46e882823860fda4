# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The scoring kernels: from ids to scores, with nothing between them written to memory.

A tile is a block of (user, candidate) pairs. Its rows are gathered, added and rectified in registers, taken
through the later layers as products on tensor cores, and leave as one number a pair. Two kernels share that
arithmetic: one for a list of candidates per user, whose pairs are numbered through so that a tile is never
partly empty; one for a list common to all users, whose items are looked up once for several users.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ncf.kernels.scoring_tables import ScoringTables
from ncf.kernels.triton_launch import Launch, dot_precision, dot_types, padded, resident_programs

USERS = 16  # in a program of the kernel for a common list


@triton.jit
def _rows(table, ids, stride, first, valid, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """Columns ``first`` to ``first + CHUNK`` of rows, fp32 ``[len(ids), CHUNK]``; zero beyond the width."""
    columns = first + tl.arange(0, CHUNK)
    inside = valid[:, None] & (columns < WIDTH)[None, :]
    return tl.load(table + ids[:, None] * stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _vector(vector, first, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """Part of a vector, fp32 ``[CHUNK]``; zero beyond the width."""
    columns = first + tl.arange(0, CHUNK)
    return tl.load(vector + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)


@triton.jit
def _biases(bias, WIDTH: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr):
    """A bias for each pair, fp32 ``[BLOCK, PADDED]``; zero beyond the width."""
    return tl.zeros([BLOCK, PADDED], tl.float32) + _vector(bias, 0, WIDTH, PADDED)[None, :]


@triton.jit
def _layer(
    hidden, weight, total, first, IN: tl.constexpr, OUT: tl.constexpr,
    ROUND: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add to ``total [BLOCK, OUT]`` the product of ``hidden [BLOCK, K]`` and K columns of the weight."""
    k = first + tl.arange(0, hidden.shape[1])
    n = tl.arange(0, total.shape[1])
    inside = (k < IN)[:, None] & (n < OUT)[None, :]
    transposed = tl.load(weight + n[None, :] * IN + k[:, None], mask=inside, other=0.0)  # [K, OUT]
    return tl.dot(hidden.to(ROUND).to(DOT), transposed.to(ROUND).to(DOT), total, input_precision=PRECISION)


@triton.jit
def _mlp(
    users, items, user_valid, item_valid, user_hidden, item_hidden, user_stride, item_stride, layers, head,
    WIDTHS: tl.constexpr, PADDED: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    ROUND: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The MLP's part of a tile's scores, ``[BLOCK]``."""
    LAST: tl.constexpr = len(WIDTHS) - 1
    score = tl.zeros([BLOCK], tl.float32)
    if LAST > 0:
        hidden = _biases(layers[0][1], WIDTHS[1], PADDED[1], BLOCK)
    # The first hidden layer exists a chunk at a time: its width is bound by no memory.
    for first in range(0, WIDTHS[0], CHUNK):
        chunk = _rows(item_hidden, items, item_stride, first, item_valid, WIDTHS[0], CHUNK)
        chunk += _rows(user_hidden, users, user_stride, first, user_valid, WIDTHS[0], CHUNK)
        chunk = tl.maximum(chunk, 0.0, propagate_nan=tl.PropagateNan.ALL)  # [BLOCK, CHUNK]
        if LAST > 0:
            hidden = _layer(chunk, layers[0][0], hidden, first, WIDTHS[0], WIDTHS[1], ROUND, DOT, PRECISION)
        else:
            score += tl.sum(chunk * _vector(head, first, WIDTHS[0], CHUNK)[None, :], 1)
    if LAST > 0:
        for layer in tl.static_range(2, LAST + 1):
            hidden = tl.maximum(hidden, 0.0, propagate_nan=tl.PropagateNan.ALL)  # [BLOCK, PADDED[layer - 1]]
            total = _biases(layers[layer - 1][1], WIDTHS[layer], PADDED[layer], BLOCK)
            weight = layers[layer - 1][0]
            hidden = _layer(hidden, weight, total, 0, WIDTHS[layer - 1], WIDTHS[layer], ROUND, DOT, PRECISION)
        hidden = tl.maximum(hidden, 0.0, propagate_nan=tl.PropagateNan.ALL)  # [BLOCK, PADDED[LAST]]
        score += tl.sum(hidden * _vector(head, 0, WIDTHS[LAST], PADDED[LAST])[None, :], 1)
    return score


@triton.jit
def _scores(
    users, items, user_valid, item_valid, tables, strides, layers, head, bias,
    WIDTHS: tl.constexpr, PADDED: tl.constexpr, CHUNK: tl.constexpr,
    FACTORS: tl.constexpr, FACTOR_CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    ROUND: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Scores of a tile, ``[BLOCK]``; ``users`` is ``[BLOCK]`` or ``[1]``, ``items`` is ``[BLOCK]``."""
    user_hidden, item_hidden, user_gmf, item_gmf, user_bias, item_bias = tables
    score = tl.zeros([BLOCK], tl.float32) + tl.load(bias).to(tl.float32)
    if user_bias is not None:
        score += tl.load(user_bias + users * strides[4], mask=user_valid, other=0.0).to(tl.float32)
    if item_bias is not None:
        score += tl.load(item_bias + items * strides[5], mask=item_valid, other=0.0).to(tl.float32)
    for first in tl.static_range(0, FACTORS, FACTOR_CHUNK):
        product = _rows(item_gmf, items, strides[3], first, item_valid, FACTORS, FACTOR_CHUNK)
        product *= _rows(user_gmf, users, strides[2], first, user_valid, FACTORS, FACTOR_CHUNK)
        score += tl.sum(product, 1)
    if len(WIDTHS) > 0:
        score += _mlp(
            users, items, user_valid, item_valid, user_hidden, item_hidden, strides[0], strides[1], layers, head,
            WIDTHS, PADDED, CHUNK, BLOCK, ROUND, DOT, PRECISION,
        )  # fmt: skip
    return tl.where(item_valid, score, float("-inf"))


@triton.jit
def _score_lists(
    scores, users, candidates, num_pairs, num_candidates, num_tiles, tables, strides, layers, head, bias,
    WIDTHS: tl.constexpr, PADDED: tl.constexpr, CHUNK: tl.constexpr,
    FACTORS: tl.constexpr, FACTOR_CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    ROUND: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Scores ``[U, C]`` of a list of candidates per user, ``[U, C]``; both contiguous."""
    for tile in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        # One 64-bit division a tile; within it 32 bits are enough.
        start = tl.cast(tile, tl.int64) * BLOCK
        first_user = start // num_candidates
        offset = (start - first_user * num_candidates).to(tl.int32) + tl.arange(0, BLOCK)
        pairs = start + tl.arange(0, BLOCK)
        inside = pairs < num_pairs
        items = tl.load(candidates + pairs, mask=inside, other=-1)
        owners = tl.load(users + first_user + offset // num_candidates, mask=inside, other=0)
        score = _scores(
            owners, items, inside, items >= 0, tables, strides, layers, head, bias,
            WIDTHS, PADDED, CHUNK, FACTORS, FACTOR_CHUNK, BLOCK, ROUND, DOT, PRECISION,
        )  # fmt: skip
        tl.store(scores + pairs, score, mask=inside)


@triton.jit
def _score_common(
    scores, users, candidates, num_users, num_candidates, tables, strides, layers, head, bias,
    WIDTHS: tl.constexpr, PADDED: tl.constexpr, CHUNK: tl.constexpr,
    FACTORS: tl.constexpr, FACTOR_CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    ROUND: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, USERS: tl.constexpr,
):  # fmt: skip
    """Scores ``[U, C]`` of one list of candidates, ``[C]``, for every user."""
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < num_candidates
    items = tl.load(candidates + columns, mask=inside, other=-1)
    first = tl.program_id(1) * USERS
    for row in range(first, tl.minimum(first + USERS, num_users)):
        owner = tl.load(users + row + tl.arange(0, 1))  # [1]
        score = _scores(
            owner, items, owner >= 0, items >= 0, tables, strides, layers, head, bias,
            WIDTHS, PADDED, CHUNK, FACTORS, FACTOR_CHUNK, BLOCK, ROUND, DOT, PRECISION,
        )  # fmt: skip
        tl.store(scores + tl.cast(row, tl.int64) * num_candidates + columns, score, mask=inside)


def fits(tables: ScoringTables) -> bool:
    """Return whether the kernels take these tables; with wider layers they would spill registers by the kilobyte.

    The first hidden layer may have any width. Of the later ones a block is held in registers: their width is
    at most 512 bytes, which is 128 in fp32 and 256 in half precision.

    Example::

        >>> import torch
        >>> from ncf import MLP
        >>> from ncf.kernels.triton_scoring import fits
        >>> tables = MLP(num_users=2, num_items=3, layers=(512, 256, 129)).scoring_tables()
        >>> fits(tables), fits(tables.to(torch.bfloat16))
        (False, True)
    """
    supported = tables.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return supported and _widest(tables) * tables.dtype.itemsize <= 512


def _widest(tables: ScoringTables) -> int:
    return max((padded(len(bias)) for _, bias in tables.layers), default=0)


def network_arguments(tables: ScoringTables) -> dict[str, Any]:
    """The arguments of a kernel that say how a pair is scored, and in how large a tile.

    Example::

        >>> from ncf import MLP
        >>> from ncf.kernels.triton_scoring import network_arguments
        >>> arguments = network_arguments(MLP(num_users=2, num_items=3, layers=(64, 32, 16)).scoring_tables())
        >>> arguments["WIDTHS"], arguments["BLOCK"], arguments["num_warps"]
        ((32, 16), 128, 4)
    """
    size = tables.dtype.itemsize
    item_hidden, item_gmf = tables.item_hidden, tables.item_gmf
    widths = () if item_hidden is None else (item_hidden.shape[1], *(len(bias) for _, bias in tables.layers))
    factors = 0 if item_gmf is None else item_gmf.shape[1]
    rows = [
        t if t is None or t.stride(1) == 1 else t.contiguous()
        for t in (tables.user_hidden, item_hidden, tables.user_gmf, item_gmf)
    ]
    biases = (tables.user_bias, tables.item_bias)
    # With four warps an H100 ranked 1.4 to 1.6 times as many users as with eight. Beyond 256 bytes of hidden layer a
    # pair, larger blocks spill: docs/kernels.md has the figures.
    block, warps = (128, 4) if _widest(tables) * size <= 256 else (32, 4)
    return {
        "tables": (*rows, *biases),
        "strides": tuple(0 if t is None else t.stride(0) for t in (*rows, *biases)),
        "layers": tuple((weight.contiguous(), bias.contiguous()) for weight, bias in tables.layers),
        "head": None if tables.mlp_head is None else tables.mlp_head.contiguous(),
        "bias": tables.bias,
        "WIDTHS": widths,
        "PADDED": tuple(padded(width) for width in widths),
        "CHUNK": max(16, 64 // size),  # 64 bytes of a row: two whole sectors
        "FACTORS": factors,
        "FACTOR_CHUNK": min(128, padded(factors, 1)),
        "BLOCK": block,
        "PRECISION": dot_precision(),
        **dot_types(tables.dtype),
        "num_warps": warps,
        "num_stages": 2,
    }


def scoring_launch(tables: ScoringTables, users: Tensor, candidates: Tensor, scores: Tensor) -> Launch:
    """Return the launch that computes the scores, ready to run or to compile.

    Args:
        tables: the model's parameters laid out for ranking, for which `fits` holds.
        users: ``[U]``, int64.
        candidates: items, ``[U, C]``, or ``[C]`` for one list for all users, int64; a negative one is padding.
        scores: ``[U, C]``, fp32, contiguous, to be filled.

    Returns:
        The launch.

    Example::

        >>> import torch
        >>> from ncf.kernels import ScoringTables
        >>> from ncf.kernels.triton_scoring import scoring_launch
        >>> tables = ScoringTables(item_bias=torch.ones(1000), bias=torch.zeros(1))
        >>> users, candidates = torch.arange(3), torch.zeros(3, 100, dtype=torch.int64)
        >>> launch = scoring_launch(tables, users, candidates, torch.empty(3, 100))
        >>> launch.arguments["num_pairs"], launch.arguments["BLOCK"], launch.grid
        (300, 128, (3,))
    """
    num_users, num_candidates = scores.shape
    arguments = network_arguments(tables) | {
        "scores": scores,
        "users": users.contiguous(),
        "num_candidates": num_candidates,
    }
    block = arguments["BLOCK"]
    if candidates.dim() == 1:
        arguments |= {"candidates": candidates.contiguous(), "num_users": num_users, "USERS": USERS}
        # Items on the first axis, which alone may be longer than 65,535 programs.
        grid = (triton.cdiv(num_candidates, block), triton.cdiv(num_users, USERS))
        return Launch(_score_common, grid, arguments)
    num_pairs = num_users * num_candidates
    num_tiles = triton.cdiv(num_pairs, block)
    arguments |= {"candidates": candidates.contiguous(), "num_pairs": num_pairs, "num_tiles": num_tiles}
    return Launch(_score_lists, (resident_programs(tables.device, num_tiles),), arguments)


def score_triton(tables: ScoringTables, users: Tensor, candidates: Tensor) -> Tensor:
    """`ncf.kernels.score_reference`, fused.

    Args:
        tables: the model's parameters laid out for ranking, for which `fits` holds.
        users: ``[U]``, int64; ids are not checked.
        candidates: items, ``[U, C]``, or ``[C]`` for one list for all users, int64; a negative one is padding.

    Returns:
        Scores, ``[U, C]``, fp32; padding has ``-inf``. Half-precision tables are multiplied as they are, with
        the hidden layers rounded to the same type, and summed in fp32.

    Example::

        >>> import torch
        >>> from ncf.kernels import ScoringTables
        >>> from ncf.kernels.triton_scoring import score_triton
        >>> tables = ScoringTables(item_bias=torch.ones(3), bias=torch.zeros(1))
        >>> users, candidates = torch.tensor([0, 1]), torch.empty(2, 0, dtype=torch.int64)
        >>> score_triton(tables, users, candidates)  # no pair: no GPU is needed
        tensor([], size=(2, 0))
    """
    scores = torch.empty(len(users), candidates.shape[-1], dtype=torch.float32, device=tables.device)
    if scores.numel():
        scoring_launch(tables, users, candidates, scores).run()
    return scores
