"""Counters of the service in Prometheus' format, and its log as JSON lines."""

from __future__ import annotations

import json
import logging
import os
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

_json = json.JSONEncoder(ensure_ascii=False).encode
_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)

SECONDS = Histogram("ncf_request_seconds", "Time to answer.", ["path", "code"], buckets=_BUCKETS)
IN_FLIGHT = Gauge(
    "ncf_requests_in_flight", "Requests that are computed or wait for it.", multiprocess_mode="livesum"
)
REJECTED = Counter("ncf_requests_rejected", "Requests answered with 503 since the queue was full.")
USERS = Counter("ncf_users_answered", "Users answered, by the source of their list.", ["source"])
UNKNOWN = Counter("ncf_users_unknown", "Users of a request whom the model does not have.")
RELOADS = Counter("ncf_model_reloads", "Models noticed in the folder, by outcome.", ["outcome"])
MODEL_LOADED = Gauge(
    "ncf_model_loaded_timestamp_seconds", "When the served model was loaded.", multiprocess_mode="livemin"
)


def exposition() -> bytes:
    """Return the counters of all workers as text."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest()
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, message, and what the record brings as `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return _json(line)


def _is_for_a_person(line: logging.LogRecord) -> bool:
    """Keep warnings, new models and the address, and leave out requests and the steps of start and stop."""
    return (
        line.levelno > logging.INFO or line.name == "ncf.serve" or str(line.msg).startswith("Uvicorn running")
    )


def log_to_stderr() -> None:
    """Write the service's log, and uvicorn's: JSON lines or, where NCF_SERVE_LOG is ``text``, what a person reads."""
    handler = logging.StreamHandler()
    if os.environ.get("NCF_SERVE_LOG") == "text":
        handler.addFilter(_is_for_a_person)
    else:
        handler.setFormatter(JsonLines())
    for name in ("ncf.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
