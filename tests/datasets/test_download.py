from __future__ import annotations

import contextlib
import http.server
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ncf.datasets import download as module
from ncf.datasets.download import download, download_wheel


@pytest.fixture
def nonsense() -> Iterator[str]:
    """The address of a server whose answers are not HTTP."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            self.rfile.readline()
            self.wfile.write(b"hello\r\n")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/file"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_answer_that_is_not_http_is_an_os_error(nonsense: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="gave no proper answer: BadStatusLine"):
        download(nonsense, tmp_path / "file", md5="")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("length", "message"), [("abc", "more than 5000 bytes"), ("9" * 40, "more than 5000")]
)
def test_an_answer_that_does_not_end_is_cut_off(
    length: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", length)
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b"0" * 1000)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setattr(module, "_MOST", 5000)
    monkeypatch.setattr(module, "_BLOCK", 1000)
    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with pytest.raises((OSError, ValueError), match=message):
            download(f"http://127.0.0.1:{server.server_port}/file", tmp_path / "file", md5="")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert list(tmp_path.iterdir()) == []


def test_pip_that_never_ends_is_an_os_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = subprocess.run

    def at_once(command: list[str], **options: Any) -> Any:
        return run(command, **{**options, "timeout": 0.001})  # less than Python takes to start

    monkeypatch.setattr(subprocess, "run", at_once)
    with pytest.raises(OSError, match="pip download nothing==1 took more than 0 seconds"):
        download_wheel("nothing==1", tmp_path)
