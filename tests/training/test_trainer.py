from __future__ import annotations

from typing import Any

import pytest
import torch

from ncf import (
    GMF,
    History,
    Interactions,
    MatrixFactorization,
    NeuMF,
    Split,
    Trainer,
    evaluate,
    leave_one_out,
    sample_candidates,
    whole_catalogue,
)
from ncf.training import trainer as trainer_module
from ncf.training.batches import Batch, TrainingBatches
from ncf.training.losses import CosineContrastive, SampledSoftmax
from ncf.training.native_step import NativeStep
from ncf.training.steps import EagerStep


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
    assert "chosen on the test set" in str(history)


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

    def interrupt(history: History, _: object) -> None:
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
        ({"epochs": 2.5}, r"epochs = 2\.5: give a whole number of at least 1"),
        ({"batch_size": "many"}, "batch_size = 'many': give a whole number"),
        ({"learning_rate": "high"}, "learning_rate = 'high': give a finite number"),
        ({"seed": 0.5}, r"seed = 0\.5: give a whole number"),
        ({"k": 0}, "k = 0"),
        ({"threads": 0}, "threads = 0"),
        ({"negative_sampling": "pop"}, "negative_sampling = 'pop': choose one of 'uniform', 'popularity'"),
        ({"selection": "last", "patience": 1}, "patience waits for a better epoch"),
        ({"optimizer": torch.optim.AdamW, "weight_decay": 0.1}, "has its own learning_rate and weight_decay"),
        ({"optimizer": torch.optim.AdamW([torch.zeros(1)])}, "^optimizer = AdamW: choose one of 'adamw'"),
        (
            {"loss": lambda logits: logits},
            r"loss returned shape \[2, 5\] for logits \[2, 5\]: return a scalar",
        ),
        ({"loss": lambda logits: 0.0}, "loss returned float"),
        ({"compile": "yes"}, "compile = 'yes': choose one of None, True, False"),
    ],
)
def test_bad_arguments(split: Split, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer(GMF(40, 60), **arguments).fit(split)


def test_a_split_that_does_not_fit(split: Split) -> None:
    with pytest.raises(TypeError, match=r"split must be Split or Interactions, got list: leave_one_out"):
        Trainer(GMF(40, 60)).fit([1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_users = 40, the model 39"):
        Trainer(GMF(39, 60)).fit(split)


def test_the_last_epoch_is_kept_where_nothing_is_selected(split: Split) -> None:
    kept = []
    model = NeuMF(40, 60, init_std=0.1)
    history = Trainer(model, epochs=4, batch_size=64, selection="last").fit(
        split, on_epoch=lambda *_: kept.append(weights(model).clone())
    )
    assert history.best_epoch == 4
    assert torch.equal(weights(model), kept[-1])
    assert not torch.equal(kept[-1], kept[-2])
    assert history.hr == [None] * 4


def test_the_paper_keeps_the_epoch_with_the_best_hit_rate(split: Split) -> None:
    model = NeuMF(40, 60, init_std=0.1)
    candidates = sample_candidates(split, num_negatives=20)
    history = Trainer(model, epochs=6, batch_size=64, learning_rate=2e-2, selection="paper", k=3).fit(
        split, candidates
    )
    rates = [rate for rate in history.hr if rate is not None]
    assert history.best_epoch == 1 + rates.index(max(rates))
    assert evaluate(model, candidates, k=3).hr == pytest.approx(max(rates))


def test_it_may_be_judged_on_the_whole_catalogue(split: Split) -> None:
    catalogue = whole_catalogue(split, "validation")
    model = GMF(40, 60)
    history = Trainer(model, epochs=2).fit(split, catalogue)  # type: ignore[arg-type]
    best = history.ndcg[history.best_epoch - 1]
    assert evaluate(model, catalogue).ndcg == pytest.approx(best)


def stop_at(patch: pytest.MonkeyPatch, kind: type[EagerStep] | type[NativeStep], at: int) -> None:
    """Ctrl-C in a given step of a run."""
    original, done = kind.__call__, []

    def step(self: Any, chunk: Batch, rates: Any) -> torch.Tensor:
        done.extend(rates)
        if len(done) > at:
            raise KeyboardInterrupt
        return original(self, chunk, rates)

    patch.setattr(kind, "__call__", step)


@pytest.mark.parametrize(("at", "ended"), [(0, 0), (3, 0), (20, 2)])
@pytest.mark.parametrize(("compiled", "kind"), [(None, NativeStep), (False, EagerStep)])
def test_ctrl_c_in_the_middle_of_an_epoch(
    split: Split, monkeypatch: pytest.MonkeyPatch, at: int, ended: int, compiled: bool | None, kind: Any
) -> None:
    model = NeuMF(40, 60, init_std=0.1)
    kept = {0: weights(model).clone()}
    # 400 positives, 50 in a batch: 8 steps an epoch
    trainer = Trainer(model, epochs=9, batch_size=250, compile=compiled, checkpoint_every=1)
    stop_at(monkeypatch, kind, at)
    history = trainer.fit(split, on_epoch=lambda h, _: kept.update({len(h): weights(model).clone()}))
    assert history.interrupted
    assert len(history) == ended
    assert torch.equal(weights(model), kept[history.best_epoch])
    assert not model.training
    assert "interrupted" in str(history)


def test_a_loss_that_diverges_later_leaves_the_best_weights(split: Split) -> None:
    model = NeuMF(40, 60, init_std=0.1)
    kept = {}

    def poison(history: History, _: object) -> None:
        kept[len(history)] = weights(model).clone()
        if len(history) == 2:
            with torch.no_grad():
                model.head.weight.fill_(float("inf"))

    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) at epoch 3, step 1: lower the"):
        Trainer(model, epochs=5, batch_size=64).fit(split, on_epoch=poison)
    assert any(torch.equal(weights(model), each) for each in kept.values())
    assert bool(weights(model).isfinite().all())


def test_bpr_learns_to_rank(split: Split) -> None:
    def auc(model: GMF) -> float:
        train = split.train
        every = model.score(torch.arange(40), torch.arange(60).expand(40, -1))
        own = torch.zeros(40, 60, dtype=torch.bool)
        own[train.users, train.items] = True
        return float(
            torch.stack(
                [(a[m][:, None] > a[~m]).float().mean() for a, m in zip(every, own, strict=True)]
            ).mean()
        )

    model = GMF(40, 60, init_std=0.1)
    before = auc(model)
    history = Trainer(model, epochs=20, batch_size=64, learning_rate=1e-2, loss="bpr", selection="last").fit(
        split
    )
    assert history.loss[0] == pytest.approx(0.693, abs=0.01)
    assert history.loss[-1] < 0.8 * history.loss[0]
    assert auc(model) > before + 0.2


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "adagrad", "sgd"])
def test_one_step_is_that_of_pytorchs_optimizer(split: Split, optimizer: str) -> None:
    """Against a step written with PyTorch alone, on the very batch that the trainer draws.

    In double precision: Adam's first step is nearly the gradient's sign, which magnifies rounding errors.
    """
    ours, theirs = (NeuMF(40, 60, init_std=0.5).double() for _ in range(2))
    trainer = Trainer(
        ours,
        epochs=1,
        batch_size=10**6,
        learning_rate=0.1,
        weight_decay=0.01 if optimizer == "adam" else 0.0,
        optimizer=optimizer,  # type: ignore[arg-type]
        selection="last",
        seed=8,
    )
    history = trainer.fit(split)
    (batch,) = TrainingBatches(split.train, batch_size=10**6, seed=8).epoch(0)
    users, items = batch.users[0], batch.items[0]
    logits = theirs(users[:, None].expand_as(items).reshape(-1), items.reshape(-1))
    labels = torch.tensor([1.0, 0, 0, 0, 0], dtype=torch.float64).repeat(len(users))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    loss.backward()
    name = {"adam": "Adam", "adamw": "AdamW", "adagrad": "Adagrad", "sgd": "SGD"}[optimizer]
    decay = (
        0.01 if optimizer == "adam" else 0.0
    )  # the others decay what PyTorch's do not: see test_optimizers
    getattr(torch.optim, name)(theirs.parameters(), lr=0.1, weight_decay=decay).step()
    torch.testing.assert_close(weights(ours), weights(theirs), atol=1e-8, rtol=1e-6)
    assert history.loss == [pytest.approx(float(loss.detach()), rel=1e-5)]


