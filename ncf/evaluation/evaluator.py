"""Judge a model by leave-one-out ranking: where does it place the held-out item among the candidates?"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ncf.data.candidates import Candidates, Catalogue
from ncf.distributed.collectives import all_gather_rows, raise_on_all_ranks
from ncf.evaluation.ranking import Ranking
from ncf.models.scorers import (
    USERS_PER_PASS,
    SupportsScore,
    device_of,
    is_collective,
    local_part,
    may_hold_nan,
    refuse_nan,
    scores_of,
    scoring_view,
    user_blocks,
)
from ncf.models.scoring import Scorer
from ncf.utils.checks import check_ids, check_k, whole

__all__ = ["Ranking", "evaluate", "ranks_of"]

# Pairs scored at once: about 8 MB with their ids, small beside any model, enough to keep a device busy.
_PAIRS_PER_BLOCK = {"cpu": 1 << 19, "cuda": 1 << 24}


def evaluate(
    model: SupportsScore, candidates: Candidates | Catalogue, k: int = 10, *, block_users: int | None = None
) -> Ranking:
    """Rank the held-out item of every user among the candidates.

    The rank counts the candidates *other than the held-out item* that score *at least* as high: ties lose,
    so a model that scores all alike gets HR 0. A user's candidates are a set: an item listed twice counts
    once, the held-out item among its own negatives does not count, and neither does padding (``-1``).

    Args:
        model: any object with ``score(users [U], candidates [U, C]) -> [U, C]``. If it offers ``scorer()``,
            a frozen fast view, that is taken once. An `nn.Module` is set to evaluation mode meanwhile.
        candidates: what `sample_candidates` or `whole_catalogue` drew. Every process of a sharded model judges
            its own users, ``candidates.for_rank(rank, world_size)``, and gets the ranking of all.
        k: length of the list that HR and NDCG look at.
        block_users: users scored at once; by default as many as give about half a million pairs, so memory
            does not grow with the number of users.

    Returns:
        `Ranking`: the per-user ranks, on the CPU, and HR@k, NDCG@k, MRR and AUC with their intervals.

    Raises:
        TypeError: if the model has no ``score``, or the candidates are of another type.
        ValueError: if a candidate's score is NaN, the scores have the wrong shape, an id is unknown to the
            model, or ``k`` is larger than the number of candidates.

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
    model = local_part(model)
    with scoring_view(model) as scorer:
        collective = is_collective(scorer)
        with raise_on_all_ranks(collective):
            check_k(k, _width(candidates))
            _check_vocabulary(model, candidates)
        ranks, num_candidates = ranks_of(scorer, candidates, block_users=block_users, device=device_of(model))
    users = candidates.users.cpu()
    if collective:
        users, ranks, num_candidates = all_gather_rows(
            torch.stack([users, ranks, num_candidates], dim=1)
        ).unbind(1)
        _refuse_repeated(users)
    return Ranking(users, ranks, num_candidates, k)


