"""Read a saved model; see `ncf.models.saving` for its files.

Nothing is built or read before it has been compared: sizes and hashes of the files, then the shapes of the
description with the shapes in the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ncf.data.arrow import pa, pq
from ncf.data.vocabulary import HashedVocabulary, Vocabulary
from ncf.models.base import EmbeddingModel
from ncf.models.baselines.base import Baseline
from ncf.models.embeddings import local_tables
from ncf.models.saving import (
    FORMAT,
    ID_ARRAYS,
    MODELS,
    READABLE,
    VOCABULARIES,
    description_hash,
    table_weight,
)
from ncf.utils.files import check_names, file_hash, read_slice, read_tensors, rows_per_block
from ncf.utils.jagged import check_lists
from ncf.utils.row_formats import OLDER, ROW_FORMATS, dequantize_rows, stored_rows

_MOST_DESCRIPTION = 1 << 20  # bytes
_FILES = ("model", *VOCABULARIES, "answers", "item_columns")
M = TypeVar("M", bound=type)


@dataclass(frozen=True, eq=False)
class SavedModel:
    """A folder's content: the model, and what was saved with it for answers.

    Args:
        model: the model, in evaluation mode.
        seen: offsets ``[num_users + 1]`` and items ``[N]`` of each user's list, int64.
        popularity: a weight per item, ``[num_items]``.
        item_columns: a function that reads what to show of items: an Arrow table with a row per item.
        record: what the model was trained on and how good it was.
        versions: of ncf and torch, when it was saved.
    """

    model: Any
    seen: tuple[Tensor, Tensor] | None
    popularity: Tensor | None
    item_columns: Callable[[], Any] | None
    record: dict[str, Any] | None
    versions: dict[str, str]


def register(model_class: M) -> M:
    """Let models of a class of your own be saved, and loaded wherever the class has been registered.

    The folder names the class; `load` imports nothing that a folder names. Use it as a decorator.

    Args:
        model_class: a subclass of `ncf.models.EmbeddingModel`. Its constructor takes the entries of the model's
            ``config``, which JSON can hold, and ``device``; all its values are in its ``state_dict()``.

    Returns:
        The class.

    Raises:
        TypeError: if it is no such class.
        ValueError: if another model already has its name.

    Example::

        >>> import tempfile, ncf
        >>> @ncf.models.register
        ... class SmallGMF(ncf.GMF):
        ...     def __init__(self, num_users, num_items, *, factors=4, **others):
        ...         super().__init__(num_users, num_items, factors=factors, **others)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     SmallGMF(10, 20).save(folder)
        ...     type(ncf.load(folder)).__name__
        'SmallGMF'
    """
    if not (isinstance(model_class, type) and issubclass(model_class, (EmbeddingModel, Baseline))):
        raise TypeError(f"{model_class!r} is not a subclass of EmbeddingModel")
    known = MODELS.get(model_class.__name__, model_class)
    if isinstance(known, str) or (known.__module__, known.__qualname__) != (
        model_class.__module__,
        model_class.__qualname__,
    ):
        raise ValueError(f"another model is called {model_class.__name__}: rename the class")
    MODELS[model_class.__name__] = model_class
    return model_class


def load(
    path: str | PathLike[str], *, device: torch.device | str = "cpu", mmap: bool = False
) -> EmbeddingModel:
    """Read a model that `save` wrote; nothing is unpickled.

    TorchRec is not needed, nor imported: `ncf.distributed.shard` brings it in.

    On ``device="meta"`` the tables stay in the file, for `ncf.distributed.shard` to give each process its part of
    them; the towers have their values, on the CPU. Every process must see the file until then.

    Args:
        path: the folder.
        device: where to put the model; ``"meta"`` for one to be sharded.
        mmap: keep tables and raw ids in the files and read them when they are used; processes share them. On a CPU
            only.

    Returns:
        The model, in evaluation mode, of the class it was saved as: `EmbeddingModel`, or a baseline.

    Raises:
        FileNotFoundError: if the folder holds no model.
        ValueError: if a file is damaged, or a tensor is missing, unexpected or of another shape.

    Example::

        >>> import tempfile, ncf
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ncf.GMF(10, 20, factors=4).save(folder)
        ...     ncf.load(folder, device="cpu").num_items
        20

        The same over the processes of a job; here, of one:

        >>> from ncf.distributed.sharding import shard
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ncf.GMF(10, 20, factors=4).save(folder)
        ...     sharded = shard(ncf.load(folder, device="meta"), "table_wise", verbose=False)
        >>> sharded.module.num_items
        20
    """
    model: EmbeddingModel = load_saved(path, device=device, mmap=mmap).model
    return model


def load_saved(
    path: str | PathLike[str], *, device: torch.device | str = "cpu", mmap: bool = False
) -> SavedModel:
    """Read a folder's model together with what was saved for answers; arguments and errors as `load`."""
    folder = Path(path)
    while True:
        text = _read_text(folder)
        try:
            return _load(folder, _description(folder, text), torch.device(device), mmap)
        except (OSError, ValueError):
            # Another process may have saved here meanwhile, and removed what this text names.
            if _read_text(folder) == text:
                raise


