"""Errors that are raised in all processes, and the rank of a process that has not met the others yet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ncf.distributed import rank, start_processes, world_size
from ncf.distributed.collectives import (
    all_gather_object,
    all_gather_rows,
    all_reduce_sum,
    group_size,
    raise_on_all_ranks,
)

from .workers import fork, statuses


class UnpicklableError(Exception):
    """Made from two values, and holds what cannot be sent to another process."""

    def __init__(self, first: str, second: int) -> None:
        super().__init__(f"{first} {second}")
        self.more = lambda: None


def raise_for(number: int) -> None:
    if number == 0:
        b"\xff".decode()
    elif number == 1:
        json.loads("{")
    elif number == 2:
        raise UnpicklableError("no", 7)
    elif number == 3:
        raise KeyboardInterrupt
    elif number == 4:
        Path("/none/such").read_text()
    elif number == 5:
        raise ZeroDivisionError("x")


FAULTS = [  # what it is where it happens, what it is elsewhere, what it says there
    (UnicodeDecodeError, UnicodeError, "rank 1: 'utf-8' codec can't decode byte 0xff"),
    (json.JSONDecodeError, ValueError, "rank 1: Expecting property name"),
    (UnpicklableError, Exception, "rank 1: no 7"),
    (KeyboardInterrupt, KeyboardInterrupt, "rank 1: "),
    (FileNotFoundError, FileNotFoundError, "rank 1: .* No such file"),
    (ZeroDivisionError, ZeroDivisionError, "rank 1: x"),
]


def fail(here: int, _: int) -> None:
    assert (rank(), world_size(), group_size()) == (here, 2, 1)  # as torchrun said
    assert all_gather_object(5) == [5]
    start_processes(timeout=60)
    assert (rank(), world_size(), group_size()) == (here, 2, 2)
    for number, (there, elsewhere, said) in enumerate(FAULTS):
        expected = there if here == 1 else elsewhere
        with pytest.raises(expected, match=None if here == 1 else said) as error, raise_on_all_ranks():
            raise_for(number if here == 1 else 99)
        assert type(error.value) is expected
    with raise_on_all_ranks():
        pass
    assert all_reduce_sum(torch.tensor([here, 1])).tolist() == [1, 2]
    assert all_gather_rows(torch.full((here + 1, 2), here)).tolist() == [[0, 0], [1, 1], [1, 1]]
    dist.destroy_process_group()


def test_any_error_of_one_process_is_raised_in_all_and_a_rank_is_known_before_they_meet(
    tmp_path: Path,
) -> None:
    assert statuses(fork(fail, 2)) == [0, 0]
