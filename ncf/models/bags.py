"""An id's row and its features' rows, which lie behind the ids' rows of the same table, as one bag."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ncf.utils.seeding import normal_rows

if TYPE_CHECKING:
    from ncf.data.features import Features
    from ncf.data.vocabulary import Vocabulary

_ROWS_PER_BLOCK = 1 << 16


class FeatureBags(nn.Module):
    """The features of one side's ids, as buffers of a model.

    Args:
        features: of the side's ids; or what ``sizes`` was, for buffers that are loaded later.
        size: how many ids there are.
        device: of the buffers.

    Raises:
        TypeError: if they are a table, and not `Features`.
        ValueError: if there are features for another number of ids.

    Example::

        >>> import torch
        >>> from ncf import Features
        >>> from ncf.models.bags import FeatureBags
        >>> features = Features.from_table({"film": ["Alien", "Brazil"], "genre": ["horror", "satire"]}, "film")
        >>> FeatureBags(features, 2, "cpu")(torch.tensor([1]), 0.0)
        (tensor([1, 3]), tensor([2]), tensor([1., 1.]))
    """

    offsets: Tensor
    rows: Tensor
    weights: Tensor
    names: Tensor

    def __init__(
        self, features: Features | Mapping[str, int], size: int, device: torch.device | str | None
    ) -> None:
        super().__init__()
        self.size = size
        if isinstance(features, Mapping):
            if set(features) != {"rows", "entries", "bytes"}:
                raise TypeError(
                    "features are a dict: read it with Features.from_table(table, id_column, ids=train.item_ids)"
                )
            self.sizes = dict(features)
            offsets = torch.empty(size + 1, dtype=torch.int64, device="cpu")
            rows = torch.empty(self.sizes["entries"], dtype=torch.int64, device="cpu")
            weights = torch.empty(self.sizes["entries"], dtype=torch.float32, device="cpu")
            names = torch.empty(self.sizes["bytes"], dtype=torch.uint8, device="cpu")
        else:
            if len(features) != size:
                raise ValueError(
                    f"features of {len(features)} ids for {size}: read them with the vocabulary of the interactions, "
                    "Features.from_table(..., ids=train.item_ids)"
                )
            offsets, rows, weights = (
                each.clone() for each in (features.offsets, features.rows, features.weights)
            )
            names = torch.frombuffer(bytearray(features.description()), dtype=torch.uint8)
            self.sizes = {"rows": len(features.names), "entries": len(rows), "bytes": len(names)}
        for name, value in {"offsets": offsets, "rows": rows, "weights": weights, "names": names}.items():
            self.register_buffer(name, value if device is None else value.to(device))

    def features(self, ids: Vocabulary | None = None) -> Features:
        """The features as they were given."""
        from ncf.data.features import Features

        tensors = {name: getattr(self, name).detach().cpu() for name in ("offsets", "rows", "weights")}
        tensors["weights"] = tensors["weights"].to(torch.float32)
        return Features.described(bytes(self.names.cpu().numpy()), **tensors, ids=ids)

    def forward(self, ids: Tensor, dropout: float) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of the table for ids, ``[n]``, one bag for each: the id's own row comes first.

        Args:
            ids: ``[n]``, int64.
            dropout: probability with which the own row of an id that has features counts nothing.

        Returns:
            Rows ``[N]``, the length of each bag ``[n]``, and the rows' weights ``[N]``.
        """
        start = self.offsets[ids]
        lengths = self.offsets[ids + 1] - start + 1
        own = lengths.cumsum(0) - lengths
        moved = (start - 1 - own).repeat_interleave(lengths)
        entries = torch.arange(len(moved), dtype=torch.int64, device=ids.device) + moved
        kept = torch.ones(len(ids), dtype=self.weights.dtype, device=ids.device)
        if dropout:
            kept[
                (torch.rand(kept.shape, dtype=torch.float32, device=ids.device) < dropout) & (lengths > 1)
            ] = 0
        if not len(self.rows):
            return ids, lengths, kept
        entries[own] = 0
        rows, weights = self.rows[entries] + self.size, self.weights[entries]
        rows[own], weights[own] = ids, kept
        return rows, lengths, weights

    def pool(self, weight: Tensor, bags: tuple[Tensor, Tensor, Tensor], sparse: bool = False) -> Tensor:
        """Weighted sums of rows of a table, ``[n, D]``; ``bags`` is what ``forward`` returned."""
        rows, lengths, weights = bags
        starts = lengths.cumsum(0) - lengths
        return F.embedding_bag(
            rows, weight, starts, mode="sum", sparse=sparse, per_sample_weights=weights.to(weight.dtype)
        )

    def pooled(self, weight: Tensor) -> Tensor:
        """The sums of all ids, ``[size, D]``."""
        ids = torch.arange(self.size, dtype=torch.int64, device=weight.device)
        return torch.cat([self.pool(weight, self(part, 0.0)) for part in ids.split(_ROWS_PER_BLOCK)])

    def fill(
        self, out: Tensor, *, row: int, column: int, std: float, seed: int, table: str, width: int
    ) -> None:
        """Fill a rectangle of a table: zero for ids with features, which stand in for them; see `normal_rows`."""
        draw = partial(normal_rows, std=std, seed=seed, width=width, column=column)
        cut = min(max(self.size - row, 0), len(out))
        draw(out[:cut], table=table, row=row)
        has_features = (self.offsets.diff() > 0)[row : row + cut].to(out.device)
        with torch.no_grad():
            out[:cut][has_features] = 0.0
        draw(out[cut:], table=f"{table} features", row=row + cut - self.size)


def table_rows(bags: Any, size: int) -> int:
    """The rows of a side's tables: first of the ids, then of the features, if there are any."""
    return size if bags is None else size + int(bags.sizes["rows"])
