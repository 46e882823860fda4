"""Formats of a matrix's rows on disk: float32, bfloat16, and whole numbers with a scale and an offset per row.

``int8`` and ``int4`` are FBGEMM's fused row-wise formats, byte for byte: an 8-bit row is its D codes and then scale and
offset as float32; a 4-bit row is two codes a byte, the earlier column in the lower half, and then both as float16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ncf.utils.files import rows_per_block

ROW_FORMATS = ("float32", "bfloat16", "int8", "int4")
_FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def quantize_rows(weight: Tensor, rows: str) -> Tensor:
    """Bring a matrix's rows into a format.

    Args:
        weight: ``[R, D]``, floating-point numbers.
        rows: one of `ROW_FORMATS`.

    Returns:
        ``[R, D]`` in the type of that name; for int8 and int4 ``[R, bytes of a row]``, uint8.

    Raises:
        ValueError: for an unknown format, or a row that holds an infinite number or NaN.
    """
    if rows not in ROW_FORMATS:
        raise ValueError(f"rows = {rows!r}: choose one of {', '.join(map(repr, ROW_FORMATS))}")
    if rows in _FLOATS:
        return weight.detach().to(_FLOATS[rows])
    dtype, width = stored_rows(rows, weight.shape[1])
    stored = torch.empty(len(weight), width, dtype=dtype, device="cpu")
    step = rows_per_block(weight.shape[1])
    for first in range(0, len(weight), step):
        block = weight[first : first + step].detach().to("cpu", torch.float32)
        if not bool(block.isfinite().all()):
            row = first + int((~block.isfinite()).any(1).nonzero()[0])
            raise ValueError(f"row {row} of a table holds an infinite number or NaN: it has no {rows} format")
        stored[first : first + step] = (_to_int8 if rows == "int8" else _to_int4)(block)
    return stored


def dequantize_rows(stored: Tensor, rows: str, columns: int) -> Tensor:
    """Read rows in a format as numbers.

    Args:
        stored: what `quantize_rows` returned, ``[R, ...]``.
        rows: the format.
        columns: the matrix's columns, D.

    Returns:
        ``[R, D]``, float32.
    """
    if rows in _FLOATS:
        return stored.to(torch.float32)
    if rows == "int8":
        codes, tail, dtype = stored[:, :columns], stored[:, columns:], torch.float32
    else:
        packed, tail, dtype = stored[:, :-4], stored[:, -4:], torch.float16
        codes = torch.stack([packed & 15, packed >> 4], dim=2).flatten(1)[:, :columns]
    # Copied: PyTorch views numbers of several bytes only where they are aligned.
    tail = tail.clone(memory_format=torch.contiguous_format).view(dtype).to(torch.float32)
    scale, offset = tail.split(1, dim=1)  # [R, 1] each
    return codes.to(torch.float32).mul_(scale).add_(offset)


def stored_rows(rows: str, columns: int) -> tuple[torch.dtype, int]:
    """The type of a format in a file, and how many of it a row of ``columns`` numbers takes."""
    if rows in _FLOATS:
        return _FLOATS[rows], columns
    return torch.uint8, columns + 8 if rows == "int8" else -(-columns // 2) + 4


def _to_int8(block: Tensor) -> Tensor:
    lowest, highest = block.aminmax(dim=1, keepdim=True)  # [b, 1] each
    span = highest - lowest
    codes = ((block - lowest) * (255.0 / (span + 1e-8))).round_().to(torch.uint8)  # [b, D]
    return torch.cat([codes, torch.cat([span / 255.0, lowest], dim=1).view(torch.uint8)], dim=1)


def _to_int4(block: Tensor) -> Tensor:
    lowest, highest = block.aminmax(dim=1, keepdim=True)  # [b, 1] each
    lowest = lowest.to(torch.float16).to(torch.float32)  # as it will be read
    span = highest - lowest
    scale = torch.where(span == 0, 1.0, span / 15).to(torch.float16).to(torch.float32)
    inverse = 1.0 / scale
    unusable = (scale == 0) | inverse.isinf()
    scale, inverse = scale.masked_fill(unusable, 1.0), inverse.masked_fill(unusable, 1.0)
    codes = ((block - lowest) * inverse).round_().clamp_(0, 15).to(torch.uint8)  # [b, D]
    if codes.shape[1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    packed = codes[:, ::2] | codes[:, 1::2] << 4  # [b, ceil(D / 2)]
    return torch.cat([packed, torch.cat([scale, lowest], dim=1).to(torch.float16).view(torch.uint8)], dim=1)
