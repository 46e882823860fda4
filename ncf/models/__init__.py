"""Models, their embedding tables and towers, scoring, saving; `ncf.models.baselines` holds what has no gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ncf.utils.lazy import lazy_names

__all__ = ["GMF", "MLP", "MatrixFactorization", "NeuMF", "Recommender", "load"]

if TYPE_CHECKING:
    from ncf.models.base import Recommender
    from ncf.models.matrix_factorization import MatrixFactorization
    from ncf.models.neural import GMF, MLP, NeuMF
    from ncf.models.saving import load

_HOMES = {
    "Recommender": "base",
    "GMF": "neural",
    "MLP": "neural",
    "MatrixFactorization": "matrix_factorization",
    "NeuMF": "neural",
    "load": "saving",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
