"""The files of one checkpoint: named for its step, complete or absent, checked before they are read.

A checkpoint is a folder ``step-0000001234``: what ``torch.distributed.checkpoint`` writes, and ``checkpoint.json``
with the size and the SHA-256 of each other file. It is written as ``.step-0000001234.part`` and renamed when all
of it is on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from ncf.distributed.collectives import all_gather_object, raise_on_all_ranks, rank
from ncf.utils.files import file_hash
from ncf.utils.version import __version__

if TYPE_CHECKING:
    from ncf.distributed.checkpoint_planner import Pieces

_FORMAT = 1
_NAME = re.compile(r"step-(\d{10,})(?:\.(\d+))?")
_DESCRIPTION = "checkpoint.json"


def folder_of(home: Path, step: int, again: int = 0) -> Path:
    """Where the checkpoint of a step lies.

    Args:
        home: the folder of all checkpoints.
        step: steps trained.
        again: how often the step was saved before.

    Example::

        >>> from pathlib import Path
        >>> folder_of(Path("run"), 1234, again=1).name
        'step-0000001234.1'
        >>> number_of(folder_of(Path("run"), 1234, again=1))
        (1234, 1)
    """
    return home / (f"step-{step:010d}" + (f".{again}" if again else ""))


def number_of(folder: Path) -> tuple[int, int]:
    """The step of a checkpoint's folder, and how often it was saved before.

    Example::

        >>> from pathlib import Path
        >>> from ncf.distributed.checkpoint_files import number_of
        >>> number_of(Path("run", "step-0000001234"))
        (1234, 0)
    """
    match = _NAME.fullmatch(folder.name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)


def part_of(folder: Path) -> Path:
    """Where a checkpoint is while it is not whole: not yet, or no more.

    Example::

        >>> from pathlib import Path
        >>> from ncf.distributed.checkpoint_files import part_of
        >>> part_of(Path("run", "step-0000001234")).name
        '.step-0000001234.part'
    """
    return folder.with_name(f".{folder.name}.part")


def folders_in(home: Path) -> list[Path]:
    """The checkpoints, the oldest first; what else lies there is left out.

    Example::

        >>> import tempfile
        >>> from pathlib import Path
        >>> from ncf.distributed.checkpoint_files import folder_of, folders_in
        >>> with tempfile.TemporaryDirectory() as home:
        ...     folder_of(Path(home), 7).mkdir()
        ...     Path(home, "notes").mkdir()
        ...     [folder.name for folder in folders_in(Path(home))]
        ['step-0000000007']
    """
    if not home.is_dir():
        return []
    return sorted((path for path in home.iterdir() if _NAME.fullmatch(path.name)), key=number_of)


def write(folder: Path, pieces: Pieces, description: dict[str, Any], group: dist.ProcessGroup | None) -> None:
    """Write a checkpoint; all processes call it together.

    Args:
        folder: where it is to be; its `part_of` is there and empty.
        pieces: this process's.
        description: what `described` is to give back; that of rank 0 counts.
        group: through which the processes tell each other how far they are; by default that of all.

    Raises:
        Exception: the first process's that failed, in all; of the checkpoint nothing is left then.

    Example::

        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from ncf.distributed.checkpoint_files import described, folder_of, part_of, write
        >>> from ncf.distributed.checkpoint_planner import Pieces
        >>> with tempfile.TemporaryDirectory() as home:
        ...     folder = folder_of(Path(home), 7)
        ...     part_of(folder).mkdir()
        ...     write(folder, Pieces({"bias": torch.ones(2)}), {"step": 7}, None)
        ...     described(folder)["step"]
        7
    """
    from ncf.distributed.checkpoint_planner import write as write_pieces

    part = part_of(folder)
    try:
        write_pieces(part, pieces, group)
        with raise_on_all_ranks(group=group):
            own = [*part.glob(f"__{rank()}_*"), *([part / ".metadata"] if rank() == 0 else [])]
            files = {file.name: {"size": file.stat().st_size, "sha256": file_hash(file)} for file in own}
        for others in all_gather_object(files, group):
            files |= others
        with raise_on_all_ranks(group=group):
            if rank() == 0:
                _describe(part, {"format": _FORMAT, "ncf": __version__, **description, "files": files})
                _sync(part)
                part.rename(folder)
                _sync(folder.parent)
    except Exception:
        if rank() == 0:
            shutil.rmtree(part, ignore_errors=True)  # a full disk is not to stay full
        raise


def described(folder: Path) -> dict[str, Any] | str:
    """What ``checkpoint.json`` says, or what is wrong with it.

    Example::

        >>> from pathlib import Path
        >>> from ncf.distributed.checkpoint_files import described
        >>> described(Path("run", "step-0000000007"))
        'run/step-0000000007/checkpoint.json is missing'
    """
    file = folder / _DESCRIPTION
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"{file} is missing"
    except OSError as error:
        return f"{file} cannot be read: {error}"
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError too
        return f"{file} is not JSON: {error}"
    if not isinstance(description, dict) or "format" not in description:
        return f"{file} does not describe a checkpoint"
    if description["format"] != _FORMAT:
        return f"{file} has format {description['format']!r}, this version of ncf reads {_FORMAT}"
    if description.pop("sha256", None) != _digest(description):
        return f"{file} is not what was written: its SHA-256 is another"
    if description["step"] != number_of(folder)[0]:
        return f"{file} is of step {description['step']}, which its folder is not named for"
    return description


def damage_of(file: Path, size: int, sha256: str) -> str | None:
    """What is wrong with a file, if anything.

    Args:
        file: a file of a checkpoint.
        size: in bytes, as it was written.
        sha256: its hash then, in hexadecimal digits.

    Example::

        >>> import tempfile
        >>> from pathlib import Path
        >>> from ncf.distributed.checkpoint_files import damage_of
        >>> with tempfile.NamedTemporaryFile() as empty:
        ...     damage_of(Path(empty.name), size=3, sha256="").removeprefix(empty.name)
        ' has 0 bytes instead of 3'
    """
    try:
        found = file.stat().st_size
        if found != size:
            return f"{file} has {found} bytes instead of {size}"
        if file_hash(file) != sha256:
            return f"{file} is not what was written: its SHA-256 is another"
    except FileNotFoundError:
        return f"{file} is missing"
    except OSError as error:
        return f"{file} cannot be read: {error}"
    return None


def _describe(part: Path, description: dict[str, Any]) -> None:
    text = json.dumps({**description, "sha256": _digest(description)}, indent=2)
    with (part / _DESCRIPTION).open("w", encoding="utf-8") as out:
        out.write(text + "\n")
        out.flush()
        os.fsync(out.fileno())


def _digest(description: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
