"""Checkpoints of several processes: read by another number of them, with other plans, after failures and kills."""

from __future__ import annotations

import os
import random
import resource
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import Shard, init_from_local_shards

from ncf import MatrixFactorization
from ncf.distributed.checkpoint import Checkpoint, Checkpoints
from ncf.distributed.sharding import shard
from ncf.models.base import EmbeddingModel
from ncf.utils.warnings import suppress_warnings

from .workers import fork, statuses

RATE, EPS = 0.1, 1e-8


def in_group(rank: int, world: int, work: Callable[..., None], *arguments: object) -> None:
    dist.init_process_group("gloo")
    work(rank, world, *arguments)


# Resharding. The model is a dot product and the ids of a step are distinct, so no sum is taken in an order that
# depends on the processes, and each has a multiple of 32 pairs, so that PyTorch rounds all of them alike: equal
# means equal to the bit.


class Run:
    """A sharded model, its optimizers, and their tensors as a checkpoint wants them."""

    def __init__(self, optimizer: str, plan: str, seed: int) -> None:
        self.local = MatrixFactorization(200, 150, factors=14, init_std=0.5, seed=seed, device="meta")
        self.sharded: Any = shard(self.local, plan, optimizer=optimizer, learning_rate=RATE, verbose=False)  # type: ignore[arg-type]
        # The bias is left as it is: its gradient is a sum over the processes.
        tables = [p for name, p in self.sharded.named_parameters() if "embedding_bags" in name]
        self.dense = torch.optim.SGD(tables, lr=RATE) if plan == "data_parallel" else None

    def tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": value for name, value in self.sharded.state_dict().items()}
        for states in self.sharded.fused_optimizer.state_dict()["state"].values():
            tensors |= {f"fused.{name}": value for name, value in states.items()}
        return tensors

    def step(self, number: int) -> None:
        users, items = batch(number)
        part = slice(dist.get_rank(), None, dist.get_world_size())
        loss = nn.functional.softplus(self.sharded(users[part], items[part])).mean()
        if self.dense is not None:
            self.dense.zero_grad()
        loss.backward()
        if self.dense is not None:
            self.dense.step()


