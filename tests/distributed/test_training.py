"""The Trainer over several processes against plain steps in one, on the same batches."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from ncf import (
    Interactions,
    NeuMF,
    Split,
    Trainer,
    evaluate,
    leave_one_out,
    recommend,
    sample_candidates,
    whole_catalogue,
)
from ncf.distributed.sharding import shard
from ncf.models.base import EmbeddingModel
from ncf.training.batches import TrainingBatches

from .test_sharding import PLANS, _Reference, check_tables
from .workers import launch

RATE = 0.1
USERS, ITEMS = 40, 70


def build(device: str | None = None) -> NeuMF:
    return NeuMF(USERS, ITEMS, factors=16, layers=(32, 16), init_std=0.5, seed=3, device=device)


def data() -> Split:
    """Users of very different sizes; the even ones, of one rank in two, have most."""
    generator = torch.Generator().manual_seed(0)
    users = torch.cat(
        [torch.arange(USERS).repeat(4), torch.randint(0, USERS // 2, (300,), generator=generator) * 2]
    )
    items = torch.randint(0, ITEMS, (len(users),), generator=generator)
    items[:ITEMS] = torch.arange(ITEMS)
    return leave_one_out(Interactions.from_arrays(users, items))


def one_process(
    split: Split, world: int, optimizer: str, plan: str | Mapping[str, str]
) -> tuple[NeuMF, list[float], list[int]]:
    """What the processes do, by hand: all their batches of a step are one batch."""
    model = build()
    reference = _Reference(model, optimizer, RATE, plan, world)
    batches = [
        TrainingBatches(split.for_rank(rank, world).train, batch_size=100, seed=5, rank=rank)
        for rank in range(world)
    ]
    for each in batches:
        each.balance_across_ranks([len(other.users) for other in batches])
    losses, sizes = [], []
    for epoch in range(2):
        for step, chunks in enumerate(zip(*(each.epoch(epoch) for each in batches), strict=True)):
            logits = torch.cat([model(chunk.users[0], chunk.items[0]) for chunk in chunks])
            labels = torch.zeros_like(logits)
            labels[:, 0] = 1
            loss = binary_cross_entropy_with_logits(logits, labels)
            reference.rate = RATE * (1 - (epoch * len(batches[0]) + step) / (2 * len(batches[0])))
            reference.step(loss)
            losses.append(float(loss))
            sizes.append(len(logits))
    return model, losses, sizes


def mean_of(losses: list[float], sizes: list[int]) -> float:
    """The mean over samples: a small batch counts less."""
    return sum(loss * size for loss, size in zip(losses, sizes, strict=False)) / sum(sizes[: len(losses)])


def training(rank: int, world: int) -> None:
    split = data()
    mine = split.for_rank(rank, world)
    validation = sample_candidates(split, "validation", num_negatives=20)
    judged = [sample_candidates(split, num_negatives=20), whole_catalogue(split)]
    plans = PLANS[2:] if world == 2 else PLANS[3:]
    for optimizer, plan in [("sgd", PLANS[1]), *(("rowwise_adagrad", plan) for plan in plans)]:
        local, losses, sizes = one_process(split, world, optimizer, plan)
        sharded = shard(build("meta"), plan, optimizer=optimizer, learning_rate=RATE, verbose=False)  # type: ignore[arg-type]
        trainer = Trainer(
            sharded, epochs=2, batch_size=100, optimizer="sgd", learning_rate=RATE, selection="last", seed=5
        )
        history = trainer.fit(mine, validation.for_rank(rank, world))
        steps = len(losses) // 2
        for epoch in range(2):
            assert (
                abs(history.loss[epoch] - mean_of(losses[epoch * steps : (epoch + 1) * steps], sizes)) < 1e-5
            )
        check_tables(sharded, local, 1e-5)
        for name, value in local.state_dict().items():
            if "embedding_bags" not in name:
                torch.testing.assert_close(sharded.state_dict()[name], value, atol=1e-5, rtol=0)
        assert history.hr[-1] == evaluate(local, validation).hr
        assert history.samples[0] == 5 * len(split.train.users)
        compare_rankings(rank, world, sharded, local, judged, split)
    bad_input(rank, world)


def bad_input(rank: int, world: int) -> None:
    """Each is the same clear error on every rank, whichever of them is at fault."""
    split = data()
    sharded = shard(build("meta"), "table_wise", verbose=False)
    with pytest.raises(
        ValueError, match=r"user \d+ is trained on by more than one process: give each its own"
    ):
        Trainer(sharded, selection="last").fit(split)
    with pytest.raises(ValueError, match=r"user \d+ is evaluated by more than one process"):
        evaluate(sharded, sample_candidates(split, num_negatives=20))
    mine = split.for_rank(rank, world)
    everything = Interactions(torch.ones(ITEMS).long(), torch.arange(ITEMS), None, USERS, ITEMS)
    full = Split(everything if rank == 1 else mine.train, mine.validation, mine.test)
    with pytest.raises(ValueError, match="there is nothing to train on: each user has"):
        Trainer(sharded, selection="last").fit(full)
    with pytest.raises(ValueError, match=f"gives 1 positives to a step of {world} processes: give at least"):
        Trainer(sharded, selection="last", batch_size=5).fit(mine)
    with pytest.raises(ValueError, match="needs the validation part"):
        Trainer(sharded).fit(mine if rank else mine.with_validation_in_train())
    with pytest.raises(ValueError, match="train what shard"):
        Trainer(sharded.module)
    with pytest.raises(ValueError, match="compile=True is for a model in one process"):
        Trainer(sharded, compile=True)
    with torch.no_grad():
        sharded.module.head.bias.fill_(torch.nan if rank == 0 else 0.0)
    with pytest.raises(ValueError, match="the score of item"):
        evaluate(sharded, sample_candidates(split, num_negatives=20).for_rank(rank, world))
    with pytest.raises(ValueError, match="is NaN"):
        evaluate(sharded, whole_catalogue(split).for_rank(rank, world))
    with pytest.raises(ValueError, match="is NaN"):
        recommend(sharded, [rank])
    with pytest.raises(ValueError, match="k = 0" if rank else "rank 1: k = 0"):
        recommend(sharded, [rank], k=0 if rank else 3)
    with pytest.raises(FloatingPointError, match="the loss is nan at epoch 1, step 1"):
        Trainer(sharded, selection="last").fit(mine)


def compare_rankings(
    rank: int, world: int, sharded: torch.nn.Module, local: EmbeddingModel, judged: list, split: Split
) -> None:
    for candidates in judged:
        expected = evaluate(local, candidates)
        for block_users in (None, 3):
            ranking = evaluate(sharded, candidates.for_rank(rank, world), block_users=block_users)
            assert ranking.users.sort().values.tolist() == expected.users.sort().values.tolist()
            order, theirs = ranking.users.argsort(), expected.users.argsort()
            assert ranking.ranks[order].tolist() == expected.ranks[theirs].tolist()
            assert ranking.num_candidates[order].tolist() == expected.num_candidates[theirs].tolist()
    users = torch.arange(rank, USERS - rank, 3)  # other users, and another number of them, on each rank
    items, scores = recommend(sharded, users, k=5, exclude=split.train)
    local_items, local_scores = recommend(local, users, k=5, exclude=split.train)
    assert items == local_items
    torch.testing.assert_close(scores, local_scores, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_training_and_ranking_equal_one_process(world: int) -> None:
    launch(training, world)
