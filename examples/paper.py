"""Repeat the paper's experiments, and print our figures beside the published ones.

    python examples/paper.py --part depth                # tables 3 and 4
    python examples/paper.py --part factors              # table 2 and figure 4
    python examples/paper.py --part top-k                # figure 5
    python examples/paper.py --part epochs               # figure 6
    python examples/paper.py --part negatives            # figure 7
    python examples/paper.py --part depth --ncf-files Data/ml-1m

He, Liao, Zhang, Nie, Hu & Chua, Neural Collaborative Filtering, WWW 2017. The protocol
is the paper's: the last item held out, ranked among 100 others; Adam, 4 negatives,
tables that start Gaussian with deviation 0.01. NeuMF is also trained from a trained GMF
and MLP, fused with alpha 0.5, by SGD. The epoch is chosen on the test set, as in the
paper's code: that flatters every figure, and serves to compare with figures made so.

The paper's own files are in the folder Data of the repository
https://github.com/hexiangnan/neural_collaborative_filtering. Put ml-1m.train.rating,
ml-1m.test.rating and ml-1m.test.negative into a folder, and give
--ncf-files FOLDER/ml-1m. Likewise pinterest-20.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from published import FACTORS, published

from ncf import (
    GMF,
    MLP,
    Candidates,
    History,
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

DEPTHS = ("MLP-0", "MLP-1", "MLP-2", "MLP-3", "MLP-4")
MODELS = ("GMF", "MLP", "NeuMF", "NeuMF pre-trained")
NEGATIVES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
DRAWN = ("factors", "top-k", "epochs", "negatives")
Trained = dict[tuple[str, int, int, int], EmbeddingModel]
# By metric and model, and then by place: the mean over seeds, and its standard error.
Curves = dict[tuple[str, str], dict[int, tuple[float, float]]]


def main() -> int:
    """Run one part of the paper's experiments."""
    args = parse_arguments()
    if args.ncf_files:
        name = args.ncf_files
        split, candidates = read_ncf(args.ncf_files)
    else:
        name = f"MovieLens-{args.dataset}"
        interactions = movielens.load(args.dataset).interactions
        split = leave_one_out(interactions, validation=False)
        candidates = sample_candidates(split, num_negatives=100, seed=0)
    began = time.perf_counter()
    popularity = evaluate(ItemPop(split.train), candidates)
    print(f"{name}: {split}, {candidates}\n")
    spread = "standard errors" if args.seeds > 1 else "95% interval of HR"
    print(
        f"{'':29}  {'HR@10':>7}  {'NDCG@10':>7}  {spread:18}  "
        f"{'the paper':13}  {'epoch':>5}  seconds"
    )
    print_line("ItemPop", [popularity], None, [], 0.0)
    study = Study(split, candidates, args)
    paper = published(name)
    runs: dict[tuple[str, int, int], list[tuple[Ranking, History]]] = {}
    for factors in args.factors:
        for negatives in NEGATIVES if args.part == "negatives" else (4,):
            for model in DEPTHS if args.part == "depth" else MODELS:
                start = time.perf_counter()
                runs[model, factors, negatives] = found = [
                    study.run(model, factors, negatives, seed)
                    for seed in range(args.seed, args.seed + args.seeds)
                ]
                label = f"{model}, {factors} factors"
                if args.part == "negatives":
                    label += f", {negatives} neg."
                print_line(
                    label,
                    [ranking for ranking, _ in found],
                    paper.get((model, factors)) if negatives == 4 else None,
                    [history.best_epoch for _, history in found],
                    (time.perf_counter() - start) / args.seeds,
                )
    print(
        "\nThe epoch was chosen on the TEST items, as in the paper: flattering."
        f"\nAll of it took {time.perf_counter() - began:.0f} s."
    )
    if args.part in DRAWN:
        try:
            for path in draw(args, runs, popularity, paper):
                print(f"Drawn: {path}")
        except ImportError as error:
            print(f"no plot: {error}")
    return 0


