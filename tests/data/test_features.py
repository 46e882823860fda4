from __future__ import annotations

import json
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from ncf import Features, Vocabulary

FILMS: dict[str, Any] = {
    "film": ["Brazil", "Alien", "Casablanca", "Dune"],
    "genres": [["satire", "space"], ["horror", "space", "space"], [], None],
    "country": ["UK", "UK", "US", None],
    "hours": [2.0, 2.0, 1.0, float("nan")],
}


def entries(features: Features) -> list[dict[Any, float]]:
    return [features.of(entity) for entity in (features.ids or range(len(features)))]


def test_categories_lists_and_numbers_become_numbered_features() -> None:
    features = Features.from_table(FILMS, "film")
    assert features.ids is not None
    assert list(features.ids) == ["Alien", "Brazil", "Casablanca", "Dune"]
    assert features.names == (
        ("genres", "horror"),
        ("genres", "satire"),
        ("genres", "space"),
        ("country", "UK"),
        ("country", "US"),
        ("hours", None),
    )
    mean, deviation = 5 / 3, (2 / 9) ** 0.5  # of 2, 2 and 1
    assert features.scales == {"hours": (pytest.approx(mean), pytest.approx(deviation))}
    long = pytest.approx((2 - mean) / deviation)
    assert entries(features) == [
        {("genres", "horror"): 1.0, ("genres", "space"): 1.0, ("country", "UK"): 1.0, ("hours", None): long},
        {("genres", "satire"): 1.0, ("genres", "space"): 1.0, ("country", "UK"): 1.0, ("hours", None): long},
        {("country", "US"): 1.0, ("hours", None): pytest.approx((1 - mean) / deviation)},
        {},
    ]
    assert features.missing == 1


@pytest.mark.parametrize(
    "made",
    [pa.table, pd.DataFrame, lambda films: pl.DataFrame(films, strict=False)],
    ids=["pyarrow", "pandas", "polars"],
)
def test_every_kind_of_table_gives_the_same(made: Any) -> None:
    assert (
        Features.from_table(made(FILMS), "film").fingerprint == Features.from_table(FILMS, "film").fingerprint
    )


def test_the_order_of_the_rows_does_not_matter_and_a_changed_value_does() -> None:
    backwards = {name: column[::-1] for name, column in FILMS.items()}
    same, other = (Features.from_table(films, "film") for films in (FILMS, backwards))
    assert same.fingerprint == other.fingerprint
    changed = Features.from_table({**FILMS, "country": ["UK", "US", "US", None]}, "film")
    assert changed.fingerprint != same.fingerprint


def test_ids_of_a_model_are_followed() -> None:
    ids = Vocabulary(["Dune", "Zorro", "Alien"])
    features = Features.from_table(FILMS, "film", ids=ids, columns=["country"])
    assert entries(features) == [{}, {}, {("country", "UK"): 1.0}]
    assert features.missing == 2
    numbered = Features.from_table({"id": [3, 1], "kind": [7, 8]}, "id", ids=5)
    assert entries(numbered) == [{}, {("kind", 8): 1.0}, {}, {("kind", 7): 1.0}, {}]


def test_whole_numbers_are_categories_unless_they_are_said_to_be_numbers() -> None:
    table = {"id": [0, 1], "year": [1979, 1985]}
    assert Features.from_table(table, "id").names == (("year", 1979), ("year", 1985))
    numeric = Features.from_table(table, "id", columns={"year": "numeric"})
    assert [numeric.of(0), numeric.of(1)] == [{("year", None): -1.0}, {("year", None): 1.0}]


def test_new_entities_are_read_like_known_ones_and_unknown_values_counted() -> None:
    like = Features.from_table(FILMS, "film")
    new = {
        "film": ["Emma"],
        "genres": [["romance", "satire"]],
        "country": ["FR"],
        "hours": [3.0],
        "more": ["x"],
    }
    skipped = Features.from_table(new, "film", like=like)
    assert skipped.names == like.names
    assert skipped.unknown == {"genres": 1, "country": 1}
    scaled = (3.0 - like.scales["hours"][0]) / like.scales["hours"][1]
    assert skipped.of("Emma") == {("genres", "satire"): 1.0, ("hours", None): pytest.approx(scaled)}
    nothing = Features.from_table(new | {"hours": [None]}, "film", like=like)
    assert nothing.of("Emma") == {("genres", "satire"): 1.0}
    added = Features.from_table(new, "film", like=like, unknown="add")
    assert added.names == (*like.names, ("genres", "romance"), ("country", "FR"))
    assert added.of("Emma")[("country", "FR")] == 1.0
    with pytest.raises(
        ValueError, match="genres holds 'romance', which the features given as like do not have"
    ):
        Features.from_table(new, "film", like=like, unknown="raise")


