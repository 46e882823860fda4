from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ncf.kernels import lookup_reference

from .examples import amid_nans

NUM_USERS, NUM_ITEMS = 7, 9
Arguments = list[Tensor | None]
Result = list[Tensor]


def _arguments(
    factors: int,
    dim: int,
    hidden: int,
    *,
    dtype: torch.dtype = torch.float32,
    integers: bool = False,
    seed: int = 0,
) -> Arguments:
    """Tables, weight and bias; zero widths leave a part out."""
    generator = torch.Generator().manual_seed(seed)

    def values(present: int, *shape: int, scale: float = 1.0) -> Tensor | None:
        if not present:
            return None
        if integers:
            return torch.randint(-2, 3, shape, generator=generator).to(dtype)
        return (torch.randn(shape, generator=generator) * scale).to(dtype)

    return [
        values(factors, NUM_USERS, factors),
        values(factors, NUM_ITEMS, factors),
        values(dim, NUM_USERS, dim),
        values(dim, NUM_ITEMS, dim),
        values(dim, hidden, 2 * dim, scale=dim**-0.5 if dim else 1.0),
        values(dim, hidden),
    ]


def _ids(batch: int, several: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Users ``[B]``, and items ``[B, several]`` or, with none, ``[B]``."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, several) if several else (batch,)
    return (
        torch.randint(NUM_USERS, (batch,), generator=generator),
        torch.randint(NUM_ITEMS, shape, generator=generator),
    )


def _weights(users: Tensor, items: Tensor, arguments: Arguments, integers: bool = False) -> Result:
    """A weight for each output, fp64; zero for hidden units that rounding might switch on or off."""
    outputs = lookup_reference(users, items, *_exact(arguments))
    opposite = lookup_reference(
        users, items, *_exact(arguments[:4]), *(None if v is None else -v.double() for v in arguments[4:])
    )
    generator = torch.Generator().manual_seed(1)
    weights = []
    for output, negative in zip(outputs, opposite, strict=True):
        if output is None or negative is None:
            continue
        weight = torch.randint(-2, 3, output.shape, generator=generator).double()
        if not integers:
            weight += torch.rand(output.shape, generator=generator)
            if output is outputs[1]:
                weight[(output - negative).abs() < 0.1] = 0.0  # max(x, 0) - max(-x, 0) = x
        weights.append(weight)
    return weights


def _exact(arguments: Arguments) -> Arguments:
    return [None if value is None else value.double() for value in arguments]


def _outputs_and_gradients(
    look_up: Callable[..., Any], users: Tensor, items: Tensor, arguments: Arguments, weights: Result
) -> Result:
    """The outputs, and the gradients of their weighted sum, in the order of the arguments."""
    leaves = [None if value is None else value.detach().clone().requires_grad_() for value in arguments]
    outputs = [output for output in look_up(users, items, *leaves) if output is not None]
    gradients = torch.autograd.grad(
        outputs,
        [leaf for leaf in leaves if leaf is not None],
        [weight.to(output) for weight, output in zip(weights, outputs, strict=True)],
    )
    return [result.detach().cpu() for result in (*outputs, *gradients)]


def _fused(device: str, users: Tensor, items: Tensor, arguments: Arguments, weights: Result) -> Result:
    from ncf.kernels.triton_operators import lookup_triton

    arguments = [None if value is None else value.to(device) for value in arguments]
    return _outputs_and_gradients(lookup_triton, users.to(device), items.to(device), arguments, weights)


def _both(
    run: Callable[..., Any],
    function: Callable[..., Result],
    users: Tensor,
    items: Tensor,
    arguments: Arguments,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Outputs and gradients of the kernel, each beside autograd's through the reference in fp64."""
    weights = _weights(users, items, arguments)
    found = run(function, users, items, arguments, weights)
    exact = _outputs_and_gradients(lookup_reference, users, items, _exact(arguments), weights)
    return zip(found, exact, strict=True)


def _check(run: Callable[..., Any], users: Tensor, items: Tensor, arguments: Arguments) -> None:
    dtype = next(value.dtype for value in arguments if value is not None)
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3}[dtype]
    for result, expected in _both(run, _fused, users, items, arguments):
        assert result.dtype == dtype
        assert result.shape == expected.shape
        # Relative to the largest entry: a sum of many terms may nearly cancel.
        scale = float(expected.abs().max()) if expected.numel() else 1.0
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=tolerance * max(scale, 1.0))


@pytest.mark.parametrize("several", [0, 5])
@pytest.mark.parametrize(
    ("factors", "dim", "hidden"),
    [
        (8, 16, 16),
        (8, 32, 32),
        (5, 3, 7),
        (70, 20, 100),  # more columns than a tile has
        (3, 70, 9),
        (12, 0, 0),
        (0, 12, 20),
    ],
)
def test_outputs_and_gradients_equal_autograds(
    run: Callable[..., Any], factors: int, dim: int, hidden: int, several: int
) -> None:
    _check(run, *_ids(30, several), _arguments(factors, dim, hidden))