def _load(folder: Path, description: dict[str, Any], device: torch.device, mmap: bool) -> SavedModel:
    place = folder / "config.json"
    files: dict[str, Path] = _checked_files(folder, description["files"])
    tensors = read_tensors(files["model"])
    with nullcontext() if device.type == "meta" else local_tables():
        model = _without_values(place, description["model"], description["config"], len(tensors))
    tables = (
        {table_weight(t.name): t for t in model.embeddings.tables} if hasattr(model, "embeddings") else {}
    )
    rows = description["rows"]
    if description["format"] < 3:
        rows = OLDER.get(rows, rows)
    number = _check_tensors(files["model"], tensors, model.state_dict(), tables, rows)
    later = device.type == "meta"
    state = {}
    for name, tensor in tensors.items():
        if name in tables and later:
            state[name] = torch.empty(len(tensor), tables[name].dim, dtype=number, device="meta")
        elif name in tables and rows is not None:
            state[name] = dequantize_rows(tensor, rows, tables[name].dim).to(device, number)
        elif name in tables and mmap:
            state[name] = tensor.to(device)
        else:
            # Copied: a file's tensors need not be aligned as PyTorch's own are, and then round differently.
            state[name] = tensor.to("cpu" if later else device, copy=True)
    model.load_state_dict(state, assign=True)
    if "seen_offsets" in state:  # a baseline's own
        check_lists(
            f"{files['model']}: seen",
            state["seen_offsets"],
            state["seen_items"],
            model.num_users,
            model.num_items,
        )
    if "weight_offsets" in state:
        places = state["weight_offsets"], state["weight_items"]
        check_lists(f"{files['model']}: weights", *places, model.num_items, model.num_items)
    for side, bags in model.embeddings.features.items() if tables else ():
        place_of = f"{files['model']}: {side}_features"
        check_lists(place_of, bags.offsets, bags.rows, bags.size, bags.sizes["rows"])
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_meta and not (later and name in tables):
            raise ValueError(
                f"{place}: {name} of {description['model']} is not saved: keep it in state_dict()"
            )
    if later:
        for name, table in tables.items():
            model.embeddings.table_fillers[table.name] = partial(
                read_slice
                if rows in (None, "float32", "bfloat16")
                else partial(_read_quantized, rows, table.dim),
                files["model"].absolute(),
                name,
            )
    if isinstance(model, EmbeddingModel):
        model.requires_grad_(True)
    sizes = dict(zip(VOCABULARIES, (model.num_users, model.num_items), strict=True))
    for name in VOCABULARIES:
        if name in files:
            setattr(model, name, _read_vocabulary(files[name], sizes[name], mmap))
    if description["record"] is not None:
        model.record = description["record"]
    seen, popularity = _read_answers(files["answers"], model) if "answers" in files else (None, None)
    item_columns = None
    if "item_columns" in files:  # in memory, for a later save removes the file
        content = files["item_columns"].read_bytes()
        item_columns = partial(_table_of, content, files["item_columns"], model.num_items)
    return SavedModel(
        model=model.eval(),
        seen=seen,
        popularity=popularity,
        item_columns=item_columns,
        record=description["record"],
        versions=description["versions"],
    )


