"""Models without gradient: what a trained model must beat, each fitted by its constructor.

They have ``score(users, candidates)`` like every model, so `evaluate`, `compare` and `recommend` take them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ncf.interactions import Interactions

_SCORES_PER_BLOCK = 1 << 22  # 16 MB of float32


class Baseline:
    """What the baselines share: the vocabularies, the check of ids, and padding.

    Args:
        train: the training interactions.
    """

    def __init__(self, train: Interactions) -> None:
        self.num_users, self.num_items = train.num_users, train.num_items
        self.user_ids, self.item_ids = train.user_ids, train.item_ids
        self.device = train.items.device

    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        """Score each user's candidates.

        Args:
            users: ``[U]``, int64.
            candidates: items, ``[U, C]``, int64; ``-1`` is padding. An expanded list, the same for every
                user, is looked up once.

        Returns:
            Scores, ``[U, C]``, float32; padding has ``-inf``.

        Raises:
            ValueError: if an id is out of range, or the shapes do not fit.
        """
        shared = candidates.dim() == 2 and len(candidates) > 1 and candidates.stride(0) == 0
        listed = candidates[:1] if shared else candidates
        self._check(users, candidates, listed)
        if not candidates.numel():
            return torch.empty(candidates.shape, device=self.device)
        scores = self._score(users, listed.clamp(min=0)).expand(candidates.shape).contiguous()
        return scores.masked_fill(listed < 0, -torch.inf) if bool((listed < 0).any()) else scores

    def _score(self, users: Tensor, candidates: Tensor) -> Tensor:
        """Scores of real items, ``[U, C]``; where ``candidates`` has one row for all, so may the result."""
        raise NotImplementedError

    def _check(self, users: Tensor, candidates: Tensor, listed: Tensor) -> None:
        if users.dim() != 1 or candidates.dim() != 2 or len(users) != len(candidates):
            raise ValueError(
                f"candidates {tuple(candidates.shape)} must be [U, C] for users {tuple(users.shape)}"
            )
        for name, ids, lowest, size_name in (
            ("users", users, 0, "num_users"),
            ("candidates", listed, -1, "num_items"),
        ):
            size = getattr(self, size_name)
            if ids.dtype != torch.int64:
                raise ValueError(f"{name} must be an int64 tensor of ids, got {ids.dtype}")
            if ids.numel() and (int(ids.min()) < lowest or int(ids.max()) >= size):
                place = ((ids < lowest) | (ids >= size)).nonzero()[0].tolist()
                raise ValueError(
                    f"{name}{place} = {int(ids[tuple(place)])} is out of range for {size_name} = {size}"
                )


class ItemPop(Baseline):
    """Rank by popularity: the score of an item is its number of training interactions, for every user.

    Args:
        train: the training interactions.

    Example::

        >>> import torch
        >>> from ncf import Interactions, ItemPop
        >>> train = Interactions.from_arrays([0, 1, 2, 2], [5, 5, 5, 9])
        >>> ItemPop(train).score(torch.tensor([0]), torch.tensor([[0, 1]]))
        tensor([[3., 1.]])
    """

    def __init__(self, train: Interactions) -> None:
        super().__init__(train)
        self.popularity = torch.bincount(train.items, minlength=train.num_items).to(torch.float32)  # [I]

    def _score(self, users: Tensor, candidates: Tensor) -> Tensor:
        return self.popularity[candidates]


class _ItemToItem(Baseline):
    """Score = the sum of the weights from the user's training items to the candidate.

    Args:
        train: the training interactions.
        weights: ``[I, I]``, float32, from row to column.
    """

    def __init__(self, train: Interactions, weights: Tensor) -> None:
        super().__init__(train)
        self.weights = weights
        self._offsets, self._items = train.csr()

    def _score(self, users: Tensor, candidates: Tensor) -> Tensor:
        columns = candidates[0] if len(candidates) == 1 else None
        whole = columns is not None and torch.equal(columns, torch.arange(self.num_items, device=self.device))
        scores = torch.empty(len(users), candidates.shape[1], device=self.device)
        for block in _blocks(len(users), self.num_items):
            of_all = self._of_all(users[block])  # [b, I]
            if whole:
                scores[block] = of_all
            elif columns is not None:
                scores[block] = of_all[:, columns]
            else:
                scores[block] = of_all.gather(1, candidates[block])
        return scores

    def _of_all(self, users: Tensor) -> Tensor:
        starts = self._offsets[users]
        counts = self._offsets[users + 1] - starts
        ends = counts.cumsum(0)
        within = torch.arange(int(counts.sum()), device=self.device)
        history = self._items[within + torch.repeat_interleave(starts - (ends - counts), counts)]
        return F.embedding_bag(history, self.weights, ends - counts, mode="sum")


class ItemKNN(_ItemToItem):
    """Nearest neighbours of items by cosine similarity (Sarwar et al., WWW 2001).

    The similarity of two items that cᵢⱼ users have in common is cᵢⱼ / (√(cᵢ cⱼ) + shrinkage); every item
    keeps its nearest neighbours, and a user's score is the sum over those that the user has touched.

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
        if neighbours < 1 or shrinkage < 0:
            raise ValueError(
                f"neighbours = {neighbours}, shrinkage = {shrinkage}: give at least one neighbour, "
                "and a shrinkage that is not negative"
            )
        _refuse_many_items(train.num_items, max_items, "ItemKNN", bytes_each=4)
        neighbours = min(neighbours, train.num_items)
        norms = torch.bincount(train.items, minlength=train.num_items).to(torch.float32).sqrt()  # [I]
        weights = torch.empty(train.num_items, train.num_items, device=train.items.device)
        for block, common in _co_occurrence(train):
            similarity = common / (norms[block, None] * norms + shrinkage).clamp(min=1e-9)  # [b, I]
            similarity.diagonal(block.start).zero_()
            nearest = similarity.topk(neighbours, dim=1)
            weights[:, block] = similarity.zero_().scatter_(1, nearest.indices, nearest.values).T
        super().__init__(train, weights)


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
        _refuse_many_items(train.num_items, max_items, "EASE", bytes_each=24)
        gram = torch.empty(train.num_items, train.num_items, dtype=torch.float64, device=train.items.device)
        for block, common in _co_occurrence(train):
            gram[block] = common
        gram.diagonal().add_(regularization)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram, out=gram))  # [I, I]
        # cholesky_inverse answers column by column; a lookup wants rows that lie in one piece
        weights = (inverse / -inverse.diagonal()).to(torch.float32).contiguous()
        weights.diagonal().zero_()
        super().__init__(train, weights)


