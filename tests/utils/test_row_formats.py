from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ncf.utils.torchrec_import  # noqa: F401  loads FBGEMM's operators
from ncf.utils.row_formats import dequantize_rows, quantize_rows, stored_rows


@given(
    st.integers(0, 20),
    st.integers(1, 33),
    st.sampled_from([1e-9, 1e-3, 0.1, 1.0, 300.0]),
    st.sampled_from([0.0, 0.01, -5.0]),
    st.integers(0, 999),
)
def test_quantized_rows_are_fbgemms_to_the_byte_and_back(
    rows: int, columns: int, std: float, mean: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * std + mean
    if rows > 2:
        weight[0], weight[1] = 0.0, 0.125  # constant rows
    ops = torch.ops.fbgemm
    eight = ops.FloatToFused8BitRowwiseQuantized(weight)
    assert torch.equal(quantize_rows(weight, "int8"), eight)
    torch.testing.assert_close(
        dequantize_rows(eight, "int8", columns),
        ops.Fused8BitRowwiseQuantizedToFloat(eight),
        atol=1e-6 * std,
        rtol=1e-6,
    )
    if columns % 4 == 0:  # FBGEMM has no other
        four = ops.FloatToFusedNBitRowwiseQuantizedSBHalf(weight, 4)
        assert torch.equal(quantize_rows(weight, "int4"), four)
        torch.testing.assert_close(
            dequantize_rows(four, "int4", columns),
            ops.FusedNBitRowwiseQuantizedSBHalfToFloat(four, 4),
            atol=1e-6 * std,
            rtol=1e-6,
        )


@pytest.mark.parametrize(
    ("rows", "bound"), [("float32", 0.0), ("bfloat16", 2**-8), ("int8", 1 / 510), ("int4", 1 / 29)]
)
@pytest.mark.parametrize("columns", [1, 7, 64])
def test_each_number_is_near_and_the_shape_is_as_said(rows: str, bound: float, columns: int) -> None:
    weight = torch.rand(50, columns, generator=torch.Generator().manual_seed(1))
    stored = quantize_rows(weight, rows)
    assert (stored.dtype, stored.shape[1]) == stored_rows(rows, columns)
    again = dequantize_rows(stored, rows, columns)
    assert again.dtype == torch.float32
    assert float((again - weight).abs().max()) <= bound * 1.05


def test_a_row_that_is_not_finite_is_named_and_so_is_an_unknown_format() -> None:
    weight = torch.ones(5, 4)
    weight[3, 2] = torch.inf
    for rows in ("int8", "int4"):
        with pytest.raises(ValueError, match=f"row 3 .* has no {rows} format"):
            quantize_rows(weight, rows)
    with pytest.raises(ValueError, match="rows = 'int2': choose one of 'float32'"):
        quantize_rows(weight, "int2")
