"""Serve a saved model: ``python -m ncf.serve FOLDER``."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import tempfile
from contextlib import nullcontext
from typing import Any


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and serve until SIGTERM; requests that have begun are answered first."""
    parser = argparse.ArgumentParser(
        prog="python -m ncf.serve", description="Serve a saved model, with a page."
    )
    parser.add_argument("folder", help="folder that ncf.Recommender.save wrote")
    for name, kind, default, described in (
        ("host", str, "127.0.0.1", "address to listen on"),
        ("port", int, 8000, "port to listen on"),
        ("workers", int, 1, "processes; the tables are shared"),
        ("threads", int, 2, "requests computed at once in a worker"),
        ("queue", int, 128, "requests that may wait in a worker"),
        ("interval", float, 2.0, "seconds between looks for a new model"),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{described} (default: {default})")
    parser.add_argument(
        "--log",
        choices=("json", "text"),
        default="json",
        help="JSON lines, one for each request too, or for a terminal text without requests (default: json)",
    )
    parser.epilog = "An API key is required of callers where the environment has NCF_SERVE_API_KEY."
    given = parser.parse_args(arguments)
    for name in ("workers", "threads", "interval"):
        if getattr(given, name) <= 0:
            parser.error(f"--{name} = {getattr(given, name)}: give a positive number")
    if given.queue < 0:
        parser.error(f"--queue = {given.queue}: give 0 or more")
    gc.disable()  # what is imported stays: to look through it for garbage takes a fifth of the start
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn
    except ImportError as error:
        sys.exit(f"{error.name} is missing: pip install 'ncf[serve]'")
    for name in ("folder", "threads", "queue", "interval", "log"):
        os.environ[f"NCF_SERVE_{name.upper()}"] = str(getattr(given, name))
    several = given.workers > 1
    if several:  # until uvicorn handles it; unhandled, it would end the process before the folder is removed
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="ncf-serve-") if several else nullcontext() as shared:
        if shared is not None:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = os.environ["NCF_SERVE_SHARED"] = shared
        from ncf.serve.telemetry import log_to_stderr

        log_to_stderr()
        app: Any = "ncf.serve.app:from_environment"
        if not several:
            from ncf.serve.app import from_environment

            try:
                app = from_environment()
            except (OSError, ValueError) as error:
                sys.exit(f"{given.folder} cannot be served: {error}")
        gc.freeze()
        gc.enable()
        uvicorn.run(
            app,
            host=given.host,
            port=given.port,
            workers=given.workers,
            factory=several,
            log_config=None,
            access_log=False,
            # Callers keep idle connections, proxies for a minute. A server that closes one first, uvicorn after five
            # seconds, may do so while a request is on its way, which is then lost.
            timeout_keep_alive=75,
            timeout_graceful_shutdown=30,
            timeout_worker_healthcheck=60,  # on a crowded machine a busy worker is silent for uvicorn's five seconds
            server_header=False,
        )


if __name__ == "__main__":
    main()
