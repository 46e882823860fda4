"""A linear map from a user's items to all items, of low rank: memory of rows, not of items × items."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ncf.data.interactions import Interactions
from ncf.models.baselines.base import DotProduct, training_interactions
from ncf.utils.checks import whole
from ncf.utils.seeding import stream

_ITERATIONS = 4  # of the subspace; two leave a tenth of HR@10 behind, six add nothing


class Spectral(DotProduct):
    """Truncated singular value decomposition of the degree-normalised interactions.

    With X̃ = Dᵤ^-½ X Dᵢ^-½ ≈ U S Vᵀ the scores of a user are x̃ᵤ V Vᵀ Dᵢ^½: what the first singular vectors explain of
    the user's items. It is the ideal low-pass filter of the graph of interactions (Shen et
    al., "How Powerful is Graph Convolution for Recommendation?", CIKM 2021); PureSVD (Cremonesi et al., RecSys 2010)
    is the same without the normalisation. Where `EASE` needs items × items numbers, this needs (users + items) ×
    factors.

    Args:
        train: the training interactions.
        factors: how many singular vectors; by default as many as `default_factors` gives.
        seed: of the randomized decomposition (Halko, Martinsson & Tropp, SIAM Review 2011).

    Attributes:
        user_factors: ``[num_users, F]``, float32.
        item_factors: ``[num_items, F]``, float32; a score is the dot product. Columns are ordered by singular value,
            so the first f of them are the decomposition with f factors.

    Raises:
        ValueError: if ``factors`` is no positive whole number.

    Example::

        >>> import torch
        >>> from ncf import Interactions, Spectral
        >>> train = Interactions.from_arrays([0, 0, 1, 1, 2, 2, 3, 3, 3], [0, 1, 0, 1, 2, 3, 2, 3, 1])
        >>> near, far = Spectral(train, factors=2).score(torch.tensor([2]), torch.tensor([[1, 0]]))[0].tolist()
        >>> near > far  # one user has item 1 and the items of user 2
        True
    """

    def __init__(self, train: Interactions, *, factors: int | None = None, seed: int = 0) -> None:
        sizes = training_interactions(train).num_users, train.num_items
        factors = min(default_factors(*sizes) if factors is None else whole("factors", factors), *sizes)
        super().__init__(train, factors=factors, seed=seed)
        of_user, of_item = (
            torch.bincount(ids, minlength=size).clamp_(min=1).to(torch.float32)
            for ids, size in ((train.users, self.num_users), (train.items, self.num_items))
        )
        values = (of_user[train.users] * of_item[train.items]).rsqrt_()
        left, singular, right = _truncated_svd(train, values, factors, seed)
        self.register_buffer("user_factors", left * singular)  # X̃ V
        self.register_buffer("item_factors", right * of_item.sqrt()[:, None])


def default_factors(num_users: int, num_items: int) -> int:
    """Return a multiple of four up to 512: an eighth of the smaller side, at least four."""
    return max(4, min(512, min(num_users, num_items) // 8) // 4 * 4)


def _truncated_svd(
    train: Interactions, values: Tensor, rank: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Singular vectors ``[U, F]`` and ``[I, F]`` and values ``[F]``, the largest first, by subspace iteration."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its sparse tensors unfinished
        index = torch.stack([train.users, train.items])
        matrix = torch.sparse_coo_tensor(
            index, values, (train.num_users, train.num_items), dtype=values.dtype, device="cpu"
        ).coalesce()
        forward, backward = matrix.to_sparse_csr(), matrix.t().coalesce().to_sparse_csr()
        width = min(rank + max(16, rank // 8), train.num_users, train.num_items)
        start = torch.randn(
            (train.num_items, width), generator=stream(seed, "spectral"), dtype=torch.float32, device="cpu"
        )
        basis = _orthonormal(start.to(values.device))  # [I, F']
        for _ in range(_ITERATIONS):
            basis = _orthonormal(backward @ _orthonormal(forward @ basis))
        projected = forward @ basis  # [U, F']
    squares, rotation = torch.linalg.eigh((projected.T @ projected).to(torch.float64))
    singular = squares.flip(0)[:rank].clamp_(min=1e-12).sqrt().to(torch.float32)
    rotation = rotation.flip(1)[:, :rank].to(torch.float32)
    return projected @ rotation / singular, singular, basis @ rotation


def _orthonormal(columns: Tensor) -> Tensor:
    orthonormal: Tensor = torch.linalg.qr(columns).Q
    return orthonormal
