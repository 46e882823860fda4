"""Runs that stop and go on: the same numbers as runs that never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ncf import GMF, History, NeuMF, Split, Trainer
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
    with pytest.raises(ValueError, match=r"of a run with epochs = 1, here it is 4: go on with the same"):
        trainer(build(), checkpoint=tmp_path).fit(split)
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
    def interrupt(history: History) -> None:
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
    with pytest.warns(UserWarning, match="The newest weights stand for the best"):
        history = trainer(build(), checkpoint=tmp_path, checkpoint_every=1).fit(split)
    assert history.best_epoch > 1
    assert len(history) == 4