class Study:
    """Trains models by the paper's protocol; the pre-trained NeuMF starts from others."""

    def __init__(
        self, split: Split, candidates: Candidates, args: argparse.Namespace
    ) -> None:
        self.split, self.candidates, self.args = split, candidates, args
        self.trained: Trained = {}

    def run(
        self, name: str, factors: int, negatives: int, seed: int
    ) -> tuple[Ranking, History]:
        """Train one model, and rank with it."""
        users, items = self.split.test.num_users, self.split.test.num_items
        depth = int(name.removeprefix("MLP-")) if name.startswith("MLP-") else 3
        # The tower halves at each layer and ends at the predictive factors; without
        # a hidden layer the two rows are its output.
        halvings = range(max(depth, 1), 0 if depth == 0 else -1, -1)
        layers = tuple(factors * 2**power for power in halvings)
        optimizer, epochs = "adam", self.args.epochs
        start = {"init_std": 0.01, "seed": seed}
        model: EmbeddingModel
        if name == "GMF":
            model = GMF(users, items, factors=factors, **start)  # type: ignore[arg-type]
        elif name.startswith("MLP"):
            model = MLP(users, items, layers=layers, **start)  # type: ignore[arg-type]
        elif name == "NeuMF":
            model = NeuMF(users, items, factors=factors, layers=layers, **start)  # type: ignore[arg-type]
        else:
            gmf, mlp = (
                self.trained[part, factors, negatives, seed]
                for part in ("GMF", "MLP")
            )
            model = NeuMF.from_pretrained(gmf, mlp, alpha=0.5)  # type: ignore[arg-type]
            optimizer, epochs = (
                "sgd",
                max(1, epochs // 2),
            )  # Adam's momentum of the parts is lost
        history = Trainer(
            model,
            epochs=epochs,
            batch_size=self.args.batch_size,
            learning_rate=self.args.learning_rate,
            schedule="constant",
            optimizer=optimizer,  # type: ignore[arg-type]
            negatives=negatives,
            selection="paper",
            seed=seed,
            progress=False,
        ).fit(self.split, self.candidates)
        self.trained[name, factors, negatives, seed] = model
        return evaluate(model, self.candidates), history


def print_line(
    label: str,
    rankings: list[Ranking],
    paper: tuple[float, float] | None,
    epochs: list[int],
    seconds: float,
) -> None:
    """Print one row of the table, as soon as it is known."""
    hr, ndcg = (
        [getattr(ranking, m) for ranking in rankings] for m in ("hr", "ndcg")
    )
    spread = str(rankings[0].interval("hr"))
    if len(hr) > 1:
        spread = ", ".join(
            f"± {stdev(values) / len(values) ** 0.5:.3f}" for values in (hr, ndcg)
        )
    theirs = "{:.3f} / {:.3f}".format(*paper) if paper else "–"
    best = " ".join(map(str, epochs)) if epochs else "–"
    print(
        f"{label:29}  {mean(hr):7.3f}  {mean(ndcg):7.3f}  {spread:18}  "
        f"{theirs:13}  {best:>5}  {seconds:7.1f}",
        flush=True,
    )


def draw(
    args: argparse.Namespace,
    runs: dict[tuple[str, int, int], list[tuple[Ranking, History]]],
    popularity: Ranking,
    paper: dict[tuple[str, int], tuple[float, float]],
) -> list[Path]:
    """Draw the figure of a part, for wide and for narrow pages."""
    from ncf.evaluation.figures import save_figure
    from ncf.evaluation.plots import learning_curves

    paths = []
    for suffix, stacked in (("", False), ("_narrow", True)):
        for factors in (None,) if args.part == "factors" else args.factors:
            of = "" if factors is None else f"_{factors}"
            path = Path(args.out) / f"{args.part}{of}{suffix}.png"
            if args.part == "epochs":
                histories = {
                    m: [history for _, history in runs[m, factors, 4]]
                    for m in MODELS
                }
                learning_curves(
                    histories,
                    path,
                    baselines={"ItemPop": popularity},
                    stacked=stacked,
                )
            else:
                curves: Curves = {
                    (metric, model): points_of(
                        args.part, factors, model, metric, runs
                    )
                    for metric in ("hr", "ndcg")
                    for model in MODELS
                }
                ks = range(1, 11) if args.part == "top-k" else [popularity.k]
                level = {
                    metric: [popularity.at(k).mean(metric) for k in ks]  # type: ignore[arg-type]
                    for metric in ("hr", "ndcg")
                }
                figure = draw_lines(args.part, curves, level, paper, stacked)
                save_figure(figure, path)
            paths.append(path)
    return paths


def draw_lines(
    part: str,
    curves: Curves,
    level: dict[str, list[float]],
    paper: dict[tuple[str, int], tuple[float, float]],
    stacked: bool,
) -> Any:
    """Draw HR and NDCG, a line per model with a band of a standard error."""
    from ncf.evaluation.figures import FAINT, INK, new_figure

    label = {"top-k": "length of the list", "negatives": "negatives per positive"}
    shape = (
        {"rows": 2, "width": 5.2, "height": 7.2}
        if stacked
        else {"columns": 2, "width": 10, "height": 4.2}
    )
    figure, axes = new_figure(**shape)  # type: ignore[arg-type]
    looks = [
        *zip(
            MODELS,
            ("#0072B2", "#E69F00", "#009E73", "#D55E00"),
            "os^D",
            strict=True,
        )
    ]
    for axis, metric in zip(axes, ("hr", "ndcg"), strict=True):
        for model, colour, marker in looks:
            points = curves[metric, model]
            means = [value for value, _ in points.values()]
            axis.plot(
                [*points],
                means,
                color=colour,
                marker=marker,
                markersize=4,
                label=model,
            )
            low, high = (
                [value + sign * error for value, error in points.values()]
                for sign in (-1, 1)
            )
            axis.fill_between(
                [*points], low, high, color=colour, alpha=0.18, linewidth=0
            )
            if part == "factors":
                theirs = {
                    n: paper[model, n][metric == "ndcg"]
                    for n in points
                    if (model, n) in paper
                }
                axis.plot(
                    [*theirs],
                    [*theirs.values()],
                    color=colour,
                    linestyle="dotted",
                    linewidth=1.2,
                )
        if part == "top-k":
            axis.plot(
                range(1, 11),
                level[metric],
                color=FAINT,
                linewidth=1,
                linestyle="dashed",
                label="ItemPop",
            )
        else:
            axis.axhline(
                level[metric][0],
                color=FAINT,
                linewidth=1,
                linestyle="dashed",
                label="ItemPop",
            )
        axis.set_title(
            f"{metric.upper()}@{'K' if part == 'top-k' else 10}",
            loc="left",
            fontsize=11,
        )
        axis.set_xlabel(label.get(part, "predictive factors"), color=INK)
        if part == "factors":
            axis.set_xscale("log", base=2)
            axis.set_xticks([*points], [*map(str, points)])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower left",
        ncols=3 if stacked else 5,
        frameon=False,
    )
    if part == "factors":
        figure.suptitle(
            "dotted: the paper, MovieLens-1M",
            x=0.99,
            ha="right",
            fontsize=9,
            color=FAINT,
        )
    return figure


