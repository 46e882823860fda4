"""Ids: the numbers that index a table, refused where they would index outside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def check_ids(
    ids: Any, name: str, size: int | None = None, of: str = "", *, lowest: int = 0, remedy: str = ""
) -> None:
    """Refuse ids out of range: on a GPU they would be an abort without a message.

    Args:
        ids: int64, of any shape. Of one list that is expanded for many users one row is looked at.
        name: the argument that they are.
        size: ids lie below it; by default they may be as large as they like.
        of: what ``size`` is.
        lowest: what they may be at least; ``-1`` where there may be padding.
        remedy: what else to say.

    Raises:
        ValueError: if they are no int64 tensor, or one is out of range: the first such is named.

    Example::

        >>> import torch
        >>> from ncf.utils.ids import check_ids
        >>> check_ids(torch.tensor([[3, -1], [0, 5]]), "items", 5, "num_items", lowest=-1)
        Traceback (most recent call last):
        ValueError: items[1, 1] = 5 is out of range for num_items = 5: ids go from -1 to 4
    """
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
        got = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"{name} must be an int64 tensor of ids, got {got}")
    listed = ids[:1] if ids.dim() == 2 and ids.stride(0) == 0 else ids
    # NumPy does not wake PyTorch's threads, which then wait for more work on the cores that a kernel is about to use.
    plain: Any = listed.numpy() if listed.is_cpu else listed
    if not listed.numel() or (int(plain.min()) >= lowest and (size is None or int(plain.max()) < size)):
        return
    wrong = listed < lowest if size is None else (listed < lowest) | (listed >= size)
    place = tuple(wrong.nonzero()[0].tolist())
    bound = (
        f" for {of} = {size}: ids go from {lowest} to {size - 1}"
        if size is not None
        else f": ids are {lowest} or more"
    )
    raise ValueError(
        f"{name}[{', '.join(map(str, place))}] = {int(listed[place])} is out of range{bound}"
        + (f"; {remedy}" if remedy else "")
    )
