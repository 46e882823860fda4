"""XᵀX, the users that each two items have in common: its rows block by block, and the inverse in its own memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ncf.data.interactions import Interactions
from ncf.models.baselines.base import blocks_of

_NUMBERS_PER_BLOCK = 1 << 24  # 64 MB of float32
_PANEL = 512  # columns that are swept at once: three matrices of 512 × 512 lie in the second cache


def co_occurrence(train: Interactions) -> Iterator[tuple[slice, Tensor]]:
    """Yield blocks of rows of XᵀX, ``[b, I]``, float32, and which rows they are.

    Example::

        >>> from ncf import Interactions
        >>> from ncf.models.baselines.gram import co_occurrence
        >>> train = Interactions.from_arrays([0, 0, 1, 1, 2], [0, 1, 0, 1, 2])
        >>> next(co_occurrence(train))
        (slice(0, 3, None), tensor([[2., 2., 0.],
                [2., 2., 0.],
                [0., 0., 1.]]))
    """
    size = (train.num_users, train.num_items)
    kind: dict[str, Any] = {"dtype": torch.float32, "device": train.items.device}
    ones = torch.ones(len(train), **kind)
    order = train.items.argsort()
    items, users = train.items[order], train.users[order]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its sparse tensors unfinished
        places = torch.stack([train.users, train.items])
        everything = torch.sparse_coo_tensor(places, ones, size, **kind).coalesce()
        for block in blocks_of(size[1], size[1], _NUMBERS_PER_BLOCK):
            first, last = torch.searchsorted(
                items, torch.tensor([block.start, block.stop], dtype=torch.int64, device=items.device)
            ).tolist()
            rows = torch.stack([items[first:last] - block.start, users[first:last]])
            of_block = torch.sparse_coo_tensor(
                rows, ones[first:last], (block.stop - block.start, size[0]), **kind
            )
            yield block, torch.sparse.mm(of_block, everything).to_dense()


def invert_(matrix: Tensor) -> Tensor:
    """Replace a symmetric positive definite matrix by its inverse, with little more memory.

    The symmetric sweep (Goodnight, The American Statistician 1979) by panels of columns, on the upper triangle: n³
    operations, as by a Cholesky factor, which torch would put into a second and a third matrix of the same size.

    Args:
        matrix: ``[n, n]``, contiguous; of the diagonal and above, only these are read.

    Returns:
        ``matrix``.

    Raises:
        torch.linalg.LinAlgError: if it is not positive definite in its own precision.

    Example::

        >>> import torch
        >>> from ncf.models.baselines.gram import invert_
        >>> invert_(torch.tensor([[2.0, 1.0], [1.0, 1.0]]))
        tensor([[ 1., -1.],
                [-1.,  2.]])
    """
    size = len(matrix)
    panels = [slice(start, min(start + _PANEL, size)) for start in range(0, size, _PANEL)]
    for panel in panels:
        before, after = slice(0, panel.start), slice(panel.stop, size)
        column = torch.cat([matrix[before, panel], matrix[panel, panel], matrix[panel, after].T])  # [n, p]
        factor = torch.linalg.cholesky(matrix[panel, panel].to(torch.float64), upper=True)
        pivot = torch.cholesky_inverse(factor, upper=True).to(matrix.dtype)
        swept = column @ pivot  # [n, p]
        for rows in panels:
            if rows != panel:
                matrix[rows, rows.start :].addmm_(swept[rows], column[rows.start :].T, alpha=-1)
        matrix[before, panel], matrix[panel, after] = swept[before], swept[after].T
        matrix[panel, panel] = -pivot
    for rows in panels:  # what was swept is the negative of the inverse
        matrix[rows, rows.start :].neg_()
        matrix[rows.stop :, rows] = matrix[rows, rows.stop :].T
        block = matrix[rows, rows]
        block.copy_(block.triu() + block.triu(1).T)
    return matrix
