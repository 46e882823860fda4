"""Number of CPU threads of PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident

import torch

_outside: dict[int, int] = {}  # thread inside -> the number that it leaves


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Let PyTorch use ``count`` threads inside; ``None`` leaves the setting alone.

    PyTorch keeps the number by thread and the default of new threads by process. Several threads may be inside at
    once: each leaves the number that was set before the first of them entered. There is no lock, since Ctrl-C can
    fall on its release and leave it held.
    """
    if count is None:
        yield
        return
    thread, number = get_ident(), torch.get_num_threads()
    nested = thread in _outside
    try:
        if not nested:
            _outside[thread] = next(iter(list(_outside.values())), number)
        torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(number if nested else _outside.pop(thread, number))
