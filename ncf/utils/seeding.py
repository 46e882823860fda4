"""Initial values that depend on a seed and on a name, and on nothing else.

Each parameter has its own random generator; a table has one for every 1,024 rows. So a shard is filled
without the rest of its table. A model starts from the same numbers for any number of processes and any plan.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

_ROWS_PER_STREAM = 1024


def stream(seed: int, *names: object) -> torch.Generator:
    """Create a CPU generator for one purpose, independent of all others.

    Args:
        seed: the experiment's seed.
        names: the purpose of the numbers, such as a parameter's name and a row.

    Example::

        >>> import torch
        >>> from ncf.utils.seeding import stream
        >>> one, same, other = (torch.rand(1, generator=stream(0, name)) for name in ("a", "a", "b"))
        >>> one == same, one == other
        (tensor([True]), tensor([False]))
    """
    digest = hashlib.blake2b(repr((int(seed), *names)).encode(), digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "big") >> 1)


def normal_rows(
    out: Tensor, *, std: float, seed: int, table: str, width: int, row: int = 0, column: int = 0
) -> None:
    """Fill a rectangle of a table with its share of the table's Gaussian initial values.

    Args:
        out: the rectangle, ``[R, D]``; filled in place, on any device.
        std: standard deviation; the mean is zero.
        seed: the model's seed.
        table: the table's name.
        width: number of columns that are drawn; columns of ``out`` past it are set to zero.
        row: the table's row that ``out[0]`` is.
        column: the table's column that ``out[:, 0]`` is.

    Example::

        >>> import torch
        >>> from ncf.utils.seeding import normal_rows
        >>> whole, part = torch.empty(9, 8), torch.empty(3, 4)
        >>> normal_rows(whole, std=0.1, seed=0, table="user_mf", width=6)
        >>> normal_rows(part, std=0.1, seed=0, table="user_mf", width=6, row=5, column=4)
        >>> torch.equal(part, whole[5:8, 4:])
        True
    """
    columns = slice(min(column, width), min(column + out.shape[1], width))
    drawn = columns.stop - columns.start
    end = row + len(out)
    with torch.no_grad():
        out[:, drawn:] = 0.0
        for first in range(row - row % _ROWS_PER_STREAM, end, _ROWS_PER_STREAM):
            last = min(first + _ROWS_PER_STREAM, end)
            block = torch.empty(_ROWS_PER_STREAM, width, dtype=torch.float32, device="cpu")
            block.normal_(0.0, std, generator=stream(seed, table, first))
            start = max(first, row)
            out[start - row : last - row, :drawn] = block[start - first : last - first, columns].to(
                out.device
            )


def uniform_(weight: Tensor, *, gain: float, fans: int, seed: int, name: str) -> None:
    """Fill a dense weight uniformly within ``±sqrt(3 · gain / fans)``.

    Glorot's initialization has ``gain=2`` and ``fans = fan_in + fan_out``, LeCun's ``gain=1`` and ``fans = fan_in``.

    Args:
        weight: filled in place.
        gain: see above.
        fans: see above.
        seed: the model's seed.
        name: the parameter's name.

    Example::

        >>> import torch
        >>> from ncf.utils.seeding import uniform_
        >>> weight = torch.empty(6, 4)
        >>> uniform_(weight, gain=2, fans=10, seed=0, name="towers.mlp.layers.0.weight")
        >>> bool((weight.abs() <= 0.6**0.5).all())
        True
    """
    bound = math.sqrt(3 * gain / fans)
    values = torch.empty(weight.shape, dtype=torch.float32, device="cpu").uniform_(
        -bound, bound, generator=stream(seed, name)
    )
    with torch.no_grad():
        weight.copy_(values)
