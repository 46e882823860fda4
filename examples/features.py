"""Films without an interaction: MovieLens' genres and years replace the ids.

    python examples/features.py [--seeds 3] [--name 100k]

A tenth of the films is left out of training altogether. `extend` then gives a trained model rows for them, from their
features alone, and they are ranked at once: among themselves, and among all films. Beside it stand the same model with
the features dealt out anew among the films, the model without features, and chance.
"""

import argparse
import sys

import pyarrow as pa
import torch

from ncf import (
    Features,
    Interactions,
    MatrixFactorization,
    Split,
    Trainer,
    extend,
)
from ncf.datasets import movielens
from ncf.training.losses import SampledSoftmax

K = 20


def recall(
    model: MatrixFactorization,
    held_out: Interactions,
    offered: torch.Tensor,
    seen: Interactions,
) -> float:
    """Share of a user's held-out films among the best K that are offered and not seen; mean over users."""
    asked = held_out.users.unique()
    scores = torch.full((len(asked), model.num_items), -torch.inf)
    scores[:, offered] = model.score(asked, offered)
    rows = torch.searchsorted(asked, seen.users).clamp(max=len(asked) - 1)
    known = asked[rows] == seen.users
    scores[rows[known], seen.items[known]] = -torch.inf
    rows = torch.searchsorted(asked, held_out.users)
    hits = (scores.topk(K).indices[rows] == held_out.items[:, None]).any(1).double()
    hits = torch.zeros(len(asked), dtype=torch.float64).index_add(0, rows, hits)
    return float((hits / rows.bincount()).mean())


def main() -> int:
    """Run the example."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", default="100k")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    data = movielens.load(args.name)
    log = data.interactions
    users, films = (ids.values for ids in (log.user_ids, log.item_ids))
    years = [
        int(title[-5:-1]) if title[-5:-1].isdigit() else None
        for title in data.titles
    ]
    genres = [list(of_film) for of_film in data.genres]
    runs: dict[str, list[list[float]]] = {}
    for seed in range(args.seeds):
        random = torch.Generator().manual_seed(seed)
        unseen = torch.rand(log.num_items, generator=random) < 0.1
        tested = torch.rand(len(log), generator=random) < 0.05

        def part(rows: torch.Tensor, **ids: object) -> Interactions:
            columns = (
                users.take(log.users[rows].numpy()),
                films.take(log.items[rows].numpy()),
            )
            return Interactions.from_arrays(*columns, **ids)

        train = part(~unseen[log.items] & ~tested)
        known = {"user_ids": train.user_ids, "unknown": "drop"}
        warm = part(~unseen[log.items] & tested, item_ids=train.item_ids, **known)
        dealt = torch.randperm(log.num_items, generator=random)
        tables = {
            "with features": pa.table(
                {"film": films, "genres": genres, "year": years}
            ),
            "with features dealt out anew": pa.table(
                {
                    "film": films,
                    "genres": [genres[film] for film in dealt],
                    "year": [years[film] for film in dealt],
                }
            ),
            "without features": None,
        }
        for name, table in tables.items():
            features = None
            if table is not None:
                features = Features.from_table(
                    table,
                    "film",
                    ids=train.item_ids,
                    columns={"genres": "categorical", "year": "numeric"},
                )
            model = MatrixFactorization(
                train.num_users,
                train.num_items,
                factors=31,
                cosine=True,
                item_features=features,
                id_dropout=0.1,
                seed=seed,
            )
            Trainer(
                model,
                epochs=args.epochs,
                learning_rate=1e-2,
                loss=SampledSoftmax(0.1),
                shared_negatives=256,
                selection="last",
                seed=seed,
                progress=False,
            ).fit(Split(train, None, train))
            figures = [recall(model, warm, torch.arange(train.num_items), train)]
            if features is not None:
                new = Features.from_table(
                    table.filter(pa.array(unseen.tolist())),
                    "film",
                    like=model.features("item"),
                )
                grown = extend(model, train, item_features=new).model
                cold = part(unseen[log.items], item_ids=grown.item_ids, **known)
                offered = torch.arange(train.num_items, grown.num_items)
                figures.append(recall(grown, cold, offered, train))
                figures.append(
                    recall(grown, cold, torch.arange(grown.num_items), train)
                )
                runs.setdefault("chance", []).append(
                    [K / train.num_items, K / len(offered), K / grown.num_items]
                )
            runs.setdefault(name, []).append(figures)
    print(
        f"Recall@{K}, means of {args.seeds} seeds; {int(unseen.sum())} of {len(unseen)} films never seen"
    )
    print(
        f"{'':30} {'known films':>12} {'new among new':>14} {'new among all':>14}"
    )
    for name, figures in runs.items():
        means = torch.tensor(figures).mean(0).tolist()
        print(f"{name:30} {' '.join(f'{value:13.3f}' for value in means)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
