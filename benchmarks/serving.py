"""Latency and throughput of the service under an open-loop load: ``python -m benchmarks.serving``.

Requests are sent at the times of a fixed schedule, whether or not earlier ones have been answered, and each latency
counts from the scheduled time. So a slow answer is not hidden by a client that waits for it (coordinated omission).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import torch

from ncf import GMF, Interactions, NeuMF, Recommender

HEADER = "model          items clients  asked/s answered/s   p50 ms   p95 ms   p99 ms  start s     MB  answers by code"


def percentile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


async def client(
    host: str,
    port: int,
    jobs: asyncio.Queue[tuple[float, bytes] | None],
    took: list[float],
    codes: dict[int, int],
) -> None:
    """One connection: takes requests off the schedule and notes how long after their time they were answered."""
    reader, writer = await asyncio.open_connection(host, port)
    while (job := await jobs.get()) is not None:
        due, body = job
        writer.write(
            b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
            % (len(body), body)
        )
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(
            next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")).split(
                b":"
            )[1]
        )
        await reader.readexactly(length)
        took.append(time.perf_counter() - due)
        code = int(head.split(b" ", 2)[1])
        codes[code] = codes.get(code, 0) + 1
    writer.close()


async def load(
    port: int, bodies: list[bytes], *, rate: float, seconds: float, connections: int
) -> tuple[list[float], dict[int, int], float]:
    """Send requests at a rate; return latencies in seconds, answers by code, and answers a second."""
    jobs: asyncio.Queue[tuple[float, bytes] | None] = asyncio.Queue()
    took: list[float] = []
    codes: dict[int, int] = {}
    clients = [asyncio.create_task(client("127.0.0.1", port, jobs, took, codes)) for _ in range(connections)]
    began = time.perf_counter()
    for number in range(int(rate * seconds)):
        due = began + number / rate
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        jobs.put_nowait((due, bodies[number % len(bodies)]))
    for _ in clients:
        jobs.put_nowait(None)
    await asyncio.gather(*clients)
    return took, codes, len(took) / (time.perf_counter() - began)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second of the latency rows")
    given = parser.parse_args()
    shapes = [
        ("NeuMF 32", 943, 1_682),
        ("NeuMF 32", 10_000, 10_000),
        ("NeuMF 32", 10_000, 100_000),
        ("GMF 64", 10_000, 1_000_000),
    ]
    print(HEADER)
    with tempfile.TemporaryDirectory() as temporary:
        for model, num_users, num_items in shapes:
            folder = Path(temporary) / f"{model}-{num_items}".replace(" ", "")
            users = saved(folder, model, num_users, num_items)
            recommender = Recommender.load(folder)
            alone = []
            for user in users[:200]:
                began = time.perf_counter()
                recommender.recommend([user])
                alone.append(time.perf_counter() - began)
            bodies = [json.dumps({"user": user}).encode() for user in users]
            server = Server(folder)
            try:
                print(
                    f"{model:10} {num_items:9,} {'in process':>16} {1 / statistics.mean(alone):10,.0f}"
                    + "".join(f" {1000 * percentile(alone, q):8.2f}" for q in (0.5, 0.95, 0.99))
                )
                slow = statistics.median(alone)
                for connections, rate in (
                    (1, min(given.rate, 0.3 / slow)),
                    (16, min(given.rate, 0.5 / slow)),
                    (64, 1e4 if slow < 1e-3 else 3 / slow),
                ):
                    took, codes, reached = asyncio.run(
                        load(
                            server.port,
                            bodies,
                            rate=rate,
                            seconds=given.seconds if rate < 1e4 else 2,
                            connections=connections,
                        )
                    )
                    marks = "".join(f" {1000 * percentile(took, q):8.2f}" for q in (0.5, 0.95, 0.99))
                    print(
                        f"{model:10} {num_items:9,} {connections:7} {rate:8,.0f} {reached:10,.0f}{marks}"
                        f" {server.start_seconds:8.2f} {server.megabytes():6,.0f}  {codes}",
                        flush=True,
                    )
            finally:
                server.stop()


if __name__ == "__main__":
    main()
