"""The examples do what they say, on a few users and few epochs; where they need no download."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.weight_decay import weight_decay_for
from ncf import GMF, Interactions, MatrixFactorization, leave_one_out, sample_candidates
from ncf.datasets import write_ncf

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def paper() -> ModuleType:
    spec = importlib.util.spec_from_file_location("paper", EXAMPLES / "paper.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(EXAMPLES))  # as when Python runs the script
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(EXAMPLES))
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
    settings = "--epochs", 12, "--learning-rate", 5e-3, "--batch-size", 256, "--factors", 8, 16
    run(paper, monkeypatch, "--ncf-files", ncf_files, *settings)
    rows = re.findall(
        r"^(ItemPop|MLP-\d, \d+ factors) +(0\.\d{3}) +(0\.\d{3})  \[0\.\d{3}, 0\.\d{3}\] +(\S+)(?: / (\S+))?",
        capsys.readouterr().out,
        re.M,
    )
    # Before, this part ignored --factors: one row of the paper's tables 3 and 4 could be made.
    assert [row[0] for row in rows] == [
        "ItemPop",
        *(f"MLP-{depth}, {factors} factors" for factors in (8, 16) for depth in range(5)),
    ]
    assert [row[3:] for row in rows[:2]] == [("–", ""), ("0.452", "0.253")]
    assert rows[-1][3:] == ("0.690", "0.415")
    hr = {name: float(value) for name, value, *_ in rows}
    # The halves are an interaction of user and item: the sum of a user's and an item's share cannot hold them.
    assert hr["MLP-0, 8 factors"] < hr["ItemPop"] + 0.1
    assert hr["MLP-3, 8 factors"] > hr["MLP-0, 8 factors"] + 0.1


@pytest.mark.parametrize(
    ("part", "drawn"),
    [
        ("factors", ["factors"]),
        ("top-k", ["top-k_8", "top-k_2"]),
        ("epochs", ["epochs_8", "epochs_2"]),
        ("negatives", ["negatives_8", "negatives_2"]),
    ],
)
def test_each_part_prints_every_model_and_draws_its_figure(
    part: str,
    drawn: list[str],
    paper: ModuleType,
    ncf_files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is an optional extra")
    monkeypatch.setattr(paper, "NEGATIVES", (1, 4))
    settings = "--ncf-files", ncf_files, "--epochs", 1, "--factors", 8, 2, "--seeds", 2
    run(paper, monkeypatch, "--part", part, *settings, "--out", tmp_path / "new")
    printed = capsys.readouterr().out
    rows = re.findall(
        r"^(.+?), (\d) factors(?:, (\d) neg\.)? +0\.\d{3} +0\.\d{3}  ± 0\.\d{3}, ± 0\.\d{3} +(\S+)",
        printed,
        re.M,
    )
    negatives = ("1", "4") if part == "negatives" else ("",)
    assert [row[:3] for row in rows] == [
        (name, factors, n) for factors in "82" for n in negatives for name in paper.MODELS
    ]
    found = {row[:3]: row[3] for row in rows}
    assert found["NeuMF pre-trained", "8", negatives[-1]] == "0.684"
    assert found["NeuMF pre-trained", "2", negatives[-1]] == "–"
    for name in drawn:
        for suffix in ("", "_narrow"):
            assert (tmp_path / "new" / f"{name}{suffix}.png").read_bytes().startswith(b"\x89PNG")


def test_published_figures_are_of_the_data_that_is_named(paper: ModuleType) -> None:
    assert paper.published("Data/ml-1m")["MLP-4", 64] == (0.707, 0.432)
    assert paper.published("Data/pinterest-20")["MLP-4", 64] == (0.873, 0.550)


def test_towers_of_the_study_halve_down_to_the_predictive_factors(
    paper: ModuleType, ncf_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["paper.py", "--epochs", "1"])
    study = paper.Study(*paper.read_ncf(ncf_files), paper.parse_arguments())
    for name in ("MLP-0", "MLP-1", "MLP-4", "GMF", "MLP", "NeuMF pre-trained"):
        study.run(name, 8, 4, 0)
    trained = study.trained
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
        scores = trained[name, 8, 4, 0].score(users, items)
        gaps = scores - scores[:, :1]  # [400, 120]
        assert torch.allclose(gaps, gaps[0].expand_as(gaps), rtol=0, atol=1e-5) == one_order


def of_length(number: int) -> Interactions:
    pairs = torch.arange(number)
    return Interactions(pairs % 6040, pairs // 6040, None, 6040, 1 + number // 6040)


@pytest.mark.parametrize(
    ("number", "expected"), [(98_114, 1e-5), (99_057, 1e-5), (989_136, 3.2e-6)]
)  # MovieLens-100K without and with its validation part, and drawn data of MovieLens-1M's shape
def test_weight_decay_is_what_was_best_on_the_data_that_decided_it(number: int, expected: float) -> None:
    assert weight_decay_for(of_length(number)) == expected


@given(st.integers(1, 20_000))
def test_weight_decay_of_four_times_the_data_is_half_of_it(number: int) -> None:
    whole, part = weight_decay_for(of_length(4 * number)), weight_decay_for(of_length(number))
    assert whole == pytest.approx(part / 2, rel=0.1)  # both have two digits


@pytest.mark.parametrize(("users", "items", "expected"), [(943, 1682, 1e-5), (6040, 3706, 5.2e-6)])
def test_weight_decay_of_gmf_goes_by_the_size_of_the_tables(users: int, items: int, expected: float) -> None:
    train = Interactions(torch.arange(900), torch.arange(900), None, users, items)
    assert weight_decay_for(train, GMF(users, items, factors=4)) == expected
    assert weight_decay_for(train, MatrixFactorization(users, items, factors=4)) == weight_decay_for(train)
