"""Settings of `fit`, computed from the data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ncf.data.interactions import Interactions
from ncf.models.baselines.spectral import default_factors

_DENSE, _SPARSE = 60.0, 25.0  # interactions per row: above, cross-entropy first; below, softmax alone
_USERS = 2_000  # so many tell what a small part adds
_COLUMNS = 300_000_000  # of the softmax part, times interactions: minutes of two cores


@dataclass(frozen=True)
class Recipe:
    """Settings of `fit`, each computed from the data by `recipe_for`.

    Args:
        factors: columns of the part trained with ``"bce"``.
        layers: widths of the MLP.
        losses: ``"bce"``, ``"softmax"`` or both: a part of the model is trained with each.
        epochs: passes of the parts trained with ``"bce"``.
        negatives: for each positive, with ``"bce"``.
        batch_size: samples of a step, with ``"bce"``.
        learning_rate: at the start, with ``"bce"``.
        weight_decay: decoupled, of the rows, with ``"bce"``.
        softmax_factors: columns of the part trained with ``"softmax"``.
        softmax_epochs: passes of that part.
        temperature: of the softmax.
        spectral: columns of the spectral part; 0 leaves it out.
        chain: a part learns which item comes next, where the last ones tell it; trained as the softmax part is.
        mlp_epochs: passes of the MLP.
        mlp_negatives: for each positive, of the MLP.
        members: parts trained with ``"bce"`` from different seeds, whose mean is kept.

    Example::

        >>> from ncf.training.recipes import Recipe
        >>> Recipe().losses
        ('bce',)
    """

    factors: int = 128
    layers: tuple[int, ...] = (64, 32, 16)
    losses: tuple[str, ...] = ("bce",)
    epochs: int = 20
    negatives: int = 8
    batch_size: int = 4096
    learning_rate: float = 4e-3
    weight_decay: float = 0.2
    softmax_factors: int = 256
    softmax_epochs: int = 20
    temperature: float = 0.1
    spectral: int = 256
    chain: bool = False
    mlp_epochs: int = 10
    mlp_negatives: int = 4
    members: int = 1


def recipe_for(data: Interactions, model: str = "NeuMF") -> Recipe:
    """Compute the settings of `fit` from the size and the density of the data.

    With N interactions, U users and I items, n = N / √(U · I) is the number of interactions per row.

    - From n = 25 on a part is trained by binary cross-entropy: 128 columns, 20 epochs, 8 negatives, decay 0.2. Decay
      grows with the columns F as 0.2 · (F / 128)^¾.
    - A part is trained by softmax of the cosine: 20 epochs, temperature 0.07 · √(23 / n), between 0.07 and 0.15. With
      few interactions a row, the dot product overfits under cross-entropy, whatever its decay. The cosine does not:
      it gains with every column. It has 512 columns, or as many as 3 · 10⁸ / N allows, a power of two, and at most an
      eighth of the smaller side or 32. While interactions are held out to choose strengths, it has half the epochs.
    - Above n = 60 that part adds little: it has 64 columns and 10 epochs, and none below 2,000 users, who
      are too few to weigh it.
    - A spectral part (`ncf.Spectral`) has an eighth of the smaller side's size as columns, 512 at most.
    - Where the order of time is known, users have two more rows in the columns of the first part: sums of the rows of
      their items, where each counts 0.5 or 0.8 times the one after it. Up to n = 60, if these gain, the chain part is
      trained as well: softmax of the cosine over pairs of an item and the next one, in half the epochs.
    - Batches grow with N, from 512 to 4096 samples, for at least 2,000 steps per epoch.
    - The cross-entropy part is the mean of several from different seeds: 3,000,000 / N, four at most.

    Args:
        data: the interactions to train on.
        model: name of the model.

    Returns:
        The `Recipe`.

    Example::

        >>> from ncf import Interactions
        >>> from ncf.training.recipes import recipe_for
        >>> few = Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 2, 3])
        >>> recipe_for(few).losses, recipe_for(few).temperature
        (('softmax',), 0.15)
    """
    size = max(1, len(data))
    per_row = size / math.sqrt(max(1, data.num_users) * max(1, data.num_items))
    softmax = per_row <= _DENSE or data.num_users >= _USERS
    losses = tuple(name for name, used in (("bce", per_row >= _SPARSE), ("softmax", softmax)) if used)
    dense = "bce" in losses
    alone = model == "MLP"
    columns = default_factors(data.num_users, data.num_items)
    wide = 64 if per_row > _DENSE else max(64, 2 ** int(math.log2(_COLUMNS / size)))
    return Recipe(
        layers=(128, 64, 32) if alone and dense else (64, 32, 16),
        losses=losses,
        batch_size=int(min(4096, max(512, 2 ** round(math.log2(size * 9 / 2000))))),
        softmax_factors=min(max(32, columns), wide),
        softmax_epochs=10 if per_row > _DENSE else 20,
        temperature=float(f"{min(0.15, max(0.07, 0.07 * math.sqrt(23 / per_row))):.2g}"),
        spectral=columns,
        chain=per_row <= _DENSE,
        mlp_epochs=15 if alone else 10 if dense else 5,
        mlp_negatives=8 if alone else 4,
        members=max(1, min(4, 3_000_000 // size)) if dense else 1,
    )


def shown(recipe: Recipe, data: Interactions) -> str:
    """Settings as words, for the line that `fit` logs."""
    per_row = len(data) / math.sqrt(data.num_users * data.num_items)
    words = [f"{len(data):,} interactions, {per_row:.1f} per row"]
    if "bce" in recipe.losses:
        words.append(
            f"cross-entropy with {recipe.factors} columns, decay {recipe.weight_decay:g}, "
            f"{recipe.negatives} negatives, batches of {recipe.batch_size}, {recipe.epochs} epochs × {recipe.members}"
        )
    if "softmax" in recipe.losses:
        words.append(
            f"softmax of the cosine with {recipe.softmax_factors} columns, "
            f"temperature {recipe.temperature:g}, {recipe.softmax_epochs} epochs"
        )
    words.append(f"{recipe.spectral} singular vectors")
    return "; ".join(words)
