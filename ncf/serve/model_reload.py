"""Hold the model of a folder, and swap it when the folder holds another one."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Any

import pyarrow.compute as pc  # at once: a request would wait 0.2 s for it

from ncf.data.columns import from_texts
from ncf.inference.recommender import Recommender
from ncf.serve import telemetry

log = logging.getLogger("ncf.serve")


@dataclass(frozen=True)
class Served:
    """A loaded model, ready to answer."""

    recommender: Recommender
    fingerprint: str  # of the folder's description, which holds the hash of every other file
    loaded_at: float
    has_titles: bool

    @property
    def has_seen(self) -> bool:
        """The model was saved with what its users have interacted with."""
        return self.recommender.has_seen

    @property
    def whole_numbers(self) -> bool:
        """Raw ids of users are whole numbers."""
        return not isinstance(self.recommender.some_user(), str)

    @property
    def has_popularity(self) -> bool:
        """The model was saved with what is popular."""
        return self.recommender.popularity is not None

    @cached_property
    def _searched(self) -> tuple[list[Any], Any, list[str] | None]:
        """Raw ids, the most popular first, what is searched for each, and the titles."""
        recommender = self.recommender
        items = recommender.popular(recommender.num_items)
        titles = [str(title) for title in recommender.titles(items)] if self.has_titles else None
        texts = [str(item) for item in items] if titles is None else titles
        return items, pc.utf8_lower(from_texts([text.encode() for text in texts])), titles

    def find(self, query: str, limit: int) -> tuple[list[Any], list[str] | None]:
        """Items whose title, or id where there are no titles, contains the query."""
        items, texts, titles = self._searched
        rows = pc.indices_nonzero(pc.match_substring(texts, query.lower()))[:limit].to_pylist()
        return [items[row] for row in rows], None if titles is None else [titles[row] for row in rows]


class ModelFolder:
    """The newest good model of a folder.

    A thread looks at the folder's description. A new model is read, checked by its hashes and asked once before it
    replaces the old one in a single assignment. A request keeps the model with which it began. Where the new
    one is damaged, the old one stays.

    Args:
        folder: a folder that `ncf.Recommender.save` wrote.
        interval: seconds between two looks.
        shared: a folder for the rows that the processes of one service share; by default each has its own.

    Raises:
        OSError: if the folder holds no model at the start.
        ValueError: if that model is damaged.
    """

    def __init__(
        self, folder: str | PathLike[str], interval: float = 2.0, shared: str | PathLike[str] | None = None
    ) -> None:
        self.folder, self.interval = Path(folder), interval
        self.shared = None if shared is None else Path(shared)
        self.failed: str | None = None  # fingerprint of a newer model that cannot be served
        self.current = self._load(self._fingerprint())
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ncf-model-reload", daemon=True)

    def start(self) -> None:
        """Begin to look for new models."""
        self._thread.start()

    def stop(self) -> None:
        """Stop looking."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def refresh(self) -> None:
        """Look once; a model that cannot be served is counted once and tried again at every look."""
        found = None
        try:
            found = self._fingerprint()
            if found == self.current.fingerprint:
                self.failed = None
                return
            self.current = self._load(found)
        except (OSError, ValueError, MemoryError) as error:
            if self.failed is None or self.failed != found:
                self.failed = found or "unreadable"
                telemetry.RELOADS.labels("failed").inc()
                log.warning("the new model cannot be served, the old one stays: %s", error)
        else:
            self.failed = None
            telemetry.RELOADS.labels("done").inc()
            log.info("model %s is served", found)

    def _watch(self) -> None:
        while not self._stopped.wait(self.interval):
            self.refresh()

    def _fingerprint(self) -> str:
        return sha256((self.folder / "config.json").read_bytes()).hexdigest()[:16]

    def _load(self, fingerprint: str) -> Served:
        recommender = Recommender.load(self.folder)
        recommender.recommend(recommender.some_user(), k=1)  # what is laid out late, is now
        columns = recommender.item_columns
        titled = columns is not None and "title" in columns.column_names
        if self.shared is not None:
            self._share(recommender, self.shared / f"{fingerprint}.rows")
        telemetry.MODEL_LOADED.set_to_current_time()
        return Served(recommender, fingerprint, time.time(), titled)

    def _share(self, recommender: Recommender, file: Path) -> None:
        """Map the rows from a file, and remove those of former models: what is still mapped stays readable."""
        try:
            recommender.share(file)
        except (OSError, RuntimeError) as error:
            log.warning("each worker keeps a copy of the rows: %s", error)
        for other in file.parent.glob("*.rows"):
            if other != file:
                other.unlink(missing_ok=True)
