"""Answers from a trained model."""

from ncf.inference.topk import Recommendations, recommend

__all__ = ["Recommendations", "recommend"]
