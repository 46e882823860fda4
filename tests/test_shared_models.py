"""Answers change nothing that is shared: modes, threads, precision; and are the same whoever works beside them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ncf import (
    EASE,
    GMF,
    MLP,
    MatrixFactorization,
    NeuMF,
    Recommender,
    Split,
    Trainer,
    evaluate,
    recommend,
    sample_candidates,
    whole_catalogue,
)
from ncf.models import EmbeddingModel
from ncf.models.embeddings import Table
from ncf.models.towers import SumHead

MODELS: dict[str, Callable[[Split], Any]] = {
    "GMF": lambda split: GMF(40, 60, dropout=0.5, init_std=1.0),
    "NeuMF": lambda split: NeuMF(40, 60, dropout=0.5, init_std=1.0),
    "MatrixFactorization": lambda split: MatrixFactorization(40, 60, dropout=0.5, init_std=1.0),
    "EASE": lambda split: EASE(split.train),
    "EASE of neighbours": lambda split: EASE(split.train, neighbours=9),
}


def answers(model: Any, split: Split, recommender: Recommender) -> list[Any]:
    candidates, users = sample_candidates(split), torch.arange(40)
    items = torch.arange(60).expand(40, -1)
    found: list[Any] = [evaluate(model, task).ranks for task in (candidates, whole_catalogue(split))]
    found.append(model.score(users, items))
    if isinstance(model, EmbeddingModel):
        found.append(model.predict(users, items))
    for lists in (recommend(model, users, k=5, exclude=split.train), recommender.recommend(k=5)):
        found += [lists.items, lists.scores]
    return found


def same(one: list[Any], other: list[Any]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


def global_settings() -> tuple[Any, ...]:
    return (
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_rng_state().tolist(),
    )


@pytest.mark.parametrize("name", MODELS)
def test_eight_threads_answer_as_one_while_another_model_is_trained(name: str, split: Split) -> None:
    model = MODELS[name](split)
    model.train()
    recommender = Recommender(model, seen=split.train)
    expected = answers(model, split, recommender)
    before = global_settings()
    with ThreadPoolExecutor(9) as pool:
        training = pool.submit(Trainer(NeuMF(40, 60), epochs=15, batch_size=64, threads=2).fit, split)
        found = list(pool.map(lambda _: answers(model, split, recommender), range(32)))
        training.result()
    assert all(same(each, expected) for each in found)
    assert model.training
    assert global_settings() == before


@pytest.mark.parametrize("name", MODELS)
def test_autocast_and_inference_mode_change_no_answer(name: str, split: Split) -> None:
    model = MODELS[name](split)
    recommender = Recommender(model, seen=split.train)
    expected = answers(model, split, recommender)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same(answers(model, split, Recommender(model, seen=split.train)), expected)
    with torch.inference_mode():
        assert same(answers(model, split, recommender), expected)


@pytest.mark.parametrize("kind", [GMF, MLP, NeuMF, MatrixFactorization])
def test_a_scorer_can_be_pickled_and_copied(kind: Any) -> None:
    scorer = kind(5, 30, init_std=1.0).scorer()
    users, items = torch.arange(5), torch.arange(30)
    for again in (pickle.loads(pickle.dumps(scorer)), copy.deepcopy(scorer)):
        assert torch.equal(again.score(users, items), scorer.score(users, items))
        assert torch.equal(again.top_k(users, 4, items)[1], scorer.top_k(users, 4, items)[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [GMF, NeuMF])
def test_an_unknown_id_never_wraps_around(kind: Any, dtype: torch.dtype) -> None:
    scorer = kind(5, 30).to(dtype).scorer()
    for candidates in (torch.tensor([2, 3]), torch.tensor([[2, 3]])):
        with pytest.raises(IndexError, match="user -1 is out of range"):
            scorer.score(torch.tensor([-1]), candidates)
        with pytest.raises(IndexError, match="item 30 is out of range"):
            scorer.score(torch.tensor([4]), candidates + 28)


class Attention(EmbeddingModel):
    """A model whose score does not fall apart into a user's and an item's share."""

    def __init__(self, num_users: int, num_items: int, *, seed: int = 0, device: Any = None) -> None:
        tables = [Table("user_a", "user", 4, 0.5), Table("item_a", "item", 4, 0.5)]
        parts: dict[str, Any] = {"towers": {"drop": nn.Dropout(0.5)}, "head": SumHead()}
        super().__init__(num_users, num_items, tables=tables, **parts, config={}, seed=seed, device=device)

    def logits(self, rows: dict[str, Tensor]) -> Tensor:
        product = rows["user_a"] * rows["item_a"]
        mixed = self.towers["drop"](product.softmax(-1) * product.tanh())
        logits: Tensor = self.head(mixed).squeeze(-1)
        return logits


class Reversed(GMF):
    """Its own score counts, not the one of its parameters."""

    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        return -super().score(users, candidates)


class Shifted(GMF):
    """Its own logits count, not the scoring tables that it inherits."""

    def logits(self, rows: dict[str, Tensor]) -> Tensor:
        return super().logits(rows).sin()


def test_a_model_that_is_not_separable_is_trained_evaluated_and_recommended_from(split: Split) -> None:
    model = Attention(40, 60)
    before = [value.clone() for value in model.state_dict().values()]
    history = Trainer(model, epochs=2, batch_size=64).fit(split)
    assert len(history.hr) == 2
    assert not all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    users, items = torch.arange(40), torch.arange(60).expand(40, -1)
    model.train()
    scores = model.score(users, items)
    with torch.no_grad():
        torch.testing.assert_close(scores, copy.deepcopy(model).eval()(users, items))
    offered = recommend(model, users, k=3)
    assert offered.items == scores.sort(dim=1, descending=True, stable=True).indices[:, :3].tolist()
    assert evaluate(model, whole_catalogue(split)).ranks.shape == (40,)
    assert model.training


@pytest.mark.parametrize(("kind", "change"), [(Reversed, torch.neg), (Shifted, torch.sin)])
def test_an_overridden_score_or_logits_is_what_ranks(kind: Any, change: Any) -> None:
    users, items = torch.arange(40), torch.arange(60)
    own, plain = kind(40, 60, init_std=1.0), GMF(40, 60, init_std=1.0)
    expected = change(plain.score(users, items))
    torch.testing.assert_close(own.score(users, items), expected)
    assert recommend(own, users, k=1).items == [[item] for item in expected.argmax(1).tolist()]


def test_an_id_that_the_model_does_not_know_is_named() -> None:
    model = GMF(943, 1682)
    with pytest.raises(ValueError, match=r"users\[0\] = 943 is out of range for num_users = 943"):
        model(torch.tensor([943]), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"items\[0, 1\] = -1 is out of range for num_items = 1682"):
        model(torch.tensor([0]), torch.tensor([[0, -1]]))
    with pytest.raises(ValueError, match="users must be an int64 tensor of ids, got list"):
        model([1], [2])
    with pytest.raises(ValueError, match=r"items must be an int64 tensor of ids, got torch\.float32"):
        model(torch.tensor([1]), torch.tensor([2.0], dtype=torch.float32))
    assert model(torch.tensor([1], dtype=torch.int32), torch.tensor([2], dtype=torch.int32)).shape == (1,)


def test_something_else_than_candidates_is_answered_with_what_makes_them(split: Split) -> None:
    with pytest.raises(TypeError, match=r"got Split: sample_candidates\(split\)"):
        evaluate(GMF(40, 60), split)  # type: ignore[arg-type]
