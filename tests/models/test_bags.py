from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ncf
from ncf import (
    GMF,
    MLP,
    Features,
    Interactions,
    MatrixFactorization,
    NeuMF,
    Split,
    Trainer,
    Vocabulary,
    extend,
)
from ncf.distributed.sharding import shard
from ncf.models.base import EmbeddingModel

FILMS: dict[str, Any] = {
    "film": ["Alien", "Brazil", "Casablanca"],
    "genres": [["horror", "space"], ["satire"], None],
    "hours": [1.9, 2.2, None],
}
ITEMS = Features.from_table(FILMS, "film")
USERS = Features.from_table({"id": range(4), "age": [10.0, 20.0, 30.0, 40.0]}, "id")
BUILD: dict[str, Callable[..., EmbeddingModel]] = {
    "GMF": lambda u, i, **kw: GMF(u, i, factors=8, seed=3, init_std=1.0, **kw),
    "MLP": lambda u, i, **kw: MLP(u, i, layers=(16, 8), seed=3, init_std=1.0, **kw),
    "NeuMF": lambda u, i, **kw: NeuMF(u, i, factors=8, layers=(16, 8), seed=3, init_std=1.0, **kw),
    "MatrixFactorization": lambda u, i, **kw: MatrixFactorization(
        u, i, factors=7, seed=3, init_std=1.0, **kw
    ),
}


def week(items: list[str]) -> Interactions:
    return Interactions.from_arrays(list(range(4))[: len(items)] + [3], [*items, items[0]])


def trained(name: str, **kw: Any) -> EmbeddingModel:
    model = BUILD[name](4, 3, item_features=ITEMS, **kw)
    model.user_ids, model.item_ids = Vocabulary(range(4)), ITEMS.ids
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


@pytest.mark.parametrize("name", BUILD)
def test_a_row_is_the_sum_of_the_ids_and_its_features_rows(name: str) -> None:
    model = trained(name)
    rows = model.embeddings(torch.tensor([1]), torch.tensor([[0, 2, 1]]))
    for table in model.embeddings.tables:
        weight = model.embeddings.weight(table.name)
        if table.side == "user":
            assert torch.equal(rows[table.name][0, 0], weight[1])
            continue
        assert weight.shape == (3 + 4, table.dim)
        hours = ITEMS.of("Alien")[("hours", None)]
        expected = [
            weight[0] + weight[3] + weight[5] + hours * weight[6],
            weight[2],
            weight[1] + weight[4] - hours * weight[6],
        ]
        torch.testing.assert_close(rows[table.name][0], torch.stack(expected))
        torch.testing.assert_close(model.embeddings.weights()[table.name], torch.stack(expected)[[0, 2, 1]])


def test_an_id_with_features_starts_at_zero_and_others_as_without_features() -> None:
    plain, model = BUILD["GMF"](4, 3), BUILD["GMF"](4, 3, item_features=ITEMS)
    own, other = model.embeddings.weight("item_gmf"), plain.embeddings.weight("item_gmf")
    assert not own[:2].any()
    assert torch.equal(own[2], other[2])
    assert bool(own[3:].any(dim=1).all())
    part = torch.empty(3, 4)
    model.embeddings.table_fillers["item_gmf"](part, row=2, column=2)
    assert torch.equal(part, own[2:5, 2:6])


