"""`ncf.fit`: settings from the data, and a model that ranks."""

from __future__ import annotations

import copy
import logging
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import ncf
from ncf.data.interactions import Interactions
from ncf.models.baselines.spectral import Spectral
from ncf.training.recipes import Recipe, blending, recipe_for
from ncf.training.recipes.blending import fuse
from ncf.training.recipes.parts import Part, _faded, histories

FAST = {"epochs": 2, "softmax_epochs": 4, "mlp_epochs": 1, "members": 1, "spectral": 8}


def shop(num_users: int = 300, num_items: int = 60, each: int = 8, seed: int = 0) -> Interactions:
    """Users who buy within one of three groups of items, three times of four."""
    random = torch.Generator("cpu").manual_seed(seed)
    users = torch.arange(num_users).repeat_interleave(each)
    group = torch.randint(3, (num_users,), generator=random)[users]
    within = torch.randint(num_items // 3, (len(users),), generator=random) * 3 + group
    anywhere = torch.randint(num_items, (len(users),), generator=random)
    items = torch.where(torch.rand(len(users), generator=random) < 0.75, within, anywhere)
    return Interactions.from_arrays(users, items)


@pytest.mark.parametrize("name", ["NeuMF", "GMF", "MLP", "MatrixFactorization"])
def test_fit_returns_the_named_model_which_saves_and_loads(name, tmp_path):
    model = ncf.fit(shop(), name, **FAST)
    assert type(model).__name__ == name
    assert not model.training
    assert model.history.epochs
    model.save(tmp_path / "model")
    users, items = torch.arange(5), torch.arange(60).expand(5, -1)
    loaded = ncf.load(tmp_path / "model")
    torch.testing.assert_close(loaded.score(users, items), model.score(users, items))
    assert loaded.record["recipe"].startswith(f"{name}: 2,")


def test_fit_ranks_better_than_popularity():
    split = ncf.leave_one_out(shop(), validation=False)
    candidates = ncf.whole_catalogue(split)
    fitted = ncf.evaluate(ncf.fit(split, "GMF", **FAST), candidates).hr
    assert fitted > ncf.evaluate(ncf.ItemPop(split.train), candidates).hr + 0.1


@pytest.mark.parametrize("name", ["GMF", "MLP"])
@pytest.mark.parametrize(("num_users", "num_items", "each"), [(100, 50, 6), (1000, 300, 8), (1500, 600, 6)])
def test_fit_is_as_good_as_popularity_where_there_is_nothing_else(name, num_users, num_items, each):
    odds = torch.arange(1, num_items + 1, dtype=torch.float64).reciprocal()
    random = torch.Generator("cpu").manual_seed(1)
    items = torch.multinomial(odds, num_users * each, replacement=True, generator=random)
    data = Interactions.from_arrays(torch.arange(num_users).repeat_interleave(each), items)
    split = ncf.leave_one_out(data, validation=False)
    candidates = ncf.whole_catalogue(split)
    fitted = ncf.evaluate(ncf.fit(split, name, **FAST), candidates).ndcg
    assert fitted > ncf.evaluate(ncf.ItemPop(split.train), candidates).ndcg - 0.001


@pytest.mark.parametrize("validation", [False, True])
def test_fit_never_looks_at_the_test_set(validation):
    split = ncf.leave_one_out(shop(), validation=validation)
    others = copy.copy(split)
    object.__setattr__(others, "test", split.test.take(torch.arange(1)))
    first, second = (ncf.fit(data, "GMF", **FAST) for data in (split, others))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_same_seed_same_model_and_another_seed_another():
    first, same, other = (ncf.fit(shop(), "NeuMF", seed=seed, **FAST) for seed in (0, 0, 1))
    rows = [model.embeddings.weight("user_gmf") for model in (first, same, other)]
    assert torch.equal(rows[0], rows[1])
    assert rows[0].shape != rows[2].shape or not torch.equal(rows[0], rows[2])


def test_settings_follow_the_data():
    dense = Interactions.from_arrays(*torch.cartesian_prod(torch.arange(120), torch.arange(120)).unbind(1))
    assert recipe_for(dense).losses == ("bce",)
    assert recipe_for(shop(3000, 3000, 5)).losses == ("softmax",)
    assert recipe_for(shop(3000, 3000, 5)).temperature > recipe_for(shop(3000, 3000, 20)).temperature


def walks(num_users: int = 400, num_items: int = 80, each: int = 10, seed: int = 0) -> Interactions:
    """Users who go on from item n to n + 1 or n + 2, with the moments as timestamps."""
    random = torch.Generator("cpu").manual_seed(seed)
    start = torch.randint(num_items, (num_users, 1), generator=random)
    steps = torch.randint(1, 3, (num_users, each), generator=random)
    times = torch.arange(each).expand(num_users, -1)
    users = torch.arange(num_users)[:, None].expand(-1, each)
    items = (start + steps.cumsum(1)) % num_items
    shuffled = torch.randperm(num_users * each, generator=random)
    columns = (column.reshape(-1)[shuffled] for column in (users, items))
    return Interactions.from_arrays(*columns, timestamps=times.reshape(-1)[shuffled])


def test_histories_are_in_the_order_of_time():
    data = walks(20, 30, 6)
    offsets, rows = histories(data)
    for user in range(data.num_users):
        own = (data.users == user).nonzero()[:, 0].tolist()
        expected = sorted(own, key=lambda row: (int(data.timestamps[row]), row))
        assert rows[offsets[user] : offsets[user + 1]].tolist() == expected


def test_faded_sums_equal_those_written_out():
    data, rows = walks(20, 30, 6), torch.randn(30, 5, dtype=torch.float64)
    expected = torch.zeros(20, 5, dtype=torch.float64)
    for user in range(20):
        own = sorted(
            (int(time), int(item))
            for time, item in zip(
                data.timestamps[data.users == user], data.items[data.users == user], strict=True
            )
        )
        for age, (_, item) in enumerate(reversed(own)):
            expected[user] += 0.5**age * rows[item]
    torch.testing.assert_close(_faded(data, rows, 0.5), expected)


@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize("validation", [False, True])
def test_the_order_of_time_tells_the_next_item(validation, timestamps):
    data = walks()
    if not timestamps:  # then the lines are in order
        rows = histories(data)[1]
        data = Interactions.from_arrays(data.users[rows], data.items[rows])
    split = ncf.leave_one_out(data, validation=validation)
    candidates = ncf.whole_catalogue(split)
    known = ncf.fit(split, "GMF", **FAST)
    unknown = ncf.fit(Interactions.from_arrays(split.train.users, split.train.items), "GMF", **FAST)
    assert ncf.evaluate(known, candidates).ndcg > ncf.evaluate(unknown, candidates).ndcg + 0.1
    for part in ("last", "next"):
        assert f"{part} 0," not in known.record["recipe"]
        assert part in known.record["recipe"]
        assert part not in unknown.record["recipe"]


def test_timestamps_that_follow_the_items_are_no_times():
    data = shop()
    numbered = Interactions.from_arrays(data.users, data.items, timestamps=data.items)
    assert "last" not in ncf.fit(numbered, "GMF", **FAST).record["recipe"]


def test_users_who_judge_strengths_are_not_the_first_ones(monkeypatch):
    """The first part knows the held-out items of the first 100 users, the second those of the other 300."""
    monkeypatch.setattr(blending, "_JUDGES", 100)
    random = torch.Generator("cpu").manual_seed(0)
    users, items = torch.arange(400), torch.randint(1, 20, (400,), generator=random)
    scores = torch.rand(2, 400, 20, generator=random)
    scores[0, users[:100], items[:100]] += 5
    scores[1, users[100:], items[100:]] += 5
    parts = [Part(name, rows, torch.eye(20)) for name, rows in zip(("first", "second"), scores, strict=True)]
    train = Interactions(users, torch.zeros(400, dtype=torch.int64), None, 400, 20)
    held_out = Interactions(users, items, None, 400, 20)
    assert blending.choose_strengths(parts, train, held_out, seed=0)["second"] > 0


@pytest.mark.parametrize("listed", [400, 30])
def test_judged_ranks_are_those_of_the_whole_catalogue(monkeypatch, listed):
    """With lists of the best of each part, exactly for a part alone, and nearly for a sum."""
    monkeypatch.setattr(blending, "_LISTED", listed)
    monkeypatch.setattr(blending, "_DEPTH", 10)
    monkeypatch.setattr(blending, "_SCORES", 7 * 400 * 3)  # users in blocks of seven
    random = torch.Generator("cpu").manual_seed(0)
    users, items = torch.arange(200), torch.randint(50, 400, (200,), generator=random)
    scores = torch.randn(3, 200, 400, generator=random)
    scores[:, users, items] += 3.0
    scores[1] = scores[1].round()  # ties
    parts = [Part(name, rows, torch.eye(400)) for name, rows in zip("abc", scores, strict=True)]
    seen = torch.stack([torch.randperm(50, generator=random)[:5] for _ in users])
    train = Interactions(users.repeat_interleave(5), seen.flatten(), None, 200, 400)
    compared = blending._compared(parts, train, users, items)
    units = [rows.std(dim=1).mean() for rows in scores]
    near = []
    for strengths in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.5, 0.3), (1.0, 1.0, 1.0)):
        total = sum(s * rows / unit for s, rows, unit in zip(strengths, scores, units, strict=True))
        expected = []
        for user, item in zip(users.tolist(), items.tolist(), strict=True):
            others = set(range(400)) - set(seen[user].tolist()) - {item}
            rank = sum(float(total[user, other]) >= float(total[user, item]) for other in others)
            expected.append(1 / math.log2(rank + 2) if rank < 10 else 0.0)
        found = blending._quality(dict(zip("abc", strengths, strict=True)), compared)
        near.append(float((found - torch.tensor(expected)).abs().mean()))
    assert max(near[:3]) < 1e-6
    assert max(near[3:]) < (1e-6 if listed == 400 else 0.005)


