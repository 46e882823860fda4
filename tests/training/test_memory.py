from __future__ import annotations

from typing import Any

import pytest

from ncf import GMF, Split, Trainer
from ncf.training import run


# GMF(40, 60) with 8 factors: 809 numbers of 4 bytes.
@pytest.mark.parametrize(
    ("optimizer", "selection", "beside"),
    [("sgd", "last", 0), ("sgd", "validation", 1), ("adagrad", "validation", 2), ("adam", "validation", 4)],
)
def test_memory_is_looked_at_before_training(
    split: Split,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    optimizer: str,
    selection: str,
    beside: int,
) -> None:
    settings: dict[str, Any] = {"epochs": 1, "optimizer": optimizer, "selection": selection}
    held = 809 * 4

    def fit(free: int) -> list[str]:
        monkeypatch.setattr(run, "free_memory", lambda device: free)
        caplog.clear()
        assert len(Trainer(GMF(40, 60), **settings).fit(split)) == 1
        return [record.getMessage() for record in caplog.records]

    assert fit(held * (1 + 2 * beside)) == []
    if beside:
        (said,) = fit(held * (1 + 2 * beside) - 2)
        assert f"rows: 40 of user_gmf at {32 * (1 + beside)} bytes, 60 of item_gmf at" in said
        with pytest.raises(
            MemoryError, match=r"training takes 0\.00 GB beside .*Choose an optimizer with less state"
        ):
            fit(beside * held - 1)
