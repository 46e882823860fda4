"""Runs that stop and go on: the same numbers as runs that never stopped."""

from __future__ import annotations

import os
import random
import sys
from collections import defaultdict
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import ncf
from ncf import GMF, History, Interactions, NeuMF, Split, Trainer, sample_candidates, whole_catalogue
from ncf.distributed.checkpoint import Checkpoints


class StopError(Exception):
    pass


def build() -> NeuMF:
    return NeuMF(40, 60, factors=4, layers=(8, 4), dropout=0.2, init_std=0.1, seed=1)


def trainer(model: NeuMF, **more: Any) -> Trainer:
    settings: dict[str, Any] = {"epochs": 4, "batch_size": 100, "learning_rate": 1e-2, "seed": 5}
    return Trainer(model, **(settings | more))


def stop_after(job: Trainer, steps: int) -> None:
    """Make a trainer raise after some optimizer steps, in the middle of whatever it does."""
    step, done = job.optimizer.step, 0

    def counted(*args: object) -> None:
        nonlocal done
        if done == steps:
            raise StopError
        done += 1
        step()

    job.optimizer.step = counted  # type: ignore[method-assign,assignment]


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def numbers(history: History) -> dict[str, Any]:
    return {name: value for name, value in history.to_dict().items() if name != "seconds"}


@pytest.mark.parametrize("selection", ["validation", "last"])
@pytest.mark.parametrize("optimizer", ["adam", "adagrad", "sgd"])
def test_a_run_that_stopped_ends_as_one_that_did_not(
    split: Split, tmp_path: Path, optimizer: str, selection: str
) -> None:
    chosen = {"optimizer": optimizer, "selection": selection}
    whole = build()
    expected = trainer(whole, **chosen).fit(split)
    for stops in ([1], [13, 1, 17], [2, 3, 5, 7]):
        folder = tmp_path / "-".join(map(str, stops))
        for steps in stops:
            model = build()
            job = trainer(model, **chosen, checkpoint=folder, checkpoint_every=3)
            stop_after(job, steps)
            with pytest.raises(StopError):
                job.fit(split)
        model = build()
        history = trainer(model, **chosen, checkpoint=folder, checkpoint_every=3).fit(split)
        assert equal(model, whole)
        assert numbers(history) == numbers(expected)


def test_a_run_that_ended_is_not_run_again(split: Split, tmp_path: Path) -> None:
    first, second = build(), build()
    history = trainer(first, checkpoint=tmp_path).fit(split)
    job = trainer(second, checkpoint=tmp_path)
    stop_after(job, 0)
    assert job.fit(split) == history
    assert equal(first, second)


def test_patience_is_remembered(split: Split, tmp_path: Path) -> None:
    impatient: dict[str, Any] = {"epochs": 50, "learning_rate": 0.3, "patience": 2}
    history = trainer(build(), **impatient, checkpoint=tmp_path).fit(split)
    assert len(history) == history.best_epoch + 2 < 50
    again = trainer(build(), **impatient, checkpoint=tmp_path)
    stop_after(again, 0)
    assert again.fit(split) == history


def test_other_settings_and_other_models_are_refused(split: Split, tmp_path: Path) -> None:
    trainer(build(), epochs=1, checkpoint=tmp_path).fit(split)
    with pytest.raises(
        ValueError, match=r"of a run with k = 10, here it is 5: resume with the same settings"
    ):
        trainer(build(), epochs=1, k=5, checkpoint=tmp_path).fit(split)
    with pytest.raises(ValueError, match="of a run with model = 'NeuMF', here it is 'GMF'"):
        trainer(GMF(40, 60), epochs=1, checkpoint=tmp_path).fit(split)  # type: ignore[arg-type]


def test_where_and_how_often_may_change(split: Split, tmp_path: Path) -> None:
    model = build()
    job = trainer(model, checkpoint=tmp_path, checkpoint_every=2)
    stop_after(job, 7)
    with pytest.raises(StopError):
        job.fit(split)
    whole = build()
    trainer(whole).fit(split)
    other = Checkpoints(tmp_path, keep=1)
    trainer(model, checkpoint=other, checkpoint_every=5, threads=2, progress=False).fit(split)
    assert equal(model, whole)