def _dense(
    device: str, sparse: bool, reference: bool, users: Tensor, items: Tensor, tables: Result
) -> Result:
    """The product of leading columns, of which the last two are added, and the gradients of the tables."""
    from ncf.kernels.dispatch import fused_lookup

    leaves = [table.to(device).requires_grad_() for table in tables]
    with mock.patch("ncf.kernels.dispatch._has_triton", return_value=not reference):
        arguments = users.to(device), items.to(device), *leaves, None, None, None, None
        product, _ = fused_lookup(*arguments, factors=6, summed=2, sparse=sparse)
    assert product is not None
    weights = torch.linspace(-1, 1, product.numel(), dtype=product.dtype, device=device).view_as(product)
    gradients = torch.autograd.grad((weights * product).sum(), leaves)
    assert all(gradient.is_sparse == sparse for gradient in gradients)
    return [each.detach().to_dense().cpu() for each in (product, *gradients)]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("several", [0, 5])
def test_columns_that_are_added_and_columns_that_are_left_out(
    run: Callable[..., Any], several: int, sparse: bool
) -> None:
    batch = *_ids(30, several), [torch.randn(NUM_USERS, 9), torch.randn(NUM_ITEMS, 9)]
    found, expected = run(_dense, sparse, False, *batch), _dense("cpu", sparse, True, *batch)
    for result, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(result, exact, rtol=1e-5, atol=1e-5)


def _looked_up_before(
    device: str, users: Tensor, items: Tensor, arguments: Arguments, weights: Result
) -> Result:
    from ncf.kernels.dispatch import fused_rows

    def look_up(users: Tensor, items: Tensor, *leaves: Tensor) -> Any:
        users = users[:, None] if items.dim() == 2 else users
        sides = users, items, users, items
        rows = [None if t is None else t[ids] for t, ids in zip(leaves[:4], sides, strict=True)]
        return fused_rows(*rows, *leaves[4:])

    moved = [None if value is None else value.to(device) for value in arguments]
    return _outputs_and_gradients(look_up, users.to(device), items.to(device), moved, weights)


