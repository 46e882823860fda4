"""Training samples per second: one epoch, sampling and Adam included."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ncf import NeuMF, Split, Trainer

Rate = Callable[..., None]


@pytest.mark.parametrize("compile", [None, False], ids=["native", "eager"])
@pytest.mark.parametrize("batch_size", [256, 2048, 8192])
def test_epoch(
    rate: Rate, split: Split, model: NeuMF, batch_size: int, compile: bool | None, matrix_rate: float
) -> None:
    trainer = Trainer(
        model,
        epochs=1,
        batch_size=batch_size,
        learning_rate=1e-3,
        selection="last",
        optimizer="adam",
        compile=compile,
        progress=False,
    )
    samples = 5 * len(split.train)
    # Forward, and twice as much backward; the user's half of the first layer is shared by five samples.
    operations = 3 * 2 * (16 * 16 + 16 * 16 / 5 + 16 * 8 + 8 + 16)
    rate(lambda: trainer.fit(split), samples, "samples", rounds=3, matrix_rate=operations / matrix_rate)
