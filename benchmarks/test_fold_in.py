"""Fold-in of one user with a hundred interactions, and of many at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ncf import GMF, NeuMF
from ncf.inference.fold_in import FoldIn

USERS, ITEMS = 6040, 3706
MODELS: dict[str, Callable[[], Any]] = {
    "gmf64": lambda: GMF(USERS, ITEMS, factors=64, init_std=0.3),
    "neumf32": lambda: NeuMF(USERS, ITEMS, factors=32, layers=(64, 32, 16, 8), init_std=0.3),
}


@pytest.mark.parametrize("count", [1, 1000])
@pytest.mark.parametrize("name", MODELS)
def test_fold_in(benchmark: Any, name: str, count: int) -> None:
    random = torch.Generator().manual_seed(0)
    histories = [torch.randperm(ITEMS, generator=random)[:100] for _ in range(count)]
    fold = FoldIn(MODELS[name]())
    benchmark(fold, histories)
