"""A model on disk: a JSON description, the weights as safetensors, the vocabularies as Parquet. No pickle.

``config.json`` names the other files, each of which carries a part of its content's hash in its name.
It is replaced last and at once, so a folder holds the old model or the new one, never half of one.
"""

from __future__ import annotations

import json
import re
import shutil
from os import PathLike
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ncf.data.interactions import Vocabulary
from ncf.distributed.collectives import raise_on_all_ranks, rank
from ncf.distributed.sharded_safetensors import write_sharded_tensors
from ncf.utils.files import atomic_write, file_hash, write_tensors, write_text
from ncf.utils.version import __version__

FORMAT = 1
MODELS = ("GMF", "MLP", "NeuMF", "MatrixFactorization")
VOCABULARIES = ("user_ids", "item_ids")
# What a save before this one wrote, or left behind when its process was killed.
_OWN = re.compile(
    r"(model-[0-9a-f]{12}\.safetensors|(user|item)_ids-[0-9a-f]{12}\.parquet)"
    r"|\.{1,2}(model\.safetensors|(user|item)_ids\.parquet|config\.json)(\.\w+\.part)?"
)


def save(model: Any, path: str | PathLike[str]) -> None:
    """Write a model to a folder, which `load` reads.

    A sharded model is saved by all processes together, and the files are those of the same model in one process.
    Its tables pass through rank 0, which alone writes, a block of rows at a time.

    Args:
        model: what to save.
        path: the folder; it is made if missing, and a model in it is replaced.

    Raises:
        ValueError: if the model is of a class that `load` does not know, or its tables have no values.
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
    if type(model).__name__ not in MODELS or not type(model).__module__.startswith("ncf.models."):
        raise ValueError(f"{type(model).__name__} is not one of {', '.join(MODELS)}: load would not know it")
    if model.embeddings.is_meta:
        raise ValueError("the model is on the meta device and its tables have no values: shard it first")
    folder = Path(path)
    sharded = model.embeddings.is_sharded
    weights = folder / ".model.safetensors"
    with raise_on_all_ranks(sharded):
        if not sharded or rank() == 0:
            if folder.exists() and not folder.is_dir():
                raise FileExistsError(f"{folder} is a file: give the folder to write the model to")
            folder.mkdir(parents=True, exist_ok=True)
    (write_sharded_tensors if sharded else write_tensors)(weights, model.state_dict())
    with raise_on_all_ranks(sharded):
        if not sharded or rank() == 0:
            _finish(model, folder, weights)


def _finish(model: Any, folder: Path, weights: Path) -> None:
    """Add to the weights what else belongs to a model, then let the folder be that model's."""
    files = {"model": _settle(weights, "model", ".safetensors")}
    for name in VOCABULARIES:
        vocabulary: Vocabulary | None = getattr(model, name)
        if vocabulary is not None:
            place = folder / f".{name}.parquet"
            with atomic_write(place) as beside:
                pq.write_table(pa.table({"id": vocabulary.values}), beside)
            files[name] = _settle(place, name, ".parquet")
    description = {
        "format": FORMAT,
        "ncf": __version__,
        "model": type(model).__name__,
        "config": model.config,
        "files": files,
    }
    write_text(folder / "config.json", json.dumps(description, indent=2) + "\n")
    for old in folder.iterdir():  # of the model before; whatever else lies there is not ours
        if _OWN.fullmatch(old.name) and old.name not in files.values():
            shutil.rmtree(old) if old.is_dir() else old.unlink()


def _settle(file: Path, stem: str, suffix: str) -> str:
    """Rename a finished file after its content."""
    final = file.with_name(f"{stem}-{file_hash(file)[:12]}{suffix}")
    file.replace(final)
    return final.name
