"""Number of CPU threads of PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, local

import torch

_lock = Lock()
_inside = 0  # threads that have a number of their own
_before = 0  # the number outside all of them
_own = local()  # the numbers of this thread, outermost first


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Let PyTorch use ``count`` threads inside; ``None`` leaves the setting alone.

    PyTorch keeps the number by thread and the default of new threads by process. Several threads may be inside at
    once: each leaves the number that was set before the first of them entered.
    """
    global _inside, _before
    if count is None:
        yield
        return
    numbers: list[int] = _own.__dict__.setdefault("numbers", [])
    with _lock:
        if not numbers:
            if not _inside:
                _before = torch.get_num_threads()
            _inside += 1
        numbers.append(count)
        torch.set_num_threads(count)
    try:
        yield
    finally:
        with _lock:
            numbers.pop()
            torch.set_num_threads(numbers[-1] if numbers else _before)
            _inside -= not numbers
