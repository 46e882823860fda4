"""New users without training: fold-in against the same users trained, by default on MovieLens-100K.

    python examples/new_users.py [--ncf-files PREFIX | --lists FILE] [--seeds 5] [--models GMF NeuMF]

A tenth of the users is left out of training altogether. Their rows are then found from their history, of which they
show 0, 1, 2, 5, 10 or all items. Every list ranks the user's held-out item among 99 or 100 others.
"""

import argparse
import sys
from pathlib import Path

import torch

from ncf import (
    EASE,
    GMF,
    Candidates,
    Interactions,
    ItemKNN,
    ItemPop,
    MatrixFactorization,
    NeuMF,
    Split,
    Trainer,
    evaluate,
    fold_in,
    leave_one_out,
    sample_candidates,
)
from ncf.datasets import movielens, read_lists, read_ncf

SHOWN = (0, 1, 2, 5, 10, None)
MODELS = {
    "GMF": lambda users, items, seed: GMF(
        users, items, factors=32, init_std=0.1, seed=seed
    ),
    "MF": lambda users, items, seed: MatrixFactorization(
        users, items, factors=32, seed=seed
    ),
    "NeuMF": lambda users, items, seed: NeuMF(
        users, items, factors=16, layers=(64, 32, 16), init_std=0.1, seed=seed
    ),
}


def without(interactions: Interactions, left_out: torch.Tensor) -> Interactions:
    """Take users out altogether, and number the others anew."""
    kept = interactions.take(~left_out[interactions.users])
    number = (~left_out).cumsum(0) - 1
    return Interactions(
        number[kept.users],
        kept.items,
        kept.timestamps,
        int(number[-1]) + 1,
        kept.num_items,
    )


def latest(
    train: Interactions, users: torch.Tensor, count: int | None
) -> list[torch.Tensor]:
    """Return the last items of each user's training interactions, or all of them."""
    order = (
        torch.arange(len(train))
        if train.timestamps is None
        else train.timestamps.argsort(stable=True)
    )
    order = order[train.users[order].argsort(stable=True)]
    lists = train.items[order].split(
        train.users.bincount(minlength=train.num_users).tolist()
    )
    return [
        lists[user][len(lists[user]) - count if count is not None else 0 :]
        for user in users.tolist()
    ]


def recalculated(
    train: Interactions, histories: list[torch.Tensor], candidates: Candidates
) -> str:
    """HR and NDCG of implicit's ALS, whose ``recalculate_user`` is its own fold-in."""
    try:
        from implicit.cpu.als import AlternatingLeastSquares
        from scipy.sparse import csr_matrix
        from threadpoolctl import threadpool_limits
    except ImportError:
        return "implicit is not installed"

    def matrix(lists: list[torch.Tensor]) -> csr_matrix:
        items = torch.cat(lists).numpy()
        offsets = [
            0,
            *torch.tensor([len(each) for each in lists]).cumsum(0).tolist(),
        ]
        return csr_matrix(
            (torch.ones(len(items)).numpy(), items, offsets),
            (len(lists), train.num_items),
        )

    with threadpool_limits(1, "blas"):
        als = AlternatingLeastSquares(
            factors=32, regularization=20.0, alpha=5.0, random_state=0
        )
        offsets, items = train.csr()
        als.fit(
            matrix(list(items.split(offsets.diff().tolist()))), show_progress=False
        )
        rows = als.recalculate_user(range(len(histories)), matrix(histories))

    class Rows:
        def score(
            self, users: torch.Tensor, candidates: torch.Tensor
        ) -> torch.Tensor:
            rated = (
                torch.from_numpy(rows)[users] @ torch.from_numpy(als.item_factors).T
            )
            return rated.gather(1, candidates.expand(len(users), -1))

    ranking = evaluate(Rows(), candidates)
    return f"{ranking.hr:.3f} / {ranking.ndcg:.3f}"


def main() -> int:
    """Run the example."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ncf-files", type=Path)
    parser.add_argument("--lists", type=Path)
    parser.add_argument(
        "--neighbours", type=int, help="of EASE, where items are many"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument(
        "--models", nargs="+", default=["MF", "GMF", "NeuMF"], choices=list(MODELS)
    )
    args = parser.parse_args()
    if args.ncf_files:
        split, candidates = read_ncf(args.ncf_files)
        settings = {"selection": "last"}
    else:
        log = (
            read_lists(args.lists)
            if args.lists
            else movielens.load("100k").interactions
        )
        split = leave_one_out(log)
        candidates, settings = sample_candidates(split), {}
    settings |= {"epochs": args.epochs, "weight_decay": 1e-5, "progress": False}
    results: dict[str, list[list[float]]] = {}
    for seed in range(args.seeds):
        train, validation = split.train, split.validation
        left_out = (
            torch.rand(
                train.num_users, generator=torch.Generator().manual_seed(seed)
            )
            < 0.1
        )
        chosen = left_out[candidates.users].nonzero()[:, 0]
        users = candidates.users[chosen]
        same = Candidates(
            users, candidates.positives[chosen], candidates.negatives[chosen]
        )
        new = Candidates(torch.arange(len(users)), same.positives, same.negatives)
        rest = without(train, left_out)
        fewer = Split(
            rest,
            None if validation is None else without(validation, left_out),
            rest,
        )
        models = {
            "popularity": ItemPop(rest),
            "ItemKNN": ItemKNN(rest),
            "EASE": EASE(rest, neighbours=args.neighbours),
        }
        for name in args.models:
            trained = MODELS[name](train.num_users, train.num_items, seed)
            Trainer(trained, seed=seed, **settings).fit(split)
            ranking = evaluate(trained, same)
            results.setdefault(f"{name}, trained on them", []).append(
                [ranking.hr, ranking.ndcg]
            )
            models[name] = MODELS[name](rest.num_users, rest.num_items, seed)
            Trainer(models[name], seed=seed, **settings).fit(fewer)
        for name, model in models.items():
            for shown in SHOWN:
                ranking = evaluate(fold_in(model, latest(train, users, shown)), new)
                key = f"{name}, {'all' if shown is None else shown} items"
                results.setdefault(key, []).append([ranking.hr, ranking.ndcg])
        if seed == 0:
            print(
                f"{len(users)} of {train.num_users} users left out, {args.seeds} seeds"
            )
            print(
                f"{'implicit, recalculate_user, all items':40}",
                recalculated(rest, latest(train, users, None), new),
            )
    for name, runs in results.items():
        hr, ndcg = torch.tensor(runs).mean(0).tolist()
        print(f"{name:40} {hr:.3f} / {ndcg:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
