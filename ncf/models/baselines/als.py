"""Alternating least squares, by the package that does it best."""

from __future__ import annotations

from typing import Any

import torch

from ncf.data.interactions import Interactions
from ncf.models.baselines.base import DotProduct


class ALS(DotProduct):
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
        >>> from ncf.models.baselines import ALS
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
        settings: dict[str, Any] = {"factors": factors, "regularization": regularization, "alpha": alpha}
        settings["iterations"] = iterations
        super().__init__(train, **settings, seed=seed)
        try:
            from implicit.cpu.als import AlternatingLeastSquares
            from scipy.sparse import csr_matrix
            from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
        except ImportError as error:
            raise ImportError("ALS comes from the package implicit: pip install implicit") from error
        offsets, items = (tensor.cpu().numpy() for tensor in train.csr())
        ones = torch.ones(len(items), dtype=torch.float32, device="cpu").numpy()
        history = csr_matrix((ones, items, offsets), (self.num_users, self.num_items))
        with threadpool_limits(1, "blas"):  # implicit runs its own threads, and warns of any other
            model = AlternatingLeastSquares(**settings, random_state=seed)
            model.fit(history, show_progress=False)
        self.register_buffer("user_factors", torch.from_numpy(model.user_factors).to(train.items.device))
        self.register_buffer("item_factors", torch.from_numpy(model.item_factors).to(train.items.device))
