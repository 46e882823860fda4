"""Arguments of the wrong kind or size, refused by name."""

from __future__ import annotations

from numbers import Integral
from typing import Any, TypeVar

T = TypeVar("T")


def is_whole(value: Any) -> bool:
    """Whether it is a whole number: NumPy's integers are, floats and truth values are not.

    Example::

        >>> import numpy as np
        >>> from ncf.utils.arguments import is_whole
        >>> is_whole(np.int64(8)), is_whole(8.0), is_whole(True)
        (True, False, False)
    """
    return isinstance(value, Integral) and not isinstance(value, bool)


def whole(name: str, value: Any, least: int | None = 1) -> int:
    """A whole number as Python's own, which JSON and PyTorch know.

    Args:
        name: of the argument.
        value: what was given; see `is_whole`.
        least: what it must be at least, if anything.

    Raises:
        ValueError: if it is something else.

    Example::

        >>> import numpy as np
        >>> from ncf.utils.arguments import whole
        >>> whole("factors", np.int64(8))
        8
        >>> whole("epochs", 2.5)
        Traceback (most recent call last):
        ValueError: epochs = 2.5: give a whole number of at least 1
    """
    if not is_whole(value) or (least is not None and value < least):
        bound = "" if least is None else f" of at least {least}"
        raise ValueError(f"{name} = {value!r}: give a whole number{bound}")
    return int(value)


def whole_or_none(name: str, value: Any) -> int | None:
    """As `whole`, where ``None`` will do as well.

    Example::

        >>> from ncf.utils.arguments import whole_or_none
        >>> whole_or_none("patience", 3), whole_or_none("patience", None)
        (3, None)
    """
    return None if value is None else whole(name, value)


def of_type(name: str, value: Any, kind: type[T], remedy: str) -> T:
    """What was given, if it is of the type.

    Args:
        name: of the argument.
        value: what was given.
        kind: what it must be.
        remedy: where to get one.

    Raises:
        TypeError: if it is something else.

    Example::

        >>> from ncf import Interactions, Split
        >>> from ncf.utils.arguments import of_type
        >>> of_type("split", Interactions.from_arrays([0], [0]), Split, "leave_one_out(interactions) makes one")
        Traceback (most recent call last):
        TypeError: split must be Split, got Interactions: leave_one_out(interactions) makes one
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {kind.__name__}, got {type(value).__name__}: {remedy}")
    return value
