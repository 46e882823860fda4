from __future__ import annotations

import copy
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ncf import (
    EASE,
    GMF,
    MLP,
    Interactions,
    ItemKNN,
    ItemPop,
    MatrixFactorization,
    NeuMF,
    Recommender,
    fold_in,
    leave_one_out,
    recommend,
)
from ncf.data.vocabulary import Vocabulary
from ncf.kernels.native import library
from ncf.models import scoring
from tests.models.folders import file_of, rehash


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
    with pytest.raises(ValueError, match="num_users differs"):
        recommend(GMF(99, bought.num_items), ["u1"], exclude=bought)
    with pytest.raises(ValueError, match=r"users\[1\] = 9 is out of range"):
        recommend(GMF(9, 5), [0, 9], k=2)


def named(model: Any, interactions: Interactions) -> Any:
    model.user_ids, model.item_ids = interactions.user_ids, interactions.item_ids
    return model


MODELS: dict[str, Any] = {
    "GMF": lambda bought: named(GMF(bought.num_users, bought.num_items, init_std=1.0), bought),
    "MLP": lambda bought: named(MLP(bought.num_users, bought.num_items, init_std=1.0), bought),
    "NeuMF": lambda bought: named(NeuMF(bought.num_users, bought.num_items, init_std=1.0), bought),
    "MatrixFactorization": lambda bought: named(
        MatrixFactorization(bought.num_users, bought.num_items, init_std=1.0), bought
    ),
    "ItemPop": ItemPop,
    "ItemKNN": ItemKNN,
    "EASE": EASE,
    "EASE of neighbours": partial(EASE, neighbours=8),
}


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def recommender(request: pytest.FixtureRequest, bought: Interactions) -> Recommender:
    return Recommender(request.param(bought), seen=bought)


def by_hand(
    recommender: Recommender, bought: Interactions, user: str, k: int, offered: list[str], hidden: set[str]
) -> list[str]:
    """Of what may be offered the best, of equal scores the first."""
    scores = recommender.score(user, offered)[0].tolist()
    left = [(-score, item) for score, item in zip(scores, offered, strict=True) if item not in hidden]
    return [item for _, item in sorted(left)][:k]


def test_lists_are_those_by_hand_whatever_is_offered_and_excluded(
    recommender: Recommender, bought: Interactions
) -> None:
    assert bought.item_ids is not None
    everything = bought.item_ids.decode(torch.arange(bought.num_items))
    seen = {f"u{n}": set(recommender.history(f"u{n}")) for n in range(6)}
    some, people = everything[1::2], ["u3", "u0"]
    for k in (1, 3, 50):
        plain = recommender.recommend(people, k)
        filtered = recommender.recommend(people, k, items=[*some, "new"], exclude={"u3": some[:2]})
        open_to_all = recommender.recommend(people, k, exclude=everything[:3], exclude_seen=False)
        for row, user in enumerate(people):
            more = set(some[:2]) if user == "u3" else set()
            assert plain.items[row] == by_hand(recommender, bought, user, k, everything, seen[user])
            assert filtered.items[row] == by_hand(recommender, bought, user, k, some, seen[user] | more)
            assert open_to_all.items[row] == by_hand(recommender, bought, user, k, everything[3:], set())
            scores = plain.scores[row, : len(plain.items[row])]
            torch.testing.assert_close(scores, recommender.score(user, plain.items[row])[0])
    for nothing in ([], ["new"]):  # nothing is in stock
        assert recommender.recommend(people, 3, items=nothing).items == [[], []]
        assert recommender.recommend(history=[some[:2]], k=3, items=nothing).items == [[]]
    assert recommender.recommend(people, 3, exclude=everything).items == [[], []]
    everyone = recommender.recommend(k=4)
    assert everyone.users == [f"u{n}" for n in range(6)]
    assert everyone.items[3] == recommender.recommend("u3", 4).items[0]


def test_unknown_users_get_what_was_asked_for(recommender: Recommender, bought: Interactions) -> None:
    people = ["eve", "u2", "zoe"]
    with pytest.raises(
        ValueError, match=r"users\[0\] = 'eve' is not among the 6 known ids; unknown=\"popular\""
    ):
        recommender.recommend(people)
    skipped = recommender.recommend(people, 3, unknown="skip")
    assert skipped.sources == ["skipped", "model", "skipped"]
    assert skipped.items == [[], recommender.recommend("u2", 3).items[0], []]
    popular = recommender.recommend(people, 3, unknown="popular", exclude={"zoe": recommender.popular(1)})
    assert popular.sources == ["popularity", "model", "popularity"]
    assert popular.items[0] == recommender.popular(3)
    assert popular.items[2] == recommender.popular(4)[1:]
    assert popular.items[1] == skipped.items[1]
    with pytest.raises(ValueError, match="nothing says what is popular"):
        Recommender(recommender.model).recommend(people, unknown="popular")
    with pytest.raises(ValueError, match="unknown = 'x': choose"):
        recommender.recommend(people, unknown="x")  # type: ignore[arg-type]


