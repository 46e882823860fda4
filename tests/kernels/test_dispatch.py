from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ncf.kernels
from ncf.kernels import fused_lookup, lookup_reference, score_candidates, score_reference

from .examples import random_pairs, random_tables


@settings(deadline=None)
@given(
    hidden=st.lists(st.integers(1, 9), max_size=4).map(tuple),
    factors=st.integers(0, 9),
    biases=st.booleans(),
    num_users=st.integers(0, 9),
    num_candidates=st.integers(0, 9),
    common=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_cpu_scores_equal_the_reference(
    hidden: tuple[int, ...],
    factors: int,
    biases: bool,
    num_users: int,
    num_candidates: int,
    common: bool,
    dtype: torch.dtype,
) -> None:
    tables = random_tables(hidden=hidden, factors=factors, biases=biases, dtype=dtype)
    users, candidates = random_pairs(tables, num_users, num_candidates)
    if common and num_users:
        candidates = candidates[:1].expand(num_users, -1)
    scores = score_candidates(tables, users, candidates)
    expected = score_reference(tables, users, candidates)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


def test_scores_do_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = random_tables(hidden=(9, 4), factors=3, integers=True)
    users, candidates = random_pairs(tables, 23, 7)
    expected = score_candidates(tables, users, candidates)
    for size in (1, 9 * 7 * 4, 5 * 9 * 7 * 4):  # less than a user, one user, five users
        monkeypatch.setattr(ncf.kernels.dispatch, "_BLOCK_BYTES", {"cpu": size})
        assert torch.equal(score_candidates(tables, users, candidates), expected)


@pytest.mark.parametrize(
    ("users", "candidates", "message"),
    [
        (torch.zeros(2, dtype=torch.int64), torch.zeros(3, 4, dtype=torch.int64), r"\(2,\).* \(3, 4\)"),
        (torch.zeros(2, dtype=torch.int64), torch.zeros(2, 1, 1, dtype=torch.int64), r"\(2,\).*1, 1\)"),
        (
            torch.zeros(2, dtype=torch.int32),
            torch.zeros(2, 1, dtype=torch.int64),
            "users is torch.int32 on cpu",
        ),
        (
            torch.zeros(2, dtype=torch.int64),
            torch.zeros(2, 1, dtype=torch.int64, device="meta"),
            "candidates is torch.int64 on meta: give int64 on cpu",
        ),
    ],
)
def test_what_does_not_fit_together_is_named(users: Any, candidates: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_candidates(random_tables(factors=2), users, candidates)


def test_lookup_on_a_cpu_is_the_reference() -> None:
    rows = [torch.randn(n, 4) for n in (5, 6, 5, 6)]
    arguments = torch.tensor([4, 1]), torch.tensor([[5, 0], [2, 2]]), *rows, torch.randn(3, 8), torch.randn(3)
    for found, expected in zip(fused_lookup(*arguments), lookup_reference(*arguments), strict=True):
        assert found is not None
        assert expected is not None
        assert torch.equal(found, expected)


def test_importing_and_scoring_on_a_cpu_need_no_triton() -> None:
    """In a process in which any import of Triton is an error."""
    program = """
import sys
sys.modules["triton"] = None
import torch, ncf, ncf.kernels
tables = ncf.kernels.ScoringTables(item_bias=torch.tensor([0.5, 2.0]), bias=torch.zeros(1))
print(ncf.kernels.score_candidates(tables, torch.tensor([0]), torch.tensor([[1, -1]])).tolist())
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.stdout == "[[2.0, -inf]]\n", run.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("hidden", [(), (32, 16, 8), (32, 300, 8)], ids=str)
@pytest.mark.parametrize("common", [False, True])
def test_a_gpu_scores_as_the_cpu_does(hidden: tuple[int, ...], common: bool) -> None:
    """The matrix product, the kernel, and the blocks of what is too wide for it."""
    tables = random_tables(hidden=hidden, factors=8, biases=True)
    users, candidates = random_pairs(tables, 40, 101)
    if common:
        candidates = candidates[:1].expand(40, -1)
    on_gpu = candidates[:1].cuda().expand(40, -1) if common else candidates.cuda()
    scores = score_candidates(tables.to("cuda"), users.cuda(), on_gpu)
    torch.testing.assert_close(
        scores.cpu(), score_candidates(tables, users, candidates), rtol=1e-4, atol=1e-4
    )
