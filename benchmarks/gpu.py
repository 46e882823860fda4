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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import ncf
from benchmarks import kernel_floors
from benchmarks.planted import plant
from ncf.data.candidates import Candidates, Catalogue
from ncf.distributed.sharding import shard
from ncf.kernels.dispatch import can_fuse
from ncf.kernels.triton_operators import lookup_triton
from ncf.models.scoring import Ranker
from ncf.training.batches import Batch
from ncf.training.fused_step import FusedStep
from ncf.training.losses import LOSSES
from ncf.training.optimizers import make_optimizer
from ncf.training.steps import CollectiveStep, EagerStep, Step

TESTS = ("tests/kernels", "tests/training/test_precision.py", "tests/distributed/test_gpus.py")


@dataclass(frozen=True)
class Sizes:
    """Of the data and the models: by default MovieLens-20M's, and batches of 40,960 pairs."""

    users: int = 138_493
    items: int = 26_744
    positives: int = 8192
    negatives: int = 4
    shapes: tuple[tuple[str, int, tuple[int, ...]], ...] = (
        ("factor 8", 8, (32, 16, 8)),
        ("factor 64", 64, (256, 128, 64)),
    )
    listed: int = 4096  # users who are ranked among 1 + 100 candidates at once
    whole: int = 1024  # users who are ranked in the catalogue at once
    seen: int = 100  # items of each that are left out
    planted: tuple[int, int, float] = (
        6040,
        3706,
        165.6,
    )  # users, items, mean items of a user: MovieLens-1M's
    epochs: int = 8
    copied: int = 1 << 26  # numbers
    product: int = 8192  # side of a square matrix
    batches: int = 16  # in a call of the fused step, at most
    samples: tuple[str, ...] = ("GMF", "MLP", "NeuMF", "MatrixFactorization")


@dataclass(frozen=True)
class Rates:
    """What this device does at most, as measured: bytes, and operations of products, a second."""

    bandwidth: float
    tf32: float
    bf16: float


