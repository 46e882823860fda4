"""NeuMF of Microsoft's recommenders, in TensorFlow."""

# ruff: noqa: D102 -- methods are documented where `Contestant` is

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import recommenders
from recommenders.models.ncf.dataset import Dataset
from recommenders.models.ncf.ncf_singlenode import NCF

from benchmarks.peers.protocol import FACTORS, LAYERS, NEGATIVES, Clock, Data, Floats, Ints, Setting, main


class Recommenders:
    """`Contestant` over recommenders."""

    def __init__(self, data: Data, prefix: str) -> None:
        self.data = data
        self.folder = tempfile.TemporaryDirectory()
        self.file = Path(self.folder.name) / "train.csv"
        order = np.argsort(data.users, kind="stable")  # it wants its file by user
        table = np.stack([data.users[order], data.items[order], np.ones_like(order)], axis=1)
        np.savetxt(self.file, table, "%d", ",", header="userID,itemID,rating", comments="")

    def fit(self, setting: Setting, seed: int, clock: Clock) -> None:
        dataset = Dataset(str(self.file), n_neg=NEGATIVES, sample_with_replacement=True, seed=seed)
        known = dataset.item2id
        self.model = NCF(
            n_users=dataset.n_users,
            n_items=dataset.n_items,
            model_type="NeuMF",
            n_factors=FACTORS,
            layer_sizes=list(LAYERS),
            n_epochs=1,
            batch_size=setting.batch_size,
            learning_rate=setting.learning_rate,
            verbose=0,
            seed=seed,
        )
        # An item that training lacks has no row; its score is set below all others.
        self.known = np.array([i in known for i in range(self.data.num_items)])
        self.stand_in = next(iter(known))
        clock.start()
        for _ in range(setting.epochs):
            self.model.fit(dataset)
            clock.epoch()

    def score(self, users: Ints, items: Ints) -> Floats:
        known = self.known[items]
        scores = self.model.predict(users, np.where(known, items, self.stand_in), is_list=True)
        return np.where(known, scores, -1.0)


if __name__ == "__main__":
    main(Recommenders, version=recommenders.__version__, model="NeuMF (TensorFlow)")
