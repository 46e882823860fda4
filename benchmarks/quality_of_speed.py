"""The fast paths beside the plain ones on MovieLens-100K: the quality that each reaches, over several seeds."""

from __future__ import annotations

import argparse
import statistics

import torch

from ncf import Candidates, NeuMF, Ranking, Split, Trainer, evaluate, leave_one_out, sample_candidates
from ncf.datasets import movielens
from ncf.models.base import EmbeddingModel


class Naive:
    """Scores pair by pair through the network, as it is trained."""

    def __init__(self, model: EmbeddingModel) -> None:
        self.model = model.eval()

    def score(self, users: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """See `ncf.evaluation.SupportsScore`."""
        pairs = users[:, None].expand_as(candidates)
        return self.model(pairs.reshape(-1), candidates.reshape(-1)).view(candidates.shape)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality_of_speed", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--learning-rate", type=float, default=8e-3)
    options = parser.parse_args()
    split = leave_one_out(movielens.load("100k").interactions, validation=False)
    candidates = sample_candidates(split)
    settings = {name: value for name, value in vars(options).items() if name != "seeds"} | {
        "optimizer": "adam"
    }
    reached: dict[str, list[float]] = {}
    for name, compile in (("eager", False), ("native", None)):
        rankings = [
            trained(split, candidates, seed, compile=compile, **settings) for seed in range(options.seeds)
        ]
        hr, ndcg = [ranking.hr for ranking in rankings], [ranking.ndcg for ranking in rankings]
        reached[name] = hr
        print(
            f"{name:9} "
            f"HR@10 {statistics.fmean(hr):.4f} ± {mean_and_error(hr)[1]:.4f}   "
            f"NDCG@10 {statistics.fmean(ndcg):.4f} ± {mean_and_error(ndcg)[1]:.4f}   "
            f"seeds: {', '.join(f'{value:.3f}' for value in hr)}",
            flush=True,
        )
    plain = reached.pop("eager")
    for name, fast in reached.items():
        difference, error = mean_and_error([a - b for a, b in zip(fast, plain, strict=True)])
        print(f"{name} - eager: {difference:+.4f} ± {error:.4f}, seed by seed")


def trained(split: Split, candidates: Candidates, seed: int, **settings: object) -> Ranking:
    """Train once; check on the way that the frozen view ranks as the network does."""
    test = split.test
    model = NeuMF(test.num_users, test.num_items, factors=8, layers=(32, 16, 8), seed=seed)
    Trainer(model, selection="last", seed=seed, progress=False, **settings).fit(split)  # type: ignore[arg-type]
    ranking = evaluate(model, candidates)
    moved = (ranking.ranks - evaluate(Naive(model), candidates).ranks).abs()
    # Rounding may part two candidates whose scores are all but equal.
    if int(moved.max()) > 1 or int(moved.sum()) > len(moved) // 100:
        raise RuntimeError(
            f"seed {seed}: the frozen view ranks {int(moved.sum())} places apart from the network"
        )
    return ranking


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """A mean and its standard error."""
    return statistics.fmean(values), statistics.stdev(values) / len(values) ** 0.5


if __name__ == "__main__":
    main()