def batch(number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return torch.randperm(200, generator=generator)[:128], torch.randperm(150, generator=generator)[:128]


def parts(tensor: Any) -> Iterator[tuple[Tensor, tuple[slice, ...]]]:
    """What this process has of a tensor, and where in the whole it lies."""
    if not hasattr(tensor, "local_shards"):
        yield tensor.detach(), (...,)  # type: ignore[misc]
        return
    for local in tensor.local_shards():
        metadata = local.metadata
        place = zip(metadata.shard_offsets, metadata.shard_sizes, strict=True)
        yield local.tensor.detach(), tuple(slice(offset, offset + size) for offset, size in place)


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor put together from all processes, without the code that is tested."""
    own = {
        name: (
            tuple(tensor.metadata().size) if hasattr(tensor, "metadata") else tuple(tensor.shape),
            list(parts(tensor)),
        )
        for name, tensor in tensors.items()
    }
    everyones: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, own)
    result: dict[str, Tensor] = {}
    for each in everyones:
        for name, (shape, pieces) in each.items():
            result.setdefault(name, torch.full(shape, torch.nan, dtype=torch.float32))
            for values, place in pieces:
                result[name][place] = values
    return result


def column_parts(tensor: Any) -> int:
    if not hasattr(tensor, "metadata"):
        return 1
    return len({each.shard_offsets[1] for each in tensor.metadata().shards_metadata})


def table(name: str) -> str:
    return name.split(".")[-2]


def expected_state(before: dict[str, Tensor], name: str, columns: int) -> Tensor:
    """A tensor as it should be read: row-wise sums are spread over their columns and averaged over the new parts."""
    values = before[name]
    if not name.startswith("fused.") or values.dim() > 1:
        return values
    weight = before[f"model.embeddings.ebc.embedding_bags.{name.split('.')[1]}.weight"]
    rows, dim = weight.shape
    per_part = values.double().view(-1, rows).T  # [rows, old parts]
    per_column = per_part.repeat_interleave(dim // per_part.shape[1], dim=1)  # [rows, dim]
    return per_column.view(rows, columns, -1).mean(2).T.reshape(-1).float()


def reference_step(
    state: dict[str, Tensor], sums: dict[str, Tensor], model: EmbeddingModel, number: int
) -> dict[str, Tensor]:
    """Row-wise Adagrad written out: a sum of mean squares for each row of each part of the columns."""
    model.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
    users, items = batch(number)
    loss = nn.functional.softplus(model(users, items)).mean()
    loss.backward()
    after = {}
    for name, value in model.named_parameters():
        if "embedding_bags" not in name:
            continue
        assert value.grad is not None
        rows = len(value)
        old = sums[table(name)].view(-1, rows).T.unsqueeze(2)  # [rows, parts, 1]
        gradient = value.grad.view(rows, old.shape[1], -1)  # [rows, parts, columns]
        scale = (old + gradient.square().mean(2, keepdim=True)).sqrt() + EPS
        after[f"model.{name}"] = value.detach() - RATE * (gradient / scale).flatten(1)
    return after


def check(read: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, tensor in read.items():
        for values, place in parts(tensor):
            torch.testing.assert_close(values, expected[name][place], rtol=0, atol=0)


def read_and_go_on(run: Run, source: Path, optimizer: str, plan: str) -> None:
    checkpoint = Checkpoints(source).latest()
    assert checkpoint is not None
    tensors = run.tensors()
    checkpoint.read(tensors)
    saved = torch.load(source / "whole.pt")
    before = saved["before"]
    weights = {name: value for name, value in tensors.items() if name.startswith("model.")}
    cuts = {table(name): column_parts(value) for name, value in weights.items()}
    state = {
        name: expected_state(before, name, cuts.get(name.split(".")[1], 1)) if name in before else None
        for name in before
    }
    check(tensors, state)  # type: ignore[arg-type]
    if optimizer == "rowwise_adagrad":
        sums = {name.split(".")[1]: value for name, value in state.items() if name.startswith("fused.")}
        local = MatrixFactorization(200, 150, factors=14)
        reference = reference_step({name: before[name] for name in weights}, sums, local, 3)  # type: ignore[arg-type]
    run.step(3)
    if optimizer != "rowwise_adagrad" or saved["cuts"] == cuts:
        check({name: run.tensors()[name] for name in weights}, saved["after"])
    if optimizer == "rowwise_adagrad":
        for name in weights:
            for values, place in parts(run.tensors()[name]) if name in reference else ():
                torch.testing.assert_close(values, reference[name][place], atol=2e-6, rtol=0)


def save_and_go_on(run: Run, target: Path) -> None:
    tensors = run.tensors()
    Checkpoints(target).save(tensors, {}, step=3)
    cuts = {table(name): column_parts(value) for name, value in tensors.items() if name.startswith("model.")}
    saved = {"before": whole(tensors), "cuts": cuts}
    run.step(3)
    saved["after"] = whole(run.tensors())
    if dist.get_rank() == 0:
        torch.save(saved, target / "whole.pt")
    dist.barrier()


def reshard(_: int, world: int, folder: Path, sources: dict[str, list[Path]], plans: list[str]) -> None:
    """Under each plan: train, save, and read what this and all jobs before have saved."""
    warnings.simplefilter("ignore")
    for optimizer, theirs in sources.items():
        own = []
        for plan in plans:
            if plan == "data_parallel" and optimizer != "sgd":
                continue
            run = Run(optimizer, plan, seed=world)
            for step in range(3):
                run.step(step)
            own.append(folder / f"{optimizer}-{plan}")
            save_and_go_on(run, own[-1])
            for source in [*theirs, *own]:
                read_and_go_on(run, source, optimizer, plan)
    if world == 2:
        other_optimizers(folder)


def other_optimizers(folder: Path) -> None:
    fused = Checkpoints(folder / "rowwise_adagrad-table_wise").latest()
    plain = Checkpoints(folder / "sgd-data_parallel").latest()
    assert fused is not None
    assert plain is not None
    with pytest.raises(
        ValueError, match=r"has not the state of an optimizer fused .* it has: it was sharded"
    ):
        fused.read(Run("sgd", "data_parallel", seed=1).tensors())
    with pytest.raises(
        ValueError, match=r"has the state of an optimizer fused .* it has not: it was data-parallel"
    ):
        plain.read(Run("rowwise_adagrad", "table_wise", seed=1).tensors())


@pytest.mark.slow
def test_a_checkpoint_opens_on_any_number_of_processes_with_any_plan(tmp_path: Path) -> None:
    """1, 2, 4 and again 1 processes: each job reads what those before it saved, under each of its plans."""
    with suppress_warnings():
        import torchrec.distributed.model_parallel
        import torchrec.distributed.planner  # noqa: F401 - once, and not in each process

    sources: dict[str, list[Path]] = {"sgd": [], "adagrad": [], "rowwise_adagrad": []}
    for number, world in enumerate((1, 2, 4, 1)):
        folder = tmp_path / str(number)
        plans = ["table_wise"] if world == 1 else ["table_wise", "column_wise", "data_parallel"]
        assert statuses(fork(in_group, world, reshard, folder, sources, plans)) == [0] * world
        for path in folder.iterdir():
            sources[path.name.split("-")[0]].append(path)


# Failures.


def sharded(rank: int, world: int, value: float, rows: int = 6) -> dict[str, Tensor]:
    """A tensor of ``rows`` for each process, and one that all have."""
    metadata = ShardMetadata([rank * rows, 0], [rows, 4], f"rank:{rank}/cpu")
    local = [Shard(torch.full((rows, 4), value + rank), metadata)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = init_from_local_shards(local, world * rows, 4)
    return {"table": table, "plain": torch.full((5,), value)}


def value(rank: int, world: int, checkpoint: Checkpoint | None) -> float:
    """The number that this process's tensors agree on."""
    assert checkpoint is not None
    tensors: dict[str, Any] = sharded(rank, world, -1.0)
    checkpoint.read(tensors)
    found = float(tensors["plain"][0])
    assert bool((tensors["plain"] == found).all())
    assert bool((tensors["table"].local_shards()[0].tensor == found + rank).all())
    return found


def failures(rank: int, world: int, folder: Path) -> None:
    warnings.simplefilter("error")
    checkpoints = Checkpoints(folder)
    for step in (1, 2, 3):
        checkpoints.save(sharded(rank, world, float(step)), {"step": step}, step=step)
    assert value(rank, world, checkpoints.latest()) == 3

    # A full disk, of rank 1 alone.
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, unlimited[1]))
    with pytest.raises(OSError, match=r"rank 1: .*File too large: .*step-0000000004\.\w+\.part"):
        checkpoints.save(sharded(rank, world, 4.0, rows=1000), {}, step=4)
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert value(rank, world, checkpoints.latest()) == 3
    if rank == 0:  # which makes the next one's folder
        assert not list(folder.glob(".*"))

    # What one of them cannot do.
    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpoints.save({}, {"set": {1}} if rank == 1 else {}, step=4)
    with pytest.raises(ValueError, match="step = -1"):  # found by rank 0
        checkpoints.save({}, {}, step=-1)
    newest = checkpoints.latest()
    assert newest is not None
    wrong: dict[str, Tensor] = sharded(rank, world, 0.0)
    if rank == 1:
        wrong["more"] = torch.zeros(2)
    with pytest.raises(ValueError, match="is of another model: it has no more"):
        newest.read(wrong)

    # Damage, seen by the process that checks the file; only rank 0 speaks of it.
    dist.barrier()
    for file in ("__0_0.distcp", "__1_0.distcp", ".metadata"):
        if rank == 0:
            os.truncate(newest.folder / file, 10)
        dist.barrier()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert value(rank, world, Checkpoints(folder).latest()) == 2
        assert [file in str(each.message) for each in said] == [True] * (rank == 0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            checkpoints.latest()
        checkpoints.save(sharded(rank, world, 3.0), {"step": 3}, step=3)  # whole again
        newest = checkpoints.latest()
        assert value(rank, world, newest) == 3
        assert newest is not None
    if rank == 0:
        for path in folder.glob("*/checkpoint.json"):
            path.unlink()
    dist.barrier()
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole: .*checkpoint\.json is missing"):
        Checkpoints(folder).latest()
    dist.barrier()


def test_what_fails_in_one_process_is_the_same_error_in_all(tmp_path: Path) -> None:
    assert statuses(fork(in_group, 2, failures, tmp_path)) == [0, 0]


def save_forever(rank: int, world: int, folder: Path, into: int) -> None:
    checkpoints = Checkpoints(folder)
    newest = checkpoints.latest()
    first = newest.step + 1 if newest else 1
    for step in range(first, first + 1000):
        checkpoints.save(sharded(rank, world, float(step)), {"step": step}, step=step, best=step % 3 == 0)
        os.write(into, b".")


def test_processes_killed_while_they_save_leave_whole_checkpoints(tmp_path: Path) -> None:
    chance = random.Random(0)
    newest, interrupted = 0, 0
    for _ in range(20):
        out, into = os.pipe()
        children = fork(in_group, 2, save_forever, tmp_path, into)
        os.close(into)
        os.read(out, 2)
        time.sleep(chance.uniform(0, 0.05))  # somewhere in the saves after that
        os.kill(chance.choice(children), signal.SIGKILL)
        ended = statuses(children)  # the other one must not hang
        os.close(out)
        assert sorted(ended) == sorted([signal.SIGKILL, 1 << 8])
        interrupted += any(path.name.startswith(".") for path in tmp_path.iterdir())
        found = Checkpoints(tmp_path).latest()  # by one process; a warning would be an error here
        if found is not None:
            assert found.step >= newest
            newest = found.step
            table, plain = torch.empty(12, 4), torch.empty(5)
            found.read({"table": table, "plain": plain})
            assert torch.equal(plain, torch.full((5,), float(newest)))
            assert torch.equal(table[::6, 0], torch.tensor([newest, newest + 1.0]))
    assert newest >= 20
    assert interrupted  # else no save was ever under way