def test_ctrl_c_leaves_a_checkpoint_to_go_on_from(split: Split, tmp_path: Path) -> None:
    def interrupt(history: History, _: object) -> None:
        if len(history) == 2:
            raise KeyboardInterrupt

    history = trainer(build(), checkpoint=tmp_path).fit(split, on_epoch=interrupt)
    assert history.interrupted
    model, whole = build(), build()
    history = trainer(model, checkpoint=tmp_path).fit(split)
    expected = trainer(whole).fit(split)
    assert numbers(history) == numbers(expected)
    assert not history.interrupted
    assert equal(model, whole)


def test_without_the_best_weights_the_newest_count(split: Split, tmp_path: Path) -> None:
    """The best checkpoint may be damaged: that is said, and the run goes on."""
    job = trainer(build(), checkpoint=tmp_path, checkpoint_every=1)
    stop_after(job, 30)  # in the second of twenty steps an epoch
    with pytest.raises(StopError):
        job.fit(split)
    best = Checkpoints(tmp_path).best()
    assert best is not None
    assert best.step == 20
    for file in best.folder.glob("*.distcp"):
        file.write_bytes(b"")
    with pytest.warns(UserWarning, match="The newest weights are taken for the best"):
        history = trainer(build(), checkpoint=tmp_path, checkpoint_every=1).fit(split)
    assert history.best_epoch > 1
    assert len(history) == 4


def test_other_data_of_the_same_size_is_not_resumed_on(split: Split, tmp_path: Path) -> None:
    """Attack 4b: the old run's weights were returned at once, under the new data's ids."""
    train = split.train
    assert train is not None
    validation = sample_candidates(split, "validation", num_negatives=20)
    trainer(build(), epochs=1, checkpoint=tmp_path).fit(split, validation)
    order = torch.randperm(len(train.users))
    same = Split(train.take(order), split.validation, split.test)
    assert len(trainer(build(), epochs=1, checkpoint=tmp_path).fit(same, validation)) == 1
    items = (train.items + 1) % 60
    other = Split(Interactions(train.users, items, None, 40, 60), split.validation, split.test)
    with pytest.raises(ValueError, match=r"of a run with interactions = .*: resume with .* the same data"):
        trainer(build(), epochs=1, checkpoint=tmp_path).fit(other, validation)
    for others in (sample_candidates(split, "validation", num_negatives=20, seed=1), whole_catalogue(split)):
        with pytest.raises(ValueError, match="of a run with candidates = "):
            trainer(build(), epochs=1, checkpoint=tmp_path).fit(split, others)


def test_a_run_is_extended_to_more_epochs(split: Split, tmp_path: Path) -> None:
    whole, model = build(), build()
    expected = trainer(whole, epochs=4, schedule="constant").fit(split)
    trainer(build(), epochs=2, schedule="constant", checkpoint=tmp_path / "constant").fit(split)
    history = trainer(model, epochs=4, schedule="constant", checkpoint=tmp_path / "constant").fit(split)
    assert equal(model, whole)
    assert numbers(history) == numbers(expected)
    trainer(build(), epochs=2, checkpoint=tmp_path / "linear").fit(split)
    with pytest.warns(
        UserWarning, match="of a run of 2 epochs, which is now one of 4: its learning rates so far"
    ):
        history = trainer(build(), epochs=4, checkpoint=tmp_path / "linear").fit(split)
    assert history.epochs == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="has 4 epochs, more than epochs = 3"):
        trainer(build(), epochs=3, checkpoint=tmp_path / "linear").fit(split)


