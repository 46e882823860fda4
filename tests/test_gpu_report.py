from __future__ import annotations

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
# Made up, in the form that `benchmarks.gpu.measure` returns: no GPU has been measured.
SAMPLE = {
    "machine": "A GPU, 80 GiB, Linux",
    "versions": "ncf 0, torch 0, CUDA 0, Python 0",
    "runs_triton": True,
    "bandwidth": 1.5e12,
    "tests": "3 passed",
    "rows": [["training, factor 8", "fused", "1.0 million samples/s", "8,192 × 5 pairs a step"]],
    "failures": [],
}


@pytest.mark.skipif(not find_spec("triton"), reason="needs triton")
def test_the_report_is_rendered_from_its_data() -> None:
    from benchmarks.gpu import report

    text = report(SAMPLE)
    assert text.startswith("# Report of a GPU\n\nMachine: A GPU, 80 GiB, Linux.")
    assert "| training, factor 8 | fused | 1.0 million samples/s | 8,192 × 5 pairs a step |\n" in text
    assert "moves 1,500 GB/s" in text
    assert text.endswith("## Failures\n\nNone.\n")
    assert report(SAMPLE | {"failures": ["ranking: no memory"]}).endswith("\n- ranking: no memory\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.skipif(not find_spec("triton"), reason="needs triton")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from benchmarks.gpu import main

    assert main(["--write", str(tmp_path / "report.md")]) == 0
    assert capsys.readouterr().out.startswith("There is no NVIDIA GPU here")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU")
@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_gpu_says_so_in_a_line() -> None:
    # Called by a make, as `make test` does, another would print the folders it enters.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    run = subprocess.run(
        ["make", "gpu"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout == "There is no NVIDIA GPU here: nothing was measured.\n"
