"""Artifacts of sharded models against those of the local one, in real processes."""

from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save
from torch.distributed._shard.sharded_tensor import Shard, init_from_local_shards

import ncf
from ncf import GMF, MLP, MatrixFactorization, NeuMF
from ncf.data.interactions import Vocabulary
from ncf.distributed.sharded_safetensors import write_sharded_tensors
from ncf.distributed.sharding import shard
from ncf.models.base import EmbeddingModel
from ncf.utils import files

from .workers import launch

MIXED = {
    "user_gmf": "table_wise",
    "item_gmf": "column_wise",
    "user_mlp": "data_parallel",
    "item_mlp": "column_wise",
}
PLANS: list[str | dict[str, str]] = ["table_wise", "column_wise", "data_parallel", MIXED]


def trained() -> NeuMF:
    """A model whose values are not the initial ones, with ids."""
    model = NeuMF(50, 70, factors=16, layers=(32, 16), init_std=0.5, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5).add_(0.25)
    model.user_ids = Vocabulary([f"user {number}" for number in range(50)])
    model.item_ids = Vocabulary(list(range(70, 140)))
    return model


def contents(folder: Path) -> dict[str, bytes]:
    """A folder's files without the token of their save."""
    found = {file.name.partition("-")[0]: file.read_bytes() for file in folder.iterdir()}
    assert len(found) == len(list(folder.iterdir()))
    description = json.loads(found["config.json"])
    del description["sha256"]
    for entry in description["files"].values():
        del entry["name"]
    return found | {"config.json": json.dumps(description).encode()}


def scores_are_equal(sharded: torch.nn.Module, local: EmbeddingModel, rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    users = torch.randint(0, 50, (8 + rank,), generator=generator)
    items = torch.randint(0, 70, (8 + rank, 5), generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(sharded(users, items), local(users, items), atol=1e-6, rtol=0)


def every_way_to_disk_and_back(rank: int, world: int, folder: Path) -> None:
    local = trained()
    if rank == 0:
        local.save(folder / "local")
    dist.init_process_group("gloo")
    dist.barrier()
    expected = contents(folder / "local")
    for number, plan in enumerate(PLANS):
        # Blocks of one row, of several with a shorter last one, and the whole: 16 columns.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "_BLOCK", (1, 16 * 7, 16 * 8, 2**22)[number])
            # Loaded without values and sharded, then saved, it is the same folder to the byte.
            sharded = shard(ncf.load(folder / "local", device="meta"), plan, verbose=False)
            scores_are_equal(sharded, local, rank)
            place = folder / f"sharded-{number}"
            sharded.module.save(place)  # type: ignore[operator, union-attr]
            assert contents(place) == expected
        # One that was whole before, saved over another.
        model = ncf.load(place)
        with torch.no_grad():
            model.embeddings.weight("user_gmf")[7] = 9.0
        changed = model.embeddings.weight("user_gmf").detach().clone()
        assert torch.equal(model(*pair()), ncf.load(place)(*pair()))
        shard(model, plan, verbose=False)
        model.save(place)
        again = ncf.load(place)
        assert torch.equal(again.embeddings.weight("user_gmf"), changed)
        assert len(contents(place)) == len(expected)


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([3, 4]), torch.tensor([[60, 61], [0, 69]])


def pretrained_parts(rank: int, world: int, folder: Path) -> None:
    gmf, mlp = GMF(50, 70, factors=16, seed=1), MLP(50, 70, layers=(32, 16), seed=2)
    local = NeuMF.from_pretrained(gmf, mlp, alpha=0.3)
    gmf_sharded = GMF(50, 70, factors=16, seed=1, device="meta")
    shard(gmf_sharded, MIXED_GMF, verbose=False)
    gmf_sharded.save(folder / "gmf")
    if rank == 0:
        mlp.save(folder / "mlp")
    dist.barrier()
    parts = [ncf.load(folder / name, device="meta") for name in ("gmf", "mlp")]
    with pytest.raises(ValueError, match="gmf or mlp is sharded: save both"):
        NeuMF.from_pretrained(gmf_sharded, mlp)
    with pytest.raises(ValueError, match="one of gmf and mlp is on the meta device: load both alike"):
        NeuMF.from_pretrained(gmf, parts[1])  # type: ignore[arg-type]
    for plan in (MIXED, "table_wise"):
        scores_are_equal(shard(NeuMF.from_pretrained(*parts, alpha=0.3), plan, verbose=False), local, rank)  # type: ignore[arg-type]


MIXED_GMF = {"user_gmf": "column_wise", "item_gmf": "data_parallel"}


def rows_and_columns_cut_at_once(rank: int, world: int, folder: Path) -> None:
    """As row-wise and grid plans cut a table, which CPUs do not offer; a rank has neighbours and none."""
    whole = torch.rand(23, 12, generator=torch.Generator().manual_seed(5))
    for number, owners in enumerate(([0, 1, 1, 0], [1, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0])):
        corners = [(0, 9, 0, 4), (0, 9, 4, 12), (9, 23, 0, 8), (9, 23, 8, 12)]
        parts = [
            Shard.from_tensor_and_offsets(whole[top:bottom, left:right].clone(), [top, left], rank)
            for owner, (top, bottom, left, right) in zip(owners, corners, strict=True)
            if owner == rank
        ]
        others = {"bias": whole[0].clone(), "scalar": torch.tensor(5.0)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "_BLOCK", 12 * (1, 4, 9, 23)[number])
            table = init_from_local_shards(parts, 23, 12)
            write_sharded_tensors(folder / "t", {**others, "table": table})
        dist.barrier()
        assert (folder / "t").read_bytes() == save({**others, "table": whole})
        dist.barrier()


def failures(rank: int, world: int, folder: Path) -> None:
    model = MatrixFactorization(2000, 3000, factors=15, device="meta")
    sharded = shard(model, "table_wise", verbose=False)
    model.save(folder / "good")
    good = contents(folder / "good")
    # Room on rank 0 for nothing, for the header, for half of the tables, for all but the last bytes.
    size = max(len(content) for content in good.values())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (0, 1000, size // 2, size - 1):
        if rank == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        with pytest.raises(OSError, match="File too large"):
            model.save(folder / "good")
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        dist.barrier()
        assert contents(folder / "good") == good
    with pytest.raises(ValueError, match=r"holds torch.bfloat16: .* call model.float\(\) first"):
        shard(ncf.load(folder / "good", device="meta").bfloat16(), "table_wise")
    (folder / "file").touch()
    with pytest.raises(FileExistsError, match="file is a file: give the folder"):
        model.save(folder / "file")
    # A file that is there when the model is loaded, and on one rank not any more when it is filled.
    own = folder / str(rank)
    shutil.copytree(folder / "good", own)
    again = ncf.load(own, device="meta")
    if rank == 1:
        next(own.glob("*.safetensors")).unlink()
    with pytest.raises(FileNotFoundError, match=r"1/model-\w+.safetensors is gone, and .*item_mf"):
        shard(again, {"user_mf": "table_wise", "item_mf": "column_wise"}, verbose=False)
    torch.testing.assert_close(sharded(*pair()), ncf.load(folder / "good")(*pair()), atol=1e-6, rtol=0)


def work(rank: int, world: int, folder: Path) -> None:
    for part in (every_way_to_disk_and_back, pretrained_parts, rows_and_columns_cut_at_once, failures):
        place = folder / part.__name__
        os.makedirs(place, exist_ok=True)
        part(rank, world, place)


def test_a_sharded_model_is_saved_and_filled_as_the_local_one(tmp_path: Path) -> None:
    launch(work, 2, tmp_path)
