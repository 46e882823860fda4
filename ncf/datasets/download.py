"""Files from elsewhere: fetched once, checked by their hash, and read without being unpacked."""

from __future__ import annotations

import hashlib
import http.client
import os
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath

from tqdm.auto import tqdm

from ncf.utils.files import atomic_write, file_hash

_BLOCK = 1 << 20
_TIMEOUT = 10  # seconds without an answer, not for the whole download
_MOST = 1 << 30  # bytes: four times the largest file that is fetched


def data_home() -> Path:
    """The folder of fetched data: ``$NCF_DATA_HOME``, else ``ncf`` in the user's cache folder."""
    chosen = os.environ.get("NCF_DATA_HOME")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ncf"


def download(url: str, path: str | os.PathLike[str], md5: str) -> None:
    """Fetch a file, complete and with the right hash or not at all.

    Args:
        url: where it is.
        path: where to put it.
        md5: its published hash, hexadecimal.

    Raises:
        OSError: if the place cannot be reached, or the connection ends early.
        ValueError: if what came is another file, or does not end.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "ncf"})
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer, atomic_write(path) as beside:
            length = answer.headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() and len(length) < 20 else 0
            with (
                beside.open("wb") as file,
                tqdm(
                    total=total or None, unit="B", unit_scale=True, desc=Path(path).name, leave=False
                ) as bar,
            ):
                while block := answer.read(_BLOCK):
                    if file.tell() + len(block) > _MOST:
                        raise ValueError(f"{url} is not the published file: it has more than {_MOST} bytes")
                    file.write(block)
                    digest.update(block)
                    bar.update(len(block))
                received = file.tell()
            if received < total:
                raise OSError(f"the connection ended after {received} of {total} bytes")
            _same_hash(url, digest.hexdigest(), md5)
    except http.client.HTTPException as error:
        raise OSError(f"{url} gave no proper answer: {error!r}") from error


def download_wheel(requirement: str, folder: str | os.PathLike[str]) -> Path:
    """Fetch a published wheel with pip, from whichever index pip is set up to use.

    Args:
        requirement: name and version, such as ``"recbole==1.2.1"``.
        folder: where to put it.

    Returns:
        The path of the wheel.

    Raises:
        OSError: if pip is missing or does not get it.
    """
    options = ["--no-deps", "--only-binary", ":all:", "--quiet", "--disable-pip-version-check"]
    options += ["--retries", "1", "--timeout", "10"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", os.fspath(folder), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"pip download {requirement} took more than {error.timeout:.0f} seconds") from error
    wheels = sorted(Path(folder).glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip() or "no reason was given").splitlines()[-1]
        raise OSError(f"pip download {requirement} failed: {reason}")
    return wheels[0]


def check_hash(path: str | os.PathLike[str], expected: str, algorithm: str) -> None:
    """Raise a ValueError unless a file has its published hash."""
    _same_hash(path, file_hash(path, algorithm), expected)


def open_archive(path: str | os.PathLike[str], members: list[str]) -> zipfile.ZipFile:
    """Open a zip to read some of its members in place: nothing is unpacked.

    Args:
        path: the zip.
        members: those that must be there.

    Raises:
        ValueError: if it is no zip, has not all members, or holds one whose path leads outside.
    """
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not a complete zip file: fetch it again") from error
    names = archive.namelist()
    outside = [name for name in names if name.startswith(("/", "\\")) or ".." in PurePosixPath(name).parts]
    missing = [name for name in members if name not in names]
    if outside or missing:
        archive.close()
        if outside:
            raise ValueError(f"{path} is not opened: its member {outside[0]!r} leads outside the archive")
        raise ValueError(f"{path} has no member {missing[0]!r}: it is another file")
    return archive


def _same_hash(name: str | os.PathLike[str], found: str, expected: str) -> None:
    if found != expected:
        raise ValueError(f"{os.fspath(name)} is not the published file: its hash is {found}, not {expected}")
