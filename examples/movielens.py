"""Train and evaluate every model on MovieLens, next to baselines that are hard to beat.

    python examples/movielens.py
    python examples/movielens.py --dataset 1m --models ItemPop NeuMF --seeds 5
    torchrun --nproc-per-node 2 examples/movielens.py --sharding auto --checkpoints runs

It prints one table, and films for a few users. It writes results.json, the learning
curves and the best model. Of several processes only the first prints.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from report import Result, footnote, show_films, table, write
from weight_decay import weight_decay_for

import ncf
from ncf import (
    EASE,
    GMF,
    MLP,
    ItemPop,
    MatrixFactorization,
    NeuMF,
    Ranking,
    Trainer,
    evaluate,
    leave_one_out,
    sample_candidates,
    whole_catalogue,
)
from ncf.datasets import movielens
from ncf.distributed.collectives import raise_on_all_ranks, rank, world_size

MODELS = (
    "ItemPop",
    "EASE",
    "MatrixFactorization",
    "GMF",
    "MLP",
    "NeuMF",
    "NeuMF-pretrained",
    "NeuMF-fit",
)


def main() -> int:
    """Run the example, in this process or as one of torchrun's."""
    args = parse_arguments()
    if args.sharding:
        from ncf.distributed.sharding import start_processes

        start_processes()
    with (
        open(os.devnull, "w") as nowhere,
        redirect_stdout(nowhere if rank() else sys.stdout),
    ):
        code = run(args)
    if args.sharding:
        torch.distributed.destroy_process_group()
    return code


def run(args: argparse.Namespace) -> int:
    """Train, evaluate, print and write."""
    with (
        raise_on_all_ranks()
    ):  # fetched once; the other processes find it in the cache
        if rank() == 0:
            movielens.load(args.dataset)
    data = movielens.load(args.dataset)
    split = leave_one_out(data.interactions)
    if args.selection != "validation":
        split = split.with_validation_in_train()
    candidates = sample_candidates(split, num_negatives=100, seed=0)
    catalogue = whole_catalogue(split)
    print(f"MovieLens-{args.dataset}: {data.interactions}, {split}")
    results = {name: Result(name) for name in args.models}
    interrupted = False
    for seed in range(args.seed, args.seed + args.seeds):
        if interrupted:
            break
        trained: dict[str, Any] = {}
        for name in args.models:
            began = time.perf_counter()
            model, history = train(name, split, candidates, trained, seed, args)
            result = results[name]
            result.seconds.append(time.perf_counter() - began)
            result.sampled.append(ranking_of(model, candidates, args.k))
            result.exact.append(ranking_of(model, catalogue, args.k))
            result.model = trained[name] = model
            if history is not None:
                result.histories.append(history)
                interrupted = interrupted or history.interrupted
            if interrupted:
                break
    finished = {name: result for name, result in results.items() if result.sampled}
    print()
    print(table(finished, args.k))
    print(footnote(args))
    write(finished, split, candidates, args)
    show_films(finished, data, split)
    return 130 if interrupted else 0


