"""Scores of users × candidates: one function that chooses by device, and the kernels behind it.

Triton is imported when a kernel runs for the first time, never by importing this package.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ncf.kernels.reference import score_reference
from ncf.kernels.tables import ScoringTables

__all__ = ["ScoringTables", "score_candidates", "score_reference"]

_BLOCK_BYTES = 1 << 22  # of the widest intermediate result of the CPU path


@torch.no_grad()
def score_candidates(tables: ScoringTables, users: Tensor, candidates: Tensor) -> Tensor:
    """Score each user's candidates on the tables' device.

    Args:
        tables: the model's parameters laid out for ranking.
        users: ``[U]``, int64; ids are not checked here.
        candidates: items, ``[U, C]``, int64; a negative one is padding.

    Returns:
        Scores, ``[U, C]``, fp32 or fp64 (`ScoringTables.score_dtype`); padding has ``-inf``.
    """
    scores = torch.empty(candidates.shape, dtype=tables.score_dtype, device=tables.device)
    widths = [t.shape[1] for t in (tables.item_half, tables.item_gmf) if t is not None]
    rows = max(1, _BLOCK_BYTES // (4 * max(widths, default=1) * max(1, candidates.shape[1])))
    for start in range(0, len(users), rows):
        block = slice(start, start + rows)
        scores[block] = score_reference(tables, users[block], candidates[block])
    return scores
