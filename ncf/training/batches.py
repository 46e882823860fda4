"""One epoch as batches that are drawn, permuted and sliced on the device: no worker, no Python per row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ncf.data.candidates import Candidates, Catalogue
from ncf.data.interactions import Interactions
from ncf.data.sampling import NegativeSampler
from ncf.distributed.collectives import all_gather_object, all_reduce_sum, raise_on_all_ranks, rank
from ncf.kernels.native import draw_unseen, library, reorder, seen_places, use_huge_pages
from ncf.training.losses import Corrections
from ncf.utils.checks import whole
from ncf.utils.jagged import lengths_to_offsets
from ncf.utils.seeding import stream

_BLOCK_BYTES = 3 << 24  # of an epoch's samples, drawn at once


class Batch(NamedTuple):
    """A chunk of K batches of P positives, each with its own negatives.

    ``users`` is ``[K, P]`` and ``items`` ``[K, P, 1 + n]``, both int64; the positive comes first among the items.
    ``weights``, ``[K]``, is this process's share of the samples of all processes; ``None`` where it is the only one.
    ``shared``, ``[K, S]``, are negatives of every positive of their batch, and then ``n`` is zero. ``seen`` holds the
    places p · S + s of those that the user of positive p has interacted with, ascending; batch k's begin at
    ``seen_offsets[k]``, ``[K + 1]``.
    """

    users: Tensor
    items: Tensor
    weights: Tensor | None = None
    shared: Tensor | None = None
    seen: Tensor | None = None
    seen_offsets: Tensor | None = None


class TrainingBatches:
    """Every training positive once per epoch, in random order, each with fresh negatives.

    A positive and its negatives share a batch, so their user is looked up once. The negatives are drawn
    in user order, where the search in memory is fastest, and then permuted with their positives. An epoch of more than
    48 MiB is cut at random into blocks of whole batches, each drawn when its turn comes: then 4 bytes per interaction
    are held, the block that it is in, beside one block.

    A user who has interacted with every item has no negatives and nothing to rank: such users are left out.

    Of several processes each has its own users, and `balance_across_ranks` gives all of them equally many steps.

    Args:
        train: the training interactions.
        batch_size: samples per batch, positives and negatives together; rounded to whole groups of
            one positive and its negatives. The last batch of an epoch may be smaller; none is dropped.
        negatives: negatives per positive.
        shared_negatives: items that are drawn for each batch, and are negatives of all of its positives in place of
            their own, unless their user has interacted with them; ``batch_size`` then counts positives.
        negative_sampling: distribution of the negatives, see `NegativeSampler`.
        counts: interactions per item for popularity sampling, ``[num_items]``; counted in ``train`` by default.
        seed: epoch ``e`` of a seed is the same whatever was drawn before it.
        rank: number of the process, of several; each draws its own numbers.
        device: where the batches live.

    Raises:
        ValueError: if there are no interactions, or a size is below one.
    """

    def __init__(
        self,
        train: Interactions,
        *,
        batch_size: int,
        negatives: int = 4,
        shared_negatives: int | None = None,
        negative_sampling: Literal["uniform", "popularity"] = "uniform",
        counts: Tensor | None = None,
        seed: int = 0,
        rank: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        batch_size, negatives = whole("batch_size", batch_size), whole("negatives", negatives)
        self.shared = 0 if shared_negatives is None else whole("shared_negatives", shared_negatives)
        self.negatives = negatives = 0 if self.shared else negatives
        self.samples_of_positive = 1 + negatives + self.shared
        self.seed = seed
        self.rank = rank
        self.device = torch.device(device)
        self.positives_per_batch = max(1, batch_size // (1 + negatives))
        self.sampler = NegativeSampler(train, law=negative_sampling, counts=counts, device=device)
        self._shares: tuple[list[int], Tensor] | None = None
        self._item_type = torch.int32 if train.num_items < 2**31 else torch.int64
        on_cpu = self.device.type == "cpu" and self._item_type == torch.int32
        self._by_kernel = on_cpu and library() is not None  # at the numbers of PyTorch
        offsets, items = train.csr()
        self._offsets, self._seen = offsets.to(device), items.to(device)
        counts_of_users, available = self._offsets.diff(), self.sampler.available
        self.items = self._seen  # [N], of users in ascending order: shared with the lists, not copied
        self._starts = self._offsets  # [num_users + 1], of users in `items`
        if not bool(available.all()):
            self.items = self._seen[available.repeat_interleave(counts_of_users)]
            self._starts = lengths_to_offsets(counts_of_users * available)
        if len(self.items) == 0:
            raise ValueError(
                "there is nothing to train on: each user has interacted with all items or with none"
            )
        size, steps = self.positives_per_batch, len(self)
        sizes = torch.full((steps,), size, dtype=torch.int64, device="cpu")
        sizes[-1] -= steps * size - len(self.items)
        self.positives_of_steps = sizes  # [steps], on all processes

    @property
    def users(self) -> Tensor:
        """The user of each of `items`, ``[N]``, int64, ascending; made anew."""
        return torch.repeat_interleave(self._starts.diff(), output_size=len(self.items))

    def __len__(self) -> int:
        """Batches in an epoch."""
        if self._shares is not None:
            return len(self._shares[0])
        return -(-len(self.items) // self.positives_per_batch)

    @property
    def samples(self) -> int:
        """Samples in an epoch of this process, positives and negatives."""
        return len(self.items) * self.samples_of_positive

    @property
    def samples_of_all(self) -> int:
        """Samples in an epoch of all processes."""
        return int(self.positives_of_steps.sum()) * self.samples_of_positive

    def balance_across_ranks(self, rows: Sequence[int]) -> None:
        """Cut the epoch into as many batches on every process, which together are of ``batch_size``.

        A process with few interactions has smaller batches, some of them perhaps empty, and none is dropped.

        Args:
            rows: how many positives each process has, by rank.

        Raises:
            ValueError: if a batch has fewer positives than there are processes.
        """
        if self.positives_per_batch < len(rows):
            raise ValueError(
                f"batch_size gives {self.positives_per_batch} positives to a step of {len(rows)} processes: "
                f"give at least {len(rows) * (1 + self.negatives)}"
            )
        steps = -(-sum(rows) // self.positives_per_batch)
        edges = torch.arange(steps + 1, dtype=torch.int64, device="cpu")
        sizes = torch.stack([(edges * size // steps).diff() for size in rows])  # [processes, steps]
        own = sizes[self.rank]
        self.positives_of_steps = sizes.sum(0)
        self._shares = (
            own.tolist(),
            (own.double() / self.positives_of_steps).to(torch.float32).to(self.device),
        )

    def epoch(self, number: int, start: int = 0, per_chunk: int = 1) -> Iterator[Batch]:
        """The batches of an epoch, in chunks of equal ones.

        Args:
            number: which epoch, from 0.
            start: how many batches to pass over, to resume within an epoch.
            per_chunk: how many batches to give at once; a chunk at the end, or the last and smaller batch,
                holds fewer.

        Yields:
            Chunks of K batches: users ``[K, P]`` and items ``[K, P, 1 + n]``; after `balance_across_ranks`
            one batch at a time.

        Raises:
            ValueError: if ``start`` is not between 0 and the number of batches, or ``per_chunk`` below one.
        """
        if not 0 <= start <= len(self):
            raise ValueError(f"start = {start}: an epoch has {len(self)} batches")
        whole("per_chunk", per_chunk)
        if self._shares is None:
            sizes = [self.positives_per_batch] * (len(self) - 1)
            sizes.append(len(self.items) - sum(sizes))
        else:
            sizes = self._shares[0]
        edges = [0, *accumulate(sizes)]
        at_once = self._batches_of_block()
        rows = None
        if at_once < len(self):
            kind = torch.int32 if len(self.items) < 2**31 else torch.int64
            random = self._generator("blocks", number, *((self.rank,) if self.rank else ()))
            rows = torch.randperm(len(self.items), generator=random, dtype=kind, device=self.device)
        for block, first in enumerate(range(0, len(self), at_once)):
            last = min(first + at_once, len(self))
            if last > start:
                own = None if rows is None else rows[edges[first] : edges[last]]
                skip = max(0, start - first)
                yield from self._block(number, block, own, sizes[first:last], skip, per_chunk, first)

    def _batches_of_block(self) -> int:
        """Batches whose samples are drawn at once; many batches in whole chunks of the powers of two up to 64."""
        batch = self.positives_per_batch * (28 + 4 * self.negatives)  # bytes
        at_once = max(1, _BLOCK_BYTES // batch)
        return at_once if at_once < 64 else at_once // 64 * 64

    def _generator(self, *names: str | int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(stream(self.seed, *names).initial_seed())

    def _block(
        self,
        number: int,
        block: int,
        rows: Tensor | None,
        sizes: list[int],
        start: int,
        per_chunk: int,
        first: int,
    ) -> Iterator[Batch]:
        """Draw and give batches of the positives in `rows`, all by default, from batch `start` of the block on."""
        of_rank = (self.rank,) if self.rank or block else ()
        random = self._generator("epoch", number, *of_rank, *((block,) if block else ()))
        self.sampler.generator = random
        if rows is None:
            users, positives = self.users, self.items
        else:
            rows, users = _in_user_order(rows, self._starts)
            positives = self.items[rows]
        shape = len(users), 1 + self.negatives
        items = torch.empty(shape, dtype=self._item_type, device=self.device)  # [B, 1 + n]
        use_huge_pages(items)
        items[:, 0] = positives
        draw = draw_unseen if self._by_kernel else None
        self.sampler.sample(users, self.negatives, out=items[:, 1:], draw=draw)
        order = torch.randperm(len(items), generator=random, dtype=torch.int64, device=self.device)
        if self._shares is not None:
            weights = self._shares[1][first:]
            for step, some in enumerate(order.split(sizes)):
                if step >= start:
                    yield Batch(
                        users[some][None], items[some][None].to(torch.int64), weights[step : step + 1]
                    )
            return
        size = self.positives_per_batch
        filled = len(order) // size * size
        full = order[:filled].view(-1, size)[start:]  # [batches, P]
        last = order[None, filled:] if start <= filled // size else order[None, :0]
        shared = self.sampler.shared(len(sizes), self.shared)[start:] if self.shared else None  # [batches, S]
        done = 0
        for some in [*full.split(per_chunk), last]:
            if not some.numel():
                continue
            if self._by_kernel:
                batch = Batch(*reorder(some, users, items))
            else:
                batch = Batch(users[some], items[some].to(torch.int64))
            if shared is not None:
                batch = self._with_shared(batch, shared[done : done + len(some)])
                done += len(some)
            yield batch

    def _with_shared(self, batch: Batch, shared: Tensor) -> Batch:
        """Add negatives that all positives of their batch share, less those that a positive's user has seen."""
        mark = torch.zeros(self.sampler.num_items, dtype=torch.int32, device=self.device)
        find = seen_places if self._by_kernel else _seen_places
        places = [
            find(self._seen, self._offsets, users, negatives, mark)
            for users, negatives in zip(batch.users, shared, strict=True)  # [P], [S]
        ]
        counts = torch.tensor([0, *map(len, places)], dtype=torch.int64, device=self.device)
        return batch._replace(shared=shared, seen=torch.cat(places), seen_offsets=counts.cumsum(0))

    @property
    def corrections(self) -> Corrections:
        """Logarithm of how often an item is expected among a positive's negatives, see `SampledSoftmax`."""
        return self.sampler.log_expected(self.shared or self.negatives, self.shared > 0)


