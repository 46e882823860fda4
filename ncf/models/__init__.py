"""Models, their embedding tables and towers, scoring, saving; `ncf.models.baselines` holds what has no gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ncf.utils import lazy_names

__all__ = ["GMF", "MLP", "EmbeddingModel", "MatrixFactorization", "NeuMF", "load", "register"]

if TYPE_CHECKING:
    from ncf.models.base import EmbeddingModel
    from ncf.models.loading import load, register
    from ncf.models.matrix_factorization import MatrixFactorization
    from ncf.models.neural import GMF, MLP, NeuMF

_HOMES = {
    "EmbeddingModel": "base",
    "GMF": "neural",
    "MLP": "neural",
    "MatrixFactorization": "matrix_factorization",
    "NeuMF": "neural",
    "load": "loading",
    "register": "loading",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
