from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ncf import GMF, Interactions, ItemPop, recommend
from ncf.data.interactions import Vocabulary
from ncf.inference import topk


@pytest.fixture
def bought() -> Interactions:
    users = [f"u{n}" for n in range(6) for _ in range(4)]
    items = [f"i{(n * 5 + k * k) % 11:02}" for n in range(6) for k in range(4)]
    return Interactions.from_arrays(users, items)


def test_the_best_unseen_items_by_raw_id(bought: Interactions) -> None:
    model = GMF(bought.num_users, bought.num_items, init_std=1.0)
    model.user_ids, model.item_ids = bought.user_ids, bought.item_ids
    people = ["u4", "u0", "u4"]
    offered = recommend(model, people, k=3, exclude=bought)
    for person, items, scores in zip(people, offered.items, offered.scores, strict=True):
        user = int(person[1:])
        seen = set(bought.items[bought.users == user].tolist())
        logits = model(torch.tensor([user]), torch.arange(bought.num_items)[None])[0]
        best = [item for item in logits.argsort(descending=True).tolist() if item not in seen][:3]
        assert items == bought.item_ids.decode(torch.tensor(best))
        torch.testing.assert_close(scores, logits[best].detach())


def test_nothing_is_excluded_unless_asked(bought: Interactions) -> None:
    model = GMF(bought.num_users, bought.num_items)
    model.user_ids, model.item_ids = bought.user_ids, bought.item_ids
    assert len(set(recommend(model, ["u1"], k=bought.num_items).items[0])) == bought.num_items


def test_who_has_seen_nearly_everything_gets_a_shorter_list() -> None:
    bought = Interactions.from_arrays([1, 1, 2], [5, 6, 7])
    assert recommend(ItemPop(bought), [1, 2], k=3, exclude=bought).items == [[7], [5, 6]]


def test_errors(bought: Interactions) -> None:
    model = ItemPop(bought)
    with pytest.raises(ValueError, match="'nobody'"):
        recommend(model, ["u1", "nobody"], exclude=bought)
    with pytest.raises(ValueError, match="k = 0"):
        recommend(model, ["u1"], k=0, exclude=bought)
    with pytest.raises(ValueError, match=f"k = {bought.num_items + 1}"):
        recommend(model, ["u1"], k=bought.num_items + 1, exclude=bought)
    with pytest.raises(ValueError, match="num_users differs"):
        recommend(GMF(99, bought.num_items), ["u1"], exclude=bought)
    with pytest.raises(ValueError, match=r"users\[1\] = 9 is out of range"):
        recommend(GMF(9, 5), [0, 9], k=2)


class ByItem:
    """Scores that are given, one per user and item."""

    def __init__(self, scores: object) -> None:
        self.scores = scores
        self.num_users, self.num_items = len(scores), len(scores[0])  # type: ignore[arg-type,index]

    def score(self, users: torch.Tensor, candidates: torch.Tensor) -> object:
        rows, columns = users[:, None], candidates
        if isinstance(self.scores, np.ndarray):
            return self.scores[rows.numpy(), columns.numpy()]
        return self.scores[rows, columns]  # type: ignore[index]


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 1000), st.booleans())
def test_against_brute_force_whatever_the_blocks(
    num_users: int, num_items: int, seed: int, as_numpy: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(num_users, num_items, generator=generator)
    mask = torch.rand(num_users, num_items, generator=generator) < 0.5
    mask[0, 0] = True
    seen = Interactions(*mask.nonzero(as_tuple=True), None, num_users, num_items)
    users = torch.randint(num_users, (7,), generator=generator)
    k = int(torch.randint(1, num_items + 1, (), generator=generator))
    model = ByItem(scores.numpy() if as_numpy else scores)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk, "_SCORES_PER_BLOCK", 2 * num_items)
        offered = recommend(model, users, k, exclude=seen)  # type: ignore[arg-type]
    assert offered.scores.shape == (7, k)
    for user, items, values in zip(users.tolist(), offered.items, offered.scores, strict=True):
        free = [item for item in range(num_items) if not mask[user, item]]
        best = sorted(free, key=lambda item: -float(scores[user, item]))[:k]
        assert items == best
        assert values.tolist() == [*scores[user, best].tolist(), *[-torch.inf] * (k - len(best))]