def test_order_without_a_gain_does_not_count():
    split = ncf.split_by_ratio(shop(each=6), test=0.2, validation=0.2, seed=0)
    assert "last 0, recent 0," in ncf.fit(split, "GMF", **FAST).record["recipe"]


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="model = 'NCF': choose one of 'NeuMF'"):
        ncf.fit(shop(), "NCF")
    with pytest.raises(TypeError, match="'width' is no setting of fit: choose among"):
        ncf.fit(shop(), "GMF", width=3)
    with pytest.raises(TypeError, match="data must be Interactions or a Split, got list"):
        ncf.fit([1, 2], "GMF")


def test_a_user_with_few_interactions_is_no_obstacle():
    assert ncf.fit(Interactions.from_arrays([0, 1, 2], [0, 1, 2]), "GMF", **FAST).num_users == 3


def test_model_object_is_trained_in_place_and_keeps_its_widths():
    model = ncf.GMF(300, 60, factors=4)
    assert ncf.fit(shop(), model, **FAST) is model
    assert model.config["factors"] == 4
    assert torch.equal(model.head.weight, torch.ones(1, 4))
    assert model.record == {"recipe": "GMF as given: bce, 2 epochs, batches of 512"}


def test_a_cosine_with_features_is_trained_by_softmax_and_ranks_a_new_item():
    data = shop()
    table = {"item": range(60), "shelf": [f"shelf {item % 3}" for item in range(60)]}
    features = ncf.Features.from_table(table, "item", ids=data.item_ids)
    model = ncf.MatrixFactorization(300, 60, factors=16, cosine=True, item_features=features, id_dropout=0.2)
    ncf.fit(data, model, softmax_epochs=10, temperature=0.15)
    assert "SampledSoftmax(temperature=0.15), 10 epochs" in model.record["recipe"]
    new = ncf.Features.from_table({"item": [60, 61], "shelf": ["shelf 0", "shelf 1"]}, "item", like=features)
    grown = ncf.extend(model, data, item_features=new).model
    favourite = torch.bincount(data.users * 3 + data.items % 3, minlength=900).view(300, 3).argmax(1)
    scores = grown.score(torch.arange(300), torch.tensor([60, 61]))
    assert float((scores[favourite == 0, 0] > scores[favourite == 0, 1]).double().mean()) > 0.9
    assert float((scores[favourite == 1, 1] > scores[favourite == 1, 0]).double().mean()) > 0.9


