"""A folder of Parquet files, for data that exceeds one reader: each process reads the rows of its own users.

The layout::

    manifest.json        format, num_users, num_items, num_rows, timestamps (true or false), and the parts: for each
                         file its row groups as [first user, number of rows]
    part-00000.parquet   user, item, timestamp (if any): numbered ids, sorted by user, within a user in file order;
                         a row group ends where a user ends
    part-00001.parquet   the next users, about as many rows
    user_ids.parquet     the raw ids behind the numbers, if they are known: one column, ``id``; likewise item_ids

A process reads whole row groups, so it never reads, or skips over, a row of another process's users. A folder is
complete or absent: it is written under a temporary name and renamed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ncf.data.columns import to_tensor
from ncf.data.interactions import Interactions, Vocabulary
from ncf.utils.checks import check_rank

_FORMAT = 1
_GROUPS_PER_PART = 64  # at least, where there are as many users: what is shared out is a number of groups
_ROWS_PER_GROUP = 1 << 18  # at most, unless one user has more
_OPTIONS: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}


def write_parquet(interactions: Interactions, folder: str | PathLike[str], *, num_parts: int = 1) -> None:
    """Write interactions as a folder that several processes can share.

    Args:
        interactions: what to write.
        folder: a new folder.
        num_parts: number of files, with about equally many rows.

    Raises:
        FileExistsError: if there is a folder already.
        ValueError: if there are fewer users with interactions than parts.

    Example::

        >>> import os, tempfile
        >>> from ncf import Interactions
        >>> from ncf.datasets import write_parquet
        >>> bought = Interactions.from_arrays(["ann", "bob", "eve"], ["tea", "tea", "rum"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_parquet(bought, f"{folder}/bought", num_parts=2)
        ...     sorted(os.listdir(f"{folder}/bought"))
        ['item_ids.parquet', 'manifest.json', 'part-00000.parquet', 'part-00001.parquet', 'user_ids.parquet']
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists: remove it, or choose another folder")
    present = len(interactions.users.unique())
    if not 1 <= num_parts <= present:
        raise ValueError(
            f"num_parts = {num_parts}: choose 1 to {present}, the number of users with interactions"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.part"
    try:
        beside.mkdir()
        _write_into(beside, interactions, num_parts)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def read_parquet(folder: str | PathLike[str], *, rank: int = 0, world_size: int = 1) -> Interactions:
    """Read the share of one process: all rows of its users, and no others.

    Over the ranks every user is read exactly once, whatever the world size. Ids are of the whole
    data: ``num_users``, ``num_items`` and the vocabularies are the same on every rank, and what
    `ncf.leave_one_out` holds out for a user is what it would hold out of the whole.

    Args:
        folder: what `write_parquet` wrote.
        rank: number of this process.
        world_size: how many processes share the data.

    Returns:
        The interactions of a range of users, sorted by user, within a user in file order.

    Raises:
        FileNotFoundError: if the folder or one of its files is missing.
        ValueError: if the folder is damaged, or, on every rank alike, if there are more processes than groups
            of users to share out.

    Example::

        >>> import tempfile
        >>> from ncf import Interactions
        >>> from ncf.datasets import read_parquet, write_parquet
        >>> bought = Interactions.from_arrays(["ann", "ann", "bob", "eve"], ["tea", "milk", "tea", "rum"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_parquet(bought, f"{folder}/bought", num_parts=2)
        ...     mine = read_parquet(f"{folder}/bought", rank=1, world_size=2)
        >>> mine, mine.user_ids.decode(mine.users)
        (Interactions(2 rows, 3 users, 3 items), ['bob', 'eve'])
    """
    folder = Path(folder)
    check_rank(rank, world_size)
    manifest = _read_manifest(folder)
    rows = torch.tensor(
        [group[1] for part in manifest["parts"] for group in part["groups"]], dtype=torch.int64, device="cpu"
    )
    if world_size > len(rows):
        raise ValueError(
            f"{folder} cannot be shared by world_size = {world_size}: it has {len(rows)} groups of users, and no rank "
            "may be without; use fewer processes, or write it with more parts"
        )
    first, end = _bounds(rows, world_size)[rank : rank + 2]
    columns = ["user", "item", *(["timestamp"] if manifest["timestamps"] else [])]
    tables, start = [], 0
    for part in manifest["parts"]:
        groups = range(max(first - start, 0), min(end - start, len(part["groups"])))
        if groups:
            tables.append(_read_part(folder / part["file"], part["groups"], groups, columns))
        start += len(part["groups"])
    users, items, *times = map(to_tensor, pa.concat_tables(tables).columns)
    return Interactions(
        users,
        items,
        times[0] if times else None,
        manifest["num_users"],
        manifest["num_items"],
        _read_vocabulary(folder / "user_ids.parquet"),
        _read_vocabulary(folder / "item_ids.parquet"),
    )


def _bounds(rows: Tensor, pieces: int) -> list[int]:
    """Cut a sequence of row counts into pieces of about equal sums, each with one count at least.

    Args:
        rows: ``[N]``, all above zero, ``N >= pieces``.
        pieces: how many.

    Returns:
        Where the pieces start, and ``N``.
    """
    ends = rows.cumsum(0)
    inner = torch.arange(1, pieces, dtype=torch.int64, device="cpu")
    wanted = inner * (int(ends[-1]) / pieces)
    cuts = torch.searchsorted(ends.double(), wanted)  # the count that the ideal cut would split
    cuts += ((ends[cuts] - wanted) < (wanted - (ends - rows)[cuts])).long()  # after it, if that is nearer
    cuts = (cuts - inner).cummax(0).values + inner if pieces > 1 else cuts  # ascending, each once
    cuts = cuts.clamp(min=inner, max=len(rows) - pieces + inner)
    return [0, *cuts.tolist(), len(rows)]


def _write_into(folder: Path, interactions: Interactions, num_parts: int) -> None:
    order = torch.from_numpy(np.argsort(interactions.users.cpu().numpy(), kind="stable"))
    columns = {"user": interactions.users[order], "item": interactions.items[order]}
    if interactions.timestamps is not None:
        columns["timestamp"] = interactions.timestamps[order]
    users, rows = columns["user"].unique_consecutive(return_counts=True)  # those with interactions
    table = pa.table({name: column.cpu().numpy() for name, column in columns.items()})
    parts: list[dict[str, Any]] = []
    start = 0
    part_bounds = _bounds(rows, num_parts)
    for number, (first, end) in enumerate(pairwise(part_bounds)):
        within = rows[first:end]
        num_groups = min(max(_GROUPS_PER_PART, -(-int(within.sum()) // _ROWS_PER_GROUP)), end - first)
        bounds = _bounds(within, num_groups)
        groups = []
        file = f"part-{number:05}.parquet"
        with pq.ParquetWriter(folder / file, table.schema, **_OPTIONS) as writer:
            for one, next_one in pairwise(bounds):
                size = int(within[one:next_one].sum())
                writer.write_table(table.slice(start, size), row_group_size=size)
                groups.append([int(users[first + one]), size])
                start += size
        parts.append({"file": file, "groups": groups})
    for name in ("user_ids", "item_ids"):
        vocabulary: Vocabulary | None = getattr(interactions, name)
        if vocabulary is not None:
            pq.write_table(pa.table({"id": vocabulary.values}), folder / f"{name}.parquet", **_OPTIONS)
    manifest = {
        "format": _FORMAT,
        "num_users": interactions.num_users,
        "num_items": interactions.num_items,
        "num_rows": len(interactions),
        "timestamps": interactions.timestamps is not None,
        "parts": parts,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest) + "\n", encoding="utf-8")
    for path in folder.iterdir():  # on the disk before the folder gets its name
        with path.open("rb") as content:
            os.fsync(content.fileno())


def _read_manifest(folder: Path) -> dict[str, Any]:
    place = folder / "manifest.json"
    if not place.is_file():
        raise FileNotFoundError(f"{folder} holds no interactions: there is no manifest.json in it")
    try:
        manifest: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
        version = manifest["format"]
        groups = [(int(user), int(rows)) for part in manifest["parts"] for user, rows in part["groups"]]
        sizes = [int(manifest[name]) for name in ("num_users", "num_items", "num_rows")]
        names = [str(part["file"]) for part in manifest["parts"]]
        manifest["timestamps"]  # its absence is found here, with the others'
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"{place} does not describe interactions ({error!r}): write the folder again"
        ) from error
    if version != _FORMAT:
        raise ValueError(f"{place} has format {version}, this version of ncf reads {_FORMAT}: update ncf")
    ascending = all(one[0] < two[0] for one, two in pairwise(groups))
    for name in names:
        if not re.fullmatch(r"part-\d+\.parquet", name):
            raise ValueError(
                f"{place} names {name!r}: its parts are part-00000.parquet and so on in this folder"
            )
    if not (groups and ascending and sum(rows for _, rows in groups) == sizes[2]):
        raise ValueError(f"{place}: the parts do not hold every user once, write the folder again")
    return manifest


def _read_part(file: Path, groups: list[list[int]], wanted: range, columns: list[str]) -> Any:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: copy the whole folder again")
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            there = [parquet.metadata.row_group(number).num_rows for number in range(parquet.num_row_groups)]
            if there != [rows for _, rows in groups]:
                raise ValueError(
                    f"{file} does not hold the rows that the manifest says: copy the whole folder again"
                )
            return parquet.read_row_groups(wanted).select(columns)
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is damaged ({error}): copy it again") from error


def _read_vocabulary(file: Path) -> Vocabulary | None:
    if not file.is_file():
        return None
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            return Vocabulary(parquet.read()["id"])
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is damaged ({error}): copy it again") from error