def test_a_score_that_is_nan_is_refused_unless_it_is_left_out() -> None:
    model = ByItem(torch.tensor([[0.0, 1.0, 2.0], [0.0, torch.nan, 2.0]]))
    with pytest.raises(ValueError, match="the score of item 1 for user 1 is NaN"):
        recommend(model, [0, 1], k=2)  # type: ignore[arg-type]
    seen = Interactions(torch.tensor([1]), torch.tensor([1]), None, 2, 3)
    assert recommend(model, [0, 1], k=2, exclude=seen).items == [[2, 1], [2, 0]]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("users", "message"),
    [
        ([0.5], "users holds floating-point numbers"),
        ([float("nan")], r"users\[0\] is NaN"),
        ([0, None], r"users\[1\] is missing"),
        ([True], "users is of type bool"),
        (["u1"], "users holds strings, but there is no vocabulary"),
        ("01", "users = '01': give a list of ids"),
        (3, "users cannot be read as one column"),
        (torch.tensor([[0, 1]]), "users cannot be read as one column"),
        ([0, -1], r"users\[1\] = -1 is out of range"),
    ],
)
def test_users_that_are_no_ids_are_refused(users: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recommend(GMF(9, 5), users, k=2)  # type: ignore[arg-type]


def test_a_string_is_not_a_list_of_users(bought: Interactions) -> None:
    with pytest.raises(ValueError, match="users = 'u1': give a list of ids"):
        recommend(ItemPop(bought), "u1", k=2)


def test_raw_ids_in_another_order_are_refused(bought: Interactions) -> None:
    model = GMF(bought.num_users, bought.num_items)
    model.item_ids = bought.item_ids
    assert bought.user_ids is not None
    model.user_ids = Vocabulary([f"u{n}" for n in reversed(range(6))])
    with pytest.raises(ValueError, match="user_ids differs"):
        recommend(model, ["u1"], k=2, exclude=bought)
    model.user_ids = Vocabulary([f"u{n}" for n in range(6)])  # equal, though not the same object
    assert len(recommend(model, ["u1"], k=2, exclude=bought).items[0]) == 2


def test_rows_to_spare_are_never_offered(bought: Interactions) -> None:
    model = GMF(bought.num_users + 5, bought.num_items + 5, init_std=1.0)
    model.user_ids, model.item_ids = bought.user_ids, bought.item_ids
    assert len(recommend(model, ["u1"], k=bought.num_items, exclude=None).items[0]) == bought.num_items
    assert recommend(model, ["u1"], k=2, exclude=bought).items
    with pytest.raises(ValueError, match=f"k = {bought.num_items + 1}"):
        recommend(model, ["u1"], k=bought.num_items + 1)


def test_a_model_of_ones_own_is_asked_in_evaluation_mode_where_it_lives() -> None:
    class Own(torch.nn.Module):
        num_users, num_items = 3, 4

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.arange(12.0).view(3, 4))

        def score(self, users: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
            assert not self.training
            assert users.device == candidates.device == self.weight.device
            return self.weight[users[:, None], candidates]

    model = Own().train()
    offered = recommend(model, [2, 0], k=1)
    assert offered.items == [[3], [3]]
    assert not offered.scores.requires_grad
    assert model.training


def test_what_a_model_returns_is_not_written_to() -> None:
    class Popular:
        num_users, num_items, popularity = 2, 3, torch.tensor([1.0, 3.0, 2.0])

        def score(self, users: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
            return self.popularity.expand(len(users), -1)

    seen = Interactions(torch.tensor([1, 1]), torch.tensor([1, 2]), None, 2, 3)
    assert recommend(Popular(), [0, 1], k=2, exclude=seen).items == [[1, 2], [0]]
    assert Popular.popularity.tolist() == [1, 3, 2]


def test_nobody_and_no_sizes() -> None:
    assert recommend(GMF(3, 4), [], k=2).items == []

    class NoSizes:
        def score(self, users: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
            return candidates.float()

    with pytest.raises(ValueError, match="NoSizes does not say its num_users"):
        recommend(NoSizes(), [0], k=2)
    seen = Interactions(torch.tensor([1]), torch.tensor([2]), None, 2, 3)
    assert recommend(NoSizes(), [0, 1], k=2, exclude=seen).items == [[2, 1], [1, 0]]
