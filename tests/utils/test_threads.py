from __future__ import annotations

from threading import Event, Thread

import torch

from ncf.utils.threads import cpu_threads


def test_two_that_overlap_leave_the_setting_as_it_was() -> None:
    before, entered, left = torch.get_num_threads(), Event(), Event()

    def other() -> None:
        with cpu_threads(3):
            entered.set()
            left.wait()

    thread = Thread(target=other)
    with cpu_threads(2):
        thread.start()
        entered.wait()
    left.set()  # the first has left before the second
    thread.join()
    assert torch.get_num_threads() == before
    with cpu_threads(None):
        assert torch.get_num_threads() == before
    with cpu_threads(2):
        with cpu_threads(1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before
