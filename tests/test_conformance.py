"""What every model must do, whatever it is made of."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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
    Recommender,
    Split,
    Trainer,
    extend,
    fold_in,
)
from ncf.distributed.sharding import shard
from ncf.models.base import EmbeddingModel

USERS, ITEMS = 40, 60
AGES = Features.from_table(
    {"id": range(USERS), "age": [None if n % 9 == 0 else n / 2 for n in range(USERS)]}, "id"
)
TAGS = Features.from_table(
    {
        "id": range(ITEMS),
        "tags": [[f"tag {n % 7}", f"tag {n % 3}"] if n % 5 else [] for n in range(ITEMS)],
        "price": [n / 10 if n % 4 else None for n in range(ITEMS)],
    },
    "id",
)
BOTH: Any = {"user_features": AGES, "item_features": TAGS}
SMALL = Interactions(torch.tensor([0]), torch.tensor([0]), None, USERS, ITEMS)
MODELS: dict[str, Callable[..., EmbeddingModel]] = {
    "GMF": lambda **kw: GMF(USERS, ITEMS, factors=8, **kw),
    "MLP": lambda **kw: MLP(USERS, ITEMS, layers=(16, 8, 4), **kw),
    "MLP without a hidden layer": lambda **kw: MLP(USERS, ITEMS, layers=(16,), **kw),
    "NeuMF": lambda **kw: NeuMF(USERS, ITEMS, factors=8, layers=(16, 8), **kw),
    "NeuMF, wide": lambda **kw: NeuMF(USERS, ITEMS, factors=4, layers=(128, 64, 8), **kw),
    "MatrixFactorization": lambda **kw: MatrixFactorization(USERS, ITEMS, factors=8, **kw),
    "GMF with features": lambda **kw: GMF(USERS, ITEMS, factors=8, item_features=TAGS, **kw),
    "NeuMF with features": lambda **kw: NeuMF(
        USERS, ITEMS, factors=8, layers=(16, 8), id_dropout=0.5, **BOTH, **kw
    ),
    "MatrixFactorization with features": lambda **kw: MatrixFactorization(
        USERS, ITEMS, factors=8, **BOTH, **kw
    ),
    "NeuMF, grown": lambda **kw: (
        extend(NeuMF(USERS - 9, ITEMS - 7, factors=8, layers=(16, 8), **kw), SMALL).model
    ),
    "MLP with features, grown": lambda **kw: (
        extend(
            MLP(USERS, ITEMS - 20, layers=(16, 8), item_features=TAGS.take(torch.arange(ITEMS - 20)), **kw),
            SMALL,
            item_features=TAGS,
        ).model
    ),
}


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def build(request: pytest.FixtureRequest) -> Callable[..., EmbeddingModel]:
    return request.param


def ids(seed: int = 0, count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(0, USERS, (17,), generator=generator),
        torch.randint(0, ITEMS, (17, count), generator=generator),
    )


def test_logits_of_pairs_and_of_several_items_agree(build: Callable[..., EmbeddingModel]) -> None:
    model, (users, items) = build(init_std=1.0).eval(), ids()
    many = model(users, items)
    assert many.shape == (17, 3)
    assert many.dtype == torch.float32
    for column in range(3):
        single = model(users, items[:, column])
        assert single.shape == (17,)
        torch.testing.assert_close(single, many[:, column], atol=1e-5, rtol=1e-5)


def test_probabilities_stay_inside_the_open_interval(build: Callable[..., EmbeddingModel]) -> None:
    model, (users, items) = build(init_std=30.0), ids()
    probabilities = model.predict(users, items)
    assert bool(((probabilities > 0) & (probabilities < 1)).all())
    plain = build(init_std=0.5).eval()
    torch.testing.assert_close(plain.predict(users, items), torch.sigmoid(plain(users, items)).detach())


def test_the_gradient_reaches_every_parameter(build: Callable[..., EmbeddingModel]) -> None:
    model, (users, items) = build(init_std=1.0), ids()
    model(users, items).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0).any()), name


def test_scores_for_ranking_equal_the_logits(build: Callable[..., EmbeddingModel]) -> None:
    model = build(init_std=1.0).eval()
    users, items = ids(count=9)
    scores = model.score(users, items)
    torch.testing.assert_close(scores, model(users, items).detach(), atol=1e-5, rtol=1e-5)
    everything = torch.arange(ITEMS).expand(17, -1)
    torch.testing.assert_close(
        model.score(users, everything), model(users, everything).detach(), atol=1e-5, rtol=1e-5
    )


def test_padding_scores_minus_infinity(build: Callable[..., EmbeddingModel]) -> None:
    model = build()
    scores = model.score(torch.tensor([1, 2]), torch.tensor([[3, -1], [-1, 4]]))
    assert scores.isinf().tolist() == [[False, True], [True, False]]


def test_a_scorer_is_frozen(build: Callable[..., EmbeddingModel]) -> None:
    model, (users, items) = build(init_std=1.0), ids()
    scorer = model.scorer()
    before = scorer.score(users, items)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert torch.equal(scorer.score(users, items), before)
    assert not torch.equal(model.score(users, items), before)


def test_fault_15_saved_and_loaded_scores_are_equal_to_the_bit(
    build: Callable[..., EmbeddingModel], tmp_path: Path
) -> None:
    model, (users, items) = build(init_std=1.0, seed=3).eval(), ids()
    model.save(tmp_path)
    again = ncf.load(tmp_path)
    assert type(again) is type(model)
    assert again.config == model.config
    assert torch.equal(again(users, items), model(users, items))
    assert not list(tmp_path.glob("*.p*t*l*"))  # no pickle


def test_the_same_seed_trains_to_the_same_bits(build: Callable[..., EmbeddingModel], split: Split) -> None:
    weights = []
    for seed in (1, 1, 2):
        model = build(seed=seed)
        Trainer(model, epochs=2, batch_size=64, seed=seed).fit(split)
        weights.append(torch.cat([value.flatten() for value in model.state_dict().values()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("method", ["score", "predict"])
def test_ids_out_of_range_are_named(build: Callable[..., EmbeddingModel], method: str) -> None:
    call = getattr(build(), method)
    with pytest.raises(ValueError, match=rf"users\[1\] = {USERS} is out of range for num_users = {USERS}"):
        call(torch.tensor([0, USERS]), torch.tensor([[0], [0]]))
    with pytest.raises(ValueError, match=rf"\[1, 0\] = {ITEMS} is out of range for num_items = {ITEMS}"):
        call(torch.tensor([0, 1]), torch.tensor([[0], [ITEMS]]))
    with pytest.raises(ValueError, match="users must be an int64 tensor"):
        call(torch.tensor([0.0]), torch.tensor([[0]]))
    with pytest.raises(ValueError, match="for users"):
        call(torch.tensor([0, 1]), torch.tensor([[0]]))


def test_predict_leaves_the_mode_and_the_gradients_alone(build: Callable[..., EmbeddingModel]) -> None:
    model, (users, items) = build(dropout=0.5, init_std=1.0), ids()
    for mode in (True, False):
        model.train(mode)
        first, second = model.predict(users, items), model.predict(users, items)
        assert torch.equal(first, second)  # no dropout
        assert not first.requires_grad
        assert model.training is mode
        torch.testing.assert_close(torch.sigmoid(model.score(users, items)), first)


def test_no_ids_and_no_candidates_give_empty_answers(build: Callable[..., EmbeddingModel]) -> None:
    model, none = build(), torch.empty(0, dtype=torch.int64)
    assert model(none, none).shape == (0,)
    assert model.predict(none, none.view(0, 1)).shape == (0, 1)
    assert model.score(none, none.view(0, 3)).shape == (0, 3)
    assert model.score(torch.tensor([1]), none.view(1, 0)).shape == (1, 0)


def test_padding_in_a_list_shared_by_all_users(build: Callable[..., EmbeddingModel]) -> None:
    model = build(init_std=1.0).eval()
    users, shared = torch.tensor([3, 0, 3]), torch.tensor([5, -1, 0, -1])
    expected = model(users, shared.clamp(min=0).expand(3, -1)).detach()
    expected[:, [1, 3]] = -torch.inf
    for listed in (shared.expand(3, -1), shared.repeat(3, 1)):
        torch.testing.assert_close(model.score(users, listed), expected, atol=1e-5, rtol=1e-5)
    assert bool(model.score(users, torch.full((3, 2), -1)).isneginf().all())


def test_the_config_builds_the_same_model_again(build: Callable[..., EmbeddingModel]) -> None:
    model = build(seed=4, init_std=0.3, dropout=0.2)
    again = type(model)(**json.loads(json.dumps(model.config)))
    assert again.config == model.config
    for name, buffer in again.named_buffers():  # features are not in the config, their sizes are
        assert buffer.shape == model.state_dict()[name].shape
    if model.embeddings.features:
        return
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_loaded_model_trains_on_as_the_saved_one(
    build: Callable[..., EmbeddingModel], split: Split, tmp_path: Path
) -> None:
    model = build(seed=3)
    model.save(tmp_path)
    results = []
    for each in (model, ncf.load(tmp_path)):
        Trainer(each, epochs=1, batch_size=64, selection="last").fit(split)
        results.append(torch.cat([value.flatten() for value in each.state_dict().values()]))
    assert torch.equal(results[0], results[1])


def test_parameters_are_named_alike_in_every_model(build: Callable[..., EmbeddingModel]) -> None:
    names = set(build().state_dict())
    tables = {name for name in names if name.startswith("embeddings.ebc.embedding_bags.")}
    assert tables
    for side in ("user", "item"):
        assert any(f".{side}_" in name for name in tables)
    assert "head.bias" in names
    assert all(name.startswith(("towers.", "head.", "embeddings.features.")) for name in names - tables)


@pytest.mark.parametrize("bad", [[0], np.array([0]), None])
def test_ids_that_are_no_tensor_are_refused(build: Callable[..., EmbeddingModel], bad: object) -> None:
    with pytest.raises(ValueError, match="users must be an int64 tensor of ids, got"):
        build().predict(bad, torch.tensor([0]))  # type: ignore[arg-type]


def test_every_model_is_sharded_and_gives_the_same_logits(build: Callable[..., EmbeddingModel]) -> None:
    """Over a world of one; several processes: see tests/distributed."""
    model, (users, items) = build(init_std=1.0).eval(), ids()
    expected = model(users, items).detach()
    for kind in ("table_wise", "data_parallel"):
        sharded = shard(copy.deepcopy(model), kind, verbose=False).eval()
        torch.testing.assert_close(sharded(users, items).detach(), expected, atol=1e-5, rtol=1e-5)
        scores = sharded.module.score(users, items)
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", ["bfloat16", "int8", "int4"])
def test_rows_of_every_model_are_saved_smaller(
    build: Callable[..., EmbeddingModel], rows: str, tmp_path: Path
) -> None:
    model, (users, items) = build(init_std=1.0).eval(), ids()
    model.save(tmp_path, rows=rows)
    close = {"bfloat16": 0.99, "int8": 0.99, "int4": 0.9}[rows]
    pair = torch.stack([ncf.load(tmp_path)(users, items).flatten(), model(users, items).flatten()])
    assert float(torch.corrcoef(pair.detach())[0, 1]) > close


def test_every_model_answers_and_folds_in(build: Callable[..., EmbeddingModel]) -> None:
    model = build(init_std=1.0)
    recommender = Recommender(model)
    assert len(recommender.recommend([3], k=5).items[0]) == 5
    assert recommender.recommend(history=[1, 2], k=5).sources == ["history"]
    unknown = recommender.recommend([USERS + 5, 3], k=5, unknown="prior")
    assert unknown.sources == ["prior", "model"]
    assert unknown.items[0] == recommender.recommend(history=[[]], k=5).items[0]
    if model.scoring_tables().item_hidden is not None or model.scoring_tables().item_gmf is not None:
        assert len(recommender.similar([4], k=3).items[0]) == 3
    else:
        with pytest.raises(TypeError, match="MLP has no item vectors to compare"):
            recommender.similar([4], k=3)
    rows = fold_in(model, [[1, 2], [5]]).rows
    assert {len(value) for value in rows.values()} == {2}