def test_a_copy_answers_as_the_original(recommender: Recommender) -> None:
    expected = recommender.recommend(k=3)
    for again in (pickle.loads(pickle.dumps(recommender)), copy.deepcopy(recommender)):
        assert again.recommend(k=3).items == expected.items
        assert torch.equal(again.recommend(k=3).scores, expected.scores)


def test_a_saved_one_answers_as_before(
    recommender: Recommender, bought: Interactions, tmp_path: Path
) -> None:
    titled = Recommender(
        recommender.model, seen=bought, item_columns={"title": [f"Film {n}" for n in range(bought.num_items)]}
    )
    titled.save(tmp_path, record={"NDCG@10": 0.25})
    again = Recommender.load(tmp_path)
    recommender.save(tmp_path)  # a later one, without titles: what was opened stays as it was
    assert again.recommend(k=3).items == recommender.recommend(k=3).items
    assert torch.equal(again.recommend(k=3).scores, recommender.recommend(k=3).scores)
    assert again.popular(4) == recommender.popular(4)
    assert again.history("u2") == recommender.history("u2")
    assert again.titles(again.popular(1)) == titled.titles(titled.popular(1))
    assert pickle.loads(pickle.dumps(again)).item_columns.equals(titled.item_columns)
    assert again.record == {"NDCG@10": 0.25}
    with pytest.raises(ValueError, match="there is no column 'name'"):
        again.titles([], "name")


def test_columns_that_are_no_table_are_named_at_their_first_use(
    recommender: Recommender, bought: Interactions, tmp_path: Path
) -> None:
    titles = {"title": [f"Film {n}" for n in range(bought.num_items)]}
    Recommender(recommender.model, seen=bought, item_columns=titles).save(tmp_path)
    file = file_of(tmp_path, "item_columns")
    file.write_bytes(file.read_bytes()[:-9])
    rehash(tmp_path)
    again = Recommender.load(tmp_path)
    assert again.recommend(k=3).items == recommender.recommend(k=3).items
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"{file.name} is damaged .*: save the model again"):
            again.titles(again.popular(1))


def test_rows_to_spare_are_saved_with_empty_lists(bought: Interactions, tmp_path: Path) -> None:
    model = named(GMF(bought.num_users + 5, bought.num_items + 5, init_std=1.0), bought)
    Recommender(model, seen=bought).save(tmp_path)
    assert (
        Recommender.load(tmp_path).recommend(k=3).items
        == Recommender(model, seen=bought).recommend(k=3).items
    )


@pytest.mark.parametrize("name", ["NeuMF", "GMF", "ItemPop"])
def test_shared_rows_give_the_same_bits_and_are_written_once(
    name: str, bought: Interactions, tmp_path: Path
) -> None:
    model, file, written = MODELS[name](bought), tmp_path / "rows", set()
    expected = Recommender(model, seen=bought).recommend(k=5)
    for _ in range(2):
        sharing = Recommender(model, seen=bought)
        sharing.share(file)
        answer = sharing.recommend(k=5)
        assert answer.items == expected.items
        assert answer.scores.equal(expected.scores)
        written.add(file.stat().st_ino if file.exists() else None)
    assert len(written) == 1
    assert file.exists() == (name != "ItemPop" and library() is not None)
    assert not file.exists() or str(file) in Path("/proc/self/maps").read_text()


def test_lists_as_a_table(recommender: Recommender) -> None:
    lists = recommender.recommend(["u1", "eve", "u0"], 2, unknown="skip")
    table = lists.to_arrow()
    assert table.column_names == ["user", "rank", "item", "score", "source"]
    assert table["user"].to_pylist() == ["u1", "u1", "u0", "u0"]
    assert table["rank"].to_pylist() == [0, 1, 0, 1]
    assert table["item"].to_pylist() == lists.items[0] + lists.items[2]
    frame = lists.to_pandas()
    assert frame["score"].tolist() == pytest.approx([*lists.scores[0].tolist(), *lists.scores[2].tolist()])


