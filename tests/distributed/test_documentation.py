"""The documentation's script for several processes, run by several processes as it is printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCKS = [
    (page.name, block)
    for page in PAGES
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    if "shard(" in block and "world_size()" in block
]


def test_the_documentation_shows_a_script_for_several_processes() -> None:
    assert BLOCKS


@pytest.mark.slow
@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=[page for page, _ in BLOCKS])
def test_a_script_of_the_documentation_runs_under_torchrun(page: str, block: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    # One write a process, since both share a pipe.
    last = "\nimport os\nos.write(1, f'done {rank()} {world_size()} {len(ranking.users)}\\n'.encode())\n"
    script.write_text(block + last, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(script),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    if done.returncode and re.search(r"ConnectionError|could not be|No matching distribution", done.stderr):
        pytest.skip("MovieLens-100K cannot be had here")
    assert done.returncode == 0, done.stderr[-3000:]
    ended = sorted(line.split() for line in done.stdout.splitlines() if line.startswith("done"))
    assert [line[1:3] for line in ended] == [["0", "2"], ["1", "2"]]
    assert ended[0][3] == ended[1][3]  # figures of all users, on every process