def _read_text(folder: Path) -> str:
    place = folder / "config.json"
    if not place.is_file():
        raise FileNotFoundError(f"{folder} holds no model: there is no config.json in it")
    with place.open("rb") as file:
        text = file.read(_MOST_DESCRIPTION + 1)
    if len(text) > _MOST_DESCRIPTION:
        raise ValueError(f"{place} does not describe a model: it has more than {_MOST_DESCRIPTION} bytes")
    return text.decode(errors="replace")  # a byte that is replaced changes the hash


def _description(folder: Path, text: str) -> dict[str, Any]:
    """Read a config.json: of the right format, whole, and with every entry of the right type."""
    place = folder / "config.json"
    try:
        description: dict[str, Any] = json.loads(text)
        version, expected = description["format"], description.get("sha256")
        found = description_hash(description)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{place} does not describe a model ({error!r}): save the model again") from error
    if version not in READABLE:
        remedy = "update ncf" if isinstance(version, int) and version > FORMAT else "save the model again"
        raise ValueError(
            f"{place} has format {version!r}, this version of ncf reads {' and '.join(map(str, READABLE))}: {remedy}"
        )
    if found != expected:
        raise ValueError(f"{place} is damaged: its SHA-256 is {found}, not {expected!r}; copy it again")
    kinds: dict[str, Any] = {
        "model": str,
        "config": dict,
        "files": dict,
        "versions": dict,
        "record": (dict, type(None)),
    }
    for name, kind in kinds.items():
        if not isinstance(description.get(name, ...), kind):
            raise ValueError(f"{place} does not describe a model: {name} is {description.get(name)!r:.60}")
    if description.get("rows") not in (None, *ROW_FORMATS):
        raise ValueError(f"{place} names the rows' format {description['rows']!r}: update ncf")
    if description["model"] not in MODELS:
        raise ValueError(
            f"{place} names the model {description['model']!r}: known are {', '.join(MODELS)}. "
            "Import the module that registers a class of your own with ncf.models.register"
        )
    return description


def _checked_files(folder: Path, entries: dict[str, Any]) -> dict[str, Path]:
    """The folder's files by purpose, each of the size and the hash that the description gives."""
    place, files = folder / "config.json", {}
    if "model" not in entries or not set(entries) <= set(_FILES):
        raise ValueError(f"{place} does not describe a model: its files are {', '.join(entries) or 'none'}")
    for purpose, entry in entries.items():
        kinds = {"name": str, "bytes": int, "sha256": str}
        if not isinstance(entry, dict) or any(
            not isinstance(entry.get(k), kind) for k, kind in kinds.items()
        ):
            raise ValueError(f"{place} does not describe a model: files.{purpose} is {entry!r:.60}")
        name = entry["name"]
        if Path(name).name != name or name in ("", "..") or "\0" in name:
            raise ValueError(f"{place} names a file outside its folder: {name}")
        file = files[purpose] = folder / name
        try:
            if not file.is_file():
                raise ValueError(f"{folder} is incomplete: {name} is missing, copy the whole folder again")
            size = file.stat().st_size
        except OSError as error:  # a name that the file system has no room for
            raise ValueError(f"{place} names a file that cannot be: {error}") from error
        if size != entry["bytes"]:
            raise ValueError(f"{file} has {size} bytes, not {entry['bytes']}: copy it again")
        found = file_hash(file)
        if found != entry["sha256"]:
            raise ValueError(
                f"{file} is damaged: its SHA-256 is {found}, not {entry['sha256']}; copy it again"
            )
    return files


