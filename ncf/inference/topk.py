"""The ranked list: a user's best items by raw id, those already seen left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncf.data.columns import id_column, kind, to_tensor
from ncf.data.interactions import Interactions, Vocabulary
from ncf.distributed.collectives import raise_on_all_ranks
from ncf.models.scorers import (
    USERS_PER_PASS,
    SupportsScore,
    device_of,
    is_collective,
    local_part,
    refuse_nan,
    scores_of,
    scoring_view,
    user_blocks,
)
from ncf.models.scoring import Scorer
from ncf.utils.checks import check_ids, check_k
from ncf.utils.jagged import select_lists

_SCORES_PER_BLOCK = 1 << 22  # 16 MB of scores at a time, whatever the number of users


class Recommendations(NamedTuple):
    """The best items of each user, best first.

    Args:
        items: raw item ids per user; fewer than asked for where a user has seen nearly everything.
        scores: the model's scores beside them, ``[U, k]``; ``-inf`` past the end of a shorter list.

    Example::

        >>> import torch
        >>> from ncf.inference.topk import Recommendations
        >>> items, scores = Recommendations([["tea", "milk"]], torch.tensor([[0.9, 0.2]]))
        >>> items[0]
        ['tea', 'milk']
    """

    items: list[list[Any]]
    scores: Tensor


def recommend(
    model: SupportsScore,
    users: Sequence[Any] | Tensor,
    k: int = 10,
    *,
    exclude: Interactions | None = None,
) -> Recommendations:
    """Rank the whole catalogue for some users and keep the top of it.

    Args:
        model: anything with ``score(users, candidates)``: a trained model or a baseline.
        users: raw user ids, ``[U]``, as in the data that the model was trained on (0-based numbers where that
            data had no vocabulary).
        k: length of the list.
        exclude: interactions whose items are not offered again to the same user; usually the training data.

    Returns:
        `Recommendations`: raw item ids, and scores.

    Raises:
        ValueError: if a user is unknown, ``k`` is not between 1 and the number of items, the interactions to
            exclude have other users or items than the model, or a score is NaN.

    Example::

        >>> from ncf import Interactions, ItemPop, recommend
        >>> bought = Interactions.from_arrays(["ann", "bob", "bob", "cat"], ["tea", "tea", "milk", "milk"])
        >>> recommend(ItemPop(bought), ["ann", "bob"], k=2, exclude=bought).items
        [['milk'], []]
    """
    model = local_part(model)
    with scoring_view(model) as scorer:
        collective = is_collective(scorer)
        with raise_on_all_ranks(collective):
            user_ids, item_ids = (_vocabulary(model, exclude, name) for name in ("user_ids", "item_ids"))
            num_users, num_items = (_size(model, exclude, side) for side in ("user", "item"))
            check_k(k, num_items)
            rows = _rows(users, user_ids, num_users)
        values, items = _best(scorer, rows, k, num_items, exclude, device_of(model))
    lengths = (values > -torch.inf).sum(1).tolist()
    flat = items[values > -torch.inf]
    raw = item_ids.decode(flat) if item_ids is not None else flat.tolist()
    lists, start = [], 0
    for length in lengths:
        lists.append(raw[start : start + length])
        start += length
    return Recommendations(lists, values)


def _best(
    scorer: SupportsScore,
    users: Tensor,
    k: int,
    num_items: int,
    exclude: Interactions | None,
    device: torch.device | None,
) -> tuple[Tensor, Tensor]:
    """The highest scores of each user and their items, ``[U, k]`` each, on the CPU."""
    collective = is_collective(scorer)
    # A sharded model brings the rows of a few items at a time, for many users.
    step = USERS_PER_PASS if collective else max(1, _SCORES_PER_BLOCK // num_items)
    width = max(1, _SCORES_PER_BLOCK // step) if collective else num_items
    values = torch.empty(len(users), k, dtype=torch.float32, device="cpu")
    items = torch.empty(len(users), k, dtype=torch.int64, device="cpu")
    failure: ValueError | None = None
    for block in user_blocks(len(users), step, collective=collective):
        some = users[block]
        best: list[tuple[Tensor, Tensor]] = []  # of each part of the catalogue, [b, ≤ k]
        rows, seen = (None, None) if exclude is None else _seen(exclude, some)
        for start in range(0, num_items, width):
            part = torch.arange(start, min(start + width, num_items), dtype=torch.int64, device=device)
            candidates = part.expand(len(some), -1)  # [b, w], one list for all
            scores = scores_of(scorer, some.to(part.device), candidates)
            # Copied before it is written to: it may be another model's own memory, or one row for all.
            shared = exclude is not None and not isinstance(scorer, Scorer)
            scores = scores.to("cpu", torch.float32, copy=shared).contiguous()
            if rows is not None and seen is not None:
                here = (seen >= start) & (seen < start + width)
                scores[rows[here], seen[here] - start] = -torch.inf
            try:
                refuse_nan(scores, some, candidates, torch.ones_like(scores, dtype=torch.bool))
            except ValueError as error:
                if not collective:
                    raise
                failure = failure or error  # the other processes are waiting for what follows
            highest, places = scores.topk(min(k, len(part)), dim=1)
            best.append((highest, places + start))
        values[block], items[block] = best[0] if len(best) == 1 else _best_of(best, k)
    with raise_on_all_ranks(collective):
        if failure is not None:
            raise failure
    return values, items


def _best_of(parts: list[tuple[Tensor, Tensor]], k: int) -> tuple[Tensor, Tensor]:
    """The highest of several parts' scores, and their items."""
    highest, places = torch.cat([scores for scores, _ in parts], dim=1).topk(k, dim=1)
    return highest, torch.cat([items for _, items in parts], dim=1).gather(1, places)


