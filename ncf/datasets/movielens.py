"""MovieLens, the ratings of films by GroupLens (Harper & Konstan, ACM TiiS 2015), as implicit feedback.

Every rating counts as an interaction, whatever its stars, as in He et al. (2017).
"""

from __future__ import annotations

import csv
import io
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from ncf.data.columns import from_tensor
from ncf.data.interactions import Interactions, Vocabulary
from ncf.datasets.download import check_hash, data_home, download, download_wheel, open_archive
from ncf.utils.files import atomic_write

__all__ = ["MovieLens", "load"]

_GROUPLENS = "https://files.grouplens.org/datasets/movielens"

_TERMS = """\
MovieLens {name} was collected by GroupLens, University of Minnesota. Its terms: no endorsement may be implied,
publications must cite it (Harper & Konstan 2015, doi:10.1145/2827872), it may not be redistributed or used
commercially without permission. The whole text: https://grouplens.org/datasets/movielens/.
Kept in {folder}; this note is shown once."""


class _Release(NamedTuple):
    md5: str  # as GroupLens publishes it beside the file
    ratings: str
    movies: str


_RELEASES = {
    "100k": _Release("0e33842e24a9c977be4e0107933c0723", "u.data", "u.item"),
    "1m": _Release("c4d9eecfca2ab87c1945afe126590906", "ratings.dat", "movies.dat"),
    "20m": _Release("cd245b17a1ae2cc31bb14903e1204af3", "ratings.csv", "movies.csv"),
    "25m": _Release("6b51fb2759a8657d3bfcbfc42b592ada", "ratings.csv", "movies.csv"),
    "32m": _Release("d472be332d4daa821edc399621853b57", "ratings.csv", "movies.csv"),
}

# The same 100,000 ratings in the same order, for machines that reach a package index and nothing else.
_WHEEL = "recbole==1.2.1"
_WHEEL_FILE = "recbole-1.2.1-py3-none-any.whl"
_WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
_WHEEL_MEMBERS = [f"recbole/dataset_example/ml-100k/ml-100k.{ending}" for ending in ("inter", "item")]

# The columns at the end of 100k's u.item.
_GENRES = (
    "unknown|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|Film-Noir|Horror|"
    "Musical|Mystery|Romance|Sci-Fi|Thriller|War|Western"
)


@dataclass(frozen=True, eq=False)
class MovieLens:
    """The ratings, and what the films are called.

    Args:
        interactions: who rated what and when, each rating once, in file order; raw ids are GroupLens's numbers.
        titles: ``titles[item]`` is the film's title and year, ``"Toy Story (1995)"``; ``[num_items]``.
        genres: ``genres[item]`` are its genres, empty where none is known; ``[num_items]``.

    Example::

        >>> from ncf import Interactions
        >>> from ncf.datasets.movielens import MovieLens
        >>> seen = Interactions.from_arrays([1, 1, 2], [10, 20, 10])  # what `load` makes of the ratings
        >>> MovieLens(seen, ["Alien (1979)", "Brazil (1985)"], [("Horror", "Sci-Fi"), ("Comedy",)])
        MovieLens(Interactions(3 rows, 2 users, 2 items), 2 titles)
    """

    interactions: Interactions
    titles: list[str]
    genres: list[tuple[str, ...]]

    def __repr__(self) -> str:
        return f"MovieLens({self.interactions!r}, {len(self.titles)} titles)"


def load(name: str = "100k") -> MovieLens:
    """Load a release of MovieLens; the first time it is fetched over the network, then kept.

    It is kept in ``$NCF_DATA_HOME``, else in ``ncf`` in the user's cache folder. GroupLens's archive is
    checked against its published MD5. Where GroupLens cannot be reached, 100k comes from the data files
    inside the published wheel ``recbole==1.2.1``, checked by its SHA-256: the same ratings in the same order.
    An archive that was put there by hand (``ml-1m.zip``) is taken as if it had been fetched.

    Args:
        name: ``"100k"``, ``"1m"``, ``"20m"``, ``"25m"`` or ``"32m"``.

    Returns:
        `MovieLens`, numbered by ascending raw id; films that nobody rated are left out.

    Raises:
        OSError: if it cannot be fetched from any source; the message names the file to place by hand.
        ValueError: for an unknown name, or a placed or kept file that is not what it should be.

    Example::

        >>> from ncf.datasets import movielens
        >>> data = movielens.load("100k")  # doctest: +SKIP
        >>> data, data.titles[0]  # doctest: +SKIP
        (MovieLens(Interactions(100000 rows, 943 users, 1682 items), 1682 titles), 'Toy Story (1995)')
    """
    if name not in _RELEASES:
        raise ValueError(f"name = {name!r}: MovieLens has {', '.join(map(repr, _RELEASES))}")
    folder = data_home() / f"ml-{name}"
    if not all((folder / f"{part}.parquet").is_file() for part in ("ratings", "movies")):
        ratings, movies = _obtain(name)
        _write_parquet(movies, folder / "movies.parquet")
        _write_parquet(ratings, folder / "ratings.parquet")
    ratings, movies = (_read_parquet(folder / f"{part}.parquet") for part in ("ratings", "movies"))
    interactions = Interactions.from_table(ratings, timestamp="timestamp")
    assert interactions.item_ids is not None  # from_table always gives them
    rows = Vocabulary(movies["item"]).encode(interactions.item_ids.values, "item")
    movies = movies.take(from_tensor(rows))
    return MovieLens(
        interactions, movies["title"].to_pylist(), [tuple(row) for row in movies["genres"].to_pylist()]
    )


