from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ncf.utils.row_formats import OLDER, dequantize_rows, fbgemm_rows, quantize_rows, stored_rows
from ncf.utils.torchrec_import import EmbeddingBagConfig, KeyedJaggedTensor

BITS = {"int8": 8, "int4": 4}
matrices = st.tuples(
    st.integers(0, 20),
    st.integers(1, 33),
    st.sampled_from([1e-9, 1e-3, 0.1, 1.0, 300.0]),
    st.sampled_from([0.0, 0.01, -5.0]),
    st.integers(0, 999),
)


def matrix(rows: int, columns: int, std: float, mean: float, seed: int) -> torch.Tensor:
    drawn = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    weight = drawn * std + mean
    if rows > 2:
        weight[0], weight[1] = 0.0, 0.125  # constant rows
    return weight


@given(matrices, st.sampled_from(["int8", "int4"]))
def test_each_number_is_that_of_the_nearest_code(
    drawn: tuple[int, int, float, float, int], rows: str
) -> None:
    weight, middle = matrix(*drawn), 2 ** (BITS[rows] - 1)
    found = dequantize_rows(quantize_rows(weight, rows), rows, weight.shape[1])
    for row, numbers in zip(weight.tolist(), found.tolist(), strict=True):
        errors = []
        for twentieth in range(20, 11, -1) if rows == "int4" else [20]:
            scale = float(torch.tensor(max(map(abs, row)) * twentieth / 20 / (middle - 1)).half())
            nearest = [scale * max(-middle, min(middle - 1, round(x / scale))) if scale else 0.0 for x in row]
            errors.append(sum((x - y) ** 2 for x, y in zip(row, nearest, strict=True)))
        error = sum((x - y) ** 2 for x, y in zip(row, numbers, strict=True))
        assert error <= min(errors) * 1.0001 + 1e-12


@given(matrices, st.sampled_from(["int8", "int4"]))
def test_fbgemm_reads_the_rows_with_their_offset(
    drawn: tuple[int, int, float, float, int], rows: str
) -> None:
    weight = matrix(drawn[0], -(-drawn[1] // 4) * 4, *drawn[2:])  # FBGEMM has no other widths
    stored = quantize_rows(weight, rows)
    fused = torch.cat(fbgemm_rows(stored, rows), dim=1)
    torch.testing.assert_close(
        torch.ops.fbgemm.FusedNBitRowwiseQuantizedSBHalfToFloat(fused, BITS[rows]),
        dequantize_rows(stored, rows, weight.shape[1]),
        atol=1e-5 * drawn[2],
        rtol=1e-5,
    )


@pytest.mark.parametrize("rows", ["int8", "int4"])
def test_torchrecs_quantized_collection_takes_the_rows(rows: str) -> None:
    from torchrec.modules.embedding_configs import DataType
    from torchrec.quant.embedding_modules import EmbeddingBagCollection

    tables = {name: matrix(9, 16, 0.5, 0.0, seed) for seed, name in enumerate(("user", "item"))}
    configs = [
        EmbeddingBagConfig(
            name=name,
            embedding_dim=16,
            num_embeddings=9,
            feature_names=[name],
            data_type=DataType[rows.upper()],
        )
        for name in tables
    ]
    stored = {name: quantize_rows(table, rows) for name, table in tables.items()}
    collection = EmbeddingBagCollection(
        configs,
        is_weighted=False,
        device=torch.device("cpu"),
        table_name_to_quantized_weights={name: fbgemm_rows(table, rows) for name, table in stored.items()},
    )
    ids = torch.tensor([[3, 8], [0, 5]])  # bags of one
    found = collection(
        KeyedJaggedTensor(
            keys=["user", "item"], values=ids.flatten(), lengths=torch.ones(4, dtype=torch.int32)
        )
    )
    for name, own in zip(tables, ids, strict=True):
        expected = dequantize_rows(stored[name], rows, 16)[own]
        torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=1e-5)


@given(matrices)
def test_rows_of_format_2_are_read_as_fbgemm_reads_them(drawn: tuple[int, int, float, float, int]) -> None:
    weight = matrix(drawn[0], -(-drawn[1] // 4) * 4, *drawn[2:])
    ops, columns = torch.ops.fbgemm, weight.shape[1]
    eight, four = (
        ops.FloatToFused8BitRowwiseQuantized(weight),
        ops.FloatToFusedNBitRowwiseQuantizedSBHalf(weight, 4),
    )
    for stored, rows, expected in (
        (eight, OLDER["int8"], ops.Fused8BitRowwiseQuantizedToFloat(eight)),
        (four, OLDER["int4"], ops.FusedNBitRowwiseQuantizedSBHalfToFloat(four, 4)),
    ):
        assert (stored.dtype, stored.shape[1]) == stored_rows(rows, columns)
        torch.testing.assert_close(
            dequantize_rows(stored, rows, columns), expected, atol=1e-6 * drawn[2], rtol=1e-6
        )


@pytest.mark.parametrize(
    ("rows", "bound"), [("float32", 0.0), ("bfloat16", 2**-8), ("int8", 1 / 254), ("int4", 0.4)]
)
@pytest.mark.parametrize("columns", [1, 7, 64])
def test_each_number_is_near_and_the_shape_is_as_said(rows: str, bound: float, columns: int) -> None:
    weight = torch.rand(50, columns, generator=torch.Generator().manual_seed(1), dtype=torch.float32) * 2 - 1
    stored = quantize_rows(weight, rows)
    assert (stored.dtype, stored.shape[1]) == stored_rows(rows, columns)
    again = dequantize_rows(stored, rows, columns)
    assert again.dtype == torch.float32
    assert float((again - weight).abs().max()) <= bound * 1.05


@pytest.mark.parametrize(("rows", "least"), [("int8", 3.5), ("int4", 6.5)])
def test_rows_of_32_columns_shrink_as_said(rows: str, least: float) -> None:
    weight = matrix(5, 32, 0.1, 0.0, 0)
    assert weight.nbytes / quantize_rows(weight, rows).nbytes >= least


@pytest.mark.parametrize("wrong", [torch.inf, -torch.inf, torch.nan, 1e6])
def test_a_row_without_a_format_is_named_and_so_is_an_unknown_format(wrong: float) -> None:
    weight = torch.ones(5, 4)
    weight[3, 2] = wrong
    for rows in ("int8", "int4"):
        with pytest.raises(ValueError, match=f"row 3 .* has no {rows} format"):
            quantize_rows(weight, rows)
    with pytest.raises(ValueError, match="rows = 'int2': choose one of 'float32'"):
        quantize_rows(weight, "int2")
