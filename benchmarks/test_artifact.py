"""Bytes of a model saved and loaded per second, beside those of a copy in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import ncf
from ncf import NeuMF

Rate = Callable[..., None]


@pytest.fixture(scope="module")
def large() -> NeuMF:
    """Factor 64, layers (256, 128, 64), MovieLens-20M's number of users and items: 126 MB."""
    return NeuMF(138_493, 26_744, factors=64, layers=(256, 128, 64))


def test_save(rate: Rate, large: NeuMF, tmp_path: Path, copy_bandwidth: float) -> None:
    size = _bytes(large)
    rate(lambda: large.save(tmp_path), size, "bytes", rounds=3, copy_bandwidth=2 / copy_bandwidth)


def test_load(rate: Rate, large: NeuMF, tmp_path: Path, copy_bandwidth: float) -> None:
    large.save(tmp_path)
    rate(lambda: ncf.load(tmp_path), _bytes(large), "bytes", rounds=3, copy_bandwidth=2 / copy_bandwidth)


def test_save_and_load_of_a_small_model(rate: Rate, model: NeuMF, tmp_path: Path) -> None:
    def there_and_back() -> None:
        model.save(tmp_path)
        ncf.load(tmp_path)

    rate(there_and_back, 1, "models", rounds=20)


def _bytes(model: NeuMF) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())
