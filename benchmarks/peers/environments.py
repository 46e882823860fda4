"""An environment for each library: their pins cannot live together."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
OURS = "ours"
PEERS = ("librecommender", "recbole", "cornac", "implicit", "recommenders")


def home() -> Path:
    """Where the environments are: ``NCF_PEERS_HOME``, or ``~/.cache/ncf/peers``."""
    return Path(os.environ.get("NCF_PEERS_HOME") or Path.home() / ".cache/ncf/peers")


def requirements(peer: str) -> list[list[str]]:
    """Arguments of ``pip install``, call by call.

    torch comes first and by itself: alone it is the build that this machine's index prefers, asked for by
    another package it may be one of several gigabytes. ``requirements-alone.txt`` is installed without
    what it asks for.
    """
    folder = HERE / peer
    pins = (folder / "requirements.txt").read_text().split()
    calls = [[pin] for pin in pins if pin.startswith("torch==")] + [pins]
    alone = folder / "requirements-alone.txt"
    if alone.exists():
        calls.append(["--no-deps", *alone.read_text().split()])
    return calls


def python_for(peer: str, log: Path) -> Path:
    """The interpreter of a peer's environment, which is made or brought up to date if need be.

    Raises:
        RuntimeError: if it cannot be made; the log says why.
    """
    if peer == OURS:
        return Path(sys.executable)
    folder = home() / peer
    python, stamp = folder / "bin/python", folder / "installed"
    calls = requirements(peer)
    digest = hashlib.sha256(repr(calls).encode()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text() == digest:
        return python
    print(f"{peer}: installing into {folder}", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # TensorFlow 2.15, the last that LibRecommender works with, needs Python 3.11 or older.
    base = sys.executable if sys.version_info < (3, 12) else shutil.which("python3.11") or sys.executable
    steps = [] if python.exists() else [[base, "-m", "venv", str(folder)]]
    steps += [[str(python), "-m", "pip", "install", "--quiet", *call] for call in calls]
    with log.open("w") as output:
        for step in steps:
            if subprocess.run(step, stdout=output, stderr=subprocess.STDOUT).returncode:
                raise RuntimeError(f"no environment for {peer}: see {log}")
    stamp.write_text(digest)
    return python
