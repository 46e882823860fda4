"""Training runs: batches, steps, optimizers, losses."""

from ncf.training.run import History
from ncf.training.trainer import Trainer

__all__ = ["History", "Trainer"]
