from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import ncf
from ncf import EASE, Interactions, Split, evaluate, whole_catalogue
from ncf.training import tuning
from ncf.training.tuning import Trial, Tuning, tune

optuna = pytest.importorskip("optuna", reason="optuna is an optional extra")
QUICK: dict[str, Any] = {"epochs": 4, "softmax_epochs": 4, "mlp_epochs": 4, "spectral": 4, "progress": False}


def outcome(found: Tuning) -> list[tuple[Any, ...]]:
    return [(t.number, dict(t.settings), t.value, t.stopped) for t in found.trials]


def by_hand(split: Split, model: Any, k: int = 10) -> float:
    return evaluate(model, whole_catalogue(Split(split.train, None, split.validation)), k).ndcg


def test_the_first_trial_has_the_defaults_and_none_is_taken_for_better_than_it_is(split: Split) -> None:
    found = tune(split, "EASE", trials=6, k=5)
    assert found.trials[0].settings == {"regularization": 200.0}
    assert [trial.number for trial in found.trials] == [1, 2, 3, 4, 5, 6]
    for trial in found.trials:
        assert trial.value == by_hand(split, EASE(split.train, **trial.settings), 5)
        assert 1.0 <= trial.settings["regularization"] <= 5000.0
    assert found.value == max(trial.value for trial in found.trials)
    assert len({trial.settings["regularization"] for trial in found.trials}) == 6


def test_the_test_set_is_never_looked_at(split: Split) -> None:
    other = Split(split.train, split.validation, split.test.take(torch.tensor([3])))
    assert outcome(tune(split, "ItemKNN", trials=4)) == outcome(tune(other, "ItemKNN", trials=4))


def test_what_is_found_is_what_fit_gives(split: Split) -> None:
    found = tune(split, "NeuMF", trials=2, **QUICK)
    recipe = ncf.training.recipes.recipe_for(split.train)
    first = found.trials[0].settings
    assert first["losses"] == recipe.losses
    assert first["layers"] == recipe.layers
    assert first["temperature"] == recipe.temperature
    assert {"epochs", "softmax_epochs", "spectral", "mlp_epochs"} <= set(first)  # as given
    model = ncf.fit(split.train, "NeuMF", progress=False, **found.best)
    assert by_hand(split, model) == found.value


@pytest.mark.parametrize("model", ["GMF", "ItemKNN"])
def test_the_seed_and_the_number_of_trials_decide(split: Split, model: str, tmp_path: Path) -> None:
    settings = QUICK if model == "GMF" else {}
    once = outcome(tune(split, model, trials=4, **settings))
    assert outcome(tune(split, model, trials=4, **settings)) == once
    assert outcome(tune(split, model, trials=4, seed=1, **settings)) != once
    tune(split, model, trials=2, folder=tmp_path, **settings)
    assert outcome(tune(split, model, trials=4, folder=tmp_path, **settings)) == once
    assert (
        outcome(tune(split, model, trials=3, folder=tmp_path, **settings)) == once
    )  # they are there already


def test_a_search_that_was_killed_goes_on(
    split: Split, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = outcome(tune(split, "EASE", trials=4))
    values = tuning._Search.values
    for place in (0, 2):
        count = [0]

        def killed(self: Any, settings: Any, place: int = place, count: list[int] = count) -> Any:
            if count[0] == place:
                raise RuntimeError("killed")
            count[0] += 1
            return values(self, settings)

        monkeypatch.setattr(tuning._Search, "values", killed)
        with pytest.raises(RuntimeError, match="killed"):
            tune(split, "EASE", trials=4, folder=tmp_path)
    monkeypatch.setattr(tuning._Search, "values", values)
    assert outcome(tune(split, "EASE", trials=4, folder=tmp_path)) == whole


def test_ctrl_c_ends_the_search_with_what_there_is(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[Any] = []

    def fit(train: Interactions, model: str, **settings: Any) -> Any:
        if len(fitted) == 4:
            raise KeyboardInterrupt
        fitted.append(settings)
        return SimpleNamespace(history=ncf.History("last"))

    monkeypatch.setattr(tuning, "fit", fit)
    monkeypatch.setattr(tuning._Search, "_ndcg", lambda self, model: 0.5)
    assert len(tune(split, "GMF", trials=9).trials) == 2
    fitted = [None] * 4
    with pytest.raises(KeyboardInterrupt):
        tune(split, "GMF", trials=9)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"k": 5}, "k"),
        ({"seed": 1}, "seed"),
        ({"neighbours": 3}, "settings"),
        ({"model": "ItemKNN"}, "model"),
    ],
)
def test_a_folder_of_another_search_is_not_gone_on_with(
    split: Split, tmp_path: Path, change: dict[str, Any], what: str
) -> None:
    tune(split, "EASE", trials=1, folder=tmp_path)
    with pytest.raises(ValueError, match=f"holds trials with another {what} .*give another folder"):
        tune(split, **({"model": "EASE", "trials": 1, "folder": tmp_path} | change))
    other = Split(split.train.take(torch.arange(len(split.train) - 1)), split.validation, split.test)
    with pytest.raises(ValueError, match="another train"):
        tune(other, "EASE", trials=1, folder=tmp_path)


