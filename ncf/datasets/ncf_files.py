"""The files of the paper's code (He et al., WWW 2017): ``.train.rating``, ``.test.rating`` and ``.test.negative``.

Each line of the first two is ``user item rating timestamp``, separated by tabs; each line of the third is
``(user,item)`` and then that user's negatives. Ids are numbers from 0. The rating is not used: every line is an
interaction. The timestamp may be left out, then the order of the lines is the time.
"""

from __future__ import annotations

import gzip
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import torch
from torch import Tensor

from ncf.data.candidates import Candidates
from ncf.data.columns import time_column, to_tensor
from ncf.data.filters import sorted_keys
from ncf.data.interactions import Interactions
from ncf.data.splitting import Split
from ncf.utils.files import flush_to_disk
from ncf.utils.jagged import lengths_to_offsets

_COLUMNS = ("user", "item", "rating", "timestamp")
_LINE = r"^\((\d{1,18}), ?(\d{1,18})\)((?:\t\d{1,18})*)\s*$"


def read_ncf(prefix: str | PathLike[str], *, num_negatives: int | None = None) -> tuple[Split, Candidates]:
    """Read the paper's files.

    The negatives are taken as they are, and a warning counts those that should not be there: 156 users of the
    paper's MovieLens-1M file have their positive among them. `ncf.evaluate` does not count it against itself.

    Args:
        prefix: path up to ``.test.rating``, such as ``"Data/ml-1m"``. Each file may be compressed, ``.gz`` at its end.
        num_negatives: how many negatives each line must have; by default whatever is there, shorter lines padded.

    Returns:
        The split, without a validation set, and the candidates. Ids are the files' own: there are as many users and
        items as the highest number says.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for a malformed line, a line without ``num_negatives`` negatives, or test files
            that do not hold the same pairs line by line; file and row are named.

    Example::

        >>> import tempfile
        >>> from ncf import Interactions, leave_one_out, sample_candidates
        >>> from ncf.datasets import read_ncf, write_ncf
        >>> split = leave_one_out(Interactions.from_arrays([0, 0, 0, 1, 1, 1], [0, 1, 2, 1, 2, 3]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_ncf(f"{folder}/tiny", split, sample_candidates(split, num_negatives=1))
        ...     read_ncf(f"{folder}/tiny")
        (Split(train 4, test 2), Candidates(2 users, 1 + 1 items each))
    """
    train_file, test_file, negative_file = (
        zipped if not file.is_file() and (zipped := Path(f"{file}.gz")).is_file() else file
        for file in _files(prefix)
    )
    test = _read_ratings(test_file)
    candidates = _read_negatives(negative_file, num_negatives)
    _check_same(test, candidates, test_file, negative_file)
    train = _read_ratings(train_file)
    num_users = 1 + max(int(train[0].max()), int(test[0].max()))
    num_items = 1 + max(int(candidates.items.max()), int(train[1].max()), int(test[1].max()))
    split = Split(_once(*train, num_users, num_items), None, Interactions(*test, num_users, num_items))
    _report(split, candidates, negative_file)
    return split, replace(candidates, untested=len(split.users_without_test))


def write_ncf(prefix: str | PathLike[str], split: Split, candidates: Candidates) -> None:
    """Write a split and its test candidates as the paper's files.

    Where one cannot be written, the files that were there stay. A process that is killed at the wrong instant leaves
    files missing, but never some of another split.

    Args:
        prefix: path up to ``.test.rating``; its folder is made if missing.
        split: the format has no validation part: if there is one, it goes into the training file.
        candidates: of the test part, one per test row in its order; padding is left out.

    Raises:
        ValueError: if the candidates are not of the test set.

    Example::

        >>> import pathlib, tempfile
        >>> from ncf import Interactions, leave_one_out, sample_candidates
        >>> from ncf.datasets import write_ncf
        >>> split = leave_one_out(Interactions.from_arrays([0, 0, 0, 1, 1, 1], [0, 1, 2, 1, 2, 3]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_ncf(f"{folder}/tiny", split, sample_candidates(split, num_negatives=1))
        ...     pathlib.Path(f"{folder}/tiny.test.rating").read_text().split()  # user, item, rating
        ['0', '2', '1', '2', '1', '3', '1', '5']
    """
    train_file, test_file, negative_file = _files(prefix)
    _check_same((split.test.users, split.test.items, None), candidates, "split.test", "candidates")
    with _all_or_none([train_file, test_file, negative_file]) as (train_new, test_new, negative_new):
        _write_ratings(split.with_validation_in_train().train, train_new)
        _write_ratings(split.test, test_new)
        _write_negatives(candidates, negative_new)


