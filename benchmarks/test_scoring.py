"""Users ranked per second, the frozen view of the model and the ranks included."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ncf import Candidates, NeuMF, Split, evaluate, recommend, whole_catalogue

Rate = Callable[..., None]
_PAIR = 2 * (16 * 8 + 8 + 8)  # operations: the small layer, the product, the head
_NAIVE = 2 * (32 * 16 + 16 * 8 + 8 + 16)
_WIDE_PAIR = 2 * (128 * 64 + 64 + 64)
_WIDE_NAIVE = 2 * (256 * 128 + 128 * 64 + 64 + 128)


def test_one_and_hundred(rate: Rate, model: NeuMF, candidates: Candidates, matrix_rate: float) -> None:
    rate(
        lambda: evaluate(model, candidates),
        len(candidates),
        "users",
        rounds=20,
        matrix_rate=_PAIR * 101 / matrix_rate,
    )


def test_one_and_hundred_naive_forward(
    rate: Rate, model: NeuMF, candidates: Candidates, matrix_rate: float
) -> None:
    users = candidates.users[:, None].expand(-1, 101).reshape(-1)
    items = candidates.items.reshape(-1)

    @torch.no_grad()
    def naive() -> None:
        scores = model(users, items).view(-1, 101)
        (scores[:, 1:] >= scores[:, :1]).sum(1)

    rate(naive, len(candidates), "users", rounds=20, matrix_rate=_NAIVE * 101 / matrix_rate)


def test_whole_catalogue(rate: Rate, model: NeuMF, split: Split, matrix_rate: float) -> None:
    catalogue = whole_catalogue(split)
    rate(
        lambda: evaluate(model, catalogue),
        len(catalogue),
        "users",
        rounds=10,
        matrix_rate=_PAIR * 1682 / matrix_rate,
    )


def test_top_10(rate: Rate, model: NeuMF, split: Split, matrix_rate: float) -> None:
    users = split.test.users
    rate(
        lambda: recommend(model, users, k=10, exclude=split.train),
        len(users),
        "users",
        rounds=5,
        matrix_rate=_PAIR * 1682 / matrix_rate,
    )


def test_wide_one_and_hundred(rate: Rate, matrix_rate: float) -> None:
    wide, users, items = _wide()
    rate(
        lambda: wide.score(users, items),
        len(users),
        "users",
        rounds=3,
        matrix_rate=_WIDE_PAIR * 101 / matrix_rate,
    )


def test_wide_one_and_hundred_naive_forward(rate: Rate, matrix_rate: float) -> None:
    wide, users, items = _wide()

    @torch.no_grad()
    def naive() -> None:
        for block in range(0, len(users), 64):
            some = items[block : block + 64]
            wide(users[block : block + 64, None].expand_as(some).reshape(-1), some.reshape(-1))

    rate(naive, len(users), "users", rounds=3, matrix_rate=_WIDE_NAIVE * 101 / matrix_rate)


def test_wide_whole_catalogue(rate: Rate, matrix_rate: float) -> None:
    wide, users, _ = _wide()
    some = users[:600]
    everything = torch.arange(wide.num_items).expand(len(some), -1)
    rate(
        lambda: wide.score(some, everything),
        len(some),
        "users",
        rounds=3,
        matrix_rate=_WIDE_PAIR * wide.num_items / matrix_rate,
    )


def _wide() -> tuple[NeuMF, torch.Tensor, torch.Tensor]:
    """Factor 64, layers (256, 128, 64), MovieLens-1M's shape."""
    items = torch.randint(0, 3706, (6040, 101), generator=torch.Generator().manual_seed(0))
    return NeuMF(6040, 3706, factors=64, layers=(256, 128, 64)), torch.arange(6040), items
