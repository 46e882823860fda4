"""The quality of `ncf.fit` and of models in closed form, on public data that you have: one table for each data set.

    python -m benchmarks.quality movielens
    python -m benchmarks.quality paper Data/ml-1m
    python -m benchmarks.quality lists gowalla/train.txt gowalla/test.txt
    python -m benchmarks.quality sequences Beauty.txt
    python -m benchmarks.quality shape 5
    python -m benchmarks.quality shop

``movielens`` is MovieLens-100K, which is downloaded, leave-one-out by time; ``paper`` the files of the paper's code,
with their own candidates; ``lists`` two files ``user item item …`` with several held-out items a user, as LightGCN's;
``sequences`` one such file, the oldest item first, of which the last is held out; ``shape`` a drawn set of
`benchmarks.shapes`, by its number from 0; ``shop`` a drawn small shop, 5,000 customers with ten purchases each, three
quarters of them in one of eight categories. Figures are means over the seeds, ± is the standard error over them; the
footnote has the standard error over users. Processor seconds count, where other work runs beside.

``--tune 600`` also searches the settings of each model for so many processor seconds, on a validation set that is cut
from the training set, and adds a row for the best ones, with their difference to the row above.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

import ncf
from benchmarks.shapes import SHAPES, draw
from ncf.datasets import movielens, read_lists, read_ncf
from ncf.evaluation.plots import learning_curves
from ncf.evaluation.significance import paired_test, standard_error
from ncf.models.baselines import ALS
from ncf.training.recipes import recipe_for
from ncf.training.recipes.parts import alone, trainer_for

Evaluated = list[tuple[str, ncf.Candidates | ncf.Catalogue, int, str]]  # suffix, candidates, k, metric
GRADIENT = ("MatrixFactorization", "GMF", "MLP", "NeuMF")
NEIGHBOURS = "EASE, 200 neighbours"
MODELS = ("ItemPop", "ItemKNN", "EASE", NEIGHBOURS, "ALS", *GRADIENT)
EXACT = 20_000  # items; above, exact EASE takes gigabytes and long: only if it is named


def load(options: argparse.Namespace) -> tuple[ncf.Split, Evaluated]:
    """Return the split, and what to evaluate on it."""
    kind, files, drawn = options.data, options.files, None
    if kind == "movielens":
        split = ncf.leave_one_out(movielens.load("100k").interactions, validation=False)
        drawn = ncf.sample_candidates(split)
    elif kind == "paper":
        split, drawn = read_ncf(*files)
    elif kind == "lists":
        split = read_lists(*files)
    elif kind == "sequences":
        split = ncf.leave_one_out(read_lists(*files))  # the validation set tells fit that the order is time
    elif kind == "shop":
        purchases = draw(5_000, 2_000, 5e-3, seed=0, groups=8, liked=1, share=0.75, power=0.5)
        split = ncf.leave_one_out(purchases, validation=False)
        drawn = ncf.sample_candidates(split)
    else:
        split = ncf.leave_one_out(draw(*SHAPES[int(files[0])], seed=0), validation=False)
    if options.users is not None:
        kept = torch.randperm(split.train.num_users, generator=torch.Generator().manual_seed(0))[
            : options.users
        ]
        kept, drawn = kept.sort().values, None
        sets = (
            None if part is None else some_users(part, kept)
            for part in (split.train, split.validation, split.test)
        )
        split = ncf.Split(*sets)
    catalogue = ncf.whole_catalogue(split)
    if catalogue.positive_offsets is not None:
        return split, [("", catalogue, 20, "recall"), ("", catalogue, 20, "ndcg")]
    both = [] if drawn is None else [(f", {drawn.negatives.shape[1]} others", drawn)]
    sets = [*both, (", all items", catalogue)]
    return split, [(text, those, 10, metric) for text, those in sets for metric in ("hr", "ndcg")]


def some_users(data: ncf.Interactions, kept: torch.Tensor) -> ncf.Interactions:
    """The interactions of these users, ascending, who are numbered anew."""
    of_kept = data.take(torch.isin(data.users, kept))
    users = torch.searchsorted(kept, of_kept.users)
    return ncf.Interactions(users, of_kept.items, of_kept.timestamps, len(kept), data.num_items)


def with_validation(split: ncf.Split, kind: str) -> ncf.Split:
    """Cut a validation set from the training set as the test set was cut, unless there is one."""
    if split.validation is not None:
        return split
    if kind == "lists":
        inner = ncf.split_by_ratio(split.train, validation=0.0, test=0.1)
    elif kind == "paper":  # its times may be places in a file that is sorted by items: one at random
        order = torch.randperm(len(split.train), generator=torch.Generator().manual_seed(0))
        shuffled = dataclasses.replace(split.train.take(order), timestamps=None)
        inner = ncf.leave_one_out(shuffled, validation=False)
    else:
        inner = ncf.leave_one_out(split.train, validation=False)
    return ncf.Split(inner.train, inner.test, split.test)


def trainer_of(name: str, settings: dict[str, Any]) -> Callable[[ncf.Split, int], Any]:
    """Return what trains the named model on a split with a seed."""
    closed: dict[str, Any] = {"ItemPop": ncf.ItemPop, "ItemKNN": ncf.ItemKNN, "EASE": ncf.EASE}
    if name in GRADIENT:
        return lambda split, seed: ncf.fit(split, name, seed=seed, progress=False, **settings)
    if name == "ALS":
        return lambda split, seed: ALS(known(split), seed=seed, **settings)
    if name == NEIGHBOURS:
        return lambda split, seed: ncf.EASE(known(split), neighbours=200, **settings)
    return lambda split, seed: closed[name](known(split), **settings)


def known(split: ncf.Split) -> ncf.Interactions:
    """All but the test set, as `fit` trains on in the end."""
    return split.with_validation_in_train().train


def row(
    shown: str, train: Callable[[ncf.Split, int], Any], split: ncf.Split, evaluated: Evaluated, seeds: int
) -> list[ncf.Ranking]:
    """Train with each seed, print a line, return the last seed's rankings."""
    values: list[list[float]] = []
    rankings: list[ncf.Ranking] = []
    began, cpu = time.perf_counter(), processor_seconds()
    taken = [0.0, 0.0]
    for seed in range(seeds):
        began, cpu = time.perf_counter(), processor_seconds()
        model = train(split, seed)
        taken = [taken[0] + time.perf_counter() - began, taken[1] + processor_seconds() - cpu]
        done: dict[int, ncf.Ranking] = {}
        rankings = []
        for _, candidates, k, _ in evaluated:
            if id(candidates) not in done:
                done[id(candidates)] = ncf.evaluate(model, candidates, k)
            rankings.append(done[id(candidates)])
        values.append([one.mean(metric) for one, (*_, metric) in zip(rankings, evaluated, strict=True)])
    cells = []
    for column in zip(*values, strict=True):
        spread = f" ± {stdev(column) / len(column) ** 0.5:.4f}" if len(column) > 1 else ""
        cells.append(f"{mean(column):.4f}{spread:>9}")
    print(f"{shown:24}  " + "  ".join(f"{c:>20}" for c in cells), end="")
    print(f"  {taken[1] / seeds:>7.1f}  {taken[0] / seeds:>7.1f}", flush=True)
    return rankings


