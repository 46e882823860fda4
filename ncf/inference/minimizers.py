"""Many small minimisations at once, each independent of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

_MOST_NEWTON_STEPS, _MOST_LBFGS_STEPS, _MEMORY, _HALVINGS = 30, 60, 8, 12
FEW = 8  # problems whose Hessians are cheaper as products of their own than from the packed products of all


class Logits(Protocol):
    """The logits of B problems as functions of z, piecewise linear in it.

    Attributes:
        start: z = 0, ``[1, r]``.
        packed: where the derivatives of the negatives are the same in all problems, the products of two of them,
            ``[S, r (r + 1) / 2]``: row by row the lower half of a matrix.
    """

    start: Tensor
    packed: Tensor | None

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the negatives ``[b, S]`` and of the positives ``[B, n]`` at ``[b, r]``, where b is B or 1."""

    def slopes(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Their derivatives by z: ``[S, r]``, the same in all problems, or ``[b, S, r]``; and ``[B, n, r]``."""


class SignedLogits(Protocol):
    """The logits of one problem as functions of z, piecewise linear in it; logits of positives are negated."""

    def __call__(self, z: Tensor) -> tuple[Tensor, Any]:
        """Signed logits ``[M]`` at ``[r]``, and what `slopes` needs of the point."""

    def slopes(self, point: Any) -> Tensor:
        """Their derivatives by z, ``[M, r]``."""


def newton_alone(
    logits: SignedLogits, weights: Tensor, unit: Tensor, *, tolerance: float
) -> tuple[Tensor, float, int, bool]:
    """One problem of `newton`, in fewer and smaller operations.

    Args:
        logits: the model.
        weights: of each logit's loss, ``[M]``.
        unit: the unit matrix, ``[r, r]``.
        tolerance: stop after a step that lowers the objective by no more than this.

    Returns:
        z ``[r]``, the objective, the number of steps and convergence.
    """
    z = torch.zeros_like(unit[0])
    signed, point = logits(z)
    objective = float(F.softplus(signed) @ weights)
    for step in range(1, _MOST_NEWTON_STEPS + 1):
        slopes = logits.slopes(point)
        probability = torch.sigmoid(signed)
        pull = weights * probability
        gradient = torch.addmv(z, slopes.T, pull)
        curved = torch.addcmul(pull, pull, probability, value=-1)
        hessian = torch.addmm(unit, slopes.T, slopes * curved[:, None])
        factor = torch.linalg.cholesky_ex(hessian).L
        move = torch.cholesky_solve(gradient[:, None], factor)[:, 0]
        slope, share = float(gradient @ move), 1.0
        for _ in range(_HALVINGS):
            moved = torch.sub(z, move, alpha=share)
            signed, point = logits(moved)
            reached = float(F.softplus(signed) @ weights) + 0.5 * float(moved @ moved)
            if not reached > objective - 1e-4 * share * slope + 1e-6 * abs(objective):
                break
            share /= 2
        gained, z, objective = objective - reached, moved, reached
        if gained <= tolerance:
            return z, objective, step, True
    return z, objective, _MOST_NEWTON_STEPS, False


def newton(
    logits: Logits, weights: Tensor, scale: Tensor, drawn: Tensor, real: Tensor, *, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logistic regressions with a standard normal prior, by Newton's method with step halving.

    Minimises ½‖z‖² + s Σ w · softplus(negative logit) + Σ softplus(−positive logit) from z = 0. A positive may be one
    of the negatives as well; its loss as a negative is taken off. So all problems have the same weights, and share what
    is computed of the negatives at z = 0. The Hessian is exact, since the logits have no curvature, and positive
    definite.

    Args:
        logits: the model.
        weights: of each negative, ``[S]``.
        scale: of these in each problem, ``[B, 1]``.
        drawn: the weight that each positive has as a negative, times the scale, ``[B, n]``.
        real: the positives that are no padding, ``[B, n]``, bool.
        tolerance: stop after a step that lowers the objective by no more than this.

    Returns:
        z ``[B, r]``, the objective ``[B]``, steps ``[B]`` and convergence ``[B]``.
    """

    def value(z: Tensor, negative: Tensor, positive: Tensor) -> Tensor:
        of_positives = F.softplus(-positive) - drawn * F.softplus(positive)
        return (
            scale[:, 0] * (F.softplus(negative) @ weights)
            + (of_positives * real).sum(1)
            + 0.5 * z.square().sum(1)
        )

    z = logits.start  # the same in all problems
    rank = z.shape[1]
    unit = torch.eye(rank, dtype=z.dtype, device=z.device)
    steps = torch.zeros(len(scale), dtype=torch.int64, device=z.device)
    active = torch.ones(len(scale), dtype=torch.bool, device=z.device)
    negative, positive = logits(z)
    objective = value(z, negative, positive)
    for _ in range(_MOST_NEWTON_STEPS):
        outside, inside = logits.slopes(z)
        probability = torch.sigmoid(negative)
        weighted = probability * weights  # [b, S]
        curved = weighted * (1 - probability)
        right = torch.sigmoid(positive)
        pull = ((1 - right) + drawn * right) * real
        gradient = z - (pull[:, None] @ inside)[:, 0]
        if outside.dim() == 3:
            gradient = gradient + scale * (weighted[:, None] @ outside)[:, 0]
            hessian = scale[:, :, None] * (outside.mT @ (curved[:, :, None] * outside))
        else:
            assert logits.packed is not None
            gradient = gradient + scale * (weighted @ outside)
            hessian = z.new_empty(len(scale), rank, rank)
            rows = ((curved @ logits.packed) * scale).split([*range(1, rank + 1)], dim=1)
            for row, values in enumerate(rows):  # the lower half, which is all that is read
                hessian[:, row, : row + 1] = values
        bent = right * (1 - right) * (1 - drawn) * real
        hessian = torch.baddbmm(hessian, inside.mT, bent[:, :, None] * inside)
        factor = torch.linalg.cholesky(hessian.add_(unit))
        step = torch.cholesky_solve(gradient[:, :, None], factor)[:, :, 0]
        slope = (gradient * step).sum(1)
        share = active.to(z.dtype)
        for _ in range(_HALVINGS):
            moved = z - share[:, None] * step
            negative, positive = logits(moved)
            reached = value(moved, negative, positive)
            worse = reached > objective - 1e-4 * share * slope + 1e-6 * objective.abs()
            if not bool(worse.any()):
                break
            share = torch.where(worse, share / 2, share)
        active_before, active = active, active & (objective - reached > tolerance)
        z, objective = moved, reached
        steps += active_before
        if not bool(active.any()):
            break
    return z, objective, steps, ~active


def lbfgs(
    objective: Callable[[Tensor, Tensor], Tensor], z: Tensor, *, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """L-BFGS with backtracking (Nocedal & Wright 2006, algorithm 7.5), for many problems at once.

    Args:
        objective: of points ``[b, r]`` of the problems numbered ``[b]``, their values ``[b]``; differentiable.
        z: where to start, ``[B, r]``.
        tolerance: stop after a step that lowers the objective by no more than this.

    Returns:
        The points ``[B, r]``, the objective ``[B]``, steps ``[B]`` and convergence ``[B]``.
    """
    final, values = z.clone(), torch.empty(len(z), dtype=z.dtype, device=z.device)
    steps = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    converged = torch.zeros(len(z), dtype=torch.bool, device=z.device)
    active = torch.arange(len(z), device=z.device, dtype=torch.int64)

    def at(z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            point = z.detach().requires_grad_(True)
            value = objective(point, active)
            (gradient,) = torch.autograd.grad(value.sum(), point)
        return value.detach(), gradient

    value, gradient = at(z)
    memory: list[tuple[Tensor, Tensor, Tensor]] = []  # moves, changes of the gradient, 1 / their product
    for _ in range(_MOST_LBFGS_STEPS):
        direction = -_times_inverse(memory, gradient)
        slope = (gradient * direction).sum(1)
        share = torch.ones_like(slope)
        if not memory:
            share = (1 / gradient.norm(dim=1).clamp(min=1e-12)).clamp(max=1.0)
        for _ in range(_HALVINGS):
            moved = z + share[:, None] * direction
            reached, new_gradient = at(moved)
            worse = ~(reached <= value + 1e-4 * share * slope + 1e-6 * value.abs())
            if not bool(worse.any()):
                break
            share = torch.where(worse, share / 2, share)
        going = value - reached > tolerance
        move, change = moved - z, new_gradient - gradient
        curvature = (move * change).sum(1)
        positive = curvature > 1e-10 * move.square().sum(1)
        memory = memory[-_MEMORY + 1 :] + [(move, change, positive / curvature.where(positive, 1.0))]
        z, value, gradient = moved, reached, new_gradient
        final[active], values[active] = z, value
        steps[active] += 1
        converged[active[~going]] = True
        if not bool(going.all()):  # the others go on without those that are done
            active, z, value, gradient = (each[going] for each in (active, z, value, gradient))
            memory = [(a[going], b[going], c[going]) for a, b, c in memory]
            if not len(active):
                break
    return final, values, steps, converged


def _times_inverse(memory: list[tuple[Tensor, Tensor, Tensor]], gradient: Tensor) -> Tensor:
    """The two-loop recursion: the gradient ``[b, r]`` times an estimate of the inverse Hessian."""
    q, alphas = gradient.clone(), []
    for move, change, inverse in reversed(memory):
        alphas.append(inverse * (move * q).sum(1))
        q -= alphas[-1][:, None] * change
    if memory:
        _, change, inverse = memory[-1]
        scale = 1 / (inverse * change.square().sum(1)).where(inverse > 0, 1.0)
        q *= scale[:, None]
    for (move, change, inverse), alpha in zip(memory, reversed(alphas), strict=True):
        q += (alpha - inverse * (change * q).sum(1))[:, None] * move
    return q