@pytest.mark.parametrize("several", [0, 5])
@pytest.mark.parametrize("widths", [(8, 16, 16), (0, 12, 20), (12, 0, 0)], ids=str)
def test_rows_that_were_looked_up_before(
    run: Callable[..., Any], widths: tuple[int, int, int], several: int
) -> None:
    for result, expected in _both(run, _looked_up_before, *_ids(30, several), _arguments(*widths)):
        torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-4)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    factors=st.integers(0, 20),
    dim=st.integers(0, 20),
    hidden=st.integers(1, 40),
    batch=st.integers(1, 40),
    several=st.integers(0, 4),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    seed=st.integers(0, 1 << 16),
)
def test_outputs_and_gradients_equal_autograds_at_random_shapes(
    run: Callable[..., Any],
    factors: int,
    dim: int,
    hidden: int,
    batch: int,
    several: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    if factors or dim:
        _check(run, *_ids(batch, several, seed), _arguments(factors, dim, hidden, dtype=dtype, seed=seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("several", [0, 5])
def test_integers_to_the_bit(run: Callable[..., Any], dtype: torch.dtype, several: int) -> None:
    """Every sum of small integers is exact, so the order of additions and the type do not matter."""
    users, items = _ids(50, several)
    arguments = _arguments(6, 7, 19, integers=True, dtype=dtype)
    weights = _weights(users, items, arguments, integers=True)
    found = run(_fused, users, items, arguments, weights)
    expected = _outputs_and_gradients(lookup_reference, users, items, _exact(arguments), weights)
    exactly_held = 256 if dtype == torch.bfloat16 else 2048
    for result, exact in zip(found, expected, strict=True):
        held = exact.abs() <= exactly_held
        assert held.any()
        assert torch.equal(result.double()[held], exact[held])


@pytest.mark.parametrize("batch", [63, 64, 65, 129])
def test_pairs_that_do_not_fill_tiles_or_parts(run: Callable[..., Any], batch: int) -> None:
    _check(run, *_ids(batch, 0), _arguments(3, 4, 5))


@pytest.mark.parametrize("several", [0, 3])
def test_no_pairs(run: Callable[..., Any], several: int) -> None:
    users, items = _ids(0, several)
    arguments = _arguments(4, 4, 5)
    results = run(_fused, users, items, arguments, _weights(users, items, arguments))
    assert [float(result.abs().sum()) for result in results] == [0.0] * 8


def test_gradients_repeat_to_the_bit(run: Callable[..., Any]) -> None:
    users, items = _ids(100, 3)
    arguments = _arguments(8, 8, 16)
    batch = users, items, arguments, _weights(users, items, arguments)
    first, second = run(_fused, *batch), run(_fused, *batch)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _strided(device: str, users: Tensor, items: Tensor, arguments: Arguments, weights: Result) -> Result:
    from ncf.kernels.triton_operators import lookup_triton

    def look_up(users: Tensor, items: Tensor, *leaves: Tensor) -> Any:
        return lookup_triton(users, items.T, *(leaf[:, 1:] for leaf in leaves[:4]), *leaves[4:])

    moved = [value.to(device) for value in arguments if value is not None]
    return _outputs_and_gradients(look_up, users.to(device), items.to(device), moved, weights)


def test_tables_that_are_columns_of_another(run: Callable[..., Any]) -> None:
    users, items = _ids(5, 4)
    wide = _arguments(7, 7, 11)
    arguments = [*(t[:, 1:] for t in wide[:4] if t is not None), *_arguments(0, 6, 11)[4:]]
    weights = _weights(users, items, arguments)
    found = run(_strided, users, items.T.contiguous(), [*wide[:4], *arguments[4:]], weights)
    expected = _outputs_and_gradients(lookup_reference, users, items, arguments, weights)
    for result, exact in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(result, exact, rtol=1e-5, atol=1e-5)
    for result, exact in zip(found[2:6], expected[2:6], strict=True):
        torch.testing.assert_close(result[:, 1:], exact, rtol=1e-5, atol=1e-4)
        assert not result[:, 0].any()


def _fused_amid_nans(
    device: str, users: Tensor, items: Tensor, arguments: Arguments, weights: Result
) -> Result:
    from ncf.kernels.triton_operators import lookup_triton

    def look_up(users: Tensor, items: Tensor, *leaves: Tensor) -> Any:
        return lookup_triton(users, items, *(_Amid.apply(leaf) for leaf in leaves))

    moved = [None if value is None else value.to(device) for value in arguments]
    return _outputs_and_gradients(look_up, users.to(device), items.to(device), moved, weights)


class _Amid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return amid_nans(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def test_nothing_outside_the_tables_is_read(run: Callable[..., Any]) -> None:
    results = _both(run, _fused_amid_nans, *_ids(30, 3), _arguments(5, 7, 21))
    for result, exact in results:
        torch.testing.assert_close(result.double(), exact, rtol=0, atol=1e-4)


def _autocast(device: str, *arguments: Any) -> Result:
    with torch.autocast(device, dtype=torch.bfloat16):
        return _fused(device, *arguments)


def test_autocast_rounds_products_and_keeps_tables(run: Callable[..., Any]) -> None:
    results = list(_both(run, _autocast, *_ids(30, 3), _arguments(8, 16, 16)))
    types = [result.dtype for result, _ in results]
    assert types == [torch.float32, torch.bfloat16, *[torch.float32] * 6]
    errors = [float((result.double() - exact).abs().max() / exact.abs().max()) for result, exact in results]
    product, hidden, *gradients = errors
    assert product < 1e-6  # element by element, not rounded
    assert 1e-4 < hidden < 2e-2
    assert max(gradients) < 2e-2


def _unknown(device: str, users: Tensor, items: Tensor, arguments: Arguments) -> list[Tensor]:
    """Outputs, gradients of rows by pair, and a table after an update, where some ids are unknown."""
    from ncf.kernels.triton_operators import SPARSE, lookup_triton, sort_ids, update_rows

    leaves = [None if t is None else amid_nans(t).to(device).requires_grad_() for t in arguments]
    users, items = users.to(device), items.to(device)
    outputs = lookup_triton(users, items, *leaves, gradients=SPARSE)
    loss = torch.stack([output[:2].sum() for output in outputs]).sum()  # of the pairs that are known
    gradients = torch.autograd.grad(loss, leaves[:4])
    rows = [gradient._values() for gradient in gradients]
    table = amid_nans(arguments[1].detach()).to(device)
    moments = torch.zeros_like(table), torch.zeros_like(table)
    scales = torch.ones(3, device=device)
    gradients = torch.ones_like(table)[items % len(table)]
    ids = sort_ids((users, len(arguments[0])), (items, len(table)))[1]
    update_rows(table, *moments, *ids, gradients, scales, 0.1, 0.0, 0.9, 0.999, 1e-8)
    return [value.detach().cpu() for value in (*outputs, *rows, table)]


def test_the_pair_of_an_unknown_id_is_not_a_number_and_no_row_is_touched(run: Callable[..., Any]) -> None:
    """On a GPU nothing waits to raise: the loss shows it."""
    arguments = [t if t is None else t.detach() for t in _arguments(5, 7, 11)]
    num_users, num_items = len(arguments[0]), len(arguments[1])
    users = torch.tensor([0, 1, num_users, -1, 0, 1, 1 << 40])
    items = torch.tensor([2, num_items - 1, 0, 0, num_items, -5, (1 << 32) + 1])
    product, hidden, *rows, table = run(_unknown, users, items, arguments)
    known = lookup_reference(users[:2], items[:2], *arguments)
    for found, expected in zip((product, hidden), known, strict=True):
        assert expected is not None
        torch.testing.assert_close(found[:2], expected, rtol=1e-5, atol=1e-5)
        assert found[2:].isnan().all()
    assert not torch.cat([row[:2].flatten() for row in rows]).isnan().any()
    touched = (table != arguments[1]).any(dim=1).nonzero()[:, 0].tolist()
    assert touched == sorted({int(item) for item in items if 0 <= item < num_items})
