"""The same model with its tables spread over processes by TorchRec.

Each process runs the same script under ``torchrun``. The tables are never whole on any of them: a model that is
built on the meta device has no rows, and each shard is filled with the values that its rectangle of the table
would have had in one process, so the plan and the number of processes do not change the model.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ncf.distributed.collectives import raise_on_all_ranks
from ncf.utils.warnings import silence_torchrec, suppress_warnings

_CHOICES = {
    "cpu": ("data_parallel", "table_wise", "column_wise", "table_column_wise"),
    "cuda": ("data_parallel", "table_wise", "column_wise", "table_column_wise", "row_wise", "table_row_wise"),
}
# Numbers in a table, up to which Adam over all of it costs less than an exchange of rows between processes.
_SMALL = 1 << 20
# Bytes of tables with AdamW's two moments, below which any machine holds them whole.
_ONE_PROCESS = 1 << 30
_log = logging.getLogger("ncf.distributed")
# By device, the optimizers that FBGEMM fuses into the backward of a table; AdamW has no decay there.
_OPTIMIZERS = {
    "cpu": ("rowwise_adagrad", "adagrad", "sgd"),
    "cuda": ("adamw", "partial_rowwise_adamw", "rowwise_adagrad", "adagrad", "sgd"),
}
_RATES = {"adamw": 4e-3, "partial_rowwise_adamw": 4e-3}  # as Trainer's; others 0.01
TableOptimizer = Literal["adamw", "partial_rowwise_adamw", "rowwise_adagrad", "adagrad", "sgd"]


def shard(
    model: Any,
    sharding: str | Mapping[str, str] = "auto",
    *,
    optimizer: TableOptimizer | None = None,
    learning_rate: float | None = None,
    verbose: bool = True,
) -> nn.Module:
    """Spread a model's tables over the processes of the group.

    The tables' optimizer is fused into their backward (FBGEMM): it updates the rows of the batch and never makes
    a gradient of the table's size. Data-parallel tables and the towers are left to an ordinary optimizer.
    Without a process group one is started: gloo on CPU, nccl on CUDA; a world of one needs no ``torchrun``.
    On CPUs several processes are for tables that one does not hold: a warning in the logger ``ncf.distributed`` says
    where one process is the better choice.

    Args:
        model: built with ``device="meta"``; one with values keeps them, but was whole in this process.
        sharding: one type for all tables, or a type per table, or ``"auto"``: a table of up to a million numbers is
            copied to every process (``"data_parallel"``), for others TorchRec's planner chooses. On CPU:
            ``"data_parallel"``, ``"table_wise"``, ``"column_wise"``, ``"table_column_wise"``; on CUDA also
            ``"row_wise"`` and ``"table_row_wise"``.
        optimizer: of the sharded tables. On CPU ``"rowwise_adagrad"``, the default, ``"adagrad"`` or ``"sgd"``. On CUDA
            also ``"adamw"`` and ``"partial_rowwise_adamw"``, whose second moment is one number a row; neither decays.
            There the first is the default where tables and moments take at most half of the memory, else the second.
        learning_rate: of that optimizer; by default 0.004 for these two, 0.01 for the others.
        verbose: print the plan, on rank 0.

    Returns:
        TorchRec's ``DistributedModelParallel`` around the model: call it as the model is called. Every process
        must call it, with any number of ids.

    Raises:
        ValueError: for an unknown table, a type or an optimizer that the device does not offer, a table that cannot be
            cut so, or a model of another precision than float32.
        ImportError: if TorchRec or FBGEMM cannot be loaded.

    Example::

        >>> import torch
        >>> from ncf import NeuMF
        >>> from ncf.distributed.sharding import shard
        >>> sharded = shard(NeuMF(100, 50, device="meta"), "table_wise", verbose=False)  # a world of one
        >>> sharded(torch.tensor([3, 4]), torch.tensor([7, 8])).shape
        torch.Size([2])
    """
    model.embeddings.use_torchrec()
    silence_torchrec()
    with suppress_warnings():  # also those of loggers
        sharded = _shard(model, sharding, optimizer, learning_rate, verbose)
    advice = one_process_is_better(model, model.device.type, dist.get_world_size())
    if advice and dist.get_rank() == 0:
        _log.warning("%s", advice)
    return sharded


def _shard(
    model: Any,
    sharding: str | Mapping[str, str],
    optimizer: str | None,
    learning_rate: float | None,
    verbose: bool,
) -> nn.Module:
    from torch.distributed.optim import _apply_optimizer_in_backward  # type: ignore[attr-defined]
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.types import ShardingEnv, ShardingPlan

    device = start_processes()
    world = dist.get_world_size()
    types = _types_by_table(model, sharding, device.type, world)
    if optimizer is None:
        optimizer = _optimizer_by_size(model, types, device, world)
    if optimizer not in _OPTIMIZERS[device.type]:
        choices = ", ".join(map(repr, _OPTIMIZERS[device.type]))
        raise ValueError(f"optimizer = {optimizer!r}: on {device.type} choose one of {choices}")
    rate = _RATES.get(optimizer, 0.01) if learning_rate is None else learning_rate
    if other := {parameter.dtype for parameter in model.parameters()} - {torch.float32}:
        raise ValueError(
            f"the model holds {other.pop()}: sharded tables hold float32, call model.float() first"
        )
    values = {
        table.name: weight.detach()
        for table in model.embeddings.tables
        if (weight := model.embeddings.weight(table.name)).device.type != "meta"
    }
    fused = fused_class(optimizer)
    for name, kind in types.items():
        if kind != "data_parallel":
            parameters = [model.embeddings.weight(name)]
            _apply_optimizer_in_backward(fused, parameters, {"lr": rate})
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    planner = planner_of(model, types, device.type, world, local_world)
    sharders: list[Any] = [EmbeddingBagCollectionSharder()]
    group = dist.group.WORLD
    assert group is not None
    plan: ShardingPlan = planner.collective_plan(model, sharders, group)
    sharded: Any = DistributedModelParallel(
        model, env=ShardingEnv.from_process_group(group), device=device, plan=plan, sharders=sharders
    )
    if any(kind != "data_parallel" for kind in types.values()):
        sharded.table_optimizer = [optimizer, rate]  # which a run that resumes must have as well
    with raise_on_all_ranks():
        for table in model.embeddings.tables:
            for out, row, column in rectangles(sharded, table.name):
                if table.name in values:
                    source = values[table.name][row : row + len(out), column : column + out.shape[1]]
                    with torch.no_grad():
                        out.copy_(source)
                else:
                    model.embeddings.table_fillers[table.name](out, row=row, column=column)
    if verbose and dist.get_rank() == 0:
        print(describe(plan, model))
    wrapped: nn.Module = sharded
    return wrapped


def planner_of(model: Any, types: Mapping[str, str], device: str, world: int, local_world: int) -> Any:
    """TorchRec's planner for a model: of each table the types it may choose from, and the kernel.

    Args:
        model: the model.
        types: by table, ``"auto"`` or one type.
        device: type of the device, ``"cpu"`` or ``"cuda"``.
        world: number of processes.
        local_world: number of processes on a machine.
    """
    from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
    from torchrec.distributed.planner.types import ParameterConstraints

    dims = {table.name: table.dim for table in model.embeddings.tables}
    constraints = {
        name: ParameterConstraints(
            min_partition=max(4, dims[name] // world // 4 * 4),  # column-wise: one part for each process
            sharding_types=[kind] if kind != "auto" else list(_CHOICES[device][1:]),
            compute_kernels=["dense" if kind == "data_parallel" else "fused"],
        )
        for name, kind in types.items()
    }
    topology = Topology(world_size=world, local_world_size=local_world, compute_device=device)
    return EmbeddingShardingPlanner(topology=topology, constraints=constraints)


def fused_class(name: str) -> type[torch.optim.Optimizer]:
    """The class that TorchRec hands to FBGEMM, to be fused into a table's backward.

    Example::

        >>> from ncf.distributed.sharding import fused_class
        >>> from torchrec.distributed.utils import optimizer_type_to_emb_opt_type
        >>> [str(optimizer_type_to_emb_opt_type(fused_class(name))) for name in ("adamw", "partial_rowwise_adamw")]
        ['adam', 'partial_row_wise_adam']
    """
    from torchrec.optim.optimizers import PartialRowWiseAdam
    from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

    classes: dict[str, type[torch.optim.Optimizer]] = {
        "adamw": torch.optim.Adam,
        "partial_rowwise_adamw": PartialRowWiseAdam,
        "rowwise_adagrad": RowWiseAdagrad,
        "adagrad": torch.optim.Adagrad,
        "sgd": torch.optim.SGD,
    }
    return classes[name]


def _optimizer_by_size(model: Any, types: Mapping[str, str], device: torch.device, world: int) -> str:
    """The optimizer of sharded tables where none is named."""
    if device.type == "cpu":
        return "rowwise_adagrad"
    rows = model.embeddings.rows
    numbers = sum(
        rows[table.side] * table.dim
        for table in model.embeddings.tables
        if types[table.name] != "data_parallel"
    )
    memory = torch.cuda.get_device_properties(device).total_memory
    return "adamw" if 12 * numbers <= world * memory / 2 else "partial_rowwise_adamw"


def count_steps(sharded: nn.Module, done: int) -> None:
    """Tell the optimizers in the tables' backward how many steps there were; those of AdamW correct their bias by it.

    FBGEMM counts its lookups, those of an evaluation as well, and the count is no part of TorchRec's optimizer state.

    Args:
        sharded: what `shard` returned; nothing happens for another model.
        done: steps done.
    """
    inner: Any = getattr(sharded, "module", sharded)
    collection = getattr(getattr(inner, "embeddings", None), "ebc", None)
    for lookup in getattr(collection, "_lookups", ()):
        for module in lookup.modules():
            if hasattr(module, "iter_cpu"):
                module.iter_cpu.fill_(done)
                module.iter.fill_(done)


def one_process_is_better(model: Any, device: str, world: int) -> str | None:
    """Advice to train in one process, where several would share small tables on CPUs.

    Args:
        model: the model.
        device: type of the device, ``"cpu"`` or ``"cuda"``.
        world: number of processes.

    Returns:
        The advice with the measured ratio, or ``None`` where several processes are right: on GPUs, and where the tables
        with the two moments of AdamW take a gibibyte or more.

    Example::

        >>> from ncf import GMF
        >>> from ncf.distributed.sharding import one_process_is_better
        >>> print(one_process_is_better(GMF(943, 1682, device="meta"), "cpu", 2))
        2 processes share 0.25 MB of tables and moments: on CPUs one process without shard() trains faster. ...
        >>> print(one_process_is_better(GMF(10**7, 10**6, factors=32, device="meta"), "cpu", 2))
        None
    """
    rows = {"user": model.num_users, "item": model.num_items}
    held = 3 * 4 * sum(rows[table.side] * table.dim for table in model.embeddings.tables)
    if device != "cpu" or world == 1 or held >= _ONE_PROCESS:
        return None
    return (
        f"{world} processes share {held / 1e6:,.2f} MB of tables and moments: on CPUs one process without shard() "
        "trains faster. Two processes were measured at 0.07 to 0.45 of the rate of one, see Time on the page Sharding "
        "of the documentation"
    )


def rectangles(sharded: nn.Module, table: str) -> Iterator[tuple[Tensor, int, int]]:
    """The parts of a table that this process holds.

    Args:
        sharded: what `shard` returned.
        table: name of the table.

    Yields:
        The values ``[R, D]``, which may be written, and the first row and column of the table that they are.

    Example::

        >>> from ncf import GMF
        >>> from ncf.distributed.sharding import rectangles, shard
        >>> sharded = shard(GMF(10, 20, device="meta"), "table_wise", verbose=False)  # a world of one
        >>> [(tuple(values.shape), row, column) for values, row, column in rectangles(sharded, "user_gmf")]
        [((10, 8), 0, 0)]
    """
    weight = sharded.state_dict()[f"embeddings.ebc.embedding_bags.{table}.weight"]
    if isinstance(weight, Tensor) and not hasattr(weight, "local_shards"):
        yield weight.detach(), 0, 0
        return
    for local in weight.local_shards():
        row, column = local.metadata.shard_offsets
        yield local.tensor.detach(), row, column


def describe(plan: Any, model: Any) -> str:
    """A plan as a table: each table's size, how it is cut, and where the parts are.

    Example::

        >>> from ncf import GMF
        >>> from ncf.distributed.sharding import describe, shard
        >>> sharded = shard(GMF(10, 20, device="meta"), "table_wise", verbose=False)  # a world of one
        >>> print(describe(sharded.plan, sharded.module))
        table                rows  columns         MB  sharding           ranks
        user_gmf               10        8        0.0  table_wise         0
        item_gmf               20        8        0.0  table_wise         0
    """
    lines = [f"{'table':12} {'rows':>12} {'columns':>8} {'MB':>10}  {'sharding':18} ranks"]
    sizes = model.embeddings.rows
    for tables in plan.plan.values():
        for table in model.embeddings.tables:
            cut, rows = tables[table.name], sizes[table.side]
            megabytes = 4 * rows * table.dim / 1e6
            ranks = ", ".join(map(str, cut.ranks))
            lines.append(
                f"{table.name:12} {rows:12,} {table.dim:8} {megabytes:10,.1f}  {cut.sharding_type:18} {ranks}"
            )
    return "\n".join(lines)


def _types_by_table(model: Any, sharding: str | Mapping[str, str], device: str, world: int) -> dict[str, str]:
    names = [table.name for table in model.embeddings.tables]
    types = dict.fromkeys(names, sharding) if isinstance(sharding, str) else dict(sharding)
    if unknown := sorted(types.keys() - set(names)):
        raise ValueError(f"sharding names the table {unknown[0]!r}: the model has {', '.join(names)}")
    types = {name: types.get(name, "auto") for name in names}
    rows = model.embeddings.rows
    for table in model.embeddings.tables:
        kind = types[table.name]
        if kind == "auto" and rows[table.side] * table.dim <= _SMALL:
            types[table.name] = "data_parallel"
        if kind in ("row_wise", "table_row_wise") and kind in _CHOICES[device] and rows[table.side] < world:
            raise ValueError(
                f"table {table.name} has {rows[table.side]} rows for {world} processes: choose another type than {kind}"
            )
        if kind not in ("auto", *_CHOICES[device]):
            choices = ", ".join(map(repr, ("auto", *_CHOICES[device])))
            raise ValueError(f"sharding of {table.name} = {kind!r}: on {device} choose one of {choices}")
        if table.dim % 4:
            raise ValueError(
                f"table {table.name} has {table.dim} columns: FBGEMM, which holds sharded tables, needs a multiple of 4"
            )
        if kind == "column_wise" and table.dim < 4 * world:
            raise ValueError(
                f"table {table.name} has {table.dim} columns: column_wise over {world} processes needs {4 * world}, "
                "4 for each"
            )
    return types


def start_processes(timeout: float = 300.0) -> torch.device:
    """Join the processes that ``torchrun`` started, or be a world of one; `shard` does it too.

    Args:
        timeout: seconds after which a process that waits for another in vain gives up.

    Returns:
        This process's device: a GPU of its own where there are any.

    Example::

        >>> from ncf.distributed.collectives import world_size
        >>> from ncf.distributed.sharding import start_processes
        >>> device = start_processes()  # without torchrun a world of one
        >>> world_size()
        1
    """
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if not dist.is_initialized():
        # Counts, ranks and messages are CPU tensors on any machine.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        alone: dict[str, Any] = {}
        if "RANK" not in os.environ:
            alone = {"store": dist.HashStore(), "rank": 0, "world_size": 1}  # type: ignore[attr-defined]
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout), **alone)
    return device
