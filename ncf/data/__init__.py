"""Interactions, their splits, negatives for training and candidates for ranking."""

from ncf.data.candidates import Candidates, Catalogue, sample_candidates, whole_catalogue
from ncf.data.features import Features
from ncf.data.interactions import Interactions
from ncf.data.sampling import NegativeSampler
from ncf.data.splitting import (
    Split,
    hold_out_users,
    k_folds,
    leave_last,
    leave_one_out,
    split_by_ratio,
    split_by_time,
)
from ncf.data.vocabulary import HashedVocabulary, Vocabulary, check_same_ids

__all__ = [
    "Candidates",
    "Catalogue",
    "Features",
    "HashedVocabulary",
    "Interactions",
    "NegativeSampler",
    "Split",
    "Vocabulary",
    "check_same_ids",
    "hold_out_users",
    "k_folds",
    "leave_last",
    "leave_one_out",
    "sample_candidates",
    "split_by_ratio",
    "split_by_time",
    "whole_catalogue",
]
