"""What does MovieLens-100K allow? Every kind of model, alone and together, on the same held-out items.

    python -m benchmarks.ceiling

It asks of one figure, ``--target``, whether it lies within reach. Each model is trained with several seeds and judged
among the 100 candidates that were drawn, and in the mean over every draw there is. Then come the bounds: mixtures whose
weights were chosen *on the test part itself*, which nobody may report as a result, and how often a model of
a known true HR would show the target by luck.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from ncf import (
    EASE,
    GMF,
    MLP,
    Candidates,
    Catalogue,
    ItemKNN,
    ItemPop,
    MatrixFactorization,
    NeuMF,
    Ranking,
    Split,
    Trainer,
    evaluate,
    leave_one_out,
    sample_candidates,
    whole_catalogue,
)
from ncf.datasets import movielens
from ncf.evaluation.significance import normal_interval, standard_error
from ncf.models.base import SupportsScore, inference_scorer
from ncf.models.baselines import ALS

Models = dict[str, list[SupportsScore]]  # by name, one for each seed


class Mixture:
    """The weighted mean of models' scores, each made standard over a user's candidates first.

    Args:
        models: what to mix.
        weights: of each; alike by default.
    """

    def __init__(self, models: list[SupportsScore], weights: list[float] | None = None) -> None:
        self.models = models
        self.weights = weights or [1.0] * len(models)

    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        """See `ncf.SupportsScore`."""
        return torch.stack(
            [
                weight * standard(model, users, candidates)
                for model, weight in zip(self.models, self.weights, strict=True)
            ]
        ).sum(0)


def standard(model: SupportsScore, users: Tensor, candidates: Tensor) -> Tensor:
    """Scores with mean 0 and deviation 1 over each user's candidates, ``[U, C]``."""
    scores = inference_scorer(model).score(users, candidates).double()
    return (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True).clamp(min=1e-12)


def train_all(split: Split, seeds: int) -> Models:
    """The models with the recipe of examples/movielens.py, those that are trained with several seeds."""
    train = split.train
    models: Models = {"ItemPop": [ItemPop(train)], "ItemKNN": [ItemKNN(train)], "EASE": [EASE(train)]}
    models["ALS"] = [ALS(train, seed=seed) for seed in range(seeds)]
    layers = (64, 32, 16)
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "MatrixFactorization": (MatrixFactorization, {"factors": 128}),
        "GMF": (GMF, {"factors": 128}),
        "GMF, 256 factors": (GMF, {"factors": 256}),
        "MLP": (MLP, {"layers": layers}),
        "NeuMF": (NeuMF, {"factors": 128, "layers": layers}),
    }
    for name, (kind, settings) in kinds.items():
        models[name] = []
        for seed in range(seeds):
            model = kind(train.num_users, train.num_items, init_std=0.1, seed=seed, **settings)
            Trainer(
                model,
                epochs=10,
                optimizer="adam",
                weight_decay=1e-5,
                selection="last",
                seed=seed,
                progress=False,
            ).fit(split)
            models[name].append(model)
    return models


def mixtures(models: Models) -> Models:
    """Means of the seeds of a model, and of several kinds of models; no weight was chosen."""
    together: Models = {f"{name}, mean of seeds": [Mixture(models[name])] for name in ("GMF", "NeuMF")}
    parts = [Mixture(models[name]) for name in ("MatrixFactorization", "GMF", "NeuMF", "ALS", "EASE")]
    return together | {"MatrixFactorization + GMF + NeuMF + ALS + EASE": [Mixture([*parts])]}


def chance_of_hit(ranking: Ranking, k: int, drawn: int) -> Tensor:
    """The chance of every user's held-out item to be among the first ``k``, over all draws of the candidates.

    Args:
        ranking: in the whole catalogue.
        k: length of the list.
        drawn: how many candidates are drawn beside the held-out item.

    Returns:
        ``[U]``, float64: the number of better items among those drawn is hypergeometric.
    """
    better, size = ranking.ranks.double(), (ranking.num_candidates - 1).double()
    found = torch.arange(k, dtype=torch.float64)[:, None]  # [k, 1]
    number = torch.tensor(float(drawn), dtype=torch.float64)
    logs = choose(better, found) + choose(size - better, number - found) - choose(size, number)  # [k, U]
    return logs.exp().sum(0)


def choose(n: Tensor, k: Tensor) -> Tensor:
    """Logarithm of the binomial coefficient; minus infinity where k > n."""
    logs = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma((n - k).clamp(min=0) + 1)
    return torch.where(n >= k, logs, -torch.inf)


