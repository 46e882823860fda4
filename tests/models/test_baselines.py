from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from ncf import EASE, Interactions, ItemKNN, ItemPop, evaluate, leave_one_out, recommend, sample_candidates
from ncf.data.candidates import whole_catalogue
from ncf.models.baselines import ALS, Baseline, base


def random_interactions(num_users: int = 40, num_items: int = 25, seed: int = 0) -> Interactions:
    generator = torch.Generator().manual_seed(seed)
    taste = torch.rand(num_users, 1, generator=generator) * torch.rand(num_items, generator=generator)
    users, items = (torch.rand(num_users, num_items, generator=generator) < taste).nonzero(as_tuple=True)
    order = torch.randperm(len(users), generator=generator)  # the last row of a user is held out
    return Interactions(users[order], items[order], None, num_users, num_items)


def matrix(train: Interactions) -> np.ndarray:
    dense = np.zeros((train.num_users, train.num_items))
    dense[train.users.numpy(), train.items.numpy()] = 1
    return dense


def scores_of_all(model: Baseline) -> Tensor:
    users = torch.arange(model.num_users)
    return model.score(users, torch.arange(model.num_items).expand(len(users), -1))


def als(train: Interactions) -> ALS:
    pytest.importorskip("implicit", reason="implicit is an optional extra")
    return ALS(train, factors=4)


MODELS: list[Callable[[Interactions], Baseline]] = [ItemPop, ItemKNN, EASE, als]


def test_popularity_is_the_number_of_interactions() -> None:
    train = random_interactions()
    counts = matrix(train).sum(0)
    assert scores_of_all(ItemPop(train)).tolist() == [counts.tolist()] * train.num_users


