"""Models without gradient: what a trained model must beat, each fitted by its constructor.

They have ``score(users, candidates)`` like every model, so `evaluate`, `compare` and `recommend` take them.
"""

from ncf.models.baselines.als import ALS
from ncf.models.baselines.base import Baseline
from ncf.models.baselines.item_pop import ItemPop
from ncf.models.baselines.item_to_item import EASE, ItemKNN
from ncf.models.baselines.spectral import Spectral

__all__ = ["ALS", "EASE", "Baseline", "ItemKNN", "ItemPop", "Spectral"]
