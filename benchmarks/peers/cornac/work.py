"""Cornac's NeuMF, with its PyTorch backend."""

# ruff: noqa: D102 -- methods are documented where `Contestant` is

from __future__ import annotations

from collections import OrderedDict

import cornac
import numpy as np
from cornac.data import Dataset
from cornac.models import NeuMF

from benchmarks.peers.protocol import FACTORS, LAYERS, NEGATIVES, Clock, Data, Floats, Ints, Setting, main


class TimedNeuMF(NeuMF):
    """Tells the clock of every epoch."""

    clock: Clock

    def early_stop(self, *args, **kwargs):  # is called at the end of every epoch
        self.clock.epoch()
        return False


class Cornac:
    """`Contestant` over cornac."""

    def __init__(self, data: Data, prefix: str) -> None:
        self.data = data

    def fit(self, setting: Setting, seed: int, clock: Clock) -> None:
        rows = [(u, i, 1.0) for u, i in zip(self.data.users.tolist(), self.data.items.tolist(), strict=True)]
        train = Dataset.build(
            rows,
            global_uid_map=OrderedDict((u, u) for u in range(self.data.num_users)),
            global_iid_map=OrderedDict((i, i) for i in range(self.data.num_items)),
            seed=seed,
        )
        self.model = TimedNeuMF(
            num_factors=FACTORS,
            layers=LAYERS,
            act_fn="relu",
            num_epochs=setting.epochs,
            batch_size=setting.batch_size // (1 + NEGATIVES),  # it counts positives
            num_neg=NEGATIVES,
            lr=setting.learning_rate,
            backend="pytorch",
            early_stopping={},
            verbose=False,
            seed=seed,
        )
        self.model.clock = clock
        clock.start()
        self.model.fit(train)

    def score(self, users: Ints, items: Ints) -> Floats:
        # What score() calls, since that takes one pair, or one user and the whole catalogue.
        return self.model._score_pt(users, items)

    def documented(self, users: Ints, candidates: Ints) -> Floats:
        return np.stack([self.model.score(u)[row] for u, row in zip(users.tolist(), candidates, strict=True)])

    def top(self, users: Ints, k: int) -> object:
        # Its recommend() does the same, user by user, with the ids looked up.
        return [self.model.rank(user, k=k) for user in users.tolist()]


if __name__ == "__main__":
    main(Cornac, version=cornac.__version__, model="NeuMF (PyTorch)")
