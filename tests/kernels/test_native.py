from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ncf.kernels import score_reference
from ncf.kernels.native import ABI, library
from ncf.kernels.native_scoring import PackedTables, fits
from ncf.models import scoring
from ncf.models.scoring import Scorer

from .examples import random_pairs, random_tables, rounding_bound

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


def test_the_kernel_was_compiled_when_ncf_was_installed() -> None:
    assert library() is not None
    assert library().ncf_lanes() in (4, 8, 16)


def compiled(folder: Path, source: str) -> Path:
    (folder / "other.c").write_text(source)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "_native.so", folder / "other.c"], check=True)
    return folder


@pytest.mark.parametrize(
    "source",
    [
        "int ncf_train(void) { return 0; }",
        "int ncf_abi(long *sizes, int count) { return count * 0 + 1 + (sizes == 0); }",
        f"int ncf_abi(long *sizes, int count) {{ while (count--) sizes[count] = 8; return {ABI}; }}",
    ],
    ids=["without a number", "another number", "other structures"],
)
def test_a_library_of_other_sources_is_not_called(tmp_path: Path, source: str) -> None:
    with pytest.warns(RuntimeWarning, match="was built from other sources") as warned:
        assert library(compiled(tmp_path, source)) is None
    assert len(warned) == 1


def test_of_two_builds_side_by_side_the_current_one_is_used(tmp_path: Path, any_processor: Any) -> None:
    compiled(tmp_path, "int ncf_train(void) { return 0; }")
    shutil.copy(any_processor._name, tmp_path / "_native_current.so")
    assert library(tmp_path).ncf_lanes() in (4, 8, 16)


@settings(deadline=None, max_examples=200)
@given(
    hidden=st.lists(st.integers(1, 70), max_size=4).map(tuple),
    factors=st.integers(0, 40),
    biases=st.booleans(),
    num_users=st.integers(0, 5),
    num_candidates=st.integers(0, 60),
    common=st.booleans(),
    lanes=st.sampled_from([None, 4, 8, 16]),
    seed=st.integers(0, 100),
)
def test_scores_equal_the_reference(
    any_processor: Any,
    hidden: tuple[int, ...],
    factors: int,
    biases: bool,
    num_users: int,
    num_candidates: int,
    common: bool,
    lanes: int | None,
    seed: int,
) -> None:
    tables = random_tables(hidden=hidden, factors=factors, biases=biases, seed=seed)
    if not fits(tables):
        assert not hidden
        assert not factors
        return
    users, candidates = random_pairs(tables, num_users, num_candidates, seed=seed)
    if common and num_users:
        candidates = candidates[:1].expand(num_users, -1)
    packed = PackedTables(tables) if lanes is None else PackedTables(tables, lanes, any_processor)
    scores = packed.score(users, candidates)
    assert scores.dtype == torch.float32
    expected = score_reference(tables.to(torch.float64), users, candidates)
    real = candidates >= 0
    assert torch.equal(scores.isneginf(), ~real)
    widest = max([*hidden, factors])
    bound = rounding_bound(tables, users, candidates, epsilon=(widest + 4) * 2**-24)
    assert bool(((scores - expected).abs() <= bound)[real].all())


@pytest.mark.parametrize("common", [False, True])
def test_a_score_has_the_same_bits_whoever_else_is_scored(common: bool) -> None:
    tables = random_tables(hidden=(20, 9), factors=5, biases=True, num_users=300, num_items=5000)
    users, candidates = random_pairs(tables, 250, 501)
    if common:
        candidates = candidates[:1].expand(250, -1)
    packed = PackedTables(tables)
    scores = packed.score(users, candidates)
    threads = torch.get_num_threads()
    try:
        for torch_threads in (1, 2, 3, 7):
            torch.set_num_threads(torch_threads)
            assert torch.equal(packed.score(users, candidates), scores)
    finally:
        torch.set_num_threads(threads)
    for row, column in ((0, 0), (3, 500), (249, 77)):
        alone = packed.score(users[row : row + 1], candidates[row : row + 1, column : column + 1])
        assert torch.equal(alone[0, 0], scores[row, column])
    assert torch.equal(packed.score(users, candidates[:, ::3]), scores[:, ::3])
    assert torch.equal(packed.score(users[::2], candidates[::2]), scores[::2])


