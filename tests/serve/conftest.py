from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ncf import GMF, Interactions, Recommender, Trainer, leave_one_out
from tests.conftest import random_interactions

httpx = pytest.importorskip("httpx", reason="httpx comes with the extra test")
pytest.importorskip("fastapi", reason="fastapi comes with the extra serve")

ROOT = Path(__file__).parents[2]


def named_interactions() -> Interactions:
    """Users ``u0`` … ``u39`` and items ``i0`` … ``i59``."""
    numbers = random_interactions(40, 60, 12)
    users = [f"u{user}" for user in numbers.users.tolist()]
    return Interactions.from_arrays(
        users, [f"i{item}" for item in numbers.items.tolist()], numbers.timestamps
    )


def recommender(seed: int = 0) -> Recommender:
    interactions = named_interactions()
    model = GMF(interactions.num_users, interactions.num_items, init_std=0.3, seed=seed)
    Trainer(model, epochs=1, batch_size=256, seed=seed).fit(leave_one_out(interactions))
    titles = [f"Title of {item}" for item in interactions.item_ids.values.to_pylist()]
    return Recommender(model, seen=interactions, item_columns={"title": titles})


class Service:
    """The service as its user starts it: a process of its own."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "ncf.serve", str(folder), "--port", str(port), *arguments]
        self.log = (folder.parent / f"{folder.name}-{port}.log").open("w+")
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            cwd=folder.parent,
            stderr=self.log,
        )
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=30)
        try:
            self.until(lambda: self.get("/readyz").status_code == 200, seconds=120)
        except BaseException:
            self.process.kill()
            self.stop()
            raise

    def get(self, path: str, **options: Any) -> Any:
        return self.client.get(path, **options)

    def post(self, path: str, body: Any, **options: Any) -> Any:
        return self.client.post(path, json=body, **options)

    def until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while True:
            try:
                if condition():
                    return
            except httpx.TransportError:
                pass
            assert self.process.poll() is None, self.logged()
            assert time.monotonic() < end, self.logged()
            time.sleep(0.05)

    def logged(self) -> str:
        self.log.flush()
        return Path(self.log.name).read_text()

    def stop(self) -> bool:
        """Stop as an orchestrator does; uvicorn ends by the signal once it has drained."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=60)
        self.client.close()
        self.log.close()
        return code in (0, -signal.SIGTERM)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "model"
    recommender().save(path)
    return path


@pytest.fixture(scope="session")
def service(folder: Path) -> Iterator[Service]:
    running = Service(folder)
    yield running
    running.stop()