def _seen(exclude: Interactions, users: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column, in a block of scores, of everything its users have seen."""
    offsets, items = select_lists(*exclude.csr(), users)
    return torch.arange(len(users), dtype=torch.int64, device="cpu").repeat_interleave(offsets.diff()), items


def _rows(users: Any, user_ids: Vocabulary | None, num_users: int) -> Tensor:
    """The numbers of raw user ids, which without a vocabulary are those numbers."""
    if isinstance(users, str):  # a sequence too, of its letters
        raise ValueError(f"users = {users!r}: give a list of ids")
    if user_ids is not None:
        return user_ids.encode(users, "users")
    column = id_column(users, "users")
    if len(column) and kind(column) == "strings":
        raise ValueError(f"users holds strings, but there is no vocabulary: give numbers below {num_users}")
    rows = to_tensor(column)
    check_ids(rows, "users", num_users, "num_users")
    return rows


def _vocabulary(model: object, exclude: Interactions | None, name: str) -> Vocabulary | None:
    own: Vocabulary | None = getattr(model, name, None)
    other: Vocabulary | None = getattr(exclude, name, None)
    if own is None or other is None or own is other:
        return other if own is None else own
    if len(own) == len(other) and not own.values.equals(other.values):
        raise ValueError(
            f"{name} differs: the model was trained on other raw ids than the interactions to exclude have, "
            "or in another order"
        )
    return own


def _size(model: object, exclude: Interactions | None, side: str) -> int:
    """How many users or items there are; a model may have rows to spare, past its vocabulary."""
    name, own = f"num_{side}s", getattr(model, f"{side}_ids", None)
    sizes = [getattr(source, name) for source in (model, exclude) if hasattr(source, name)]
    if own is not None:
        sizes[: hasattr(model, name)] = [len(own)]
    if not sizes:
        raise ValueError(f"{type(model).__name__} does not say its {name}: pass the interactions as exclude")
    if len(set(sizes)) > 1:
        raise ValueError(
            f"{name} differs: {sizes[0]} in the model, {sizes[1]} in the interactions to exclude"
        )
    return int(sizes[0])
