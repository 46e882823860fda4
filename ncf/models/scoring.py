"""Score, rank and select: the default implementation of ranking, and the views of the models.

The first layer of the MLP is separable, W·[u; v] = Wᵤu + Wᵥv, and the head's GMF weights fold into the user
rows. A pair then costs an add, a ReLU and the small layers, in place of the whole network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ncf.data.candidates import Candidates, Catalogue
from ncf.distributed.collectives import all_gather_object, raise_on_all_ranks
from ncf.kernels import ScoringTables, score_candidates
from ncf.kernels.dispatch import FusedTables, can_rank
from ncf.kernels.native_scoring import PackedTables, fits
from ncf.kernels.reference import distinct_negatives, largest_k, merge_largest, num_at_least
from ncf.utils.checks import check_known, whole

USERS_PER_PASS = 4096  # of a sharded model: for whom the rows of the whole catalogue travel once
# Pairs scored at once: about 8 MB with their ids, small beside any model, enough to keep a device busy.
_PAIRS_PER_BLOCK = {"cpu": 1 << 19, "cuda": 1 << 24}
_SCORES_PER_BLOCK = 1 << 22  # of a selection: 16 MB


class Ranker:
    """Ranking and selection on top of ``score``: what a subclass does not do faster itself.

    ``score`` also takes one list of candidates for all users, ``[C]``.

    Attributes:
        distributed: whether every process must call the methods as often as the others, each with its own users.
        device: where ``score`` takes its ids; ``None`` where any will do.
    """

    distributed = False
    device: torch.device | None = None

    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        """Scores, ``[U, C]``, of each user's candidates, ``[U, C]``, or of one list for all, ``[C]``."""
        raise NotImplementedError

    @torch.no_grad()
    def rank(
        self, candidates: Candidates | Catalogue, *, block_users: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Rank the held-out items of every user among the candidates.

        Args:
            candidates: what to rank.
            block_users: users scored at once; by default as many as give about half a million pairs.

        Returns:
            ranks: how many other candidates score at least as high as each held-out item, ``[P]``, int64, on the CPU.
            num_candidates: distinct items ranked, the held-out items among them, ``[U]``, int64.

        Raises:
            ValueError: if a score is NaN, or the scores have the wrong shape.
        """
        whole_catalogue = isinstance(candidates, Catalogue)
        width = candidates.num_items if whole_catalogue else 1 + candidates.negatives.shape[1]  # type: ignore[union-attr]
        device = self.device or candidates.users.device
        pairs = _PAIRS_PER_BLOCK.get(device.type, 1 << 19)
        if block_users is None:
            block_users = USERS_PER_PASS if self.distributed else max(1, pairs // width)
        block_users = whole("block_users", block_users)
        ranks = torch.empty(len(candidates.positives), dtype=torch.int64, device="cpu")
        num_candidates = torch.empty(len(candidates.users), dtype=torch.int64, device="cpu")
        failures: list[ValueError] = []
        for block in self._blocks(len(num_candidates), block_users):
            users = candidates.users[block].to(device)
            with self._deferring(failures):
                if isinstance(candidates, Catalogue):
                    bounds = candidates.held_out_offsets[block.start : block.stop + 1]
                    held_out = slice(int(bounds[0]), int(bounds[-1]))
                    positives = candidates.positives[held_out].to(device)
                    offsets = candidates.seen_offsets[block.start : block.stop + 1]
                    seen = candidates.seen_items[int(offsets[0]) : int(offsets[-1])].to(device)
                    # A sharded model brings the rows of a few items at a time: no process ever has every item's.
                    items_at_once = max(1, pairs // block_users) if self.distributed else width
                    counts = bounds.diff().to(device), offsets.diff().to(device)
                    ranks[held_out] = self._ranks_in_catalogue(
                        users, positives, seen, *counts, width, items_at_once, failures
                    )
                    num_candidates[block] = width - offsets.diff().cpu()
                else:
                    positives, negatives = candidates.positives[block], candidates.negatives[block]
                    ranks[block], num_candidates[block] = self._ranks_among(
                        users, positives.to(device), negatives.to(device)
                    )
        self._raise_first(failures)
        return ranks, num_candidates

    def _ranks_among(self, users: Tensor, positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
        items = torch.cat([positives[:, None], negatives], dim=1)  # [b, 1 + C]
        scores = checked_scores(self, users, items)
        counted = distinct_negatives(positives, negatives)
        check_no_nan(scores, users, items, None if counted is None else items < 0)
        wins = num_at_least(scores[:, 1:], scores[:, :1])  # [b, C]
        if counted is None:
            return wins.sum(1), torch.full_like(users, items.shape[1])
        return (wins * counted).sum(1), 1 + counted.sum(1)

    def _ranks_in_catalogue(
        self,
        users: Tensor,
        positives: Tensor,
        seen: Tensor,
        num_positives: Tensor,
        num_seen: Tensor,
        num_items: int,
        items_at_once: int,
        failures: list[ValueError],
    ) -> Tensor:
        """Rank the users' held-out items, ``[P]``, one user's behind the other's, as ``seen``, ``[S]``, stands."""
        rows = torch.repeat_interleave(num_positives)  # [P], the user's place in the block
        place = torch.arange(len(rows), dtype=torch.int64, device=rows.device)
        place -= (num_positives.cumsum(0) - num_positives)[rows]  # [P], the item's place among the user's
        most = int(num_positives.max()) if len(users) else 0
        own = None
        if items_at_once < num_items:
            padded = torch.full((len(users), max(1, most)), -1, dtype=torch.int64, device=users.device)
            padded[rows, place] = positives
            own = checked_scores(self, users, padded)[rows, place]  # [P]
        seen_rows = torch.repeat_interleave(num_seen)  # [S]
        ranks = torch.zeros_like(positives)
        for start in range(0, num_items, items_at_once):
            end = min(start + items_at_once, num_items)
            items = torch.arange(start, end, dtype=torch.int64, device=users.device)
            scores = checked_scores(self, users, items)  # [b, w]
            own = scores[rows, positives] if own is None else own
            with self._deferring(failures):
                if may_hold_nan(scores) or may_hold_nan(own):
                    check_no_nan(own[:, None], users[rows], positives[:, None])
                    is_seen = _filled(torch.zeros_like(scores, dtype=torch.bool), seen_rows, seen - start, 1)
                    check_no_nan(scores, users, items, is_seen)
            for nth in range(most):
                # [b'], of the users with more than `nth` held-out items
                chosen = (place == nth).nonzero()[:, 0]
                those = torch.full_like(users, -1)
                those[rows[chosen]] = here = torch.arange(len(chosen), dtype=torch.int64, device=users.device)
                these = scores if len(chosen) == len(users) else scores[rows[chosen]]
                wins = num_at_least(these, own[chosen, None])  # [b', w]
                _filled(wins, those[seen_rows], seen - start, 0)
                _filled(wins, here, positives[chosen] - start, 0)
                ranks[chosen] += wins.sum(1).to(torch.int64)
        return ranks

    @torch.no_grad()
    def top_k(
        self, users: Tensor, k: int, items: Tensor, left_out: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Select the best items of each user; of equal scores the item with the lower number is better.

        Args:
            users: ``[U]``, int64.
            k: length of a list.
            items: what may be selected, ``[C]``, int64, ascending.
            left_out: items that a user is not offered: offsets ``[U + 1]`` and items, ascending within a user.

        Returns:
            Scores, ``[U, k]``, and items, ``[U, k]``, int64, best first, on the CPU. Past the end of a user's list
            they are ``-inf`` and ``-1``.

        Raises:
            ValueError: if a score is NaN, or the scores have the wrong shape.
        """
        device = self.device or users.device
        # A sharded model brings the rows of a few items at a time, for many users.
        step = USERS_PER_PASS if self.distributed else max(1, _SCORES_PER_BLOCK // max(1, len(items)))
        width = max(1, _SCORES_PER_BLOCK // step) if self.distributed else max(1, len(items))
        lists: list[tuple[Tensor, Tensor]] = []
        failures: list[ValueError] = []
        for block in self._blocks(len(users), step):
            some, best = users[block].to(device), None
            if left_out is not None:
                offsets = left_out[0][block.start : block.stop + 1]
                hidden = left_out[1][int(offsets[0]) : int(offsets[-1])].to(device)
                rows = torch.arange(len(some), dtype=torch.int64, device=device)
                rows = rows.repeat_interleave(offsets.diff().to(device))
            for part in items.to(device).split(width) if len(items) else ():  # else one part, of no item
                mask = None
                if left_out is not None:
                    places = torch.searchsorted(part, hidden).clamp(max=len(part) - 1)
                    there = part[places] == hidden
                    mask = torch.zeros(len(some), len(part), dtype=torch.bool, device=device)
                    mask[rows[there], places[there]] = True
                scores = checked_scores(self, some, part)  # [b, w]
                with self._deferring(failures):
                    check_no_nan(scores, some, part, mask)
                    found = largest_k(scores, part, k, mask)
                    best = found if best is None else merge_largest(best, found, k)
            if best is not None:
                lists.append((best[0].cpu(), best[1].cpu()))
        self._raise_first(failures)
        scores = torch.full(
            (len(users), k), -torch.inf, dtype=lists[0][0].dtype if lists else torch.float32, device="cpu"
        )
        selected = torch.full((len(users), k), -1, dtype=torch.int64, device="cpu")
        if lists:
            of_all, items_of_all = (torch.cat(side) for side in zip(*lists, strict=True))
            scores[:, : of_all.shape[1]], selected[:, : of_all.shape[1]] = of_all, items_of_all
        return scores, selected

    def share(self, file: Path) -> None:
        """Map what is laid out for scoring from a file, see `PackedTables.share`; here nothing is."""

    def _blocks(self, size: int, step: int) -> Iterator[slice]:
        """Cut users into blocks; where all processes score, into as many on each; the last may be empty."""
        longest = max(all_gather_object(size)) if self.distributed else size
        for start in range(0, longest, step):
            yield slice(min(start, size), min(start + step, size))

    @contextmanager
    def _deferring(self, failures: list[ValueError]) -> Iterator[None]:
        """Keep a ValueError for later where other processes wait for the scores that follow."""
        try:
            yield
        except ValueError as error:
            if not self.distributed:
                raise
            failures.append(error)

    def _raise_first(self, failures: list[ValueError]) -> None:
        with raise_on_all_ranks(self.distributed):
            if failures:
                raise failures[0]


class Scorer(Ranker):
    """A frozen view of a model for ranking.

    On a CPU a kernel in C takes a few pairs at a time through the whole network (`ncf.kernels`); elsewhere, in
    other types than fp32, and where ncf was installed without a C compiler, `ncf.kernels.score_candidates` does.

    Args:
        tables: the model's parameters laid out for ranking; see `ncf.models.base.EmbeddingModel.scoring_tables`. They
            are copied.

    Example::

        >>> import torch
        >>> from ncf import NeuMF
        >>> scorer = NeuMF(num_users=10, num_items=20).scorer()
        >>> scorer.score(torch.tensor([0, 3]), torch.tensor([[1, 2, 3], [4, 5, -1]])).isinf()
        tensor([[False, False, False],
                [False, False,  True]])
        >>> scores, items = scorer.top_k(torch.tensor([3]), k=2, items=torch.arange(20))
        >>> items.shape
        torch.Size([1, 2])
    """

    def __init__(self, tables: ScoringTables) -> None:
        self.device = tables.device
        self.num_users, self.num_items = tables.num_users, tables.num_items
        self._packed = PackedTables(tables) if fits(tables) else None
        self._tables = tables.copied() if self._packed is None else None  # one copy of the rows, not two
        self._kernel: PackedTables | FusedTables | None = self._packed
        if self._tables is not None and can_rank(self._tables):
            self._kernel = FusedTables(self._tables)

    @torch.no_grad()
    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        """See `Ranker.score`.

        Raises:
            IndexError: on a CPU, if an id is unknown; see `EmbeddingModel.score` for ids that were not checked.
        """
        if self._packed is not None:
            return self._packed.score(users, candidates)
        assert self._tables is not None
        if self._tables.device.type == "cpu":
            check_known(users, "user", self._tables.num_users)
            check_known(candidates, "item", self._tables.num_items, lowest=None)
        with full_precision(self._tables.device):
            return score_candidates(self._tables, users, candidates)

    def rank(
        self, candidates: Candidates | Catalogue, *, block_users: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Ranker.rank`: where a kernel can, no table of scores is made."""
        ranked, kernel = None, self._kernel
        if kernel is not None and isinstance(candidates, Catalogue):
            users, positives = self._placed(candidates.users), self._placed(candidates.positives)
            offsets, seen = self._placed(candidates.seen_offsets), self._placed(candidates.seen_items)
            lists = users, positives, candidates.num_items, offsets, seen
            ranks = kernel.catalogue_ranks(*lists, candidates.positive_offsets)
            ranked = None if ranks is None else (ranks, candidates.num_items - offsets.diff().cpu())
        elif kernel is not None and isinstance(candidates, Candidates):
            lists_of_ids = candidates.users, candidates.positives, candidates.negatives
            ranked = kernel.ranks(*map(self._placed, lists_of_ids))
        # The kernel has no ranks for an unknown id or NaN: the scores then give an exact error.
        return super().rank(candidates, block_users=block_users) if ranked is None else ranked

    def top_k(
        self, users: Tensor, k: int, items: Tensor, left_out: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Ranker.top_k`: where a kernel can, no table of scores is made."""
        selected, kernel = None, self._kernel
        if kernel is not None and k:
            lists = None if left_out is None else (self._placed(left_out[0]), self._placed(left_out[1]))
            selected = kernel.top_k(self._placed(users), k, self._placed(items), lists)
        return super().top_k(users, k, items, left_out) if selected is None else selected

    def share(self, file: Path) -> None:
        """See `Ranker.share`."""
        if self._packed is not None:
            self._packed.share(file)

    def _placed(self, ids: Tensor) -> Tensor:
        """Ids where the kernel takes them: that of a GPU moves them itself, a block at a time."""
        return ids if self._packed is None else ids.cpu()


class ShardedScorer(Ranker):
    """Scores of a model whose tables are spread over processes; rows are looked up call by call.

    Every process must call the methods as often as the others, each with its own users and candidates: any number of
    them, or none. No process ever holds more rows than one call looks up.

    Args:
        embeddings: the sharded tables.
        scoring_tables: lays looked-up rows out for ranking; see `ncf.models.base.EmbeddingModel.scoring_tables`.
        device: of the model.

    Example::

        >>> import torch
        >>> from ncf import GMF
        >>> from ncf.distributed.sharding import shard
        >>> sharded = shard(GMF(10, 20, device="meta"), "table_wise", verbose=False)  # a world of one
        >>> sharded.module.scorer().score(torch.tensor([3]), torch.tensor([[7, 8, -1]])).isinf()
        tensor([[False, False,  True]])
    """

    distributed = True

    def __init__(
        self,
        embeddings: Any,
        scoring_tables: Callable[[Mapping[str, Tensor]], ScoringTables],
        device: torch.device,
    ) -> None:
        self.embeddings = embeddings
        self.scoring_tables = scoring_tables
        self.device = device

    @torch.no_grad()
    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        """See `Scorer.score`; each distinct item is looked up once."""
        items, places = candidates.unique(return_inverse=True)  # ascending: padding comes first
        padding = int(len(items) > 0 and int(items[0]) < 0)
        rows = self.embeddings.collective_lookup(users, items[padding:])
        with full_precision(users.device):
            scorer = Scorer(self.scoring_tables(rows))
        of_rows = torch.arange(len(users), dtype=torch.int64, device=users.device)
        return scorer.score(of_rows, places.view(candidates.shape) - padding)


class ModelScorer(Ranker):
    """Rank by a model's own ``score``, and by its own ``rank`` where it has one.

    Args:
        model: anything with ``score(users [U], candidates [U, C])``.
        distributed: whether its ``score`` needs every process.
    """

    def __init__(self, model: Any, *, distributed: bool = False) -> None:
        self.model = model
        self.distributed = distributed
        self.device = device_of(model)

    @torch.no_grad()
    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        """See `Ranker.score`; the model gets one list for all as a view of shape ``[U, C]``."""
        if candidates.dim() == 1:
            candidates = candidates.expand(len(users), -1)
        return checked_scores(self.model, users, candidates)

    def rank(
        self, candidates: Candidates | Catalogue, *, block_users: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Ranker.rank`."""
        own: Any = getattr(self.model, "rank", None)
        if callable(own) and getattr(candidates, "positive_offsets", None) is None:
            with torch.no_grad():
                ranks, num_candidates = own(candidates)
            return ranks, num_candidates
        return super().rank(candidates, block_users=block_users)


class ForwardScorer(Ranker):
    """Scores of a model that has no `ScoringTables`, by its ``forward``; the view follows later training.

    Args:
        model: the model, in evaluation mode; see `in_evaluation_mode`.
        distributed: whether its tables are spread over processes.
        device: of the model.
    """

    def __init__(self, model: nn.Module, *, distributed: bool, device: torch.device) -> None:
        self.model = model
        self.distributed = distributed
        self.device = device

    @torch.no_grad()
    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        """See `Ranker.score`."""
        if candidates.dim() == 1:
            candidates = candidates.expand(len(users), -1)
        with full_precision(candidates.device):
            scores: Tensor = self.model(users, candidates.clamp(min=0))
        return scores.masked_fill(candidates < 0, -torch.inf)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute in the tensors' own types, under `torch.autocast` as well."""
    with torch.autocast(device.type, enabled=False):
        yield


def device_of(model: object) -> torch.device | None:
    """Return where a model takes its ids, if it has a device."""
    device = getattr(model, "device", None)
    if device is None and isinstance(model, nn.Module):
        device = next((parameter.device for parameter in model.parameters()), None)
    return device if isinstance(device, torch.device) else None


def checked_scores(scorer: Any, users: Tensor, items: Tensor) -> Tensor:
    """Call ``score`` and return its result as a tensor, ``[U, C]``, for items ``[U, C]`` or ``[C]``.

    Raises:
        ValueError: if the result is no tensor or array of real numbers, or of another shape.
    """
    scores = scorer.score(users, items)
    if isinstance(scores, np.ndarray):
        scores = torch.from_numpy(scores).to(items.device)
    if not isinstance(scores, Tensor) or scores.dtype.is_complex or scores.dtype == torch.bool:
        got = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"{type(scorer).__name__}.score returned {got}: return a tensor of real numbers")
    shape = (len(users), items.shape[-1])
    if scores.shape != shape:
        raise ValueError(
            f"{type(scorer).__name__}.score returned shape {tuple(scores.shape)} for {shape[0]} users "
            f"and {shape[1]} candidates each: return {shape}"
        )
    return scores


def may_hold_nan(scores: Tensor) -> bool:
    """Return False only if no score is NaN: a sum meets every NaN and costs a tenth of looking for it."""
    return scores.is_floating_point() and bool(scores.sum().isnan())


def check_no_nan(scores: Tensor, users: Tensor, items: Tensor, ignored: Tensor | None = None) -> None:
    """Raise for the first NaN among scores, ``[U, C]``, of items, ``[U, C]`` or ``[C]``.

    Raises:
        ValueError: naming the user and the item; where ``ignored``, ``[U, C]``, is true a score does not matter.
    """
    if not may_hold_nan(scores):
        return
    bad = scores.isnan()
    bad = (bad if ignored is None else bad & ~ignored).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        item = items[column] if items.dim() == 1 else items[row, column]
        raise ValueError(
            f"the score of item {int(item)} for user {int(users[row])} is NaN "
            f"(and {len(bad) - 1} more): the model has diverged or was fed NaN, it cannot be ranked"
        )


def _filled(table: Tensor, rows: Tensor, columns: Tensor, value: int) -> Tensor:
    """Set the places of a table that lie inside it to a value, and return the table."""
    inside = (rows >= 0) & (columns >= 0) & (columns < table.shape[1])
    table.view(-1).index_fill_(0, (rows * table.shape[1] + columns)[inside], value)
    return table