def ranks_of(
    scorer: SupportsScore,
    candidates: Candidates | Catalogue,
    *,
    block_users: int | None = None,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """The rank of every held-out item: `evaluate` without the metrics.

    Several processes can each rank a part of the users and put the results together in one `Ranking`.

    Args:
        scorer: what scores; it is used as it is.
        candidates: what to rank.
        block_users: users scored at once.
        device: where the scorer wants its ids; that of the candidates by default.

    Returns:
        ranks: ``[U]``, int64, on the CPU.
        num_candidates: ``[U]``, distinct items ranked, the held-out item among them.

    Raises:
        ValueError: see `evaluate`.

    Example::

        >>> import torch
        >>> from ncf import Candidates
        >>> from ncf.evaluation.evaluator import ranks_of
        >>> class ByNumber:
        ...     def score(self, users, candidates):
        ...         return candidates.float()
        >>> ranks_of(ByNumber(), Candidates(torch.tensor([0]), torch.tensor([4]), torch.tensor([[9, 3, -1]])))
        (tensor([1]), tensor([3]))
    """
    width = _width(candidates)
    device = torch.device(device) if device is not None else candidates.users.device
    pairs = _PAIRS_PER_BLOCK.get(device.type, 1 << 19)
    collective = is_collective(scorer)
    if block_users is None:
        block_users = USERS_PER_PASS if collective else max(1, pairs // width)
    block_users = whole("block_users", block_users)
    ranks = torch.empty(len(candidates.users), dtype=torch.int64, device="cpu")
    num_candidates = torch.empty_like(ranks)
    failure: ValueError | None = None
    with torch.no_grad():
        for block in user_blocks(len(ranks), block_users, collective=collective):
            try:
                if not isinstance(candidates, Catalogue):
                    ranked = _rank_candidates(scorer, candidates, block, device)
                elif collective:
                    ranked = _rank_catalogue_by_parts(scorer, candidates, block, device, pairs // block_users)
                else:
                    ranked = _rank_catalogue(scorer, candidates, block, device)
                ranks[block], num_candidates[block] = ranked
            except ValueError as error:
                if not collective:
                    raise
                failure = failure or error  # the other processes are waiting for the blocks that follow
    with raise_on_all_ranks(collective):
        if failure is not None:
            raise failure
    return ranks, num_candidates


def _rank_candidates(
    scorer: SupportsScore, candidates: Candidates, block: slice, device: torch.device
) -> tuple[Tensor, Tensor]:
    users, positives = candidates.users[block].to(device), candidates.positives[block].to(device)
    negatives = candidates.negatives[block].to(device)
    ranked = scorer.ranks(users, positives, negatives) if isinstance(scorer, Scorer) else None
    if ranked is not None:
        return ranked
    items = torch.cat([positives[:, None], negatives], dim=1)  # [b, 1 + C]
    scores = scores_of(scorer, users, items)
    counted = _counted(positives, negatives)
    refuse_nan(scores, users, items, items >= 0)
    wins = _at_least(scores[:, 1:], scores[:, :1])  # [b, C]
    if counted is None:
        return wins.sum(1), torch.full_like(users, items.shape[1])
    return (wins * counted).sum(1), 1 + counted.sum(1)


def _rank_catalogue(
    scorer: SupportsScore, catalogue: Catalogue, block: slice, device: torch.device
) -> tuple[Tensor, Tensor]:
    users, positives = catalogue.users[block].to(device), catalogue.positives[block].to(device)
    offsets = catalogue.seen_offsets[block.start : block.stop + 1]
    num_items = catalogue.num_items
    if isinstance(scorer, Scorer):
        ranks = scorer.catalogue_ranks(users, positives, num_items, offsets, catalogue.seen_items)
        if ranks is not None:
            return ranks, num_items - offsets.diff()
    seen_items = catalogue.seen_items[int(offsets[0]) : int(offsets[-1])].to(device)
    rows = torch.repeat_interleave(offsets.diff()).to(device)
    items = torch.arange(num_items, dtype=torch.int64, device=device).expand(
        len(users), -1
    )  # [b, I], one list for all
    scores = scores_of(scorer, users, items)
    left_out = rows * num_items + seen_items  # positions in the flattened block
    own = torch.arange(len(users), dtype=torch.int64, device=device) * num_items + positives
    if may_hold_nan(scores):
        real = torch.ones(scores.shape, dtype=torch.bool, device=device)
        real.view(-1)[left_out] = False
        refuse_nan(scores, users, items, real)
    wins = _at_least(scores, scores.gather(1, positives[:, None]))
    wins.view(-1).index_fill_(0, left_out, 0).index_fill_(0, own, 0)
    return wins.sum(1), num_items - offsets.diff()


def _rank_catalogue_by_parts(
    scorer: SupportsScore, catalogue: Catalogue, block: slice, device: torch.device, width: int
) -> tuple[Tensor, Tensor]:
    """`_rank_catalogue` over a few items at a time: no process ever has every item's row."""
    users, positives = catalogue.users[block].to(device), catalogue.positives[block].to(device)
    offsets = catalogue.seen_offsets[block.start : block.stop + 1]
    seen = catalogue.seen_items[int(offsets[0]) : int(offsets[-1])].to(device)
    left_out = torch.cat([seen, positives])  # [S + b]
    rows = torch.arange(len(users), dtype=torch.int64, device=device)
    rows = torch.cat([rows.repeat_interleave(offsets.diff().to(device)), rows])
    own = scores_of(scorer, users, positives[:, None])  # [b, 1]
    below = torch.zeros(len(users), dtype=torch.int64, device=device)
    broken: Tensor = own.isnan().any()
    for start in range(0, catalogue.num_items, width):
        items = torch.arange(start, min(start + width, catalogue.num_items), dtype=torch.int64, device=device)
        scores = scores_of(scorer, users, items.expand(len(users), -1))
        here = (left_out >= start) & (left_out < start + width)
        scores[rows[here], left_out[here] - start] = -torch.inf
        broken = broken | scores.isnan().any()
        below += (scores >= own).masked_fill_(scores == -torch.inf, False).sum(1)
    if bool(broken):
        raise ValueError("a score is NaN: the model has diverged or was fed NaN, it cannot be ranked")
    return below, catalogue.num_items - offsets.diff()


def _at_least(scores: Tensor, positive: Tensor) -> Tensor:
    """1 where a score reaches the positive's, else 0. Floating point, whose sums are the fast ones."""
    exact = torch.float32 if scores.shape[1] < 1 << 24 else torch.float64
    return torch.ge(scores, positive, out=torch.empty(scores.shape, dtype=exact, device=scores.device))


def _counted(positives: Tensor, negatives: Tensor) -> Tensor | None:
    """Which negatives count, ``[b, C]``, bool: distinct, real, not the positive. None when all do."""
    if negatives.is_cpu:  # numpy sorts short rows ten times faster; a wrapped id can only look like a repeat
        ordered = torch.from_numpy(np.sort(negatives.to(torch.int32).numpy(), axis=1))
    else:
        ordered = negatives.sort(dim=1).values
    own = negatives == positives[:, None]
    if not bool((ordered[:, 1:] == ordered[:, :-1]).any() | (ordered[:, :1] < 0).any() | own.any()):
        return None
    ordered, order = negatives.sort(dim=1, stable=True)
    first = torch.ones_like(own)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return torch.empty_like(own).scatter_(1, order, first) & (negatives >= 0) & ~own


def _refuse_repeated(users: Tensor) -> None:
    ordered = users.sort().values
    again = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(again):
        raise ValueError(
            f"user {int(again[0])} is judged by more than one process: give each its own users, "
            "candidates.for_rank(rank, world_size)"
        )


def _width(candidates: Candidates | Catalogue) -> int:
    """Scores per user."""
    if isinstance(candidates, Catalogue):
        return candidates.num_items
    if isinstance(candidates, Candidates):
        return 1 + candidates.negatives.shape[1]
    raise TypeError(f"candidates must be Candidates or Catalogue, got {type(candidates).__name__}")


def _check_vocabulary(model: SupportsScore, candidates: Candidates | Catalogue) -> None:
    """A frozen view indexes its tables without looking: an unknown id must be found before."""
    for name, size_name in (("users", "num_users"), ("positives", "num_items"), ("negatives", "num_items")):
        ids, size = getattr(candidates, name, None), getattr(model, size_name, None)
        if ids is not None and isinstance(size, int):
            lowest = -1 if name == "negatives" else 0
            remedy = "judge it on candidates of the data it was trained for"
            check_ids(ids, name, size, f"the model's {size_name}", lowest=lowest, remedy=remedy)
    if isinstance(candidates, Catalogue):
        known = getattr(model, "num_items", candidates.num_items)
        if candidates.num_items > known:
            raise ValueError(
                f"the catalogue has {candidates.num_items} items, but the model has num_items = {known}"
            )
