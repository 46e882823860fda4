"""A rule for the L2 penalty, from few points: see "The same recipe on data of another size" in docs/results.md."""

from __future__ import annotations

from torch import nn

from ncf import GMF, Interactions


def weight_decay_for(train: Interactions, model: nn.Module | None = None) -> float:
    """Return a weight decay for data of this size, to two digits.

    It is 0.00315 / √N for N interactions: 1e-5 was best on the validation set of MovieLens-100K, and 3.2e-6 on drawn
    data of MovieLens-1M's shape. For a GMF it is 0.000355 / √M, for M rows in the geometric mean of the two
    sides. The penalty on the rows of a product is one on its nuclear norm (Srebro, Rennie & Jaakkola, NIPS 2004).
    A GMF has a third factor in the product, its head, which changes the penalty's strength.
    """
    if isinstance(getattr(model, "module", model), GMF):
        decay = 0.000355 / (train.num_users * train.num_items) ** 0.25
    else:
        decay = 0.00315 / len(train) ** 0.5
    return float(f"{decay:.1e}")