def _seen_places(seen: Tensor, offsets: Tensor, users: Tensor, shared: Tensor, mark: Tensor) -> Tensor:
    """`ncf.kernels.native.seen_places` in PyTorch."""
    mark[shared] = 1
    lengths = offsets[users + 1] - offsets[users]
    ends = lengths.cumsum(0)
    every = torch.arange(int(ends[-1]), dtype=torch.int64, device=seen.device)
    skip = (offsets[users] - ends + lengths).repeat_interleave(lengths)
    hit = mark[seen[every + skip]].nonzero().squeeze(1)  # among all that the users have seen
    positive = torch.searchsorted(ends, hit, right=True)
    item = seen[hit + skip[hit]]
    mark[shared] = 0
    ascending, order = shared.sort()
    first = torch.searchsorted(ascending, item)
    times = torch.searchsorted(ascending, item, right=True) - first  # an item may be shared twice
    nth = torch.arange(int(times.sum()), dtype=torch.int64, device=seen.device)
    nth -= (times.cumsum(0) - times).repeat_interleave(times)
    place = positive.repeat_interleave(times) * len(shared)
    return (place + order[first.repeat_interleave(times) + nth]).sort().values


def _in_user_order(rows: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows ascending, and the user of each: user u's begin at ``starts[u]``."""
    if rows.is_cpu:  # NumPy is several times as fast
        ascending = np.sort(rows.numpy())
        users = np.searchsorted(starts.numpy(), ascending, side="right") - 1
        return torch.from_numpy(ascending), torch.from_numpy(users)
    rows = rows.sort().values.to(torch.int64)
    return rows, torch.searchsorted(starts, rows, right=True) - 1


def distributed_batches(
    train: Interactions,
    *,
    num_users: int,
    negative_sampling: Literal["uniform", "popularity"] = "uniform",
    **settings: Any,
) -> TrainingBatches:
    """Build this process's share of the batches; all processes must call this, each with its own users.

    All have equally many steps, and popularity is that among the interactions of all.

    Args:
        train: this process's training interactions.
        num_users: size of the user vocabulary, the same in every process.
        negative_sampling: distribution of the negatives, see `NegativeSampler`.
        settings: other arguments of `TrainingBatches`; ``batch_size`` counts all processes.

    Raises:
        ValueError: if two processes have interactions of the same user, or as `TrainingBatches` raises it.
    """
    present = train.users.bincount(minlength=num_users).clamp(max=1)
    twice = (all_reduce_sum(present) > 1).nonzero()
    if len(twice):
        raise ValueError(
            f"user {int(twice[0])} is trained on by more than one process: give each its own users, "
            "split.for_rank(rank, world_size)"
        )
    counts = None
    if negative_sampling == "popularity":
        counts = all_reduce_sum(train.items.bincount(minlength=train.num_items))
    with raise_on_all_ranks():
        batches = TrainingBatches(
            train, negative_sampling=negative_sampling, counts=counts, rank=rank(), **settings
        )
    batches.balance_across_ranks(all_gather_object(len(batches.items)))
    return batches


def rows_fingerprint(*columns: Tensor, distributed: bool = False) -> str:
    """Hash of the rows of some int64 columns ``[N]``, whatever their order and the processes that have them."""
    mixed = torch.zeros_like(columns[0])
    for column in columns:
        mixed = (mixed ^ column) * -7046029254386353131  # odd constants of SplitMix64, as signed numbers
        mixed = (mixed ^ (mixed >> 30)) * -4658895280553007687
        mixed ^= mixed >> 27
    total = torch.stack([mixed.sum(), mixed.new_tensor(len(mixed))])
    count, rows = (int(value) for value in (all_reduce_sum(total) if distributed else total))
    return f"{count & (2**64 - 1):016x}, {rows} rows"


def candidates_fingerprint(candidates: Candidates | Catalogue | None, distributed: bool) -> str | None:
    """Hash of what models are evaluated on, see `rows_fingerprint`."""
    if candidates is None:
        return None
    users, positives = candidates.users, candidates.positives
    if isinstance(candidates, Candidates):
        return rows_fingerprint(users, positives, *candidates.negatives.unbind(1), distributed=distributed)
    lists = (candidates.held_out_offsets, positives), (candidates.seen_offsets, candidates.seen_items)
    held_out, seen = (
        rows_fingerprint(users.repeat_interleave(offsets.diff()), items, distributed=distributed)
        for offsets, items in lists
    )
    return f"held out {held_out}; seen {seen}"
