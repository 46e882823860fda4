"""Memory that a training needs, compared with what is free before it begins."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

import torch

from ncf.models.base import EmbeddingModel
from ncf.training.run import local_weights

_log = logging.getLogger("ncf.training")

# Numbers beside each weight: the optimizer's state, and for dense Adam a gradient of the table's size.
_BESIDE_A_WEIGHT = {"adamw": 2, "adam": 3, "adagrad": 1, "rowwise_adagrad": 0, "sgd": 0}


def check_memory(model: EmbeddingModel, optimizer: str, *, copies: int) -> None:
    """Report the bytes per row where a training takes more than half of the free memory.

    Args:
        model: the model, whose weights are in memory.
        optimizer: its name; an optimizer of the user's own is taken for one with two numbers beside each weight.
        copies: of the weights: 1 where the best epoch is kept.

    Raises:
        MemoryError: if it takes more than there is.
    """
    free = free_memory(model.device)
    held = sum(weight.nbytes for weight in local_weights(model))
    beside = copies + (0 if model.embeddings.is_sharded else _BESIDE_A_WEIGHT.get(optimizer, 2))
    if free is None or (1 + beside) * held <= (free + held) / 2:
        return
    sizes = {"user": model.num_users, "item": model.num_items}
    rows = ", ".join(
        f"{sizes[table.side]:,} of {table.name} at {4 * (1 + beside) * table.dim:,} bytes"
        for table in model.embeddings.tables
    )
    text = (
        f"training takes {beside * held / 1e9:.2f} GB beside the model's {held / 1e9:.2f} GB, of "
        f"{free / 1e9:.2f} GB that are free; rows: {rows}"
    )
    if beside * held > free:
        raise MemoryError(
            f'{text}. Choose an optimizer with less state ("rowwise_adagrad", "sgd"), selection="last", which holds no '
            "copy of the weights, fewer columns, or several processes (ncf.distributed.shard)"
        )
    _log.warning("%s", text)


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a GPU or, on Linux, for this process; ``None`` where nobody knows."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    with suppress(OSError, ValueError):  # a container's own limit; "max" is no number
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        found.append(limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return min(found, default=None)