@pytest.mark.parametrize("name", ["MatrixFactorization", "NeuMF", "EASE", "EASE of neighbours", "ItemPop"])
def test_a_history_in_place_of_a_user(name: str, bought: Interactions) -> None:
    recommender = Recommender(MODELS[name](bought), seen=bought)
    baskets = [["i00", "i05", "unheard of"], ["i01"]]
    both = recommender.recommend(history=baskets, k=4, items=[f"i{n:02}" for n in range(9)], exclude=["i03"])
    folded = fold_in(recommender.model, baskets)  # type: ignore[call-overload]
    expected = recommend(folded, [0, 1] if name != "ItemPop" else None, k=11)
    assert both.users == [None, None]
    assert both.sources == ["history", "history"]
    for row, basket in enumerate(baskets):
        hidden = {*basket, "i03", "i09", "i10"}
        assert both.items[row] == [item for item in expected.items[row] if item not in hidden][:4]
        alone = recommender.recommend(history=basket, k=3, exclude_seen=False)
        assert alone.items[0] == expected.items[row][:3]
    with pytest.raises(ValueError, match="history is of someone unknown"):
        recommender.recommend("u1", history=["i00"])


@pytest.mark.parametrize("neighbours", [None, 18])
def test_neighbours_and_reasons(neighbours: int | None) -> None:
    people = [n for n in range(30) for _ in range(4)]
    films = [(n % 2) * 10 + k for n in range(30) for k in (0, 1, 2, 3 + n % 5)]  # two tastes
    watched = Interactions.from_arrays(people, films)
    recommender = Recommender(EASE(watched, regularization=1.0, neighbours=neighbours), seen=watched)
    near, scores = recommender.similar([1, 11], k=3)
    assert set(near[0]) <= set(range(10))
    assert set(near[1]) <= set(range(10, 20))
    assert scores.shape == (2, 3)
    why = recommender.explain(0, 4, k=10)
    assert set(why.items[0]) == set(recommender.history(0)) - {4}
    torch.testing.assert_close(why.scores.sum(), recommender.score(0, 4)[0, 0])
    factors = Recommender(named(GMF(30, watched.num_items, init_std=1.0), watched), seen=watched)
    weight = factors.model.embeddings.weight("item_gmf").detach()  # type: ignore[attr-defined]
    cosines = torch.nn.functional.cosine_similarity(weight[0], weight[1:])
    assert watched.item_ids is not None
    assert factors.similar(0, k=1).items == [watched.item_ids.decode(cosines.argmax()[None] + 1)]
    with pytest.raises(TypeError, match="ItemPop has no item vectors"):
        Recommender(ItemPop(watched), seen=watched).similar(0)


def test_ids_are_found_in_a_vocabulary_in_any_order() -> None:
    numbers = torch.randperm(3000, generator=torch.Generator().manual_seed(1)) * 7
    for raw in (numbers.tolist(), [f"ö{n}" for n in numbers.tolist()], sorted(numbers.tolist())):
        model = GMF(3000, 4)
        model.user_ids = Vocabulary(raw)
        found = Recommender(model)._users
        some = [raw[0], raw[-1], raw[1234]]
        assert found.find(some, "users").tolist() == [0, 2999, 1234]
        nobody = [-5, 3, 10**9] if isinstance(raw[0], int) else ["", "ö3", "zz"]
        assert found.find(nobody, "users").tolist() == [-1, -1, -1]
        assert torch.equal(found.find(raw, "users"), torch.arange(3000))  # many at once


def test_scores_beyond_float32_keep_their_order() -> None:
    big = 1 << 40
    whole = torch.tensor([[big, big + 2, big + 1, -big]])
    offered = recommend(ByItem(whole), [0], k=4)  # type: ignore[arg-type]
    assert offered.items == [[1, 2, 0, 3]]
    fine = torch.tensor([[1.0, 1.0 + 1e-12, 1.0 - 1e-12]], dtype=torch.float64)
    assert recommend(ByItem(fine), [0], k=3).items == [[1, 0, 2]]  # type: ignore[arg-type]


