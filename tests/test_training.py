from __future__ import annotations

import pytest
import torch

from ncf import GMF, History, Interactions, NeuMF, Split, Trainer, evaluate, sample_candidates
from ncf.batches import TrainingBatches

from .conftest import random_interactions


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def test_the_loss_falls(split: Split) -> None:
    history = Trainer(NeuMF(40, 60, init_std=0.1), epochs=8, batch_size=64, learning_rate=1e-2).fit(split)
    assert history.loss[-1] < 0.9 * history.loss[0]
    assert history.epochs == list(range(1, 9))
    assert history.samples_per_second > 0


def test_fault_5_the_learning_rate_reaches_the_optimizer(split: Split) -> None:
    moved = []
    for rate in (1e-4, 1e-2):
        model = GMF(40, 60)
        before = weights(model).clone()
        Trainer(model, epochs=1, learning_rate=rate, schedule="constant", selection="last").fit(split)
        moved.append(float((weights(model) - before).abs().max()))
    assert moved[1] > 20 * moved[0]


def test_the_learning_rate_falls_linearly_to_nothing(split: Split) -> None:
    trainer = Trainer(GMF(40, 60), epochs=2, batch_size=100, learning_rate=0.5, selection="last")
    seen = []
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda *a, **kw: (seen.append(trainer.optimizer.param_groups[0]["lr"]), step())[
        1
    ]  # type: ignore[method-assign,func-returns-value]
    trainer.fit(split)
    total = len(seen)
    assert seen == pytest.approx([0.5 * (1 - k / total) for k in range(total)])


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


def test_an_epoch_can_be_taken_up_in_its_middle(interactions: Interactions) -> None:
    batches = TrainingBatches(interactions, batch_size=50)
    whole = [chunk.items for chunk in batches.epoch(3)]
    rest = [chunk.items for chunk in batches.epoch(3, start=5)]
    assert all(torch.equal(a, b) for a, b in zip(whole[5:], rest, strict=True))


def test_a_user_who_has_touched_everything_is_left_out() -> None:
    train = Interactions.from_arrays([0, 0, 0, 1], [0, 1, 2, 0])
    (batch,) = TrainingBatches(train, batch_size=100).epoch(0)
    assert batch.users.flatten().tolist() == [1]
    with pytest.raises(ValueError, match="nothing to train on"):
        TrainingBatches(Interactions.from_arrays([0, 0], [0, 1]), batch_size=100)


def test_the_best_epoch_on_the_validation_part_is_kept(split: Split) -> None:
    model = NeuMF(40, 60, init_std=0.1)
    candidates = sample_candidates(split, "validation", num_negatives=20)
    history = Trainer(model, epochs=6, batch_size=64, learning_rate=2e-2).fit(split, candidates)
    best = max(value for value in history.ndcg if value is not None)
    assert history.ndcg[history.best_epoch - 1] == best
    assert evaluate(model, candidates).ndcg == pytest.approx(best, abs=1e-12)


def test_fault_7_selection_by_validation_never_sees_the_test_part(split: Split) -> None:
    shifted = Interactions(
        split.test.users, (split.test.items + 1) % 60, None, split.test.num_users, split.test.num_items
    )
    results = []
    for test in (split.test, shifted):
        model = GMF(40, 60)
        candidates = sample_candidates(split, "validation", num_negatives=20)
        Trainer(model, epochs=3, batch_size=64).fit(Split(split.train, split.validation, test), candidates)
        results.append(weights(model))
    assert torch.equal(results[0], results[1])


def test_paper_selection_says_so(split: Split) -> None:
    history = Trainer(GMF(40, 60), epochs=2, selection="paper").fit(split)
    assert "chosen on the test part" in str(history)


def test_fault_4_repeated_evaluation_gives_the_same_figures(split: Split) -> None:
    model, candidates = GMF(40, 60), sample_candidates(split, num_negatives=20)
    assert len({str(evaluate(model, candidates)) for _ in range(3)}) == 1


