# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Row-sparse AdamW of a table, fused with the sum of its rows' gradients.

Ids are sorted, and the program at the first place of an id adds up the gradients of that id, in the order of the
batch, and updates its row. No two programs write the same row, so that a step repeats to the bit; nothing waits for
the device.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ncf.kernels.triton_launch import Launch, padded


@triton.jit
def _adamw_rows(
    table, mean, square, gradients, ids, order, num_ids, stride,
    new_of_mean, beta2, new_of_square, scale_of_mean, scale_of_root, eps, rate, decay,
    DIM: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Update the row whose id begins at one place of the sorted ids."""
    place = tl.cast(tl.program_id(0), tl.int64)
    row = tl.load(ids + place)
    if row != tl.load(ids + place - 1, mask=place > 0, other=-1):
        columns = tl.arange(0, COLUMNS)
        inside = columns < DIM
        gradient = tl.zeros([COLUMNS], tl.float32)
        current = row
        while current == row:
            pair = tl.load(order + place)
            gradient += tl.load(gradients + pair * DIM + columns, mask=inside, other=0.0).to(tl.float32)
            place += 1
            current = tl.load(ids + place, mask=place < num_ids, other=-1)
        at = row * stride + columns
        old_mean = tl.load(mean + at, mask=inside, other=0.0)
        new_mean = old_mean + new_of_mean * (gradient - old_mean)
        new_square = (
            tl.load(square + at, mask=inside, other=0.0) * beta2 + new_of_square * gradient * gradient
        )
        tl.store(mean + at, new_mean, mask=inside)
        tl.store(square + at, new_square, mask=inside)
        root = tl.sqrt(new_square) * scale_of_root + eps
        old = tl.load(table + at, mask=inside, other=0.0)
        tl.store(table + at, old - rate * decay * old - rate * (new_mean * scale_of_mean / root), mask=inside)


def adamw_rows_launch(
    table: Tensor,
    mean: Tensor,
    square: Tensor,
    ids: Tensor,
    gradients: Tensor,
    *,
    rate: float,
    decay: float,
    betas: tuple[float, float],
    eps: float,
    step: int,
) -> Launch:
    """The update of a table's rows by AdamW; see `ncf.kernels.dispatch.update_rows_adamw`.

    Example::

        >>> import torch
        >>> from ncf.kernels.triton_update import adamw_rows_launch
        >>> table, ids = torch.ones(9, 20), torch.tensor([4, 1, 4])
        >>> launch = adamw_rows_launch(
        ...     table, table, table, ids, torch.ones(3, 20), rate=0.1, decay=0.0, betas=(0.9, 0.999), eps=1e-8, step=1
        ... )
        >>> launch.grid, launch.arguments["COLUMNS"]
        ((3,), 32)
    """
    ordered, order = ids.sort(stable=True)
    columns = padded(table.shape[1], 1)
    arguments = {
        "table": table,
        "mean": mean,
        "square": square,
        "gradients": gradients.contiguous(),
        "ids": ordered,
        "order": order,
        "num_ids": len(ids),
        "stride": table.stride(0),
        "new_of_mean": 1 - betas[0],
        "beta2": betas[1],
        "new_of_square": 1 - betas[1],
        "scale_of_mean": 1 / (1 - betas[0] ** step),
        "scale_of_root": (1 - betas[1] ** step) ** -0.5,
        "eps": eps,
        "rate": rate,
        "decay": decay,
        "DIM": table.shape[1],
        "COLUMNS": columns,
        "num_warps": 1 if columns <= 256 else 4,
    }
    return Launch(_adamw_rows, (len(ids),), arguments)
