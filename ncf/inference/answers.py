"""The results of a `Recommender`: lists of users, and neighbours of items."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from ncf.data.arrow import pa


@dataclass(frozen=True, eq=False)
class Recommendations:
    """The best items of each user, best first; ``items, scores = recommend(...)`` unpacks them.

    Args:
        users: raw ids, ``[U]``; ``None`` for a list that answers a history.
        items: raw item ids per user; fewer than ``k`` where fewer may be offered.
        scores: their scores, ``[U, k]``; ``-inf`` past the end of a shorter list.
        sources: what made each list: ``"model"``, ``"history"``, ``"popularity"``, ``"prior"``, or ``"skipped"``.

    Example::

        >>> import torch
        >>> from ncf.inference import Recommendations
        >>> lists = Recommendations(["ann"], [["tea", "milk"]], torch.tensor([[0.75, 0.25]]), ["model"])
        >>> lists.to_arrow().to_pylist()[1]
        {'user': 'ann', 'rank': 1, 'item': 'milk', 'score': 0.25, 'source': 'model'}
    """

    users: list[Any]
    items: list[list[Any]]
    scores: Tensor
    sources: list[str]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.items, self.scores))

    def __repr__(self) -> str:
        return f"Recommendations({len(self)} users, up to {self.scores.shape[1]} items each)"

    def to_arrow(self) -> Any:
        """Return a `pyarrow.Table` with a row per user and item: user, rank (0 is best), item, score, source."""
        lengths = [len(listed) for listed in self.items]
        rows = [row for row, length in enumerate(lengths) for _ in range(length)]
        ranks = [rank for length in lengths for rank in range(length)]
        return pa.table(
            {
                "user": [self.users[row] for row in rows],
                "rank": pa.array(ranks, pa.int64()),
                "item": [item for listed in self.items for item in listed],
                "score": pa.array(self.scores[rows, ranks].tolist(), pa.float64()),
                "source": pa.array([self.sources[row] for row in rows], pa.string()),
            }
        )

    def to_pandas(self) -> Any:
        """Return the table of `to_arrow` as a `pandas.DataFrame`."""
        return self.to_arrow().to_pandas()


class Neighbours(NamedTuple):
    """Items and how near they are, nearest first.

    Args:
        items: raw item ids, one list for each given item.
        scores: ``[n, k]``, float32; ``-inf`` past the end of a shorter list.

    Example::

        >>> from ncf import GMF, Recommender
        >>> near = Recommender(GMF(5, 20)).similar([3], k=4)
        >>> len(near.items[0]), near.scores.shape
        (4, torch.Size([1, 4]))
    """

    items: list[list[Any]]
    scores: Tensor
