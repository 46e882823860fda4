from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from ncf.utils import files
from ncf.utils.files import atomic_write, header, read_slice, read_tensors, write_tensors, write_text


def test_a_file_appears_whole_in_a_folder_made_for_it(tmp_path: Path) -> None:
    place = tmp_path / "a" / "b.txt"
    with atomic_write(place) as beside:
        beside.write_text("half")
        assert not place.exists()
        assert beside.parent.parent == place.parent  # a rename across file systems would be a copy
        beside.write_text("whole")
    assert place.read_text() == "whole"
    assert list(place.parent.iterdir()) == [place]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    place = tmp_path / "file.txt"
    write_text(place, "old")

    def interrupted() -> None:
        with atomic_write(place) as beside:
            beside.write_text("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert place.read_text() == "old"
    assert list(tmp_path.iterdir()) == [place]


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "ours", "")
        (tmp_path / "any").touch()
    finally:
        os.umask(before)
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_text_is_utf_8(tmp_path: Path) -> None:
    write_text(tmp_path / "t", "Amélie → 天使\n")
    assert (tmp_path / "t").read_bytes() == "Amélie → 天使\n".encode()


def test_tensors_of_every_kind_come_back_to_the_bit(tmp_path: Path) -> None:
    tensors = {
        "transposed": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).T,
        "learned": torch.nn.Parameter(torch.tensor([1.5, float("nan"), -0.0])),
        "numbers": torch.tensor([2**62, -1]),
        "half": torch.tensor([0.1], dtype=torch.bfloat16),
        "expanded": torch.arange(3).expand(2, 3),
        "empty": torch.empty(0, 4),
    }
    write_tensors(tmp_path / "t", tensors)
    again = read_tensors(tmp_path / "t", names=tuple(tensors))
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype
        assert torch.equal(torch.nan_to_num(again[name]), torch.nan_to_num(tensor))
        assert not again[name].requires_grad


def test_fault_15_a_pickled_file_is_not_read(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "t")
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        read_tensors(tmp_path / "t", names=["weight"])


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b'\x08\0\0\0\0\0\0\0{"a": 1}'])
def test_a_file_of_something_else_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(ValueError, match="t is not a complete safetensors file"):
        read_tensors(tmp_path / "t", names=["weight"])


def test_missing_and_unexpected_tensors_and_files_are_named(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t", {"b": torch.ones(1), "a": torch.ones(1)})
    with pytest.raises(ValueError, match=r"missing \['c'\], unexpected \['b'\]"):
        read_tensors(tmp_path / "t", names=["a", "c"])
    with pytest.raises(ValueError, match=r"missing nothing, unexpected \['a', 'b'\]"):
        read_tensors(tmp_path / "t", names=[])
    for place in (tmp_path / "none", tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file"):
            read_tensors(place, names=["a"])


@given(
    st.dictionaries(
        st.text(min_size=1).filter(lambda name: name != "__metadata__"),
        st.tuples(
            st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64]),
            st.lists(st.integers(0, 4), max_size=3),
        ),
        max_size=6,
    )
)
def test_the_header_and_the_tensors_in_its_order_are_the_librarys_own_file(kinds: dict) -> None:
    tensors = {name: (torch.rand(shape) * 99).to(dtype) for name, (dtype, shape) in kinds.items()}
    start, names = header({name: tensor.to("meta") for name, tensor in tensors.items()})
    data = b"".join(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes() for name in names)
    assert start + data == save(tensors)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_rectangle_is_that_of_the_matrix(tmp_path: Path, data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 9))
    whole = torch.rand(rows, columns).to(data.draw(st.sampled_from([torch.float32, torch.bfloat16])))
    write_tensors(tmp_path / "t", {"whole": whole, "other": torch.ones(3)})
    row, column = data.draw(st.integers(0, rows)), data.draw(st.integers(0, columns))
    out = torch.full(
        (data.draw(st.integers(0, rows - row)), data.draw(st.integers(0, columns - column))), -1.0
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_BLOCK", data.draw(st.integers(1, 60)))
        read_slice(tmp_path / "t", "whole", out, row=row, column=column)
    assert torch.equal(out, whole[row : row + len(out), column : column + out.shape[1]].float())


def test_a_rectangle_of_a_file_that_is_gone_damaged_or_another_is_refused(tmp_path: Path) -> None:
    place, out = tmp_path / "t", torch.zeros(3, 2)
    with pytest.raises(FileNotFoundError, match="t is gone, and weight with it: load the model again"):
        read_slice(place, "weight", out, row=0, column=0)
    for smaller in (torch.ones(4, 3), torch.ones(1, 4), torch.ones(5, 1)):
        write_tensors(place, {"weight": smaller})
        with pytest.raises(ValueError, match="has another shape of weight by now"):
            read_slice(place, "weight", out, row=2, column=1)
    write_tensors(place, {"bias": torch.ones(5, 4)})
    with pytest.raises(ValueError, match="does not contain tensor weight"):
        read_slice(place, "weight", out, row=2, column=1)
    place.write_bytes(place.read_bytes()[:-1])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        read_slice(place, "weight", out, row=2, column=1)
    assert not out.any()