@contextmanager
def _all_or_none(targets: list[Path]) -> Iterator[list[Path]]:
    """Give paths for new files; then put all of them in the targets' place, or leave all as it was."""
    targets[0].parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".ncf-files.", suffix=".part", dir=targets[0].parent) as folder:
        new, old = ([Path(folder, f"{age}{target.name}") for target in targets] for age in ("new", "old"))
        yield new
        for path in new:
            flush_to_disk(path)
        try:
            # All go first: one left would be read with new ones.
            for target, kept in zip(targets, old, strict=True):
                if target.exists():
                    target.replace(kept)
            for target, path in zip(targets, new, strict=True):
                path.replace(target)
        except BaseException:
            for target, path, kept in zip(targets, new, old, strict=True):
                if not path.exists():
                    target.unlink()
                if kept.exists():
                    kept.replace(target)
            raise
    flush_to_disk(targets[0].parent)


_Ratings = tuple[Tensor, Tensor, Tensor | None]


def _files(prefix: str | PathLike[str]) -> list[Path]:
    return [Path(fspath(prefix) + ending) for ending in (".train.rating", ".test.rating", ".test.negative")]


def _read_ratings(file: Path) -> _Ratings:
    """Users, items and, if there are any, times: each ``[N]``, int64."""
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rb") as lines:
        width = lines.readline().count(b"\t") + 1
    if not 2 <= width <= len(_COLUMNS):
        raise ValueError(f"{file}, row 1: {width} columns, expected {' '.join(_COLUMNS)} with tabs between")
    names = _COLUMNS[:width]
    kept = [name for name in names if name != "rating"]
    try:
        table = pa_csv.read_csv(
            file,
            pa_csv.ReadOptions(column_names=names, use_threads=False),  # so that errors name their row
            pa_csv.ParseOptions(delimiter="\t", quote_char=False),
            pa_csv.ConvertOptions(
                include_columns=kept, column_types={"user": pa.int64(), "item": pa.int64()}, null_values=[]
            ),
        )
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file} is malformed: {error}") from error
    columns = [time_column(table[name], f"{file}: {name}") for name in kept]  # whole numbers all, each [N]
    for name, column in zip(("user", "item"), columns, strict=False):
        if int(column.min()) < 0:
            row = int((column < 0).nonzero()[0])
            raise ValueError(f"{file}, row {row + 1}: {name} {int(column[row])} is negative: ids go from 0")
    return columns[0], columns[1], columns[2] if len(columns) > 2 else None


def _read_negatives(file: Path, num_negatives: int | None) -> Candidates:
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    content = file.read_bytes()
    text = (gzip.decompress(content) if file.suffix == ".gz" else content).decode()
    lines = pa.array(text.splitlines(), pa.large_string())
    if len(lines) == 0:
        raise ValueError(f"{file} is empty")
    row = pc.index(pc.match_substring_regex(lines, _LINE), False).as_py()
    if row >= 0:
        raise ValueError(
            f"{file}, row {row + 1} is malformed, expected '(user,item)' and numbers with tabs between: "
            f"{lines[row].as_py()[:60]!r}"
        )
    numbers = pc.replace_substring_regex(pc.utf8_rtrim_whitespace(lines), r"^\((\d+), ?(\d+)\)", "\\1\t\\2")
    cells = pc.split_pattern(numbers, "\t")
    counts = to_tensor(pc.list_value_length(cells)) - 2  # [U]
    if num_negatives is not None and bool((counts != num_negatives).any()):
        row = int((counts != num_negatives).nonzero()[0])
        raise ValueError(
            f"{file}, row {row + 1} has {int(counts[row])} negatives, not num_negatives = {num_negatives}"
        )
    padded = torch.full((len(counts), 2 + int(counts.max())), -1, dtype=torch.int64, device="cpu")
    there = torch.arange(padded.shape[1], dtype=torch.int64, device="cpu") < counts[:, None] + 2  # [U, 2 + C]
    padded[there] = to_tensor(pc.list_flatten(cells).cast(pa.int64()))
    return Candidates(padded[:, 0].contiguous(), padded[:, 1].contiguous(), padded[:, 2:].contiguous())