class Collection:
    """The measurements of one device; each method is a part of the report, whose rows it returns."""

    def __init__(self, device: torch.device, sizes: Sizes, seconds: float) -> None:
        self.device, self.sizes, self.seconds = device, sizes, seconds

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def time(self, call: Callable[[], object]) -> float:
        """The median time of a call, after a few that compile and warm up.

        Calls are waited for some 10 ms at a time: `ncf.Trainer` waits no oftener.
        """
        for _ in range(4 if self.seconds else 1):
            call()
        times, calls, end = [], 1, time.perf_counter() + self.seconds
        while time.perf_counter() < end or len(times) < (6 if self.seconds else 1):
            self.wait()
            began = time.perf_counter()
            for _ in range(calls):
                call()
            self.wait()
            times.append((time.perf_counter() - began) / calls)
            calls = max(1, int(0.01 / times[0])) if self.seconds else 1
        return statistics.median(times)

    def rates(self) -> Rates:
        """A copy, and products of square matrices."""
        source = torch.zeros(self.sizes.copied, dtype=torch.float32, device=self.device)
        target = torch.empty_like(source)
        bandwidth = 2 * source.nbytes / self.time(lambda: target.copy_(source))
        found, side = [], self.sizes.product
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            for dtype in (torch.float32, torch.bfloat16):
                matrix = torch.ones(side, side, dtype=dtype, device=self.device)
                found.append(2 * side**3 / self.time(lambda matrix=matrix: matrix @ matrix))
        finally:
            torch.set_float32_matmul_precision(before)
        return Rates(bandwidth, *found)

    def model(self, shape: tuple[str, int, tuple[int, ...]], **options: Any) -> ncf.NeuMF:
        """A NeuMF of the sizes."""
        _, factors, layers = shape
        return ncf.NeuMF(self.sizes.users, self.sizes.items, factors=factors, layers=layers, **options)

    def batch(self, device: torch.device, batches: int) -> Batch:
        """Random pairs."""
        random, sizes = torch.Generator(device).manual_seed(0), self.sizes
        shape = (batches, sizes.positives)
        users = torch.randint(sizes.users, shape, generator=random, device=device)
        items = torch.randint(sizes.items, (*shape, 1 + sizes.negatives), generator=random, device=device)
        return Batch(users, items, weights=torch.ones(batches, device=device))

    def shares(
        self, work: Sequence[kernel_floors.Work], taken: float, rates: Rates, bf16: bool = False
    ) -> str:
        """Least bytes, and products, of some work as shares of what the device does at most."""
        moved, done = sum(part.bytes for part in work), 2 * sum(part.products for part in work)
        # A product of fp32 numbers is three of tf32.
        most = rates.bf16 if bf16 else rates.tf32 / 3
        return f"{moved / taken / rates.bandwidth:.0%} of the bandwidth, {done / taken / most:.0%} of the tensor rate"

    def training(self, shape: tuple[str, int, tuple[int, ...]], rates: Rates) -> list[list[str]]:
        """Samples a second: the fused step, the same compiled, PyTorch's operations eager and compiled."""
        sizes = self.sizes
        samples = sizes.positives * (1 + sizes.negatives)
        widths = kernel_floors.Model(shape[1], shape[2])
        work = [
            *kernel_floors.lookup(sizes.users, sizes.items, sizes.positives, 1 + sizes.negatives, widths, 4)[
                :2
            ],
            kernel_floors.update(sizes.users, sizes.items, sizes.positives, 1 + sizes.negatives, widths),
        ]
        makers: dict[str, Callable[[], Step]] = {
            "PyTorch eager, update by kernel": lambda: self._eager(shape, "adamw"),
            "PyTorch eager, dense Adam": lambda: self._eager(shape, "adam"),
            "PyTorch compiled, dense Adam": lambda: self._eager(shape, "adam", compiled=True),
            "fused": lambda: self._fused(shape, samples),
            "fused and compiled": lambda: self._fused(shape, samples, compiled=True),
            "fused in bf16": lambda: self._fused(shape, samples, autocast=torch.bfloat16),
        }
        rows = []
        for name, make in makers.items():
            try:
                step = make()
                chunk, shares = self.batch(self.device, step.batches_per_call), [1.0] * step.batches_per_call
                taken = self.time(lambda s=step, c=chunk, r=shares: s(c, r)) / step.batches_per_call
            except Exception as error:  # the others are measured all the same
                rows.append([name, "failed", f"{type(error).__name__}: {error}"])
                continue
            share = self.shares(work, taken, rates, "bf16" in name) if "fused" in name else ""
            rows.append([name, f"{samples / taken / 1e6:.2f} million samples/s", share])
        return rows

    def _eager(self, shape: tuple[str, int, tuple[int, ...]], optimizer: str, compiled: bool = False) -> Step:
        model = self.model(shape).to(self.device)
        model.is_fused_as_written = False  # the plain gather
        made = make_optimizer(model, optimizer, learning_rate=1e-3)
        return EagerStep(torch.compile(model) if compiled else model, made, LOSSES["bce"])

    def _fused(self, shape: tuple[str, int, tuple[int, ...]], samples: int, **options: Any) -> Step:
        model = self.model(shape).to(self.device)
        adamw = make_optimizer(model, "adamw", learning_rate=1e-3)
        return FusedStep(
            model, adamw, LOSSES["bce"], samples_per_batch=samples, at_most=self.sizes.batches, **options
        )

    def fbgemm(self, shape: tuple[str, int, tuple[int, ...]], rates: Rates) -> list[list[str]]:
        """Samples a second where TorchRec holds the tables and FBGEMM looks up and updates."""
        samples, rows = self.sizes.positives * (1 + self.sizes.negatives), []
        names = ["rowwise_adagrad"]
        if self.device.type == "cuda":
            names += ["adamw", "partial_rowwise_adamw"]
        for name in names:
            try:
                sharded = shard(self.model(shape, device="meta"), "table_wise", optimizer=name, verbose=False)  # type: ignore[arg-type]
                optimizer = make_optimizer(sharded, "adamw", learning_rate=1e-3)
                step, chunk = CollectiveStep(sharded, optimizer, LOSSES["bce"]), self.batch(self.device, 1)
                taken = self.time(lambda s=step, c=chunk: s(c, [1.0]))
                rows.append(
                    [f"FBGEMM, {name}", f"{samples / taken / 1e6:.2f} million samples/s", "one process"]
                )
            except Exception as error:
                rows.append([f"FBGEMM, {name}", "failed", f"{type(error).__name__}: {error}"])
        return rows

    def lookup(self, shape: tuple[str, int, tuple[int, ...]], rates: Rates) -> list[list[str]]:
        """Forward of the lookup beside PyTorch's gathers, eager and compiled."""
        model, batch, sizes = self.model(shape).to(self.device), self.batch(self.device, 1), self.sizes
        users, items = batch.users[0], batch.items[0]
        tables = [model.embeddings.weight(table.name) for table in model.embeddings.tables]
        first: Any = model.towers["mlp"].layers[0]
        arguments: Any = (users, items, *tables, first.weight, first.bias)
        widths = kernel_floors.Model(shape[1], shape[2])
        work = kernel_floors.lookup(sizes.users, sizes.items, sizes.positives, 1 + sizes.negatives, widths, 4)
        compiled = torch.compile(ncf.kernels.lookup_reference)
        calls: dict[str, Callable[[], object]] = {
            "fused": lambda: lookup_triton(*arguments),
            "PyTorch eager": lambda: ncf.kernels.lookup_reference(*arguments),
            "PyTorch compiled": lambda: compiled(*arguments),
        }
        rows = []
        with torch.no_grad():
            for name, call in calls.items():
                taken = self.time(call)
                rows.append([name, f"{taken * 1e6:.0f} µs", self.shares(work[:1], taken, rates)])
        return rows

    def ranking(self, shape: tuple[str, int, tuple[int, ...]], rates: Rates) -> list[list[str]]:
        """Users a second: 1 + 100 candidates, the whole catalogue, the best 10; and by tables of scores."""
        sizes, cpu = self.sizes, torch.device("cpu")
        scorer = self.model(shape).to(self.device).scorer()
        random = torch.Generator().manual_seed(0)
        users, some = torch.arange(sizes.listed), torch.arange(sizes.whole)
        positives = torch.randint(sizes.items, (sizes.listed,), generator=random)
        lists = Candidates(
            users, positives, torch.randint(sizes.items, (sizes.listed, 100), generator=random)
        )
        seen = torch.rand(sizes.whole, sizes.items, generator=random) < sizes.seen / sizes.items
        seen[some, positives[: sizes.whole]] = False
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64, device=cpu), seen.sum(1).cumsum(0)])
        hidden = offsets, seen.nonzero()[:, 1]
        catalogue = Catalogue(some, positives[: sizes.whole], sizes.items, *hidden)
        every, widths = torch.arange(sizes.items), kernel_floors.Model(shape[1], shape[2])
        in_lists = [kernel_floors.scoring(sizes.listed, sizes.items, 101, widths, 4)]
        in_all = [kernel_floors.scoring(sizes.whole, sizes.items, sizes.items, widths, 4, common=True)]
        works: list[tuple[str, Any, list[kernel_floors.Work], int]] = [
            ("ranks among 1 + 100", lambda of: of.rank(scorer, lists), in_lists, sizes.listed),
            ("ranks in the catalogue", lambda of: of.rank(scorer, catalogue), in_all, sizes.whole),
            ("the best 10 of all", lambda of: of.top_k(scorer, some, 10, every, hidden), in_all, sizes.whole),
        ]
        rows = []
        for name, call, work, count in works:
            for how, of in (("by the kernel", type(scorer)), ("by a table of scores", Ranker)):
                taken = self.time(lambda call=call, of=of: call(of))
                rows.append(
                    [f"{name}, {how}", f"{count / taken:,.0f} users/s", self.shares(work, taken, rates)]
                )
        return rows

    def same_numbers(self) -> list[list[str]]:
        """Losses of the same batches: the fused step on the GPU, PyTorch's operations on the CPU."""
        rows, cpu = [], torch.device("cpu")
        for name in self.sizes.samples:
            for loss in ("bce", "bpr"):
                losses = []
                for place in (self.device, cpu):
                    model = getattr(ncf, name)(self.sizes.users, self.sizes.items, init_std=0.1).to(place)
                    optimizer = make_optimizer(model, "adamw", learning_rate=1e-3)
                    step: Step = EagerStep(model, optimizer, LOSSES[loss])
                    if not losses:
                        step = FusedStep(model, optimizer, LOSSES[loss], samples_per_batch=1 << 15)
                    else:
                        model.is_fused_as_written = False
                    batch = self.batch(cpu, 2)
                    chunk = Batch(batch.users.to(place), batch.items.to(place))
                    # The later calls are one that is captured in a CUDA graph, and one that replays it.
                    losses.append(torch.cat([step(chunk, [1.0, 0.5]).cpu() for _ in range(5)]))
                apart = float((losses[0] / losses[1] - 1).abs().max())
                verdict = "ten steps, and the CPU's" if apart < 1e-4 else "FAILED: more than 1e-4"
                rows.append([f"{name}, {loss}", f"losses {apart:.1e} apart, relative", verdict])
        return rows

    def quality(self) -> list[list[str]]:
        """Seconds of training until HR@10 has reached what the CPU's run ends with, less two hundredths."""
        interactions, _ = plant(*self.sizes.planted)
        split = ncf.leave_one_out(interactions)
        candidates = ncf.sample_candidates(split, "validation")
        found = {}
        for place in (torch.device("cpu"), self.device):
            model = ncf.NeuMF(split.train.num_users, split.train.num_items, init_std=0.1).to(place)
            trainer = ncf.Trainer(
                model, epochs=self.sizes.epochs, selection="last", learning_rate=4e-3, progress=False
            )
            history = trainer.fit(split, candidates)
            found["CPU" if not found else "GPU"] = [value or 0.0 for value in history.hr], history.seconds
        target, rows = found["CPU"][0][-1] - 0.02, []
        for name, (hr, seconds) in found.items():
            first = next((at for at, value in enumerate(hr) if value >= target), None)
            reached = "not reached" if first is None else f"{sum(seconds[: first + 1]):.2f} s"
            beside = f"HR@10 {hr[-1]:.3f} after {len(hr)} epochs, {sum(seconds):.2f} s"
            rows.append([f"HR@10 of {target:.3f}, {name}", reached, beside])
        return rows


