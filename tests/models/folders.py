"""A saved model's folder, changed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import ncf
from ncf import HashedVocabulary
from ncf.models.saving import VOCABULARIES, description_hash
from ncf.utils.files import file_hash


def description(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def file_of(folder: Path, purpose: str = "model") -> Path:
    return folder / description(folder)["files"][purpose]["name"]


def describe(folder: Path, content: dict[str, Any]) -> None:
    """Write a description that has the right hash."""
    (folder / "config.json").write_text(json.dumps(content | {"sha256": description_hash(content)}))


def rehash(folder: Path) -> None:
    """Describe the files as they are now: what is wrong in them has to be found without their hashes."""
    content = description(folder)
    for entry in content["files"].values():
        file = folder / entry["name"]
        entry |= {"bytes": file.stat().st_size, "sha256": file_hash(file)}
    describe(folder, content)


def as_format_3(folder: Path) -> None:
    """Write the raw ids as Parquet, as up to format 3."""
    model, content = ncf.load(folder), description(folder)
    for name in VOCABULARIES:
        if (ids := getattr(model, name)) is not None:
            file = file_of(folder, name)
            column = {"hashed": [len(ids)]} if isinstance(ids, HashedVocabulary) else {"id": ids.values}
            pq.write_table(pa.table(column), file.with_suffix(".parquet"))
            file.unlink()
            content["files"][name]["name"] = file.with_suffix(".parquet").name
    describe(folder, content | {"format": 3})
    rehash(folder)
