from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNELS = [
    "scores, a list per user",
    "scores, a common list",
    "ranks among a list",
    "ranks in the catalogue",
    "the best 10",
    "lookup, forward",
    "lookup, backward of rows",
    "lookup, backward of the weight",
    "update of rows, AdamW",
]

needs_triton = pytest.mark.skipif(not find_spec("triton"), reason="needs triton")


def _run(script: str) -> str:
    """What a script prints. The one that compiles puts a stand-in in the place of its process's CUDA driver."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    # What has not changed since it was last compiled is taken from Triton's cache.
    environment |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(ROOT / "build/triton")}
    command = [sys.executable, str(ROOT / "benchmarks" / script)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def _rows(text: str) -> list[list[str]]:
    """Cells of a Markdown table, its head first."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:1] == "|"]
    return [rows[0], *rows[2:]]


@needs_triton
def test_kernels_compile_without_a_device_and_take_what_is_documented() -> None:
    printed = _run("aot_kernels.py")
    page = (ROOT / "docs/kernels.md").read_text()
    head, *documented = _rows(page.split("<!-- resources: begin -->")[1].split("<!-- resources: end -->")[0])
    found, *table = _rows(printed)
    assert found == head
    assert [name for name in head if "registers" in name] == [f"sm_{t}: registers" for t in (80, 90, 100)]
    assert [row[:4] for row in table] == [row[:4] for row in documented]
    assert [row[0] for row in table[: len(KERNELS)]] == KERNELS
    for row in table:
        for first in range(4, len(head), 3):
            registers, shared, spills = row[first : first + 3]
            assert 16 <= int(registers) <= 255
            assert 0 <= float(shared) <= 163  # KiB of a processor of an A100; an H100 has more
            assert sum(map(int, spills.split(" + "))) <= 48  # bytes
    if printed.split(",")[0] in page:  # another version of Triton makes other code
        assert table == documented


def test_documented_floors_are_those_of_the_script() -> None:
    assert _run("kernel_floors.py").strip() in (ROOT / "docs/kernels.md").read_text()


def test_documented_bytes_of_a_step_are_those_of_the_script() -> None:
    from benchmarks.kernel_floors import step

    assert step() in (ROOT / "docs/kernels.md").read_text()
