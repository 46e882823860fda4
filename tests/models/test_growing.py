from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ncf
from ncf import GMF, MLP, Features, Interactions, MatrixFactorization, NeuMF, Trainer, extend
from ncf.data.splitting import Split
from ncf.distributed.sharding import shard
from ncf.models.base import EmbeddingModel

BUILD: dict[str, Callable[..., EmbeddingModel]] = {
    "GMF": lambda u, i: GMF(u, i, factors=8, seed=3),
    "MLP": lambda u, i: MLP(u, i, layers=(16, 8), seed=3),
    "NeuMF": lambda u, i: NeuMF(u, i, factors=8, layers=(16, 8), seed=3),
    "MatrixFactorization": lambda u, i: MatrixFactorization(u, i, factors=6, seed=3),
}


def log(users: list[Any], items: list[Any]) -> Interactions:
    return Interactions.from_arrays(users, items)


def known(model: EmbeddingModel, interactions: Interactions) -> EmbeddingModel:
    model.user_ids, model.item_ids = interactions.user_ids, interactions.item_ids
    return model


@pytest.mark.parametrize("name", BUILD)
def test_a_model_grown_to_a_size_equals_one_built_with_it_to_the_bit(name: str) -> None:
    model = BUILD[name](1500, 900)
    more = Interactions(torch.tensor([2999]), torch.tensor([2100]), None, 3000, 2101)
    grown = extend(model, more).model
    assert grown.config == BUILD[name](3000, 2101).config
    for key, value in BUILD[name](3000, 2101).state_dict().items():
        assert torch.equal(grown.state_dict()[key], value), key


@pytest.mark.parametrize("name", BUILD)
@pytest.mark.parametrize("drop", [False, True])
def test_rows_of_known_ids_are_kept_wherever_their_numbers_land(name: str, drop: bool) -> None:
    old = log(["bob", "dan", "eve"], ["tea", "milk", "rice"])
    model = known(BUILD[name](3, 3), old)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    week = log(["ann", "eve", "dan", "zoe"], ["rice", "beer", "rice", "tea"])
    grown = extend(model, week, drop=drop)
    assert grown.model.user_ids is not None
    assert grown.model.item_ids is not None
    names = grown.model.user_ids.values.to_pylist()
    assert names == (["dan", "eve", "ann", "zoe"] if drop else ["bob", "dan", "eve", "ann", "zoe"])
    assert grown.interactions.user_ids is grown.model.user_ids
    assert grown.model.user_ids.decode(grown.interactions.users) == ["ann", "eve", "dan", "zoe"]
    assert grown.model.item_ids.decode(grown.interactions.items) == ["rice", "beer", "rice", "tea"]
    fresh = BUILD[name](grown.model.num_users, grown.model.num_items)
    for table in model.embeddings.tables:
        assert old.user_ids is not None
        assert old.item_ids is not None
        was = old.user_ids.values.to_pylist() if table.side == "user" else old.item_ids.values.to_pylist()
        now = names if table.side == "user" else grown.model.item_ids.values.to_pylist()
        for number, raw in enumerate(now):
            row = grown.model.embeddings.weight(table.name)[number]
            if raw in was:
                assert torch.equal(row, model.embeddings.weight(table.name)[was.index(raw)])
            else:
                assert torch.equal(row, fresh.embeddings.weight(table.name)[number])
    for key, value in model.state_dict().items():
        if not key.startswith("embeddings."):
            assert torch.equal(grown.model.state_dict()[key], value)
    users, items = torch.tensor([2]), torch.tensor([[0, 1]])
    before = model(users, items)
    with torch.no_grad():
        for parameter in grown.model.parameters():
            parameter.zero_()
    assert torch.equal(model(users, items), before)  # no memory is shared


