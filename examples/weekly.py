"""Retrain every week, or continue: MovieLens-100K, whose last tenth in time is the new week.

    python examples/weekly.py [--seeds 20] [--until 1.0]

A model is trained on the first nine tenths and saved. With the last tenth come new users and films: `extend` gives the
model rows for them, `fold_in` finds where they start, and the training continues on the new interactions
alone. A full retrain on everything is what it is compared with. ``--until 0.9`` takes the tenth before as the week.
"""

import argparse
import tempfile
import time

import torch

import ncf
from ncf import (
    GMF,
    Interactions,
    Split,
    Trainer,
    extend,
    fold_in,
    leave_one_out,
    whole_catalogue,
)
from ncf.datasets import movielens


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--until", type=float, default=1.0)
    args = parser.parse_args()
    torch.set_num_threads(1)  # processor time is compared
    everything = movielens.load("100k").interactions
    by_time = everything.timestamps.argsort(stable=True)
    everything = everything.take(by_time[: int(args.until * len(by_time))])
    # Evaluated is the last interaction, which no training has, of each user of the new week.
    split = leave_one_out(everything, validation=False, min_interactions=2)
    order = split.train.timestamps.argsort(stable=True)
    cut = len(order) - round(0.1 * len(order) / args.until)
    users, items = everything.user_ids, everything.item_ids

    def log(rows: torch.Tensor) -> Interactions:
        part = split.train.take(rows)
        raw = users.decode(part.users), items.decode(part.items)
        return Interactions.from_arrays(*raw, part.timestamps)

    old, week = log(order[:cut]), log(order[cut:])
    runs = []
    for seed in range(args.seeds):
        model = GMF(
            old.num_users, old.num_items, factors=32, init_std=0.1, seed=seed
        )
        before = Trainer(
            model,
            epochs=10,
            weight_decay=1e-5,
            selection="last",
            seed=seed,
            progress=False,
        )
        before.fit(old)
        with tempfile.TemporaryDirectory() as folder:
            model.save(folder)
            saved = ncf.load(folder)

        seconds = time.process_time()
        grown = extend(saved, week)
        for side in ("user", "item"):
            histories = grown.histories(side)
            # The training continues from there: a rough solution will do.
            rough = {"side": side, "background": 128, "tolerance": 3.0}
            grown.start(fold_in(grown.model, histories, **rough).rows)
        now = Trainer(
            grown.model,
            epochs=2,
            batch_size=64,
            learning_rate=2e-3,  # half of a new model's
            schedule="constant",
            weight_decay=1e-5,
            selection="last",
            seed=seed,
            progress=False,
        )
        now.fit(grown.interactions)
        continued = time.process_time() - seconds

        full_log = grown.with_replay(old)
        retrained = GMF(
            grown.model.num_users,
            grown.model.num_items,
            factors=32,
            init_std=0.1,
            seed=seed,
        )
        seconds = time.process_time()
        full = Trainer(
            retrained,
            epochs=10,
            weight_decay=1e-5,
            selection="last",
            seed=seed,
            progress=False,
        )
        full.fit(full_log)
        whole = time.process_time() - seconds

        grown_items = grown.model.item_ids
        known = set(grown_items.values.to_pylist())
        found = torch.tensor(
            [raw in known for raw in items.decode(split.test.items)]
        )
        active = torch.isin(split.test.users, users.encode(week.user_ids.values))
        held_out = split.test.take(
            found & active
        )  # a film that nobody else has seen cannot be found
        test = Interactions(
            grown.model.user_ids.encode(users.decode(held_out.users)),
            grown_items.encode(items.decode(held_out.items)),
            None,
            grown.model.num_users,
            grown.model.num_items,
        )
        catalogue = whole_catalogue(Split(full_log, None, test))
        models = extend(saved, week).model, grown.model, retrained
        rankings = [ncf.evaluate(each, catalogue) for each in models]
        measured = [
            value for ranking in rankings for value in (ranking.hr, ranking.ndcg)
        ]
        runs.append([*measured, continued, whole, correlation(saved, grown)])
    *measured, continued, whole, kept = torch.tensor(runs).mean(0).tolist()
    print(f"{old} and then {week}; means of {args.seeds} seeds")
    for place, name in enumerate(("as it was", "continued", "retrained")):
        print(
            f"{name:12} HR@10 {measured[2 * place]:.3f}  NDCG@10 {measured[2 * place + 1]:.3f}"
        )
    print(
        f"{measured[3] / measured[5]:.1%} of the retrain's NDCG@10 in {continued / whole:.1%} of its time"
    )
    print(f"rank correlation of old users' lists, before and after: {kept:.3f}")


def correlation(before: GMF, grown: ncf.models.growing.Grown) -> float:
    """Spearman's correlation of the order of the old items, mean over old users who have no new interaction."""
    idle = torch.ones(before.num_users, dtype=torch.bool)
    idle[grown.interactions.users[grown.interactions.users < before.num_users]] = (
        False
    )
    users, items = idle.nonzero()[:, 0], torch.arange(before.num_items)
    ranks = [
        model.score(users, items.expand(len(users), -1))
        .argsort(1)
        .argsort(1)
        .double()
        for model in (before, grown.model)
    ]
    ranks = [each - each.mean(1, keepdim=True) for each in ranks]
    return float(torch.nn.functional.cosine_similarity(*ranks, dim=1).mean())


if __name__ == "__main__":
    main()
