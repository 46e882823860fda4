from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ncf import EASE, Interactions, ItemKNN, ItemPop, evaluate, leave_one_out, recommend, sample_candidates
from ncf.data.candidates import whole_catalogue
from ncf.models.baselines import ALS, Baseline, base, gram, item_to_item


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


def ease_of_neighbours(train: Interactions) -> EASE:
    return EASE(train, neighbours=6)


MODELS: list[Callable[[Interactions], Baseline]] = [ItemPop, ItemKNN, EASE, ease_of_neighbours, als]


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
    with pytest.raises(ValueError, match="neighbours = 0"):
        EASE(train, neighbours=0)


def test_ease_compares_its_memory_with_what_is_free_before_it_begins(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    train = random_interactions()  # 25 items: 2,500 bytes in single precision, 7,500 where double is needed
    free = 10_000
    monkeypatch.setattr(item_to_item, "free_memory", lambda device: free)
    with caplog.at_level(logging.WARNING, "ncf"):
        EASE(train)
        assert not caplog.messages
        free = 4_999
        EASE(train)
        assert re.search(r"25 items need 0.0 GB, of 0.0 GB that are free.*neighbours=200", caplog.messages[0])
        EASE(train, neighbours=5)
        assert len(caplog.messages) == 1
    free = 2_499
    with pytest.raises(MemoryError, match="neighbours=200"):
        EASE(train)
    free = 7_499
    with pytest.raises(MemoryError, match="neighbours=200"):
        EASE(train, regularization=1e-6)


@pytest.mark.parametrize("regularization", [0.5, 20.0])
@pytest.mark.parametrize("neighbours", [1, 4])
def test_ease_of_neighbours_is_a_ridge_regression_on_them(
    neighbours: int, regularization: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_to_item, "_NUMBERS_SOLVED", 7 * neighbours**2)  # several passes over XᵀX
    monkeypatch.setattr(item_to_item, "_NUMBERS_AT_ONCE", 40)
    monkeypatch.setattr(gram, "_NUMBERS_PER_BLOCK", 100)
    train = random_interactions()
    near, _ = item_to_item._nearest(train, neighbours, 0.0)
    X = matrix(train)
    expected = np.zeros_like(X)
    for item in range(train.num_items):
        some = [other for other in near[item].tolist() if other >= 0]
        features = np.concatenate([X[:, some], regularization**0.5 * np.eye(len(some))])
        target = np.concatenate([X[:, item], np.zeros(len(some))])
        expected[:, item] = X[:, some] @ np.linalg.lstsq(features, target, rcond=None)[0]
    model = EASE(train, regularization=regularization, neighbours=neighbours)
    np.testing.assert_allclose(scores_of_all(model).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_ease_of_all_neighbours_is_ease() -> None:
    dense = matrix(random_interactions())
    dense[0] = 1  # each two items have a user in common
    users, items = dense.nonzero()
    train = Interactions.from_arrays(users, items)
    models = EASE(train, regularization=3.0), EASE(train, regularization=3.0, neighbours=24)
    torch.testing.assert_close(scores_of_all(models[1]), scores_of_all(models[0]), rtol=1e-4, atol=1e-5)


def test_a_small_regularization_takes_double_precision() -> None:
    train = random_interactions(num_users=20)  # fewer users than items: XᵀX has no inverse
    X = matrix(train)
    inverse = np.linalg.inv(X.T @ X + 1e-7 * np.eye(25))
    expected = X - X @ (inverse / np.diag(inverse))
    scores = scores_of_all(EASE(train, regularization=1e-7)).numpy()
    np.testing.assert_allclose(scores, expected, atol=1e-4)


@pytest.mark.parametrize(("size", "panel"), [(1, 4), (4, 4), (23, 4), (23, 64)])
def test_the_inverse_in_place_is_the_inverse(size: int, panel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "_PANEL", panel)
    half = torch.randn(size + 5, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    full = half.T @ half
    given = full.triu()  # what is below the diagonal is not read
    inverse = gram.invert_(given)
    assert inverse is given
    torch.testing.assert_close(inverse, torch.linalg.inv(full))
    assert torch.equal(inverse, inverse.T)
    with pytest.raises(torch.linalg.LinAlgError):
        gram.invert_(-torch.eye(size, dtype=torch.float64))


def test_blocks_of_co_occurrence_are_rows_of_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    train = random_interactions()
    expected = matrix(train).T @ matrix(train)
    for most in (1, 60, 1 << 20):
        monkeypatch.setattr(gram, "_NUMBERS_PER_BLOCK", most)
        found = torch.cat([common for _, common in gram.co_occurrence(train)])
        assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("make", [ItemKNN, ease_of_neighbours])
def test_sparse_weights_are_those_of_the_scores(make: Callable[[Interactions], Any]) -> None:
    train = random_interactions()
    model, every = make(train), torch.arange(25)
    weights = model.weights_of(every)
    torch.testing.assert_close(scores_of_all(model), torch.from_numpy(matrix(train)).float() @ weights)
    assert torch.equal(model.weights_of(every[3:9], toward=True), weights.T[3:9])
    assert torch.equal(model.weights_of(every[[4, 2, 4]]), weights[[4, 2, 4]])


def test_als_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "implicit.cpu.als", None)
    with pytest.raises(ImportError, match="pip install implicit"):
        ALS(random_interactions())