@pytest.mark.parametrize("name", BUILD)
@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
def test_training_continues_as_in_the_large_model_where_no_new_row_is_used(
    name: str, optimizer: Any, interactions: Interactions
) -> None:
    results = []
    for rows in (40, 45):
        model = BUILD[name](rows, 60)
        first = Trainer(model, epochs=1, batch_size=64, selection="last", optimizer=optimizer)
        first.fit(Split(interactions, None, interactions))
        trained: EmbeddingModel = first.model
        onward = trained
        second: Trainer
        if rows == 40:
            bigger = Interactions(interactions.users, interactions.items, None, 45, 60)
            grown = extend(trained, bigger)
            onward = grown.model
            second = Trainer(onward, epochs=1, batch_size=64, selection="last", optimizer=optimizer, seed=1)
            grown.carry_state(trained, first.optimizer, second.optimizer)
        else:
            second = Trainer(onward, epochs=1, batch_size=64, selection="last", optimizer=optimizer, seed=1)
            second.optimizer.load_state_dict(first.optimizer.state_dict())
            for group in second.optimizer.param_groups:
                group["initial_lr"] = group.get("initial_lr", group["lr"])
        second.fit(Split(interactions, None, interactions))
        results.append({key: value.clone() for key, value in onward.state_dict().items()})
    for key, value in results[0].items():
        assert torch.equal(value, results[1][key]), key


@pytest.mark.parametrize("side", ["user", "item"])
@pytest.mark.parametrize("features", [False, True])
def test_new_ids_start_at_the_rows_that_fold_in_finds(side: Any, features: bool) -> None:
    tags = {"id": ["ann", "bob", "dan", "eve", "zoe"], "tag": ["a", "b", "a", "b", "a"]}
    old = log(["bob", "dan", "eve", "eve"], ["tea", "milk", "rice", "tea"])
    week = log(["ann", "zoe", "dan", "ann"], ["rice", "beer", "ale", "tea"])
    given: dict[str, Any] = {}
    new: dict[str, Any] = {}
    if features:
        given["user_features"] = Features.from_table(tags, "id", ids=old.user_ids)
        new["user_features"] = Features.from_table(tags, "id", like=given["user_features"])
    model = known(GMF(3, 3, factors=8, init_std=0.5, seed=3, **given), old)
    grown = extend(model, week, **new)
    with torch.no_grad():
        grown.model.embeddings.weight("user_gmf")[grown.model.num_users :].normal_()
    numbers = (getattr(grown, f"old_{side}s") < 0).nonzero()[:, 0]
    ids, others = (
        getattr(grown.model, f"{each}_ids") for each in (side, "item" if side == "user" else "user")
    )
    wanted: dict[str, list[str]] = {"ann": ["rice", "tea"], "zoe": ["beer"], "beer": ["zoe"], "ale": ["dan"]}
    histories = grown.histories(side)
    for number, history in zip(numbers.tolist(), histories, strict=True):
        assert others.decode(history) == wanted[ids.decode(torch.tensor([number]))[0]]
    before = grown.model.embeddings.weights()[f"{side}_gmf"].detach().clone()
    folded = ncf.fold_in(grown.model, histories, side=side)
    grown.start(folded.rows)
    after = grown.model.embeddings.weights()[f"{side}_gmf"]
    torch.testing.assert_close(after[numbers], folded.rows[f"{side}_gmf"])
    kept = torch.ones(len(after), dtype=torch.bool)
    kept[numbers] = False
    assert torch.equal(after[kept], before[kept])


def test_a_week_without_new_ids_has_nothing_to_fold_in() -> None:
    old = log(["bob", "dan"], ["tea", "milk"])
    grown = extend(known(GMF(2, 2, factors=4), old), log(["dan"], ["tea"]))
    assert grown.histories() == grown.histories("item") == []
    before = grown.model.embeddings.weight("user_gmf").detach().clone()
    grown.start(ncf.fold_in(grown.model, grown.histories()).rows)
    assert torch.equal(grown.model.embeddings.weight("user_gmf"), before)
    with pytest.raises(ValueError, match=r"rows\['user_gmf'\] is \[1, 4\], for new rows of \[0, 4\]"):
        grown.start({"user_gmf": torch.zeros(1, 4, dtype=torch.float32)})
    with pytest.raises(ValueError, match="the table 'user_mlp': the model has user_gmf, item_gmf"):
        grown.start({"user_mlp": torch.zeros(0, 4, dtype=torch.float32)})


