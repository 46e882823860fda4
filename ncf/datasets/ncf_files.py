"""The files of the paper's code: ``.train.rating``, ``.test.rating`` and ``.test.negative``.

Each line of the first two is ``user item rating timestamp``, separated by tabs; each line of the third is
``(user,item)`` and then the user's negatives. Ids are numbers from 0.
"""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ncf.candidates import Candidates
from ncf.datasets.tables import read_tables
from ncf.files import write_text
from ncf.interactions import Interactions
from ncf.splitting import Split

_COLUMNS = ("user", "item", "rating", "timestamp")


def read_ncf(prefix: str | PathLike[str], *, num_negatives: int | None = None) -> tuple[Split, Candidates]:
    """Read the paper's files.

    The negatives are taken as they are: a positive among its own negatives (156 users of the paper's MovieLens-1M
    file have one) does not count against itself in `ncf.evaluate`, and one listed twice counts once.

    Args:
        prefix: path up to ``.test.rating``, such as ``"Data/ml-1m"``. ``.train.rating`` may be absent.
        num_negatives: how many negatives each line must have; whatever is there by default.

    Returns:
        The split, without a validation part (``train`` is ``None`` if its file is absent), and the candidates.

    Raises:
        FileNotFoundError: if a test file is missing.
        ValueError: for a malformed line, or a line with another number of negatives than asked for, by file and
            row; or if the two test files do not hold the same pairs.

    Example::

        >>> import tempfile
        >>> from ncf import Interactions, leave_one_out, sample_candidates
        >>> from ncf.datasets import read_ncf, write_ncf
        >>> interactions = Interactions.from_arrays([0, 0, 1, 1], [0, 1, 1, 2])
        >>> split = leave_one_out(interactions, validation=False, min_interactions=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_ncf(f"{folder}/tiny", split, sample_candidates(split, num_negatives=1))
        ...     read_ncf(f"{folder}/tiny")
        (Split(train 2, test 2), Candidates(2 users, 1 + 1 items each))
    """
    prefix = fspath(prefix)
    test = _read_ratings(Path(f"{prefix}.test.rating"))
    candidates = _read_negatives(Path(f"{prefix}.test.negative"), num_negatives)
    if not (torch.equal(candidates.users, test[0]) and torch.equal(candidates.positives, test[1])):
        rows = min(len(test[0]), len(candidates))
        same = (candidates.users[:rows] == test[0][:rows]) & (candidates.positives[:rows] == test[1][:rows])
        row = int((~same).nonzero()[0]) if not bool(same.all()) else rows
        raise ValueError(
            f"{prefix}.test.negative and .test.rating differ from row {row + 1} on: they belong to one split"
        )
    train_file = Path(f"{prefix}.train.rating")
    train = _read_ratings(train_file) if train_file.is_file() else None
    columns = [test] if train is None else [train, test]
    num_users = 1 + max(int(column[0].max()) for column in columns)
    num_items = 1 + max([int(column[1].max()) for column in columns] + [int(candidates.negatives.max())])
    parts = [None if part is None else Interactions(*part, num_users, num_items) for part in (train, test)]
    test_part = parts[1]
    assert test_part is not None
    return Split(parts[0], None, test_part), candidates


def write_ncf(prefix: str | PathLike[str], split: Split, candidates: Candidates) -> None:
    """Write a split and its test candidates as the paper's files; padding is left out.

    Args:
        prefix: path up to ``.test.rating``.
        split: its validation part, if any, goes into the training file.
        candidates: of the test part, in the order of its users.

    Raises:
        ValueError: if the candidates are not those of the test part.
    """
    if not torch.equal(candidates.users, split.test.users):
        raise ValueError(
            "the candidates' users are not those of the test part: draw them with sample_candidates(split)"
        )
    merged = split.merged()
    prefix = fspath(prefix)
    if merged.train is not None:
        write_text(f"{prefix}.train.rating", _ratings(merged.train))
    write_text(f"{prefix}.test.rating", _ratings(merged.test))
    lines = []
    for user, positive, negatives in zip(
        candidates.users.tolist(), candidates.positives.tolist(), candidates.negatives.tolist(), strict=True
    ):
        lines.append("\t".join([f"({user},{positive})", *(str(item) for item in negatives if item >= 0)]))
    write_text(f"{prefix}.test.negative", "\n".join(lines) + "\n")


def _ratings(interactions: Interactions) -> str:
    times = interactions.timestamps
    columns = [
        interactions.users.tolist(),
        interactions.items.tolist(),
        [0] * len(interactions) if times is None else times.tolist(),
    ]
    return "".join(f"{user}\t{item}\t1\t{time}\n" for user, item, time in zip(*columns, strict=True))


def _read_ratings(file: Path) -> tuple[Tensor, Tensor, Tensor]:
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    table = read_tables(file, ("user", "item", "timestamp"), columns=_COLUMNS, separator="\t")
    if len(table) == 0:
        raise ValueError(f"{file} is empty")
    user, item, time = (_numbers(table[name], file, name) for name in ("user", "item", "timestamp"))
    return user, item, time


def _numbers(column: Any, file: Path, name: str) -> Tensor:
    if (
        column.null_count
        or str(column.type) not in ("int64", "double")
        or (name != "timestamp" and str(column.type) != "int64")
    ):
        raise ValueError(
            f"{file}: column {name!r} must hold whole numbers, it is {column.type} with {column.null_count} missing"
        )
    return torch.from_numpy(column.cast("int64", safe=False).to_numpy().copy())


def _read_negatives(file: Path, num_negatives: int | None) -> Candidates:
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    lines = file.read_text(encoding="utf-8").splitlines()
    users, positives, rows = [], [], []
    for number, line in enumerate(lines, start=1):
        pair, *negatives = line.rstrip().split("\t")
        try:
            user, positive = pair.removeprefix("(").removesuffix(")").split(",")
            users.append(int(user))
            positives.append(int(positive))
            rows.append([int(item) for item in negatives])
        except ValueError:
            raise ValueError(
                f"{file}, row {number}: not '(user,item)' and numbers separated by tabs: {line[:60]!r}"
            ) from None
        if num_negatives is not None and len(negatives) != num_negatives:
            raise ValueError(
                f"{file}, row {number}: {len(negatives)} negatives where num_negatives = {num_negatives} are asked for"
            )
    if not rows:
        raise ValueError(f"{file} is empty")
    width = max(map(len, rows))
    padded = torch.tensor([row + [-1] * (width - len(row)) for row in rows])
    return Candidates(torch.tensor(users), torch.tensor(positives), padded)
