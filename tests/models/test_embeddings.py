from __future__ import annotations

import pytest
import torch

from ncf.models.embeddings import Table, UserItemEmbeddings
from ncf.utils.torchrec_import import KeyedJaggedTensor

TABLES = [
    Table("user_gmf", "user", 8, 0.01),
    Table("item_gmf", "item", 8, 0.01),
    Table("user_mlp", "user", 4, 1.0),
    Table("item_mlp", "item", 4, 1.0, random_columns=3),
]


@pytest.fixture
def embeddings() -> UserItemEmbeddings:
    return UserItemEmbeddings(6, 9, TABLES, seed=2)


def test_a_lookup_agrees_with_torchrecs_own(embeddings: UserItemEmbeddings) -> None:
    users, items = torch.tensor([5, 0, 5]), torch.tensor([8, 8, 1])
    bags = KeyedJaggedTensor(
        ["user", "item"], torch.cat([users, items]), lengths=torch.ones(6, dtype=torch.int32)
    )
    pooled = embeddings.ebc(bags).to_dict()
    rows = embeddings(users, items)
    assert list(rows) == [table.name for table in TABLES]
    for table in TABLES:
        assert torch.equal(rows[table.name], pooled[f"{table.side}@{table.name}"])


def test_several_items_share_one_lookup_of_their_user(embeddings: UserItemEmbeddings) -> None:
    users, items = torch.tensor([5, 0]), torch.tensor([[8, 8, 1], [0, 3, 2]])
    rows = embeddings(users, items)
    for table in TABLES:
        ids = users[:, None] if table.side == "user" else items
        assert torch.equal(rows[table.name], embeddings.weight(table.name)[ids])


def test_the_gradient_adds_up_over_repeated_ids(embeddings: UserItemEmbeddings) -> None:
    embeddings(torch.tensor([4]), torch.tensor([[2, 2, 7]]))["item_gmf"].sum().backward()
    gradient = embeddings.weight("item_gmf").grad
    assert gradient is not None
    assert gradient.sum(1).tolist() == [0, 0, 16, 0, 0, 0, 0, 8, 0]


def test_names_sizes_and_initial_values(embeddings: UserItemEmbeddings) -> None:
    state = embeddings.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        f"ebc.embedding_bags.{table.name}.weight": (6 if table.side == "user" else 9, table.dim)
        for table in TABLES
    }
    assert bool((embeddings.weight("item_mlp")[:, 3] == 0).all())
    for table in TABLES:
        again = torch.empty_like(embeddings.weight(table.name))
        embeddings.table_fillers[table.name](again, row=0, column=0)
        assert torch.equal(again, embeddings.weight(table.name))
    assert not embeddings.is_sharded


def test_on_the_meta_device_nothing_is_filled() -> None:
    model = UserItemEmbeddings(10**9, 10**9, TABLES, device="meta")
    assert all(value.is_meta for value in model.state_dict().values())


@pytest.mark.parametrize("std", [-0.1, float("nan"), float("inf")])
def test_an_impossible_deviation_is_refused(std: float) -> None:
    with pytest.raises(ValueError, match=f"init_std = {std}"):
        Table("user_gmf", "user", 8, std)
