"""Fold-in: rows of users or items that were not there in training; all other parameters stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, TypeVar, overload

import torch
from torch import Tensor
from torch.nn import functional as F

from ncf.data.interactions import Interactions
from ncf.data.vocabulary import Vocabulary
from ncf.inference.histories import encoded_histories
from ncf.inference.logits import BlockLogits, OneHistoryLogits, PreparedLogits, logits_of, parts_of
from ncf.inference.minimizers import FEW, lbfgs, newton, newton_alone
from ncf.kernels import ScoringTables
from ncf.models.base import EmbeddingModel
from ncf.models.baselines import EASE, ItemKNN, ItemPop
from ncf.models.embeddings import Side
from ncf.models.scoring import Scorer
from ncf.utils.checks import check_choice, check_ids, whole
from ncf.utils.seeding import stream

B = TypeVar("B", ItemPop, ItemKNN, EASE)
_NUMBERS_PER_BLOCK = 1 << 20  # scores, or elements of Hessians, that are held at a time: 4 MB


@dataclass(frozen=True, eq=False, kw_only=True)
class FoldedRows:
    """The rows of new users, or of new items, of a model; a scorer over them.

    It ranks like a model whose only users, numbered in the order of the histories, are the new ones: `evaluate`,
    `recommend` and ``score`` take it. Of new items, numbered alike, it scores those for the model's own users.

    Args:
        side: ``"user"`` or ``"item"``.
        rows: by table, ``[U, D]``.
        objective: the minimised sum of losses and prior, ``[U]``, in nats; the prior alone is 0 at its mean.
        steps: of the solver, ``[U]``, int64.
        converged: ``[U]``, bool: the last step lowered the objective by less than the tolerance.
        known: distinct ids of each history that the model has, ``[U]``, int64; with 0 the row is the prior's mean, and
            the scores are what `FoldIn` says of an empty history.
        unknown: ids of each history that the model does not have and that were left out, ``[U]``, int64.
        tables: the model's parameters with these rows, laid out for ranking; one column of the product is the
            correction for short histories.
        user_ids: raw ids of the users, if there are any.
        item_ids: raw ids of the items, if there are any.

    Example::

        >>> import torch
        >>> from ncf import MatrixFactorization, fold_in
        >>> folded = fold_in(MatrixFactorization(30, 20, factors=4), [[3, 5], []])
        >>> folded.rows["user_mf"].shape, folded.known
        (torch.Size([2, 8]), tensor([2, 0]))
        >>> folded.score(torch.tensor([0]), torch.tensor([[1, 2, 3]])).shape
        torch.Size([1, 3])
    """

    side: Side
    rows: dict[str, Tensor]
    objective: Tensor
    steps: Tensor
    converged: Tensor
    known: Tensor
    unknown: Tensor
    tables: ScoringTables
    user_ids: Vocabulary | None = None
    item_ids: Vocabulary | None = None

    def __len__(self) -> int:
        return len(self.known)

    @property
    def num_users(self) -> int:
        """The new users; of new items, the model's users."""
        return self.tables.num_users or 0

    @property
    def num_items(self) -> int:
        """The model's items; the new items, if those are folded in."""
        return self.tables.num_items or 0

    @property
    def device(self) -> torch.device:
        """The device of the rows."""
        return self.tables.device

    def scorer(self) -> Scorer:
        """A frozen, fast view for ranking."""
        return Scorer(self.tables)

    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        """Return scores ``[U, C]`` of users ``[U]`` and candidates ``[U, C]`` or ``[C]``.

        See `ncf.models.base.SupportsScore.score`.

        Raises:
            ValueError: if an id is out of range.
        """
        check_ids(users, "users", self.num_users, "num_users")
        check_ids(candidates, "candidates", self.num_items, "num_items", lowest=-1)
        return self.scorer().score(users, candidates)

    def __repr__(self) -> str:
        known, unknown = int(self.known.sum()), int(self.unknown.sum())
        return (
            f"FoldedRows({len(self)} new {self.side}s, of {known} known ids; {unknown} unknown ones left out)"
        )


