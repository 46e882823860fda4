"""A model on disk: a JSON description, the weights as safetensors, the vocabularies as Parquet. No pickle.

``config.json`` names the other files, each of which carries a part of its content's hash in its name.
It is replaced last and at once, so a folder holds the old model or the new one, never half of one.
"""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

import ncf.models.neural as models
from ncf.data.interactions import Vocabulary
from ncf.distributed.collectives import rank, together
from ncf.distributed.sharded_safetensors import write_sharded_tensors
from ncf.models.base import Recommender
from ncf.utils.files import hash_of, read_rectangle, read_tensors, write_tensors, write_text, written_beside
from ncf.utils.version import __version__

_FORMAT = 1
_MODELS = ("GMF", "MLP", "NeuMF", "MatrixFactorization")
_VOCABULARIES = ("user_ids", "item_ids")
# What a save before this one wrote, or left behind when its process was killed.
_OWN = re.compile(
    r"(model-[0-9a-f]{12}\.safetensors|(user|item)_ids-[0-9a-f]{12}\.parquet)"
    r"|\.{1,2}(model\.safetensors|(user|item)_ids\.parquet|config\.json)(\.\w+\.part)?"
)


def save(model: Recommender, path: str | PathLike[str]) -> None:
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
    if type(model) not in [getattr(models, name) for name in _MODELS]:
        raise ValueError(f"{type(model).__name__} is not one of {', '.join(_MODELS)}: load would not know it")
    if model.embeddings.is_meta:
        raise ValueError("the model is on the meta device and its tables have no values: shard it first")
    folder = Path(path)
    sharded = model.embeddings.is_sharded
    weights = folder / ".model.safetensors"
    with together(sharded):
        if not sharded or rank() == 0:
            if folder.exists() and not folder.is_dir():
                raise FileExistsError(f"{folder} is a file: give the folder to write the model to")
            folder.mkdir(parents=True, exist_ok=True)
    (write_sharded_tensors if sharded else write_tensors)(weights, model.state_dict())
    with together(sharded):
        if not sharded or rank() == 0:
            _finish(model, folder, weights)


def _finish(model: Recommender, folder: Path, weights: Path) -> None:
    """Add to the weights what else belongs to a model, then let the folder be that model's."""
    files = {"model": _settle(weights, "model", ".safetensors")}
    for name in _VOCABULARIES:
        vocabulary: Vocabulary | None = getattr(model, name)
        if vocabulary is not None:
            place = folder / f".{name}.parquet"
            with written_beside(place) as beside:
                pq.write_table(pa.table({"id": vocabulary.values}), beside)
            files[name] = _settle(place, name, ".parquet")
    description = {
        "format": _FORMAT,
        "ncf": __version__,
        "model": type(model).__name__,
        "config": model.config,
        "files": files,
    }
    write_text(folder / "config.json", json.dumps(description, indent=2) + "\n")
    for old in folder.iterdir():  # of the model before; whatever else lies there is not ours
        if _OWN.fullmatch(old.name) and old.name not in files.values():
            shutil.rmtree(old) if old.is_dir() else old.unlink()


def load(path: str | PathLike[str], *, device: torch.device | str = "cpu") -> Recommender:
    """Read a model that `save` wrote; nothing is unpickled.

    On ``device="meta"`` the tables stay in the file, for `ncf.distributed.shard` to give each process its part of
    them; the towers have their values, on the CPU. Every process must see the file until then.

    Args:
        path: the folder.
        device: where to put the model; ``"meta"`` for one to be sharded.

    Returns:
        The model, in evaluation mode.

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
    folder = Path(path)
    description = _read_description(folder)
    try:
        model: Recommender = getattr(models, description["model"])(**description["config"], device="meta")
    except (TypeError, ValueError, RuntimeError) as error:  # PyTorch's own, for sizes past all bounds
        raise ValueError(f"{folder / 'config.json'}: the model cannot be built from it: {error}") from error
    expected = model.state_dict()
    file = (folder / description["files"]["model"]).absolute()
    tensors = read_tensors(file, names=tuple(expected))
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{folder}: {name} has shape {tuple(tensor.shape)}, "
                f"config.json asks for {tuple(expected[name].shape)}"
            )
        if not tensor.is_floating_point():
            raise ValueError(
                f"{folder}: {name} holds {tensor.dtype}, not floating-point numbers: save it again"
            )
    later = torch.device(device).type == "meta"
    # Copied: a file's tensors need not be aligned as PyTorch's own are, and then round differently.
    state = {
        name: tensor.to("cpu" if later and not expected[name].is_meta else device, copy=True)
        for name, tensor in tensors.items()
    }
    model.load_state_dict(state, assign=True)
    if later:
        for table in model.embeddings.tables:
            name = f"embeddings.ebc.embedding_bags.{table.name}.weight"
            model.embeddings.sources[table.name] = partial(read_rectangle, file, name)
    model.requires_grad_(True)
    for name in _VOCABULARIES:
        if name in description["files"]:
            size = model.num_users if name == "user_ids" else model.num_items
            setattr(model, name, _read_vocabulary(folder / description["files"][name], size))
    return model.eval()


def _settle(file: Path, stem: str, suffix: str) -> str:
    """Rename a finished file after its content."""
    final = file.with_name(f"{stem}-{hash_of(file)[:12]}{suffix}")
    file.replace(final)
    return final.name


def _read_description(folder: Path) -> dict[str, Any]:
    place = folder / "config.json"
    if not place.is_file():
        raise FileNotFoundError(f"{folder} holds no model: there is no config.json in it")
    try:
        description = json.loads(place.read_text(encoding="utf-8"))
        version, model, files = description["format"], description["model"], description["files"]
        names = [Path(files["model"]), *map(Path, files.values())]
        description["config"]  # its absence is found here, with the others'
    except (
        json.JSONDecodeError,
        UnicodeDecodeError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise ValueError(f"{place} does not describe a model ({error!r}): save the model again") from error
    if version != _FORMAT:
        raise ValueError(f"{place} has format {version}, this version of ncf reads {_FORMAT}: update ncf")
    if model not in _MODELS:
        raise ValueError(f"{place} names the model {model!r}: known are {', '.join(_MODELS)}")
    for name in names:
        if name.parent != Path() or name.name in ("", ".."):
            raise ValueError(f"{place} names a file outside its folder: {name}")
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is incomplete: {name} is missing, copy the whole folder again")
    return dict(description)


def _read_vocabulary(file: Path, size: int) -> Vocabulary:
    try:
        vocabulary = Vocabulary(pq.read_table(file)["id"].combine_chunks())
    except (pa.ArrowException, KeyError) as error:
        raise ValueError(f"{file} is not a vocabulary ({error}): save the model again") from error
    if len(vocabulary) > size:
        raise ValueError(f"{file} has {len(vocabulary)} ids for the model's {size}: save the model again")
    return vocabulary
