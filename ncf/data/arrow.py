"""Arrow, imported when it is first used: 60 MB and 0.2 s that the first list of a saved model does without."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class _Later:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)


pa: Any = _Later("pyarrow")
pc: Any = _Later("pyarrow.compute")
pa_csv: Any = _Later("pyarrow.csv")
pq: Any = _Later("pyarrow.parquet")
