"""Neural Collaborative Filtering (He et al., WWW 2017) over TorchRec embedding tables.

The public names are loaded when they are first used: ``import ncf`` costs little more than
``import torch``; TorchRec comes with the first model.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Interactions": "interactions",
    "Split": "splitting",
    "leave_one_out": "splitting",
    "NegativeSampler": "sampling",
    "Candidates": "candidates",
    "Catalogue": "candidates",
    "sample_candidates": "candidates",
    "whole_catalogue": "candidates",
    "GMF": "models",
    "MLP": "models",
    "NeuMF": "models",
    "MatrixFactorization": "models",
    "ItemPop": "baselines",
    "ItemKNN": "baselines",
    "EASE": "baselines",
    "Trainer": "training",
    "History": "training",
    "evaluate": "evaluation",
    "Ranking": "evaluation",
    "compare": "comparison",
    "recommend": "recommendation",
    "load": "artifact",
}

__all__ = ["__version__", "datasets", *_HOMES]

if TYPE_CHECKING:
    import ncf.datasets as datasets
    from ncf.artifact import load
    from ncf.baselines import EASE, ItemKNN, ItemPop
    from ncf.candidates import Candidates, Catalogue, sample_candidates, whole_catalogue
    from ncf.comparison import compare
    from ncf.evaluation import Ranking, evaluate
    from ncf.interactions import Interactions
    from ncf.models import GMF, MLP, MatrixFactorization, NeuMF
    from ncf.recommendation import recommend
    from ncf.sampling import NegativeSampler
    from ncf.splitting import Split, leave_one_out
    from ncf.training import History, Trainer


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use (PEP 562)."""
    if name == "datasets":
        return import_module("ncf.datasets")
    if name not in _HOMES:
        raise AttributeError(f"module 'ncf' has no attribute {name!r}")
    value = getattr(import_module(f"ncf.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