def test_the_seed_of_dropout_matters(split: Split) -> None:
    results = []
    for seed in (0, 1):
        model = NeuMF(40, 60, dropout=0.5, init_std=0.1)
        trainer = Trainer(model, epochs=1, batch_size=10**6, selection="last", seed=seed)
        trainer.fit(split)
        results.append(weights(model))
    assert not torch.equal(results[0], results[1])


def test_threads_are_set_back(split: Split) -> None:
    before = torch.get_num_threads()
    seen = []
    Trainer(GMF(40, 60), epochs=1, threads=2).fit(
        split, on_epoch=lambda *_: seen.append(torch.get_num_threads())
    )
    assert seen == [2]
    assert torch.get_num_threads() == before


def test_the_vocabularies_come_with_the_training() -> None:
    users = [f"u{n % 7}" for n in range(42)]
    split = leave_one_out(Interactions.from_arrays(users, [(n * 5) % 23 for n in range(42)]))
    model = GMF(split.train.num_users, split.train.num_items)
    Trainer(model, epochs=1).fit(split)
    assert model.user_ids is split.train.user_ids
    assert model.item_ids is split.train.item_ids


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({}, NativeStep),
        ({"optimizer": "adam"}, NativeStep),
        ({"loss": "bpr"}, NativeStep),
        ({"loss": "softmax", "shared_negatives": 20}, NativeStep),
        ({"compile": False}, EagerStep),
        ({"optimizer": "sgd"}, NativeStep),
    ],
)
def test_which_step_is_taken(split: Split, monkeypatch: pytest.MonkeyPatch, more: dict, kind: type) -> None:
    trainer = Trainer(GMF(40, 60), **more)
    batches = TrainingBatches(split.train, batch_size=100)
    assert type(trainer._step(batches)) is kind
    monkeypatch.setattr(trainer_module, "can_be_native", lambda *of, **more: False)
    assert type(trainer._step(batches)) is EagerStep  # where ncf was installed without a C compiler


