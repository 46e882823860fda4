"""Files that are complete or absent: written beside their place, then renamed into it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_BLOCK = 2**22  # numbers: 16 MB of float32


@contextmanager
def written_beside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success rename it to ``path``, on failure remove it.

    The path lies in a hidden folder of its own, ``.<name>.<random>.part``: a library that itself writes beside the
    path it is given leaves nothing else behind when the process is killed.

    Args:
        path: the file to be written; its folder is made if missing.

    Yields:
        The path to write to; no file is there yet.

    Example::

        >>> import tempfile
        >>> from pathlib import Path
        >>> from ncf.utils.files import written_beside
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with written_beside(f"{folder}/a.txt") as beside:
        ...         size = beside.write_text("whole")
        ...     [file.name for file in Path(folder).iterdir()]
        ['a.txt']
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".part", dir=target.parent) as folder:
        beside = Path(folder) / target.name
        yield beside
        beside.chmod(0o666 & ~_umask())
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(target)


def hash_of(path: str | os.PathLike[str], algorithm: str = "sha256") -> str:
    """The hash of a file's content, in hexadecimal digits; read in blocks.

    Args:
        path: the file.
        algorithm: as `hashlib` names it; against damage, not against malice.

    Example::

        >>> import tempfile
        >>> from ncf.utils.files import hash_of
        >>> with tempfile.NamedTemporaryFile() as empty:
        ...     hash_of(empty.name)[:12], hash_of(empty.name, "md5")[:12]
        ('e3b0c44298fc', 'd41d8cd98f00')
    """
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file, complete or not at all.

    Example::

        >>> import tempfile
        >>> from pathlib import Path
        >>> from ncf.utils.files import write_text
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_text(f"{folder}/a.txt", "Amélie")
        ...     Path(folder, "a.txt").read_text(encoding="utf-8")
        'Amélie'
    """
    with written_beside(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors as a safetensors file, complete or not at all.

    Example::

        >>> import tempfile, torch
        >>> from ncf.utils.files import read_tensors, write_tensors
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_tensors(f"{folder}/a.safetensors", {"bias": torch.ones(2)})
        ...     read_tensors(f"{folder}/a.safetensors", ["bias"])
        {'bias': tensor([1., 1.])}
    """
    from safetensors.torch import save_file

    with written_beside(path) as beside:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, str(beside))


def header(tensors: Mapping[str, Tensor]) -> tuple[bytes, list[str]]:
    """How the safetensors file of some tensors begins; their bytes follow it.

    Args:
        tensors: their names, types and shapes count; they need not have values.

    Returns:
        The first bytes of the file, and the names in the order in which the tensors' bytes follow.

    Example::

        >>> import torch
        >>> from ncf.utils.files import header
        >>> start, names = header({"weight": torch.empty(2, 3, device="meta"), "bias": torch.empty(2, device="meta")})
        >>> int.from_bytes(start[:8], "little") == len(start) - 8, names
        (True, ['bias', 'weight'])
    """
    from safetensors.torch import save

    # The library's own, which knows the order and the types' names, of tensors with nothing in them.
    empty = save({name: torch.empty(0, dtype=tensor.dtype) for name, tensor in tensors.items()})
    description: dict[str, dict[str, Any]] = json.loads(empty[8:])
    end = 0
    for name, entry in description.items():
        start, end = end, end + math.prod(tensors[name].shape) * tensors[name].dtype.itemsize
        entry |= {"shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(description, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, list(description)


def read_tensors(path: str | os.PathLike[str], names: Sequence[str]) -> dict[str, Tensor]:
    """Read exactly the named tensors of a safetensors file.

    Args:
        path: a file that `write_tensors` wrote.
        names: the tensors that must be there, and no others.

    Returns:
        The tensors by name.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or lacks a tensor, or holds one more.

    Example::

        >>> import tempfile, torch
        >>> from ncf.utils.files import read_tensors, write_tensors
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_tensors(f"{folder}/a.safetensors", {"bias": torch.ones(2)})
        ...     read_tensors(f"{folder}/a.safetensors", names=["bias"])["bias"].shape
        torch.Size([2])
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        tensors: dict[str, Tensor] = load_file(str(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file ({error}): write it again") from error
    missing, extra = sorted(set(names) - tensors.keys()), sorted(tensors.keys() - set(names))
    if missing or extra:
        raise ValueError(
            f"{path} does not fit: missing {missing or 'nothing'}, unexpected {extra or 'nothing'}"
        )
    return tensors


def read_rectangle(path: str | os.PathLike[str], name: str, out: Tensor, *, row: int, column: int) -> None:
    """Read a part of a matrix in a safetensors file; no more than the part and a small piece is ever in memory.

    Args:
        path: a file that `write_tensors` wrote.
        name: the matrix.
        out: where to put the part, ``[R, D]``, on any device.
        row: the matrix's row that ``out[0]`` is.
        column: the matrix's column that ``out[:, 0]`` is.

    Raises:
        FileNotFoundError: if there is no such file any more.
        ValueError: if it is damaged, or lacks the matrix, or the matrix is smaller.

    Example::

        >>> import tempfile, torch
        >>> from ncf.utils.files import read_rectangle, write_tensors
        >>> part = torch.empty(1, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_tensors(f"{folder}/a.safetensors", {"weight": torch.arange(12.0).view(3, 4)})
        ...     read_rectangle(f"{folder}/a.safetensors", "weight", part, row=1, column=2)
        >>> part
        tensor([[6., 7.]])
    """
    from safetensors import SafetensorError, safe_open

    done = 0
    while done < len(out):
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} is gone, and {name} with it: load the model again")
        try:
            # Opened anew for each block: what was read of an open file stays in the process's memory.
            with safe_open(str(path), framework="pt") as file:
                stored = file.get_slice(name)
                part = out[done : done + rows_at_once(stored.get_shape()[1])]
                rows = slice(row + done, row + done + len(part))
                values = stored[rows, column : column + out.shape[1]]
                if values.shape != part.shape:
                    raise ValueError(f"{path} has another shape of {name} by now: load the model again")
                with torch.no_grad():
                    part.copy_(values)
        except SafetensorError as error:
            raise ValueError(
                f"{path} is not a complete safetensors file ({error}): write it again"
            ) from error
        done += len(part)


def rows_at_once(columns: int) -> int:
    """How many rows of a table to copy in one go.

    Example::

        >>> from ncf.utils.files import rows_at_once
        >>> rows_at_once(columns=64)
        65536
    """
    return max(1, _BLOCK // columns)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
