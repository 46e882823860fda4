from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from ncf import MLP, NeuMF
from ncf.models.base import EmbeddingModel
from ncf.utils.threads import cpu_threads

USERS, ITEMS = 9, 13


def naive(model: EmbeddingModel, users: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Pair by pair through the network, as it is trained."""
    pairs = users[:, None].expand_as(candidates)
    logits = model(pairs.reshape(-1), candidates.clamp(min=0).reshape(-1)).view(candidates.shape)
    return logits.detach().masked_fill(candidates < 0, -torch.inf)


@given(
    factors=st.integers(1, 9),
    half=st.integers(1, 40),
    hidden=st.lists(st.integers(1, 70), max_size=3),
    users=st.integers(0, 5),
    width=st.integers(0, 6),
    shared=st.booleans(),
    seed=st.integers(0, 100),
)
def test_scores_are_the_logits_whatever_the_widths(
    factors: int,
    half: int,
    hidden: list[int],
    users: int,
    width: int,
    shared: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = NeuMF(USERS, ITEMS, factors=factors, layers=(2 * half, *hidden), init_std=1.0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases start at zero
                parameter.normal_(generator=generator)
    who = torch.randint(USERS, (users,), generator=generator)
    lists = torch.randint(-1, ITEMS, (1 if shared else users, width), generator=generator)
    if shared:
        lists = lists.expand(users, -1)
    scores = model.scorer().score(who, lists)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, naive(model, who, lists), atol=1e-4, rtol=1e-4)


def test_double_precision_is_kept() -> None:
    model = MLP(USERS, ITEMS, layers=(8, 4), init_std=1.0).double()
    users, lists = torch.arange(USERS), torch.arange(ITEMS).expand(USERS, -1)
    torch.testing.assert_close(
        model.scorer().score(users, lists), naive(model, users, lists), rtol=1e-12, atol=1e-12
    )


def test_scores_do_not_depend_on_who_else_is_asked() -> None:
    model = NeuMF(USERS, ITEMS, init_std=1.0)
    users, lists = torch.arange(USERS), torch.arange(ITEMS).repeat(USERS, 1)
    together = model.scorer().score(users, lists)
    for user in range(USERS):
        alone = model.scorer().score(users[user : user + 1], lists[user : user + 1])
        assert torch.equal(alone[0], together[user])


def test_candidates_are_left_as_they_were() -> None:
    model = NeuMF(USERS, ITEMS)
    lists = torch.tensor([[3, -1, 0], [-1, -1, -1]])
    before = lists.clone()
    assert model.scorer().score(torch.tensor([0, 1]), lists).isneginf().tolist() == [
        [False, True, False],
        [True, True, True],
    ]
    assert torch.equal(lists, before)


def test_a_view_is_made_by_one_thread(monkeypatch):
    """Others of PyTorch's would stay awake on the cores that the kernel needs next."""
    seen = []
    of_model = MLP.scoring_tables
    monkeypatch.setattr(
        MLP, "scoring_tables", lambda *given: (seen.append(torch.get_num_threads()), of_model(*given))[1]
    )
    with cpu_threads(3):
        MLP(num_users=2, num_items=3).scorer()
        assert seen == [1]
        assert torch.get_num_threads() == 3
