"""Repeat a part of the paper's experiments, and print our figures beside the published ones.

    python examples/paper.py --part depth
    python examples/paper.py --part factors --dataset 1m
    python examples/paper.py --part depth --ncf-files Data/ml-1m

He, Liao, Zhang, Nie, Hu & Chua, Neural Collaborative Filtering, WWW 2017. The protocol is the paper's: the last
item held out, among 100 others; Adam, 4 negatives, tables that start Gaussian with deviation 0.01; NeuMF also from a
trained GMF and MLP, fused with alpha 0.5 and gone on with SGD. It also chooses the epoch on the test part, as
the paper's code does: that flatters every figure, and is done here to compare with figures made so.
The study of factors also draws a picture of its table.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import mean, stdev

from ncf import (
    GMF,
    MLP,
    Candidates,
    ItemPop,
    NeuMF,
    Ranking,
    Split,
    Trainer,
    evaluate,
    leave_one_out,
    sample_candidates,
)
from ncf.datasets import movielens, read_ncf
from ncf.models.base import EmbeddingModel

# HR@10 and NDCG@10 on MovieLens-1M, from the paper's tables 2, 3 and 4.
PUBLISHED = {
    ("NeuMF", 8): (0.688, 0.410),
    ("NeuMF", 16): (0.696, 0.420),
    ("NeuMF", 32): (0.701, 0.425),
    ("NeuMF", 64): (0.705, 0.426),
    ("NeuMF pre-trained", 8): (0.684, 0.403),
    ("NeuMF pre-trained", 16): (0.707, 0.426),
    ("NeuMF pre-trained", 32): (0.726, 0.445),
    ("NeuMF pre-trained", 64): (0.730, 0.447),
    ("MLP-0", 8): (0.452, 0.253),
    ("MLP-1", 8): (0.628, 0.359),
    ("MLP-2", 8): (0.655, 0.383),
    ("MLP-3", 8): (0.671, 0.399),
    ("MLP-4", 8): (0.678, 0.406),
}
DEPTHS = (0, 1, 2, 3, 4)
MODELS = ("GMF", "MLP", "NeuMF", "NeuMF pre-trained")  # of the study of factors

Trained = dict[tuple[str, int, int], EmbeddingModel]  # by name, factors and seed


def main() -> int:
    """Run the example."""
    args = parse_arguments()
    if args.ncf_files:
        name = args.ncf_files
        split, candidates = read_ncf(args.ncf_files)
    else:
        name = f"MovieLens-{args.dataset}"
        split = leave_one_out(movielens.load(args.dataset).interactions, validation=False)
        candidates = sample_candidates(split, num_negatives=100, seed=0)
    popularity = evaluate(ItemPop(split.train), candidates)
    print(f"{name}: {split}, {candidates}\n")
    print(
        f"{'':29}  {'HR@10':>7}  {'NDCG@10':>7}  {spread_name(args):20}  {'paper, 1M':13}  best epoch  seconds"
    )
    print_line("ItemPop", [popularity], None, [], 0.0)
    trained: Trained = {}
    found: dict[tuple[str, int], list[Ranking]] = {}
    for factors in args.factors if args.part == "factors" else [8]:
        for model in MODELS if args.part == "factors" else [f"MLP-{depth}" for depth in DEPTHS]:
            began = time.perf_counter()
            runs = [
                train(model, factors, split, candidates, seed, args, trained)
                for seed in range(args.seed, args.seed + args.seeds)
            ]
            seconds = (time.perf_counter() - began) / len(runs)
            label = f"{model}, {factors} factors" if args.part == "factors" else model
            rankings, epochs = [ranking for ranking, _ in runs], [epoch for _, epoch in runs]
            print_line(label, rankings, PUBLISHED.get((model, factors)), epochs, seconds)
            found[model, factors] = rankings
    print("\nThe epoch was chosen on the TEST items, as in the paper: flattering.")
    if args.part == "factors":
        path = Path(args.out) / "factors.png"
        try:
            draw(found, popularity, path)
        except ImportError as error:
            print(f"no plot: {error}")
        else:
            print(f"Drawn: {path}")
    return 0


def train(
    name: str,
    factors: int,
    split: Split,
    candidates: Candidates,
    seed: int,
    args: argparse.Namespace,
    trained: Trained,
) -> tuple[Ranking, int]:
    """One model by the paper's protocol: how it ranks, and the epoch that was kept; ``trained`` gets the model."""
    users, items = split.test.num_users, split.test.num_items
    depth = int(name.removeprefix("MLP-")) if name.startswith("MLP-") else 3
    # The tower halves at each layer and ends at the predictive factors; without one the two rows are its output.
    layers = tuple(factors * 2**power for power in range(max(depth, 1), 0 if depth == 0 else -1, -1))
    optimizer, epochs = "adam", args.epochs
    model: EmbeddingModel
    if name == "GMF":
        model = GMF(users, items, factors=factors, init_std=0.01, seed=seed)
    elif name.startswith("MLP"):
        model = MLP(users, items, layers=layers, init_std=0.01, seed=seed)
    elif name == "NeuMF":
        model = NeuMF(users, items, factors=factors, layers=layers, init_std=0.01, seed=seed)
    else:
        gmf, mlp = trained["GMF", factors, seed], trained["MLP", factors, seed]
        model = NeuMF.from_pretrained(gmf, mlp, alpha=0.5)  # type: ignore[arg-type]
        optimizer, epochs = "sgd", max(1, args.epochs // 2)  # Adam's momentum of the two parts is lost
    history = Trainer(
        model,
        epochs=epochs,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        schedule="constant",
        optimizer=optimizer,  # type: ignore[arg-type]
        negatives=4,
        selection="paper",
        seed=seed,
        progress=False,
    ).fit(split, candidates)
    trained[name, factors, seed] = model
    return evaluate(model, candidates), history.best_epoch


def print_line(
    label: str,
    rankings: list[Ranking],
    published: tuple[float, float] | None,
    epochs: list[int],
    seconds: float,
) -> None:
    """One row of the table, as soon as it is known."""
    hits, gains = [ranking.hr for ranking in rankings], [ranking.ndcg for ranking in rankings]
    if len(hits) > 1:
        of_hits, of_gains = (stdev(values) / len(values) ** 0.5 for values in (hits, gains))
        spread = f"± {of_hits:.3f}, ± {of_gains:.3f}"
    else:
        spread = str(rankings[0].interval("hr"))
    paper = "{:.3f} / {:.3f}".format(*published) if published else "–"
    best = " ".join(map(str, epochs)) if epochs else "–"
    print(
        f"{label:29}  {mean(hits):7.3f}  {mean(gains):7.3f}  {spread:20}  {paper:13}  {best:>10}  {seconds:7.1f}",
        flush=True,
    )


def draw(found: dict[tuple[str, int], list[Ranking]], popularity: Ranking, path: Path) -> None:
    """HR and NDCG over the factors, a line per model; bands of a standard error to each side over the seeds."""
    from ncf.evaluation.figures import FAINT, INK, new_figure, save_figure

    figure, axes = new_figure(columns=2, width=10, height=4.4)
    factors = sorted({number for _, number in found})
    looks = zip(("#0072B2", "#E69F00", "#009E73", "#D55E00"), ("o", "s", "^", "D"), strict=True)
    look = dict(zip(MODELS, looks, strict=True))
    for axis, metric in zip(axes, ("hr", "ndcg"), strict=True):
        for model, (colour, marker) in look.items():
            values = [[getattr(ranking, metric) for ranking in found[model, number]] for number in factors]
            means = [mean(of_seeds) for of_seeds in values]
            axis.plot(factors, means, color=colour, marker=marker, markersize=5, label=model)
            if len(values[0]) > 1:
                errors = [stdev(of_seeds) / len(of_seeds) ** 0.5 for of_seeds in values]
                ends = ([m + sign * e for m, e in zip(means, errors, strict=True)] for sign in (-1, 1))
                axis.fill_between(factors, *ends, color=colour, alpha=0.18, linewidth=0)
            published = {n: PUBLISHED[model, n] for n in factors if (model, n) in PUBLISHED}
            if published:
                theirs = [pair[metric == "ndcg"] for pair in published.values()]
                axis.plot([*published], theirs, color=colour, linestyle="dotted", linewidth=1.2)
        axis.axhline(getattr(popularity, metric), color=FAINT, linewidth=1, linestyle="dashed")
        axis.text(
            factors[-1],
            getattr(popularity, metric),
            "ItemPop",
            color=FAINT,
            fontsize=9,
            ha="right",
            va="bottom",
        )
        axis.set_title(f"{metric.upper()}@{popularity.k}", loc="left", fontsize=11, color=INK)
        axis.set_xscale("log", base=2)
        axis.set_xticks(factors, [str(number) for number in factors])
        axis.set_xlabel("predictive factors", color=INK)
    figure.suptitle(
        "More factors, and pre-training: epochs chosen on the test part, as in the paper",
        x=0.01,
        ha="left",
        fontsize=13,
        color=INK,
    )
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=4, frameon=False)
    figure.supxlabel(
        "dotted: the paper's NeuMF, on MovieLens-1M", x=0.99, ha="right", fontsize=9, color=FAINT
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path)


def spread_name(args: argparse.Namespace) -> str:
    """What stands beside the means."""
    return "standard errors" if args.seeds > 1 else "95% interval of HR"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--part", default="depth", choices=("depth", "factors"), help="tables 3 and 4, or 2")
    parser.add_argument("--dataset", default="100k", choices=("100k", "1m"), help="which MovieLens")
    parser.add_argument("--ncf-files", metavar="PREFIX", help="the paper's files instead, such as Data/ml-1m")
    parser.add_argument("--factors", type=int, nargs="+", default=[8, 16, 32, 64], help="for --part factors")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the training data")
    parser.add_argument("--batch-size", type=int, default=1024, help="the paper tried 128 to 1024")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="the paper tried 1e-4 to 5e-3")
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds")
    parser.add_argument("--out", default="runs/paper", help="folder for the picture of the factors")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
