"""Table, files and films for a few users: the output of `examples/movielens.py`."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

import ncf
from ncf import Ranking, recommend
from ncf.distributed.collectives import rank, world_size
from ncf.utils.files import write_text


@dataclass
class Result:
    """One model, over the seeds."""

    name: str
    sampled: list[Ranking] = field(default_factory=list)
    exact: list[Ranking] = field(default_factory=list)
    histories: list[ncf.History] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    model: Any = None


def table(results: dict[str, Result], k: int) -> str:
    """Return the comparison as text: means, with intervals or with errors over seeds."""
    several = any(len(result.sampled) > 1 for result in results.values())
    spread = "± standard error" if several else "95% interval"
    header = (
        "model",
        f"HR@{k}",
        spread,
        f"NDCG@{k}",
        spread,
        f"all items HR@{k}",
        f"NDCG@{k}",
        "samples/s",
        "seconds",
    )
    rows = [header]
    for result in results.values():
        cells = [result.name]
        for metric in ("hr", "ndcg"):
            values = [getattr(ranking, metric) for ranking in result.sampled]
            cells += [
                f"{mean(values):.3f}",
                _spread(result.sampled, metric, values),
            ]
        for metric in ("hr", "ndcg"):
            cells.append(
                f"{mean(getattr(ranking, metric) for ranking in result.exact):.3f}"
            )
        rates = [history.samples_per_second for history in result.histories]
        cells += [
            f"{mean(rates):,.0f}" if rates else "–",
            f"{mean(result.seconds):.1f}",
        ]
        rows.append(tuple(cells))
    widths = [
        max(len(row[column]) for row in rows) for column in range(len(header))
    ]
    lines = []
    for number, row in enumerate(rows):
        left = row[0].ljust(widths[0])
        lines.append(
            "  ".join(
                [
                    left,
                    *(
                        cell.rjust(width)
                        for cell, width in zip(row[1:], widths[1:], strict=True)
                    ),
                ]
            )
        )
        if number == 0:
            lines.append("─" * len(lines[0]))
    return "\n".join(lines)


def _spread(rankings: list[Ranking], metric: str, values: list[float]) -> str:
    if len(values) > 1:
        return f"± {stdev(values) / len(values) ** 0.5:.3f}"
    interval = rankings[0].intervals[metric]
    return f"[{interval.low:.3f}, {interval.high:.3f}]"


def footnote(args: argparse.Namespace) -> str:
    """Return the note below the table."""
    how = {
        "last": "trained on all but the test items; the number of epochs was fixed",
        "validation": "the epoch was chosen on the validation items",
        "paper": "the epoch was chosen on the TEST items: flattering",
    }
    return (
        "HR, NDCG: the held-out item among 100 unseen items; all items: among all unseen.\n"
        f"Models: {how[args.selection]}."
    )


def write(
    results: dict[str, Result],
    split: Any,
    candidates: Any,
    args: argparse.Namespace,
) -> None:
    """Write results, curves, candidates and the best trained model."""
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    report = {
        "arguments": {
            name: value for name, value in vars(args).items() if name != "out"
        },
        "versions": {"ncf": ncf.__version__, "torch": torch.__version__},
        "threads": 1,
        "processes": world_size(),
        "models": {
            result.name: {
                "sampled": [
                    ranking.metrics(1, 5, args.k) for ranking in result.sampled
                ],
                "whole_catalogue": [
                    ranking.metrics(1, 5, args.k) for ranking in result.exact
                ],
                "seconds": result.seconds,
                "history": [history.to_dict() for history in result.histories],
            }
            for result in results.values()
        },
    }
    trained = [result for result in results.values() if result.histories]
    best = max(
        trained,
        key=lambda result: mean(ranking.ndcg for ranking in result.sampled),
        default=None,
    )
    if best is not None:
        best.model.save(
            out / "model"
        )  # by every process: each writes the rows that it has
    if rank():
        return
    write_text(out / "results.json", json.dumps(report, indent=2) + "\n")
    candidates.save(out / "candidates.safetensors")
    written = ["results.json", "candidates.safetensors"]
    if best is not None:
        written.append(f"model/ ({best.name})")
        try:
            from ncf.evaluation.plots import learning_curves
        except ImportError as error:
            print(f"no plot: {error}")
        else:
            for stacked in (False, True):  # for wide and for narrow pages
                learning_curves(
                    {result.name: result.histories for result in trained},
                    out / f"learning_curves{'_narrow' * stacked}.png",
                    k=args.k,
                    baselines={
                        r.name: r.sampled[0]
                        for r in results.values()
                        if not r.histories
                    },
                    stacked=stacked,
                )
            written.append("learning_curves.png")
    print(f"\nWritten to {out}/: {', '.join(written)}")


def show_films(
    results: dict[str, Result], data: Any, split: Any, users: int = 3, k: int = 10
) -> None:
    """Print lists of the best model for a few users, next to their last items."""
    best = max(
        results.values(),
        key=lambda result: mean(ranking.ndcg for ranking in result.sampled),
    )
    vocabulary = data.interactions.item_ids
    people = data.interactions.user_ids.decode(split.test.users[:users])
    offers = recommend(best.model, people, k=k, exclude=split.train)
    for person, offered in zip(people, offers.items, strict=True):
        number = int(data.interactions.user_ids.encode([person])[0])
        mine = (split.train.users == number).nonzero()[:, 0]
        if split.train.timestamps is not None:
            mine = mine[split.train.timestamps[mine].argsort(stable=True)]
        last = [
            data.titles[int(item)] for item in split.train.items[mine[-k:]].flip(0)
        ]
        numbers = vocabulary.encode(offered).tolist() if offered else []
        new = [data.titles[item] for item in numbers]
        width = max(map(len, [*last, "watched last"]))
        print(
            f"\nUser {person}: {'watched last'.ljust(width)}   {best.name} offers"
        )
        for line in range(max(len(last), len(new))):
            left = last[line] if line < len(last) else ""
            right = new[line] if line < len(new) else ""
            print(f"  {left.ljust(width + len(str(person)) + 5)}   {right}")
