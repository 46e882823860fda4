"""The examples do what they say, on a few users and few epochs; where they need no download."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ncf import MLP, Interactions, NeuMF, leave_one_out, sample_candidates
from ncf.datasets import write_ncf

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def paper() -> ModuleType:
    spec = importlib.util.spec_from_file_location("paper", EXAMPLES / "paper.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ncf_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The paper's three files, of users who like the items of their own half, and some items more than others."""
    generator = torch.Generator().manual_seed(0)
    users = torch.arange(400).repeat_interleave(8)
    liked = 0.1 + torch.rand(400, 120, generator=generator) ** 3
    liked[torch.arange(400)[:, None] % 2 != torch.arange(120) % 2] = 0
    items = liked.multinomial(8, generator=generator).reshape(-1)
    split = leave_one_out(Interactions(users, items, torch.arange(len(users)), 400, 120), validation=False)
    prefix = tmp_path_factory.mktemp("data") / "halves"
    write_ncf(prefix, split, sample_candidates(split, num_negatives=40))
    return prefix


def run(paper: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["paper.py", *map(str, arguments)])
    assert paper.main() == 0


def test_the_study_of_depth_prints_our_figures_beside_the_published_ones(
    paper: ModuleType,
    ncf_files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(
        paper,
        monkeypatch,
        "--ncf-files",
        ncf_files,
        "--epochs",
        12,
        "--learning-rate",
        5e-3,
        "--batch-size",
        256,
    )
    rows = re.findall(
        r"^(\S+) +(0\.\d{3}) +(0\.\d{3})  \[0\.\d{3}, 0\.\d{3}\] +(\S+)(?: / (\S+))?",
        capsys.readouterr().out,
        re.M,
    )
    assert [row[0] for row in rows] == ["ItemPop", "MLP-0", "MLP-1", "MLP-2", "MLP-3", "MLP-4"]
    assert [row[3:] for row in rows[:2]] == [("–", ""), ("0.452", "0.253")]
    hr = {name: float(value) for name, value, *_ in rows}
    # The halves are an interaction of user and item: the sum of a user's and an item's share cannot hold them.
    assert hr["MLP-0"] < hr["ItemPop"] + 0.1
    assert hr["MLP-3"] > hr["MLP-0"] + 0.1


def test_the_study_of_factors_prints_and_draws_every_model(
    paper: ModuleType,
    ncf_files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is an optional extra")
    settings = (
        "--ncf-files",
        ncf_files,
        "--epochs",
        1,
        "--factors",
        8,
        2,
        "--seeds",
        2,
        "--out",
        tmp_path / "new",
    )
    run(paper, monkeypatch, "--part", "factors", *settings)
    printed = capsys.readouterr().out
    rows = re.findall(
        r"^(.+?), (\d) factors +0\.\d{3} +0\.\d{3}  ± 0\.\d{3}, ± 0\.\d{3} +(\S+)", printed, re.M
    )
    assert [(name, int(factors)) for name, factors, _ in rows] == [
        (name, factors) for factors in (8, 2) for name in paper.MODELS
    ]
    published = {(name, factors): value for name, factors, value in rows}
    assert published["NeuMF pre-trained", "8"] == "0.684"
    assert published["NeuMF pre-trained", "2"] == "–"
    assert (tmp_path / "new" / "factors.png").read_bytes().startswith(b"\x89PNG")


def test_towers_of_the_study_halve_down_to_the_predictive_factors(
    paper: ModuleType, ncf_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["paper.py", "--epochs", "1"])
    args = paper.parse_arguments()
    split, candidates = paper.read_ncf(ncf_files)
    trained: dict[tuple[str, int, int], MLP | NeuMF] = {}
    for name in ("MLP-0", "MLP-1", "MLP-4", "GMF", "MLP", "NeuMF pre-trained"):
        paper.train(name, 8, split, candidates, 0, args, trained)
    widths = {name: model.config["layers"] for (name, *_), model in trained.items() if name != "GMF"}
    assert widths == {
        "MLP-0": (16,),
        "MLP-1": (16, 8),
        "MLP-4": (128, 64, 32, 16, 8),
        "MLP": (64, 32, 16, 8),
        "NeuMF pre-trained": (64, 32, 16, 8),
    }
    # Without a hidden layer every user has the same order of items, as in a list by popularity.
    users, items = torch.arange(400), torch.arange(120).expand(400, -1)
    for name, one_order in (("MLP-0", True), ("MLP-1", False)):
        scores = trained[name, 8, 0].score(users, items)
        gaps = scores - scores[:, :1]  # [400, 120]
        assert torch.allclose(gaps, gaps[0].expand_as(gaps), rtol=0, atol=1e-5) == one_order


def test_what_is_missing_is_said(
    paper: ModuleType,
    ncf_files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    for suffix in (".test.rating", ".test.negative"):
        (tmp_path / f"halves{suffix}").write_bytes(ncf_files.with_name(f"halves{suffix}").read_bytes())
    monkeypatch.setattr(sys, "argv", ["paper.py", "--ncf-files", str(tmp_path / "halves")])
    assert paper.main() == 1
    assert "halves.train.rating is missing" in capsys.readouterr().err
