"""LibRecommender's NCF: one table of 16 for both towers, so that the MLP has the same widths as the others'."""

# ruff: noqa: D102 -- methods are documented where `Contestant` is

from __future__ import annotations

from contextlib import contextmanager

import libreco
import libreco.training.tf_trainer as tf_trainer
import numpy as np
import pandas as pd
from libreco.algorithms import NCF
from libreco.data import DatasetPure
from libreco.tfops import tf

from benchmarks.peers.protocol import LAYERS, NEGATIVES, Clock, Data, Floats, Ints, Setting, main


class LibRecommender:
    """`Contestant` over libreco."""

    def __init__(self, data: Data, prefix: str) -> None:
        frame = pd.DataFrame({"user": data.users, "item": data.items, "label": 1})
        self.train, self.info = DatasetPure.build_trainset(frame)
        # Its own ids, looked up once and not in every call; an item that training lacks has the id past the end.
        self.inner_users = np.array([self.info.user2id[u] for u in range(data.num_users)])
        self.inner_items = np.array(
            [self.info.item2id.get(i, self.info.n_items) for i in range(data.num_items)]
        )

    def fit(self, setting: Setting, seed: int, clock: Clock) -> None:
        tf.reset_default_graph()
        self.model = NCF(
            "ranking",
            self.info,
            embed_size=LAYERS[0] // 2,
            hidden_units=LAYERS[1:],
            n_epochs=setting.epochs,
            lr=setting.learning_rate,
            epsilon=1e-8,
            batch_size=setting.batch_size,
            sampler="unconsumed",
            num_neg=NEGATIVES,
            use_bn=False,
            seed=seed,
        )

        @contextmanager
        def timed(*_: object):  # stands in for the library's own timer of an epoch
            yield
            clock.epoch()

        tf_trainer.time_block = timed
        clock.start()
        self.model.fit(self.train, neg_sampling=True, verbose=0)

    def score(self, users: Ints, items: Ints) -> Floats:
        return self.model.predict(self.inner_users[users], self.inner_items[items], inner_id=True)

    def documented(self, users: Ints, candidates: Ints) -> Floats:
        return self.model.predict(np.repeat(users, candidates.shape[1]), candidates.ravel())

    def top(self, users: Ints, k: int) -> object:
        return self.model.recommend_user(users.tolist(), n_rec=k)


if __name__ == "__main__":
    main(LibRecommender, version=libreco.__version__, model="NCF (one shared table, TensorFlow)")
