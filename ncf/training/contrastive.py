"""Rows on the unit sphere, trained by a softmax over negatives that a whole batch shares."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from ncf.data.interactions import Interactions
from ncf.training.history import History
from ncf.utils.seeding import stream
from ncf.utils.threads import cpu_threads

_BETAS = 0.9, 0.999


def cosine_softmax_rows(
    train: Interactions,
    *,
    factors: int,
    epochs: int,
    temperature: float,
    batch_size: int = 1024,
    negatives: int = 512,
    learning_rate: float = 2e-2,
    seed: int = 0,
    on_epoch: Callable[[History], object] | None = None,
) -> tuple[Tensor, Tensor, History]:
    """Train a row per user and item by sampled softmax of their cosine.

    The loss is that of Wu et al., "On the Effectiveness of Sampled Softmax Loss for Item Recommendation", TOIS 2024.

    Each batch draws its negatives once, uniformly over the items, so its scores and gradients are three matrix
    products. The update is row-sparse Adam, its rate falling linearly to zero. A cosine is bounded, so nothing needs
    decay.

    Args:
        train: the training interactions.
        factors: columns of a row.
        epochs: passes over the interactions.
        temperature: what a cosine is divided by.
        batch_size: interactions per step.
        negatives: items that the interactions of a batch are compared with.
        learning_rate: at the start.
        seed: of the rows, the order and the negatives.
        on_epoch: called after each epoch.

    Returns:
        rows of users: ``[num_users, F]``, of length one.
        rows of items: ``[num_items, F]``, of length one.
        history: the `History`.

    Raises:
        FloatingPointError: if the loss is no longer a finite number.

    Example::

        >>> from ncf import Interactions
        >>> from ncf.training.contrastive import cosine_softmax_rows
        >>> train = Interactions.from_arrays([0, 0, 1, 1], [0, 1, 2, 3])
        >>> users, items, history = cosine_softmax_rows(train, factors=4, epochs=40, temperature=0.2)
        >>> bool((users[0] @ items[0] > users[0] @ items[2]).item())
        True
    """
    random = stream(seed, "cosine")
    tables = [
        torch.randn(size, factors, generator=random, dtype=torch.float32, device="cpu") / 10
        for size in (train.num_users, train.num_items)
    ]
    moments = [(torch.zeros_like(table), torch.zeros_like(table)) for table in tables]
    users, items = train.users.cpu(), train.items.cpu()
    steps = epochs * -(-len(users) // batch_size)
    history, step = History("last"), 0
    with cpu_threads(1), torch.no_grad():
        for epoch in range(1, epochs + 1):
            began, total = time.perf_counter(), 0.0
            order = torch.randperm(len(users), generator=random, device="cpu", dtype=torch.int64)
            for rows in order.split(batch_size):
                drawn = torch.randint(
                    train.num_items, (negatives,), generator=random, device="cpu", dtype=torch.int64
                )
                of_user, of_item = users[rows], torch.cat([items[rows], drawn])
                loss, *gradients = _loss_and_gradients(
                    tables[0][of_user], tables[1][of_item], temperature, len(rows)
                )
                rate, step = learning_rate * (1 - step / steps), step + 1
                for table, state, ids, gradient in zip(
                    tables, moments, (of_user, of_item), gradients, strict=True
                ):
                    _update(table, state, ids, gradient, rate, step)
                total += loss * len(rows)
            if not total < float("inf"):
                raise FloatingPointError(f"the loss is {total} in epoch {epoch}: lower the learning rate")
            history.epochs.append(epoch)
            history.loss.append(total / len(users))
            history.hr.append(None)
            history.ndcg.append(None)
            history.seconds.append(time.perf_counter() - began)
            history.samples.append(len(users) * (1 + negatives))
            history.best_epoch = epoch
            if on_epoch is not None:
                on_epoch(history)
    of_user, of_item = (table / table.norm(dim=1, keepdim=True).clamp_(min=1e-12) for table in tables)
    return of_user, of_item, history


def _loss_and_gradients(
    user: Tensor, item: Tensor, temperature: float, positives: int
) -> tuple[float, Tensor, Tensor]:
    """The mean loss and its gradients: rows ``[P, F]`` and ``[P + S, F]``, the positives' items first."""
    user_length = user.norm(dim=1, keepdim=True).clamp_(min=1e-12)
    item_length = item.norm(dim=1, keepdim=True).clamp_(min=1e-12)
    user, item = user / user_length, item / item_length
    own, shared = item[:positives], item[positives:]
    scores = torch.mm(user, shared.T).div_(temperature)  # [P, S]
    positive = (user * own).sum(dim=1, keepdim=True) / temperature  # [P, 1]
    highest = torch.maximum(scores.amax(dim=1, keepdim=True), positive)
    exponents, of_positive = scores.sub_(highest).exp_(), (positive - highest).exp_()
    total = exponents.sum(dim=1, keepdim=True).add_(of_positive)
    loss = float((total.log() - (positive - highest)).mean())
    exponents.div_(total * (temperature * positives))  # the gradient of the scores
    pull = (of_positive / total - 1) / (temperature * positives)  # [P, 1]
    of_user = torch.addmm(pull * own, exponents, shared)
    of_item = torch.cat([pull * user, torch.mm(exponents.T, user)])
    return (
        loss,
        (of_user - user * (user * of_user).sum(dim=1, keepdim=True)) / user_length,
        (of_item - item * (item * of_item).sum(dim=1, keepdim=True)) / item_length,
    )


def _update(
    table: Tensor, state: tuple[Tensor, Tensor], ids: Tensor, gradient: Tensor, rate: float, step: int
) -> None:
    """Adam for the rows of the batch; those that it holds twice are added up."""
    rows, place = ids.unique(return_inverse=True)
    summed = gradient.new_zeros(len(rows), gradient.shape[1]).index_add_(0, place, gradient)
    means, squares = state
    mean = means[rows].lerp_(summed, 1 - _BETAS[0])
    square = squares[rows].mul_(_BETAS[1]).addcmul_(summed, summed, value=1 - _BETAS[1])
    means[rows], squares[rows] = mean, square
    root = (square / (1 - _BETAS[1] ** step)).sqrt_().add_(1e-8)
    table[rows] -= mean.mul_(rate / (1 - _BETAS[0] ** step)).div_(root)
