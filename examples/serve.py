"""From MovieLens-100K to a page with recommendations: ``make serve`` runs it.

Trains a model, saves all that answers need, and serves it on this machine until Ctrl-C.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ncf import NeuMF, Recommender, Trainer, leave_one_out
from ncf.datasets import movielens


def main() -> None:
    """Train, save, serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("runs/served"),
        help="where the model is saved",
    )
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument(
        "--no-serve", action="store_true", help="only train and save"
    )
    options = parser.parse_args()
    data = movielens.load("100k")
    split = leave_one_out(data.interactions)
    model = NeuMF(
        data.interactions.num_users,
        data.interactions.num_items,
        factors=32,
        layers=(64, 32, 16),
        init_std=0.1,
    )
    history = Trainer(model, epochs=10).fit(split)
    print(history)
    recommender = Recommender(
        model, seen=data.interactions, item_columns={"title": data.titles}
    )
    recommender.save(options.folder)
    print(
        f"Saved to {options.folder}. On the page, try user {recommender.some_user()}."
    )
    if not options.no_serve:
        from ncf.serve.__main__ import main as serve

        port = str(options.port)
        serve([str(options.folder), "--port", port, "--log", "text"])


if __name__ == "__main__":
    main()
