"""Linear models of the user's items: a weight from every item to every other, or to those near it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ncf.data.interactions import Interactions
from ncf.models.baselines.base import Baseline, blocks_of, training_interactions
from ncf.models.baselines.gram import co_occurrence, invert_
from ncf.utils.checks import free_memory, whole
from ncf.utils.jagged import lengths_to_offsets, places_of_lists, select_lists

if TYPE_CHECKING:
    from typing_extensions import Self

_log = logging.getLogger("ncf")

_NUMBERS_AT_ONCE = 1 << 22  # of sparse weights that are added up: 16 MB of float32, 64 MB with their places
_NUMBERS_SOLVED = 1 << 27  # 512 MB of float32: as many neighbourhoods as fit are filled in one pass over XᵀX
_FINE = 1e6  # condition up to which single precision gives the weights; see `EASE`


class _ItemToItem(Baseline):
    """Score = the sum of the weights from the user's training items to the candidate.

    Args:
        train: the training interactions.
        weights: ``[I, I]``, float32, from row to column; or those that are not zero, ``[W]``, row by row.
        places: of sparse weights: where each row begins, ``[I + 1]``, and the columns, ``[W]``, both int64.
    """

    weights: Tensor  # [I, I] or [W]
    weight_offsets: Tensor  # [I + 1]
    weight_items: Tensor  # [W]
    seen_offsets: Tensor  # [U + 1]
    seen_items: Tensor  # [N]

    def __init__(
        self, train: Interactions, weights: Tensor, places: tuple[Tensor, Tensor] | None, **config: Any
    ) -> None:
        offsets, items = train.csr()
        if places is not None:
            config["num_weights"] = len(weights)
        super().__init__(train, num_seen=len(items), **config)
        self.register_buffer("weights", weights)
        if places is not None:
            self.register_buffer("weight_offsets", places[0])
            self.register_buffer("weight_items", places[1])
        self.register_buffer("seen_offsets", offsets)
        self.register_buffer("seen_items", items)

    def _shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "seen_offsets": ((self.num_users + 1,), torch.int64),
            "seen_items": ((self.config["num_seen"],), torch.int64),
        }
        if "num_weights" not in self.config:
            return {"weights": ((self.num_items, self.num_items), torch.float32)} | shapes
        count = self.config["num_weights"]
        return {
            "weights": ((count,), torch.float32),
            "weight_offsets": ((self.num_items + 1,), torch.int64),
            "weight_items": ((count,), torch.int64),
        } | shapes

    def for_histories(self, offsets: Tensor, items: Tensor) -> Self:
        """See `Baseline.for_histories`."""
        other = super().for_histories(offsets, items)
        other.seen_offsets, other.seen_items = offsets.to(self.device), items.to(self.device)
        other.config["num_seen"] = len(items)
        return other

    def weights_of(self, items: Tensor, *, toward: bool = False) -> Tensor:
        """The weights from some items to all, ``[n, I]``, or from all items to them.

        Args:
            items: ``[n]``, int64.
            toward: give the weights to them.
        """
        if self.weights.dim() == 2:
            return (self.weights.T if toward else self.weights)[items]
        found = torch.zeros(len(items), self.num_items, dtype=torch.float32, device=self.device)
        if not toward:
            offsets, places = places_of_lists(self.weight_offsets, items)
            rows = torch.repeat_interleave(offsets.diff())
            found[rows, self.weight_items[places]] = self.weights[places]
            return found
        sources = torch.repeat_interleave(self.weight_offsets.diff())
        for row, item in enumerate(items):
            there = self.weight_items == item
            found[row, sources[there]] = self.weights[there]
        return found

    def _score(self, users: Tensor, candidates: Tensor) -> Tensor:
        columns = candidates[0] if len(candidates) == 1 else None
        whole = columns is not None and torch.equal(
            columns, torch.arange(self.num_items, dtype=torch.int64, device=self.device)
        )
        scores = torch.empty(len(users), candidates.shape[1], dtype=torch.float32, device=self.device)
        for block in blocks_of(len(users), self.num_items):
            of_all = self._of_all(users[block])  # [b, I]
            if whole:
                scores[block] = of_all
            elif columns is not None:
                scores[block] = of_all[:, columns]
            else:
                scores[block] = of_all.gather(1, candidates[block])
        return scores

    def _of_all(self, users: Tensor) -> Tensor:
        offsets, history = select_lists(self.seen_offsets, self.seen_items, users)
        if self.weights.dim() == 2:
            return F.embedding_bag(history, self.weights, offsets[:-1], mode="sum")
        scores = torch.zeros(len(users) * self.num_items, dtype=torch.float32, device=self.device)
        starts = torch.repeat_interleave(offsets.diff()) * self.num_items  # of each interaction's user
        longest = int(self.weight_offsets.diff().max())
        for part in blocks_of(len(history), longest, _NUMBERS_AT_ONCE):
            ends, places = places_of_lists(self.weight_offsets, history[part])
            cells = starts[part].repeat_interleave(ends.diff()).add_(self.weight_items[places])
            scores.index_add_(0, cells, self.weights[places])
        return scores.view(len(users), self.num_items)


class ItemKNN(_ItemToItem):
    """Nearest neighbours of items by cosine similarity (Sarwar et al., WWW 2001).

    The similarity of two items that cᵢⱼ users have in common is cᵢⱼ / (√(cᵢ cⱼ) + shrinkage); every item
    keeps its nearest neighbours, and a user's score is the sum over those that the user has interacted with.
    Memory is 12 bytes for each neighbour kept; time grows with items².

    Args:
        train: the training interactions.
        neighbours: how many an item keeps. The defaults were best on the validation part of MovieLens-100K.
        shrinkage: draws similarities that rest on few users towards zero.

    Raises:
        ValueError: if an argument is out of range.

    Example::

        >>> import torch
        >>> from ncf import Interactions, ItemKNN
        >>> train = Interactions.from_arrays([0, 0, 1, 1, 2], [0, 1, 0, 1, 2])
        >>> ItemKNN(train).score(torch.tensor([0]), torch.tensor([[0, 1, 2]]))
        tensor([[1.0000, 1.0000, 0.0000]])
    """

    def __init__(self, train: Interactions, *, neighbours: int = 20, shrinkage: float = 0.0) -> None:
        neighbours = whole("neighbours", neighbours)
        if not shrinkage >= 0:
            raise ValueError(f"shrinkage = {shrinkage}: give a number of at least 0")
        near, similarity = _nearest(training_interactions(train), neighbours, shrinkage)
        weights, places = _by_row(near, similarity, train.num_items)
        super().__init__(train, weights, places, neighbours=neighbours, shrinkage=float(shrinkage))


class EASE(_ItemToItem):
    """Embarrassingly shallow autoencoder (Steck, WWW 2019): a linear map from a user's items to themselves.

    The weights minimise ‖X − XB‖² + λ‖B‖² with a zero diagonal, in closed form B = I − P / diag(P) with
    P = (XᵀX + λI)⁻¹. There is nothing to tune but λ.

    The exact weights take 4 · items² bytes, in which they are computed too, and time that grows with items³. With
    ``neighbours`` each column of B is solved for the items most similar to its own alone, as Steck did ("Markov Random
    Fields for Collaborative Filtering", NeurIPS 2019), and the rest are zero: 12 · neighbours · items bytes. On
    MovieLens-1M 200 neighbours lose nothing. `Spectral` is the other way to a large catalogue.

    The inverse is computed in single precision. Double precision is taken where λ is so small that XᵀX + λI may be
    near a matrix without an inverse: under a millionth of its largest sum of a row.

    Args:
        train: the training interactions.
        regularization: λ, more for more users: 200 was best on the validation part of MovieLens-100K, 500 in
            the paper on MovieLens-20M.
        neighbours: how many weights an item has at most; by default one from every other.

    Raises:
        MemoryError: if the exact weights need more than there is. If they need more than half, the logger ``"ncf"``
            says so before the computation begins.
        ValueError: if an argument is out of range.

    Example::

        >>> import torch
        >>> from ncf import EASE, Interactions
        >>> train = Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 2])
        >>> EASE(train, regularization=1.0).score(torch.tensor([0]), torch.tensor([[0, 1, 2]]))
        tensor([[0.6667, 0.5714, 0.1250]])
        >>> EASE(train, regularization=1.0, neighbours=1).score(torch.tensor([0]), torch.tensor([[0, 1, 2]]))
        tensor([[0.6667, 0.5000, 0.2500]])
    """

    def __init__(
        self, train: Interactions, *, regularization: float = 200.0, neighbours: int | None = None
    ) -> None:
        if not regularization > 0:
            raise ValueError(
                f"regularization = {regularization}: must be positive, or XᵀX may have no inverse"
            )
        size = training_interactions(train).num_items
        places = None
        if neighbours is None:
            weights = _exact(train, regularization)
        else:
            near, _ = _nearest(train, whole("neighbours", neighbours), 0.0)
            weights, places = _by_row(near, _of_neighbourhoods(train, near, regularization), size)
        super().__init__(train, weights, places, regularization=float(regularization), neighbours=neighbours)


def _exact(train: Interactions, regularization: float) -> Tensor:
    """All weights of `EASE`, ``[I, I]``."""
    size, dtype = train.num_items, torch.float32
    lengths = train.users.bincount(minlength=train.num_users)
    sums = torch.zeros(size, dtype=torch.int64, device=lengths.device)
    sums.index_add_(0, train.items, lengths[train.users])  # of the rows of XᵀX; no eigenvalue is larger
    if len(train) and float(sums.max()) > _FINE * regularization:
        dtype = torch.float64
    _check_memory(train, dtype.itemsize)
    weights = torch.empty(size, size, dtype=dtype, device=train.items.device)
    for block, common in co_occurrence(train):
        weights[block] = common
    weights.diagonal().add_(regularization)
    invert_(weights)
    weights.div_(-weights.diagonal())  # by column
    weights.diagonal().zero_()
    return weights.to(torch.float32)


def _check_memory(train: Interactions, bytes_each: int) -> None:
    free, needed = (
        free_memory(train.items.device),
        (bytes_each + (4 if bytes_each > 4 else 0)) * train.num_items**2,
    )
    if free is None or needed <= free / 2:
        return
    text = (
        f"EASE takes a matrix of items × items: {train.num_items:,} items need {needed / 1e9:.1f} GB, of "
        f"{free / 1e9:.1f} GB that are free. EASE(..., neighbours=200) and Spectral need a small part of that"
    )
    if needed > free:
        raise MemoryError(text)
    _log.warning("%s", text)


def _nearest(train: Interactions, neighbours: int, shrinkage: float) -> tuple[Tensor, Tensor]:
    """The most similar other items of each item, ``[I, k]``, -1 where there are fewer, and the similarities."""
    size, device = train.num_items, train.items.device
    neighbours = min(neighbours, size)
    norms = torch.bincount(train.items, minlength=size).to(torch.float32).sqrt()  # [I]
    near = torch.empty(size, neighbours, dtype=torch.int64, device=device)
    values = torch.empty(size, neighbours, dtype=torch.float32, device=device)
    for block, common in co_occurrence(train):
        similarity = common.div_((norms[block, None] * norms + shrinkage).clamp_(min=1e-9))  # [b, I]
        similarity.diagonal(block.start).zero_()
        torch.topk(similarity, neighbours, dim=1, out=(values[block], near[block]))
    return near.masked_fill_(values <= 0, -1), values


def _by_row(near: Tensor, values: Tensor, size: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Weights from the neighbours ``[I, k]`` of each item to it, row by row: see `_ItemToItem`."""
    there = near >= 0
    rows, order = near[there].sort(stable=True)
    columns = there.nonzero()[:, 0][order]
    return values[there][order], (lengths_to_offsets(rows.bincount(minlength=size)), columns)


