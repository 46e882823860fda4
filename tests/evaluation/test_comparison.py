from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor

from ncf import (
    Interactions,
    ItemPop,
    Ranking,
    compare,
    evaluate,
    leave_one_out,
    list_statistics,
    sample_candidates,
    whole_catalogue,
)
from ncf.evaluation.comparison import Comparison
from ncf.evaluation.significance import holm, paired_test


class Noisy:
    """Knows the held-out items, and sees them through noise."""

    def __init__(self, positives: Tensor, noise: float, num_items: int) -> None:
        scores = torch.zeros(len(positives), num_items).scatter_(1, positives[:, None], 1)
        self.scores = scores + noise * torch.rand(
            scores.shape, generator=torch.Generator().manual_seed(int(noise * 100))
        )

    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        return self.scores[users[:, None], candidates.clamp(min=0)]


@pytest.fixture(scope="module")
def task():
    touched = torch.rand(120, 90, generator=torch.Generator().manual_seed(0)) < 0.2
    split = leave_one_out(Interactions(*touched.nonzero(as_tuple=True), None, 120, 90), validation=False)
    positives = torch.zeros(120, dtype=torch.int64)
    positives[split.test.users] = split.test.items
    models = {
        "popular": ItemPop(split.train),
        "poor": Noisy(positives, 1.9, 90),
        "good": Noisy(positives, 1.2, 90),
        "fair": Noisy(positives, 1.25, 90),
    }
    return models, sample_candidates(split, num_negatives=30), whole_catalogue(split), split.train


def test_rows_are_the_rankings_of_evaluate_best_first(task) -> None:
    models, candidates, catalogue, _ = task
    result = compare(models, candidates, k=5, catalogue=catalogue)
    for name, model in models.items():
        assert torch.equal(result.rankings[name].ranks, evaluate(model, candidates, 5).ranks)
        assert torch.equal(result.whole[name].ranks, evaluate(model, catalogue, 5).ranks)
    values = [result.rankings[name].ndcg for name in result.names]
    assert values == sorted(values, reverse=True)
    assert result.best == result.reference == result.names[0]
    by_hr = compare(models, candidates, k=5, metric="hr")
    assert by_hr.rankings[by_hr.best].hr == max(ranking.hr for ranking in by_hr.rankings.values())


@pytest.mark.parametrize("baseline", [None, "popular"])
def test_p_values_are_those_of_the_paired_test_adjusted(task, baseline: str | None) -> None:
    models, candidates, *_ = task
    result = compare(models, candidates, k=5, baseline=baseline, metric="mrr")
    reference = result.rankings[baseline or result.best]
    others = [name for name in result.names if name != result.reference]
    raw = [paired_test(result.rankings[name], reference, "mrr").p_value for name in others]
    assert result.p_values == dict(zip(others, holm(raw), strict=True))
    assert result.p_values["poor"] < 0.05


def test_text_is_a_table_in_columns(task) -> None:
    models, candidates, catalogue, _ = task
    result = compare(models, candidates, k=5, catalogue=catalogue)
    lines = str(result).splitlines()
    assert len(lines) == 1 + len(models) + 2
    best = result.rankings[result.best]
    assert lines[1].startswith(result.best)
    assert f"{best.hr:.3f}" in lines[1]
    assert f"{best.ndcg:.3f}* {best.interval('ndcg')}" in lines[1]
    assert f"{result.whole[result.best].ndcg:.3f}" in lines[1]
    assert [line.split()[0] for line in lines[1:5]] == result.names
    places = {line.index("]") for line in lines[1:5]}
    assert len(places) == 1  # aligned
    assert "120 users" in lines[5]
    assert f"NDCG@5 against {result.best}" in lines[6]


def test_markdown_is_a_table(task) -> None:
    models, candidates, *_ = task
    result = compare({"a|b": models["good"], "c": models["poor"]}, candidates, k=5)
    lines = result.markdown().splitlines()
    cells = [line.replace("\\|", "").strip("|").split("|") for line in lines]
    assert {len(row) for row in cells} == {6}
    assert lines[2].startswith(f"| a\\|b | **{result.rankings['a|b'].hr:.3f}** [")
    assert set(lines[1]) <= set("|:-")


def test_a_notebook_shows_a_table_and_a_prompt_one_line(task) -> None:
    models, candidates, *_ = task
    result = compare({"a<b": models["good"], "c": models["poor"]}, candidates, k=5)
    table = ElementTree.fromstring(f"<div>{result._repr_html_()}</div>")
    assert next(cell.text for cell in table.iter("th")) == "model"
    rows = [list(row) for row in table.iter("tr")][1:]
    assert [row[0].text for row in rows] == ["a<b", "c"]
    assert rows[0][1][0].text == f"{result.rankings['a<b'].hr:.3f}"  # in bold
    assert repr(result) == (
        f"Comparison(NDCG@5: a<b {result.rankings['a<b'].ndcg:.3f}, c {result.rankings['c'].ndcg:.3f})"
    )
    ranking = ElementTree.fromstring(f"<div>{result.rankings['c']._repr_html_()}</div>")
    assert [row[0].text for row in ranking.iter("tr")] == ["metric", "HR@5", "NDCG@5", "MRR", "AUC"]


