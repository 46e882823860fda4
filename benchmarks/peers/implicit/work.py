"""Implicit's ALS: no neural network, here as a mark for quality."""

# ruff: noqa: D102 -- methods are documented where `Contestant` is

from __future__ import annotations

import implicit
import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix

from benchmarks.peers.protocol import Clock, Data, Floats, Ints, Setting, main


class ALS:
    """`Contestant` over implicit."""

    def __init__(self, data: Data, prefix: str) -> None:
        ones = np.ones(len(data.users), dtype=np.float32)
        self.train = csr_matrix((ones, (data.users, data.items)), (data.num_users, data.num_items))

    def fit(self, setting: Setting, seed: int, clock: Clock) -> None:
        self.model = AlternatingLeastSquares(
            factors=32, regularization=20.0, alpha=5.0, iterations=15, random_state=seed
        )
        clock.start()
        self.model.fit(self.train, show_progress=False, callback=lambda *_: clock.epoch())

    def score(self, users: Ints, items: Ints) -> Floats:
        return np.einsum("pf,pf->p", self.model.user_factors[users], self.model.item_factors[items])

    def top(self, users: Ints, k: int) -> object:
        return self.model.recommend(users, self.train[users], N=k)


if __name__ == "__main__":
    main(ALS, version=implicit.__version__, model="ALS, 32 factors", only=("small",))