def _check_same(test: _Ratings, candidates: Candidates, test_name: Any, negative_name: Any) -> None:
    """The test rows and the lines of candidates must be of the same pairs, each user once."""
    users, items, _ = test
    rows = min(len(users), len(candidates))
    differ = (users[:rows] != candidates.users[:rows]) | (items[:rows] != candidates.positives[:rows])
    if len(users) != len(candidates) or bool(differ.any()):
        row = int(differ.nonzero()[0]) if bool(differ.any()) else rows
        raise ValueError(
            f"{test_name} ({len(users)} rows) and {negative_name} ({len(candidates)} rows) differ from row {row + 1} "
            "on: they must hold the same users and items in the same order"
        )
    order = users.argsort(stable=True)
    again = order[1:][users[order[1:]] == users[order[:-1]]]
    if len(again):
        row = int(again.min())
        raise ValueError(f"{test_name}, row {row + 1}: user {int(users[row])} is there a second time")


def _once(users: Tensor, items: Tensor, times: Tensor | None, num_users: int, num_items: int) -> Interactions:
    """Training rows with each pair once, at its latest time, under the files' own ids."""
    numbered = Interactions.from_arrays(users, items, times)
    assert numbered.user_ids is not None  # from_arrays always gives them
    assert numbered.item_ids is not None
    raw_users, raw_items = (to_tensor(ids.values) for ids in (numbered.user_ids, numbered.item_ids))
    return Interactions(
        raw_users[numbered.users], raw_items[numbered.items], numbered.timestamps, num_users, num_items
    )


def _report(split: Split, candidates: Candidates, file: Path) -> None:
    """Warn of candidates that a fresh draw would not hold."""
    negatives = candidates.negatives
    ordered = negatives.sort(dim=1).values
    keys = candidates.users[:, None] * split.test.num_items + negatives
    counts = {
        "their positive among their negatives": (negatives == candidates.positives[:, None]),
        "a negative twice": (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0),
    }
    trained = sorted_keys(split.train.users * split.test.num_items + split.train.items)
    counts["a training item among their negatives"] = _within(keys, trained) & (negatives >= 0)
    positives = candidates.users * split.test.num_items + candidates.positives
    counts["their positive in the training file"] = _within(positives, trained)[:, None]
    found = [
        f"{int(rows.any(1).sum())} users have {what}" for what, rows in counts.items() if bool(rows.any())
    ]
    if found:
        warnings.warn(f"{file}: {', '.join(found)}; they are read as they are", stacklevel=3)


def _within(keys: Tensor, ascending: Tensor) -> Tensor:
    """Return a mask of the keys that are among others; `torch.isin` would sort both."""
    place = torch.searchsorted(ascending, keys).clamp_(max=len(ascending) - 1)
    return ascending[place] == keys


def _write_ratings(interactions: Interactions, path: Path) -> None:
    columns = {
        "user": interactions.users,
        "item": interactions.items,
        "rating": torch.ones_like(interactions.items),
    }
    if interactions.timestamps is not None:
        columns["timestamp"] = interactions.timestamps
    table = pa.table({name: column.cpu().numpy() for name, column in columns.items()})
    pa_csv.write_csv(table, path, pa_csv.WriteOptions(include_header=False, delimiter="\t"))


def _write_negatives(candidates: Candidates, path: Path) -> None:
    negatives = candidates.negatives.cpu()
    there = negatives >= 0
    offsets = lengths_to_offsets(there.sum(1))
    flat = pa.array(negatives[there].numpy()).cast(pa.string())
    tails = pc.binary_join(pa.LargeListArray.from_arrays(pa.array(offsets.numpy()), flat), "\t")
    users, positives = (
        pa.array(ids.cpu().numpy()).cast(pa.string()) for ids in (candidates.users, candidates.positives)
    )
    heads = pc.binary_join_element_wise("(", users, ",", positives, ")", "")
    lines = pc.if_else(pc.equal(tails, ""), heads, pc.binary_join_element_wise(heads, tails, "\t"))
    path.write_text("\n".join(lines.to_pylist()) + "\n", encoding="utf-8")