def test_models_without_names_are_refused_with_the_remedy(task) -> None:
    models, candidates, *_ = task
    with pytest.raises(
        TypeError, match=r'a dict of models by name, got list: give each a name, \{"GMF": first'
    ):
        compare([models["good"], models["poor"]], candidates)


def test_results_can_be_written_as_json(task) -> None:
    models, candidates, catalogue, _ = task
    result = compare(models, candidates, k=5, catalogue=catalogue)
    read = json.loads(json.dumps(result.to_dict()))
    assert list(read) == result.names
    assert read["good"]["sampled"]["HR@5"]["mean"] == result.rankings["good"].hr
    assert read["good"]["whole"]["NDCG@5"]["interval"] == list(result.whole["good"].interval("ndcg"))
    assert read[result.best]["p_value"] is None
    assert read["poor"]["p_value"] == result.p_values["poor"]


def test_statistics_of_the_lists_stand_in_a_second_table(task, tmp_path) -> None:
    models, candidates, catalogue, train = task
    features = torch.eye(90, dtype=torch.float32)[:, :4]
    result = compare(models, candidates, k=5, catalogue=catalogue, train=train, item_features=features)
    assert result.lists is not None
    lines = str(result).splitlines()[-5:]
    assert lines[0].split() == [
        "lists",
        "coverage",
        "Gini",
        "popularity",
        "p",
        "novelty",
        "p",
        "diversity",
        "p",
    ]
    assert [line.split()[0] for line in lines[1:]] == result.names
    alone = list_statistics(models["popular"], catalogue, train, 5, item_features=features)
    row = next(line for line in lines if line.startswith("popular"))
    assert f"{alone.coverage:.3f}" in row
    assert f"{alone.mean('novelty'):.3f} {alone.interval('novelty')}" in row
    others = [name for name in result.names if name != result.best]
    tests = [result.lists[name].test(result.lists[result.best], "novelty").p_value for name in others]
    assert dict(zip(others, holm(tests), strict=True))["popular"] < 0.001
    assert "<0.001" in row
    assert len(result.markdown().splitlines()) == 2 * (2 + len(models)) + 1
    tables = ElementTree.fromstring(f"<div>{result._repr_html_()}</div>")
    assert len(list(tables.iter("table"))) == 2
    assert json.loads(json.dumps(result.to_dict()))["popular"]["lists"]["gini"] == alone.gini
    result.plot(tmp_path / "lists.svg")
    compare(models, candidates, k=5, catalogue=catalogue).plot(tmp_path / "plain.svg")
    drawn, plain = ((tmp_path / name).read_text() for name in ("lists.svg", "plain.svg"))
    assert drawn.count('id="axes_') == plain.count('id="axes_') + 5
    with pytest.raises(ValueError, match=r"train is given without a catalogue.*whole_catalogue\(split\)"):
        compare(models, candidates, k=5, train=train)
    with pytest.raises(ValueError, match="lists has good, but the models are popular, poor, good, fair"):
        Comparison(result.rankings, lists={"good": result.lists["good"]})


def test_one_model_alone_is_not_tested_against_anything(task) -> None:
    models, candidates, *_ = task
    result = compare({"good": models["good"]}, candidates, k=5)
    assert result.p_values == {}
    assert "p:" not in result.text()
    assert len(result.markdown().splitlines()) == 3


def test_what_cannot_be_compared(task) -> None:
    models, candidates, *_ = task
    with pytest.raises(ValueError, match="nothing to compare"):
        compare({}, candidates)
    with pytest.raises(ValueError, match="baseline = 'best' is none of popular, poor, good, fair"):
        compare(models, candidates, baseline="best")
    first = evaluate(models["good"], candidates, 5)
    other = Ranking(first.users + 1, first.ranks, first.num_candidates, 5)
    with pytest.raises(ValueError, match="users of the two rankings differ"):
        Comparison({"one": first, "two": other})
    with pytest.raises(ValueError, match="k differs"):
        Comparison({"one": first, "two": first.at(10)})
    with pytest.raises(ValueError, match="whole has two, but the models are one"):
        Comparison({"one": first}, {"two": first})
    with pytest.raises(ValueError, match="baseline = 'two' is none of one"):
        Comparison({"one": first}, baseline="two")
