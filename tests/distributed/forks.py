"""Kill a job of two processes again and again; each life is forked, since imports take longer than the job."""

from __future__ import annotations

import importlib
import os
import random
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

from . import job

EPOCHS, WORLD = 5, 2
LATE = (
    "torchrec.distributed.model_parallel",
    "torchrec.distributed.planner",
    "torchrec.optim.keyed",
    "torch.distributed.checkpoint",
    "torch.distributed.optim",
    "ncf.pieces",
)


def start(folder: Path) -> list[int]:
    """Fork the processes of one life; return when they have met."""
    reader, writer = os.pipe()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(WORLD):
        child = os.fork()
        if child == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
            code = 1
            try:
                job.run(folder, EPOCHS, ready=lambda: os.write(writer, b"."))
                code = 0
            except Exception as error:  # what gloo raises when the other process is gone
                print(f"rank {rank}: {error!r}", file=sys.stderr, flush=True)
            finally:
                os._exit(code)
        children.append(child)
    for _ in children:
        os.read(reader, 1)
    os.close(reader)
    os.close(writer)
    return children


def wait(children: list[int], seconds: float = 60.0) -> list[int]:
    """The exit statuses; a process that hangs is a failure."""
    statuses = {}
    end = time.monotonic() + seconds
    while len(statuses) < len(children):
        for child in children:
            if child not in statuses and (found := os.waitpid(child, os.WNOHANG))[0]:
                statuses[child] = found[1]
        if time.monotonic() > end:
            for child in children:
                os.kill(child, signal.SIGKILL)
            raise TimeoutError("a process hangs after the other was killed")
        time.sleep(0.005)
    return [statuses[child] for child in children]


def digests(folder: Path) -> list[str]:
    """What the job leaves at its end."""
    return [(folder / f"digest-{rank}").read_text() for rank in range(WORLD)]


def main(root: Path, kills: int) -> None:
    """Print how many kills there were, and how many runs came to their end right in spite of them."""
    os.environ |= {"WORLD_SIZE": str(WORLD), "LOCAL_WORLD_SIZE": str(WORLD), "MASTER_ADDR": "127.0.0.1"}
    for module in LATE:  # what a job imports when it needs it: before the forks, once for all of them
        importlib.import_module(module)
    began = time.monotonic()
    assert wait(start(root / "undisturbed")) == [0, 0]
    lifetime = time.monotonic() - began
    expected = digests(root / "undisturbed")
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}", file=sys.stderr)
    random.seed(seed)
    killed = finished = 0
    folder = root / "killed"
    while killed < kills or not finished:
        children = start(folder)
        if killed < kills:
            time.sleep(random.uniform(0.0, 0.5 * lifetime))
            for child in random.sample(children, random.choice([1, 2])):
                os.kill(child, signal.SIGKILL)  # a process that has ended is still there to be waited for
        statuses = wait(children)
        assert statuses == [0, 0] or signal.SIGKILL in statuses, "a life ended by itself"
        killed += signal.SIGKILL in statuses
        print(f"{time.monotonic() - began:.1f} s: statuses {statuses}, killed {killed}", file=sys.stderr)
        if statuses == [0, 0]:
            assert digests(folder) == expected, f"other weights after {killed} kills"
            finished += 1
            shutil.rmtree(folder)
    print(f"killed {killed}, finished {'some' if finished else 'none'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
