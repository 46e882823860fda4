# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Kernels of a training step: the lookup with the GMF product and the MLP's first layer, and the update of rows.

The gathered rows never exist in memory: the forward reads them from the tables and writes the product and the
hidden layer; the backward reads them again. `ncf.kernels.triton_operators` launches these kernels.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _block(matrix, rows, columns, stride, valid, WIDTH: tl.constexpr):
    """Elements (row, column) of a matrix, ``[len(rows), len(columns)]``; zero beyond its width."""
    inside = valid[:, None] & (columns < WIDTH)[None, :]
    return tl.load(matrix + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _put(matrix, rows, columns, valid, values, WIDTH: tl.constexpr):
    """Write elements (row, column) of a contiguous matrix of that width."""
    inside = valid[:, None] & (columns < WIDTH)[None, :]
    tl.store(matrix + rows[:, None] * WIDTH + columns[None, :], values, mask=inside)


@triton.jit
def _product(left, right, total, ROUND: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr):
    return tl.dot(left.to(ROUND).to(DOT), right.to(ROUND).to(DOT), total, input_precision=PRECISION)


@triton.jit
def _ids(users, items, pairs, valid, items_per_user, num_users, num_items):
    """Ids of the user and of the item of each pair, and which pairs have rows for both."""
    user = tl.load(users + pairs // items_per_user, mask=valid, other=0)
    item = tl.load(items + pairs, mask=valid, other=0)
    return user, item, valid & (user >= 0) & (user < num_users) & (item >= 0) & (item < num_items)


@triton.jit(do_not_specialize=["num_users", "num_items"])
def _forward(
    product, hidden, users, items, num_pairs, items_per_user, num_users, num_items,
    user_gmf, item_gmf, user_mlp, item_mlp, user_gmf_stride, item_gmf_stride, user_mlp_stride, item_mlp_stride,
    weight, bias,
    FACTORS: tl.constexpr, SUMMED: tl.constexpr, DIM: tl.constexpr, HIDDEN: tl.constexpr, FACTOR_TILE: tl.constexpr,
    PAIRS: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    ROUND: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of pairs, and of columns of the hidden layer; the first column of tiles makes the product.

    NaN where an id is unknown: nothing waits for the device, and no memory of another tensor is read.
    """
    pairs = tl.cast(tl.program_id(0), tl.int64) * PAIRS + tl.arange(0, PAIRS)
    valid = pairs < num_pairs
    user, item, known = _ids(users, items, pairs, valid, items_per_user, num_users, num_items)
    if HIDDEN > 0:
        units = tl.program_id(1) * TILE + tl.arange(0, TILE)
        total = tl.zeros([PAIRS, TILE], tl.float32)
        total += tl.load(bias + units, mask=units < HIDDEN, other=0.0).to(tl.float32)[None, :]
        for first in range(0, DIM, CHUNK):
            k = first + tl.arange(0, CHUNK)
            inside = (k < DIM)[:, None] & (units < HIDDEN)[None, :]
            of_user = weight + units[None, :] * (2 * DIM) + k[:, None]  # the weight is [HIDDEN, 2 DIM]
            rows = _block(user_mlp, user, k, user_mlp_stride, known, DIM)
            total = _product(rows, tl.load(of_user, mask=inside, other=0.0), total, ROUND, DOT, PRECISION)
            rows = _block(item_mlp, item, k, item_mlp_stride, known, DIM)
            total = _product(
                rows, tl.load(of_user + DIM, mask=inside, other=0.0), total, ROUND, DOT, PRECISION
            )
        total = tl.maximum(total, 0.0, propagate_nan=tl.PropagateNan.ALL)
        _put(hidden, pairs, units, valid, tl.where(known[:, None], total, float("nan")), HIDDEN)
    if tl.program_id(1) == 0:
        for factor in tl.static_range(0, FACTORS, FACTOR_TILE):
            columns = factor + tl.arange(0, FACTOR_TILE)
            of_user = _block(user_gmf, user, columns, user_gmf_stride, known, FACTORS).to(tl.float32)
            of_item = _block(item_gmf, item, columns, item_gmf_stride, known, FACTORS).to(tl.float32)
            values = of_user * of_item
            if SUMMED > 0:
                values = tl.where((columns >= FACTORS - SUMMED)[None, :], of_user + of_item, values)
            _put(product, pairs, columns, valid, tl.where(known[:, None], values, float("nan")), FACTORS)


@triton.jit(do_not_specialize=["num_users", "num_items"])
def _backward_rows(
    of_user_gmf, of_item_gmf, of_user_mlp, of_item_mlp, product_gradient, hidden_gradient, hidden,
    users, items, num_pairs, items_per_user, num_users, num_items,
    user_gmf, item_gmf, user_gmf_stride, item_gmf_stride, weight,
    FACTORS: tl.constexpr, SUMMED: tl.constexpr, COLUMNS: tl.constexpr,
    DIM: tl.constexpr, HIDDEN: tl.constexpr, FACTOR_TILE: tl.constexpr,
    PAIRS: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    ROUND: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of the rows of one tile of pairs, and of columns of the MLP's tables."""
    pairs = tl.cast(tl.program_id(0), tl.int64) * PAIRS + tl.arange(0, PAIRS)
    valid = pairs < num_pairs
    if HIDDEN > 0:
        columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
        of_user = tl.zeros([PAIRS, TILE], tl.float32)
        of_item = tl.zeros([PAIRS, TILE], tl.float32)
        for first in range(0, HIDDEN, CHUNK):
            k = first + tl.arange(0, CHUNK)
            active = _block(hidden, pairs, k, HIDDEN, valid, HIDDEN).to(tl.float32) > 0
            gradient = _block(hidden_gradient, pairs, k, HIDDEN, valid, HIDDEN).to(tl.float32)
            gradient = tl.where(active, gradient, 0.0)
            inside = k < HIDDEN
            halves = _block(weight, k, columns, 2 * DIM, inside, DIM)
            of_user = _product(gradient, halves, of_user, ROUND, DOT, PRECISION)
            halves = _block(weight + DIM, k, columns, 2 * DIM, inside, DIM)
            of_item = _product(gradient, halves, of_item, ROUND, DOT, PRECISION)
        _put(of_user_mlp, pairs, columns, valid, of_user, DIM)
        _put(of_item_mlp, pairs, columns, valid, of_item, DIM)
    if tl.program_id(1) == 0:
        user, item, known = _ids(users, items, pairs, valid, items_per_user, num_users, num_items)
        for factor in tl.static_range(0, COLUMNS, FACTOR_TILE):
            factors = factor + tl.arange(0, FACTOR_TILE)
            of_product = _block(product_gradient, pairs, factors, FACTORS, valid, FACTORS).to(tl.float32)
            summed = (factors >= FACTORS - SUMMED)[None, :]  # beyond the factors the gradient is zero
            rows = _block(item_gmf, item, factors, item_gmf_stride, known, FACTORS).to(tl.float32)
            _put(of_user_gmf, pairs, factors, valid, of_product * tl.where(summed, 1.0, rows), COLUMNS)
            rows = _block(user_gmf, user, factors, user_gmf_stride, known, FACTORS).to(tl.float32)
            _put(of_item_gmf, pairs, factors, valid, of_product * tl.where(summed, 1.0, rows), COLUMNS)


@triton.jit(do_not_specialize=["num_users", "num_items"])
def _backward_weight(
    weight_gradient, bias_gradient, hidden_gradient, hidden,
    users, items, num_pairs, items_per_user, num_users, num_items,
    user_mlp, item_mlp, user_mlp_stride, item_mlp_stride, pairs_per_part,
    DIM: tl.constexpr, HIDDEN: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    ROUND: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add up one part of the pairs for one tile of the weight's gradient, ``[parts, HIDDEN, 2 DIM]``."""
    part = tl.cast(tl.program_id(2), tl.int64)
    units = tl.program_id(0) * TILE + tl.arange(0, TILE)
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    of_user = tl.zeros([TILE, TILE], tl.float32)
    of_item = tl.zeros([TILE, TILE], tl.float32)
    of_bias = tl.zeros([TILE], tl.float32)
    for first in range(0, pairs_per_part, CHUNK):
        pairs = part * pairs_per_part + first + tl.arange(0, CHUNK)
        valid = pairs < num_pairs
        user, item, known = _ids(users, items, pairs, valid, items_per_user, num_users, num_items)
        inside = (units < HIDDEN)[:, None] & valid[None, :]
        at = pairs[None, :] * HIDDEN + units[:, None]  # transposed, [TILE, CHUNK]
        active = tl.load(hidden + at, mask=inside, other=0.0).to(tl.float32) > 0
        gradient = tl.load(hidden_gradient + at, mask=inside, other=0.0).to(tl.float32)
        gradient = tl.where(active, gradient, 0.0)
        rows = _block(user_mlp, user, columns, user_mlp_stride, known, DIM)
        of_user = _product(gradient, rows, of_user, ROUND, DOT, PRECISION)
        rows = _block(item_mlp, item, columns, item_mlp_stride, known, DIM)
        of_item = _product(gradient, rows, of_item, ROUND, DOT, PRECISION)
        of_bias += tl.sum(gradient, 1)
    inside = units < HIDDEN
    start = weight_gradient + part * HIDDEN * (2 * DIM)
    at = start + units[:, None] * (2 * DIM) + columns[None, :]
    tl.store(at, of_user, mask=inside[:, None] & (columns < DIM)[None, :])
    tl.store(at + DIM, of_item, mask=inside[:, None] & (columns < DIM)[None, :])
    if tl.program_id(1) == 0:
        tl.store(bias_gradient + part * HIDDEN + units, of_bias, mask=inside)


@triton.jit
def _adamw_rows(
    table, mean, square, gradients, ids, order, scales, num_ids, num_rows, stride,
    new_of_mean, beta2, new_of_square, eps, rate, decay,
    DIM: tl.constexpr, COLUMNS: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """Update the rows whose ids begin at some places of the sorted ids."""
    places = tl.cast(tl.program_id(0), tl.int64) * PLACES + tl.arange(0, PLACES)
    row = tl.load(ids + places, mask=places < num_ids, other=-1)
    before = tl.load(ids + places - 1, mask=(places > 0) & (places < num_ids), other=-1)
    begins = (row != before) & (row >= 0) & (row < num_rows)
    columns = tl.arange(0, COLUMNS)
    gradient = tl.zeros([PLACES, COLUMNS], tl.float32)
    adds = begins
    while tl.max(adds.to(tl.int32), 0) > 0:
        pair = tl.load(order + places, mask=adds, other=0)
        gradient += _block(gradients, pair, columns, DIM, adds, DIM).to(tl.float32)
        places += 1
        adds = adds & (tl.load(ids + places, mask=adds & (places < num_ids), other=-1) == row)
    at = row.to(tl.int64)[:, None] * stride + columns[None, :]
    inside = begins[:, None] & (columns < DIM)[None, :]
    old_mean = tl.load(mean + at, mask=inside, other=0.0)
    new_mean = old_mean + new_of_mean * (gradient - old_mean)
    new_square = tl.load(square + at, mask=inside, other=0.0) * beta2 + new_of_square * gradient * gradient
    tl.store(mean + at, new_mean, mask=inside)
    tl.store(square + at, new_square, mask=inside)
    share = rate * tl.load(scales)
    root = tl.sqrt(new_square) * tl.load(scales + 2) + eps
    new_mean = new_mean * tl.load(scales + 1)
    old = tl.load(table + at, mask=inside, other=0.0)
    tl.store(table + at, old - share * decay * old - share * (new_mean / root), mask=inside)
