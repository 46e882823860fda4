"""One call from interactions to a trained model: settings are computed from the data."""

from ncf.training.recipes.fitting import fit
from ncf.training.recipes.laws import Recipe, recipe_for

__all__ = ["Recipe", "fit", "recipe_for"]
