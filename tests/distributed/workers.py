"""Real processes over gloo: spawned, or forked where their imports would take longer than their work."""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp


def launch(work: Callable[..., Any], world: int, *arguments: object) -> list[Any]:
    """Run ``work(rank, world, *arguments)`` in new processes, one thread each; what they return, by rank.

    A failure in one is raised here.
    """
    results = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_spawned, args=(world, free_port(), results, work, arguments), nprocs=world, join=True)
    return [value for _, value in sorted((results.get() for _ in range(world)), key=lambda pair: pair[0])]


def _spawned(
    rank: int, world: int, port: int, results: Any, work: Callable[..., Any], arguments: tuple[object, ...]
) -> None:
    os.environ |= _environment(rank, world, port)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        value = work(rank, world, *arguments)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    results.put((rank, value))
    # Seen once in some thousand runs: after its work, a process of PyTorch aborted as the interpreter went, "terminate
    # called without an active exception". Nothing that a test looks at comes after this line.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def fork(work: Callable[..., object], world: int, *arguments: object) -> list[int]:
    """Start ``work(rank, world, *arguments)`` in forked processes; their numbers, for `statuses`."""
    port, children = free_port(), []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                faulthandler.dump_traceback_later(100)  # where it hangs
                torch.set_num_threads(1)  # the parent's others are not here, and OpenMP would wait for them
                os.environ |= _environment(rank, world, port)
                work(rank, world, *arguments)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    return children


def statuses(children: list[int], seconds: float = 120) -> list[int]:
    """How forked processes ended; one that hangs is a failure."""
    ended: dict[int, int] = {}
    deadline = time.monotonic() + seconds
    while len(ended) < len(children):
        for child in set(children) - ended.keys():
            if (found := os.waitpid(child, os.WNOHANG))[0]:
                ended[child] = found[1]
        if time.monotonic() > deadline:
            for child in set(children) - ended.keys():
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            raise TimeoutError("a process hangs")
        time.sleep(0.002)
    return [ended[child] for child in children]


def free_port() -> int:
    """A port that nobody listens at just now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _environment(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun would tell a process."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCH_LOGS": "-all",
    }
