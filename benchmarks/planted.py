"""How close does the default recipe come to the best that anyone could do?

    python -m benchmarks.planted

On real data nobody knows the best possible figure. Here the data is drawn: whether a user touches an item is an
independent coin with log-odds ⟨pᵤ, qᵢ⟩ + bᵢ + aᵤ, and the held-out item is one of a user's at random. Given the
coins' odds, no ranking of a held-out item among untouched ones beats the order of the odds themselves (Bayes'
rule: the odds of "this one was the touched one" are the coin's odds). So the best HR is known, though only a model
that knew every pᵤ and qᵢ could have it. The numbers of users, items and interactions are MovieLens-1M's.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from examples.weight_decay import weight_decay_for
from ncf import (
    EASE,
    GMF,
    MLP,
    Interactions,
    ItemPop,
    MatrixFactorization,
    NeuMF,
    Trainer,
    evaluate,
    leave_one_out,
    sample_candidates,
)

MODELS = ("ItemPop", "EASE", "MatrixFactorization", "GMF", "MLP", "NeuMF")


@dataclass(frozen=True)
class Truth:
    """The log-odds that the data was drawn with; it scores by them."""

    log_odds: Tensor  # [num_users, num_items]

    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        """True log-odds of each user's candidates, ``[U, C]``."""
        return self.log_odds[users[:, None], candidates.clamp(min=0)]


def plant(
    num_users: int = 6040,
    num_items: int = 3706,
    mean_count: float = 165.6,
    *,
    factors: int = 8,
    affinity: float = 2.0,
    popularity: float = 1.5,
    seed: int = 0,
) -> tuple[Interactions, Truth]:
    """Draw interactions from known factors.

    Args:
        num_users: rows.
        num_items: columns.
        mean_count: mean number of items of a user; the numbers follow a log-normal law, at least 20.
        factors: width of the true factors.
        affinity: standard deviation of ⟨pᵤ, qᵢ⟩ over all pairs.
        popularity: standard deviation of bᵢ.
        seed: of everything drawn.
    """
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    user, item = normal(num_users, factors), normal(num_items, factors)
    log_odds = user @ item.T * (affinity / factors**0.5) + popularity * normal(num_items)  # [U, I]
    counts = normal(num_users).exp()
    counts = 20 + counts * ((mean_count - 20) / counts.mean())
    log_odds += _activity(log_odds, counts.clamp(max=num_items / 2))[:, None]
    touched = torch.rand(log_odds.shape, generator=random) < log_odds.sigmoid()
    users, items = touched.nonzero().unbind(1)
    order = torch.randperm(len(users), generator=random)  # the order of the rows is the time
    return Interactions(users[order], items[order], None, num_users, num_items), Truth(log_odds)


def _activity(log_odds: Tensor, counts: Tensor) -> Tensor:
    """The aᵤ, ``[U]``, with which a user's coins give the wanted number on average, by bisection."""
    low, high = torch.full_like(counts, -30.0), torch.full_like(counts, 30.0)
    for _ in range(24):
        middle = (low + high) / 2
        more = (log_odds + middle[:, None]).sigmoid().sum(1) < counts
        low, high = torch.where(more, middle, low), torch.where(more, high, middle)
    return (low + high) / 2


def build(name: str, train: Interactions, args: argparse.Namespace) -> Any:
    """The model, trained by the recipe of examples/movielens.py."""
    if name in ("ItemPop", "EASE"):
        return {"ItemPop": ItemPop, "EASE": EASE}[name](train)
    size: dict[str, Any] = {"init_std": 0.1, "seed": args.seed}
    if name in ("MLP", "NeuMF"):
        size["layers"] = (64, 32, 16)
    if name != "MLP":
        size["factors"] = args.factors
    classes = {"MatrixFactorization": MatrixFactorization, "GMF": GMF, "MLP": MLP, "NeuMF": NeuMF}
    return classes[name](train.num_users, train.num_items, **size)


def main() -> int:
    """Draw, train, compare."""
    args = parse_arguments()
    began = time.perf_counter()
    interactions, truth = plant(
        args.users,
        args.items,
        args.mean_count,
        affinity=args.affinity,
        popularity=args.popularity,
        seed=args.seed,
    )
    split = leave_one_out(interactions)
    if args.part == "test":
        split = split.with_validation_in_train()
    candidates = sample_candidates(split, args.part, num_negatives=100, seed=args.seed)
    print(
        f"{interactions}, {split}, drawn in {time.perf_counter() - began:.0f} s; judged on the {args.part} part"
    )
    best = evaluate(truth, candidates)
    print(f"{args.factors} factors, {args.epochs} epochs")
    print(
        f"{'model':20}  HR@10  95% interval    NDCG@10  of the best HR  of the best NDCG  weight decay  seconds"
    )
    for name in ("best possible", *args.models):
        began = time.perf_counter()
        model: Any = truth if name == "best possible" else build(name, split.train, args)
        decay = None
        if name not in ("best possible", "ItemPop", "EASE"):
            decay = weight_decay_for(split.train, model) if args.weight_decay is None else args.weight_decay
            Trainer(
                model,
                epochs=args.epochs,
                optimizer="adam",
                weight_decay=decay,
                selection="last",
                seed=args.seed,
                progress=False,
            ).fit(split)
        ranking = evaluate(model, candidates)
        print(
            f"{name:20}  {ranking.hr:.3f}  {ranking.interval('hr')}  {ranking.ndcg:7.3f}  {ranking.hr / best.hr:14.1%}"
            f"  {ranking.ndcg / best.ndcg:16.1%}  {'–' if decay is None else f'{decay:.2g}':>12}"
            f"  {time.perf_counter() - began:7.1f}",
            flush=True,
        )
    return 0


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--users", type=int, default=6040, help="how many users")
    parser.add_argument("--items", type=int, default=3706, help="how many items")
    parser.add_argument("--mean-count", type=float, default=165.6, help="items of a user, on average")
    parser.add_argument("--affinity", type=float, default=2.0, help="deviation of the true inner products")
    parser.add_argument("--popularity", type=float, default=1.5, help="deviation of the items' log-odds")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS, help="which models")
    parser.add_argument("--part", default="test", choices=("test", "validation"), help="judged on")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training data")
    parser.add_argument("--factors", type=int, default=128, help="width of the GMF and dot-product rows")
    parser.add_argument("--weight-decay", type=float, help="L2 penalty; by default that of weight_decay_for")
    parser.add_argument("--seed", type=int, default=0, help="of the data, the start and the batches")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
