"""Answers from a trained model."""

from ncf.inference.answers import Neighbours, Recommendations
from ncf.inference.export import export_onnx, export_program
from ncf.inference.recommender import Recommender, recommend

__all__ = ["Neighbours", "Recommendations", "Recommender", "export_onnx", "export_program", "recommend"]
