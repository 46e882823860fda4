"""Load, hostile bodies, new and damaged models and a killed worker at once.

``NCF_SOAK_SECONDS=600`` makes it the ten minutes of docs/serve.md; by default it takes some seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from ncf import Recommender

from .conftest import ROOT, Service, recommender

SECONDS = float(os.environ.get("NCF_SOAK_SECONDS", "20"))
CONNECTIONS = 64
PAUSE = 0.5  # seconds that a caller waits between two requests, on average
USERS = [f"u{n}" for n in range(40)]
HOSTILE: list[bytes] = [
    b"",
    b"\x00\xff\xfe",
    b"{",
    b"[" * 50_000,
    b"null",
    b"NaN",
    b'{"user": NaN}',
    b'{"user": "u1", "k": 1e400}',
    b'{"user": "u1", "k": -1}',
    b'{"user": "../../../etc/passwd", "unknown": "raise"}',
    b'{"user": "\\ud800"}',
    b'{"user": 99999999999999999999999999}',
    b'{"users": [[[["u1"]]]]}',
    b'{"history": ["i1", null]}',
    b'{"user": "u1", "items": {"$gt": ""}}',
    b'{"user": "' + b"u" * 2_000_000 + b'"}',
    json.dumps({"users": ["u1"] * 1001}).encode(),
]
RAW = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET / HTTP/9.9\r\n\r\n",
    b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{",
    b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
]
pytestmark = [
    pytest.mark.slow,
    # connections that the killed worker cut, which asyncio leaves to the collector
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


class Prepared:
    """Folders of models, and all that a right answer may be."""

    def __init__(self, home: Path) -> None:
        self.good, self.answers = [], {}
        for seed in range(4):
            folder = home / f"good{seed}"
            recommender(seed).save(folder)
            found = Recommender.load(folder).recommend(USERS)
            self.answers[self.fingerprint(folder)] = {
                user: (found.items[row], found.scores[row].tolist()) for row, user in enumerate(USERS)
            }
            self.good.append(folder)
        self.damaged = []
        for seed in range(3):
            folder = home / f"damaged{seed}"
            recommender(10 + seed).save(folder)
            (weights,) = folder.glob("model-*.safetensors")
            content = bytearray(weights.read_bytes())
            content[-5 - seed] ^= 1
            weights.write_bytes(content)
            self.damaged.append(folder)

    @staticmethod
    def fingerprint(folder: Path) -> str:
        return sha256((folder / "config.json").read_bytes()).hexdigest()[:16]

    @staticmethod
    def deliver(source: Path, folder: Path) -> None:
        """Copy a folder as a deployment does: the description last, and at once."""
        for file in source.iterdir():
            if file.name != "config.json":
                shutil.copy(file, folder)
        shutil.copy(source / "config.json", folder / ".config.json.new")
        (folder / ".config.json.new").replace(folder / "config.json")


class Caller:
    """One connection that asks, waits, and asks again."""

    def __init__(self, number: int, port: int, prepared: Prepared, end: float) -> None:
        self.random = random.Random(number)
        self.port, self.prepared, self.end = port, prepared, end
        self.codes: Counter[int] = Counter()
        self.wrong: list[str] = []
        self.cut: list[tuple[float, str]] = []  # connections lost in a request: when, and how

    async def run(self) -> None:
        connection, used, hostile = None, 0.0, False
        while time.monotonic() < self.end:
            await asyncio.sleep(self.random.expovariate(1 / PAUSE))
            kind = self.random.random()
            if kind > 0.99:  # idle for longer than uvicorn's own five seconds
                await asyncio.sleep(6)
            try:
                if kind < 0.03:
                    await self.raw(self.random.choice(RAW))
                    continue
                connection = connection or await asyncio.open_connection("127.0.0.1", self.port)
                hostile = kind < 0.2
                user = self.random.choice(USERS)
                body = self.random.choice(HOSTILE) if hostile else json.dumps({"user": user}).encode()
                code, content, closes = await self.ask(*connection, body)
            except (OSError, asyncio.IncompleteReadError) as error:
                idle = time.monotonic() - used
                self.cut.append(
                    (time.monotonic(), f"{error!r}, last used {idle:.1f} s before, hostile {hostile}")
                )
                connection = None
                continue
            if closes:
                connection[1].close()
                connection = None
            used = time.monotonic()
            self.codes[code] += 1
            self.check(user, hostile, code, content)
        if connection is not None:
            connection[1].close()

    async def ask(self, reader: Any, writer: Any, body: bytes) -> tuple[int, bytes, bool]:
        head = b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        writer.write(head % len(body) + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = next(line for line in answer.split(b"\r\n") if line.startswith(b"content-length:"))
        content = await reader.readexactly(int(length.split(b":")[1]))
        too_long = len(body) > 1 << 20  # answered before it was read: the server closes
        return int(answer.split(b" ", 2)[1]), content, b"connection: close" in answer or too_long

    async def raw(self, request: bytes) -> None:
        """Nothing of HTTP, or half of it, and then nobody."""
        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        with suppress(ConnectionError):  # the server may answer and close before it has read everything
            writer.write(request)
            await writer.drain()
            await asyncio.sleep(0.1)
        writer.close()

    def check(self, user: str, hostile: bool, code: int, content: bytes) -> None:
        text = content.decode()
        leaks = [word for word in ("Traceback", str(ROOT), "site-packages") if word in text]
        if leaks or code not in ((400, 404, 413, 422, 200, 503) if hostile else (200, 503)):
            self.wrong.append(f"{code} {text[:300]}")
        elif not hostile and code == 200:
            answer = json.loads(text)
            expected = self.prepared.answers.get(answer["model"], {}).get(user)
            if expected != (answer["items"], answer["scores"]):
                self.wrong.append(f"{user}: {text[:300]}")
        elif code != 200 and json.loads(text)["status"] != code:
            self.wrong.append(f"{code} {text[:300]}")


def tree(service: Service) -> list[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(service.process.pid)], capture_output=True, text=True, check=True
    )
    return [int(pid) for pid in listed.stdout.split()]


def workers(service: Service) -> list[int]:
    commands = {pid: Path(f"/proc/{pid}/cmdline") for pid in tree(service)}
    return [pid for pid, file in commands.items() if file.exists() and "spawn_main" in file.read_text()]


def megabytes(service: Service) -> list[float]:
    """Anonymous memory of each worker, in order of size."""
    texts = [Path(f"/proc/{pid}/status").read_text() for pid in workers(service)]
    return sorted(int(text.split("RssAnon:")[1].split()[0]) / 1024 for text in texts)


def test_nothing_wrong_whatever_comes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared = Prepared(tmp_path)
    folder = tmp_path / "model"
    shutil.copytree(prepared.good[0], folder)
    service = Service(folder, "--workers", "2", "--interval", "0.2", "--queue", "16")
    began = time.monotonic()
    end = began + SECONDS
    callers = [Caller(n, int(service.url.rsplit(":", 1)[1]), prepared, end) for n in range(CONNECTIONS)]
    deliveries = [
        folder
        for four in range(3)
        for folder in (prepared.good[four + 1], prepared.good[four], prepared.damaged[four])
    ] + [prepared.good[3]]
    memory: list[list[float]] = []
    killed: list[float] = []

    async def operate() -> None:
        """Ten deliveries, one kill in the middle, and a look at the memory before and after."""
        for number, delivered in enumerate(deliveries):
            await asyncio.sleep(SECONDS / (len(deliveries) + 2))
            prepared.deliver(delivered, folder)
            if number == 4:
                killed.append(time.monotonic())
                os.kill(workers(service)[0], signal.SIGKILL)
            if number >= 6:  # the new worker has loaded a model by then
                memory.append(megabytes(service))

    async def everything() -> None:
        await asyncio.gather(operate(), *(caller.run() for caller in callers))

    try:
        asyncio.run(everything())
        service.client.close()
        service.client = service.client.__class__(base_url=service.url, timeout=30)
        last = prepared.fingerprint(prepared.good[3])
        service.until(lambda: service.get("/readyz").json() == {"status": "ready", "model": last})
        memory.append(megabytes(service))
        log = service.logged()
    finally:
        service.stop()
    codes = sum((caller.codes for caller in callers), Counter())
    wrong = [text for caller in callers for text in caller.wrong]
    lost = [one for caller in callers for one in caller.cut]
    unexplained = [
        f"after {moment - began:.1f} s: {how}"
        for moment, how in lost
        if not any(0 <= moment - kill < 15 for kill in killed)
    ]
    with capsys.disabled():
        print(f"\n{SECONDS:.0f} s: answers by code {dict(sorted(codes.items()))}, {len(lost)} connections lost "
              f"to the kill, anonymous MB of the workers {[[round(m) for m in one] for one in memory]}")  # fmt: skip
    assert not wrong, wrong[:3]
    assert not unexplained, unexplained
    assert codes[200] > 0
    failed = [line for line in log.splitlines() if "a request failed" in line]
    assert not failed, failed[:3]
    assert log.count("the new model cannot be served") >= 3
    if SECONDS >= 300:
        assert memory[-1][-1] < 1.05 * memory[0][-1] + 10
