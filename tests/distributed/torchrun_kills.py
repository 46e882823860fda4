"""Kill processes of a job that ``torchrun`` started and starts again; compare with a job that was left alone.

python -m tests.distributed.torchrun_kills FOLDER KILLS
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from .job import digests

EPOCHS, WORLD = 6, 2


def start(folder: Path, restarts: int) -> subprocess.Popen[str]:
    """Start the job under torchrun."""
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORLD)]
    command += ["--max-restarts", str(restarts), "-m", "tests.distributed.job", str(folder), str(EPOCHS)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_LOGS": "-all"}
    # Else a restarted process may read the address of one that was killed: see docs/sharding.md.
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(job: subprocess.Popen[str]) -> None:
    """Wait for the end; print what was said if it is not a good one."""
    _, said = job.communicate()
    if job.returncode:
        sys.exit(said)


def pids(folder: Path) -> list[int]:
    """The processes of the newest start, once all have met: what happens before is torchrun's and gloo's."""
    files = [folder / f"pid-{rank}" for rank in range(WORLD)]
    return [int(file.read_text()) for file in files if file.exists()]


def run(folder: Path, kills: int, window: float) -> int:
    """One job to its end, killed at most so many times, each within a window of seconds; return how many times."""
    job, dead, killed = start(folder, 2 * kills), set[int](), 0
    while killed < kills and job.poll() is None:
        alive = pids(folder)
        if len(alive) < WORLD or dead & set(alive):
            time.sleep(0.02)
            continue
        time.sleep(random.uniform(0.0, window))
        if job.poll() is None and not (folder / "digest-0").exists():
            for pid in random.sample(alive, random.choice([1, 2])):
                with suppress(ProcessLookupError):  # torchrun was quicker
                    os.kill(pid, signal.SIGKILL)
            killed += 1
            places = sorted((folder / "checkpoints").glob("step-*")) or ["nothing"]
            print(f"killed at {places[-1]}", file=sys.stderr)
        dead |= set(alive)
    finish(job)
    return killed


def main(root: Path, kills: int) -> None:
    """Print how often a process was killed; fail if the weights are other ones."""
    began = time.monotonic()
    finish(start(root / "undisturbed", 0))
    window = 0.2 * (time.monotonic() - began)  # most of a life is imports
    killed = jobs = 0
    while killed < kills:
        folder = root / f"killed-{jobs}"
        killed += run(folder, kills - killed, window)
        if digests(folder, WORLD) != digests(root / "undisturbed", WORLD):
            sys.exit("the weights differ")
        jobs += 1
        window *= 0.7  # where a job was quicker than its killer
    print(f"killed {killed}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