@contextmanager
def ctrl_c_after(epoch: int) -> Iterator[list[str]]:
    """Send SIGINT to this process when so many epochs have been logged; yield the lines."""
    lines: list[str] = []

    class Impatient(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())
            if len(lines) == epoch:
                signal.raise_signal(signal.SIGINT)

    logger, handler = logging.getLogger("ncf.training"), Impatient()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
    try:
        yield lines
    finally:
        signal.signal(signal.SIGINT, before)
        logger.removeHandler(handler)
        logger.setLevel(level)


@pytest.mark.parametrize("name", ["NeuMF", "MLP", "MatrixFactorization"])
@pytest.mark.parametrize("epoch", [1, 6])
def test_ctrl_c_ends_fit_in_the_part_where_it_comes(name, epoch):
    settings = FAST | {"mlp_epochs": 4}
    with ctrl_c_after(epoch) as lines, pytest.raises(KeyboardInterrupt):
        ncf.fit(shop(), name, **settings)
    assert len(lines) == epoch


def test_ctrl_c_leaves_a_model_object_with_what_it_has():
    model = ncf.GMF(300, 60, factors=4)
    with ctrl_c_after(2) as lines:
        ncf.fit(shop(), model, **FAST | {"epochs": 5})
    assert model.history.interrupted
    assert len(lines) == 2


