"""Peak memory of each of two processes that train sharded tables, above the same job with tiny ones.

A process should hold its share of the tables, their optimizer's state, and nothing that grows with a table beyond.
Exits with 1 if a process held more than that and an allowance for what is passing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.sharded_workers import DIM, SAMPLES, batch, build, sharded, training_step
from tests.distributed.workers import launch

WORLD, TINY = 2, 1000
PLANS = ("table_wise", "column_wise")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sharded_memory", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of both tables together")
    parser.add_argument("--steps", type=int, default=20, help="training steps, of 8192 samples")
    parser.add_argument("--allowance", type=float, default=50.0, help="MB a process may hold above its share")
    parser.add_argument("--save", action="store_true", help="also write the model; shown, not judged")
    parser.add_argument(
        "--whole", action="store_true", help="build whole tables first: what the check is to find"
    )
    options = parser.parse_args()
    rows = int(options.gigabytes * 1e9 / (2 * 4 * DIM))
    whole = 4 * DIM * rows / 1e6
    print(
        f"two tables of {rows:,} x {DIM}, {whole:,.0f} MB each; {WORLD} processes over gloo; peak MB above tiny tables"
    )
    worst = 0.0
    with TemporaryDirectory() as folder:
        for plan in PLANS:
            arguments = plan, options.steps, options.whole, str(Path(folder, plan)) if options.save else None
            tiny = launch(stages, WORLD, TINY, *arguments)
            full = launch(stages, WORLD, rows, *arguments)
            parts = WORLD if plan == "column_wise" else 1  # each keeps row-wise Adagrad's 4 bytes per row
            share = 2 * (whole + parts * 4 * rows / 1e6) / WORLD
            for rank in range(WORLD):
                above = {name: full[rank][name] - tiny[rank][name] for name in full[rank]}
                excess = max(above["build"], above["fill"], above["train"]) - share
                worst = max(worst, excess)
                shown = "  ".join(f"{name} {value:7,.0f}" for name, value in above.items())
                print(
                    f"{plan:12} rank {rank}  share {share:7,.0f}  {shown}  excess {excess:+5.0f}  "
                    f"(whole process {max(full[rank].values()):,.0f})",
                    flush=True,
                )
    if worst > options.allowance:
        sys.exit(f"a process held {worst:.0f} MB above its share: {options.allowance:.0f} MB are allowed")
    print(
        f"no process held more than its share and {max(worst, 0):.0f} MB; {options.allowance:.0f} MB are allowed"
    )


def stages(
    rank: int, world: int, rows: int, plan: str, steps: int, whole: bool, folder: str | None
) -> dict[str, float]:
    """Peak resident megabytes of this process after each stage of a job."""
    peaks = {}
    model = build("gmf", rows, device="cpu" if whole else "meta")
    peaks["build"] = peak()
    wrapped = sharded(model, plan)
    peaks["fill"] = peak()
    step = training_step(wrapped)
    for number in range(steps):
        step(batch(rows, SAMPLES // world, number * world + rank, 1 / world))
    peaks["train"] = peak()
    if folder is not None:
        wrapped.module.save(folder)  # type: ignore[operator, union-attr]
        peaks["save"] = peak()
    return peaks


def peak() -> float:
    """The most memory, in MB, that this process has held at a time (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("Linux alone says how much memory a process has held: /proc/self/status has no VmHWM")


if __name__ == "__main__":
    main()
