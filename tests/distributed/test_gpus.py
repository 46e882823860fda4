"""Sharded tables on GPUs: what a machine without one can show, and tests that run where there are GPUs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from ncf.distributed.checkpoint import Checkpoints
from ncf.distributed.rowwise_adagrad import changed_column_splits
from ncf.distributed.sharding import (
    _optimizer_by_size as optimizer_by_size,
)  # what `shard` takes without a name
from ncf.distributed.sharding import _types_by_table as types_by_table
from ncf.distributed.sharding import count_steps, fused_class, planner_of, shard, start_processes
from ncf.training.losses import binary_cross_entropy
from ncf.training.optimizers import RowSparse, make_optimizer, state_tensors
from ncf.utils.warnings import silence_torchrec, suppress_warnings

from .test_sharding import batch, build, check_tables
from .workers import launch

CUDA_TYPES = ["data_parallel", "table_wise", "column_wise", "table_column_wise", "row_wise", "table_row_wise"]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
needs_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@pytest.mark.parametrize("kind", CUDA_TYPES)
def test_every_type_reaches_the_planner(kind: str) -> None:
    """TorchRec plans for GPUs that are not there."""
    silence_torchrec()
    with suppress_warnings():
        from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder

        model = build("meta")
        model.embeddings.use_torchrec()
        types = types_by_table(model, kind, "cuda", 2)
        plan = planner_of(model, types, "cuda", 2, 2).plan(model, [EmbeddingBagCollectionSharder()])
    (tables,) = plan.plan.values()
    assert {cut.sharding_type for cut in tables.values()} == {kind}
    assert {cut.compute_kernel for cut in tables.values()} == {
        "dense" if kind == "data_parallel" else "fused"
    }
    if kind in ("row_wise", "table_row_wise"):
        assert all(len(cut.sharding_spec.shards) == 2 for cut in tables.values())


def test_the_optimizer_of_large_tables_has_less_state() -> None:
    cuda, model = torch.device("cuda", 0), build("meta")
    types = dict.fromkeys((table.name for table in model.embeddings.tables), "row_wise")
    numbers = (50 + 70) * (16 + 16)
    for world, memory, expected in [
        (1, 24 * numbers, "adamw"),
        (1, 24 * numbers - 1, "partial_rowwise_adamw"),
        (2, 12 * numbers, "adamw"),
    ]:
        found = SimpleNamespace(total_memory=memory)
        with mock.patch("torch.cuda.get_device_properties", return_value=found):
            assert optimizer_by_size(model, types, cuda, world) == expected
            copied = dict.fromkeys(types, "data_parallel")
            assert optimizer_by_size(model, copied, cuda, world) == "adamw"
    assert optimizer_by_size(model, types, torch.device("cpu"), 1) == "rowwise_adagrad"


@pytest.mark.parametrize(("name", "second"), [("adamw", (800,)), ("partial_rowwise_adamw", (50,))])
def test_fbgemm_is_built_with_the_settings_of_the_reference(name: str, second: tuple[int]) -> None:
    """Its tables of a GPU, without memory: moments, their decay rates, and no decay of weights."""
    silence_torchrec()
    with suppress_warnings():
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            ComputeDevice,
            SplitTableBatchedEmbeddingBagsCodegen,
        )
        from torchrec.distributed.utils import (
            convert_to_fbgemm_types,
            merge_fused_params,
            optimizer_type_to_emb_opt_type,
        )

    kind = optimizer_type_to_emb_opt_type(fused_class(name))
    settings = convert_to_fbgemm_types(merge_fused_params({}, {"lr": 0.1, "optimizer": kind}))
    tables = SplitTableBatchedEmbeddingBagsCodegen(
        [(50, 16, EmbeddingLocation.DEVICE, ComputeDevice.CUDA)], device=torch.device("meta"), **settings
    )
    own = RowSparse([{"params": [torch.nn.Parameter(torch.zeros(1, 1))]}], rule="adamw").param_groups[0]
    found = tables.optimizer_args
    assert (found.beta1, found.beta2, found.eps, found.weight_decay) == (*own["betas"], own["eps"], 0.0)
    assert tables.optimizer == kind
    shapes = {key: tuple(value.shape) for key, value in tables.named_buffers()}
    assert (shapes["momentum1_dev"], shapes["momentum2_dev"]) == ((800,), second)


def fbgemm_adam(table: Tensor, steps: list[tuple[Tensor, Tensor]], rate: float, by_row: bool) -> Tensor:
    """FBGEMM's formula, a row at a time: moments of the batch's rows, corrections by the number of all steps."""
    table = table.clone().double()
    mean, square = torch.zeros_like(table), torch.zeros_like(table)
    for number, (ids, gradients) in enumerate(steps, 1):
        for row in ids.unique().tolist():
            gradient = gradients[ids == row].double().sum(0)
            squares = gradient.square().mean() if by_row else gradient.square()
            mean[row] = 0.9 * mean[row] + 0.1 * gradient
            square[row] = 0.999 * square[row] + 0.001 * squares
            root = (square[row] / (1 - 0.999**number)).sqrt() + 1e-8
            table[row] -= rate * mean[row] / (1 - 0.9**number) / root
    return table


def test_the_reference_has_the_rule_of_fbgemms_adam() -> None:
    """Where a table has one column, partial row-wise AdamW is the same."""
    for columns, by_row in ((5, False), (1, True)):
        generator = torch.Generator().manual_seed(columns)
        start = torch.randn(9, columns, generator=generator)
        steps = [
            (torch.randint(9, (6,), generator=generator), torch.randn(6, columns, generator=generator))
            for _ in range(7)
        ]
        table = torch.nn.Parameter(start.clone())
        optimizer = RowSparse([{"params": [table], "rows": True, "lr": 0.1}], rule="adamw")
        for ids, gradients in steps:
            table.grad = torch.sparse_coo_tensor(ids[None], gradients, table.shape, check_invariants=False)
            optimizer.step()
        torch.testing.assert_close(
            table.data.double(), fbgemm_adam(start, steps, 0.1, by_row), rtol=1e-5, atol=1e-6
        )


def test_the_second_moment_by_row_follows_another_cut_of_the_columns() -> None:
    """As row-wise Adagrad's sum does: both are means over a row."""
    weight = "model.embeddings.ebc.embedding_bags.user_gmf.weight"
    whole, halves = ((0, 16),), ((0, 8), (8, 8))

    def cut(columns: tuple[tuple[int, int], ...]) -> dict[str, Any]:
        return {
            weight: (((50, 16), "torch.float32"), columns),
            "fused.user_gmf.momentum1": (((50, 16), "torch.float32"), columns),
            "fused.user_gmf.exp_avg_sq": (((50 * len(columns),), "torch.float32"), ()),
        }

    assert changed_column_splits(cut(halves), cut(whole)) == {"fused.user_gmf.exp_avg_sq": (whole, halves)}


