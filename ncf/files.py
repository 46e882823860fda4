"""Files that are complete or absent: written beside their place, then renamed into it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor


@contextmanager
def written_beside(path: str | os.PathLike[str]) -> Iterator[Path]:
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
        yield beside
        beside.chmod(0o666 & ~_umask())
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(target)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file, complete or not at all."""
    with written_beside(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors as a safetensors file, complete or not at all."""
    from safetensors.torch import save_file

    with written_beside(path) as beside:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, str(beside))


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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