class _OnMeta(TorchFunctionMode):
    """Keep every new tensor on the meta device, whatever device is named: no memory is taken.

    Args:
        most: calls of PyTorch after which to give up.
    """

    _NEW = frozenset(
        getattr(torch, name)
        for name in ["empty", "zeros", "ones", "full", "rand", "randn", "tensor", "arange"]
    )
    _LIKE = frozenset(
        getattr(torch, f"{name}_like") for name in ["empty", "zeros", "ones", "full", "rand", "randn"]
    )
    # Not called: Python implements them on the meta device, and brings in PyTorch's compiler: 200 MB for no value.
    _VALUES = frozenset(
        getattr(torch.Tensor, name) for name in ("copy_", "fill_", "mul_", "normal_", "uniform_", "zero_")
    )

    def __init__(self, most: int) -> None:
        super().__init__()
        self.left = most

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ValueError("it makes more tensors than the file holds")
        kwargs = dict(kwargs or {})
        if func in self._NEW:
            kwargs["device"] = "meta"
        elif func in self._LIKE:
            return torch.empty(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype, device="meta")
        elif func in self._VALUES and args[0].is_meta:
            return args[0]
        elif func is torch.Tensor.to and args[0].is_meta:
            args = tuple("meta" if isinstance(value, (str, torch.device)) else value for value in args)
            kwargs |= {"device": "meta"} if "device" in kwargs else {}
        return func(*args, **kwargs)


def _without_values(place: Path, name: str, config: dict[str, Any], tensors: int) -> Any:
    """The model of a description, on the meta device."""
    known = MODELS[name]
    model_class: Any = getattr(import_module(known), name) if isinstance(known, str) else known
    try:
        with _OnMeta(1000 + 100 * tensors):
            if issubclass(model_class, Baseline):
                return model_class.unfitted(**config)
            return model_class(**config, device="meta")
    except Exception as error:  # of any kind: a constructor was given what a file says
        raise ValueError(f"{place}: the model cannot be built from it: {error}") from error


def _check_tensors(
    file: Path,
    tensors: dict[str, Tensor],
    expected: dict[str, Tensor],
    tables: dict[str, Any],
    rows: str | None,
) -> torch.dtype:
    """Compare names, shapes and types with what the model has; return the type of its numbers."""
    check_names(file, tensors, expected)
    numbers: dict[torch.dtype, str] = {}
    for name, tensor in tensors.items():
        shape, dtype = tuple(expected[name].shape), expected[name].dtype
        if name in tables and rows is not None:
            dtype, width = stored_rows(rows, tables[name].dim)
            shape = (shape[0], width)
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{file}: {name} has shape {tuple(tensor.shape)}, config.json describes {shape}")
        if not expected[name].is_floating_point() or (name in tables and rows is not None):
            if tensor.dtype != dtype:
                raise ValueError(f"{file}: {name} holds {tensor.dtype}, not {dtype}: save it again")
        elif tensor.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
            raise ValueError(
                f"{file}: {name} holds {tensor.dtype}, not floating-point numbers: save it again"
            )
        else:
            numbers[tensor.dtype] = name
    if len(numbers) > 1:
        of = ", ".join(f"{name} holds {dtype}" for dtype, name in numbers.items())
        raise ValueError(f"{file}: {of}: save the model again, in one precision")
    return next(iter(numbers), torch.float32)


def _read_quantized(
    rows: str, columns: int, file: Path, name: str, out: Tensor, *, row: int, column: int
) -> None:
    """`read_slice` of a table whose rows are int8 or int4."""
    dtype, width = stored_rows(rows, columns)
    step = rows_per_block(width)
    for first in range(0, len(out), step):
        part = out[first : first + step]
        stored = torch.empty(len(part), width, dtype=dtype, device="cpu")
        read_slice(file, name, stored, row=row + first, column=0)
        with torch.no_grad():
            part.copy_(dequantize_rows(stored, rows, columns)[:, column : column + out.shape[1]])


