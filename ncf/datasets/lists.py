"""Files with one list of items per user: ``user item item …`` (the format of LightGCN's and NGCF's data)."""

from __future__ import annotations

import gzip
from os import PathLike
from pathlib import Path
from typing import overload

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from ncf.data.columns import to_tensor
from ncf.data.interactions import Interactions
from ncf.data.splitting import Split
from ncf.data.vocabulary import Vocabulary

File = str | PathLike[str]

_LINE = r"^\d{1,18}(\s+\d{1,18})*$"


@overload
def read_lists(train: File) -> Interactions: ...
@overload
def read_lists(train: File, test: File, *, validation: File | None = None) -> Split: ...
def read_lists(
    train: File, test: File | None = None, *, validation: File | None = None
) -> Interactions | Split:
    r"""Read files whose lines are a user and the user's items, ``user item item …``, with spaces or tabs between.

    The items of a line are in the order of time, if the file has one: `leave_one_out` holds out the last. A
    user without items and a blank line hold nothing. An item that a user's lists name twice counts once, at its
    last place.

    Args:
        train: the file, plain or ``.gz``.
        test: a file of the same kind with the held-out items, several for a user.
        validation: likewise.

    Returns:
        `Interactions` of one file; a `Split` if ``test`` is given. The files' numbers are the raw ids, whether they
        begin with 0 or 1, and all sets share their vocabularies.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for a line of another form, file and line are named; or if a file holds no items.

    Example::

        >>> import pathlib, tempfile
        >>> from ncf.datasets import read_lists
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = pathlib.Path(folder, "train.txt").write_text("1 10 11 12\n2 11\n")
        ...     size = pathlib.Path(folder, "test.txt").write_text("1 13 14\n2\n")
        ...     split = read_lists(f"{folder}/train.txt", f"{folder}/test.txt")
        >>> split, split.test.item_ids.decode(split.test.items)
        (Split(train 4, test 2; users without test interactions: 1), [13, 14])
    """
    if test is None and validation is not None:
        raise ValueError("validation is given without test: give both, or train alone and split it")
    files = [train] if test is None else [train, test, *([] if validation is None else [validation])]
    read = [_read(Path(file)) for file in files]
    ids = [Vocabulary(torch.cat([rows[side] for rows in read]).unique()) for side in (0, 1)]
    sets = [Interactions.from_arrays(*rows, user_ids=ids[0], item_ids=ids[1]) for rows in read]
    if test is None:
        return sets[0]
    return Split(sets[0], None if validation is None else sets[2], sets[1])


def _read(file: Path) -> tuple[Tensor, Tensor]:
    """Users and items, each ``[N]``, int64."""
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix.lower() == ".gz" else file.read_bytes()
        lines = pc.ascii_trim_whitespace(pa.array(content.decode().split("\n"), pa.large_string()))
    except (OSError, EOFError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{file} is damaged: {error}") from error
    wrong = pc.index(pc.or_(pc.equal(lines, ""), pc.match_substring_regex(lines, _LINE)), False).as_py()
    if wrong >= 0:
        raise ValueError(
            f"{file}, line {wrong + 1} is malformed, expected numbers 'user item item …': "
            f"{lines[wrong].as_py()[:60]!r}"
        )
    cells = pc.ascii_split_whitespace(lines.filter(pc.not_equal(lines, "")))
    counts = to_tensor(pc.list_value_length(cells))  # [lines]
    numbers = to_tensor(pc.list_flatten(cells).cast(pa.int64()))  # [lines + N]
    heads = torch.zeros(len(numbers), dtype=torch.bool, device="cpu")
    heads[counts.cumsum(0) - counts] = True
    if bool(heads.all()):
        raise ValueError(f"{file} holds no items: each line is a user and the user's items")
    return numbers[heads].repeat_interleave(counts - 1), numbers[~heads]
