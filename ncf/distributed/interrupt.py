"""Ctrl-C, when several processes must stop at the same step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interruption:
    """Notes that the user wants to stop, instead of stopping this process alone at once.

    Of several processes each gets the signal at a step of its own; whoever stopped there would leave the others
    waiting. They ask each other, and stop together. A second Ctrl-C stops at once.

    Args:
        collective: whether there are other processes; without them Ctrl-C does what it always does.

    Example::

        >>> from ncf.distributed.interrupt import Interruption
        >>> with Interruption(collective=True) as interruption:
        ...     interruption.wanted
        False
    """

    def __init__(self, *, collective: bool) -> None:
        self.wanted = False
        self._collective = collective and threading.current_thread() is threading.main_thread()
        self._previous: Any = None

    def __enter__(self) -> Interruption:
        if self._collective:
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._collective:
            signal.signal(signal.SIGINT, self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True
