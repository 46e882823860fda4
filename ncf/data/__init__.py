"""Interactions, their splits, negatives for training and candidates for ranking."""

from ncf.data.candidates import Candidates, Catalogue, sample_candidates, whole_catalogue
from ncf.data.interactions import Interactions
from ncf.data.sampling import NegativeSampler
from ncf.data.splitting import Split, leave_one_out
from ncf.data.vocabulary import Vocabulary, check_same_ids

__all__ = [
    "Candidates",
    "Catalogue",
    "Interactions",
    "NegativeSampler",
    "Split",
    "Vocabulary",
    "check_same_ids",
    "leave_one_out",
    "sample_candidates",
    "whole_catalogue",
]
