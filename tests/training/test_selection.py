from __future__ import annotations

import pytest
import torch

from ncf import (
    GMF,
    Catalogue,
    Interactions,
    Split,
    Trainer,
    evaluate,
    sample_candidates,
    split_by_ratio,
)
from ncf.training import run as selecting
from ncf.training.run import evaluate_epoch, selection_candidates


@pytest.mark.parametrize(("selection", "part"), [("validation", "validation"), ("paper", "test")])
def test_fault_7_what_is_judged_is_the_held_out_item_of_the_named_part(
    split: Split, selection: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = []

    def spy(model: object, candidates: object, k: int) -> object:
        judged.append(candidates)
        return evaluate(model, candidates, k=k)  # type: ignore[arg-type]

    monkeypatch.setattr(selecting, "evaluate", spy)
    Trainer(GMF(40, 60), epochs=2, selection=selection).fit(split)  # type: ignore[arg-type]
    assert len(judged) == 2
    for candidates in judged:
        assert torch.equal(candidates.positives, getattr(split, part).items)


def test_the_part_to_select_on_must_be_there(split: Split) -> None:
    with pytest.raises(ValueError, match="needs the validation part"):
        Trainer(GMF(40, 60)).fit(split.with_validation_in_train())
    with pytest.raises(ValueError, match='"paper" needs the test part'):
        selection_candidates(Split(split.train, split.validation, None), "paper")
    assert selection_candidates(Split(split.train, None, None), "last") is None


def test_each_selection_looks_at_its_metric_and_writes_both(split: Split) -> None:
    model, candidates = GMF(40, 60, init_std=1.0), sample_candidates(split, num_negatives=20)
    ranking = evaluate(model, candidates, k=5)
    looked_at = {"validation": ranking.ndcg, "paper": ranking.hr, "last": None}
    for selection, metric in looked_at.items():
        assert evaluate_epoch(model, candidates, selection, k=5) == (ranking.hr, ranking.ndcg, metric)
        assert evaluate_epoch(model, None, selection) == (None, None, None)


def test_several_validation_items_of_a_user_are_ranked_in_the_whole_catalogue() -> None:
    users = torch.arange(30).repeat_interleave(10)
    items = torch.arange(300) % 41
    split = split_by_ratio(Interactions.from_arrays(users, items), test=0.2, validation=0.2)
    candidates = selection_candidates(split, "validation")
    assert isinstance(candidates, Catalogue)
    assert candidates.positive_offsets is not None
    model = GMF(split.train.num_users, split.train.num_items)
    history = Trainer(model, epochs=2, batch_size=64, progress=False).fit(split)
    assert None not in history.ndcg
