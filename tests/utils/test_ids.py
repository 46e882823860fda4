from __future__ import annotations

import pytest
import torch

from ncf.utils.checks import check_ids


@pytest.mark.parametrize(
    ("ids", "size", "lowest", "message"),
    [
        (torch.tensor([0, 4, 5, 6]), 5, 0, "x[2] = 5 is out of range for num = 5: ids go from 0 to 4; y"),
        (torch.tensor([0, -1, -2]), 5, -1, "x[2] = -2 is out of range for num = 5: ids go from -1 to 4; y"),
        (torch.tensor([[0, 1], [1, 9]]), 5, 0, "x[1, 1] = 9 is out of range for num = 5: ids go from 0 to 4; y"),
        (torch.tensor([0, 9]).expand(3, -1), 5, 0, "x[0, 1] = 9 is out of range for num = 5: ids go from 0 to 4; y"),
        (torch.tensor([2**40, -1]), None, 0, "x[1] = -1 is out of range: ids are 0 or more; y"),
        (torch.tensor([0.0]), 5, 0, "x must be an int64 tensor of ids, got torch.float32"),
        ([0], 5, 0, "x must be an int64 tensor of ids, got list"),
    ],
)  # fmt: skip
def test_the_first_id_out_of_range_is_named(ids: object, size: int | None, lowest: int, message: str) -> None:
    with pytest.raises(ValueError, match=r"^x") as raised:
        check_ids(ids, "x", size, "num", lowest=lowest, remedy="y")
    assert str(raised.value) == message


def test_what_is_in_range_passes() -> None:
    check_ids(torch.tensor([0, 4]), "x", 5, "num")
    check_ids(torch.tensor([-1, 4]), "x", 5, "num", lowest=-1)
    check_ids(torch.tensor(3), "x", 5, "num")
    check_ids(torch.tensor([0, 2**40]), "x")
    for shape in ((0,), (0, 3), (3, 0)):
        check_ids(torch.empty(shape, dtype=torch.int64), "x", 0, "num")