def search(split: ncf.Split, name: str, k: int, seconds: float) -> Any:
    """Search one trial after the other until the processor seconds are spent."""
    end = processor_seconds() + seconds
    with tempfile.TemporaryDirectory() as folder:
        found = None
        for trials in itertools.count(1):
            found = ncf.tune(split, name, trials=trials, k=k, folder=folder, progress=False)
            if processor_seconds() > end:
                break
    return found


def draw_curves(split: ncf.Split, folder: str) -> None:
    """Train each part of a NeuMF by `fit` alone, and draw HR@10 and NDCG@10 after each of its epochs."""
    train, recipe = split.train, recipe_for(split.train)
    sizes = train.num_users, train.num_items
    held_out = ncf.whole_catalogue(split, "validation")
    parts: dict[str, ncf.models.EmbeddingModel] = {}
    if "bce" in recipe.losses:
        parts["GMF, cross-entropy"] = ncf.GMF(*sizes, factors=recipe.factors, init_std=0.1)
    if "softmax" in recipe.losses:
        parts["cosine, softmax"] = ncf.MatrixFactorization(
            *sizes, factors=recipe.softmax_factors, cosine=True, init_std=0.1
        )
    parts["MLP, cross-entropy"] = ncf.MLP(*sizes, layers=recipe.layers, init_std=0.1)
    histories = {
        name: trainer_for(model, recipe, 0, None).fit(alone(train), held_out) for name, model in parts.items()
    }
    closed = {"ItemPop": ncf.ItemPop(train), "ItemKNN": ncf.ItemKNN(train)}
    level = {name: ncf.evaluate(model, held_out) for name, model in closed.items()}
    for stacked in (False, True):  # for wide and for narrow pages
        path = Path(folder) / f"curves{'_narrow' * stacked}.svg"
        learning_curves(histories, path, baselines=level, stacked=stacked)
    for name, history in histories.items():
        print(f"{name:24}  {history}, NDCG@10 " + " ".join(f"{v:.4f}" for v in history.ndcg if v is not None))
    for name, ranking in level.items():
        print(f"{name:24}  {ranking}")


