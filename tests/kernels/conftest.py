from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from .interpreter import Interpreter


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Interpreter]:
    if not find_spec("triton"):
        pytest.skip("needs triton")
    interpreter = Interpreter()
    yield interpreter
    interpreter.close()


@pytest.fixture(params=["interpreter", "cuda"] if torch.cuda.is_available() else ["interpreter"])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Runs ``function(device, *arguments)`` where Triton's kernels run: interpreted, or on a GPU."""
    if request.param == "cuda":
        return lambda function, *arguments: function("cuda", *arguments)
    interpreter = request.getfixturevalue("interpreter")
    return lambda function, *arguments: interpreter(function, "cpu", *arguments)
