"""One trained model in all its forms ranks alike: local, sharded, saved, quantized, exported, served.

Forms that compute with the same numbers return the same lists, and scores that differ by rounding alone. Quantized rows
are other numbers: their lists may differ, by no more than the shares below.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ncf import Features, Interactions, NeuMF, Recommender, Trainer, extend, leave_one_out
from ncf.distributed.sharding import shard
from ncf.inference import export_onnx, export_program
from tests.conftest import random_interactions

from .conftest import Service

USERS, ITEMS, K = 60, 80, 10
ROUNDING = 1e-5  # of scores of a few units
SHARED = {"bfloat16": 0.97, "int8": 0.97, "int4": 0.85}  # of the items of a list, on average


@pytest.fixture(scope="module")
def bought() -> Interactions:
    return random_interactions(USERS, ITEMS, 12)


@pytest.fixture(scope="module")
def model(bought: Interactions) -> NeuMF:
    model = NeuMF(USERS, ITEMS, factors=16, layers=(32, 16, 8), init_std=0.3)
    Trainer(model, epochs=5, batch_size=256, learning_rate=0.02).fit(leave_one_out(bought))
    return model.eval()


@pytest.fixture(scope="module")
def lists(model: NeuMF, bought: Interactions) -> tuple[list[list[int]], Tensor]:
    items, scores = Recommender(model, seen=bought).recommend(k=K)
    return items, scores


@pytest.fixture(scope="module")
def service(
    model: NeuMF, bought: Interactions, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("agreement") / "model"
    Recommender(model, seen=bought).save(folder)
    running = Service(folder)
    yield running
    running.stop()


def best(scores: Tensor, bought: Interactions) -> tuple[list[list[int]], Tensor]:
    """Lists from the scores of the whole catalogue, ``[U, I]``: of equal ones the earlier item."""
    scores = scores.clone()
    scores[bought.users, bought.items] = -torch.inf
    values, items = scores.sort(dim=1, descending=True, stable=True)
    return items[:, :K].tolist(), values[:, :K]


def check(found: tuple[list[list[int]], Tensor], lists: tuple[list[list[int]], Tensor]) -> None:
    torch.testing.assert_close(found[1], lists[1], rtol=0, atol=ROUNDING)
    assert found[0] == lists[0]


def test_forms_with_the_same_numbers_give_the_same_lists(
    model: NeuMF,
    bought: Interactions,
    lists: tuple[list[list[int]], Tensor],
    service: Service,
    tmp_path: Path,
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime comes with the extra onnx")
    users, catalogue = torch.arange(USERS), torch.arange(ITEMS).expand(USERS, ITEMS)
    with torch.no_grad():
        check(best(model(users, catalogue), bought), lists)

    Recommender(model, seen=bought).save(tmp_path / "folder")
    loaded = Recommender.load(tmp_path / "folder")
    check(tuple(loaded.recommend(k=K)), lists)  # type: ignore[arg-type]

    sharded = shard(NeuMF(**loaded.model.config, device="meta"), "table_wise", verbose=False)
    sharded.module.load_state_dict(model.state_dict())
    check(tuple(Recommender(sharded, seen=bought).recommend(k=K)), lists)  # type: ignore[arg-type]

    export_program(model, tmp_path / "model.pt2")
    with torch.no_grad():
        check(best(torch.export.load(tmp_path / "model.pt2").module()(users, catalogue), bought), lists)
    export_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    inputs = {"users": users.numpy(), "candidates": catalogue.contiguous().numpy()}
    check(best(torch.from_numpy(session.run(["scores"], inputs)[0]), bought), lists)

    answer = service.post("/v1/recommend", {"users": list(range(USERS)), "k": K}).json()["results"]
    assert [element["items"] for element in answer] == lists[0]
    assert [element["scores"] for element in answer] == lists[1].tolist()


@pytest.mark.parametrize("rows", SHARED)
def test_quantized_rows_share_most_of_each_list(
    rows: str, model: NeuMF, bought: Interactions, lists: tuple[list[list[int]], Tensor], tmp_path: Path
) -> None:
    Recommender(model, seen=bought).save(tmp_path, rows=rows)
    items, _ = Recommender.load(tmp_path).recommend(k=K)
    shared = [len(set(mine) & set(theirs)) / K for mine, theirs in zip(items, lists[0], strict=True)]
    assert sum(shared) / USERS >= SHARED[rows]


@pytest.mark.parametrize("rows", ["float32", "int4"])
def test_a_grown_model_with_features_is_served_as_it_answers_here(rows: str, tmp_path: Path) -> None:
    """A new item, known by its features alone, is among the lists; a new user has a row of the seed."""
    log = random_interactions(USERS, ITEMS, 12)
    bought = Interactions.from_arrays([f"u{n}" for n in log.users], [f"i{n}" for n in log.items])
    table = {"item": [f"i{n}" for n in range(ITEMS)], "kind": [f"kind {n % 5}" for n in range(ITEMS)]}
    features = Features.from_table(table, "item", ids=bought.item_ids)
    model = NeuMF(
        USERS, ITEMS, factors=8, layers=(16, 8), init_std=0.3, item_features=features, id_dropout=0.2
    )
    Trainer(model, epochs=2, batch_size=256, learning_rate=0.02, selection="last", progress=False).fit(bought)
    new = Features.from_table(
        {"item": ["new 1", "new 2"], "kind": ["kind 1", "kind 4"]}, "item", like=features
    )
    week = Interactions.from_arrays(["u3", "ann"], ["new 1", "i5"])
    grown = extend(model, week, item_features=new)
    both = grown.with_replay(bought)
    folder = tmp_path / "model"
    Recommender(grown.model, seen=both).save(folder, rows=rows)
    here = Recommender.load(folder)
    users = ["u3", "ann", *(f"u{n}" for n in range(10, 20))]
    expected = here.recommend(users, k=ITEMS + 2)
    assert all({"new 2"} <= set(listed) for listed in expected.items)
    if rows == "float32":
        check(tuple(expected), tuple(Recommender(grown.model, seen=both).recommend(users, k=ITEMS + 2)))  # type: ignore[arg-type]
    running = Service(folder)
    try:
        answer = running.post("/v1/recommend", {"users": users, "k": ITEMS + 2}).json()["results"]
        history = running.post("/v1/recommend", {"history": ["new 1", "i7"], "k": 5}).json()
        alike = running.post("/v1/similar", {"items": ["new 2"], "k": 3}).json()["results"][0]
    finally:
        running.stop()
    for row, element in enumerate(answer):
        assert element["items"] == expected.items[row]
        assert element["scores"] == expected.scores[row, : len(element["items"])].tolist()
    assert history["items"] == here.recommend(history=["new 1", "i7"], k=5).items[0]
    assert alike["items"] == here.similar("new 2", 3).items[0]
