"""Linear models of the user's items: a weight from every item to every other."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ncf.data.interactions import Interactions
from ncf.models.baselines.base import Baseline, blocks_of, training_interactions
from ncf.utils.checks import whole
from ncf.utils.jagged import select_lists

if TYPE_CHECKING:
    from typing_extensions import Self


class _ItemToItem(Baseline):
    """Score = the sum of the weights from the user's training items to the candidate.

    Args:
        train: the training interactions.
        weights: ``[I, I]``, float32, from row to column.
    """

    weights: Tensor  # [I, I]
    seen_offsets: Tensor  # [U + 1]
    seen_items: Tensor  # [N]

    def __init__(self, train: Interactions, weights: Tensor, **config: Any) -> None:
        offsets, items = train.csr()
        super().__init__(train, num_seen=len(items), **config)
        self.register_buffer("weights", weights)
        self.register_buffer("seen_offsets", offsets)
        self.register_buffer("seen_items", items)

    def _shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {
            "weights": ((self.num_items, self.num_items), torch.float32),
            "seen_offsets": ((self.num_users + 1,), torch.int64),
            "seen_items": ((self.config["num_seen"],), torch.int64),
        }

    def for_histories(self, offsets: Tensor, items: Tensor) -> Self:
        """See `Baseline.for_histories`."""
        other = super().for_histories(offsets, items)
        other.seen_offsets, other.seen_items = offsets.to(self.device), items.to(self.device)
        other.config["num_seen"] = len(items)
        return other

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
        return F.embedding_bag(history, self.weights, offsets[:-1], mode="sum")


class ItemKNN(_ItemToItem):
    """Nearest neighbours of items by cosine similarity (Sarwar et al., WWW 2001).

    The similarity of two items that cᵢⱼ users have in common is cᵢⱼ / (√(cᵢ cⱼ) + shrinkage); every item
    keeps its nearest neighbours, and a user's score is the sum over those that the user has interacted with.

    Args:
        train: the training interactions.
        neighbours: how many an item keeps. The defaults were best on the validation part of MovieLens-100K.
        shrinkage: draws similarities that rest on few users towards zero.
        max_items: refuse more: the weights are a dense matrix of 4 · items² bytes.

    Raises:
        ValueError: if an argument is out of range, or there are too many items.

    Example::

        >>> import torch
        >>> from ncf import Interactions, ItemKNN
        >>> train = Interactions.from_arrays([0, 0, 1, 1, 2], [0, 1, 0, 1, 2])
        >>> ItemKNN(train).score(torch.tensor([0]), torch.tensor([[0, 1, 2]]))
        tensor([[1.0000, 1.0000, 0.0000]])
    """

    def __init__(
        self, train: Interactions, *, neighbours: int = 20, shrinkage: float = 0.0, max_items: int = 30_000
    ) -> None:
        neighbours = whole("neighbours", neighbours)
        if not shrinkage >= 0:
            raise ValueError(f"shrinkage = {shrinkage}: give a number of at least 0")
        _refuse_many_items(train, max_items, "ItemKNN", bytes_each=4)
        neighbours = min(neighbours, train.num_items)
        norms = torch.bincount(train.items, minlength=train.num_items).to(torch.float32).sqrt()  # [I]
        weights = torch.empty(
            train.num_items, train.num_items, dtype=torch.float32, device=train.items.device
        )
        for block, common in _co_occurrence(train):
            similarity = common / (norms[block, None] * norms + shrinkage).clamp(min=1e-9)  # [b, I]
            similarity.diagonal(block.start).zero_()
            nearest = similarity.topk(neighbours, dim=1)
            weights[:, block] = similarity.zero_().scatter_(1, nearest.indices, nearest.values).T
        super().__init__(train, weights, neighbours=neighbours, shrinkage=float(shrinkage))


class EASE(_ItemToItem):
    """Embarrassingly shallow autoencoder (Steck, WWW 2019): a linear map from a user's items to themselves.

    The weights minimise ‖X − XB‖² + λ‖B‖² with a zero diagonal, in closed form B = I − P / diag(P) with
    P = (XᵀX + λI)⁻¹. There is nothing to tune but λ.

    Args:
        train: the training interactions.
        regularization: λ, more for more users: 200 was best on the validation part of MovieLens-100K, 500 in
            the paper on MovieLens-20M.
        max_items: refuse more: time grows with items³, memory is about 24 · items² bytes while fitting
            and 4 · items² afterwards.

    Raises:
        ValueError: if λ is not positive, or there are too many items.

    Example::

        >>> import torch
        >>> from ncf import EASE, Interactions
        >>> train = Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 2])
        >>> EASE(train, regularization=1.0).score(torch.tensor([0]), torch.tensor([[0, 1, 2]]))
        tensor([[0.6667, 0.5714, 0.1250]])
    """

    def __init__(
        self, train: Interactions, *, regularization: float = 200.0, max_items: int = 30_000
    ) -> None:
        if not regularization > 0:
            raise ValueError(
                f"regularization = {regularization}: must be positive, or XᵀX may have no inverse"
            )
        _refuse_many_items(train, max_items, "EASE", bytes_each=24)
        gram = torch.empty(train.num_items, train.num_items, dtype=torch.float64, device=train.items.device)
        for block, common in _co_occurrence(train):
            gram[block] = common
        gram.diagonal().add_(regularization)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram, out=gram))  # [I, I]
        # cholesky_inverse answers column by column; a lookup wants rows that lie in one piece
        weights = (inverse / -inverse.diagonal()).to(torch.float32).contiguous()
        weights.diagonal().zero_()
        super().__init__(train, weights, regularization=float(regularization))


def _co_occurrence(train: Interactions) -> Iterator[tuple[slice, Tensor]]:
    """Yield blocks of rows of XᵀX, the users that two items have in common, ``[b, I]``, float32."""
    size = (train.num_users, train.num_items)
    kind: dict[str, Any] = {"dtype": torch.float32, "device": train.items.device}
    ones = torch.ones(len(train), **kind)
    order = train.items.argsort()
    items, users = train.items[order], train.users[order]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its sparse tensors unfinished
        places = torch.stack([train.users, train.items])
        everything = torch.sparse_coo_tensor(places, ones, size, **kind).coalesce()
        for block in blocks_of(train.num_items, train.num_items):
            first, last = torch.searchsorted(
                items, torch.tensor([block.start, block.stop], dtype=torch.int64, device=items.device)
            ).tolist()
            rows = torch.stack([items[first:last] - block.start, users[first:last]])
            of_block = torch.sparse_coo_tensor(
                rows, ones[first:last], (block.stop - block.start, size[0]), **kind
            )
            yield block, torch.sparse.mm(of_block, everything).to_dense()


def _refuse_many_items(train: Interactions, max_items: int, name: str, bytes_each: int) -> None:
    num_items = training_interactions(train).num_items
    if num_items > max_items:
        raise ValueError(
            f"{name} works on a dense matrix of items × items: {num_items} items would need about "
            f"{bytes_each * num_items**2 / 1e9:.1f} GB. Leave out rare items (min_item_count), or raise "
            f"max_items = {max_items}"
        )
