"""Fast inner loops of scoring, ranking and training: in C for CPUs, in Triton for GPUs."""

from ncf.kernels.dispatch import fused_lookup, score_candidates
from ncf.kernels.reference import lookup_reference, score_reference
from ncf.kernels.scoring_tables import ScoringTables

__all__ = ["ScoringTables", "fused_lookup", "lookup_reference", "score_candidates", "score_reference"]