def train(
    name: str,
    split: Any,
    candidates: Any,
    trained: dict[str, Any],
    seed: int,
    args: argparse.Namespace,
) -> tuple[Any, ncf.History | None]:
    """Build and train one model; baselines have no history."""
    if name == "ItemPop":
        return ItemPop(split.train), None
    if name == "EASE":
        return EASE(split.train), None
    if name == "NeuMF-fit":  # settings and epochs are its own
        return ncf.fit(split, "NeuMF", seed=seed), None
    size = {
        "num_users": split.train.num_users,
        "num_items": split.train.num_items,
        "init_std": args.init_std,
        "seed": seed,
        "device": "meta" if args.sharding else None,
    }
    layers = tuple(args.layers)
    settings = {
        "epochs": args.epochs,
        "selection": args.selection,
        "k": args.k,
        "seed": seed,
        "compile": args.compile,
    }
    on_test = None if args.selection == "validation" else candidates
    if name == "NeuMF-pretrained":
        parts = []
        for part in ("GMF", "MLP"):
            if part not in trained:
                trained[part], history = train(
                    part, split, candidates, trained, seed, args
                )
                if history is not None and history.interrupted:
                    return trained[part], history
            parts.append(trained[part])
        model: Any = fuse(parts, args)
        # The paper continues with SGD: Adam's momentum of the parts is lost.
        settings |= {
            "optimizer": "sgd",
            "learning_rate": 0.01,
            "epochs": max(1, args.epochs // 2),
        }
    elif name == "NeuMF":
        model = NeuMF(**size, factors=args.factors, layers=layers)
    elif name == "MLP":
        model = MLP(**size, layers=layers)
    else:
        model = {"GMF": GMF, "MatrixFactorization": MatrixFactorization}[name](
            **size, factors=args.factors
        )
    decay = (
        weight_decay_for(split.train, model)
        if args.weight_decay is None
        else args.weight_decay
    )
    settings = {"optimizer": "adam", **settings, "weight_decay": decay}
    if args.checkpoints:
        settings["checkpoint"] = Path(args.checkpoints) / f"{name}-{seed}"
    if not args.sharding:
        return model, Trainer(model, **settings).fit(split, on_test)
    from ncf.distributed.sharding import shard

    printed = any(
        hasattr(other, "embeddings") for other in trained.values()
    )  # one plan is enough
    sharded = shard(
        model,
        args.sharding,
        learning_rate=args.table_learning_rate,
        verbose=not printed,
    )
    mine = None if on_test is None else on_test.for_rank(rank(), world_size())
    return model, Trainer(sharded, **settings).fit(
        split.for_rank(rank(), world_size()), mine
    )


def fuse(parts: list[Any], args: argparse.Namespace) -> NeuMF:
    """Fuse a GMF and an MLP; sharded ones through files: no process has whole tables."""
    if args.sharding:
        for part in parts:
            part.save(Path(args.out) / type(part).__name__)
        parts = [
            ncf.load(Path(args.out) / type(part).__name__, device="meta")
            for part in parts
        ]
    return NeuMF.from_pretrained(*parts, alpha=0.5)


def ranking_of(model: Any, candidates: Any, k: int) -> Ranking:
    """Evaluate a model; if it is sharded, each process has its share of the users."""
    sharded = hasattr(model, "embeddings") and model.embeddings.is_sharded
    return evaluate(
        model,
        candidates.for_rank(rank(), world_size()) if sharded else candidates,
        k=k,
    )


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--dataset",
        default="100k",
        choices=("100k", "1m", "20m", "25m", "32m"),
        help="which MovieLens",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        choices=MODELS,
        help="which models; by default all, but NeuMF-fit where tables are sharded",
    )
    parser.add_argument(
        "--epochs", type=int, default=10, help="passes over the training data"
    )
    parser.add_argument(
        "--factors",
        type=int,
        default=128,
        help="width of the GMF and dot-product rows",
    )
    parser.add_argument(
        "--init-std", type=float, default=0.1, help="deviation of the initial rows"
    )
    parser.add_argument(
        "--weight-decay",
        type=float,
        help="L2 penalty; by default one for this model and data: 1e-5 for 100k",
    )
    parser.add_argument(
        "--layers",
        type=int,
        nargs="+",
        default=[64, 32, 16],
        help="widths of the MLP; the first is the width of both embeddings",
    )
    parser.add_argument(
        "--selection",
        default="last",
        choices=("last", "validation", "paper"),
        help="which epoch is kept",
    )
    parser.add_argument(
        "--k", type=int, default=10, help="length of the ranked list"
    )
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="train by torch.compile, or (--no-compile) by plain PyTorch; "
        "by default by the kernel in C",
    )
    parser.add_argument(
        "--sharding",
        help="how to shard the tables: auto, table_wise, column_wise …",
    )
    parser.add_argument(
        "--table-learning-rate",
        type=float,
        default=0.05,
        help="of tables with row-wise Adagrad: the sharded ones",
    )
    parser.add_argument(
        "--checkpoints",
        help="folder of checkpoints: the same command resumes where it was stopped",
    )
    parser.add_argument(
        "--out", default="runs/movielens", help="folder for what is written"
    )
    args = parser.parse_args()
    if args.sharding and "NeuMF-fit" in (args.models or ()):
        parser.error(
            "--models NeuMF-fit: ncf.fit trains in one process; leave out --sharding"
        )
    args.models = args.models or [
        name for name in MODELS if not (args.sharding and name == "NeuMF-fit")
    ]
    return args


if __name__ == "__main__":
    sys.exit(main())
