"""One epoch as batches that are drawn, permuted and sliced on the device: no worker, no Python per row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ncf.data.interactions import Interactions
from ncf.data.sampling import NegativeSampler
from ncf.distributed.collectives import all_gather_object, all_reduce_sum, raise_on_all_ranks, rank
from ncf.utils.checks import whole
from ncf.utils.seeding import stream


class Batch(NamedTuple):
    """A chunk of K batches of P positives, each beside its own negatives.

    Args:
        users: ``[K, P]``, int64.
        items: ``[K, P, 1 + n]``, int64; along the last dimension the positive comes first.
        weights: ``[K]``, this process's share of the samples of all processes; ``None`` where it is the only one.

    Example::

        >>> import torch
        >>> from ncf.training.batches import Batch
        >>> chunk = Batch(users=torch.tensor([[3, 8]]), items=torch.tensor([[[7, 0, 4], [2, 9, 1]]]))
        >>> chunk.items[0, 1]  # what user 8 has touched, and two negatives
        tensor([2, 9, 1])
    """

    users: Tensor
    items: Tensor
    weights: Tensor | None = None


class TrainingBatches:
    """Every training positive once per epoch, in random order, each with fresh negatives.

    A positive and its negatives share a batch, so their user is looked up once. The negatives are drawn
    in user order, where the search in memory is fastest, and then permuted with their positives; they are kept
    as 32-bit numbers, 4 · (1 + n) bytes per interaction.

    A user who has touched every item has no negatives and nothing to rank: such users are left out.

    Of several processes each has its own users, and `share_out` gives all of them equally many steps.

    Args:
        train: the training interactions.
        batch_size: samples per batch, positives and negatives together; rounded to whole groups of
            one positive and its negatives. The last batch of an epoch may be smaller; none is dropped.
        negatives: negatives per positive.
        law: law of the negatives, see `NegativeSampler`.
        counts: interactions per item behind the popularity law, ``[num_items]``; those of ``train`` by default.
        seed: epoch ``e`` of a seed is the same whatever was drawn before it.
        rank: number of the process, of several; each draws its own numbers.
        device: where the batches live.

    Raises:
        ValueError: if there are no interactions, or a size is below one.

    Example::

        >>> from ncf import Interactions
        >>> from ncf.training.batches import TrainingBatches
        >>> batches = TrainingBatches(Interactions.from_arrays([0, 0, 1], [0, 1, 2]), batch_size=10, negatives=4)
        >>> [batch.items.shape for batch in batches.epoch(0)]
        [torch.Size([1, 2, 5]), torch.Size([1, 1, 5])]
    """

    def __init__(
        self,
        train: Interactions,
        *,
        batch_size: int,
        negatives: int = 4,
        law: Literal["uniform", "popularity"] = "uniform",
        counts: Tensor | None = None,
        seed: int = 0,
        rank: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        batch_size, negatives = whole("batch_size", batch_size), whole("negatives", negatives)
        self.negatives = negatives
        self.seed = seed
        self.rank = rank
        self.device = torch.device(device)
        self.positives_per_batch = max(1, batch_size // (1 + negatives))
        self.sampler = NegativeSampler(train, law=law, counts=counts, device=device)
        self._shares: tuple[list[int], Tensor] | None = None
        offsets, items = train.csr()
        users = torch.repeat_interleave(
            torch.arange(train.num_users, dtype=torch.int64, device="cpu"), offsets.diff()
        ).to(device)
        trainable = self.sampler.available[users]
        self.users = users[trainable]  # [N], ascending
        self.items = items.to(device)[trainable]  # [N]
        if len(self.users) == 0:
            raise ValueError("there is nothing to train on: no user has both a touched and an untouched item")

    def __len__(self) -> int:
        """Batches in an epoch."""
        if self._shares is not None:
            return len(self._shares[0])
        return -(-len(self.users) // self.positives_per_batch)

    @property
    def samples(self) -> int:
        """Samples in an epoch of this process, positives and negatives."""
        return len(self.users) * (1 + self.negatives)

    def share_out(self, rows: Sequence[int]) -> None:
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
        self._shares = own.tolist(), (own / sizes.sum(0)).to(self.device)

    def epoch(self, number: int, start: int = 0, per_chunk: int = 1) -> Iterator[Batch]:
        """The batches of an epoch, in chunks of equal ones.

        Args:
            number: which epoch, from 0.
            start: how many batches to pass over, to go on where a run was cut off.
            per_chunk: how many batches to give at once; a chunk at the end, or the last and smaller batch,
                holds fewer.

        Yields:
            Chunks of K batches: users ``[K, P]`` and items ``[K, P, 1 + n]``; after `share_out` one batch at a time.

        Raises:
            ValueError: if ``start`` is not between 0 and the number of batches, or ``per_chunk`` below one.
        """
        if not 0 <= start <= len(self):
            raise ValueError(f"start = {start}: an epoch has {len(self)} batches")
        whole("per_chunk", per_chunk)
        random = torch.Generator(self.device)
        own = (self.rank,) if self.rank else ()
        random.manual_seed(stream(self.seed, "epoch", number, *own).initial_seed())
        self.sampler.generator = random
        drawn = self.sampler.sample(self.users, self.negatives)  # [N, n]
        items = torch.cat([self.items[:, None], drawn], dim=1).to(torch.int32)  # [N, 1 + n]
        order = torch.randperm(len(items), generator=random, dtype=torch.int64, device=self.device)
        if self._shares is not None:
            sizes, weights = self._shares
            for step, rows in enumerate(order.split(sizes)):
                if step >= start:
                    yield Batch(
                        self.users[rows][None], items[rows][None].to(torch.int64), weights[step : step + 1]
                    )
            return
        size = self.positives_per_batch
        filled = len(order) // size * size
        full = order[:filled].view(-1, size)[start:]  # [batches, P]
        last = order[None, filled:] if start <= filled // size else order[None, :0]
        for rows in [*full.split(per_chunk), last]:
            if rows.numel():
                yield Batch(self.users[rows], items[rows].to(torch.int64))


def collective_batches(
    train: Interactions,
    *,
    num_users: int,
    law: Literal["uniform", "popularity"] = "uniform",
    **settings: Any,
) -> TrainingBatches:
    """The batches of several processes, each of which brings its own users; every process must ask.

    All have equally many steps, and popularity is that among the interactions of all.

    Args:
        train: this process's training interactions.
        num_users: size of the user vocabulary, the same in every process.
        law: law of the negatives, see `NegativeSampler`.
        settings: other arguments of `TrainingBatches`; ``batch_size`` is that of all processes.

    Returns:
        This process's part of the batches.

    Raises:
        ValueError: if two processes have interactions of the same user, or for what `TrainingBatches` refuses.

    Example::

        >>> from ncf import Interactions
        >>> from ncf.training.batches import collective_batches
        >>> train = Interactions.from_arrays([0, 0, 1], [0, 1, 2])
        >>> (batch,) = collective_batches(train, num_users=2, batch_size=15).epoch(0)
        >>> batch.items.shape, batch.weights
        (torch.Size([1, 3, 5]), tensor([1.]))
    """
    present = train.users.bincount(minlength=num_users).clamp(max=1)
    twice = (all_reduce_sum(present) > 1).nonzero()
    if len(twice):
        raise ValueError(
            f"user {int(twice[0])} is trained on by more than one process: give each its own users, "
            "split.for_rank(rank, world_size)"
        )
    counts = None
    if law == "popularity":
        counts = all_reduce_sum(train.items.bincount(minlength=train.num_items))
    with raise_on_all_ranks():
        batches = TrainingBatches(train, law=law, counts=counts, rank=rank(), **settings)
    batches.share_out(all_gather_object(len(batches.users)))
    return batches
