"""Everything that a GPU has to show, in one command: tests, numbers beside the CPU's, speeds, a report.

::

    make gpu                    # writes gpu-report.md
    python -m benchmarks.gpu --seconds 2

On a machine without an NVIDIA GPU it says so in a line.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import ncf
from ncf.kernels.dispatch import can_fuse
from ncf.kernels.triton_operators import lookup_triton
from ncf.training.batches import Batch
from ncf.training.fused_step import FusedStep
from ncf.training.losses import LOSSES
from ncf.training.optimizers import make_optimizer
from ncf.training.steps import EagerStep, Step

USERS, ITEMS, POSITIVES, NEGATIVES = (
    138_493,
    26_744,
    8192,
    4,
)  # MovieLens-20M's shape; pairs of a batch: 40,960
SHAPES = {"factor 8": (8, (32, 16, 8)), "factor 64": (64, (256, 128, 64))}
TESTS = ["tests/kernels", "tests/training/test_precision.py"]


def measure(seconds: float) -> dict[str, Any]:
    """Everything measured on this machine's first GPU, as numbers for `report`."""
    device = torch.device("cuda", 0)
    properties = torch.cuda.get_device_properties(device)
    found: dict[str, Any] = {
        "machine": f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {platform.platform()}",
        "versions": f"ncf {ncf.__version__}, torch {torch.__version__}, CUDA {torch.version.cuda}, "
        f"Python {platform.python_version()}",
        "runs_triton": can_fuse(device),
        "failures": [],
        "rows": [],
    }
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS],
        capture_output=True,
        text=True,
        check=False,
    )
    found["tests"] = run.stdout.strip().splitlines()[-1] if run.stdout.strip() else run.stderr[-300:]
    found["failures"] += [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    source = torch.zeros(1 << 26, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / _seconds(lambda: target.copy_(source), seconds)
    found["bandwidth"] = bandwidth
    jobs: list[tuple[str, Callable[[], list[list[str]]]]] = [
        ("the same steps on GPU and CPU", lambda: _same_numbers(device))
    ]
    for shape in SHAPES:
        jobs += [
            (f"training, {shape}", lambda shape=shape: _training(shape, device, seconds)),
            (f"lookup, {shape}", lambda shape=shape: _lookup(shape, device, seconds, bandwidth)),
            (f"ranking, {shape}", lambda shape=shape: _ranking(shape, device, seconds)),
        ]
    for name, job in jobs:
        try:
            found["rows"] += [[name, *row] for row in job()]
        except Exception as error:  # the report says what failed; the rest is measured all the same
            found["failures"].append(f"{name}: {type(error).__name__}: {error}")
    return found


def report(found: dict[str, Any]) -> str:
    """The report in Markdown.

    Args:
        found: what `measure` returned.
    """
    lines = [
        "# Report of a GPU",
        "",
        f"Machine: {found['machine']}. Versions: {found['versions']}.",
        f"The Triton kernels {'run' if found['runs_triton'] else 'do not run'} on this GPU. "
        f"A copy in its memory moves {found['bandwidth'] / 1e9:,.0f} GB/s.",
        "",
        f"Tests: {found['tests']}.",
        "",
        "| work | by | figure | beside |",
        "|---|---|---|---|",
        *(f"| {' | '.join(map(str, row))} |" for row in found["rows"]),
        "",
        "## Failures",
        "",
        *([f"- {line}" for line in found["failures"]] or ["None."]),
    ]
    return "\n".join(lines) + "\n"


def _seconds(call: Callable[[], object], seconds: float) -> float:
    """The median time of a call on the device, after a few that compile and warm up."""
    for _ in range(4):
        call()
    torch.cuda.synchronize()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        began = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _model(shape: str, device: torch.device) -> ncf.NeuMF:
    factors, layers = SHAPES[shape]
    return ncf.NeuMF(USERS, ITEMS, factors=factors, layers=layers).to(device)


def _batch(device: torch.device, batches: int) -> Batch:
    random = torch.Generator(device).manual_seed(0)
    users = torch.randint(USERS, (batches, POSITIVES), generator=random, device=device)
    return Batch(
        users, torch.randint(ITEMS, (batches, POSITIVES, 1 + NEGATIVES), generator=random, device=device)
    )


def _training(shape: str, device: torch.device, seconds: float) -> list[list[str]]:
    """Samples a second: the fused step, the same compiled, and PyTorch's operations."""
    loss, samples = LOSSES["bce"], POSITIVES * (1 + NEGATIVES)
    rows: list[list[str]] = []
    for name in ("PyTorch, fused update", "fused", "fused and compiled", "fused in bf16"):
        model = _model(shape, device)
        model.is_fused_as_written &= "PyTorch" not in name  # the plain gather
        optimizer = make_optimizer(model, "adamw", learning_rate=1e-3)
        step: Step = EagerStep(model, optimizer, loss)
        if "PyTorch" not in name:
            step = FusedStep(
                model,
                optimizer,
                loss,
                samples_per_batch=samples,
                compiled="compiled" in name,
                autocast=torch.bfloat16 if "bf16" in name else None,
            )
        chunk = _batch(device, step.batches_per_call)
        rates = [1.0] * step.batches_per_call
        rate = step.batches_per_call * samples / _seconds(lambda s=step, c=chunk, r=rates: s(c, r), seconds)
        rows.append(
            [name, f"{rate / 1e6:.1f} million samples/s", f"{POSITIVES:,} × {1 + NEGATIVES} pairs a step"]
        )
    return rows


def _lookup(shape: str, device: torch.device, seconds: float, bandwidth: float) -> list[list[str]]:
    """Forward of the lookup beside its least bytes, PyTorch's gathers eager and compiled, and FBGEMM's."""
    model, batch = _model(shape, device), _batch(device, 1)
    users, items = batch.users[0], batch.items[0]
    tables = [model.embeddings.weight(table.name) for table in model.embeddings.tables]
    first = model.towers["mlp"].layers[0]
    arguments = (users, items, *tables, first.weight, first.bias)
    pairs, columns = items.numel(), sum(table.shape[1] for table in tables) // 2
    floor = 4 * (len(users) + min(ITEMS, pairs)) * columns + 8 * (len(users) + pairs)
    floor += 4 * pairs * (tables[0].shape[1] + len(first.weight))
    calls: dict[str, Callable[[], object]] = {
        "fused": lambda: lookup_triton(*arguments),
        "eager": lambda: ncf.kernels.lookup_reference(*arguments),
    }
    compiled = torch.compile(ncf.kernels.lookup_reference)
    calls["compiled"] = lambda: compiled(*arguments)
    embeddings = model.embeddings
    calls["FBGEMM, rows alone"] = lambda: embeddings.collective_lookup(users, items.flatten())
    rows = []
    with torch.no_grad():
        for name, call in calls.items():
            taken = _seconds(call, seconds)
            share = f"{floor / taken / bandwidth:.0%} of the copy's bandwidth, by the least bytes"
            rows.append([name, f"{taken * 1e6:.0f} µs", share])
    return rows


def _ranking(shape: str, device: torch.device, seconds: float) -> list[list[str]]:
    """Users a second, 1 + 100 candidates and the whole catalogue."""
    scorer = _model(shape, device).scorer()
    users = torch.arange(4096, device=device)
    lists = torch.randint(ITEMS, (4096, 101), device=device)
    some, every = users[:256], torch.arange(ITEMS, device=device)
    listed = len(users) / _seconds(lambda: scorer.score(users, lists), seconds)
    whole = len(some) / _seconds(lambda: scorer.score(some, every).topk(10, dim=1), seconds)
    return [
        ["scores of 1 + 100", f"{listed:,.0f} users/s", "4,096 users at once"],
        ["whole catalogue, best 10", f"{whole:,.0f} users/s", "256 users at once"],
    ]


def _same_numbers(device: torch.device) -> list[list[str]]:
    """Losses of the same batches: the fused step on the GPU, PyTorch's operations on the CPU."""
    rows = []
    for name in ("GMF", "MLP", "NeuMF", "MatrixFactorization"):
        for loss in ("bce", "bpr"):
            losses = []
            for place in (device, torch.device("cpu")):
                model = getattr(ncf, name)(USERS, ITEMS, init_std=0.1).to(place)
                optimizer = make_optimizer(model, "adamw", learning_rate=1e-3)
                step: Step = EagerStep(model, optimizer, LOSSES[loss])
                if place.type == "cuda":
                    step = FusedStep(model, optimizer, LOSSES[loss], samples_per_batch=1 << 15)
                batch = _batch(torch.device("cpu"), 2)
                chunk = Batch(batch.users.to(place), batch.items.to(place))
                # The later calls are one that is captured in a CUDA graph, and one that replays it.
                parts = [step(chunk, [1.0, 0.5]).cpu() for _ in range(5)]
                losses.append(torch.cat(parts))
            apart = float((losses[0] / losses[1] - 1).abs().max())
            rows.append(
                [f"{name}, {loss}", f"losses {apart:.1e} apart, relative", "ten steps, and the CPU's"]
            )
            if not apart < 1e-4:
                raise AssertionError(f"{name}, {loss}: losses of GPU and CPU are {apart:.1e} apart")
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Measure and write the report; or say that there is no GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description="Tests and figures of a GPU."
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure")
    parser.add_argument("--write", type=Path, default=Path("gpu-report.md"))
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("There is no NVIDIA GPU here that PyTorch can use: nothing was measured.")
        return 0
    found = measure(options.seconds)
    options.write.write_text(report(found))
    options.write.with_suffix(".json").write_text(json.dumps(found, indent=1))
    print(f"{options.write}: {len(found['rows'])} figures, {len(found['failures'])} failures")
    return 1 if found["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
