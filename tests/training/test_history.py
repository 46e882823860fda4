from __future__ import annotations

import json

from ncf import History


def test_nothing_yet() -> None:
    history = History("validation")
    assert len(history) == 0
    assert history.samples_per_second == 0
    assert "0 epochs" in str(history)


def test_the_rate_is_the_median_of_the_epochs() -> None:
    history = History("last", epochs=[1, 2, 3], seconds=[10.0, 1.0, 2.0], samples=[100, 100, 100])
    assert history.samples_per_second == 50
    assert "3 epochs in 13.0 s" in str(history)


def test_how_it_was_selected_is_said() -> None:
    assert "test set" in str(History("paper"))
    assert "validation set" in str(History("validation"))
    assert "set" not in str(History("last"))


def test_one_epoch_is_one() -> None:
    assert "1 epoch in" in str(History("last", epochs=[1], seconds=[1.0], samples=[100]))
    assert str(History("last", interrupted=True)).endswith("interrupted")


def test_it_goes_to_json_and_back() -> None:
    history = History("paper", [1], [0.5], [None], [0.25], [2.0], [10], best_epoch=1)
    assert History(**json.loads(json.dumps(history.to_dict()))) == history
