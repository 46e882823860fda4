"""Ranks of held-out items, metrics with intervals, comparisons of models, plots."""

from ncf.evaluation.comparison import Comparison, compare
from ncf.evaluation.evaluator import evaluate
from ncf.evaluation.ranking import Ranking

__all__ = ["Comparison", "Ranking", "compare", "evaluate"]
