"""What third parties say that a user cannot act on."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Keep third parties' deprecations and advice, nothing of which a user can act on, from the screen.

    Example::

        >>> import warnings
        >>> from ncf.utils.warnings import quiet
        >>> with quiet():
        ...     warnings.warn("deprecated", DeprecationWarning)
    """
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def hush() -> None:
    """Keep away for good what TorchRec and FBGEMM say of sharded tables, wherever they are used from then on.

    Example::

        >>> import logging
        >>> from ncf.utils.warnings import hush
        >>> hush()
        >>> logging.getLogger("torchrec").isEnabledFor(logging.WARNING)
        False
    """
    for name in ("torch.fx._symbolic_trace", "torchrec"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="Please use DTensor instead", category=FutureWarning)
    warnings.filterwarnings("ignore", message=r"fbgemm::\w+: an autograd kernel was not registered")
