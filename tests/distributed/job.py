"""A training that writes checkpoints and resumes from them; ``torchrun`` or a test starts it."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ncf import Interactions, NeuMF, Trainer, leave_one_out
from ncf.distributed.collectives import rank, world_size
from ncf.distributed.sharding import shard, start_processes
from ncf.utils.files import write_text

PLAN = {
    "user_gmf": "table_wise",
    "item_gmf": "column_wise",
    "user_mlp": "data_parallel",
    "item_mlp": "table_wise",
}


def run(folder: Path, epochs: int, ready: Callable[[], object] = lambda: None, kind: str = "sharded") -> None:
    """Train, and leave ``digest-<rank>``: a hash of all weights and losses.

    ``"sharded"`` is a job of several processes; ``"local"`` uses the kernel in C, ``"eager"`` PyTorch.
    """
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    users = torch.randint(0, 200, (4000,), generator=generator)
    split = leave_one_out(
        Interactions.from_arrays(users, torch.randint(0, 100, (4000,), generator=generator))
    )
    train = split.train
    model: Any
    wrapped: Any
    if kind == "sharded":
        start_processes(timeout=20)
        ready()
        model = NeuMF(
            train.num_users, train.num_items, factors=8, layers=(16, 8), dropout=0.1, seed=1, device="meta"
        )
        wrapped = shard(model, PLAN, learning_rate=0.05, verbose=False)
    else:
        ready()
        model = wrapped = NeuMF(train.num_users, train.num_items, factors=8, layers=(16, 8), seed=1)
    history = Trainer(
        wrapped,
        epochs=epochs,
        batch_size=500,
        optimizer="adam",
        seed=2,
        compile=False if kind == "eager" else None,
        progress=False,
        checkpoint=folder / "checkpoints",
        checkpoint_every=7,
    ).fit(split.for_rank(rank(), world_size()))
    digest = hashlib.sha256(repr((history.loss, history.ndcg, history.best_epoch)).encode())
    for name, value in sorted(model.state_dict().items()):
        shards = value.local_shards() if hasattr(value, "local_shards") else None
        for tensor in [value] if shards is None else [each.tensor for each in shards]:
            digest.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    write_text(folder / f"digest-{rank()}", digest.hexdigest())
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def digests(folder: Path, world: int) -> list[str]:
    """What `run` left at its end, by rank."""
    return [(folder / f"digest-{rank}").read_text() for rank in range(world)]


if __name__ == "__main__":
    where = Path(sys.argv[1])
    pid_file = where / f"pid-{os.environ['RANK']}"
    run(where, int(sys.argv[2]), ready=lambda: write_text(pid_file, str(os.getpid())))
