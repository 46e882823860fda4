"""What every test and every example in a docstring leaves behind: nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed as dist


@pytest.fixture(autouse=True)
def _no_process_group() -> Iterator[None]:
    """Tests that fork processes start groups of their own."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
