from __future__ import annotations

import pytest
import torch

from ncf import GMF, Interactions, ItemPop, recommend


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