def points_of(
    part: str,
    factors: int | None,
    model: str,
    metric: Any,
    runs: dict[tuple[str, int, int], list[tuple[Ranking, History]]],
) -> dict[int, tuple[float, float]]:
    """Return mean and standard error by the place on the horizontal axis."""
    values: dict[int, list[float]] = {}
    for (name, count, negatives), found in runs.items():
        if name != model or factors not in (None, count):
            continue
        if part == "top-k":
            for k in range(1, 11):
                values[k] = [ranking.at(k).mean(metric) for ranking, _ in found]
        else:
            place = count if part == "factors" else negatives
            values[place] = [ranking.mean(metric) for ranking, _ in found]
    return {
        x: (mean(each), stdev(each) / len(each) ** 0.5 if len(each) > 1 else 0.0)
        for x, each in values.items()
    }


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ("depth", *DRAWN)
    parser.add_argument(
        "--part", default="depth", choices=parts, help="which experiment"
    )
    parser.add_argument(
        "--dataset", default="100k", choices=("100k", "1m"), help="which MovieLens"
    )
    parser.add_argument(
        "--ncf-files",
        metavar="PREFIX",
        help="the paper's files, such as Data/ml-1m",
    )
    parser.add_argument(
        "--factors",
        type=int,
        nargs="+",
        help="8 16 32 64 for depth and factors, 8 for the other parts",
    )
    parser.add_argument(
        "--epochs", type=int, default=20, help="passes over the training data"
    )
    parser.add_argument(
        "--batch-size", type=int, default=1024, help="the paper tried 128 to 1024"
    )
    parser.add_argument(
        "--learning-rate", type=float, default=1e-3, help="the paper: 1e-4 to 5e-3"
    )
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds")
    parser.add_argument("--out", default="runs/paper", help="folder of the figures")
    args = parser.parse_args()
    if args.factors is None:
        args.factors = list(FACTORS) if args.part in ("depth", "factors") else [8]
    return args


if __name__ == "__main__":
    sys.exit(main())
