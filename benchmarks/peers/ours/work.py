"""Our NeuMF; with ``--eager`` the training step runs in PyTorch."""

# ruff: noqa: D102 -- methods are documented where `Contestant` is

from __future__ import annotations

import sys

import torch

import ncf
from benchmarks.peers.protocol import (
    AT_SIZE,
    FACTORS,
    LAYERS,
    NEGATIVES,
    Clock,
    Data,
    Floats,
    Ints,
    Setting,
    main,
    settings,
)
from ncf import NeuMF, Trainer, evaluate, recommend
from ncf.datasets import read_ncf


class Ours:
    """`Contestant` over ncf."""

    def __init__(self, data: Data, prefix: str, eager: bool) -> None:
        self.split, self.candidates = read_ncf(prefix)
        self.shape = data.candidates.shape
        self.eager = eager

    def fit(self, setting: Setting, seed: int, clock: Clock) -> None:
        self.model = NeuMF(
            self.split.test.num_users, self.split.test.num_items, factors=FACTORS, layers=LAYERS, seed=seed
        )
        recipe = setting == settings(setting.epochs)["recipe"]
        trainer = Trainer(
            self.model,
            epochs=setting.epochs,
            batch_size=setting.batch_size,
            learning_rate=setting.learning_rate,
            schedule="linear" if recipe else "constant",
            negatives=NEGATIVES,
            selection="last",
            seed=seed,
            optimizer="adamw" if AT_SIZE else "adam",
            compile=False if self.eager else None,
            progress=False,
        )
        clock.start()
        trainer.fit(self.split, on_epoch=lambda *_: clock.epoch())

    def score(self, users: Ints, items: Ints) -> Floats:
        users, items = users.reshape(self.shape)[:, 0], items.reshape(self.shape)
        return self.model.scorer().score(torch.from_numpy(users), torch.from_numpy(items)).numpy()

    def ranks(self) -> Ints:
        return evaluate(self.model, self.candidates).ranks.numpy()

    def top(self, users: Ints, k: int) -> object:
        return recommend(self.model, torch.from_numpy(users), k, exclude=self.split.train)


if __name__ == "__main__":
    main(
        lambda data, prefix: Ours(data, prefix, "--eager" in sys.argv), version=ncf.__version__, model="NeuMF"
    )