def test_ids_are_dropped_in_training_alone_and_only_where_features_stand_in() -> None:
    model = trained("GMF", id_dropout=0.9)
    users, items = torch.zeros(1000, dtype=torch.int64), torch.arange(3).repeat(334)[:1000]
    whole = model.embeddings.weights()["item_gmf"].detach()
    rows = model.embeddings(users, items, training=True)["item_gmf"].detach()
    dropped = whole - model.embeddings.weight("item_gmf")[:3].detach()
    for item, share in ((0, 0.9), (1, 0.9), (2, 0.0)):
        of_item = rows[items == item]
        gone = torch.isclose(of_item, dropped[item], atol=1e-6).all(dim=1)
        kept = torch.isclose(of_item, whole[item], atol=1e-6).all(dim=1)
        assert bool((gone | kept).all())
        assert float((~kept).double().mean()) == pytest.approx(share, abs=0.06)
    assert torch.equal(model.eval()(users[:3], items[:3]), model.train(False)(users[:3], items[:3]))
    assert torch.equal(
        model.train().predict(users[:3], items[:3]), model.eval().predict(users[:3], items[:3])
    )


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adam"])
def test_sparse_gradients_train_as_dense_ones_do(optimizer: str) -> None:
    """The oracle makes each row from a product with the matrix of features, and lets PyTorch differentiate it."""
    users, items = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([0, 1, 2, 0, 0])
    model = BUILD["GMF"](4, 3, item_features=ITEMS)
    matrix = torch.zeros(3, 7, dtype=torch.float32)
    matrix[range(3), range(3)] = 1.0
    matrix[0, 3], matrix[0, 5], matrix[0, 6] = 1.0, 1.0, ITEMS.of("Alien")[("hours", None)]
    matrix[1, 4], matrix[1, 6] = 1.0, ITEMS.of("Brazil")[("hours", None)]
    model.embeddings.sparse_gradients = optimizer != "adam"
    model(users, items).square().sum().backward()
    weights = [
        model.embeddings.weight(f"{side}_gmf").detach().clone().requires_grad_() for side in ("user", "item")
    ]
    logits = model.head(weights[0][users] * (matrix @ weights[1])[items]).squeeze(-1)
    logits.square().sum().backward()
    for side, weight in zip(("user", "item"), weights, strict=True):
        gradient = model.embeddings.weight(f"{side}_gmf").grad
        assert gradient is not None
        torch.testing.assert_close(gradient.to_dense(), weight.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", BUILD)
def test_a_new_item_is_ranked_by_its_features_alone(name: str) -> None:
    model = trained(name)
    new = {"film": ["Alien 2"], "genres": [["horror", "space"]], "hours": [1.9]}
    features = Features.from_table(new, "film", like=model.features("item"))
    grown = extend(model, week(["Alien", "Brazil"]), item_features=features).model
    assert grown.item_ids is not None
    assert list(grown.item_ids) == ["Alien", "Brazil", "Casablanca", "Alien 2"]
    with torch.no_grad():
        for table in model.embeddings.tables:  # the same film without the part of its id
            if table.side == "item":
                model.embeddings.weight(table.name)[0] = 0.0
    users = torch.arange(4)
    torch.testing.assert_close(grown.score(users, torch.tensor([3])), model.score(users, torch.tensor([0])))


def test_features_grow_with_new_values_and_known_items_keep_theirs() -> None:
    model = trained("GMF")
    new = {"film": ["Emma", "Brazil"], "genres": [["romance"], ["space"]], "hours": [2.0, 2.2]}
    features = Features.from_table(new, "film", like=model.features("item"), unknown="add")
    grown = extend(model, week(["Alien", "Dune"]), item_features=features)
    after = grown.model.features("item")
    assert after is not None
    assert list(after.ids or ()) == ["Alien", "Brazil", "Casablanca", "Dune", "Emma"]
    assert after.of("Alien") == ITEMS.of("Alien")
    assert after.of("Brazil") == features.of("Brazil")
    assert after.of("Emma") == features.of("Emma")
    assert after.of("Dune") == {}
    old, rows = model.embeddings.weight("item_gmf"), grown.model.embeddings.weight("item_gmf")
    assert torch.equal(rows[:3], old[:3])
    assert torch.equal(rows[5:9], old[3:])
    fresh = BUILD["GMF"](4, 5, item_features=after).embeddings.weight("item_gmf")
    assert torch.equal(rows[[3, 4, 9]], fresh[[3, 4, 9]])
    before, onto = (Trainer(each, epochs=1, progress=False) for each in (model, grown.model))
    before.optimizer.state[old] = {"exp_avg": old.detach().clone()}
    grown.carry_state(model, before.optimizer, onto.optimizer)
    moved = onto.optimizer.state[rows]["exp_avg"]
    assert torch.equal(moved[5:9], old[3:])
    assert not moved[[3, 4, 9]].any()


def test_a_grown_model_without_values_is_filled_as_one_with_values(tmp_path: Path) -> None:
    model = trained("NeuMF")
    model.save(tmp_path)
    new = {"film": ["Emma"], "genres": [["romance"]], "hours": [2.0]}
    features = Features.from_table(new, "film", like=model.features("item"), unknown="add")
    whole, later = (
        extend(each, week(["Alien", "Dune"]), item_features=features).model
        for each in (model, ncf.load(tmp_path, device="meta"))
    )
    sharded = shard(later, "table_wise", verbose=False).eval()
    users, items = torch.arange(4), torch.arange(5).expand(4, -1)
    torch.testing.assert_close(sharded(users, items), whole.eval()(users, items), atol=1e-5, rtol=1e-5)


def test_dropped_items_take_their_features_with_them() -> None:
    model = trained("GMF")
    grown = extend(model, week(["Brazil", "Casablanca"]), drop=True).model
    after = grown.features("item")
    assert after is not None
    assert list(after.ids or ()) == ["Brazil", "Casablanca"]
    assert after.of("Brazil") == ITEMS.of("Brazil")


def test_unfitting_features_are_named() -> None:
    with pytest.raises(ValueError, match="features of 3 ids for 4: read them with the vocabulary"):
        GMF(4, 4, item_features=ITEMS)
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"id_dropout = .*: give a probability"):
            GMF(4, 3, item_features=ITEMS, id_dropout=share)
    with pytest.raises(TypeError, match="GMF got an unexpected keyword argument 'item_feature'"):
        GMF(4, 3, item_feature=ITEMS)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="item_features: the model was built without"):
        extend(GMF(4, 3), Interactions(torch.tensor([0]), torch.tensor([0]), None, 4, 3), item_features=ITEMS)
    other = Features.from_table({"film": ["Alien"], "genres": [["war"]]}, "film")
    with pytest.raises(ValueError, match=r"read them with like=model.features\('item'\)"):
        extend(trained("GMF"), week(["Alien"]), item_features=other)
    with pytest.raises(ValueError, match="item_features differ: build gmf and mlp with the same"):
        NeuMF.from_pretrained(GMF(4, 3, item_features=ITEMS), MLP(4, 3))