def measure(
    seconds: float,
    device: torch.device | None = None,
    sizes: Sizes | None = None,
    tests: Sequence[str] = TESTS,
) -> dict[str, Any]:
    """Everything measured on a GPU, the machine's first by default, as numbers for `report`."""
    device, sizes = device or torch.device("cuda", 0), sizes or Sizes()
    found: dict[str, Any] = {
        "machine": platform.platform(),
        "versions": f"ncf {ncf.__version__}, torch {torch.__version__}, CUDA {torch.version.cuda}, "
        f"Python {platform.python_version()}",
        "runs_triton": can_fuse(device),
        "tests": "not run",
        "failures": [],
        "rows": [],
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["machine"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {found['machine']}"
    collection = Collection(device, sizes, seconds)
    rates = [Rates(torch.nan, torch.nan, torch.nan)]

    def attempt(name: str, job: Callable[[], list[list[str]] | None]) -> None:
        """Run a part; if it fails the report says so, and the rest is measured all the same."""
        try:
            rows = job() or []
        except Exception as error:
            found["failures"].append(f"{name}: {type(error).__name__}: {error}")
            return
        found["rows"] += [[name, *row] for row in rows]
        found["failures"] += [f"{name}: {' '.join(row)}" for row in rows if "failed" in " ".join(row).lower()]

    def run_tests() -> None:
        found["tests"], failures = _pytest(tests)
        found["failures"] += failures

    def run_rates() -> None:
        rates[0] = collection.rates()

    if tests:
        attempt("tests", run_tests)
    attempt("rates of the device", run_rates)
    found["rates"] = {"bandwidth": rates[0].bandwidth, "tf32": rates[0].tf32, "bf16": rates[0].bf16}
    attempt("the same steps on GPU and CPU", collection.same_numbers)
    for shape in sizes.shapes:
        parts = ("training", "lookup", "ranking", "fbgemm")
        for part in parts:
            job = getattr(collection, part)
            attempt(f"{part}, {shape[0]}", lambda job=job, shape=shape: job(shape, rates[0]))
    attempt("time to quality", collection.quality)
    return found


def _pytest(tests: Sequence[str]) -> tuple[str, list[str]]:
    """The last line of a run of tests, and the lines that say what failed."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *tests]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = run.stdout.strip().splitlines()
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    if run.returncode and not failures:
        failures = [f"tests: pytest ended with {run.returncode}: {run.stderr.strip()[-300:]}"]
    return lines[-1] if lines else "no output", failures


def report(found: dict[str, Any]) -> str:
    """The report in Markdown.

    Args:
        found: what `measure` returned.
    """
    rates = found["rates"]
    lines = [
        "# Report of a GPU",
        "",
        f"Machine: {found['machine']}. Versions: {found['versions']}.",
        f"The Triton kernels {'run' if found['runs_triton'] else 'do not run'} on this GPU. "
        f"A copy in its memory moves {rates['bandwidth'] / 1e9:,.0f} GB/s. Products of square matrices make "
        f"{rates['tf32'] / 1e12:,.0f} TFLOP/s in tf32 and {rates['bf16'] / 1e12:,.0f} in bf16.",
        "Shares are of these rates, by the least bytes and products of the work; fp32 counts thrice in tf32.",
        "",
        f"Tests: {found['tests']}.",
        "",
        "| work | by | figure | beside |",
        "|---|---|---|---|",
        *(f"| {' | '.join(map(_cell, row))} |" for row in found["rows"]),
        "",
        "## Failures",
        "",
        *([f"- {line}" for line in found["failures"]] or ["None."]),
    ]
    return "\n".join(lines) + "\n"


def _cell(text: Any) -> str:
    """A cell of a table: one line, without the mark between cells."""
    return " ".join(str(text).replace("|", "/").split())


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
