"""Kill a job of two processes again and again; each life is forked, since imports take longer than the job."""

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

EPOCHS, WORLD = 5, 2
LATE = (
    "torchrec.distributed.model_parallel",
    "torchrec.distributed.planner",
    "torchrec.optim.keyed",
    "torch.distributed.checkpoint",
    "torch.distributed.optim",
    "ncf.distributed.checkpoint_planner",
)


def start(folder: Path) -> list[int]:
    """Fork the processes of one life; return when they have met, or are gone."""
    reader, writer = os.pipe()
    children = fork(live, WORLD, folder, writer)
    os.close(writer)
    for _ in children:
        os.read(reader, 1)
    os.close(reader)
    return children


def live(rank: int, world: int, folder: Path, writer: int) -> None:
    """What a process does until it ends or is killed."""
    job.run(folder, EPOCHS, ready=lambda: os.write(writer, b"."))


def main(root: Path, kills: int) -> None:
    """Print how many kills there were, and how many runs came to their end right in spite of them."""
    for module in LATE:  # what a job imports when it needs it: before the forks, once for all of them
        importlib.import_module(module)
    began = time.monotonic()
    assert statuses(start(root / "undisturbed")) == [0, 0]
    lifetime = time.monotonic() - began
    expected = job.digests(root / "undisturbed", WORLD)
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
        ended = statuses(children)  # whoever was left alone must not hang
        assert ended == [0, 0] or signal.SIGKILL in ended, "a life ended by itself"
        killed += signal.SIGKILL in ended
        print(f"{time.monotonic() - began:.1f} s: statuses {ended}, killed {killed}", file=sys.stderr)
        if ended == [0, 0]:
            assert job.digests(folder, WORLD) == expected, f"other weights after {killed} kills"
            finished += 1
            shutil.rmtree(folder)
    print(f"killed {killed}, finished {'some' if finished else 'none'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
