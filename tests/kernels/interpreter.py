from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import SimpleNamespace
from typing import Any


class Interpreter:
    """Calls a function in a process of its own, in which Triton's kernels run interpreted, on the CPU.

    Triton decides when it is first imported whether it compiles or interprets, for good; the tests' own
    process may have imported it, or may yet compile with it.
    """

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_interpret)

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        # As bytes, not as shared memory: tensors keep their strides and the two processes nothing in common.
        call = pickle.dumps((function, arguments))
        return pickle.loads(self._pool.submit(_call, call).result())

    def close(self) -> None:
        self._pool.shutdown()


def _interpret() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    import torch
    from triton.runtime import interpreter

    torch.set_num_threads(1)
    patch, patched = interpreter._patch_lang, set()

    def once(function: Any) -> Any:
        """Keep what Triton patches in its language anew at each call, a third of a kernel's time."""
        if function.__module__ not in patched:
            patched.add(function.__module__)
            patch(function)
        return SimpleNamespace(restore=lambda: None)

    interpreter._patch_lang = once


def _call(call: bytes) -> bytes:
    function, arguments = pickle.loads(call)
    return pickle.dumps(function(*arguments))
