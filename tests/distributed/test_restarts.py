"""Jobs that are killed go on, and end with the weights of one that never was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUIET = os.environ | {
    "OMP_NUM_THREADS": "1",
    "TORCH_LOGS": "-all",
    "PYTHONPATH": str(ROOT),
}


ALL = bool(os.environ.get("NCF_TEST_ALL"))  # 200 kills instead of some


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("kind", "kills"),
    [("sharded", 80 if ALL else 10), ("local", 80 if ALL else 10), ("eager", 40 if ALL else 1)],
)
def test_a_job_killed_at_random_moments_ends_with_the_same_weights(
    tmp_path: Path, kind: str, kills: int
) -> None:
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.distributed.forks",
        str(tmp_path),
        kind,
        str(kills),
    ]
    done = subprocess.run(command, cwd=ROOT, env=QUIET, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == f"killed {kills}, finished some\n"


@pytest.mark.slow
def test_torchrun_restarts_a_job_that_lost_a_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.distributed.torchrun_kills", str(tmp_path), "1"]
    done = subprocess.run(command, cwd=ROOT, env=QUIET, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "killed 1\n"
