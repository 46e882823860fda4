"""What does MovieLens-100K allow? Every kind of model, alone and together, on the same held-out items.

    python -m benchmarks.ceiling

The last block chooses the weights of the mixture *on the test part itself*. Nobody may report such a figure as a
result: it is an upper bound, for what a mixture of these models could reach with perfect luck in its choices.
"""

from __future__ import annotations

import argparse
import itertools
import sys

import torch
from torch import Tensor

from ncf import (
    EASE,
    GMF,
    MLP,
    Candidates,
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
from ncf.baselines import ALS
from ncf.datasets import movielens
from ncf.scorers import SupportsScore, scoring_view
from ncf.statistics import paired_test, standard_error


class Mixture:
    """The weighted mean of models' scores, each made standard over a user's candidates first."""

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
    with scoring_view(model) as scorer:
        scores = scorer.score(users, candidates).double()
    return (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True).clamp(min=1e-12)


def train_all(split: Split, seeds: int) -> dict[str, SupportsScore]:
    """The models with the recipe of examples/movielens.py, the GMF with several seeds."""
    train = split.train
    assert train is not None
    size = (train.num_users, train.num_items)
    models: dict[str, SupportsScore] = {
        "ItemPop": ItemPop(train),
        "ItemKNN": ItemKNN(train),
        "EASE": EASE(train),
        "ALS": ALS(train),
    }
    trained = {f"GMF, seed {seed}": GMF(*size, factors=128, init_std=0.1, seed=seed) for seed in range(seeds)}
    trained |= {
        "MatrixFactorization": MatrixFactorization(*size, factors=128, init_std=0.1),
        "MLP": MLP(*size, layers=(64, 32, 16), init_std=0.1),
        "NeuMF": NeuMF(*size, factors=128, layers=(64, 32, 16), init_std=0.1),
    }
    for model in trained.values():
        Trainer(
            model, epochs=10, weight_decay=1e-5, selection="last", seed=model.config["seed"], progress=False
        ).fit(split)
    return models | trained


def expected_hr(models: dict[str, SupportsScore], split: Split, k: int = 10, negatives: int = 100) -> None:
    """HR over all draws of the candidates at once, from the rank in the whole catalogue."""
    catalogue = whole_catalogue(split)
    print(
        f"\nHR@{k} in the mean over every draw of {negatives} candidates, and its standard error over users:"
    )
    for name, model in models.items():
        whole = evaluate(model, catalogue)
        better, size = whole.ranks.double(), (whole.num_candidates - 1).double()
        # The number of better items among the sampled ones is hypergeometric: P(fewer than k), term by term.
        drawn = torch.arange(k, dtype=torch.float64)[:, None]  # [k, 1]
        logs = (
            choose(better, drawn)
            + choose(size - better, negatives - drawn)
            - choose(size, torch.tensor(negatives))
        )
        chance = logs.exp().sum(0)  # [U]
        print(f"{name:28}  {float(chance.mean()):.3f} ± {standard_error(chance):.3f}")


def choose(n: Tensor, k: Tensor) -> Tensor:
    """Logarithm of the binomial coefficient; minus infinity where k > n."""
    inside = (n - k).clamp(min=0)
    logs = torch.lgamma(n + 1) - torch.lgamma(torch.as_tensor(k + 1.0)) - torch.lgamma(inside + 1)
    return torch.where(n >= k, logs, -torch.inf)


def main() -> int:
    """Train, judge, mix."""
    args = parse_arguments()
    torch.set_num_threads(1)
    interactions = movielens.load("100k").interactions
    whole = leave_one_out(interactions)
    for part in ("validation", "test"):
        split = whole if part == "validation" else whole.merged()
        candidates = sample_candidates(split, part, num_negatives=100, seed=0)  # type: ignore[arg-type]
        models = train_all(split, args.seeds)
        gmfs = [model for name, model in models.items() if name.startswith("GMF")]
        models[f"{args.seeds} GMF"] = Mixture(gmfs)
        models[f"{args.seeds} GMF + EASE + ALS"] = Mixture(
            [*gmfs, models["EASE"], models["ALS"]], [1 / args.seeds] * args.seeds + [1.0, 1.0]
        )
        rankings = {name: evaluate(model, candidates) for name, model in models.items()}
        report(part, rankings)
        weights = best_weights([Mixture(gmfs), models["EASE"], models["ALS"], models["ItemKNN"]], candidates)
        print(f"mixture chosen on the {part} part itself (GMF, EASE, ALS, ItemKNN): {weights}", flush=True)
        if part == "test":
            expected_hr(models, split)
    return 0


def report(part: str, rankings: dict[str, Ranking]) -> None:
    """Each model beside the first GMF, and where all agree."""
    reference = rankings["GMF, seed 0"]
    print(f"\n{part} part: HR@10, its 95% interval, NDCG@10; HR@10 less that of GMF, seed 0")
    for name, ranking in rankings.items():
        test = paired_test(ranking, reference, "hr")
        print(f"{name:28}  {ranking.hr:.3f} {ranking.interval('hr')}  {ranking.ndcg:.3f}  {test}")
    alone = [ranking for name, ranking in rankings.items() if "+" not in name and name != "ItemPop"]
    hits = torch.stack([ranking.values("hr") for ranking in alone]).sum(0)  # [U]
    total = len(alone)
    print(
        f"of {len(hits)} users, hit by all {total} models other than ItemPop: {int((hits == total).sum())}, "
        f"by some: {int(((hits > 0) & (hits < total)).sum())}, by none: {int((hits == 0).sum())}"
    )
    ranks = torch.stack([ranking.ranks for ranking in alone]).double().median(0).values
    missed = hits == 0
    print(f"median rank, where none hits: {float(ranks[missed].median()):.0f} of 101 (0 is the top)")


def best_weights(models: list[SupportsScore], candidates: Candidates) -> str:
    """The best HR@10 over a grid of weights, on the very items it is judged on."""
    scores = torch.stack(
        [standard(model, candidates.users, candidates.items) for model in models]
    )  # [M, U, 1 + C]
    best, chosen = 0.0, (0.0,)
    for weights in itertools.product((0.0, 0.5, 1.0, 2.0), repeat=len(models)):
        mixed = torch.einsum("m,muc->uc", torch.tensor(weights, dtype=torch.float64), scores)
        hr = float(((mixed[:, 1:] >= mixed[:, :1]).sum(1) < 10).double().mean())
        if hr > best:
            best, chosen = hr, weights
    return f"HR@10 {best:.3f} with weights {chosen}"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=4, help="how many GMF")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
