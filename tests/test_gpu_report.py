from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from .kernels.conftest import interpreter as interpreter
from .kernels.interpreter import Interpreter

ROOT = Path(__file__).parents[1]
needs_triton = pytest.mark.skipif(not find_spec("triton"), reason="needs triton")
# Made up, in the form that `benchmarks.gpu.measure` returns: no GPU has been measured.
SAMPLE: dict[str, Any] = {
    "machine": "A GPU, 80 GiB, Linux",
    "versions": "ncf 0, torch 0, CUDA 0, Python 0",
    "runs_triton": True,
    "rates": {"bandwidth": 1.5e12, "tf32": 1.2e14, "bf16": 2.4e14},
    "tests": "3 passed",
    "rows": [
        [
            "training, factor 8",
            "fused",
            "1.00 million samples/s",
            "50% of the bandwidth, 1% of the tensor rate",
        ],
        ["ranking, factor 8", "ranks among 1 + 100, by the kernel", "1,000 users/s", "2% of the bandwidth"],
        ["fbgemm, factor 8", "FBGEMM, adamw", "failed", "RuntimeError: one | and\nanother line"],
        ["time to quality", "HR@10 of 0.600, GPU", "1.00 s", "HR@10 0.610 after 8 epochs, 2.00 s"],
    ],
    "failures": [],
}
# Enough to go through every line; under Triton's interpreter a pair takes long.
TINY: dict[str, Any] = {
    "users": 12,
    "items": 40,
    "positives": 4,
    "negatives": 1,
    "shapes": (("tiny", 4, (8, 8, 4)),),
    "listed": 3,
    "whole": 2,
    "seen": 3,
    "planted": (20, 60, 21.0),
    "epochs": 1,
    "copied": 8,
    "product": 4,
    "batches": 1,
    "samples": ("NeuMF",),
}


@needs_triton
def test_the_report_is_rendered_from_its_data() -> None:
    from benchmarks.gpu import report

    text = report(SAMPLE)
    assert text.startswith("# Report of a GPU\n\nMachine: A GPU, 80 GiB, Linux.")
    assert (
        "| training, factor 8 | fused | 1.00 million samples/s | 50% of the bandwidth, 1% of the tensor rate |\n"
        in text
    )
    assert "moves 1,500 GB/s. Products of square matrices make 120 TFLOP/s in tf32 and 240 in bf16." in text
    assert "| FBGEMM, adamw | failed | RuntimeError: one / and another line |\n" in text
    assert text.endswith("## Failures\n\nNone.\n")
    assert report(SAMPLE | {"failures": ["ranking: no memory"]}).endswith("\n- ranking: no memory\n")


def _measured(sizes: dict[str, Any], broken: str | None) -> dict[str, Any]:
    """The whole collection on a CPU: interpreted kernels, nothing compiled, and perhaps a part that fails."""
    from benchmarks import gpu

    def as_it_is(function: Any, **_: Any) -> Any:
        return function

    def fails(*_: Any) -> Any:
        raise RuntimeError("no memory")

    with (
        mock.patch("ncf.kernels.dispatch._has_triton", return_value=True),
        mock.patch("ncf.models.scoring.fits", return_value=False),  # the kernel in C
        mock.patch("torch.compile", as_it_is),
        mock.patch.object(gpu.Collection, broken, fails) if broken else nullcontext(),
    ):
        return gpu.measure(0.0, torch.device("cpu"), gpu.Sizes(**sizes), tests=())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@needs_triton
def test_everything_that_a_gpu_is_measured_by_runs(interpreter: Interpreter) -> None:
    """So that the first GPU does not fail for a reason that a CPU can show."""
    from benchmarks.gpu import report

    found = interpreter(_measured, TINY, None)
    assert found["failures"] == []
    works = {(row[0], row[1]) for row in found["rows"]}
    parts = {work for work, _ in works}
    assert parts == {
        *(f"{part}, tiny" for part in ("training", "lookup", "ranking", "fbgemm")),
        "the same steps on GPU and CPU",
        "time to quality",
    }
    for by in (
        "fused",
        "fused and compiled",
        "fused in bf16",
        "PyTorch eager, dense Adam",
        "PyTorch compiled, dense Adam",
    ):
        assert ("training, tiny", by) in works
    for what in ("ranks among 1 + 100", "ranks in the catalogue", "the best 10 of all"):
        assert {
            ("ranking, tiny", f"{what}, by the kernel"),
            ("ranking, tiny", f"{what}, by a table of scores"),
        } <= works
    assert "## Failures\n\nNone.\n" in report(found)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@needs_triton
def test_a_part_that_fails_is_reported_and_the_others_go_on(interpreter: Interpreter) -> None:
    found = interpreter(_measured, TINY | {"samples": ()}, "training")
    assert found["failures"] == ["training, tiny: RuntimeError: no memory"]
    assert {"ranking, tiny", "time to quality"} <= {row[0] for row in found["rows"]}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@needs_triton
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