@pytest.mark.parametrize("shrinkage", [0.0, 3.5])
@pytest.mark.parametrize("neighbours", [1, 4, 100])
def test_item_knn_agrees_with_its_definition(neighbours: int, shrinkage: float) -> None:
    train = random_interactions()
    touched = [set(np.flatnonzero(column)) for column in matrix(train).T]  # users of each item
    expected = np.zeros((train.num_users, train.num_items))
    for item in range(train.num_items):
        similarity = {
            other: len(touched[item] & touched[other])
            / ((len(touched[item]) * len(touched[other])) ** 0.5 + shrinkage or 1)
            for other in range(train.num_items)
            if other != item
        }
        best = sorted(similarity.values(), reverse=True)
        near = {other for other, value in similarity.items() if value >= best[:neighbours][-1]}
        if len(near) > neighbours and best[neighbours - 1] > 0:  # which of equals is kept is not defined
            expected[:, item] = np.nan
            continue
        for user in range(train.num_users):
            expected[user, item] = sum(similarity[other] for other in near if user in touched[other])
    known = ~np.isnan(expected)
    assert known.mean() > 0.5
    scores = scores_of_all(ItemKNN(train, neighbours=neighbours, shrinkage=shrinkage)).numpy()
    np.testing.assert_allclose(scores[known], expected[known], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("regularization", [0.5, 20.0])
def test_ease_is_a_ridge_regression_of_every_item_on_the_others(regularization: float) -> None:
    train = random_interactions()
    X = matrix(train)
    expected = np.empty_like(X)
    for item in range(train.num_items):
        others = np.delete(X, item, axis=1)
        penalty = regularization**0.5 * np.eye(others.shape[1])
        target = np.concatenate([X[:, item], np.zeros(others.shape[1])])
        weights = np.linalg.lstsq(np.concatenate([others, penalty]), target, rcond=None)[0]
        expected[:, item] = others @ weights
    scores = scores_of_all(EASE(train, regularization=regularization))
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_als_gives_the_scores_of_implicit() -> None:
    train = random_interactions()
    model = als(train)
    from implicit.cpu.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix

    theirs = AlternatingLeastSquares(factors=4, num_threads=1)
    theirs.user_factors, theirs.item_factors = model.user_factors.numpy(), model.item_factors.numpy()
    rows = csr_matrix(matrix(train))
    items, scores = theirs.recommend(np.arange(40), rows, N=25, filter_already_liked_items=False)
    ours = model.score(torch.arange(40), torch.from_numpy(items.astype(np.int64)))
    np.testing.assert_allclose(ours.numpy(), scores, rtol=1e-4, atol=1e-5)
    touched = scores_of_all(model)[torch.from_numpy(matrix(train)) > 0]
    assert touched.mean() > scores_of_all(model).mean()  # it was fitted to this matrix, not to its transpose


@pytest.mark.parametrize("make", MODELS)
def test_lists_of_candidates_are_columns_of_the_whole_catalogue(
    make: Callable[[Interactions], Baseline], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = random_interactions()
    model = make(train)
    whole = scores_of_all(model)
    users = torch.tensor([5, 39, 5, 0])
    lists = torch.randint(25, (4, 7), generator=torch.Generator().manual_seed(0))
    lists[1, 3] = lists[2, 0] = -1
    expected = whole[users].gather(1, lists.clamp(min=0)).masked_fill(lists < 0, -torch.inf)
    for pairs in (1 << 22, 60):  # one block, and blocks of two users
        monkeypatch.setattr(base, "_SCORES_PER_BLOCK", pairs)
        torch.testing.assert_close(model.score(users, lists), expected)
        shared = lists[1].expand(4, -1)
        torch.testing.assert_close(model.score(users, shared), model.score(users, shared.contiguous()))
        torch.testing.assert_close(model.score(users[:1], lists[:1]), expected[:1])
        torch.testing.assert_close(scores_of_all(model), whole)
    assert model.score(users[:0], lists[:0]).shape == (0, 7)


@pytest.mark.parametrize("make", MODELS)
def test_a_user_without_history_and_an_item_without_users(make: Callable[[Interactions], Baseline]) -> None:
    few = Interactions(torch.tensor([0, 0, 2]), torch.tensor([0, 1, 1]), None, 4, 5)
    assert scores_of_all(make(few)).isfinite().all()


@pytest.mark.parametrize("make", MODELS)
def test_judged_and_asked_like_any_model(make: Callable[[Interactions], Baseline]) -> None:
    interactions = random_interactions(num_users=200, num_items=50)
    split = leave_one_out(interactions, validation=False)
    model = make(split.train)
    candidates = sample_candidates(split, num_negatives=10)
    assert evaluate(model, candidates, k=5).auc > 0.5
    assert evaluate(model, whole_catalogue(split), k=5).auc > 0.5
    lists = recommend(model, [3, 0], k=4, exclude=split.train).items
    assert not set(lists[0]) & set(split.train.items[split.train.users == 3].tolist())


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize(
    ("users", "candidates", "message"),
    [
        ([40], [[0]], r"users\[0\] = 40 is out of range for num_users = 40"),
        ([0], [[0, 25]], r"candidates\[0, 1\] = 25 is out of range for num_items = 25"),
        ([0], [[-2]], r"candidates\[0, 0\] = -2"),
        ([-1], [[0]], r"users\[0\] = -1"),
        ([0, 1], [[0]], r"candidates \(1, 1\) must be \[U, C\]"),
        ([0.0], [[0]], "users must be an int64 tensor"),
    ],
)
def test_ids_out_of_range(
    make: Callable[[Interactions], Baseline], users: list[int], candidates: list[list[int]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(random_interactions()).score(torch.tensor(users), torch.tensor(candidates))


def test_arguments_out_of_range() -> None:
    train = random_interactions()
    with pytest.raises(ValueError, match="neighbours = 0"):
        ItemKNN(train, neighbours=0)
    with pytest.raises(ValueError, match="shrinkage = -1"):
        ItemKNN(train, shrinkage=-1)
    with pytest.raises(ValueError, match="regularization = 0"):
        EASE(train, regularization=0)


@pytest.mark.parametrize("model", [ItemKNN, EASE])
def test_too_many_items_are_refused_before_the_memory_is_gone(model: Callable[..., Baseline]) -> None:
    wide = Interactions(torch.tensor([0]), torch.tensor([0]), None, 1, 10**6)
    with pytest.raises(ValueError, match=r"1000000 items would need about \d+\.\d GB.*min_item_count"):
        model(wide)
    with pytest.raises(ValueError, match="max_items = 24"):
        model(random_interactions(), max_items=24)


def test_als_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "implicit.cpu.als", None)
    with pytest.raises(ImportError, match="pip install implicit"):
        ALS(random_interactions())
