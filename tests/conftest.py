"""Small data that every test may use, and one thread: the machines that run tests have few cores."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

import ncf.kernels
from ncf import Interactions, Split, leave_one_out
from ncf.kernels.native import library

# A busy machine is no fault.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
    # `NCF_TEST_DTYPE=float64 make test`: nothing may depend on what a script has made PyTorch's default.
    torch.set_default_dtype(getattr(torch, os.environ.get("NCF_TEST_DTYPE", "float32")))


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order() -> None:
    torch.manual_seed(0)


def random_interactions(num_users: int, num_items: int, per_user: int, seed: int = 0) -> Interactions:
    """Each user's distinct random items, in random order of time."""
    generator = torch.Generator().manual_seed(seed)
    here: dict[str, Any] = {"generator": generator, "device": "cpu"}
    order = torch.rand(num_users, num_items, dtype=torch.float32, **here)
    items = order.argsort(dim=1)[:, :per_user]
    users = torch.arange(num_users, device="cpu").repeat_interleave(per_user)
    times = torch.randint(0, 10 * per_user, (len(users),), **here)  # with ties
    return Interactions(users, items.reshape(-1), times, num_users, num_items)


@pytest.fixture
def interactions() -> Interactions:
    return random_interactions(num_users=40, num_items=60, per_user=12)


@pytest.fixture
def split(interactions: Interactions) -> Split:
    return leave_one_out(interactions)


@pytest.fixture(scope="session")
def any_processor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The CPU kernels with vectors of all widths, in instructions that every processor has."""
    folder, source = tmp_path_factory.mktemp("kernel"), Path(ncf.kernels.__file__).with_name("native.c")
    strict = ["-O1", "-fno-math-errno", "-Wall", "-Wextra", "-Werror", "-Wno-psabi"]
    more = os.environ.get("CFLAGS", "").split()  # `make sanitize`
    options = [*strict, *more, "-DNCF_ANY_PROCESSOR", "-pthread", "-fPIC", "-shared"]
    subprocess.run(["cc", *options, "-o", folder / "_native.so", source, "-lm"], check=True)
    return library(folder)
