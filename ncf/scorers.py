"""Whatever can be judged: the one protocol of ranking, and how a model is asked for its scores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from ncf.processes import gathered

USERS_PER_PASS = 4096  # of a sharded model: for whom the rows of the whole catalogue travel once


@runtime_checkable
class SupportsScore(Protocol):
    """Anything that can be judged."""

    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        """Score each user's candidates: ``[U]`` and ``[U, C]`` to ``[U, C]``; ``-1`` is padding."""
        ...


@contextmanager
def scoring_view(model: SupportsScore) -> Iterator[SupportsScore]:
    """What to score with: the model's frozen view if it offers one; a module in evaluation mode meanwhile.

    Args:
        model: see `evaluate`.

    Yields:
        An object with ``score``.

    Raises:
        TypeError: if there is no ``score`` to call.
    """
    if not isinstance(model, SupportsScore):
        raise TypeError(f"{type(model).__name__} has no method score(users [U], candidates [U, C]) -> [U, C]")
    modes = [(part, part.training) for part in model.modules()] if isinstance(model, nn.Module) else []
    view: Any = getattr(model, "scorer", None)
    try:
        if isinstance(model, nn.Module):
            model.eval()
        with torch.no_grad():
            yield view() if callable(view) else model
    finally:
        for part, training in modes:
            part.training = training


def local_part(model: SupportsScore) -> SupportsScore:
    """The model itself, where TorchRec's or PyTorch's wrapper for several processes is around it."""
    inner = getattr(model, "module", None)
    return inner if isinstance(inner, SupportsScore) else model


def is_collective(scorer: SupportsScore) -> bool:
    """Whether every process must score together, as with a sharded model."""
    return bool(getattr(scorer, "collective", False))


def user_blocks(size: int, step: int, *, collective: bool) -> Iterator[slice]:
    """Cut a number of users into blocks; where processes must keep step, into as many on each.

    Args:
        size: number of users.
        step: users in a block.
        collective: whether every process asks; those with fewer users end with empty blocks.
    """
    longest = max(gathered(size)) if collective else size
    for start in range(0, longest, step):
        yield slice(min(start, size), min(start + step, size))


def device_of(model: SupportsScore) -> torch.device | None:
    """Where a model wants its ids, if it says so."""
    device = getattr(model, "device", None)
    if device is None and isinstance(model, nn.Module):
        device = next((parameter.device for parameter in model.parameters()), None)
    return device if isinstance(device, torch.device) else None


def scores_of(scorer: SupportsScore, users: Tensor, items: Tensor) -> Tensor:
    """What a scorer answers, as a tensor of the items' shape, ``[U, C]``.

    Raises:
        ValueError: if it answers with anything else.
    """
    scores = scorer.score(users, items)
    if isinstance(scores, np.ndarray):
        scores = torch.from_numpy(scores).to(items.device)
    if not isinstance(scores, Tensor) or scores.dtype.is_complex or scores.dtype == torch.bool:
        got = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"{type(scorer).__name__}.score returned {got}: return a tensor of real numbers")
    if scores.shape != items.shape:
        raise ValueError(
            f"{type(scorer).__name__}.score returned shape {tuple(scores.shape)} for {items.shape[0]} users "
            f"and {items.shape[1]} candidates each: return {tuple(items.shape)}"
        )
    return scores


def may_hold_nan(scores: Tensor) -> bool:
    """False only when there is none: a sum meets every NaN and costs a tenth of looking for it."""
    return scores.is_floating_point() and bool(scores.sum().isnan())


def refuse_nan(scores: Tensor, users: Tensor, items: Tensor, real: Tensor) -> None:
    """Raise a ValueError that names the first user and item whose score is NaN, among those that are ``real``."""
    if not may_hold_nan(scores):
        return
    bad = (scores.isnan() & real).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        raise ValueError(
            f"the score of item {int(items[row, column])} for user {int(users[row])} is NaN "
            f"(and {len(bad) - 1} more): the model has diverged or was fed NaN, it cannot be ranked"
        )