def test_bad_trials_are_stopped_after_a_part_of_their_epochs(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[tuple[int, int]] = []
    qualities = iter([0.5] * 10 + [0.4, 0.6, 0.7, 0.5, 0.5])

    def fit(train: Interactions, model: str, **settings: Any) -> Any:
        epochs.append((settings["softmax_epochs"], settings.get("members", 0)))
        return SimpleNamespace(history=ncf.History("last"), value=next(qualities))

    monkeypatch.setattr(tuning, "fit", fit)
    monkeypatch.setattr(tuning._Search, "_ndcg", lambda self, model: model.value)
    found = tune(split, "GMF", trials=8, losses=("softmax",), softmax_epochs=20, progress=False)
    assert [trial.stopped for trial in found.trials] == [False] * 5 + [True, False, False]
    assert [trial.value for trial in found.trials][5:] == [0.4, 0.7, 0.5]
    assert epochs == [(5, 1), (20, 1)] * 5 + [(5, 1)] + [(5, 1), (20, 1)] * 2
    assert found.best_trial.number == 7
    assert "0.4000†" in str(found)
    assert "stopped after 1/4" in str(found)


@pytest.mark.parametrize(
    ("model", "losses", "searched"),
    [
        ("GMF", ("softmax",), {"softmax_factors", "softmax_epochs", "temperature", "spectral"}),
        ("GMF", ("bce",), {"factors", "epochs", "negatives", "learning_rate", "weight_decay", "spectral"}),
        ("MLP", ("bce",), {"layers", "learning_rate", "weight_decay", "mlp_epochs", "mlp_negatives"}),
    ],
)  # fmt: skip
def test_only_settings_that_matter_are_searched(
    split: Split, monkeypatch: pytest.MonkeyPatch, model: str, losses: tuple[str, ...], searched: set[str]
) -> None:
    monkeypatch.setattr(tuning._Search, "values", lambda self, settings: iter([0.5, 0.5]))
    found = tune(split, model, trials=6, losses=losses)
    for trial in found.trials:
        assert set(trial.settings) == searched | {"losses"}
        assert trial.settings["losses"] == losses


def test_every_range_holds_what_fit_takes(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning._Search, "values", lambda self, settings: iter([0.5, 0.5]))
    for trial in tune(split, "NeuMF", trials=25).trials:
        recipe = ncf.training.recipes.Recipe(**trial.settings)
        assert recipe.losses in (("bce",), ("softmax",), ("bce", "softmax"))
        assert recipe.factors in (32, 64, 128, 256)
        assert all(isinstance(getattr(recipe, name), int) for name in ("epochs", "negatives", "mlp_epochs"))


def test_time_is_a_bound_on_when_trials_begin(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 1000, 10))
    monkeypatch.setattr(tuning.time, "monotonic", lambda: next(now))
    assert len(tune(split, "ItemKNN", seconds=35).trials) == 3
    assert len(tune(split, "ItemKNN", seconds=1).trials) == 1
    assert len(tune(split, "ItemKNN", seconds=100, trials=2).trials) == 2


def test_arguments_out_of_range(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, message in (
        ({"model": "Net"}, "model = 'Net': choose one of 'NeuMF'"),
        ({"trials": 0}, "trials = 0"),
        ({"seconds": -1}, "seconds = -1"),
        ({"k": 0}, "k = 0"),
    ):
        with pytest.raises(ValueError, match=message):
            tune(split, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no validation set"):
        tune(Split(split.train, None, split.test))
    with pytest.raises(TypeError, match="split must be Split"):
        tune(split.train)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'width' is no setting of GMF: choose among batch_size"):
        tune(split, "GMF", width=3)
    with pytest.raises(
        TypeError, match="'width' is no setting of EASE: choose among neighbours, regularization"
    ):
        tune(split, "EASE", width=3)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"pip install 'ncf\[tune\]'"):
        tune(split)


def test_a_table_a_picture_and_a_frame(tmp_path: Path) -> None:
    trials = [
        Trial(1, {"losses": ("bce",), "factors": 64}, 0.3, False, 2.0),
        Trial(2, {"losses": ("bce", "softmax"), "factors": 128, "temperature": 0.1}, 0.4, False, 3.0),
        Trial(3, {"losses": ("softmax",), "factors": 32}, 0.5, True, 1.0),
    ]
    found = Tuning("<GMF>", trials, 10)
    assert found.best == trials[1].settings
    lines = str(found).splitlines()
    assert lines[0].split() == ["trial", "NDCG@10", "seconds", "losses", "factors", "temperature"]
    assert lines[1].split() == ["2", "0.4000", "3.0", "bce+softmax", "128", "0.1"]
    assert lines[3].split() == ["3", "0.5000†", "1.0", "softmax", "32", "–"]
    assert repr(found) == "Tuning(<GMF>: NDCG@10 0.400 on the validation set, best of 3 trials)"
    html = found._repr_html_()
    assert "<td" in html
    assert "<GMF>" not in html
    frame = found.to_pandas()
    assert frame.loc[2, "NDCG@10"] == 0.4
    assert frame["temperature"].isna().tolist() == [True, False, True]
    assert found.to_dict()["trials"][0]["settings"]["factors"] == 64
    found.plot(tmp_path / "search.svg")
    picture = (tmp_path / "search.svg").read_text()
    assert picture.startswith("<?xml")
    Tuning("EASE", trials[:1], 10).plot(tmp_path / "one.png")


def test_optunas_own_messages_stay_as_they_were(split: Split, capsys: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    tune(split, "EASE", trials=2, progress=False)
    assert optuna.logging.get_verbosity() == before
    assert not capsys.readouterr().err
