"""Requests a second of other libraries' servers beside ours: ``python -m benchmarks.peer_servers``.

Two rows each: 50 requests a second, and the most whose 99th percentile is at most ``--p99``.

Each library serves ten items of a matrix factorization to known users, who have 50 seen items each, from one process:
Cornac by gunicorn, as its documentation says, LibRecommender by Sanic, with ids and vectors in a Redis server that must
run on this machine. Ours and Cornac rank the whole catalogue; LibRecommender's index looks at an eighth of it. The
environments are those of `benchmarks.peers`; these packages more are needed in them: flask and gunicorn for cornac;
sanic, redis, ujson, pydantic, aiohttp and faiss-cpu for librecommender.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.peers.environments import home
from benchmarks.serving import HEADER, Server, load, measure, posted
from ncf import Interactions, MatrixFactorization, Recommender

FACTORS = 32
# Models of random rows and one epoch: speed does not depend on what was learnt.
CORNAC = """
import sys, numpy as np
from cornac.data import Dataset
from cornac.models import MF
folder, users, items, seen = sys.argv[1], *map(int, sys.argv[2:])
step = items // seen
rows = [(str(u), str((u * 7 + j * step) % items), 1.0) for u in range(users) for j in range(seen)]
rows += [(str(i % users), str(i), 1.0) for i in range(items)]
train = Dataset.from_uir(list({(u, i): (u, i, r) for u, i, r in rows}.values()))
MF(k=32, max_iter=1, num_threads=1, verbose=False).fit(train).save(folder, save_trainset=True)
"""
LIBRECOMMENDER = """
import sys, pandas as pd
from libreco.algorithms import BPR
from libreco.data import DatasetPure
from libserving.serialization import embed2redis, save_embed, save_faiss_index
folder, users, items, seen = sys.argv[1], *map(int, sys.argv[2:])
step = items // seen
rows = [(u, (u * 7 + j * step) % items) for u in range(users) for j in range(seen)]
rows += [(i % users, i) for i in range(items)]
frame = pd.DataFrame(rows, columns=["user", "item"]).drop_duplicates().assign(label=1)
train, info = DatasetPure.build_trainset(frame)
model = BPR("ranking", info, embed_size=32, n_epochs=1, use_tf=False, num_threads=1)
model.fit(train, neg_sampling=True, verbose=0)
save_embed(folder, model)
save_faiss_index(folder, model)
embed2redis(folder)
"""


class PeerServer(Server):
    """Another library's server; the processor time is of its worker as well."""

    def __init__(self, command: list[str], port: int, folder: Path, probe: bytes, **environment: str) -> None:
        self.port = port
        began = time.perf_counter()
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while True:
            try:
                _, codes, _ = asyncio.run(
                    load(port, [probe], rate=1, seconds=1, connections=1, keep_alive=False)
                )
                break
            except (OSError, asyncio.IncompleteReadError):
                if self.process.poll() is not None:
                    raise RuntimeError(f"{command[0]} did not start") from None
                time.sleep(0.1)
        if set(codes) != {200}:
            raise RuntimeError(f"{command[0]} answers {dict(codes)}")
        self.start_seconds = time.perf_counter() - began

    def cpu_seconds(self) -> float:
        """Processor time of the process and of those that it has started."""
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True
        ).stdout.split()
        total = 0.0
        for pid in [self.process.pid, *map(int, children)]:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return total

    def stop(self) -> None:
        """End the server and what it has started."""
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def ours(folder: Path, users: int, items: int, seen: int) -> tuple[Server, list[bytes]]:
    rows = torch.arange(users).repeat_interleave(seen)
    step = items // seen
    columns = ((torch.arange(users)[:, None] * 7 + torch.arange(seen) * step) % items).flatten()
    recommender = Recommender(
        MatrixFactorization(users, items, factors=FACTORS),
        seen=Interactions(rows, columns, None, users, items),
    )
    recommender.save(folder)
    return Server(folder), [posted("/v1/recommend", {"user": user}) for user in range(min(users, 500))]


def cornac(folder: Path, users: int, items: int, seen: int) -> tuple[Server, list[bytes]]:
    python = home() / "cornac/bin/python"
    subprocess.run(
        [python, "-c", CORNAC, folder, *map(str, (users, items, seen))], check=True, capture_output=True
    )
    (model,) = (file for file in folder.rglob("*.pkl"))
    gets = [
        f"GET /recommend?uid={user}&k=10&remove_seen=true HTTP/1.1\r\nhost: x\r\n\r\n".encode()
        for user in range(min(users, 500))
    ]
    port = free_port()
    command = [str(python), "-m", "gunicorn", "-b", f"127.0.0.1:{port}", "cornac.serving.app:app"]
    environment = {"MODEL_PATH": str(model.parent), "MODEL_CLASS": "cornac.models.MF", "OMP_NUM_THREADS": "1"}
    return PeerServer(command, port, folder, gets[0], **environment), gets


def librecommender(folder: Path, users: int, items: int, seen: int) -> tuple[Server, list[bytes]]:
    python = home() / "librecommender/bin/python"
    script = [python, "-c", LIBRECOMMENDER, folder, *map(str, (users, items, seen))]
    subprocess.run(script, check=True, capture_output=True)
    # Its server looks for the index in the installed package.
    package = next((home() / "librecommender/lib").glob("python*/site-packages/libserving"))
    (folder / "faiss_index.bin").replace(package / "faiss_index.bin")
    requests = [posted("/embed/recommend", {"user": user, "n_rec": 10}) for user in range(min(users, 500))]
    port = free_port()
    start = (
        "from libserving.sanic_serving.embed_deploy import app\n"
        f"app.run(host='127.0.0.1', port={port}, single_process=True, access_log=False, motd=False)"
    )
    return PeerServer([str(python), "-c", start], port, folder, requests[0], OMP_NUM_THREADS="1"), requests


def fastest(at: Callable[..., tuple[float, str]], most: float) -> str:
    """The row of the highest rate whose 99th percentile is at most so many milliseconds; each has two tries."""
    rate, best = 20.0, ""
    while True:
        for _ in range(2):
            found, row = at(rate=rate)
            if found <= most:
                break
        else:
            return best
        rate, best = 1.15 * rate, row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--p99", type=float, default=25.0, help="milliseconds of the rate that is looked for")
    parser.add_argument("--servers", nargs="*", default=["ours", "cornac", "librecommender"])
    parser.add_argument("--items", type=int, nargs="*", default=[1_682, 10_000, 100_000])
    given = parser.parse_args()
    kinds = {"ours": ours, "cornac": cornac, "librecommender": librecommender}
    print(HEADER.replace("model  ", "server    ", 1))
    for items in given.items:
        for name in given.servers:
            with tempfile.TemporaryDirectory() as folder:
                server, requests = kinds[name](Path(folder), 943, items, 50)
                try:
                    asked = {"seconds": given.seconds, "connections": 8, "keep_alive": name != "cornac"}
                    at = partial(measure, server, f"{name:14} {items:8,}", requests, **asked)
                    print(at(rate=50.0)[1], flush=True)
                    print(fastest(at, given.p99), flush=True)
                finally:
                    server.stop()


if __name__ == "__main__":
    main()
