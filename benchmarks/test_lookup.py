"""A lookup and its backward: plain gather, `EmbeddingBagCollection`, and FBGEMM's fused Adagrad."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ncf.models.embeddings import Table, UserItemEmbeddings
from ncf.utils.torchrec_import import KeyedJaggedTensor

Rate = Callable[..., None]
DIM, BATCH = 64, 8192


def _ids(rows: int) -> torch.Tensor:
    return torch.randint(0, rows, (BATCH,), generator=torch.Generator().manual_seed(0))


def _embeddings(rows: int) -> UserItemEmbeddings:
    tables = [Table("user", "user", DIM, 0.01), Table("item", "item", DIM, 0.01)]
    return UserItemEmbeddings(rows, rows, tables)


@pytest.mark.parametrize("rows", [10_000, 1_000_000])
def test_gather(rate: Rate, rows: int, copy_bandwidth: float) -> None:
    embeddings, ids = _embeddings(rows), _ids(rows)
    moved = 2 * 2 * 4 * DIM / copy_bandwidth  # read and written, two tables
    with torch.no_grad():
        rate(lambda: embeddings(ids, ids), BATCH, "pairs", rounds=50, copy_bandwidth=moved)


@pytest.mark.parametrize("rows", [10_000, 1_000_000])
def test_embedding_bag_collection(rate: Rate, rows: int, copy_bandwidth: float) -> None:
    embeddings, ids = _embeddings(rows), _ids(rows)
    lengths = torch.ones(2 * BATCH, dtype=torch.int32)

    @torch.no_grad()
    def lookup() -> None:
        embeddings.ebc(KeyedJaggedTensor(["user", "item"], torch.cat([ids, ids]), lengths=lengths)).values()

    moved = 2 * 2 * 4 * DIM / copy_bandwidth
    rate(lookup, BATCH, "pairs", rounds=50, copy_bandwidth=moved)


@pytest.mark.parametrize("rows", [10_000, 1_000_000, 5_000_000])
def test_fbgemm_forward_and_fused_row_wise_adagrad(rate: Rate, rows: int, copy_bandwidth: float) -> None:
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    table = (rows, DIM, EmbeddingLocation.HOST, ComputeDevice.CPU)
    lookup = SplitTableBatchedEmbeddingBagsCodegen([table], optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD)
    ids, offsets, gradient = _ids(rows), torch.arange(BATCH + 1), torch.ones(BATCH, DIM)
    moved = 5 * 4 * DIM / copy_bandwidth  # row read and written out, gradient read, row read and updated
    rate(lambda: lookup(ids, offsets).backward(gradient), BATCH, "rows", rounds=20, copy_bandwidth=moved)


@pytest.mark.parametrize("rows", [10_000, 1_000_000])
def test_gather_forward_and_dense_adam(rate: Rate, rows: int, copy_bandwidth: float) -> None:
    table = torch.nn.Parameter(torch.zeros(rows, DIM))
    optimizer = torch.optim.Adam([table], fused=True)
    ids, gradient = _ids(rows), torch.ones(BATCH, DIM)

    def step() -> None:
        torch.nn.functional.embedding(ids, table).backward(gradient)
        optimizer.step()
        optimizer.zero_grad()

    # Per step, not per row: values and both moments read and written, the dense gradient zeroed and read.
    moved = 8 * table.nbytes / BATCH / copy_bandwidth
    rate(step, BATCH, "rows", rounds=5, copy_bandwidth=moved)
