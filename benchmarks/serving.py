"""Latency and throughput of the service under an open-loop load: ``python -m benchmarks.serving``.

``--goals`` measures only what there is a goal for, in a minute or two on a machine that does nothing else.

Requests are sent at the times of a fixed schedule, whether or not earlier ones have been answered, and each latency
counts from the scheduled time. So a slow answer is not hidden by a client that waits for it (coordinated omission).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from ncf import GMF, Interactions, NeuMF, Recommender, Vocabulary

HEADER = "model          items  clients   asked/s answered/s   p50 ms   p95 ms   p99 ms   CPU ms  start s     MB  codes"
SHAPES = [  # model, users, items
    ("NeuMF 32", 943, 1_682),
    ("NeuMF 32", 10_000, 10_000),
    ("NeuMF 32", 10_000, 100_000),
    ("GMF 64", 10_000, 1_000_000),
]
# In a process of its own: processor seconds beyond PyTorch's import, and the most memory in MB.
OPENING = """
import sys, time
import torch
began = time.process_time()
from ncf import Recommender
recommender = Recommender.load(sys.argv[1])
recommender.recommend(recommender.some_user())
print(time.process_time() - began)
print(int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024)
"""


def percentile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def posted(path: str, body: object) -> bytes:
    """A request as it goes over the wire."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}"
    )
    return head.encode() + b"\r\n\r\n" + content


async def client(
    port: int,
    jobs: asyncio.Queue[tuple[float, bytes] | None],
    took: list[float],
    codes: Counter[int],
    keep_alive: bool,
) -> None:
    """One connection: takes requests off the schedule and notes how long after their time they were answered."""
    connection = await asyncio.open_connection("127.0.0.1", port) if keep_alive else None
    while (job := await jobs.get()) is not None:
        due, request = job
        reader, writer = connection or await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next(line for line in lines if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))
        took.append(time.perf_counter() - due)
        codes[int(head.split(b" ", 2)[1])] += 1
        if connection is None:
            writer.close()
    if connection is not None:
        connection[1].close()


async def load(
    port: int,
    requests: list[bytes],
    *,
    rate: float,
    seconds: float,
    connections: int,
    keep_alive: bool = True,
) -> tuple[list[float], Counter[int], float]:
    """Send requests at a rate; return latencies in seconds, answers by code, and answers a second."""
    jobs: asyncio.Queue[tuple[float, bytes] | None] = asyncio.Queue()
    took: list[float] = []
    codes: Counter[int] = Counter()
    clients = [asyncio.create_task(client(port, jobs, took, codes, keep_alive)) for _ in range(connections)]
    began = time.perf_counter()
    for number in range(int(rate * seconds)):
        due = began + number / rate
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        jobs.put_nowait((due, requests[number % len(requests)]))
    for _ in clients:
        jobs.put_nowait(None)
    await asyncio.gather(*clients)
    return took, codes, len(took) / (time.perf_counter() - began)


def marks(seconds: list[float]) -> str:
    """Three percentiles in milliseconds."""
    return "".join(f" {1000 * percentile(seconds, q):8.2f}" for q in (0.5, 0.95, 0.99))


