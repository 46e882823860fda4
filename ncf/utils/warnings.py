"""Warnings and log lines of third parties that a user can do nothing about."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def suppress_warnings() -> Iterator[None]:
    """Keep third parties' deprecations and advice off the screen: a user can do nothing about them."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def silence_torchrec() -> None:
    """Keep TorchRec's and FBGEMM's messages about sharded tables off the screen from now on."""
    for name in ("torch.fx._symbolic_trace", "torchrec"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="Please use DTensor instead", category=FutureWarning)
    warnings.filterwarnings("ignore", message=r"fbgemm::\w+: an autograd kernel was not registered")
