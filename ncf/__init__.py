"""Neural Collaborative Filtering (He et al., WWW 2017) over TorchRec embedding tables.

The public names are loaded when they are first used: ``import ncf`` costs little more than
``import torch``; TorchRec comes with the first model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ncf.utils import lazy_names
from ncf.utils.version import __version__

__all__ = [
    "ALS",
    "EASE",
    "GMF",
    "MLP",
    "Candidates",
    "Catalogue",
    "Features",
    "HashedVocabulary",
    "History",
    "Interactions",
    "ItemKNN",
    "ItemPop",
    "MatrixFactorization",
    "NegativeSampler",
    "NeuMF",
    "Ranking",
    "Recommender",
    "Spectral",
    "Split",
    "Trainer",
    "Vocabulary",
    "__version__",
    "compare",
    "datasets",
    "evaluate",
    "extend",
    "fit",
    "fold_in",
    "hold_out_users",
    "k_folds",
    "leave_last",
    "leave_one_out",
    "list_statistics",
    "load",
    "recommend",
    "sample_candidates",
    "split_by_ratio",
    "split_by_time",
    "tune",
    "whole_catalogue",
]

if TYPE_CHECKING:
    import ncf.datasets as datasets
    from ncf.data.candidates import Candidates, Catalogue, sample_candidates, whole_catalogue
    from ncf.data.features import Features
    from ncf.data.interactions import Interactions
    from ncf.data.sampling import NegativeSampler
    from ncf.data.splitting import (
        Split,
        hold_out_users,
        k_folds,
        leave_last,
        leave_one_out,
        split_by_ratio,
        split_by_time,
    )
    from ncf.data.vocabulary import HashedVocabulary, Vocabulary
    from ncf.evaluation.beyond_accuracy import list_statistics
    from ncf.evaluation.comparison import compare
    from ncf.evaluation.evaluator import evaluate
    from ncf.evaluation.ranking import Ranking
    from ncf.inference.fold_in import fold_in
    from ncf.inference.recommender import Recommender, recommend
    from ncf.models.baselines import ALS, EASE, ItemKNN, ItemPop, Spectral
    from ncf.models.growing import extend
    from ncf.models.loading import load
    from ncf.models.matrix_factorization import MatrixFactorization
    from ncf.models.neural import GMF, MLP, NeuMF
    from ncf.training.recipes import fit
    from ncf.training.run import History
    from ncf.training.trainer import Trainer
    from ncf.training.tuning import tune

_HOMES = {
    "Features": "data.features",
    "HashedVocabulary": "data.vocabulary",
    "Interactions": "data.interactions",
    "Split": "data.splitting",
    "leave_one_out": "data.splitting",
    "leave_last": "data.splitting",
    "split_by_time": "data.splitting",
    "split_by_ratio": "data.splitting",
    "k_folds": "data.splitting",
    "hold_out_users": "data.splitting",
    "Vocabulary": "data.vocabulary",
    "NegativeSampler": "data.sampling",
    "Candidates": "data.candidates",
    "Catalogue": "data.candidates",
    "sample_candidates": "data.candidates",
    "whole_catalogue": "data.candidates",
    "GMF": "models.neural",
    "MLP": "models.neural",
    "NeuMF": "models.neural",
    "MatrixFactorization": "models.matrix_factorization",
    "ItemPop": "models.baselines",
    "ItemKNN": "models.baselines",
    "EASE": "models.baselines",
    "ALS": "models.baselines",
    "Spectral": "models.baselines",
    "fit": "training.recipes",
    "Trainer": "training.trainer",
    "History": "training.run",
    "tune": "training.tuning",
    "evaluate": "evaluation.evaluator",
    "Ranking": "evaluation.ranking",
    "compare": "evaluation.comparison",
    "list_statistics": "evaluation.beyond_accuracy",
    "Recommender": "inference.recommender",
    "recommend": "inference.recommender",
    "extend": "models.growing",
    "fold_in": "inference.fold_in",
    "load": "models.loading",
}

_named, _ = lazy_names(__name__, _HOMES)


def __getattr__(name: str) -> Any:
    if name == "datasets":
        from importlib import import_module

        return import_module("ncf.datasets")
    return _named(name)


def __dir__() -> list[str]:
    return sorted(__all__)