class Server:
    """The service in a process of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        began = time.perf_counter()
        command = [sys.executable, "-m", "ncf.serve", str(folder), "--port", str(self.port), *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz").read()
                break
            except OSError:
                if self.process.poll() is not None:
                    raise RuntimeError("the service did not start") from None
                time.sleep(0.02)
        self.start_seconds = time.perf_counter() - began

    def megabytes(self) -> float:
        """Resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def cpu_seconds(self) -> float:
        """Processor time of the process so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """End it as an orchestrator does."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def saved(folder: Path, model: str, num_users: int, num_items: int) -> list[int]:
    """Save a recommender of random rows with 50 seen items a user; return some of its users."""
    kind = {
        "NeuMF 32": lambda: NeuMF(num_users, num_items, factors=32, layers=(64, 32, 16)),
        "GMF 64": lambda: GMF(num_users, num_items, factors=64),
    }
    users = torch.arange(num_users).repeat_interleave(50)
    first = torch.randint(num_items, (num_users, 1), generator=torch.Generator().manual_seed(0))
    items = ((first + torch.arange(50) * (num_items // 50)) % num_items).flatten()
    seen = Interactions(users, items, None, num_users, num_items)
    Recommender(kind[model](), seen=seen).save(folder)
    return list(range(0, num_users, max(1, num_users // 500)))


def measure(
    server: Server, name: str, requests: list[bytes], *, keep_alive: bool = True, **asked: Any
) -> tuple[float, str]:
    """A load at a rate: the 99th percentile in milliseconds, and a row to print."""
    before = server.cpu_seconds()
    took, codes, reached = asyncio.run(load(server.port, requests, keep_alive=keep_alive, **asked))
    cpu = 1000 * (server.cpu_seconds() - before) / len(took)
    row = (
        f"{name} {asked['connections']:8} {asked['rate']:9,.0f} {reached:10,.0f}{marks(took)} {cpu:8.2f}"
        f" {server.start_seconds:8.2f} {server.megabytes():6,.0f}  {dict(codes)}"
    )
    return 1000 * percentile(took, 0.99), row


def in_process(folder: Path, name: str, users: list[int]) -> float:
    """One row: calls of `Recommender.recommend`, one after the other; return the median in seconds."""
    recommender = Recommender.load(folder)
    for user in users[:20]:
        recommender.recommend([user])
    alone, before = [], time.process_time()
    for user in users:
        began = time.perf_counter()
        recommender.recommend([user])
        alone.append(time.perf_counter() - began)
    cpu = 1000 * (time.process_time() - before) / len(alone)
    rate = 1 / statistics.mean(alone)
    print(f"{name} {'in process':>18} {rate:10,.0f}{marks(alone)} {cpu:8.2f}", flush=True)
    return statistics.median(alone)


def opening() -> tuple[float, float]:
    """Open a folder of MovieLens-100K's size and make a list: `OPENING`, the medians of five processes."""
    with tempfile.TemporaryDirectory() as folder:
        model = NeuMF(943, 1_682, factors=32, layers=(64, 32, 16))
        model.user_ids, model.item_ids = Vocabulary(range(1, 944)), Vocabulary(range(1, 1_683))
        seen = {user: [1 + (7 * user + 13 * nth) % 1_682 for nth in range(106)] for user in range(1, 944)}
        titles = {"title": [f"Film {item} (1995)" for item in range(1, 1_683)]}
        Recommender(model, seen=seen, item_columns=titles).save(folder)
        command = [sys.executable, "-c", OPENING, folder]
        runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(5)]
    measured = [[float(line) for line in run.stdout.split()] for run in runs]
    return statistics.median(s for s, _ in measured), statistics.median(mb for _, mb in measured)


def goals(seconds: float) -> None:
    """Print a row for each goal: how much is measured, and how much it may be, in milliseconds."""
    print("to open a folder: {:.2f} s beyond PyTorch's import, {:.0f} MB, at most 250".format(*opening()))
    print(f"{'model':10} {'items':>9} {'':28} {'ms':>8}  at most")
    for model, num_users, num_items, q, most in (
        ("NeuMF 32", 943, 1_682, 0.99, 1.0),
        ("NeuMF 32", 10_000, 100_000, 0.5, 10.0),
        ("GMF 64", 10_000, 1_000_000, 0.5, 60.0),
    ):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            users = saved(folder, model, num_users, num_items)
            recommender = Recommender.load(folder)
            for user in users[:20]:
                recommender.recommend(user)
            took: list[float] = []
            end = time.perf_counter() + seconds
            while len(took) < len(users) or time.perf_counter() < end:
                began = time.perf_counter()
                recommender.recommend(users[len(took) % len(users)])
                took.append(time.perf_counter() - began)
            rows = [("in process", q, took, most)]
            if num_items == 1_682:
                server = Server(folder)
                try:
                    requests = [posted("/v1/recommend", {"user": user}) for user in users]
                    asyncio.run(load(server.port, requests, rate=200, seconds=1, connections=8))
                    answers = asyncio.run(
                        load(server.port, requests, rate=200, seconds=seconds, connections=8)
                    )
                finally:
                    server.stop()
                if set(answers[1]) != {200}:
                    raise RuntimeError(f"the service answered {dict(answers[1])}")
                rows.append(("HTTP, 200/s, 8 clients", q, answers[0], 5.0))
        for name, of, times, limit in rows:
            found = f"p{100 * of:.0f} {1000 * percentile(times, of):8.2f}"
            print(f"{model:10} {num_items:9,} {name:>24} {found}  {limit:.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second of the latency rows")
    parser.add_argument("--connections", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--goals", action="store_true", help="measure only what there is a goal for")
    given = parser.parse_args()
    if given.goals:
        goals(given.seconds)
        return
    print(HEADER)
    with tempfile.TemporaryDirectory() as temporary:
        for model, num_users, num_items in SHAPES:
            folder = Path(temporary) / f"{model}-{num_items}".replace(" ", "")
            users = saved(folder, model, num_users, num_items)
            name = f"{model:10} {num_items:9,}"
            slow = in_process(folder, name, users)
            requests = [posted("/v1/recommend", {"user": user}) for user in users]
            server = Server(folder)
            try:
                for connections in given.connections:
                    rate = min(given.rate, 0.3 / slow)
                    asked = {"rate": rate, "seconds": given.seconds, "connections": connections}
                    print(measure(server, name, requests, **asked)[1], flush=True)
                # More than it can answer: the client waits, and the answers a second are the most there are.
                rate = min(4000.0, 3 / slow)
                print(measure(server, name, requests, rate=rate, seconds=2.0, connections=64)[1], flush=True)
            finally:
                server.stop()


if __name__ == "__main__":
    main()