@pytest.mark.parametrize("kind", [torch.optim.NAdam, torch.optim.RMSprop])
def test_a_run_with_an_optimizer_of_ones_own_resumes(split: Split, tmp_path: Path, kind: Any) -> None:
    def own(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = kind(parameters, lr=0.01, weight_decay=0.1)
        return optimizer

    settings: dict[str, Any] = {"epochs": 3, "batch_size": 100, "optimizer": own}
    whole, model = build(), build()
    expected = Trainer(whole, **settings).fit(split)
    job = Trainer(build(), **settings, checkpoint=tmp_path, checkpoint_every=3)
    stop_after(job, 25)
    with pytest.raises(StopError):
        job.fit(split)
    history = Trainer(model, **settings, checkpoint=tmp_path).fit(split)
    assert equal(model, whole)
    assert numbers(history) == numbers(expected)


def test_ctrl_c_with_the_last_epoch_kept_leaves_the_weights_of_a_step(split: Split) -> None:
    """Nothing is selected, so no copy of the weights is held."""
    model, after = build(), []
    job = trainer(model, selection="last")
    step, done = job.optimizer.step, []

    def counted(*args: object) -> None:
        if len(done) == 25:
            raise KeyboardInterrupt
        done.append(step())
        after[:] = [value.clone() for value in model.state_dict().values()]

    job.optimizer.step = counted  # type: ignore[method-assign,assignment]
    history = job.fit(split)
    assert (history.interrupted, history.epochs, history.best_epoch) == (True, [1], 1)
    assert all(map(torch.equal, model.state_dict().values(), after))


# Ctrl-C at any line. `NCF_TEST_ALL=1` interrupts at each line that a fit runs in ncf; else at some in each function.

ROOT = os.path.dirname(ncf.__file__)


class Interruptor:
    """Raise KeyboardInterrupt at one of the lines that are run in ncf."""

    def __init__(self, at: int | None = None) -> None:
        self.at = at
        self.lines: list[tuple[str, int]] = []

    def __enter__(self) -> Interruptor:
        self.before = sys.gettrace()
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.before)

    def trace(self, frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(ROOT):
            return None
        if event == "line":
            self.lines.append((f"{frame.f_code.co_filename} {frame.f_code.co_name}", frame.f_lineno))
            if len(self.lines) - 1 == self.at:
                raise KeyboardInterrupt
        return self.trace


def small(split: Split) -> tuple[GMF, Trainer, Split]:
    model = GMF(40, 60, factors=4, init_std=0.5)
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 1000, "learning_rate": 1.0, "schedule": "constant"}
    return model, Trainer(model, **settings), split


def test_ctrl_c_at_any_line_leaves_a_whole_epoch_and_a_consistent_history(split: Split) -> None:
    """Attack 4a: 63 of 4,007 lines left a mixture of two epochs that was declared the best."""
    validation = sample_candidates(split, "validation", num_negatives=20)
    model, job, _ = small(split)
    epochs = [[value.clone() for value in model.state_dict().values()]]
    with Interruptor() as undisturbed:
        history = job.fit(
            split,
            validation,
            on_epoch=lambda _, model: epochs.append([v.clone() for v in model.state_dict().values()]),
        )
    assert history.best_epoch == 2  # a better one, and a worse one after it
    places = defaultdict(list)
    for number, (function, line) in enumerate(undisturbed.lines):
        inner = "training/run.py" in function or "training/trainer.py" in function
        places[(function, line) if inner else function].append(number)
    chosen = [random.Random(0).choice(numbers) for numbers in places.values()]
    if os.environ.get("NCF_TEST_ALL"):
        chosen = list(range(len(undisturbed.lines)))
    returned = 0
    for at in chosen:
        model, job, _ = small(split)
        seen: list[History] = []
        try:
            with Interruptor(at):
                history = job.fit(split, validation, on_epoch=lambda history, _: seen.append(history))  # noqa: B023
        except KeyboardInterrupt:  # before the first step, or after the last
            history = None
        weights = list(model.state_dict().values())
        same = [all(map(torch.equal, weights, epoch)) for epoch in epochs]
        where = undisturbed.lines[at]
        assert any(same), f"a mixture of epochs after Ctrl-C at {where}"
        for record in [*seen, *([] if history is None else [history])]:
            columns = record.epochs, record.loss, record.hr, record.ndcg, record.seconds, record.samples
            assert len({len(column) for column in columns}) == 1, where
        if history is not None:
            returned += 1
            assert same[history.best_epoch], where
            assert history.best_epoch in (0, *history.epochs), where
    assert returned > len(chosen) // 2
    print(f"{len(chosen)} of {len(undisturbed.lines)} lines, {returned} returned")
