"""A model on disk: a JSON description, weights and raw ids as safetensors, columns of items as Parquet. No pickle.

``config.json`` names the other files, with the size and the SHA-256 of each, and holds the SHA-256 of its own content.
The files of one save share a token that no other save has. ``config.json`` is replaced last and at once: a folder
holds the old model or the new one, never half of one, and of two processes that save to it the last one wins whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ncf.data.arrow import pa, pq
from ncf.data.vocabulary import HashedVocabulary, Vocabulary
from ncf.distributed.collectives import raise_on_all_ranks, rank
from ncf.distributed.sharded_safetensors import write_sharded_tensors
from ncf.utils.files import atomic_write, file_hash, write_tensors, write_text
from ncf.utils.jagged import check_lists
from ncf.utils.row_formats import quantize_rows
from ncf.utils.version import __version__

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FORMAT = 4
READABLE = (2, 3, FORMAT)  # up to 3 raw ids are Parquet; in 2 rows of int8 and int4 are FBGEMM's own
VOCABULARIES = ("user_ids", "item_ids")
ID_ARRAYS = {"whole numbers": ("numbers",), "strings": ("offsets", "text")}  # by the kind of a vocabulary
# By the name that a description gives: a class, or the module that defines the class of that name.
MODELS: dict[str, type | str] = {
    "GMF": "ncf.models.neural",
    "MLP": "ncf.models.neural",
    "NeuMF": "ncf.models.neural",
    "MatrixFactorization": "ncf.models.matrix_factorization",
    "ItemPop": "ncf.models.baselines.item_pop",
    "ItemKNN": "ncf.models.baselines.item_to_item",
    "EASE": "ncf.models.baselines.item_to_item",
    "ALS": "ncf.models.baselines.als",
    "Spectral": "ncf.models.baselines.spectral",
}
# The files of a save, finished or left behind when its process was killed.
_OWN = re.compile(
    r"\.?(model|user_ids|item_ids|item_columns|answers)-[0-9a-f]{12,16}\.(safetensors|parquet)(\.\w+\.part)?"
    r"|\.config\.json\.\w+\.part"
)


def save(
    model: Any,
    path: str | PathLike[str],
    *,
    rows: str | None = None,
    seen: tuple[Tensor, Tensor] | None = None,
    popularity: Tensor | None = None,
    item_columns: Mapping[str, Any] | Any = None,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Write a model to a folder, which `ncf.load` reads.

    A sharded model is saved by all processes together, and the folder holds what the same model in one process would
    write. Its tables pass through rank 0, which alone writes, a block of rows at a time.

    Args:
        model: a model of this library, or of a class given to `ncf.models.register`.
        path: the folder; it is made if missing, and a model in it is replaced.
        rows: the format of the embedding tables' rows in the file: ``"float32"``, ``"bfloat16"``, ``"int8"`` or
            ``"int4"`` (see `ncf.utils.row_formats`); by default as they are.
        seen: the items each user has interacted with, to be left out of answers: ``interactions.csr()``.
        popularity: a weight per item, ``[num_items]``, for answers to unknown users.
        item_columns: what to show of the items, such as titles: by name a column with a value per item, in the order
            of their ids; or an Arrow table.
        record: what the model was trained on and how good it was; anything that JSON can hold.

    Raises:
        ValueError: if the class is unknown, the tables have no values, the weights are in two precisions, or an
            argument does not fit the model.
        FileExistsError: if ``path`` is a file.
        OSError: if a file cannot be written; of a sharded model, in every process.

    Example::

        >>> import tempfile, ncf
        >>> model = ncf.GMF(10, 20, factors=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(folder)
        ...     ncf.load(folder).config["factors"]
        4
    """
    embeddings = getattr(model, "embeddings", None)  # a baseline has none
    if MODELS.get(type(model).__name__) not in (type(model), type(model).__module__):
        raise ValueError(
            f"{type(model).__name__} is not one of {', '.join(MODELS)}: "
            "decorate the class with ncf.models.register, so that load finds it"
        )
    if embeddings is not None and embeddings.is_meta:
        raise ValueError("the model is on the meta device and its tables have no values: shard it first")
    sharded = embeddings is not None and embeddings.is_sharded
    answers = _answers(model, seen, popularity)
    columns = None if item_columns is None else _item_columns(model, item_columns)
    state = model.state_dict()
    quantized: set[str] = set()
    if rows is not None:
        quantized = _tables_of(model, rows, sharded)
        state |= {name: quantize_rows(state[name], rows) for name in quantized}
    precisions = {
        value.dtype: name
        for name, value in state.items()
        if value.dtype.is_floating_point and name not in quantized
    }
    if len(precisions) > 1:
        of = ", ".join(f"{name} holds {dtype}" for dtype, name in precisions.items())
        raise ValueError(f"{of}: bring the model into one precision first, such as model.float()")
    description = {
        "format": FORMAT,
        "versions": {"ncf": __version__, "torch": str(torch.__version__)},
        "model": type(model).__name__,
        "config": model.config,
        "rows": rows,
        "record": record if record is not None else getattr(model, "record", None),
    }
    try:
        json.dumps(description, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the model's config or the record is nothing that JSON can hold: {error}"
        ) from error

    folder, token, writes = Path(path), secrets.token_hex(8), not sharded or rank() == 0
    with ExitStack() as stack:
        with raise_on_all_ranks(sharded):
            if writes:
                if folder.exists() and not folder.is_dir():
                    raise FileExistsError(f"{folder} is a file: give the folder to write the model to")
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_lock(folder))
                stack.enter_context(_nothing_of_a_failure(folder, token))
        files = {"model": folder / f"model-{token}.safetensors"}
        (write_sharded_tensors if sharded else write_tensors)(files["model"], state)
        with raise_on_all_ranks(sharded):
            if writes:
                if answers:
                    files["answers"] = folder / f"answers-{token}.safetensors"
                    write_tensors(files["answers"], answers)
                for name in VOCABULARIES:
                    if (ids := getattr(model, name)) is not None:
                        files[name] = folder / f"{name}-{token}.safetensors"
                        write_tensors(files[name], _raw_ids(ids))
                if columns is not None:
                    files["item_columns"] = folder / f"item_columns-{token}.parquet"
                    with atomic_write(files["item_columns"]) as beside:
                        pq.write_table(columns, beside)
                replaced = _describe(folder, description, files)
    with raise_on_all_ranks(sharded):
        if writes:
            _clear(folder, replaced)


