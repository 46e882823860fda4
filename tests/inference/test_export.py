"""Exported files, read as another program reads them: by `torch.export.load` and by onnxruntime."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ncf import EASE, GMF, MLP, MatrixFactorization, NeuMF
from ncf.inference import export_onnx, export_program
from ncf.models.base import EmbeddingModel
from tests.conftest import random_interactions

USERS, ITEMS = 30, 50
MODELS: dict[str, Callable[[], EmbeddingModel]] = {
    "GMF": lambda: GMF(USERS, ITEMS, init_std=0.5, seed=1),
    "MLP": lambda: MLP(USERS, ITEMS, init_std=0.5, seed=1),
    "MLP without a hidden layer": lambda: MLP(USERS, ITEMS, layers=(16,), init_std=0.5, seed=1),
    "NeuMF": lambda: NeuMF(USERS, ITEMS, init_std=0.5, dropout=0.5, seed=1),
    "MatrixFactorization": lambda: MatrixFactorization(USERS, ITEMS, init_std=0.5, seed=1),
    "cosine": lambda: MatrixFactorization(USERS, ITEMS, init_std=0.5, cosine=True, seed=1),
}
SHAPES = [(1, 1), (1, ITEMS), (4, 1), (5, 17)]


def ids(users: int, candidates: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(users + candidates)
    return (
        torch.randint(USERS, (users,), generator=generator),
        torch.randint(-1, ITEMS, (users, candidates), generator=generator),
    )


def of_onnx(path: Path) -> Callable[[Tensor, Tensor], Tensor]:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime comes with the extra onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def score(users: Tensor, candidates: Tensor) -> Tensor:
        found = session.run(["scores"], {"users": users.numpy(), "candidates": candidates.numpy()})
        return torch.from_numpy(found[0])

    return score


@pytest.mark.parametrize("name", MODELS)
def test_a_program_scores_as_the_model_for_any_number_of_users_and_candidates(
    name: str, tmp_path: Path
) -> None:
    model = MODELS[name]().train()
    export_program(model, tmp_path / "model.pt2")
    assert model.training
    program = torch.export.load(tmp_path / "model.pt2")
    assert program.state_dict.keys() == model.state_dict().keys()
    for shape in SHAPES:
        users, candidates = ids(*shape)
        found = program.module()(users, candidates)
        torch.testing.assert_close(found, model.score(users, candidates), rtol=0, atol=1e-5)
    with pytest.raises(IndexError):
        program.module()(torch.tensor([USERS]), torch.tensor([[0]]))


@pytest.mark.parametrize("name", MODELS)
def test_onnxruntime_scores_as_the_model(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript comes with the extra onnx")
    model = MODELS[name]().train()
    export_onnx(model, tmp_path / "model.onnx")
    score = of_onnx(tmp_path / "model.onnx")
    for shape in SHAPES:
        users, candidates = ids(*shape)
        torch.testing.assert_close(
            score(users, candidates), model.score(users, candidates), rtol=0, atol=1e-5
        )
    assert score(torch.tensor([-1]), torch.tensor([[3]])).isnan().all()
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_large_tables_stand_beside_an_onnx_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript comes with the extra onnx")
    monkeypatch.setattr("ncf.inference.export._PROTOBUF", 0)
    model = MODELS["GMF"]()
    export_onnx(model, tmp_path / "model.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    users, candidates = ids(3, 4)
    found = of_onnx(tmp_path / "model.onnx")(users, candidates)
    torch.testing.assert_close(found, model.score(users, candidates), rtol=0, atol=1e-5)


def test_the_files_need_no_ncf(tmp_path: Path) -> None:
    model = MODELS["NeuMF"]()
    export_program(model, tmp_path / "model.pt2")
    users, candidates = ids(2, 5)
    np.savez(tmp_path / "ids.npz", users=users, candidates=candidates)
    script = """if True:
        import sys, numpy, torch
        ids = numpy.load("ids.npz")
        inputs = [torch.from_numpy(ids[name]) for name in ("users", "candidates")]
        scores = torch.export.load("model.pt2").module()(*inputs)
        assert "ncf" not in sys.modules and "torchrec" not in sys.modules
        numpy.save("scores.npy", scores.detach().numpy())
    """
    environment = {**os.environ, "PYTHONPATH": ""}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
    found = torch.from_numpy(np.load(tmp_path / "scores.npy"))
    torch.testing.assert_close(found, model.score(users, candidates), rtol=0, atol=1e-5)


def test_a_model_in_half_precision_is_exported_as_it_is(tmp_path: Path) -> None:
    model = GMF(USERS, ITEMS, init_std=0.5).to(torch.bfloat16)
    program = export_program(model, tmp_path / "model.pt2")
    assert {value.dtype for value in program.state_dict.values()} == {torch.bfloat16}


def test_what_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="EASE is no EmbeddingModel"):
        export_program(EASE(random_interactions(8, 9, 3)), tmp_path / "model.pt2")
    with pytest.raises(ValueError, match="meta device"):
        export_program(GMF(USERS, ITEMS, device="meta"), tmp_path / "model.pt2")

    class Other(GMF):
        def score(self, users: Tensor, candidates: Tensor) -> Tensor:
            return -super().score(users, candidates)

    with pytest.raises(ValueError, match="other scores than the model"):
        export_program(Other(USERS, ITEMS, init_std=0.5), tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())
