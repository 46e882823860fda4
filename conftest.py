"""What every test and every example in a docstring leaves behind: nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist


@pytest.fixture(autouse=True)
def _no_process_group() -> Iterator[None]:
    """Tests that fork processes start groups of their own."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture(autouse=True)
def _printed_as_written(request: pytest.FixtureRequest) -> Iterator[None]:
    """Under another default dtype (`NCF_TEST_DTYPE`) PyTorch prints that of each tensor; examples do not show it."""
    before = torch.get_default_dtype()
    if isinstance(request.node, pytest.DoctestItem):
        torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(before)