def test_entities_are_taken_in_any_order() -> None:
    features = Features.from_table(FILMS, "film")
    taken = features.take(torch.tensor([2, -1, 0, 0]))
    assert entries(taken) == [features.of("Casablanca"), {}, features.of("Alien"), features.of("Alien")]


def test_a_description_gives_the_features_back() -> None:
    features = Features.from_table({"id": [0, 1], "a": [True, False], "b": ["ü", "x"], "c": [1.5, 2.0]}, "id")
    tensors = {"offsets": features.offsets, "rows": features.rows, "weights": features.weights}
    again = Features.described(features.description(), **tensors)
    assert again.names == features.names
    assert again.fingerprint == features.fingerprint
    json.loads(features.description())


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({}, {"columns": ["genre"]}, r"column 'genre' is missing: the table has 'film', 'genres', 'country'"),
        ({"film": ["Alien", "Alien", "B", "C"]}, {}, "column 'film': values holds 'Alien' more than once"),
        ({"film": ["Alien", None, "B", "C"]}, {}, r"film\[1\] is missing"),
        ({"hours": [1.0, float("inf"), 2.0, 3.0]}, {}, "hours holds an infinite number"),
        ({}, {"columns": []}, "there is no column beside 'film'"),
        ({}, {"columns": "genres"}, r"columns = 'genres': give a list of names, \['genres'\]"),
        (
            {},
            {"columns": {"hours": "categorical"}},
            "column 'hours' is of type double, which is not categorical",
        ),
        (
            {},
            {"columns": {"country": "numeric"}},
            "column 'country' is of type .*string, which is not numeric",
        ),
        ({}, {"columns": {"country": "ordinal"}}, r"columns\['country'\] = 'ordinal': choose"),
        ({"hours": [[1.0], [2.0], [], None]}, {}, r"column 'hours' is of type list.*one a row"),
        ({"hours": pa.array([1, 2, 3, 4], pa.timestamp("s"))}, {}, "column 'hours' is of type timestamp"),
        ({}, {"unknown": "drop"}, "unknown = 'drop': choose"),
        ({}, {"ids": -1}, "ids = -1"),
        ({}, {"ids": Vocabulary([1, 2])}, "ids holds whole numbers, the vocabulary strings"),
        (
            {"country": [None] * 4},
            {"columns": ["country"]},
            "the table has no feature: every value is missing",
        ),
    ],
)
def test_bad_tables_are_named(change: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Features.from_table({**FILMS, **change}, "film", **settings)


def test_a_table_unlike_the_first_is_named() -> None:
    like = Features.from_table(FILMS, "film")
    with pytest.raises(ValueError, match="column 'hours' is missing"):
        Features.from_table({name: FILMS[name] for name in ("film", "genres", "country")}, "film", like=like)
    with pytest.raises(ValueError, match="column 'more' is not one of like's: 'genres', 'country', 'hours'"):
        Features.from_table({**FILMS, "more": ["x"] * 4}, "film", like=like, columns=["more"])
    with pytest.raises(ValueError, match="country holds int64, the features given as like hold 'UK'"):
        Features.from_table({**FILMS, "country": [1, 2, 3, 4]}, "film", like=like)
    with pytest.raises(ValueError, match="Arrow cannot read"):
        Features.from_table(7, "film")


def test_tensors_that_do_not_fit_are_named() -> None:
    offsets, rows, ones = torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1)
    with pytest.raises(ValueError, match="outside 0 to 0"):
        Features(offsets=offsets, rows=rows + 1, weights=ones, names=(("a", "b"),))
    with pytest.raises(ValueError, match="give a finite one"):
        Features(offsets=offsets, rows=rows, weights=ones / 0, names=(("a", "b"),))
    with pytest.raises(ValueError, match="ids has 2 raw ids for 1 entities"):
        Features(offsets=offsets, rows=rows, weights=ones, names=(("a", "b"),), ids=Vocabulary([1, 2]))