def chance_of_showing(target: float, true: float, users: int) -> float:
    """How often a model whose HR over all people is ``true`` shows at least ``target`` on so many of them.

    Args:
        target: the HR that was shown.
        true: the HR over all people.
        users: how many of them were judged.
    """
    hits = torch.arange(int(-(-target * users // 1)), users + 1, dtype=torch.float64)
    number, share = torch.tensor(float(users), dtype=torch.float64), torch.tensor(true, dtype=torch.float64)
    return float(
        (choose(number, hits) + hits * share.log() + (number - hits) * (1 - share).log()).exp().sum()
    )


def judge(models: Models, candidates: Candidates, catalogue: Catalogue) -> dict[str, list[Ranking]]:
    """Print a line per model: the mean over its seeds with an interval over users; return the rankings."""
    print(f"{'':46}  HR@10 ± seeds   95% interval over users  best seed  NDCG@10  HR@10 over all draws")
    rankings: dict[str, list[Ranking]] = {}
    for name, of_seeds in models.items():
        rankings[name] = [evaluate(model, candidates) for model in of_seeds]
        hits = torch.stack([ranking.values("hr") for ranking in rankings[name]])  # [seeds, U]
        chances = torch.stack(
            [
                chance_of_hit(evaluate(model, catalogue), 10, candidates.negatives.shape[1])
                for model in of_seeds
            ]
        ).mean(0)  # [U]
        shown = hits.mean(1).tolist()
        spread = f"± {stdev(shown) / len(shown) ** 0.5:.3f}" if len(shown) > 1 else ""
        print(
            f"{name:46}  {hits.mean():.3f} {spread:7}   {normal_interval(hits.mean(0))!s:23}"
            f"  {max(shown):9.3f}  {mean(ranking.ndcg for ranking in rankings[name]):7.3f}"
            f"  {chances.mean():.3f} ± {standard_error(chances):.3f}",
            flush=True,
        )
    return rankings


def overlap(rankings: Mapping[str, list[Ranking]]) -> None:
    """Print for how many users all kinds of models agree; the first seed of each."""
    alone = [of_seeds[0] for name, of_seeds in rankings.items() if name != "ItemPop"]
    hits = torch.stack([ranking.values("hr") for ranking in alone]).sum(0)  # [U]
    missed, total = hits == 0, len(alone)
    print(
        f"of {len(hits)} users, hit by all {total} models other than ItemPop: {int((hits == total).sum())}, "
        f"by some: {int(((hits > 0) & (hits < total)).sum())}, by none: {int(missed.sum())}"
    )
    ranks = torch.stack([ranking.ranks for ranking in alone]).double().median(0).values
    print(f"median rank, where none hits: {float(ranks[missed].median()):.0f} of 101 (0 is the top)")


def best_weights(
    models: Mapping[str, SupportsScore], candidates: Candidates
) -> tuple[float, dict[str, float]]:
    """The best HR@10 over a grid of weights, on the very items that it is judged on.

    Args:
        models: what to mix, by name.
        candidates: what to rank.

    Returns:
        The HR, and the weights that gave it.
    """
    scores = torch.stack(
        [standard(model, candidates.users, candidates.items) for model in models.values()]
    )  # [M, U, 1 + C]
    best, chosen = 0.0, (0.0,) * len(models)
    for weights in itertools.product((0.0, 0.5, 1.0, 2.0), repeat=len(models)):
        mixed = torch.einsum("m,muc->uc", torch.tensor(weights, dtype=torch.float64), scores)
        hr = float(((mixed[:, 1:] >= mixed[:, :1]).sum(1) < 10).double().mean())
        if hr > best:
            best, chosen = hr, weights
    return best, dict(zip(models, chosen, strict=True))


def main() -> int:
    """Train, judge, mix."""
    args = parse_arguments()
    torch.set_num_threads(1)
    whole = leave_one_out(movielens.load("100k").interactions)
    for part in args.parts:
        split = whole if part == "validation" else whole.with_validation_in_train()
        candidates = sample_candidates(split, part, num_negatives=100, seed=0)
        models = train_all(split, args.seeds)
        print(f"\n{part} part, {args.seeds} seeds")
        rankings = judge(models, candidates, whole_catalogue(split, part))
        judge(mixtures(models), candidates, whole_catalogue(split, part))
        overlap(rankings)
        kinds = {name: Mixture(models[name]) for name in ("GMF", "NeuMF", "ALS", "EASE", "ItemKNN")}
        hr, weights = best_weights(kinds, candidates)
        told = ", ".join(f"{weight:g} {name}" for name, weight in weights.items() if weight)
        print(f"best of {4 ** len(kinds)} mixtures, chosen on the {part} part itself: {hr:.3f} ({told})")
    users = len(whole.test)
    chances = ", ".join(f"{chance_of_showing(args.target, hr, users):.1%} at {hr}" for hr in args.true)
    print(f"\nchance to show an HR of {args.target} or more on {users} users, for a true HR: {chances}")
    return 0


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="how many of each trained model")
    parser.add_argument(
        "--parts", nargs="+", default=["test"], choices=("validation", "test"), help="judged on"
    )
    parser.add_argument("--target", type=float, default=0.702, help="the HR@10 that is asked about")
    parser.add_argument(
        "--true",
        type=float,
        nargs="+",
        default=[0.67, 0.68, 0.69, 0.70],
        help="true HR@10 to assume for a model",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
