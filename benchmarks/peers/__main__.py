"""Measure the peers and ours in turn, and write the figures with the machine they are of."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.peers.environments import OURS, PEERS, python_for
from benchmarks.peers.report import Result, figures, ratios, summarize

ROOT = Path(__file__).parents[2]
# Contestant: (folder of its work.py, more arguments)
CONTESTANTS: dict[str, tuple[str, list[str]]] = {
    "ncf": (OURS, []),
    "ncf-eager": (OURS, ["--eager"]),
    **{peer: (peer, []) for peer in PEERS},
}
LABELS = {"ncf": "ncf", "ncf-eager": "ncf, compile=False"}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--peers", default=",".join(PEERS), help="which, with commas between (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="times that each is run, in turn (default: 3)")
    parser.add_argument("--epochs", type=int, default=20, help="epochs at batch 256 (default: 20)")
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads of each (default: 1; none of them gains by two)"
    )
    parser.add_argument("--quick", action="store_true", help="three epochs of everything, once: does it run?")
    parser.add_argument(
        "--at-size",
        type=int,
        metavar="INTERACTIONS",
        help="random ones of MovieLens-20M's shape instead: one epoch at two batch sizes, rates and memory",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/peers"), help="where the results go")
    options = parser.parse_args()
    peers = [peer for peer in options.peers.split(",") if peer]
    unknown = sorted(set(peers) - set(PEERS))
    if unknown:
        parser.error(f"--peers {','.join(unknown)}: choose from {','.join(PEERS)}")
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if options.at_size:
        os.environ["NCF_PEERS_AT_SIZE"] = "1"
    prefix = write_random(out, options.at_size) if options.at_size else write_data(out)
    pythons: dict[str, Path] = {}
    for name in [*LABELS, *peers]:
        try:
            pythons[name] = python_for(CONTESTANTS[name][0], out / f"{name}-install.log")
        except RuntimeError as error:
            print(error, flush=True)
    if options.at_size:
        at_size(pythons, prefix, out, options.threads)
        return
    rounds = 1 if options.quick else options.rounds
    arguments = ["--epochs", str(options.epochs), *(["--quick"] if options.quick else [])]
    report: dict[str, Any] = {"machine": machine(options.threads), "arguments": arguments, "results": {}}
    for number in range(rounds):
        for name, python in pythons.items():
            folder, more = CONTESTANTS[name]
            command = [str(python), "-m", f"benchmarks.peers.{folder}.work", "--data", str(prefix)]
            began = time.perf_counter()
            result = run(
                [*command, *arguments, "--seed", str(number), *more],
                out / f"{name}-{number}",
                options.threads,
            )
            outcome = f"failed: see {out / f'{name}-{number}.log'}" if result is None else "done"
            print(
                f"round {number + 1}/{rounds}  {name:15} {time.perf_counter() - began:5.0f} s  {outcome}",
                flush=True,
            )
            if result is not None:
                report["results"].setdefault(name, []).append(result)
        write_report(report, out)  # after every round, so that a run cut short leaves its figures
    print((out / "peers.md").read_text())


def write_data(out: Path) -> Path:
    """Write the files that every contestant reads, unless they are there; return their prefix."""
    from ncf.data.candidates import sample_candidates
    from ncf.data.splitting import leave_one_out
    from ncf.datasets import movielens, write_ncf

    prefix = out / "ml-100k"
    if not prefix.with_suffix(".test.negative").exists():
        split = leave_one_out(movielens.load("100k").interactions, validation=False)
        write_ncf(prefix, split, sample_candidates(split))
    return prefix


def write_random(out: Path, interactions: int) -> Path:
    """Write random pairs of MovieLens-20M's shape, and one line of a test set that has the last user and item."""
    import numpy as np

    users, items = 138_493, 26_744
    prefix = out / f"random-{interactions}"
    if not prefix.with_suffix(".test.negative").exists():
        random = np.random.default_rng(0)
        of_users = np.arange(users) * items + random.integers(
            0, items, users
        )  # some peers know no other users
        pairs = random.integers(0, users * items, max(0, interactions - users))
        pairs = np.unique(np.concatenate([of_users, pairs]))
        rows = np.stack([pairs // items, pairs % items, np.ones_like(pairs), np.arange(len(pairs))], axis=1)
        np.savetxt(prefix.with_suffix(".train.rating"), rows, "%d", "\t")
        prefix.with_suffix(".test.rating").write_text(f"{users - 1}\t{items - 1}\t1\t0\n")
        prefix.with_suffix(".test.negative").write_text(f"({users - 1},{items - 1})\t0\n")
    return prefix


def at_size(pythons: dict[str, Path], prefix: Path, out: Path, threads: int) -> None:
    """Print a table of one epoch of each, in turn."""
    heading = (
        "batch 2048, samples/s",
        "a CPU second",
        "batch 8192, samples/s",
        "a CPU second",
        "peak MB",
        "of it the data",
    )
    print(f"| | {' | '.join(heading)} |\n|{'---|' * (1 + len(heading))}", flush=True)
    for name, python in pythons.items():
        if name == "implicit":  # no network: see benchmarks.scale --bpr
            continue
        folder, more = CONTESTANTS[name]
        command = [str(python), "-m", f"benchmarks.peers.{folder}.work", "--data", str(prefix), *more]
        result = run(command, out / f"{name}-at-size", threads)
        if result is None:
            print(f"| {name} | failed: see {out / f'{name}-at-size.log'} |", flush=True)
            continue
        keys = [f"samples_per_{unit}_{size}" for size in (2048, 8192) for unit in ("s", "cpu_s")]
        cells = [f"{result[key]:,.0f}" for key in [*keys, "memory_mb", "memory_mb_with_data"]]
        print(f"| {name} {result['version']}, {result['model']} | {' | '.join(cells)} |", flush=True)


def run(command: list[str], stem: Path, threads: int) -> Result | None:
    """Run a worker to its end; None if it failed. What it prints goes to ``stem.log``."""
    result = stem.with_name(stem.name + ".json")
    result.unlink(missing_ok=True)
    counts = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")
    environment = os.environ | {f"{library}_NUM_THREADS": str(threads) for library in counts}
    environment |= {"TF_NUM_INTRAOP_THREADS": str(threads), "TF_NUM_INTEROP_THREADS": str(threads)}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as scratch, stem.with_name(stem.name + ".log").open("w") as log:
        # Somewhere else, since some leave folders where they are run.
        code = subprocess.run(
            [*command, "--out", str(result)],
            cwd=scratch,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        ).returncode
    if code or not result.exists():
        return None
    loaded: Result = json.loads(result.read_text())
    return loaded


def machine(threads: int) -> dict[str, Any]:
    """What the figures are of."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "system": platform.platform(),
        "load_before": os.getloadavg()[0],
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def write_report(report: dict[str, Any], out: Path) -> None:
    """Write ``peers.json``, everything, and ``peers.md``, the tables."""
    results: dict[str, list[Result]] = report["results"]
    summaries = {name: summarize(rounds) for name, rounds in results.items()}
    labels = {
        name: LABELS.get(name, f"{name} {rounds[0]['version']}: {rounds[0]['model']}")
        for name, rounds in results.items()
    }
    report["summaries"] = summaries
    host = report["machine"]
    threads = "one thread" if host["threads"] == 1 else f"{host['threads']} threads"
    about = (
        f"MovieLens-100K, {host['cpu']}, {host['cores']} cores, {threads} each, {host['date'][:10]}; "
        f"load before {host['load_before']:.1f}; rounds: {max(map(len, results.values()), default=0)}."
    )
    tables = [
        figures(summaries, labels),
        "How many times ours is ahead:",
        ratios(summaries, labels, tuple(LABELS)),
    ]
    (out / "peers.json").write_text(json.dumps(report, indent=1))
    (out / "peers.md").write_text("\n\n".join([about, *tables]) + "\n")


if __name__ == "__main__":
    main()