def test_a_score_of_minus_infinity_may_be_offered_last() -> None:
    model = ByItem(torch.tensor([[-torch.inf, 1.0, -torch.inf, -torch.inf]]))
    seen = Interactions(torch.tensor([0]), torch.tensor([0]), None, 1, 4)
    assert recommend(model, [0], k=9, exclude=seen).items == [[1, 2, 3]]  # type: ignore[arg-type]


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
        patch.setattr(scoring, "_SCORES_PER_BLOCK", 2 * num_items)
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
        ("01", "users holds strings, but there is no vocabulary"),
        (1.5, "users cannot be read as one column"),
        (9, r"users\[0\] = 9 is out of range"),
        (torch.tensor([[0, 1]]), "users cannot be read as one column"),
        ([0, -1], r"users\[1\] = -1 is out of range"),
    ],
)
def test_users_that_are_no_ids_are_refused(users: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recommend(GMF(9, 5), users, k=2)  # type: ignore[arg-type]


def test_one_user_or_a_vocabulary_of_users(bought: Interactions) -> None:
    model = ItemPop(bought)
    assert recommend(model, "u1", k=2).items == recommend(model, ["u1"], k=2).items
    assert recommend(model, bought.user_ids, k=2).users == [f"u{n}" for n in range(6)]
    assert recommend(GMF(9, 5), 3, k=2).users == [3]


@pytest.mark.parametrize("raw_ids", [True, False])
def test_users_one_by_one_get_what_they_get_together(raw_ids: bool, bought: Interactions) -> None:
    sizes = bought.num_users, bought.num_items
    seen = bought if raw_ids else Interactions(bought.users, bought.items, None, *sizes)
    recommender = Recommender(GMF(*sizes, init_std=1.0), seen=seen)
    users = ["u4", "nobody", "u0"] if raw_ids else [4, 6, -1, 0]
    together = recommender.recommend(users, k=9, unknown="popular")
    for row, user in enumerate(users):
        alone = recommender.recommend(user, k=9, unknown="popular")
        assert (alone.users, alone.items, alone.sources) == (
            [user],
            [together.items[row]],
            [together.sources[row]],
        )
        assert torch.equal(alone.scores[0], together.scores[row])
    assert together.sources[1] == "popularity"


def test_interactions_with_known_raw_ids_in_any_numbering_are_excluded(bought: Interactions) -> None:
    model = named(GMF(bought.num_users, bought.num_items, init_std=1.0), bought)
    expected = recommend(model, ["u1", "u4"], k=20, exclude=bought).items
    assert bought.user_ids is not None
    assert bought.item_ids is not None
    users, items = bought.user_ids.decode(bought.users), bought.item_ids.decode(bought.items)
    other = Interactions.from_arrays(["a", *reversed(users)], ["i99", *reversed(items)])  # all numbers differ
    assert recommend(model, ["u1", "u4"], k=20, exclude=other).items == expected
    by_user: dict[str, list[str]] = {"nobody": ["i01"]}
    for user, item in zip(users, items, strict=True):
        by_user.setdefault(user, []).append(item)
    assert recommend(model, ["u1", "u4"], k=20, exclude=by_user).items == expected
    with pytest.raises(ValueError, match="no raw id of seen is known to the model"):
        recommend(model, ["u1"], exclude=Interactions.from_arrays(["x"], ["y"]))
    with pytest.raises(ValueError, match=r"holds whole numbers, the vocabulary strings: convert them"):
        recommend(model, ["u1"], exclude=Interactions.from_arrays([1], [2]))
    with pytest.raises(ValueError, match="exclude holds whole numbers, the vocabulary strings"):
        recommend(model, ["u1"], exclude=[1, 2])


def test_rows_to_spare_are_never_offered(bought: Interactions) -> None:
    model = GMF(bought.num_users + 5, bought.num_items + 5, init_std=1.0)
    model.user_ids, model.item_ids = bought.user_ids, bought.item_ids
    assert len(recommend(model, ["u1"], k=bought.num_items, exclude=None).items[0]) == bought.num_items
    assert recommend(model, ["u1"], k=2, exclude=bought).items
    assert len(recommend(model, ["u1"], k=bought.num_items + 1).items[0]) == bought.num_items


def test_a_model_of_ones_own_is_asked_in_evaluation_mode_where_it_lives() -> None:
    class Own(torch.nn.Module):
        num_users, num_items = 3, 4

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.arange(12.0).view(3, 4))

        def score(self, users: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
            assert not self.training  # a copy's
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


def test_a_split_to_exclude_names_the_remedy() -> None:
    split = leave_one_out(Interactions.from_arrays([0, 0, 0, 1, 1, 1], [0, 1, 2, 1, 2, 3]))
    with pytest.raises(TypeError, match=r"exclude is a Split: give one of its sets, such as split\.train"):
        recommend(ItemPop(split.train), [0], exclude=split)
