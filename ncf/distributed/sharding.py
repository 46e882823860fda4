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
_FUSED: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {}),
    "adagrad": (torch.optim.Adagrad, {}),
}


def shard(
    model: Any,
    sharding: str | Mapping[str, str] = "auto",
    *,
    optimizer: Literal["rowwise_adagrad", "adagrad", "sgd"] = "rowwise_adagrad",
    learning_rate: float = 0.01,
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
        optimizer: of the sharded tables.
        learning_rate: of that optimizer.
        verbose: print the plan, on rank 0.

    Returns:
        TorchRec's ``DistributedModelParallel`` around the model: call it as the model is called. Every process
        must call it, with any number of ids.

    Raises:
        ValueError: for an unknown table, a type that the device does not offer, or a table that cannot be cut so, or
            a model of another precision than float32.
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
    model: Any, sharding: str | Mapping[str, str], optimizer: str, learning_rate: float, verbose: bool
) -> nn.Module:
    from torch.distributed.optim import _apply_optimizer_in_backward  # type: ignore[attr-defined]
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
    from torchrec.distributed.planner.types import ParameterConstraints
    from torchrec.distributed.types import ShardingEnv, ShardingPlan
    from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

    device = start_processes()
    world = dist.get_world_size()
    types = _types_by_table(model, sharding, device.type, world)
    if optimizer not in ("rowwise_adagrad", *_FUSED):
        raise ValueError(f"optimizer = {optimizer!r}: choose 'rowwise_adagrad', 'adagrad' or 'sgd'")
    if other := {parameter.dtype for parameter in model.parameters()} - {torch.float32}:
        raise ValueError(
            f"the model holds {other.pop()}: sharded tables hold float32, call model.float() first"
        )
    values = {
        table.name: weight.detach()
        for table in model.embeddings.tables
        if (weight := model.embeddings.weight(table.name)).device.type != "meta"
    }
    fused, settings = _FUSED.get(optimizer, (RowWiseAdagrad, {}))
    for name, kind in types.items():
        if kind != "data_parallel":
            parameters = [model.embeddings.weight(name)]
            _apply_optimizer_in_backward(fused, parameters, {"lr": learning_rate, **settings})
    dims = {table.name: table.dim for table in model.embeddings.tables}
    constraints = {
        name: ParameterConstraints(
            min_partition=max(4, dims[name] // world // 4 * 4),  # column-wise: one part for each process
            sharding_types=[kind] if kind != "auto" else list(_CHOICES[device.type][1:]),
            compute_kernels=["dense" if kind == "data_parallel" else "fused"],
        )
        for name, kind in types.items()
    }
    sharders: list[Any] = [EmbeddingBagCollectionSharder()]
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    topology = Topology(world_size=world, local_world_size=local_world, compute_device=device.type)
    planner = EmbeddingShardingPlanner(topology=topology, constraints=constraints)
    group = dist.group.WORLD
    assert group is not None
    plan: ShardingPlan = planner.collective_plan(model, sharders, group)
    sharded: Any = DistributedModelParallel(
        model, env=ShardingEnv.from_process_group(group), device=device, plan=plan, sharders=sharders
    )
    if any(kind != "data_parallel" for kind in types.values()):
        sharded.table_optimizer = [optimizer, learning_rate]  # which a run that resumes must have as well
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
                f"table {table.name} has {table.dim} columns: FBGEMM, which holds sharded tables, wants a multiple of 4"
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