def test_patience_stops(split: Split) -> None:
    history = Trainer(GMF(40, 60), epochs=50, learning_rate=0.0, patience=2).fit(split)
    assert history.epochs == [1, 2, 3]
    assert history.best_epoch == 1


def test_ctrl_c_leaves_the_best_model_so_far(split: Split) -> None:
    kept: dict[int, torch.Tensor] = {}
    model = NeuMF(40, 60, init_std=0.1)

    def interrupt(history: History) -> None:
        kept[len(history)] = weights(model).clone()
        if len(history) == 3:
            raise KeyboardInterrupt

    history = Trainer(model, epochs=9, batch_size=64).fit(split, on_epoch=interrupt)
    assert history.interrupted
    assert len(history) == 3
    assert torch.equal(weights(model), kept[history.best_epoch])


def test_a_loss_that_is_no_number_names_epoch_and_step(split: Split) -> None:
    model = GMF(40, 60)
    with torch.no_grad():
        model.embeddings.weight("item_gmf").fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="epoch 1, step 1"):
        Trainer(model, epochs=1).fit(split)


def test_dropout_comes_from_the_seed_and_leaves_the_global_generator_alone(split: Split) -> None:
    results = []
    for _ in range(2):
        model = NeuMF(40, 60, dropout=0.5)
        state = torch.get_rng_state()
        Trainer(model, epochs=2, batch_size=64, selection="last").fit(split)
        assert torch.equal(state, torch.get_rng_state())
        results.append(weights(model))
    assert torch.equal(results[0], results[1])


def test_weight_decay_shrinks(split: Split) -> None:
    norms = []
    for decay in (0.0, 0.1):
        model = GMF(40, 60, init_std=0.1)
        Trainer(model, epochs=2, weight_decay=decay, selection="last").fit(split)
        norms.append(float(weights(model).norm()))
    assert norms[1] < norms[0]


@pytest.mark.parametrize("loss", ["bce", "bpr"])
@pytest.mark.slow
def test_the_compiled_step_trains_as_the_eager_one(split: Split, loss: str) -> None:
    results, losses = [], []
    for compiled in (False, True):
        model = NeuMF(40, 60, factors=4, layers=(8, 4), init_std=0.1)
        trainer = Trainer(
            model,
            epochs=2,
            batch_size=400,
            weight_decay=1e-4,
            loss=loss,
            compile=compiled,
            selection="last",  # type: ignore[arg-type]
        )
        losses.append(trainer.fit(split).loss)
        results.append(weights(model))
    # The head's bias comes last; BPR's loss does not depend on it, so Adam there magnifies rounding errors.
    end = None if loss == "bce" else -1
    torch.testing.assert_close(results[0][:end], results[1][:end], atol=2e-5, rtol=1e-4)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs = 0"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"negatives": 0}, "negatives = 0"),
        ({"loss": "hinge"}, "loss = 'hinge'"),
        ({"selection": "test"}, "selection = 'test'"),
        ({"schedule": "cosine"}, "schedule = 'cosine'"),
        ({"optimizer": "lion"}, "optimizer = 'lion'"),
        ({"learning_rate": -1.0}, r"learning_rate = -1\.0"),
        ({"learning_rate": float("nan")}, "learning_rate = nan"),
        ({"patience": 0}, "patience = 0"),
    ],
)
def test_bad_arguments(split: Split, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer(GMF(40, 60), **arguments).fit(split)


def test_a_split_that_does_not_fit(split: Split) -> None:
    with pytest.raises(ValueError, match="num_users = 40, the model 39"):
        Trainer(GMF(39, 60)).fit(split)
    with pytest.raises(ValueError, match="needs the validation part"):
        Trainer(GMF(40, 60)).fit(split.merged())
    with pytest.raises(ValueError, match="nothing to train on"):
        Trainer(GMF(40, 60)).fit(Split(None, None, split.test))
