"""The steps of one epoch, from wherever the run is to the epoch's end."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from ncf.distributed.collectives import all_reduce_sum, rank
from ncf.distributed.interrupt import Interruption
from ncf.training.batches import TrainingBatches
from ncf.training.run import TrainingState
from ncf.training.steps import Step
from ncf.utils.seeding import stream

# Steps between looks at the loss: each waits for the device, or for the other processes, which may want to stop.
_LOOK_EVERY, _LOOK_TOGETHER_EVERY = 100, 10


def run_epoch(
    state: TrainingState,
    step: Step,
    batches: TrainingBatches,
    *,
    rate_at: Callable[[int], float],
    seed: int,
    interruption: Interruption,
    progress: Callable[[int, int], object],
    save_every: int | None = None,
) -> None:
    """Train for the rest of an epoch.

    Args:
        state: of the run; it is brought to the end of the epoch's steps.
        step: trains on a chunk of batches.
        batches: of the run.
        rate_at: share of the learning rates at a step of the whole run.
        seed: of dropout.
        interruption: whether the user wants to stop, where several processes must agree on it.
        progress: told how many steps of the epoch were done, and how many more now are.
        save_every: steps between checkpoints.

    Raises:
        FloatingPointError: if the loss is no longer a finite number; the epoch and step are named.
        KeyboardInterrupt: if a process was asked to stop.

    Example::

        >>> from ncf import GMF, Interactions
        >>> from ncf.training.batches import TrainingBatches
        >>> from ncf.training.epoch import run_epoch
        >>> from ncf.distributed.interrupt import Interruption
        >>> from ncf.training.losses import LOSSES
        >>> from ncf.training.optimizers import make_optimizer
        >>> from ncf.training.steps import EagerStep
        >>> from ncf.training.run import TrainingState
        >>> model = GMF(2, 3)
        >>> optimizer = make_optimizer(model, "adam", learning_rate=0.01)
        >>> batches = TrainingBatches(Interactions.from_arrays([0, 0, 1], [0, 1, 2]), batch_size=5)
        >>> state = TrainingState(model, model, optimizer, steps=len(batches), selection="last")
        >>> run_epoch(
        ...     state,
        ...     EagerStep(model, optimizer, LOSSES["bce"]),
        ...     batches,
        ...     rate_at=lambda step: 1.0,
        ...     seed=0,
        ...     interruption=Interruption(collective=False),
        ...     progress=lambda done, more: None,
        ... )
        >>> state.step, state.losses.shape
        (3, torch.Size([3]))
    """
    model = state.model.train()
    dropout = bool(model.config.get("dropout"))
    own = (rank(),) if state.collective and rank() else ()
    before = state.epoch * len(batches)
    began, seconds = time.perf_counter(), state.seconds
    looked = saved = state.step
    with torch.random.fork_rng(enabled=dropout):
        for chunk in batches.epoch(state.epoch, start=state.step, per_chunk=step.batches_per_call):
            first, last = state.step, state.step + len(chunk.users)
            if dropout:  # its own stream per step, so that a run can go on in the middle of an epoch
                torch.manual_seed(stream(seed, "dropout", state.epoch, first, *own).initial_seed())
            state.losses[first:last] = step(chunk, [rate_at(before + k) for k in range(first, last)])
            state.step = last
            progress(first, last - first)
            due = save_every is not None and last - saved >= save_every and last < len(batches)
            if (
                due
                or last == len(batches)
                or last - looked >= (_LOOK_TOGETHER_EVERY if state.collective else _LOOK_EVERY)
            ):
                _look(state, looked, interruption)
                looked = last
            if due:
                state.seconds = seconds + time.perf_counter() - began
                state.save()
                saved = last
    state.seconds = seconds + time.perf_counter() - began


def _look(state: TrainingState, since: int, interruption: Interruption) -> None:
    """Add up the processes' parts of the losses; stop if they are no numbers, or if someone wants to stop."""
    losses = state.losses[since : state.step]
    if state.collective:
        wanted = losses.new_tensor([float(interruption.wanted)])
        both = all_reduce_sum(torch.cat([losses, wanted]))
        losses.copy_(both[:-1])
        if float(both[-1]):
            raise KeyboardInterrupt
    bad = (~torch.isfinite(losses)).nonzero()
    if len(bad):
        place = int(bad[0])
        raise FloatingPointError(
            f"the loss is {float(losses[place])} at epoch {state.epoch + 1}, step {since + place + 1}: "
            "lower the learning rate, or look for huge values in the model's initial weights"
        )
