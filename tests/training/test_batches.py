from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from ncf import Interactions, NegativeSampler
from ncf.training.batches import TrainingBatches

from ..conftest import random_interactions


def test_fault_6_negatives_are_fresh_in_every_epoch() -> None:
    batches = TrainingBatches(random_interactions(10, 50, 5), batch_size=10_000)
    negatives = []
    for epoch in (0, 1, 0):
        (batch,) = batches.epoch(epoch)
        order = (batch.users[0] * 50 + batch.items[0, :, 0]).argsort()
        negatives.append(batch.items[0, order, 1:])
    assert torch.equal(negatives[0], negatives[2])
    assert float((negatives[0] == negatives[1]).float().mean()) < 0.2


@pytest.mark.parametrize("per_chunk", [1, 3])
def test_fault_16_every_positive_is_in_some_batch(interactions: Interactions, per_chunk: int) -> None:
    batches = TrainingBatches(interactions, batch_size=35, negatives=4)
    pairs, sizes = [], []
    for chunk in batches.epoch(0, per_chunk=per_chunk):
        pairs += (chunk.users * 60 + chunk.items[..., 0]).flatten().tolist()
        sizes += [chunk.users.shape[1]] * len(chunk.users)
    assert sorted(pairs) == sorted((interactions.users * 60 + interactions.items).tolist())
    assert len(sizes) == len(batches)
    assert sizes == [7] * (480 // 7) + [480 % 7]


def test_a_user_who_has_touched_everything_is_left_out() -> None:
    train = Interactions.from_arrays([0, 0, 0, 1], [0, 1, 2, 0])
    (batch,) = TrainingBatches(train, batch_size=100).epoch(0)
    assert batch.users.flatten().tolist() == [1]
    with pytest.raises(ValueError, match="nothing to train on"):
        TrainingBatches(Interactions.from_arrays([0, 0], [0, 1]), batch_size=100)


@pytest.mark.parametrize("law", ["uniform", "popularity"])
def test_fault_10_no_negative_is_a_training_item_of_its_user(interactions: Interactions, law: str) -> None:
    own = set((interactions.users * 60 + interactions.items).tolist())
    batches = TrainingBatches(interactions, batch_size=64, negatives=6, negative_sampling=law, seed=3)  # type: ignore[arg-type]
    for chunk in batches.epoch(1, per_chunk=2):
        users, items = chunk.users, chunk.items
        assert users.dtype == items.dtype == torch.int64
        assert items.shape == (*users.shape, 7)
        pairs = users[..., None] * 60 + items
        assert set(pairs[..., 0].flatten().tolist()) <= own
        assert not set(pairs[..., 1:].flatten().tolist()) & own


@pytest.mark.parametrize("batches_at_once", [1, 2, 3])
def test_the_order_is_a_fresh_permutation_in_every_epoch(
    batches_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingBatches, "_batches_of_block", lambda self: batches_at_once)
    batches = TrainingBatches(random_interactions(5, 8, 2), batch_size=8, negatives=1)
    firsts = torch.zeros(10, dtype=torch.int64)
    for epoch in range(1000):
        batch = list(batches.epoch(epoch))[1]
        firsts[(batches.users * 8 + batches.items == batch.users[0, 0] * 8 + batch.items[0, 0, 0])] += 1
    assert chisquare(firsts.numpy()).pvalue > 1e-4


def test_an_epoch_depends_on_seed_and_number_alone(interactions: Interactions) -> None:
    def items(number: int, seed: int = 0, before: int = 0) -> torch.Tensor:
        batches = TrainingBatches(interactions, batch_size=64, seed=seed)
        for epoch in range(before):
            next(batches.epoch(epoch))
        return torch.cat([chunk.items.flatten() for chunk in batches.epoch(number)])

    assert torch.equal(items(2), items(2, before=2))
    assert not torch.equal(items(2), items(3))
    assert not torch.equal(items(2), items(2, seed=1))


def test_chunks_hold_the_same_batches_as_single_ones(interactions: Interactions) -> None:
    batches = TrainingBatches(interactions, batch_size=35)
    single = [chunk.items[0] for chunk in batches.epoch(0)]
    chunked = [items for chunk in batches.epoch(0, per_chunk=5) for items in chunk.items]
    assert all(torch.equal(a, b) for a, b in zip(single, chunked, strict=True))


@pytest.mark.parametrize("batch_size", [50, 60])  # 480 positives: 48 whole batches, and 40 of 12
def test_every_place_to_go_on_from(interactions: Interactions, batch_size: int) -> None:
    batches = TrainingBatches(interactions, batch_size=batch_size)
    whole = [chunk.users for chunk in batches.epoch(0)]
    for start in range(len(batches) + 1):
        rest = [chunk.users for chunk in batches.epoch(0, start=start)]
        assert all(torch.equal(a, b) for a, b in zip(whole[start:], rest, strict=True))


def test_after_the_last_and_smaller_batch_nothing_is_left(interactions: Interactions) -> None:
    batches = TrainingBatches(interactions, batch_size=35)
    assert 480 % 7
    assert [len(list(batches.epoch(0, start=len(batches) - back))) for back in (0, 1, 2)] == [0, 1, 2]


def test_sizes(interactions: Interactions) -> None:
    batches = TrainingBatches(interactions, batch_size=3, negatives=4)  # rounded up to one positive
    assert len(batches) == 480
    assert batches.samples == 2400
    for arguments in ({"start": -1}, {"start": 481}, {"per_chunk": 0}):
        ((name, value),) = arguments.items()
        with pytest.raises(ValueError, match=f"{name} = {value}"):
            next(batches.epoch(0, **arguments))
    for arguments in ({"batch_size": 0}, {"batch_size": 5, "negatives": 0}):
        with pytest.raises(ValueError, match="= 0: give a whole number of at least 1"):
            TrainingBatches(interactions, **arguments)


@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("law", ["uniform", "popularity"])
def test_shared_negatives_that_a_user_has_seen_are_marked(
    interactions: Interactions, law: str, kernel: bool
) -> None:
    own = set((interactions.users * 60 + interactions.items).tolist())
    batches = TrainingBatches(
        interactions, batch_size=64, shared_negatives=150, negative_sampling=law, seed=3
    )  # type: ignore[arg-type]
    batches._by_kernel = batches._by_kernel and kernel
    shared_items, positives = [], 0
    for chunk in batches.epoch(1, per_chunk=2):
        assert chunk.shared is not None
        assert chunk.seen is not None
        assert chunk.seen_offsets is not None
        assert chunk.items.shape[2] == 1
        for k, (users, items) in enumerate(zip(chunk.users, chunk.shared, strict=True)):
            pairs = (users[:, None] * 60 + items).reshape(-1).tolist()
            expected = [place for place, pair in enumerate(pairs) if pair in own]
            assert chunk.seen[chunk.seen_offsets[k] : chunk.seen_offsets[k + 1]].tolist() == expected
            shared_items.append(items)
            positives += len(users)
    assert positives == len(interactions)
    assert not torch.equal(shared_items[0], shared_items[1])
    resumed = [chunk.shared for chunk in batches.epoch(1, start=3)]
    assert torch.equal(resumed[0][0], shared_items[3])  # type: ignore[index]


@pytest.mark.parametrize("law", ["uniform", "popularity"])
@pytest.mark.parametrize("shared", [False, True])
def test_the_softmax_corrects_by_how_often_items_are_drawn(
    interactions: Interactions, law: str, shared: bool
) -> None:
    sampler = NegativeSampler(interactions, law=law, seed=1)  # type: ignore[arg-type]
    draws = 40_000
    drawn = sampler.shared(1, draws)[0] if shared else sampler.sample(torch.tensor([7]), draws)[0]
    of_items, of_users = sampler.log_expected(draws, shared)
    expected = ((0.0 if of_items is None else of_items) - of_users[7]).exp().expand(60)
    seen = drawn.bincount(minlength=60)
    present = seen > 0
    torch.testing.assert_close(seen[present].float(), expected[present], rtol=0.2, atol=40)
    assert float(expected[present].sum()) == pytest.approx(draws, rel=1e-3)


@pytest.mark.parametrize(
    "options", [{"negatives": 3}, {"shared_negatives": 5}, {"negative_sampling": "popularity"}]
)
@pytest.mark.parametrize("batches_at_once", [1, 4])
def test_an_epoch_of_several_blocks(
    interactions: Interactions, options: dict[str, Any], batches_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each positive once, whole batches, and the same batches wherever the epoch is resumed and however chunked."""
    batches = TrainingBatches(interactions, batch_size=30, seed=5, **options)
    whole_epoch = torch.cat([chunk.users.flatten() for chunk in batches.epoch(2)])
    monkeypatch.setattr(TrainingBatches, "_batches_of_block", lambda self: batches_at_once)
    single = list(batches.epoch(2))
    assert len(single) == len(batches)
    assert [chunk.users.shape[1] for chunk in single[:-1]] == [batches.positives_per_batch] * (
        len(batches) - 1
    )
    pairs = torch.cat([(chunk.users * 60 + chunk.items[..., 0]).flatten() for chunk in single])
    assert (
        pairs.sort().values.tolist() == (interactions.users * 60 + interactions.items).sort().values.tolist()
    )
    assert not torch.equal(pairs // 60, whole_epoch)
    seen = set(pairs.tolist())
    for chunk in single:
        assert not set((chunk.users[..., None] * 60 + chunk.items[..., 1:]).flatten().tolist()) & seen
    for start in range(len(batches) + 1):
        for per_chunk in (1, 3):
            found = [
                batch
                for chunk in batches.epoch(2, start, per_chunk)
                for batch in zip(chunk.users, chunk.items, strict=True)
            ]
            assert len(found) == len(batches) - start
            for (users, items), chunk in zip(found, single[start:], strict=True):
                assert torch.equal(users, chunk.users[0])
                assert torch.equal(items, chunk.items[0])


def test_a_process_with_few_interactions_has_empty_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingBatches, "_batches_of_block", lambda self: 2)
    train = Interactions.from_arrays([0, 1, 2], [0, 1, 2])
    batches = TrainingBatches(train, batch_size=50, rank=1)
    batches.balance_across_ranks([97, 3])
    chunks = list(batches.epoch(0))
    assert len(chunks) == len(batches) == 10
    assert sorted(int(user) for chunk in chunks for user in chunk.users.flatten()) == [0, 1, 2]
    assert sum(chunk.users.numel() == 0 for chunk in chunks) >= 7


def test_blocks_have_whole_chunks_and_are_small() -> None:
    train = random_interactions(10, 50, 5)
    assert TrainingBatches(train, batch_size=2045)._batches_of_block() % 64 == 0
    assert TrainingBatches(train, batch_size=10**9)._batches_of_block() == 1
    assert 409 * 44 * TrainingBatches(train, batch_size=2045)._batches_of_block() <= 1 << 26
