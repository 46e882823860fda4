"""Training runs: batches, steps, optimizers, losses."""

from ncf.training.history import History
from ncf.training.trainer import Trainer

__all__ = ["History", "Trainer"]