def test_compiling_is_for_the_step_of_a_gpu(split: Split) -> None:
    with pytest.raises(ValueError, match="compile=True is for the fused step of NVIDIA GPUs"):
        Trainer(GMF(40, 60), compile=True).fit(split)


def test_a_loss_an_optimizer_and_a_schedule_of_ones_own(split: Split) -> None:
    """The same as ncf's own, written by hand: the same weights."""
    seen = []

    def loss(logits: torch.Tensor) -> torch.Tensor:
        labels = torch.zeros_like(logits)
        labels[:, 0] = 1
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)

    def falling(step: int, total: int) -> float:
        seen.append((step, total))
        return 1 - step / total

    ours, theirs = (NeuMF(40, 60, init_std=0.5).double() for _ in range(2))
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 250, "seed": 3}
    expected = Trainer(ours, **settings, optimizer="sgd", learning_rate=0.5).fit(split)
    trainer = Trainer(
        theirs,
        **settings,
        loss=loss,
        schedule=falling,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5),
    )
    history = trainer.fit(split)
    torch.testing.assert_close(weights(ours), weights(theirs), atol=1e-9, rtol=1e-6)
    assert history.loss == pytest.approx(expected.loss)
    assert seen == [(step, 16) for step in range(16)]
    assert "loss='tests.training.test_trainer.test_a_loss" in repr(trainer)
    with pytest.raises(TypeError, match=r"optimizer returned list: return a torch\.optim\.Optimizer"):
        Trainer(ours, optimizer=list)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="or give a function such as lambda parameters"):
        Trainer(ours, optimizer=torch.optim.SGD(ours.parameters()))  # type: ignore[arg-type]


def test_all_interactions_can_be_trained_on(interactions: Interactions) -> None:
    model = GMF(40, 60)
    history = Trainer(model, epochs=2).fit(interactions)
    assert (history.selection, history.best_epoch, history.hr) == ("last", 2, [None, None])
    assert history.samples[0] == 5 * len(interactions)
    with pytest.raises(ValueError, match=r'selection = "validation" needs a split, or candidates'):
        Trainer(model, selection="validation").fit(interactions)
    with pytest.raises(ValueError, match="without a validation set none is selected"):
        Trainer(model, patience=2).fit(interactions)
    split = leave_one_out(interactions)
    chosen = Trainer(model, epochs=1).fit(
        interactions, sample_candidates(split, "validation", num_negatives=9)
    )
    assert chosen.selection == "validation"


def test_the_loss_of_an_epoch_is_the_mean_over_its_samples(split: Split) -> None:
    """Three steps of 190, 190 and 20 positives: the last one counts a tenth as much."""
    model = NeuMF(40, 60, init_std=1.0)
    history = Trainer(model, epochs=1, batch_size=950, learning_rate=0.0, seed=4).fit(split)
    assert split.train is not None
    (chunk,) = TrainingBatches(split.train, batch_size=2000, seed=4).epoch(0)
    logits = model(chunk.users[0], chunk.items[0]).detach().double()
    labels = torch.zeros_like(logits)
    labels[:, 0] = 1
    mean = float(torch.nn.functional.binary_cross_entropy_with_logits(logits, labels))
    assert history.loss == [pytest.approx(mean, rel=1e-6)]