def _of_neighbourhoods(train: Interactions, near: Tensor, regularization: float) -> Tensor:
    """The weights of `EASE` from the neighbours ``[I, k]`` of each item to it, if all others are zero."""
    size, width = near.shape
    weights = torch.zeros(size, width, dtype=torch.float32, device=near.device)
    for some in blocks_of(size, width * width, _NUMBERS_SOLVED):
        columns, absent = near[some].clamp(min=0), near[some] < 0  # [j, k]
        gram = torch.zeros(len(columns), width, width, dtype=torch.float32, device=near.device)
        target = torch.zeros(len(columns), width, 1, dtype=torch.float32, device=near.device)
        own = torch.arange(some.start, some.stop, dtype=torch.int64, device=near.device)
        named, order = near[some].reshape(-1).sort()
        for block, common in co_occurrence(train):
            first, last = torch.searchsorted(
                named, torch.tensor([block.start, block.stop], dtype=torch.int64, device=near.device)
            ).tolist()
            for part in order[first:last].split(max(1, _NUMBERS_AT_ONCE // width)):
                item, place = part // width, part % width
                row = columns[item, place] - block.start
                gram[item, place] = common[row[:, None], columns[item]]
                target[item, place, 0] = common[row, own[item]]
        gram.masked_fill_(absent[:, None, :], 0.0).diagonal(dim1=1, dim2=2).add_(regularization)
        for few in blocks_of(len(gram), width * width, _NUMBERS_AT_ONCE):
            factor = torch.linalg.cholesky(gram[few].to(torch.float64))
            solved = torch.cholesky_solve(target[few].to(torch.float64), factor)
            weights[some][few] = solved[:, :, 0].to(torch.float32)
    return weights