@pytest.mark.parametrize("layers", [(16,), (16, 8), (32, 16, 8)])
def test_popularity_beside_an_mlp_is_the_weighted_sum(layers):
    mlp = ncf.MLP(7, 30, layers=layers, init_std=1.0)
    counts = torch.arange(30, dtype=torch.float32).log1p()
    part = Part("popularity", torch.ones(7, 1, dtype=torch.float32), counts[:, None])
    wide = fuse(
        "MLP", [Part("mlp", mlp=mlp), part], {"mlp": 1.0, "popularity": 0.5}, shop(7, 30), Recipe(), 0
    )
    users, items = torch.arange(7), torch.arange(30).expand(7, -1)
    plain = mlp.score(users, items)
    weight = 0.5 * plain.std(dim=1).mean() / counts.std()
    torch.testing.assert_close(wide.score(users, items), plain + weight * counts)
    assert fuse("MLP", [Part("mlp", mlp=mlp), part], {"mlp": 1.0}, shop(7, 30), Recipe(), 0) is mlp


def test_seconds_bound_the_epochs():
    assert len(ncf.fit(shop(), "GMF", seconds=1e-3, softmax_epochs=50, spectral=4).history) == 1


def test_spectral_is_the_truncated_svd_of_the_normalised_matrix():
    train = shop(40, 30, 6)
    dense = torch.zeros(40, train.num_items, dtype=torch.float64)
    dense[train.users, train.items] = 1
    degrees = [dense.sum(dim).clamp(min=1) for dim in (1, 0)]
    normalised = dense / (degrees[0][:, None] * degrees[1]).sqrt()
    _, _, right = torch.linalg.svd(normalised)
    expected = normalised @ right[:8].T @ right[:8] * degrees[1].sqrt()
    users, items = torch.arange(40), torch.arange(train.num_items).expand(40, -1)
    scores = Spectral(train, factors=8).score(users, items)
    torch.testing.assert_close(scores, expected.float(), atol=2e-2, rtol=0)
