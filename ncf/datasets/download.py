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


def data_home() -> Path:
    """The folder of fetched data: ``$NCF_DATA_HOME``, else ``ncf`` in the user's cache folder.

    Example::

        >>> import os
        >>> from unittest import mock
        >>> from ncf.datasets.download import data_home
        >>> with mock.patch.dict(os.environ, NCF_DATA_HOME="/data"):
        ...     data_home().as_posix()
        '/data'
    """
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
        ValueError: if what came is another file.

    Example::

        >>> import hashlib, tempfile
        >>> from pathlib import Path
        >>> from ncf.datasets.download import download
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     there, here = Path(folder, "there.txt"), Path(folder, "here.txt")
        ...     size = there.write_text("1::31::2.5")
        ...     download(there.as_uri(), here, md5=hashlib.md5(b"1::31::2.5").hexdigest())
        ...     here.read_text()
        '1::31::2.5'
    """
    request = urllib.request.Request(url, headers={"User-Agent": "ncf"})
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer, atomic_write(path) as beside:
            total = int(answer.headers.get("Content-Length") or 0)
            with (
                beside.open("wb") as file,
                tqdm(
                    total=total or None, unit="B", unit_scale=True, desc=Path(path).name, leave=False
                ) as bar,
            ):
                while block := answer.read(_BLOCK):
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

    Example::

        >>> from ncf.datasets.download import download_wheel
        >>> try:
        ...     download_wheel("a requirement without a name", folder="wheels")
        ... except OSError as error:
        ...     print(str(error)[:49])
        pip download a requirement without a name failed:
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


def check_md5(path: str | os.PathLike[str], md5: str) -> None:
    """Compare a file with its published hash.

    Raises:
        ValueError: if it is another file.

    Example::

        >>> import tempfile
        >>> from ncf.datasets.download import check_md5
        >>> with tempfile.NamedTemporaryFile() as empty:
        ...     check_md5(empty.name, "d41d8cd98f00b204e9800998ecf8427e")
    """
    _same_hash(path, file_hash(path, "md5"), md5)


def open_archive(path: str | os.PathLike[str], members: list[str]) -> zipfile.ZipFile:
    """Open a zip to read some of its members in place: nothing is unpacked.

    Args:
        path: the zip.
        members: those that must be there.

    Raises:
        ValueError: if it is no zip, lacks a member, or holds one whose path leads outside.

    Example::

        >>> import tempfile, zipfile
        >>> from ncf.datasets.download import open_archive
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with zipfile.ZipFile(f"{folder}/ml.zip", "w") as archive:
        ...         archive.writestr("ml/u.data", "1 31 2")
        ...     with open_archive(f"{folder}/ml.zip", ["ml/u.data"]) as archive:
        ...         archive.read("ml/u.data")
        b'1 31 2'
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
            raise ValueError(f"{path} is refused: its member {outside[0]!r} leads outside the archive")
        raise ValueError(f"{path} has no member {missing[0]!r}: it is another file")
    return archive


def _same_hash(name: str | os.PathLike[str], found: str, expected: str) -> None:
    if found != expected:
        raise ValueError(f"{os.fspath(name)} is not the published file: its hash is {found}, not {expected}")
