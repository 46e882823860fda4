"""Kill a job again and again, of two processes or one; each life is forked, since imports take longer than the job.

python -m tests.distributed.forks FOLDER sharded|local|eager KILLS
"""

from __future__ import annotations

import importlib
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from . import job
from .workers import fork, statuses

EPOCHS = {"sharded": 5, "local": 6, "eager": 6}
LATE = (
    "torchrec.distributed.model_parallel",
    "torchrec.distributed.planner",
    "torchrec.optim.keyed",
    "torch.distributed.checkpoint",
    "torch.distributed.optim",
    "ncf.distributed.checkpoint_planner",
)


def start(folder: Path, kind: str) -> list[int]:
    """Fork the processes of one life; return when they have met, or are gone."""
    reader, writer = os.pipe()
    children = fork(live, processes(kind), folder, kind, writer)
    os.close(writer)
    for _ in children:
        os.read(reader, 1)
    os.close(reader)
    return children


def processes(kind: str) -> int:
    """How many processes a job has."""
    return 2 if kind == "sharded" else 1


def live(rank: int, world: int, folder: Path, kind: str, writer: int) -> None:
    """What a process does until it ends or is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    job.run(folder, EPOCHS[kind], ready=lambda: os.write(writer, b"."), kind=kind)


def main(root: Path, kind: str, kills: int) -> None:
    """Print how many kills there were, and how many runs came to their end right in spite of them."""
    for module in LATE:  # what a job imports when it needs it: before the forks, once for all of them
        importlib.import_module(module)
    began = time.monotonic()
    world = processes(kind)
    well = [0] * world
    assert statuses(start(root / "undisturbed", kind), seconds=120) == well
    began = time.monotonic()
    assert statuses(start(root / "again", kind), seconds=120) == well
    lifetime = time.monotonic() - began
    expected = job.digests(root / "undisturbed", world)
    assert job.digests(root / "again", world) == expected
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}", file=sys.stderr)
    random.seed(seed)
    killed = finished = 0
    folder = root / "killed"
    while killed < kills or not finished:
        children = start(folder, kind)
        if killed < kills:
            time.sleep(random.uniform(0.0, 0.5 * lifetime))
            for child in random.sample(children, random.choice([1, world])):
                os.kill(child, signal.SIGKILL)  # a process that has ended is still there to be waited for
        ended = statuses(children, seconds=120)  # whoever was left alone must not hang
        assert ended == well or signal.SIGKILL in ended, "a life ended by itself"
        killed += signal.SIGKILL in ended
        print(f"{time.monotonic() - began:.1f} s: statuses {ended}, killed {killed}", file=sys.stderr)
        if ended == well:
            assert job.digests(folder, world) == expected, f"other weights after {killed} kills"
            finished += 1
            shutil.rmtree(folder)
    print(f"killed {killed}, finished {'some' if finished else 'none'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
