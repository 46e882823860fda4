"""The files of one checkpoint: named for its step, complete or absent, compared with their hashes before they are read.

A checkpoint is a folder ``step-0000001234``: the files of ``torch.distributed.checkpoint``, and ``checkpoint.json``
with the size and the SHA-256 of each of them. It is written under a temporary name, ``.step-0000001234.….part``, and
renamed when all of it is on the disk.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ncf.distributed.collectives import all_gather_object, group_rank, raise_on_all_ranks
from ncf.utils.files import file_hash, flush_to_disk
from ncf.utils.version import __version__

if TYPE_CHECKING:
    from ncf.distributed.checkpoint_planner import PiecewiseSavePlanner

_FORMAT = 2
_NAME = re.compile(r"step-(\d{10,})(?:\.(\d+))?")
_TEMPORARY = re.compile(r"\.step-\d{10,}(?:\.\d+)?\.[0-9a-f]{8}\.part")
_MANIFEST = "checkpoint.json"
_KEYS = {"step": int, "best": bool, "metadata": dict, "files": dict}


def folder_of(home: Path, step: int, again: int = 0) -> Path:
    """The folder of a step that was saved ``again`` times before."""
    return home / (f"step-{step:010d}" + (f".{again}" if again else ""))


def parse_name(folder: Path) -> tuple[int, int]:
    """The step of a checkpoint's folder, and how often that step was saved before."""
    match = _NAME.fullmatch(folder.name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)


def folders_in(home: Path) -> list[Path]:
    """The checkpoints, the oldest first; whatever else lies in the folder is left out."""
    return _folders(home, _NAME, key=parse_name)


def temporary_folders_in(home: Path) -> list[Path]:
    """The folders that killed saves have left."""
    return _folders(home, _TEMPORARY)


def _folders(home: Path, name: re.Pattern[str], key: Any = None) -> list[Path]:
    if not home.is_dir():
        return []
    found = [path for path in home.iterdir() if name.fullmatch(path.name) and path.is_dir()]
    return sorted((path for path in found if not path.is_symlink()), key=key)


def temporary_path(folder: Path) -> Path:
    """A new name beside a checkpoint, for one that is being written or deleted."""
    return folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")


def remove(folder: Path) -> None:
    """Delete a checkpoint; no part of it is ever seen under its own name."""
    leaving = temporary_path(folder)
    folder.rename(leaving)
    shutil.rmtree(leaving)


def write(temporary: Path, folder: Path, planner: PiecewiseSavePlanner, manifest: dict[str, Any]) -> None:
    """Write a checkpoint; all processes must call this.

    Args:
        temporary: an empty folder beside the checkpoint's place; nothing is left of it after an error.
        folder: the checkpoint's place.
        planner: this process's tensors.
        manifest: the content of ``checkpoint.json``; rank 0's counts.
    """
    from ncf.distributed.checkpoint_planner import write as write_tensors

    try:
        write_tensors(temporary, planner)
        with raise_on_all_ranks():
            own = [*temporary.glob(f"__{group_rank()}_*")]
            own += [temporary / ".metadata"] if group_rank() == 0 else []
            files = {file.name: {"size": file.stat().st_size, "sha256": file_hash(file)} for file in own}
        for others in all_gather_object(files):
            files |= others
        with raise_on_all_ranks():
            if group_rank() == 0:
                _write_manifest(
                    temporary, {"format": _FORMAT, "ncf": __version__, **manifest, "files": files}
                )
                flush_to_disk(temporary)
                temporary.rename(folder)
                flush_to_disk(folder.parent)
    except BaseException:
        if group_rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)  # a full disk is not to stay full
        raise


def read_manifest(folder: Path) -> dict[str, Any] | str:
    """The content of ``checkpoint.json``, or a sentence on what is wrong with it."""
    file = folder / _MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"{file} is missing"
    except OSError as error:
        return f"{file} cannot be read: {error}"
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError too
        return f"{file} is not JSON: {error}"
    if not isinstance(manifest, dict) or "format" not in manifest:
        return f"{file} does not describe a checkpoint"
    if manifest["format"] != _FORMAT:
        return f"{file} has format {manifest['format']!r}, this version of ncf reads {_FORMAT}"
    if manifest.pop("sha256", None) != _digest(manifest):
        return f"{file} is not what was written: its SHA-256 is another"
    for key, kind in _KEYS.items():
        if not isinstance(manifest.get(key), kind):
            return f"{file} does not describe a checkpoint: it has no {key}"
    if manifest["step"] != parse_name(folder)[0]:
        return f"{file} is of step {manifest['step']}, which its folder is not named for"
    return manifest


def find_corruption(file: Path, size: int, sha256: str) -> str | None:
    """A sentence on what is wrong with a file, if anything: of another size in bytes, or of another hash."""
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


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    text = json.dumps({**manifest, "sha256": _digest(manifest)}, indent=2)
    (folder / _MANIFEST).write_text(text + "\n", encoding="utf-8")
    flush_to_disk(folder / _MANIFEST)


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