class FoldIn:
    """Fold-in of many users or items into one model, prepared once.

    A new user's rows minimise what training minimised for a known one: the losses of the history and of the negatives,
    all other parameters being fixed, plus a Gaussian prior with the mean and the covariance of the trained rows
    (empirical Bayes). Without a history the rows are the prior's mean; each item moves them away from it.

    The mean row's logits are not the logits of popularity. Where little is known of a user, the probability of an item
    is the mean over all that the row may be. So for an empty history, an item's score is the logit of its mean
    probability among ``background`` trained rows. After n items, 1 / (1 + n) of the difference is added to the logit.

    Negatives are not sampled per item as in training. Each item outside the history has the weight with which training
    would have drawn it, ``negatives · history / unseen``. A catalogue of more than ``background`` items is represented
    by that many, drawn once with the seed. A user's rows so do not depend on the other users of a call.

    With the loss ``"bce"`` the rows are found by Newton's method from the prior's mean. For GMF and
    MatrixFactorization the problem is convex. For an MLP with ReLU the logit is piecewise linear in the row, so that
    Newton's method applies, but other minima may exist; the objective is returned. Other losses, and models that
    normalise their rows, are minimised by L-BFGS.

    Args:
        model: a trained model in one process; the view is frozen, later training does not change it.
        side: ``"user"`` or ``"item"``, of the rows to find.
        negatives: per positive, as in training.
        loss: the loss of training: ``"bce"``, ``"bpr"`` or ``"softmax"``.
        background: how many items (or users) represent those outside a history.
        prior: how strongly the prior counts, 1 as it is.
        activity: for new items, interactions of each of the model's users, ``[num_users]``: a user is a negative of a
            new item in proportion to them, as in training. By default all users are alike.
        tolerance: the search ends after a step that lowers the objective by no more than this, in nats.
        seed: of the background.

    Raises:
        ValueError: for an unknown choice, a number out of range, or a model that is sharded or without values.

    Example::

        >>> from ncf import MatrixFactorization
        >>> from ncf.inference.fold_in import FoldIn
        >>> fold = FoldIn(MatrixFactorization(30, 20, factors=4))
        >>> fold([[3, 5], [7]]).converged
        tensor([True, True])
    """

    @torch.no_grad()
    def __init__(
        self,
        model: EmbeddingModel,
        *,
        side: Side = "user",
        negatives: float = 4,
        loss: Literal["bce", "bpr", "softmax"] = "bce",
        background: int = 512,
        prior: float = 1.0,
        activity: Tensor | None = None,
        tolerance: float = 0.01,
        seed: int = 0,
    ) -> None:
        check_choice("side", side, ("user", "item"))
        check_choice("loss", loss, _LOSSES)
        for name, value in (("negatives", negatives), ("prior", prior), ("tolerance", tolerance)):
            if not 0 < value < torch.inf:
                raise ValueError(f"{name} = {value!r}: give a positive number")
        if model.embeddings.is_sharded or model.embeddings.is_meta:
            raise ValueError("the model is sharded or without values: save it and load it in one process")
        self.side, self._other_side = side, "item" if side == "user" else "user"
        self.negatives, self.loss, self.tolerance = negatives, loss, tolerance
        self._model = model
        self._ids: Vocabulary | None = getattr(model, f"{self._other_side}_ids")
        self._num_others: int = getattr(model, f"num_{self._other_side}s")
        weights = {name: weight.detach().clone() for name, weight in model.embeddings.weights().items()}
        sides = {table.name: table.side for table in model.embeddings.tables}
        own = [name for name in weights if sides[name] == side]
        self._dims = {name: weights[name].shape[1] for name in own}
        self._others = {name: weight for name, weight in weights.items() if name not in own}
        trained = torch.cat([weights[name] for name in own], dim=1).double()  # [R, D]
        self._mean = trained.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov(trained.T, correction=0).reshape(len(self._mean), -1))
        spread = values > 1e-9 * values[-1]  # constant columns, as padding is, are no direction to move in
        deviations = (values[spread] / prior).sqrt()
        dtype = next(iter(weights.values())).dtype
        self._axes = (vectors[:, spread] * deviations).T.to(dtype)  # [r, D]
        self._mean = self._mean.to(dtype)
        self._tables = model.scoring_tables({**self._split(self._mean[None]), **self._others}).copied()
        self._size = whole("background", background)
        self._background, self._weights = self._choose_background(activity, seed)
        self._position = torch.full((self._num_others + 1,), -1, device=self._mean.device, dtype=torch.int64)
        self._position[self._background] = torch.arange(
            len(self._background), device=self._mean.device, dtype=torch.int64
        )
        self._other_parts = parts_of(self._tables, self._other_side, self._num_others)
        self._outside = tuple(part[self._background] for part in self._other_parts)  # [S, ...] each
        self._has_tower = self._other_parts[0].shape[1] > 0
        # The own half of the logit is linear in the row, unless the model normalises its rows.
        zero = self._parts(torch.zeros_like(self._mean)[None])
        unit = self._parts(torch.eye(len(self._mean), dtype=dtype, device=self._mean.device))
        slopes = [part - at_zero for part, at_zero in zip(unit, zero, strict=True)]  # [D, ...] each
        examples = trained[:4].to(dtype)
        is_linear = all(
            torch.allclose(examples @ slope + at_zero, part, rtol=1e-3, atol=1e-5)
            for slope, at_zero, part in zip(slopes, zero, self._parts(examples), strict=True)
        )
        self._prepared = None
        if loss == "bce" and is_linear:
            start, by_z = self._parts(self._mean[None]), [self._axes @ slope for slope in slopes]
            self._prepared = PreparedLogits(self._tables, self._other_parts, self._background, start, by_z)
        at_mean = logits_of(self._tables, self._parts(self._mean[None]), self._other_parts)[0]
        correction = self._logits_of_mean_probability(trained, seed) - at_mean  # [N]
        self._corrected = torch.cat([self._other_parts[1], correction[:, None]], dim=1)  # [N, F + 1]
        # Where an operation costs less than its call, one history after the other is faster than blocks of them.
        self._unit = torch.eye(len(self._axes), dtype=dtype, device=self._mean.device)
        movable = (
            len(self._axes) > 0
        )  # trained rows that are all equal, as of one user, leave nothing to find
        self._alone = movable and self._prepared is not None and self._mean.device.type == "cpu"

    @torch.no_grad()
    def __call__(self, histories: Interactions | Sequence[Any]) -> FoldedRows:
        """Find the rows of some users, or items.

        Args:
            histories: for each new user the items, by raw id as in the model's vocabulary, or by number in an int64
                tensor; or `Interactions`, each of whose users is one. For new items, their users.

        Returns:
            `FoldedRows`. Ids twice in a history count once. Ids that the model does not have are left out and counted.

        Raises:
            ValueError: if an id is missing or of another type than the vocabulary's, or a number is out of range.
        """
        device = self._mean.device
        offsets, ids, unknown = encoded_histories(histories, self._ids, self._num_others)
        lengths = offsets.diff()
        few = len(lengths) < FEW or len(self._axes) > len(self._background)
        if self._alone and len(lengths) and (few or self._has_tower):
            alone = [self._solve_alone(ids[start:end]) for start, end in pairwise(offsets.tolist())]
            points, objectives, counts, ends = zip(*alone, strict=True)
            return self._folded(
                torch.stack(points),
                torch.tensor(objectives, dtype=self._mean.dtype, device=device),
                torch.tensor(counts, dtype=torch.int64, device=device),
                torch.tensor(ends, dtype=torch.bool, device=device),
                lengths,
                unknown,
            )
        z = torch.zeros(len(lengths), len(self._axes), dtype=self._mean.dtype, device=device)
        objective = torch.zeros(len(lengths), dtype=z.dtype, device=device)
        steps = torch.zeros(len(lengths), dtype=torch.int64, device=device)
        converged = torch.ones(len(lengths), dtype=torch.bool, device=device)
        order = lengths.argsort(stable=True)  # users of like length share a block with little padding
        order = order[int((lengths == 0).sum()) if len(self._axes) else len(order) :]
        while len(order):
            longest = int(lengths[order[-1]])
            alike = int((2 * lengths[order] >= longest).sum())  # at most half of a block is padding
            size = min(self._block_size(longest), max(FEW, alike))
            block, order = order[-size:], order[:-size]
            columns = torch.arange(longest, dtype=torch.int64, device="cpu")
            real = (columns < lengths[block, None]).to(device)  # [B, n]
            listed = ids[(offsets[block, None] + columns).clamp(max=len(ids) - 1)].to(device)
            found = self._solve(listed.where(real, self._num_others), real)
            block = block.to(device)
            z[block], objective[block], steps[block], converged[block] = found
        return self._folded(z, objective, steps, converged, lengths, unknown)

    def _folded(
        self, z: Tensor, objective: Tensor, steps: Tensor, converged: Tensor, known: Tensor, unknown: Tensor
    ) -> FoldedRows:
        rows = torch.addmm(self._mean, z, self._axes)
        hidden, gmf, bias = self._parts(rows)
        share = 1 / (1 + known[:, None].to(gmf))
        there: dict[str, Any] = {
            f"{self.side}_gmf": torch.cat([gmf, share], dim=1),
            f"{self._other_side}_gmf": self._corrected,
        }
        for name, value in ((f"{self.side}_hidden", hidden), (f"{self.side}_bias", bias[:, 0])):
            if getattr(self._tables, name) is not None:
                there[name] = value
        return FoldedRows(
            side=self.side,
            rows=self._split(rows),
            objective=objective,
            steps=steps,
            converged=converged,
            known=known,
            unknown=unknown,
            tables=replace(self._tables, **there),
            **{f"{self._other_side}_ids": self._ids},
        )

    def _block_size(self, longest: int) -> int:
        """Return the number of problems with histories of up to this length that are solved at a time."""
        rank, hidden, background = len(self._axes), self._other_parts[0].shape[1], len(self._background)
        width = max(background, rank**2, longest * rank)
        if hidden or self._prepared is None:
            width = (background + longest) * (rank + 2 * hidden)
        if self.loss == "bpr":
            width = max(width, background * longest)
        return max(1, _NUMBERS_PER_BLOCK // width)

    def _split(self, rows: Tensor) -> dict[str, Tensor]:
        """Rows of all tables side by side, ``[B, D]``, by table."""
        return dict(zip(self._dims, rows.split(list(self._dims.values()), dim=1), strict=True))

    def _choose_background(self, activity: Tensor | None, seed: int) -> tuple[Tensor, Tensor]:
        """Draw who represents those outside a history, ``[S]``, and the weight of each, ``[S]``."""
        every = _drawn(self._num_others, self._size, stream(seed, "background", self.side))
        weights = torch.ones(len(every), dtype=self._mean.dtype, device="cpu")
        if activity is not None:
            if self.side == "user" or activity.shape != (self._num_others,):
                raise ValueError(
                    f"activity {tuple(activity.shape)}: give one number per user, for side='item'"
                )
            weights = activity[every].to(weights.dtype)
        return every.to(self._mean.device), weights.to(self._mean.device)

    def _logits_of_mean_probability(self, trained: Tensor, seed: int) -> Tensor:
        """Of each of the other side, among as many trained rows as there are in the background, ``[N]``."""
        chosen = _drawn(len(trained), self._size, stream(seed, "trained rows", self.side))
        rows = self._split(trained[chosen.to(trained.device)].to(self._mean))
        scorer = Scorer(self._model.scoring_tables({**rows, **self._others}))
        chosen = torch.arange(len(chosen), dtype=torch.int64, device=self._mean.device)
        every = torch.arange(self._num_others, dtype=torch.int64, device=self._mean.device)
        found = []
        for part in every.split(max(1, _NUMBERS_PER_BLOCK // len(chosen))):
            # [S, n]
            logits = scorer.score(chosen, part) if self.side == "user" else scorer.score(part, chosen).T
            likely, unlikely = (torch.sigmoid(each).mean(0).clamp(min=1e-38) for each in (logits, -logits))
            found.append(likely.log() - unlikely.log())
        return torch.cat(found).to(self._mean)

    def _parts(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The own side's parts of `ScoringTables` for rows ``[B, D]``: hidden, gmf, bias, perhaps of no columns."""
        nobody = {name: weight[:0] for name, weight in self._others.items()}
        return parts_of(self._model.scoring_tables({**self._split(rows), **nobody}), self.side, len(rows))

    def _solve_alone(self, history: Tensor) -> tuple[Tensor, float, int, bool]:
        """Minimise for one history of distinct ids, ``[n]``, on a CPU."""
        if not len(history):
            return torch.zeros_like(self._unit[0]), 0.0, 0, True
        assert self._prepared is not None
        places = self._position[history]
        weights = self._weights.clone()  # [S]
        weights[places[places >= 0]] = 0.0
        unseen = float(weights.sum())
        weights *= self.negatives * len(history) / unseen if unseen else 0.0
        weights = torch.cat([weights, weights.new_ones(len(history))])
        logits, rank = OneHistoryLogits(self._prepared, history), len(self._axes)
        if self._has_tower or rank <= len(weights):
            return newton_alone(logits, weights, self._unit, tolerance=self.tolerance)
        # The row lies in the span of the logits' derivatives, which has fewer dimensions.
        basis, factor = torch.linalg.qr(logits.flat.T)  # [r, M], [M, M]
        logits.flat = factor.T
        unit = self._unit[: len(factor), : len(factor)]
        found, *rest = newton_alone(logits, weights, unit, tolerance=self.tolerance)
        return basis @ found, *rest

    def _solve(self, listed: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Minimise for one block: ids ``[B, n]``, of which some are padding."""
        places = self._position[listed]
        drawn = self._weights[places] * (places >= 0)  # [B, n]
        total = self._weights.sum()
        unseen = total - drawn.sum(1, keepdim=True)
        unseen = unseen.where(unseen > 1e-6 * total, torch.inf)  # nobody is left: no negative counts
        scale = self.negatives * real.sum(1, keepdim=True) / unseen  # [B, 1]
        listed = listed.clamp(max=self._num_others - 1)
        if self._prepared is not None:
            logits = BlockLogits(self._prepared, listed)
            return newton(logits, self._weights, scale, scale * drawn, real, tolerance=self.tolerance)
        loss, others = _LOSSES[self.loss], tuple(part[listed] for part in self._other_parts)
        weights = scale * self._weights  # [B, S]
        rows, columns = (places >= 0).nonzero(as_tuple=True)
        weights[rows, places[rows, columns]] = 0.0

        def objective(z: Tensor, active: Tensor) -> Tensor:
            own = self._parts(torch.addmm(self._mean, z, self._axes))
            outside = logits_of(self._tables, own, self._outside)
            inside = logits_of(self._tables, own, tuple(part[active] for part in others))
            return loss(inside, real[active], outside, weights[active]) + 0.5 * z.square().sum(1)

        start = torch.zeros(len(listed), len(self._axes), dtype=weights.dtype, device=weights.device)
        return lbfgs(objective, start, tolerance=self.tolerance)


@overload
def fold_in(model: EmbeddingModel, histories: Any, **settings: Any) -> FoldedRows: ...
@overload
def fold_in(model: B, histories: Any) -> B: ...
def fold_in(model: Any, histories: Interactions | Sequence[Any], **settings: Any) -> Any:
    """Rows of users, or items, who were not there in training.

    Towers, head and the other side's rows stay as they are. See `ncf.inference.fold_in.FoldIn`, which keeps what this
    prepares and is faster where users come one by one.

    Args:
        model: a trained model; or `ItemPop`, `ItemKNN` or `EASE`, where nothing has to be found.
        histories: for each new user the raw ids of the items; for new items, of their users. See `FoldIn`.
        settings: arguments of `FoldIn`; give the ``loss`` and ``negatives`` of the training.

    Returns:
        `FoldedRows`: the rows by table, and a scorer over them. Of a baseline, one for these users.

    Raises:
        TypeError: if the model is none of these, or settings are given for a baseline.
        ValueError: see `FoldIn`.

    Example::

        >>> import torch
        >>> from ncf import MatrixFactorization, fold_in
        >>> model = MatrixFactorization(num_users=30, num_items=20, factors=4)
        >>> fold_in(model, [[3, 5, 3, 99], []]).unknown  # 99 is none of the 20 items
        tensor([1, 0])
    """
    if isinstance(model, ItemPop | ItemKNN | EASE):
        if settings:
            raise TypeError(f"{type(model).__name__} has no rows to find: leave out {', '.join(settings)}")
        offsets, items, _ = encoded_histories(histories, model.item_ids, model.num_items)
        return model.for_histories(offsets, items)
    if not isinstance(model, EmbeddingModel):
        raise TypeError(
            f"model is {type(model).__name__}: give a model with rows, or ItemPop, ItemKNN or EASE"
        )
    return FoldIn(model, **settings)(histories)


def _drawn(count: int, size: int, random: torch.Generator) -> Tensor:
    """Draw so many distinct numbers below ``count``, ascending; all where there are no more."""
    if count <= size:
        return torch.arange(count, dtype=torch.int64, device="cpu")
    return torch.randperm(count, generator=random, dtype=torch.int64, device="cpu")[:size].sort().values


def _cross_entropy(inside: Tensor, real: Tensor, outside: Tensor, weights: Tensor) -> Tensor:
    return (F.softplus(-inside) * real).sum(1) + (F.softplus(outside) * weights).sum(1)


def _bpr(inside: Tensor, real: Tensor, outside: Tensor, weights: Tensor) -> Tensor:
    share = weights / real.sum(1, keepdim=True)
    return ((F.softplus(outside[:, None] - inside[:, :, None]) @ share[:, :, None])[:, :, 0] * real).sum(1)


def _softmax(inside: Tensor, real: Tensor, outside: Tensor, weights: Tensor) -> Tensor:
    share = weights / real.sum(1, keepdim=True)
    negatives = (outside + share.clamp(min=torch.finfo(share.dtype).tiny).log()).logsumexp(1)  # [B]
    return ((torch.logaddexp(inside, negatives[:, None]) - inside) * real).sum(1)


_LOSSES = {"bce": _cross_entropy, "bpr": _bpr, "softmax": _softmax}
