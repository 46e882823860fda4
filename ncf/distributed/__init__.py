"""Several processes: collectives, sharded tables, checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ncf.utils import lazy_names

__all__ = ["Checkpoints", "rank", "shard", "start_processes", "world_size"]

if TYPE_CHECKING:
    from ncf.distributed.checkpoint import Checkpoints
    from ncf.distributed.collectives import rank, world_size
    from ncf.distributed.sharding import shard, start_processes

_HOMES = {
    "Checkpoints": "checkpoint",
    "rank": "collectives",
    "shard": "sharding",
    "start_processes": "sharding",
    "world_size": "collectives",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