@pytest.mark.parametrize("drop", [False, True])
def test_a_log_of_other_ids_is_not_replayed(drop: bool) -> None:
    old = log(["bob", "dan", "eve"], ["tea", "milk", "rice"])
    grown = extend(known(GMF(3, 3, factors=4), old), log(["dan", "zoe"], ["milk", "rice"]), drop=drop)
    assert len(grown.with_replay(old)) == (3 if drop else 5) - 1
    for others in (["bob", "dan", "flo"], ["bob", "cat", "dan"]):
        if drop and others[1] == "dan":
            continue  # dan alone was kept, with the number that he has there
        with pytest.raises(ValueError, match="number other user ids than the model that was extended"):
            grown.with_replay(log(others, ["tea", "milk", "rice"]))
    with pytest.raises(ValueError, match="number other item ids"):
        grown.with_replay(log(["bob", "dan", "eve"], ["tea", "milk", "tea"]))
    with pytest.raises(ValueError, match="side = 'film': choose"):
        grown.histories("film")  # type: ignore[arg-type]


def test_old_positives_are_replayed_in_their_share_and_pairs_count_once() -> None:
    old = log([0, 0, 1, 2], [0, 1, 1, 2])
    model = known(GMF(3, 3, factors=4), old)
    grown = extend(model, log([1, 7], [1, 0]))
    everything = grown.with_replay(old)
    pairs = sorted(zip(everything.users.tolist(), everything.items.tolist(), strict=True))
    assert pairs == [(0, 0), (0, 1), (1, 1), (2, 2), (3, 0)]
    assert len(grown.with_replay(old, 0.0)) == 2
    many = log(list(range(3)) * 2000, [number // 3 for number in range(6000)])
    grown = extend(known(GMF(3, 2000, factors=4), many), log([1], [1]))
    share = (len(grown.with_replay(many, 0.3)) - 1) / 6000
    assert share == pytest.approx(0.3, abs=0.03)
    with pytest.raises(ValueError, match=r"share = 1\.5"):
        grown.with_replay(many, 1.5)


def test_a_saved_model_is_grown_without_values_and_sharded(tmp_path: Path) -> None:
    old = log(list(range(30)), list(range(30)))
    model = known(NeuMF(30, 30, factors=8, layers=(16, 8), init_std=0.5), old)
    model.save(tmp_path)
    week = log([3, 77], [88, 4])
    expected = extend(model, week).model
    lazily = extend(ncf.load(tmp_path, device="meta"), week)
    sharded = shard(lazily.model, "table_wise", verbose=False)
    users, items = torch.arange(31), torch.arange(31)
    assert torch.equal(sharded(users, items), expected(users, items))


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    table: Any = {"user": ["ann"], "item": ["tea"]}
    with pytest.raises(TypeError, match="interactions are dict"):
        extend(GMF(2, 2), table)
    with pytest.raises(TypeError, match="read it with Features"):
        GMF(2, 2, item_features=table)
    model = known(GMF(2, 2, factors=4), log(["a", "b"], ["x", "y"]))
    with pytest.raises(ValueError, match="user_ids holds int64 in the interactions"):
        extend(model, log([1], ["x"]))
    with pytest.raises(ValueError, match="rows of it are to be dropped"):
        extend(GMF(5, 5, device="meta"), log([1], [1]), drop=True)
    with pytest.raises(ValueError, match="given on one side only"):
        extend(GMF(5, 5), log(["a"], ["b"]))