def description_hash(description: Mapping[str, Any]) -> str:
    """The SHA-256 of a description without its own hash, independent of spaces and of the order of keys."""
    content = {name: value for name, value in description.items() if name != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _answers(model: Any, seen: tuple[Tensor, Tensor] | None, popularity: Tensor | None) -> dict[str, Tensor]:
    """Return the tensors that belong to answers, by name."""
    answers: dict[str, Tensor] = {}
    if seen is not None:
        offsets, items = seen
        check_lists("seen", offsets, items, model.num_users, model.num_items)
        answers |= {"seen_offsets": offsets, "seen_items": items.to(torch.int32)}
    if popularity is not None:
        if popularity.shape != (model.num_items,):
            raise ValueError(
                f"popularity has shape {tuple(popularity.shape)}: give a weight for each of {model.num_items} items"
            )
        answers["popularity"] = popularity.to(torch.float32)
    return answers


def _raw_ids(vocabulary: Vocabulary) -> dict[str, Tensor]:
    """Return the arrays of a vocabulary as tensors, by name."""
    if isinstance(vocabulary, HashedVocabulary):
        return {"hashed": torch.tensor([len(vocabulary)], dtype=torch.int64, device="cpu")}
    # Copied: PyTorch warns of memory that must not be written, such as Arrow's.
    arrays = [torch.from_numpy(array.copy()) for array in vocabulary.arrays]
    return dict(zip(ID_ARRAYS[vocabulary.kind], arrays, strict=True))


def _item_columns(model: Any, columns: Any) -> Any:
    table = pa.table(dict(columns)) if isinstance(columns, Mapping) else columns
    known = model.num_items if model.item_ids is None else len(model.item_ids)
    if len(table) != known:
        raise ValueError(f"item_columns has {len(table)} rows: give one for each of {known} items")
    return table


def _tables_of(model: Any, rows: str, sharded: bool) -> set[str]:
    """The names of the tensors whose rows are to be in another format: the embedding tables."""
    if sharded:
        raise ValueError(
            "rows cannot be changed while a model is sharded: save it, load it and save it again"
        )
    if not hasattr(model, "embeddings"):
        raise ValueError(f"{type(model).__name__} has no embedding tables: leave out rows = {rows!r}")
    return {table_weight(table.name) for table in model.embeddings.tables}


def table_weight(table: str) -> str:
    """The name of an embedding table's weight in a model's state."""
    return f"embeddings.ebc.embedding_bags.{table}.weight"


def _describe(folder: Path, description: dict[str, Any], files: Mapping[str, Path]) -> str:
    """Let the folder hold the model of the files; return the text that described the model before."""
    description["files"] = {
        name: {"name": file.name, "bytes": file.stat().st_size, "sha256": file_hash(file)}
        for name, file in files.items()
    }
    description["sha256"] = description_hash(json.loads(json.dumps(description)))
    place = folder / "config.json"
    replaced = ""
    with contextlib.suppress(OSError):
        replaced = place.read_text(encoding="utf-8", errors="replace")
    write_text(place, json.dumps(description, indent=2) + "\n")
    return replaced


@contextmanager
def _nothing_of_a_failure(folder: Path, token: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        place = folder / "config.json"
        if not (place.is_file() and token in place.read_text(encoding="utf-8", errors="replace")):
            for file in folder.glob(f"*-{token}.*"):
                file.unlink()
        raise


@contextmanager
def _lock(folder: Path, alone: bool = False) -> Iterator[bool]:
    """Hold a lock on a folder; it ends with its process.

    Args:
        folder: the folder.
        alone: whether no other process may hold one; such a lock is not waited for.

    Yields:
        Whether the lock is held: not where another process holds one, or the system has none.
    """
    if fcntl is None:
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
            held = True
        except OSError:
            held = False
        yield held
    finally:
        os.close(descriptor)


def _clear(folder: Path, replaced: str) -> None:
    """Remove what earlier saves left: all of it if no other save runs here, else what the last one replaced."""
    with _lock(folder, alone=True) as alone:
        current = (folder / "config.json").read_text(encoding="utf-8")
        for old in folder.iterdir():
            if _OWN.fullmatch(old.name) and old.name not in current and (alone or old.name in replaced):
                if old.is_dir():
                    shutil.rmtree(old, ignore_errors=True)
                else:
                    old.unlink(missing_ok=True)
