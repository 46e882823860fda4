"""Evaluate a model by ranking: the places of the held-out items among the candidates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ncf.data.candidates import Candidates, Catalogue
from ncf.data.vocabulary import check_same_ids
from ncf.distributed.collectives import all_gather_rows, raise_on_all_ranks
from ncf.evaluation.ranking import Ranking
from ncf.models.base import SupportsScore, inference_scorer, unwrap_model
from ncf.utils.checks import check_ids, check_k

__all__ = ["Ranking", "evaluate"]


def evaluate(
    model: SupportsScore, candidates: Candidates | Catalogue, k: int = 10, *, block_users: int | None = None
) -> Ranking:
    """Rank the held-out items of every user among the candidates.

    The rank counts the candidates *other than the held-out item* that score *at least* as high: ties lose,
    so a model that scores all alike gets HR 0. A user's candidates are a set: an item listed twice counts
    once, the held-out item among its own negatives does not count, and neither does padding (``-1``).

    A `whole_catalogue` may hold several held-out items of a user, as `split_by_ratio` and `read_lists` hold out. Each
    gets its place in the user's list, in one pass over the catalogue; users without held-out items are not evaluated;
    `Ranking.untested` counts them.

    Args:
        model: any object with ``score(users [U], candidates [U, C]) -> [U, C]``. If it offers ``scorer()``,
            a frozen fast view, that is taken once; if it offers ``rank(candidates)``, its ranks are taken. Of an
            `nn.Module` a copy in evaluation mode, with the same parameters, is evaluated: the model stays as it is.
        candidates: what `sample_candidates` or `whole_catalogue` drew. Every process of a sharded model evaluates
            its own users, ``candidates.for_rank(rank, world_size)``, and gets the ranking of all.
        k: length of the list that the metrics look at; `Ranking.at` cuts the same ranks elsewhere.
        block_users: users scored at once; by default as many as give about half a million pairs, so memory
            does not grow with the number of users.

    Returns:
        `Ranking`: the ranks, on the CPU, and HR@k, NDCG@k, MRR and AUC with their intervals; of several held-out
        items also Recall@k, Precision@k, F1@k and MAP@k.

    Raises:
        TypeError: if the model has no ``score``, or the candidates are of another type.
        ValueError: if a candidate's score is NaN, the scores have the wrong shape, an id is unknown to the
            model, the candidates number other raw ids than the model, or ``k`` is larger than the number of candidates.

    Example::

        >>> import torch
        >>> from ncf import Candidates, evaluate
        >>> class ByNumber:
        ...     def score(self, users, candidates):
        ...         return candidates.float()
        >>> negatives = torch.tensor([[4, 5], [4, 5]])
        >>> candidates = Candidates(torch.tensor([0, 1]), torch.tensor([9, 3]), negatives)
        >>> evaluate(ByNumber(), candidates, k=1).ranks
        tensor([0, 2])
    """
    scorer, model = inference_scorer(model), unwrap_model(model)
    with raise_on_all_ranks(scorer.distributed):
        check_k(k, _width(candidates))
        check_known_ids(model, candidates)
    ranks, num_candidates = scorer.rank(candidates, block_users=block_users)
    users = candidates.users.cpu()
    if isinstance(candidates, Catalogue) and candidates.positive_offsets is not None:
        return _ranking_of_several(candidates, ranks, num_candidates, k, distributed=scorer.distributed)
    if scorer.distributed:
        columns = torch.stack([users, ranks, num_candidates], dim=1)
        users, ranks, num_candidates = all_gather_rows(columns).unbind(1)
        _check_distinct(users)
    return Ranking(users, ranks, num_candidates, k, untested=candidates.untested)


def _ranking_of_several(
    catalogue: Catalogue, ranks: Tensor, num_candidates: Tensor, k: int, *, distributed: bool
) -> Ranking:
    """Put the held-out items of each user in order, the best first; tied ones share places, the worst last."""
    counts = catalogue.held_out_offsets.diff().cpu()
    columns = torch.stack([catalogue.users.cpu(), num_candidates], dim=1).repeat_interleave(counts, dim=0)
    columns = torch.cat([columns, ranks[:, None]], dim=1)  # [P, 3]
    if distributed:
        _check_distinct(all_gather_rows(catalogue.users.cpu()[:, None])[:, 0])
        columns = all_gather_rows(columns)
    users, sizes, ranks = columns.unbind(1)
    same = torch.cat([torch.zeros(1, dtype=torch.bool, device="cpu"), users[1:] == users[:-1]])
    starts = (~same).nonzero()[:, 0]
    offsets = torch.cat([starts, torch.tensor([len(users)], dtype=torch.int64, device="cpu")])
    rows = torch.repeat_interleave(offsets.diff())
    keys = (rows * (int(sizes.max()) + 1) + ranks).sort().values
    ranks = keys - rows * (int(sizes.max()) + 1)
    # A rank counts the user's other items that score as high, so m tied ones have one rank: places rank - m + 1 to it.
    _, group, tied = keys.unique_consecutive(return_inverse=True, return_counts=True)
    first = (tied.cumsum(0) - tied)[group]
    nth = torch.arange(len(keys), dtype=torch.int64, device="cpu") - first
    return Ranking(
        users[starts], ranks - tied[group] + 1 + nth, sizes[starts], k, offsets, catalogue.untested
    )


def _check_distinct(users: Tensor) -> None:
    ordered = users.sort().values
    again = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(again):
        raise ValueError(
            f"user {int(again[0])} is evaluated by more than one process: give each its own users, "
            "candidates.for_rank(rank, world_size)"
        )


def _width(candidates: Any) -> int:
    """Scores per user."""
    if isinstance(candidates, Catalogue):
        return candidates.num_items
    if isinstance(candidates, Candidates):
        return 1 + candidates.negatives.shape[1]
    raise TypeError(
        f"candidates must be Candidates or Catalogue, got {type(candidates).__name__}: "
        "sample_candidates(split) and whole_catalogue(split) make them"
    )


def check_known_ids(model: Any, candidates: Candidates | Catalogue) -> None:
    """Raise for ids that the model has no row for, and for numbers that mean other raw ids to it."""
    check_same_ids(
        model,
        candidates,
        "the model",
        "the candidates",
        "take candidates from data that is numbered as the model's training data is, for instance by "
        "Interactions.from_table(..., user_ids=model.user_ids, item_ids=model.item_ids)",
    )
    for name, size_name in (("users", "num_users"), ("positives", "num_items"), ("negatives", "num_items")):
        ids, size = getattr(candidates, name, None), getattr(model, size_name, None)
        if ids is not None and isinstance(size, int):
            lowest = -1 if name == "negatives" else 0
            remedy = "evaluate the model on candidates of the data it was trained on"
            check_ids(ids, name, size, f"the model's {size_name}", lowest=lowest, remedy=remedy)
    if isinstance(candidates, Catalogue):
        known = getattr(model, "num_items", candidates.num_items)
        if candidates.num_items > known:
            raise ValueError(
                f"the catalogue has {candidates.num_items} items, but the model has num_items = {known}"
            )
