"""Files that are complete or absent: written beside their place, then renamed into it."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_BLOCK = 2**22  # numbers: 16 MB of float32


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success rename it to ``path``, on failure remove it.

    The path lies in a hidden folder of its own, ``.<name>.<random>.part``: a library that itself writes beside the
    path it is given leaves nothing else behind when the process is killed.

    Args:
        path: the file to be written; its folder is made if missing.

    Yields:
        The path to write to; no file is there yet.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".part", dir=target.parent) as folder:
        beside = Path(folder) / target.name
        beside.touch()  # a new file's permissions, without a change of the process's umask
        mode = beside.stat().st_mode
        beside.unlink()
        yield beside
        beside.chmod(mode)
        flush_to_disk(beside)
        beside.replace(target)
    flush_to_disk(target.parent)


def flush_to_disk(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder; a folder cannot be flushed on Windows."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_hash(path: str | os.PathLike[str], algorithm: str = "sha256") -> str:
    """The hash of a file's content, in hexadecimal digits; read in blocks.

    Args:
        path: the file.
        algorithm: as `hashlib` names it; against damage, not against malice.
    """
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file, complete or not at all."""
    with atomic_write(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write named tensors, and some words about them, as a safetensors file, complete or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_write(path) as beside:
        try:
            contents = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(contents, str(beside), metadata)
        except SafetensorError as error:  # an error of the disk has its number in the text alone
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from error


def header(tensors: Mapping[str, Tensor]) -> tuple[bytes, list[str]]:
    """Return the header of a safetensors file; the bytes of its tensors follow.

    Args:
        tensors: their names, types and shapes count; they need not have values.

    Returns:
        The first bytes of the file, and the names in the order in which the tensors' bytes follow.
    """
    from safetensors.torch import save

    # The library's own header of empty tensors has the order and the names of types.
    empty = save({name: torch.empty(0, dtype=tensor.dtype, device="cpu") for name, tensor in tensors.items()})
    description: dict[str, dict[str, Any]] = json.loads(empty[8:])
    end = 0
    for name, entry in description.items():
        start, end = end, end + math.prod(tensors[name].shape) * tensors[name].dtype.itemsize
        entry |= {"shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(description, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, list(description)


def read_tensors(path: str | os.PathLike[str], names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Read exactly the named tensors of a safetensors file.

    Args:
        path: a file that `write_tensors` wrote.
        names: the tensors that must be there, and no others; by default those that are there.

    Returns:
        The tensors by name, mapped from the file: their values are read when they are first used, processes share
        them, and what is written to them stays in memory.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, has not every tensor, or holds one more.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        tensors: dict[str, Tensor] = load_file(str(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file ({error}): write it again") from error
    except RuntimeError as error:  # PyTorch's, which maps the file
        raise OSError(f"{path} cannot be read: {error}") from error
    if names is not None:
        check_names(path, tensors, names)
    return tensors


def check_names(path: str | os.PathLike[str], tensors: Iterable[str], names: Iterable[str]) -> None:
    """Raise a ValueError unless a file holds exactly the named tensors."""
    missing, extra = sorted(set(names) - set(tensors)), sorted(set(tensors) - set(names))
    if missing or extra:
        raise ValueError(
            f"{path} does not fit: missing {missing or 'nothing'}, unexpected {extra or 'nothing'}"
        )


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the words that `write_tensors` wrote beside the tensors."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        return file.metadata() or {}


def read_slice(path: str | os.PathLike[str], name: str, out: Tensor, *, row: int, column: int) -> None:
    """Read a part of a matrix in a safetensors file; no more than the part and a small piece is ever in memory.

    Args:
        path: a file that `write_tensors` wrote.
        name: the matrix.
        out: where to put the part, ``[R, D]``, on any device.
        row: the matrix's row that ``out[0]`` is.
        column: the matrix's column that ``out[:, 0]`` is.

    Raises:
        FileNotFoundError: if there is no such file any more.
        ValueError: if it is damaged, has no such matrix, or a smaller one.
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
                part = out[done : done + rows_per_block(stored.get_shape()[1])]
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


def rows_per_block(columns: int) -> int:
    """Return the number of rows of a table to copy at once."""
    return max(1, _BLOCK // columns)
