from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
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

    torch.set_num_threads(1)


def _call(call: bytes) -> bytes:
    function, arguments = pickle.loads(call)
    return pickle.dumps(function(*arguments))
