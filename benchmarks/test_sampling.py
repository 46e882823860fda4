"""Negatives and candidates per second."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ncf import NegativeSampler, Split, sample_candidates

Rate = Callable[..., None]
_BYTES = 16  # a random number read and an item written, at the least


@pytest.mark.parametrize("law", ["uniform", "popularity"])
def test_negatives_in_user_order(rate: Rate, split: Split, law: str, copy_bandwidth: float) -> None:
    sampler = NegativeSampler(split.train, law=law)
    users = split.train.users.sort().values
    rate(
        lambda: sampler.sample(users, 4), 4 * len(users), "negatives", copy_bandwidth=_BYTES / copy_bandwidth
    )


def test_negatives_in_random_order(rate: Rate, split: Split, copy_bandwidth: float) -> None:
    sampler = NegativeSampler(split.train)
    users = split.train.users[torch.randperm(len(split.train), generator=torch.Generator().manual_seed(0))]
    rate(
        lambda: sampler.sample(users, 4), 4 * len(users), "negatives", copy_bandwidth=_BYTES / copy_bandwidth
    )


def test_ranking_candidates(rate: Rate, split: Split, copy_bandwidth: float) -> None:
    count = 100 * len(split.test)
    rate(lambda: sample_candidates(split), count, "candidates", copy_bandwidth=_BYTES / copy_bandwidth)