class ALS(Baseline):
    """Matrix factorization by alternating least squares (Hu, Koren & Volinsky, ICDM 2008), from ``implicit``.

    Args:
        train: the training interactions.
        factors: width of a row. The defaults were best on the validation part of MovieLens-100K.
        regularization: weight of the squared norm of the rows.
        alpha: how much more an interaction counts than its absence.
        iterations: alternations.
        seed: of the initial rows. The result also depends on the number of threads, in the last digits.

    Raises:
        ImportError: if ``implicit`` is not installed.

    Example::

        >>> import torch
        >>> from ncf import Interactions
        >>> from ncf.baselines import ALS
        >>> train = Interactions.from_arrays([0, 0, 1, 1, 2], [0, 1, 0, 1, 2])
        >>> scores = ALS(train, factors=2).score(torch.tensor([0]), torch.tensor([[1, 2]]))
        >>> bool(scores[0, 0] > scores[0, 1])
        True
    """

    def __init__(
        self,
        train: Interactions,
        *,
        factors: int = 32,
        regularization: float = 20.0,
        alpha: float = 5.0,
        iterations: int = 15,
        seed: int = 0,
    ) -> None:
        super().__init__(train)
        try:
            from implicit.cpu.als import AlternatingLeastSquares
            from scipy.sparse import csr_matrix
            from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
        except ImportError as error:
            raise ImportError("ALS comes from the package implicit: pip install implicit") from error
        offsets, items = (tensor.cpu().numpy() for tensor in train.csr())
        ones = torch.ones(len(items)).numpy()
        model = AlternatingLeastSquares(
            factors=factors,
            regularization=regularization,
            alpha=alpha,
            iterations=iterations,
            random_state=seed,
        )
        with threadpool_limits(1, "blas"):  # implicit runs its own threads, and warns of any other
            model.fit(
                csr_matrix((ones, items, offsets), (self.num_users, self.num_items)), show_progress=False
            )
        self.user_factors = torch.from_numpy(model.user_factors).to(self.device)  # [num_users, F]
        self.item_factors = torch.from_numpy(model.item_factors).to(self.device)  # [num_items, F]

    def _score(self, users: Tensor, candidates: Tensor) -> Tensor:
        if len(candidates) == 1:
            return self.user_factors[users] @ self.item_factors[candidates[0]].T
        scores = torch.empty(candidates.shape, device=self.device)
        for block in _blocks(len(users), candidates.shape[1] * self.item_factors.shape[1]):
            of_users = self.user_factors[users[block], :, None]  # [b, F, 1]
            scores[block] = torch.bmm(self.item_factors[candidates[block]], of_users)[:, :, 0]
        return scores


def _blocks(rows: int, width: int) -> Iterator[slice]:
    """Cut rows so that a block of ``width`` columns stays small."""
    step = max(1, _SCORES_PER_BLOCK // max(1, width))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _co_occurrence(train: Interactions) -> Iterator[tuple[slice, Tensor]]:
    """How many users two items have in common: blocks of rows of XᵀX, ``[b, I]``, float32."""
    size = (train.num_users, train.num_items)
    ones = torch.ones(len(train), device=train.items.device)
    order = train.items.argsort()
    items, users = train.items[order], train.users[order]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its sparse tensors unfinished
        everything = torch.sparse_coo_tensor(torch.stack([train.users, train.items]), ones, size).coalesce()
        for block in _blocks(train.num_items, train.num_items):
            first, last = torch.searchsorted(
                items, torch.tensor([block.start, block.stop], device=items.device)
            ).tolist()
            rows = torch.stack([items[first:last] - block.start, users[first:last]])
            of_block = torch.sparse_coo_tensor(rows, ones[first:last], (block.stop - block.start, size[0]))
            yield block, torch.sparse.mm(of_block, everything).to_dense()


def _refuse_many_items(num_items: int, max_items: int, name: str, bytes_each: int) -> None:
    if num_items > max_items:
        raise ValueError(
            f"{name} works on a dense matrix of items × items: {num_items} items would need about "
            f"{bytes_each * num_items**2 / 1e9:.1f} GB. Leave out rare items (min_item_count), or raise "
            f"max_items = {max_items}"
        )