def test_features_of_other_ids_than_the_datas_are_an_error() -> None:
    """As many films, of which one is another, so that its features would be those of the wrong film."""
    log = week(["Alien", "Brazil", "Dune"])
    with pytest.raises(ValueError, match=r"number different item ids.*ids=train.item_ids"):
        Trainer(GMF(4, 3, item_features=ITEMS), epochs=1).fit(Split(log, None, log))
    same = week(["Brazil", "Casablanca", "Alien"])
    Trainer(GMF(4, 3, item_features=ITEMS), epochs=1, selection="last", progress=False).fit(same)


def test_pretrained_parts_keep_their_features() -> None:
    gmf, mlp = (trained(name) for name in ("GMF", "MLP"))
    fused = NeuMF.from_pretrained(gmf, mlp, alpha=0.5)  # type: ignore[arg-type]
    users, items = torch.arange(4), torch.arange(3).expand(4, -1)
    torch.testing.assert_close(fused(users, items), (gmf(users, items) + mlp(users, items)) / 2)


def test_a_resumed_run_with_dropped_ids_ends_as_one_that_was_not_stopped(
    split: Split, tmp_path: Path
) -> None:
    tags = Features.from_table(
        {"id": range(60), "tag": [n % 7 for n in range(60)]}, "id", ids=split.train.num_items
    )

    def run(epochs: int) -> EmbeddingModel:
        model = GMF(
            split.train.num_users, split.train.num_items, factors=8, item_features=tags, id_dropout=0.3
        )
        trainer = Trainer(
            model, epochs=4, batch_size=64, selection="last", progress=False, checkpoint=tmp_path / "run"
        )
        trainer.schedule = "constant"
        trainer.fit(split)
        return model

    first, second = run(4), run(4)
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