def test_tables_are_copied() -> None:
    tables = random_tables(hidden=(4, 3), factors=2, biases=True)
    users, candidates = random_pairs(tables, 6, 6)
    scorer = Scorer(tables)
    before = scorer.score(users, candidates)
    for _, tensor in tables._tensors():
        tensor.zero_()
    assert torch.equal(scorer.score(users, candidates), before)


@pytest.mark.parametrize("part", ["user_hidden", "item_hidden", "user_gmf", "item_gmf", "mlp_head", "bias"])
def test_not_a_number_is_seen(part: str) -> None:
    tables = random_tables(hidden=(4, 3), factors=2)
    getattr(tables, part).view(-1)[0] = torch.nan
    scores = PackedTables(tables).score(torch.tensor([0, 0]), torch.tensor([[0, -1], [0, -1]]))
    assert scores.isnan().tolist() == [[True, False], [True, False]]


def test_a_layer_that_has_diverged_is_seen() -> None:
    tables = random_tables(hidden=(4, 3, 5), factors=2)
    tables.layers[0][0][1, 1] = torch.nan
    assert PackedTables(tables).score(torch.tensor([0]), torch.tensor([[1, 2, 3]])).isnan().all()


@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize(
    ("users", "items", "message"),
    [
        ([0, 7, 1], [0, 0, 0], "user 7 is out of range: ids go from 0 to 6"),
        ([0, -1, 1], [0, 0, 0], "user -1 is out of range: ids go from 0 to 6"),
        ([0, 1, 2], [0, 8, 0], "item 8 is out of range: ids go from 0 to 7"),
        ([0, 1, 2], [0, 0, 1 << 40], f"item {1 << 40} is out of range"),
    ],
)
def test_an_unknown_id_is_refused(common: bool, users: list[int], items: list[int], message: str) -> None:
    packed = PackedTables(random_tables(hidden=(4,), factors=2))
    lists = torch.tensor(items)
    candidates = lists.expand(3, 3) if common else lists[:, None].repeat(1, 2)
    with pytest.raises(IndexError, match=message):
        packed.score(torch.tensor(users), candidates)


def test_an_unknown_id_is_refused_on_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    packed = PackedTables(random_tables(hidden=(4,), factors=2))
    candidates = torch.zeros(9, 1 << 14, dtype=torch.int64)  # a piece of work for each user
    candidates[5, 77], candidates[8, 1] = 9, 8
    with pytest.raises(IndexError, match="item 9 is out of range"):  # the first
        packed.score(torch.zeros(9, dtype=torch.int64), candidates)


def test_other_types_and_shapes_are_refused() -> None:
    packed = PackedTables(random_tables(hidden=(4,)))
    with pytest.raises(ValueError, match=r"users is torch\.int32 on cpu"):
        packed.score(torch.zeros(1, dtype=torch.int32), torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\(1,\), candidates \(2, 1\)"):
        packed.score(torch.zeros(1, dtype=torch.int64), torch.zeros(2, 1, dtype=torch.int64))


def test_without_the_kernel_scores_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = random_tables(hidden=(9, 4), factors=3, biases=True)
    users, candidates = random_pairs(tables, 6, 7)
    fast = Scorer(tables).score(users, candidates)
    monkeypatch.setattr(scoring, "fits", lambda tables: False)
    torch.testing.assert_close(Scorer(tables).score(users, candidates), fast, rtol=1e-5, atol=1e-5)


def test_a_library_of_another_machine_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "_native.so").write_bytes(b"\x7fELF nonsense")
    assert library(tmp_path) is None