def _read_answers(file: Path, model: Any) -> tuple[tuple[Tensor, Tensor] | None, Tensor | None]:
    answers = read_tensors(file)
    types = {"seen_offsets": torch.int64, "seen_items": torch.int32, "popularity": torch.float32}
    for name, tensor in answers.items():
        if tensor.dtype != types.get(name):
            raise ValueError(f"{file}: {name} holds {tensor.dtype}, not {types.get(name)}: save it again")
    seen, popularity = None, answers.pop("popularity", None)
    if answers:
        check_names(file, answers, ("seen_offsets", "seen_items"))
        seen = answers["seen_offsets"].clone(), answers["seen_items"].to(torch.int64)
        check_lists(f"{file}: seen", *seen, model.num_users, model.num_items)
    if popularity is not None and popularity.shape != (model.num_items,):
        raise ValueError(
            f"{file}: popularity has shape {tuple(popularity.shape)} for {model.num_items} items"
        )
    return seen, popularity


def _read_vocabulary(file: Path, size: int, mmap: bool) -> Vocabulary:
    """The vocabulary of a file, which is Parquet in earlier formats."""
    make: Callable[..., Vocabulary] = Vocabulary.from_arrays
    kinds: Iterable[tuple[str, ...]] = ID_ARRAYS.values()
    parts: dict[str, Any] = {}
    if file.suffix == ".parquet":
        table = _table_of(file.read_bytes(), file, size, dictionaries=True)
        make, kinds, parts = Vocabulary, [("id",)], {name: table[name] for name in table.column_names}
    else:
        for name, tensor in read_tensors(file).items():
            if tensor.dtype != (torch.uint8 if name == "text" else torch.int64) or tensor.dim() != 1:
                raise ValueError(f"{file}: {name} is {tensor.dtype}, {tuple(tensor.shape)}: save it again")
            parts[name] = (tensor if mmap else tensor.clone()).numpy()
    if [*parts] == ["hashed"] and list(map(int, parts["hashed"])) == [size]:
        return HashedVocabulary(size)
    names = next((names for names in kinds if {*names} == {*parts}), None)
    if names is None:
        raise ValueError(f"{file} is not a vocabulary: it holds {', '.join(parts) or 'nothing'}")
    try:
        ids = make(*(parts[name] for name in names))
    except ValueError as error:
        raise ValueError(f"{file} is not a vocabulary ({error}): save the model again") from error
    if len(ids) > size:
        raise ValueError(f"{file} has {len(ids)} ids for the model's {size}: save the model again")
    return ids


def _table_of(content: bytes, file: Path, most: int, *, dictionaries: bool = False) -> Any:
    """A Parquet file's table, if its rows and its size are what they may be.

    Args:
        content: of the file.
        file: the file, for errors.
        most: how many rows there may be.
        dictionaries: whether strings must all differ: repeated ones raise before they are written out.
    """
    try:
        with pq.ParquetFile(pa.BufferReader(content)) as parquet:
            rows = parquet.metadata.num_rows
            texts = {
                f.name: f.type for f in parquet.schema_arrow if str(f.type) in ("string", "large_string")
            }
            groups = [parquet.metadata.row_group(group) for group in range(parquet.num_row_groups)]
        if rows > most:
            raise ValueError(f"{file} has {rows} rows for the model's {most}: save the model again")
        size = sum(group.total_byte_size for group in groups)
        if size > 100 * len(content):
            raise ValueError(f"{file} unpacks to {size} bytes: it is no file of a model")
        with pq.ParquetFile(
            pa.BufferReader(content), read_dictionary=[*texts] if dictionaries else None
        ) as parquet:
            table = parquet.read(use_threads=False)
        for name, kind in texts.items() if dictionaries else ():
            column = table[name].unify_dictionaries().combine_chunks()
            if len(column.dictionary) < len(column):
                raise ValueError(f"{file} holds an id more than once: save the model again")
            table = table.set_column(table.column_names.index(name), name, column.cast(kind))
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is damaged ({error}): save the model again") from error
    return table