def counted(rank: int, world: int) -> None:
    sharded: Any = shard(build("meta"), "table_wise", verbose=False)
    count_steps(sharded, 7)
    modules = [m for lookup in sharded.module.embeddings.ebc._lookups for m in lookup.modules()]
    counts = [int(module.iter_cpu) for module in modules if hasattr(module, "iter_cpu")]
    assert counts
    assert set(counts) == {7}
    count_steps(build(), 7)  # nothing to tell


def test_fbgemm_is_told_the_number_of_steps() -> None:
    launch(counted, 1)


def steps_and_checkpoints(
    rank: int, world: int, optimizer: str, kinds: tuple[str, ...], folder: Path
) -> None:
    """Scores, six steps, and a checkpoint that is read under every plan."""
    device = start_processes()
    for number, kind in enumerate(kinds):
        local = build().to(device)
        sharded = _sharded(kind, optimizer)
        check_tables(sharded, local, 1e-6)
        users, items = (ids.to(device) for ids in batch(rank, 0))
        with torch.no_grad():
            torch.testing.assert_close(sharded(users, items), local(users, items), atol=1e-5, rtol=0)
        own = make_optimizer(local, "adamw", learning_rate=0.01)
        dense = make_optimizer(sharded, "adamw", learning_rate=0.01)
        count_steps(sharded, 0)
        for step in range(6):
            losses = [
                binary_cross_entropy(local(*(ids.to(device) for ids in batch(peer, step))))
                for peer in range(world)
            ]
            own.zero_grad()
            torch.stack(losses).mean().backward()
            own.step()
            dense.zero_grad()
            binary_cross_entropy(sharded(*(ids.to(device) for ids in batch(rank, step)))).backward()
            dense.step()
        if optimizer == "adamw":
            check_tables(sharded, local, 1e-3)
        Checkpoints(folder / kind).save(_state(sharded, dense), {}, step=number)
        newest = Checkpoints(folder / kind).latest()
        assert newest is not None
        for other in kinds:
            again = _sharded(other, optimizer)
            with torch.no_grad():
                for value in again.parameters():
                    value.zero_()
            newest.read(_state(again, make_optimizer(again, "adamw", learning_rate=0.01)))
            with torch.no_grad():
                torch.testing.assert_close(again(users, items), sharded(users, items), atol=1e-6, rtol=0)