def test_on_epoch_gets_the_model_and_can_stop(split: Split) -> None:
    model, seen = GMF(40, 60), []

    def on_epoch(history: History, trained: torch.nn.Module) -> bool:
        seen.append(trained)
        return len(history) == 2

    history = Trainer(model, epochs=5).fit(split, on_epoch=on_epoch)
    assert history.epochs == [1, 2]
    assert seen == [model, model]
    assert not history.interrupted
    with pytest.raises(TypeError, match=r"on_epoch is called as on_epoch\(history, model\)"):
        Trainer(model).fit(split, on_epoch=lambda history: None)  # type: ignore[misc,arg-type]
    with pytest.raises(TypeError, match="on_epoch returned 'stop': return True to stop"):
        Trainer(model).fit(split, on_epoch=lambda *_: "stop")  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("selection", ["validation", "last"])
def test_attack_8_a_model_changed_by_on_epoch_is_an_error(split: Split, selection: str) -> None:
    model = GMF(40, 60)
    trainer = Trainer(model, epochs=2, selection=selection)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"weight was float32 \[40, 8\] on cpu .* float16 .*change and save a copy"
    ):
        trainer.fit(split, on_epoch=lambda _, trained: trained.half() and None)

    def cut(_: History, trained: Any) -> None:
        weight = trained.embeddings.weight("item_gmf")
        weight.data = weight.data[:3]

    with pytest.raises(ValueError, match=r"item_gmf\.weight was float32 \[60, 8\] on cpu .* \[3, 8\]"):
        Trainer(GMF(40, 60), epochs=2, selection=selection).fit(split, on_epoch=cut)  # type: ignore[arg-type]


def numbered(first_user: int, first_item: str) -> Split:
    users = [n % 7 + first_user for n in range(42)]
    return leave_one_out(Interactions.from_arrays(users, [f"{first_item}{(n * 5) % 23}" for n in range(42)]))


def test_data_of_other_raw_ids_is_not_trained_on_and_changes_nothing() -> None:
    split = numbered(0, "a")
    assert split.train is not None
    model = GMF(split.train.num_users, split.train.num_items)
    Trainer(model, epochs=1).fit(split)
    before = weights(model).clone()
    for other, kind in ((numbered(1, "a"), "user"), (numbered(0, "b"), "item")):
        for data in (other, other.train):
            with pytest.raises(ValueError, match=f"different {kind} ids.*user_ids=model.user_ids"):
                Trainer(model, epochs=1).fit(data)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the training data and the candidates number different item ids"):
        Trainer(model, epochs=1).fit(
            split, sample_candidates(numbered(0, "b"), "validation", num_negatives=3)
        )
    assert model.item_ids is split.train.item_ids
    assert torch.equal(weights(model), before)
    plain = Interactions(
        split.train.users, split.train.items, None, split.train.num_users, split.train.num_items
    )
    Trainer(model, epochs=1).fit(plain)  # numbers that are nobody's raw ids
    assert model.item_ids is split.train.item_ids


def test_an_epoch_is_a_line_in_the_log(split: Split, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="ncf.training"):
        Trainer(GMF(40, 60), epochs=2, k=3).fit(split)
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("GMF: epoch 1 of 2: loss 0.69")
    assert "HR@3 0." in second


def test_dropout_leaves_the_generators_of_gpus_alone(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.cuda, "device_count", lambda: 2
    )  # forking all of them is a warning, or an error
    Trainer(NeuMF(40, 60, dropout=0.5), epochs=1).fit(split)


@pytest.mark.parametrize("native", [None, False], ids=["kernel", "eager"])
def test_shared_negatives_and_the_cosine_loss_learn(split: Split, native: bool | None) -> None:
    losses = {}
    for loss in (CosineContrastive(margin=0.2, weight=2.0), SampledSoftmax(0.2)):
        model = MatrixFactorization(40, 60, factors=16, cosine=True)
        trainer = Trainer(
            model,
            epochs=12,
            batch_size=50,
            shared_negatives=20,
            loss=loss,
            learning_rate=2e-2,
            selection="last",
            compile=native,
        )
        losses[type(loss)] = trainer.fit(split).loss
        assert isinstance(
            trainer._step(trainer._batches(split.train)), EagerStep if native is False else NativeStep
        )
        assert losses[type(loss)][-1] < 0.9 * losses[type(loss)][0]


def test_the_default_optimizer_moves_no_row_outside_its_batches() -> None:
    """Users without interactions keep their initial rows to the bit; dense Adam's decay would move them."""
    interactions = Interactions(
        torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 2]), None, num_users=4, num_items=5
    )
    model, start = GMF(4, 5), GMF(4, 5)
    Trainer(model, epochs=2, weight_decay=0.1).fit(interactions)
    moved = (model.embeddings.weight("user_gmf") != start.embeddings.weight("user_gmf")).any(dim=1)
    assert moved.tolist() == [True, True, False, False]
