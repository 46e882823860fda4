"""The sharded training step that the benchmarks of several processes measure."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ncf.distributed.sharding import shard
from ncf.models import GMF, NeuMF
from ncf.models.base import EmbeddingModel
from ncf.training.batches import Batch
from ncf.training.losses import LOSSES
from ncf.training.optimizers import make_optimizer
from ncf.training.steps import CollectiveStep

DIM, NEGATIVES, SAMPLES = 64, 4, 8192


def build(name: str, rows: int, *, constant: bool = False, device: str = "meta") -> EmbeddingModel:
    """A model whose tables have ``rows`` rows of 64 columns: two of ``gmf``, four of ``neumf``.

    Args:
        name: ``"gmf"`` or ``"neumf"``.
        rows: of each table.
        device: ``"meta"``, or ``"cpu"`` for whole tables.
        constant: fill the tables with one number, where only time matters, since drawing millions of rows takes some.
    """
    model: EmbeddingModel
    if name == "gmf":
        model = GMF(rows, rows, factors=DIM, device=device)
    else:
        model = NeuMF(rows, rows, factors=DIM, layers=(2 * DIM, 64, 32, 16), device=device)
    if constant:
        for table in model.embeddings.tables:
            model.embeddings.table_fillers[table.name] = _hundredths
    return model


def _hundredths(out: Tensor, *, row: int, column: int) -> None:
    out.fill_(0.01)


def batch(rows: int, samples: int, seed: int, share: float = 1.0) -> Batch:
    """Uniform ids, the hardest case for a cache, in groups of a positive and its negatives as in training."""
    generator = torch.Generator().manual_seed(seed)
    positives = samples // (1 + NEGATIVES)
    return Batch(
        torch.randint(0, rows, (1, positives), generator=generator),
        torch.randint(0, rows, (1, positives, 1 + NEGATIVES), generator=generator),
        torch.full((1,), share),
    )


def training_step(sharded: nn.Module) -> Callable[[Batch], Tensor]:
    """The `Trainer`'s step of a sharded model: Adam for what no backward updates."""
    step = CollectiveStep(sharded, make_optimizer(sharded, "adam", learning_rate=1e-3), LOSSES["bce"])
    return lambda one: step(one, [1.0])


def sharded(model: EmbeddingModel, sharding: str) -> nn.Module:
    """What `shard` makes of a model, without a word."""
    return shard(model, sharding, verbose=False)
