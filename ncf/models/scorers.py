"""Whatever can be judged: the one protocol of ranking, and how a model is asked for its scores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from ncf.distributed.collectives import all_gather_object

USERS_PER_PASS = 4096  # of a sharded model: for whom the rows of the whole catalogue travel once


@runtime_checkable
class SupportsScore(Protocol):
    """Anything that can be judged.

    Example::

        >>> import torch
        >>> from ncf.models.scorers import SupportsScore
        >>> class ByNumber:
        ...     def score(self, users, candidates):
        ...         return candidates.float()
        >>> isinstance(ByNumber(), SupportsScore), isinstance(torch.nn.Linear(2, 1), SupportsScore)
        (True, False)
    """

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

    Example::

        >>> import torch
        >>> from ncf import GMF
        >>> from ncf.models.scorers import scoring_view
        >>> model = GMF(num_users=2, num_items=3)
        >>> with scoring_view(model) as scorer:
        ...     model.training, scorer.score(torch.tensor([1]), torch.tensor([[0, 2, -1]])).shape
        (False, torch.Size([1, 3]))
        >>> model.training
        True
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
    """The model itself, where TorchRec's or PyTorch's wrapper for several processes is around it.

    Example::

        >>> from ncf import GMF
        >>> from ncf.models.scorers import local_part
        >>> from ncf.distributed.sharding import shard
        >>> sharded = shard(GMF(10, 20, device="meta"), "table_wise", verbose=False)  # a world of one
        >>> type(local_part(sharded)).__name__, local_part(sharded.module) is sharded.module
        ('GMF', True)
    """
    inner = getattr(model, "module", None)
    return inner if isinstance(inner, SupportsScore) else model


def is_collective(scorer: SupportsScore) -> bool:
    """Whether every process must score together, as with a sharded model.

    Example::

        >>> from ncf import GMF
        >>> from ncf.models.scorers import is_collective
        >>> from ncf.distributed.sharding import shard
        >>> sharded = shard(GMF(10, 20, device="meta"), "table_wise", verbose=False)  # a world of one
        >>> is_collective(GMF(10, 20).scorer()), is_collective(sharded.module.scorer())
        (False, True)
    """
    return bool(getattr(scorer, "collective", False))


def user_blocks(size: int, step: int, *, collective: bool) -> Iterator[slice]:
    """Cut a number of users into blocks; where processes must keep step, into as many on each.

    Args:
        size: number of users.
        step: users in a block.
        collective: whether every process asks; those with fewer users end with empty blocks.

    Example::

        >>> from ncf.models.scorers import user_blocks
        >>> [(block.start, block.stop) for block in user_blocks(5, 2, collective=False)]
        [(0, 2), (2, 4), (4, 5)]
    """
    longest = max(all_gather_object(size)) if collective else size
    for start in range(0, longest, step):
        yield slice(min(start, size), min(start + step, size))


def device_of(model: SupportsScore) -> torch.device | None:
    """Where a model wants its ids, if it says so.

    Example::

        >>> from ncf import GMF
        >>> from ncf.models.scorers import device_of
        >>> device_of(GMF(num_users=2, num_items=3))
        device(type='cpu')
    """
    device = getattr(model, "device", None)
    if device is None and isinstance(model, nn.Module):
        device = next((parameter.device for parameter in model.parameters()), None)
    return device if isinstance(device, torch.device) else None


def scores_of(scorer: SupportsScore, users: Tensor, items: Tensor) -> Tensor:
    """What a scorer answers, as a tensor of the items' shape, ``[U, C]``.

    Raises:
        ValueError: if it answers with anything else.

    Example::

        >>> import torch
        >>> from ncf.models.scorers import scores_of
        >>> class ByNumber:
        ...     def score(self, users, candidates):
        ...         return candidates.numpy() / 2
        >>> scores_of(ByNumber(), torch.tensor([7]), torch.tensor([[1, 2]]))
        tensor([[0.5000, 1.0000]], dtype=torch.float64)
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
    """False only when there is none: a sum meets every NaN and costs a tenth of looking for it.

    Example::

        >>> import torch
        >>> from ncf.models.scorers import may_hold_nan
        >>> may_hold_nan(torch.tensor([1.0, -torch.inf])), may_hold_nan(torch.tensor([1.0, torch.nan]))
        (False, True)
        >>> may_hold_nan(torch.tensor([torch.inf, -torch.inf]))  # their sum is NaN, too
        True
    """
    return scores.is_floating_point() and bool(scores.sum().isnan())


def refuse_nan(scores: Tensor, users: Tensor, items: Tensor, real: Tensor) -> None:
    """Raise a ValueError that names the first user and item whose score is NaN, among those that are ``real``.

    Example::

        >>> import torch
        >>> from ncf.models.scorers import refuse_nan
        >>> scores, users, items = torch.tensor([[0.5, torch.nan]]), torch.tensor([7]), torch.tensor([[1, 2]])
        >>> refuse_nan(scores, users, items, real=torch.tensor([[True, False]]))
        >>> refuse_nan(scores, users, items, real=torch.tensor([[True, True]]))
        Traceback (most recent call last):
        ValueError: the score of item 2 for user 7 is NaN (and 0 more): the model has diverged or was fed ...
    """
    if not may_hold_nan(scores):
        return
    bad = (scores.isnan() & real).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        raise ValueError(
            f"the score of item {int(items[row, column])} for user {int(users[row])} is NaN "
            f"(and {len(bad) - 1} more): the model has diverged or was fed NaN, it cannot be ranked"
        )
