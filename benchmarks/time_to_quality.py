"""Which batch size, learning rate and schedule reach a given HR@10 soonest: NeuMF on MovieLens-100K."""

from __future__ import annotations

import argparse
import json
import statistics
from itertools import product
from pathlib import Path
from typing import Any

from ncf import Interactions, NeuMF, Split, Trainer, leave_one_out, sample_candidates
from ncf.datasets import movielens

BATCHES = (512, 1024, 2048, 4096, 8192)
# Rates for a batch of 2048; others get theirs by the square root of their size, Adam's rule of thumb.
RATES = (4e-3, 8e-3, 16e-3, 32e-3)
# Schedules: the linear one falls to zero over so many epochs.
SCHEDULES = (("constant", 8), ("linear", 4), ("linear", 7), ("linear", 10))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.time_to_quality", description=__doc__)
    parser.add_argument("--target", type=float, default=0.65, help="HR@10 to reach (default: 0.65)")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--part", default="validation", choices=("validation", "test"), help="judged on")
    parser.add_argument("--factors", type=int, default=8)
    parser.add_argument("--layers", type=int, nargs="+", default=(32, 16, 8))
    parser.add_argument("--init-std", type=float, default=0.01)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="for a batch of 2048")
    parser.add_argument("--out", type=Path, default=Path("runs/time_to_quality.json"))
    options = parser.parse_args()
    split = leave_one_out(movielens.load("100k").interactions)
    if options.part == "test":
        split = split.with_validation_in_train()
    size = {name: getattr(options, name) for name in ("factors", "layers", "init_std")}
    rows: list[dict[str, Any]] = []
    for batch, rate, (schedule, epochs) in product(options.batches, options.rates, SCHEDULES):
        rate *= (batch / 2048) ** 0.5
        row = trial(
            split,
            part=options.part,
            target=options.target,
            seeds=options.seeds,
            size=size,
            optimizer="adam",
            weight_decay=options.weight_decay,
            epochs=epochs,
            batch_size=batch,
            learning_rate=rate,
            schedule=schedule,
        )
        rows.append(row)
        print(
            f"batch {batch:5}  rate {rate:.4f}  {schedule:8} {epochs:2} epochs  "
            f"reached by {row['reached']}/{options.seeds} after {row['seconds'] or float('nan'):5.2f} s  "
            f"best {row['best']:.3f}  last {row['last']:.3f}  {row['epoch_seconds']:.2f} s/epoch",
            flush=True,
        )
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(rows, indent=1))


def trial(
    split: Split, *, part: Any, target: float, seeds: int, size: dict[str, Any], **settings: Any
) -> dict[str, Any]:
    """Train once per seed; medians of seconds of training, judging not included."""
    candidates = sample_candidates(split, part)
    reached, best, last, epoch = [], [], [], []
    for seed in range(seeds):
        train: Interactions | None = split.train
        model = NeuMF(train.num_users, train.num_items, **size, seed=seed)
        history = Trainer(model, selection="last", seed=seed, progress=False, **settings).fit(
            split, candidates
        )
        hr = [value or 0.0 for value in history.hr]
        first = next((number for number, value in enumerate(hr) if value >= target), None)
        if first is not None:
            reached.append(sum(history.seconds[: first + 1]))
        best.append(max(hr))
        last.append(hr[-1])
        epoch.append(statistics.median(history.seconds))
    return {
        **settings,
        **size,
        "reached": len(reached),
        "seconds": statistics.median(reached) if 2 * len(reached) > seeds else None,
        "best": statistics.fmean(best),
        "last": statistics.fmean(last),
        "epoch_seconds": statistics.median(epoch),
    }


if __name__ == "__main__":
    main()
