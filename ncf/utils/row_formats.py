"""Formats of a matrix's rows on disk: float32, bfloat16, and whole numbers with a scale per row.

A row of ``int8`` is its D codes and then a scale as float16; a code c is the number (c - 128) · scale. A row of
``int4`` has two codes a byte, the earlier column in the lower half; a code c is (c - 8) · scale. With the offset that
this implies, they are rows of TorchRec's and FBGEMM's quantized collections: `fbgemm_rows`.

Folders of format 2 hold FBGEMM's fused rows, whose offset is stored: `OLDER` names them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ncf.utils.checks import check_choice
from ncf.utils.files import rows_per_block

ROW_FORMATS = ("float32", "bfloat16", "int8", "int4")
OLDER = {"int8": "int8 with offset", "int4": "int4 with offset"}
_FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_MIDDLE = {"int8": 128, "int4": 8}  # the code of zero
# Of a row's largest number, that may be the last code.
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)


def quantize_rows(weight: Tensor, rows: str) -> Tensor:
    """Bring a matrix's rows into a format.

    Of nine candidates the scale of an int4 row has the least squared error; numbers beyond the last code are
    stored as that.

    Args:
        weight: ``[R, D]``, floating-point numbers.
        rows: one of `ROW_FORMATS`.

    Returns:
        ``[R, D]`` in the type of that name; for int8 and int4 ``[R, bytes of a row]``, uint8.

    Raises:
        ValueError: for an unknown format, or a row that holds NaN or a number too large for the format.
    """
    check_choice("rows", rows, ROW_FORMATS)
    if rows in _FLOATS:
        return weight.detach().to(_FLOATS[rows])
    dtype, width = stored_rows(rows, weight.shape[1])
    stored = torch.empty(len(weight), width, dtype=dtype, device="cpu")
    step = rows_per_block(weight.shape[1])
    for first in range(0, len(weight), step):
        block = weight[first : first + step].detach().to("cpu", torch.float32)
        scale, codes = _nearest(block, _MIDDLE[rows], _SHARES if rows == "int4" else _SHARES[:1])
        # As the offset, the lowest number has to be finite as well.
        wrong = ~(scale * -_MIDDLE[rows]).to(torch.float16).isfinite()[:, 0]
        if bool(wrong.any()):
            row = first + int(wrong.nonzero()[0])
            raise ValueError(
                f"row {row} of a table holds NaN, or a number too large for float16: it has no {rows} format"
            )
        if rows == "int4":
            codes = torch.nn.functional.pad(codes, (0, codes.shape[1] % 2))
            codes = codes[:, ::2] | codes[:, 1::2] << 4  # [b, ceil(D / 2)]
        stored[first : first + step] = torch.cat([codes, scale.to(torch.float16).view(torch.uint8)], dim=1)
    return stored


def dequantize_rows(stored: Tensor, rows: str, columns: int) -> Tensor:
    """Read rows in a format as numbers.

    Args:
        stored: what `quantize_rows` returned, ``[R, ...]``.
        rows: the format; of a folder of format 2, one of the values of `OLDER`.
        columns: the matrix's columns, D.

    Returns:
        ``[R, D]``, float32.
    """
    if rows in _FLOATS:
        return stored.to(torch.float32)
    width = columns if rows.startswith("int8") else -(-columns // 2)
    codes, tail = stored[:, :width], stored[:, width:]
    if rows.startswith("int4"):
        codes = torch.stack([codes & 15, codes >> 4], dim=2).flatten(1)[:, :columns]
    # Copied: PyTorch views numbers of several bytes only where they are aligned.
    tail = tail.clone(memory_format=torch.contiguous_format)
    tail = tail.view(torch.float32 if rows == OLDER["int8"] else torch.float16).to(torch.float32)
    if rows in _MIDDLE:
        return codes.to(torch.float32).sub_(_MIDDLE[rows]).mul_(tail)
    scale, offset = tail.split(1, dim=1)  # [R, 1] each
    return codes.to(torch.float32).mul_(scale).add_(offset)


def stored_rows(rows: str, columns: int) -> tuple[torch.dtype, int]:
    """The type of a format in a file, and how many of it a row of ``columns`` numbers takes."""
    if rows in _FLOATS:
        return _FLOATS[rows], columns
    codes = columns if rows.startswith("int8") else -(-columns // 2)
    return torch.uint8, codes + {"int8": 2, "int4": 2, OLDER["int8"]: 8, OLDER["int4"]: 4}[rows]


def fbgemm_rows(stored: Tensor, rows: str) -> tuple[Tensor, Tensor]:
    """Rows of int8 or int4 as a quantized collection of TorchRec takes them, by table.

    Args:
        stored: what `quantize_rows` returned, ``[R, ...]``.
        rows: ``"int8"`` or ``"int4"``.

    Returns:
        The codes, ``[R, bytes]``, and scale and offset as bytes of float16, ``[R, 4]``.
    """
    scale = stored[:, -2:].clone(memory_format=torch.contiguous_format).view(torch.float16)
    return stored[:, :-2], torch.cat([scale, scale * -_MIDDLE[rows]], dim=1).view(torch.uint8)


def _nearest(block: Tensor, middle: int, shares: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Scales, ``[b, 1]``, as they will be read, and codes, ``[b, D]``, of the share with the least squared error."""
    largest = block.abs().amax(dim=1, keepdim=True)  # [b, 1]
    best: tuple[Tensor, Tensor] | None = None
    least = torch.full_like(largest, torch.inf)
    for share in shares:
        scale = (largest * (share / (middle - 1))).to(torch.float16).to(torch.float32)
        codes = (block / scale.where(scale > 0, 1.0)).round_().clamp_(-middle, middle - 1)
        error = (codes * scale - block).square().sum(1, keepdim=True)
        if best is None:
            best, least = (scale, codes), error
            continue
        better = error < least
        best = scale.where(better, best[0]), codes.where(better, best[1])
        least = error.where(better, least)
    assert best is not None
    return best[0], best[1].add_(middle).to(torch.uint8)
