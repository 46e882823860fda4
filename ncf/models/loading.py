"""Read a saved model; see `ncf.models.saving` for its files."""

from __future__ import annotations

import json
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ncf.data.vocabulary import Vocabulary
from ncf.models import neural as models
from ncf.models.base import EmbeddingModel
from ncf.models.saving import FORMAT, MODELS, VOCABULARIES
from ncf.utils.files import read_slice, read_tensors


def load(path: str | PathLike[str], *, device: torch.device | str = "cpu") -> EmbeddingModel:
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
        model: EmbeddingModel = getattr(models, description["model"])(**description["config"], device="meta")
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
            model.embeddings.table_fillers[table.name] = partial(read_slice, file, name)
    model.requires_grad_(True)
    for name in VOCABULARIES:
        if name in description["files"]:
            size = model.num_users if name == "user_ids" else model.num_items
            setattr(model, name, _read_vocabulary(folder / description["files"][name], size))
    return model.eval()


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
    if version != FORMAT:
        raise ValueError(f"{place} has format {version}, this version of ncf reads {FORMAT}: update ncf")
    if model not in MODELS:
        raise ValueError(f"{place} names the model {model!r}: known are {', '.join(MODELS)}")
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