def processor_seconds() -> float:
    """Of this process, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", choices=("movielens", "paper", "lists", "sequences", "shape", "shop"))
    parser.add_argument("files", nargs="*", help="a path, two of lists; the number of a shape")
    parser.add_argument("--models", nargs="+", default=None, choices=MODELS)
    parser.add_argument("--seeds", type=int, default=1, help="of each model that has any")
    parser.add_argument("--users", type=int, help="so many of them, drawn at random")
    parser.add_argument("--tune", type=float, metavar="SECONDS", help="search each model's settings as well")
    parser.add_argument("--curves", metavar="FOLDER", help="draw learning curves into it")
    options = parser.parse_args()
    split, evaluated = load(options)
    if options.curves:
        draw_curves(with_validation(split, options.data), options.curves)
        return 0
    names = options.models or [n for n in MODELS if n != "EASE" or split.train.num_items <= EXACT]
    print(split)
    header = [
        f"{metric.upper() if metric != 'recall' else 'Recall'}@{k}{text}" for text, _, k, metric in evaluated
    ]
    print(f"{'model':24}  " + "  ".join(f"{h:>20}" for h in header) + f"  {'cpu s':>7}  {'s':>7}")
    inner = None if options.tune is None else with_validation(split, options.data)
    rankings = []
    for name in names:
        seeds = options.seeds if name in (*GRADIENT, "ALS") else 1
        rankings = row(name, trainer_of(name, {}), split, evaluated, seeds)
        if inner is None or name in ("ItemPop", NEIGHBOURS):
            continue
        found = search(inner, name, evaluated[0][2], options.tune)
        tuned = row(f"{name}, tuned", trainer_of(name, found.best), split, evaluated, seeds)
        print(f"  {len(found.trials)} trials, {sum(t.stopped for t in found.trials)} stopped; {found.best}")
        test = paired_test(tuned[-1], rankings[-1], "ndcg")
        print(f"  tuned less default, all items: {test}", flush=True)
    errors = [standard_error(r.values(metric)) for r, (*_, metric) in zip(rankings, evaluated, strict=True)]
    print(f"{'± over users, last row':24}  " + "  ".join(f"{e:>20.4f}" for e in errors))
    return 0


if __name__ == "__main__":
    sys.exit(main())
