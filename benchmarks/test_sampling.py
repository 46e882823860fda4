"""Negatives and candidates per second."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ncf import NegativeSampler, Split, sample_candidates

Rate = Callable[..., None]


@pytest.mark.parametrize("law", ["uniform", "popularity"])
def test_negatives_in_user_order(rate: Rate, split: Split, law: str) -> None:
    sampler = NegativeSampler(split.train, law=law)
    users = split.train.users.sort().values
    rate(lambda: sampler.sample(users, 4), 4 * len(users), "negatives")


def test_negatives_in_random_order(rate: Rate, split: Split) -> None:
    sampler = NegativeSampler(split.train)
    users = split.train.users[torch.randperm(len(split.train), generator=torch.Generator().manual_seed(0))]
    rate(lambda: sampler.sample(users, 4), 4 * len(users), "negatives")


def test_ranking_candidates(rate: Rate, split: Split) -> None:
    rate(lambda: sample_candidates(split), 100 * len(split.test), "candidates")