def _sharded(kind: str, optimizer: str) -> Any:
    return shard(build("meta"), kind, optimizer=optimizer, learning_rate=0.01, verbose=False)  # type: ignore[arg-type]


def _state(sharded: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    weights = {f"model.{name}": value for name, value in sharded.module.state_dict().items()}
    return weights | state_tensors(sharded, optimizer)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_gpus_are_tested_by_runs(tmp_path: Path) -> None:
    """Under the types and the optimizer that CPUs have."""
    launch(steps_and_checkpoints, 2, "rowwise_adagrad", ("table_wise", "column_wise"), tmp_path)


@needs_gpu
@pytest.mark.parametrize("optimizer", ["adamw", "partial_rowwise_adamw", "rowwise_adagrad"])
def test_one_gpu(tmp_path: Path, optimizer: str) -> None:
    launch(steps_and_checkpoints, 1, optimizer, tuple(CUDA_TYPES[1:]), tmp_path)


@needs_gpus
@pytest.mark.parametrize("optimizer", ["adamw", "partial_rowwise_adamw", "rowwise_adagrad"])
def test_two_gpus(tmp_path: Path, optimizer: str) -> None:
    launch(steps_and_checkpoints, 2, optimizer, tuple(CUDA_TYPES[1:]), tmp_path)


def cut_by_rows(rank: int, world: int, folder: Path) -> None:
    """Tables cut by rows, which TorchRec has on GPUs only: written so, read whole, by columns, and by other rows."""
    import torch.distributed as dist
    from torch.distributed._shard.sharded_tensor import Shard, init_from_local_shards

    start_processes()
    whole = {"model.table": torch.arange(11 * 4.0).view(11, 4), "fused.table.momentum1": torch.arange(11.0)}

    def cut(values: dict[str, Tensor], at: int) -> dict[str, Any]:
        place = slice(0, at) if rank == 0 else slice(at, 11)
        parts = {}
        for name, value in values.items():
            offsets = [place.start, *([0] * (value.dim() - 1))]
            local = Shard.from_tensor_and_offsets(value[place].clone(), offsets, rank)
            parts[name] = init_from_local_shards([local], *value.shape)
        return parts

    Checkpoints(folder).save(cut(whole, 6), {}, step=1)
    dist.barrier()
    newest = Checkpoints(folder).latest()
    assert newest is not None
    read = {name: torch.zeros_like(value) for name, value in whole.items()}
    newest.read(read)  # as a table that one process holds
    assert all(torch.equal(read[name], value) for name, value in whole.items())
    other = cut({name: torch.zeros_like(value) for name, value in whole.items()}, 3)
    newest.read(other)
    for name, value in whole.items():
        (part,) = other[name].local_shards()
        assert torch.equal(part.tensor, value[:3] if rank == 0 else value[3:])


@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two processes need two GPUs or none")
def test_a_checkpoint_of_tables_cut_by_rows_is_read_under_other_cuts(tmp_path: Path) -> None:
    launch(cut_by_rows, 2, tmp_path)
