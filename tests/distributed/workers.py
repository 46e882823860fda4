"""What the processes of a test run; each starts here under its own rank."""

from __future__ import annotations

import os
import socket
import traceback
import warnings
from collections.abc import Callable

import torch
import torch.multiprocessing as mp


def launch(work: Callable[..., None], world: int, *arguments: object) -> None:
    """Run ``work(rank, world, *arguments)`` in real processes over gloo; a failure in one is raised here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_start, args=(world, port, work, arguments), nprocs=world, join=True)


def _start(rank: int, world: int, port: int, work: Callable[..., None], arguments: tuple) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCH_LOGS": "-all",
    }
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        work(rank, world, *arguments)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
