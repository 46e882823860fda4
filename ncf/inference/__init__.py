"""Answers from a trained model."""

from ncf.inference.recommender import Neighbours, Recommendations, Recommender, recommend

__all__ = ["Neighbours", "Recommendations", "Recommender", "recommend"]
