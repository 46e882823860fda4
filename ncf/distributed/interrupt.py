"""Ctrl-C, when several processes must stop at the same step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interruption:
    """Note that the user wants to stop, instead of stopping this process alone at once.

    Of several processes each gets the signal at a step of its own; one that stopped there would leave the others
    waiting. They exchange ``wanted`` from time to time, and stop together. A second Ctrl-C stops at once.

    Args:
        distributed: there are other processes; without them Ctrl-C raises KeyboardInterrupt as usual.
    """

    def __init__(self, *, distributed: bool) -> None:
        self.wanted = False
        self._catches = distributed and threading.current_thread() is threading.main_thread()
        self._previous: Any = None

    def __enter__(self) -> Interruption:
        if self._catches:
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._catches:
            signal.signal(signal.SIGINT, self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True