def _obtain(name: str) -> tuple[Any, Any]:
    """The tables of ratings and films, from a file placed by hand or else from the network."""
    home, release = data_home(), _RELEASES[name]
    archive, wheel = home / f"ml-{name}.zip", home / _WHEEL_FILE
    if archive.is_file():
        check_hash(archive, release.md5, "md5")
        return _read_archive(name, archive)
    if name == "100k" and wheel.is_file():
        return _read_wheel(wheel)

    url = f"{_GROUPLENS}/ml-{name}.zip"

    def from_grouplens(folder: Path) -> tuple[Any, Any]:
        download(url, folder / archive.name, release.md5)
        return _read_archive(name, folder / archive.name)

    def from_wheel(folder: Path) -> tuple[Any, Any]:
        return _read_wheel(download_wheel(_WHEEL, folder))

    sources: list[Callable[[Path], tuple[Any, Any]]] = [from_grouplens]
    if name == "100k":
        sources.append(from_wheel)
    reasons = []
    home.mkdir(parents=True, exist_ok=True)
    for source in sources:
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=home) as folder:
            try:
                tables = source(Path(folder))
            except (OSError, ValueError) as error:
                reasons.append(str(error))
                continue
        print(_TERMS.format(name=name, folder=home), file=sys.stderr)
        return tables
    other = f" (or {_WHEEL_FILE})" if name == "100k" else ""
    raise OSError(
        f"MovieLens {name} is not in {home} and cannot be fetched: {'; '.join(reasons)}. "
        f"Fetch {url}{other} on another machine and place it in {home}"
    )


def _read_archive(name: str, path: Path) -> tuple[Any, Any]:
    release = _RELEASES[name]
    members = [f"ml-{name}/{member}" for member in (release.ratings, release.movies)]
    with open_archive(path, members) as archive:
        if release.ratings == "ratings.dat":  # separated by "::", which no fast reader takes
            text = archive.read(members[0]).replace(b"::", b"\t")
            ratings = _read_ratings(io.BytesIO(text), separator="\t", header=False)
        else:
            comma = release.ratings.endswith(".csv")
            with archive.open(members[0]) as file:
                ratings = _read_ratings(file, separator="," if comma else "\t", header=comma)
        text = archive.read(members[1])
    return ratings, _films(_film_rows(release.movies, text))


def _film_rows(file: str, text: bytes) -> Iterator[tuple[str, str, list[str]]]:
    """Number, title and genres of every film, in the form that a release keeps them."""
    if file == "movies.csv":
        _, *rows = filter(None, csv.reader(io.StringIO(text.decode())))
        yield from ((item, title, genres.split("|")) for item, title, genres in rows)
        return
    lines = [line for line in text.decode("latin-1").split("\n") if line]
    if file == "movies.dat":
        yield from (
            (item, title, genres.split("|")) for item, title, genres in (x.split("::") for x in lines)
        )
        return
    for item, title, *columns in (line.split("|") for line in lines):  # u.item: a flag per genre at the end
        flags = zip(_GENRES.split("|"), columns[-19:], strict=True)
        yield item, title, [genre for genre, flag in flags if flag == "1"]


def _read_wheel(path: Path) -> tuple[Any, Any]:
    check_hash(path, _WHEEL_SHA256, "sha256")  # before anything is unpacked
    with open_archive(path, _WHEEL_MEMBERS) as archive:
        texts = [archive.read(member) for member in _WHEEL_MEMBERS]
    ratings = _read_ratings(io.BytesIO(texts[0]), separator="\t", header=True)
    lines = [line.split("\t") for line in texts[1].decode().splitlines()[1:]]
    # The wheel has title and year apart, and misspells the one film without either.
    rows = [
        (item, "unknown" if title == "unkonwn" else f"{title} ({year})", genres.split(" "))
        for item, title, year, genres in lines
    ]
    return ratings, _films(rows)


def _read_ratings(file: Any, *, separator: str, header: bool) -> Any:
    """Read columns user, item, rating, time, whatever the header calls them."""
    names = ["user", "item", "rating", "timestamp"]
    kept = ["user", "item", "timestamp"]
    return pa_csv.read_csv(
        file,
        read_options=pa_csv.ReadOptions(column_names=names, skip_rows=int(header)),
        parse_options=pa_csv.ParseOptions(delimiter=separator, quote_char=False),
        convert_options=pa_csv.ConvertOptions(
            include_columns=kept, column_types=dict.fromkeys(kept, pa.int64())
        ),
    )


def _films(rows: Iterable[tuple[str, str, list[str]]]) -> Any:
    none = ("unknown", "(no genres listed)", "")
    items, titles, genres = zip(*rows, strict=True)
    return pa.table(
        {
            "item": pa.array([int(item) for item in items], pa.int64()),
            "title": [" ".join(title.split()) for title in titles],
            "genres": pa.array([[g for g in row if g not in none] for row in genres], pa.list_(pa.string())),
        }
    )


def _write_parquet(table: Any, path: Path) -> None:
    with atomic_write(path) as beside:
        pq.write_table(table, beside, compression="zstd", write_page_checksum=True)


def _read_parquet(path: Path) -> Any:
    columns = {
        "ratings.parquet": ["user", "item", "timestamp"],
        "movies.parquet": ["item", "title", "genres"],
    }
    try:
        # Not read_table(): that imports pyarrow.dataset and with it pandas, 60 MB.
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read(use_threads=False)
        if table.column_names != columns[path.name]:
            raise ValueError(f"{path} is damaged: its columns are {', '.join(table.column_names)}")
        table.validate(full=True)
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and it is fetched again") from error
    return table
