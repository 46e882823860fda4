"""One call from interactions to a trained model: settings are computed from the data."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ncf.data.interactions import Interactions
from ncf.data.splitting import Split
from ncf.models.base import EmbeddingModel
from ncf.models.baselines.spectral import Spectral, default_factors
from ncf.models.matrix_factorization import MatrixFactorization
from ncf.models.neural import GMF, MLP, NeuMF
from ncf.training.losses import SampledSoftmax
from ncf.training.run import History
from ncf.training.trainer import Trainer
from ncf.utils.jagged import select_lists
from ncf.utils.seeding import stream

__all__ = ["Recipe", "fit", "recipe_for"]

_log = logging.getLogger("ncf")

_MODELS: dict[str, type[EmbeddingModel]] = {
    "NeuMF": NeuMF,
    "GMF": GMF,
    "MLP": MLP,
    "MatrixFactorization": MatrixFactorization,
}
_DENSE, _SPARSE = 60.0, 25.0  # interactions per row: above, cross-entropy first; below, softmax alone
_USERS = 2_000  # so many tell what a small part adds
_STRENGTHS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 20.0, 100.0)  # 100: it alone
_COLUMNS = 300_000_000  # of the softmax part, times interactions: minutes of two cores
_ALONE = 1e4  # of popularity: the first part breaks its ties
_SCORES = 30_000_000  # of held-out users, 120 MB for each part of a model
_DEPTH = 100  # of the list that strengths are chosen by: deeper than is shown, for less noise


@dataclass(frozen=True)
class Recipe:
    """Settings of `fit`, each computed from the data by `recipe_for`.

    Args:
        factors: columns of the part trained with ``"bce"``.
        layers: widths of the MLP.
        losses: ``"bce"``, ``"softmax"`` or both: a part of the model is trained with each.
        epochs: passes of the parts trained with ``"bce"``.
        negatives: for each positive, with ``"bce"``.
        batch_size: samples of a step, with ``"bce"``.
        learning_rate: at the start, with ``"bce"``.
        weight_decay: decoupled, of the rows, with ``"bce"``.
        softmax_factors: columns of the part trained with ``"softmax"``.
        softmax_epochs: passes of that part.
        temperature: of the softmax.
        spectral: columns of the spectral part; 0 leaves it out.
        mlp_epochs: passes of the MLP.
        mlp_negatives: for each positive, of the MLP.
        members: parts trained with ``"bce"`` from different seeds, whose mean is kept.

    Example::

        >>> from ncf.training.recipes import Recipe
        >>> Recipe().losses
        ('bce',)
    """

    factors: int = 128
    layers: tuple[int, ...] = (64, 32, 16)
    losses: tuple[str, ...] = ("bce",)
    epochs: int = 20
    negatives: int = 8
    batch_size: int = 4096
    learning_rate: float = 4e-3
    weight_decay: float = 0.2
    softmax_factors: int = 256
    softmax_epochs: int = 20
    temperature: float = 0.1
    spectral: int = 256
    mlp_epochs: int = 10
    mlp_negatives: int = 4
    members: int = 1


def recipe_for(data: Interactions, model: str = "NeuMF") -> Recipe:
    """Compute the settings of `fit` from the size and the density of the data.

    With N interactions, U users and I items, n = N / √(U · I) is the number of interactions per row.

    - From n = 25 on a part is trained by binary cross-entropy: 128 columns, 20 epochs, 8 negatives, decay 0.2. Decay
      grows with the columns F as 0.2 · (F / 128)^¾.
    - A part is trained by softmax of the cosine: 20 epochs, temperature 0.07 · √(23 / n), between 0.07 and 0.15. With
      few interactions a row, the dot product overfits under cross-entropy, whatever its decay. The cosine does not:
      it gains with every column. It has 512 columns, or as many as 3 · 10⁸ / N allows, a power of two, and at most an
      eighth of the smaller side or 32.
    - Above n = 60 that part adds little: it has 64 columns and 10 epochs, and none below 2,000 users, who
      are too few to weigh it.
    - A spectral part (`ncf.Spectral`) has an eighth of the smaller side's size as columns, 512 at most.
    - Batches grow with N, from 512 to 4096 samples, for at least 2,000 steps per epoch.
    - The cross-entropy part is the mean of several from different seeds: 3,000,000 / N, four at most.

    Args:
        data: the interactions to train on.
        model: name of the model.

    Returns:
        The `Recipe`.

    Example::

        >>> from ncf import Interactions
        >>> from ncf.training.recipes import recipe_for
        >>> few = Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 2, 3])
        >>> recipe_for(few).losses, recipe_for(few).temperature
        (('softmax',), 0.15)
    """
    size = max(1, len(data))
    per_row = size / math.sqrt(max(1, data.num_users) * max(1, data.num_items))
    softmax = per_row <= _DENSE or data.num_users >= _USERS
    losses = tuple(name for name, used in (("bce", per_row >= _SPARSE), ("softmax", softmax)) if used)
    dense = "bce" in losses
    alone = model == "MLP"
    columns = default_factors(data.num_users, data.num_items)
    wide = 64 if per_row > _DENSE else max(64, 2 ** int(math.log2(_COLUMNS / size)))
    return Recipe(
        layers=(128, 64, 32) if alone and dense else (64, 32, 16),
        losses=losses,
        batch_size=int(min(4096, max(512, 2 ** round(math.log2(size * 9 / 2000))))),
        softmax_factors=min(max(32, columns), wide),
        softmax_epochs=10 if per_row > _DENSE else 20,
        temperature=float(f"{min(0.15, max(0.07, 0.07 * math.sqrt(23 / per_row))):.2g}"),
        spectral=columns,
        mlp_epochs=15 if alone else 10 if dense else 5,
        mlp_negatives=8 if alone else 4,
        members=max(1, min(4, 3_000_000 // size)) if dense else 1,
    )


@dataclass(frozen=True, eq=False)
class _Part:
    """A part of a model: a dot product of rows with biases, or an `MLP`."""

    name: str
    user: Tensor | None = None  # [U, F]
    item: Tensor | None = None  # [I, F]
    user_bias: Tensor | None = None  # [U]
    item_bias: Tensor | None = None  # [I]
    mlp: MLP | None = None

    def scores(self, users: Tensor) -> Tensor:
        """Of all items, ``[U, I]``."""
        if self.mlp is not None:
            items = torch.arange(self.mlp.num_items, dtype=torch.int64, device="cpu")
            return self.mlp.scorer().score(users, items.expand(len(users), -1))
        assert self.user is not None
        assert self.item is not None
        scores = self.user[users] @ self.item.T
        return scores if self.item_bias is None else scores.add_(self.item_bias)


def fit(
    data: Interactions | Split,
    model: str | EmbeddingModel = "NeuMF",
    *,
    seed: int = 0,
    seconds: float | None = None,
    progress: bool | None = None,
    **overrides: Any,
) -> EmbeddingModel:
    """Train a model, with settings computed from the data.

    A model is put together from parts that are trained one by one, as the paper pre-trains NeuMF (He et al. 2017,
    section 3.4.1). The rows of a product stand side by side: a part trained by gradient (`recipe_for` says with which
    loss), the first singular vectors of the interactions (`ncf.Spectral`), and one column for popularity. `NeuMF` has
    an MLP beside them. How strongly each part counts is chosen on held-out interactions: those of the validation set,
    or one of each user. Popularity decides alone where nothing gains two standard errors on it. Then all parts are
    trained again with nothing held out.

    Args:
        data: `Interactions`, or a `Split`, whose training and validation sets are trained on in the end. Its test set
            is never looked at.
        model: ``"NeuMF"``, ``"GMF"``, ``"MLP"`` or ``"MatrixFactorization"``; or a model of these, which is trained in
            place by `Trainer` with the settings of its class, and keeps its widths.
        seed: of everything random.
        seconds: bound on the time, kept approximately by fewer epochs; by default none.
        progress: print what was chosen, and show bars; by default bars are shown where the output is a terminal.
        overrides: fields of `ncf.training.recipes.Recipe`, instead of what `recipe_for` computes.

    Returns:
        The model; ``model.history`` is the `History` of its last part that was trained by gradient, and
        ``model.record["recipe"]``, which is saved with it, a line that says what was chosen and why. The line is also
        logged, to the logger ``"ncf"``.

    Raises:
        TypeError: if ``data`` or ``model`` is something else, or a setting is unknown.
        ValueError: if the name of the model is unknown, or there is nothing to train on.
        KeyboardInterrupt: at Ctrl-C, since a model of fewer parts is another one. A model that was given as an object
            is returned with the weights of the last step, ``model.history.interrupted`` is true.

    Example::

        >>> import torch, ncf
        >>> users = torch.arange(40).repeat_interleave(5)
        >>> items = (users % 2) * 10 + (users * 3 + torch.arange(200) * 7) % 10
        >>> model = ncf.fit(ncf.Interactions.from_arrays(users, items), "GMF", softmax_epochs=2)
        >>> type(model).__name__, model.history.epochs
        ('GMF', [1, 2])
    """
    began = time.perf_counter()
    everything, inner, held_out = _hold_out(data, seed)
    name = model if isinstance(model, str) else type(model).__name__
    if name not in _MODELS:
        raise ValueError(f"model = {name!r}: choose one of {', '.join(map(repr, _MODELS))}")
    recipe = recipe_for(everything, name)
    known = {field.name for field in fields(Recipe)}
    if unknown := sorted(set(overrides) - known):
        raise TypeError(f"{unknown[0]!r} is no setting of fit: choose among {', '.join(sorted(known))}")
    if "factors" in overrides and "weight_decay" not in overrides:
        overrides["weight_decay"] = round(0.2 * (overrides["factors"] / 128) ** 0.75, 3)
    recipe = replace(recipe, **overrides)
    if isinstance(model, EmbeddingModel):
        history = _trainer(model, recipe, seed, progress).fit(_split(everything))
        return _finished(
            model, everything, history, f"{name} as given: {_shown(recipe, everything)}", progress
        )
    if seconds is not None:
        recipe = _within(recipe, name, inner, seed, seconds - (time.perf_counter() - began))
    strengths: dict[str, float] = {}
    if held_out is not None:
        parts, _ = _train_parts(name, inner, recipe, seed, progress, members=1)
        strengths = _choose(parts, inner, held_out, seed)
    parts, history = _train_parts(
        name, everything, recipe, seed, progress, members=recipe.members, only=strengths
    )
    fused = _fused(name, parts, strengths, everything, recipe, seed)
    chosen = ", ".join(f"{part} {strength:g}" for part, strength in strengths.items())
    line = f"{name}: {_shown(recipe, everything)}; strengths on held-out interactions: {chosen or 'none held out'}"
    return _finished(fused, everything, history, line, progress)


def _finished(
    model: EmbeddingModel, data: Interactions, history: History, line: str, progress: bool | None
) -> EmbeddingModel:
    model.user_ids, model.item_ids = data.user_ids, data.item_ids
    model.eval()
    model.record = {"recipe": line}
    model.history = history  # type: ignore[assignment]
    _log.info(line)
    if progress:
        print(line)
    return model


def _shown(recipe: Recipe, data: Interactions) -> str:
    per_row = len(data) / math.sqrt(data.num_users * data.num_items)
    words = [f"{len(data):,} interactions, {per_row:.1f} per row"]
    if "bce" in recipe.losses:
        words.append(
            f"cross-entropy with {recipe.factors} columns, decay {recipe.weight_decay:g}, "
            f"{recipe.negatives} negatives, batches of {recipe.batch_size}, {recipe.epochs} epochs × {recipe.members}"
        )
    if "softmax" in recipe.losses:
        words.append(
            f"softmax of the cosine with {recipe.softmax_factors} columns, "
            f"temperature {recipe.temperature:g}, {recipe.softmax_epochs} epochs"
        )
    words.append(f"{recipe.spectral} singular vectors")
    return "; ".join(words)


def _split(train: Interactions) -> Split:
    return Split(train, None, train)  # with selection="last" the test set is not looked at


def _hold_out(
    data: Interactions | Split, seed: int
) -> tuple[Interactions, Interactions, Interactions | None]:
    """Return all there is to train on, what to train on first, and what is held out meanwhile."""
    if isinstance(data, Split):
        if data.validation is not None and len(data.validation):
            return data.with_validation_in_train().train, data.train, data.validation
        data = data.train
    if not isinstance(data, Interactions):
        raise TypeError(f"data must be Interactions or a Split, got {type(data).__name__}")
    if not len(data):
        raise ValueError("there are no interactions to train on")
    if data.timestamps is not None:
        order = data.timestamps.argsort(stable=True)
    else:
        order = torch.randperm(len(data), generator=stream(seed, "hold out"), dtype=torch.int64, device="cpu")
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), dtype=torch.int64, device=order.device)
    last = torch.full((data.num_users,), -1, dtype=torch.int64, device=order.device)
    last.scatter_reduce_(0, data.users, place, "amax")
    enough = data.users.bincount(minlength=data.num_users) >= 3
    held = (place == last[data.users]) & enough[data.users]
    if not bool(held.any()):
        return data, data, None
    return data, data.take(~held), data.take(held)


def _trainer(model: EmbeddingModel, recipe: Recipe, seed: int, progress: bool | None) -> Trainer:
    with_mlp, mlp_alone = isinstance(model, (MLP, NeuMF)), isinstance(model, MLP)
    rates: dict[str, float] = {"default": recipe.learning_rate}
    decays: dict[str, float] = {"default": recipe.weight_decay}
    if isinstance(model, (GMF, NeuMF)):  # a free head would undo the decay of the rows by growing
        with torch.no_grad():
            model.head.weight[:, : model.towers["gmf"].out_features].fill_(1.0)
        rates["gmf_head"] = 0.0
    if with_mlp:
        decays |= {"mlp": 1.0 if mlp_alone and len(recipe.losses) == 1 else 0.5}
    return Trainer(
        model,
        epochs=recipe.mlp_epochs if mlp_alone else recipe.epochs,
        batch_size=recipe.batch_size,
        learning_rate=rates if len(rates) > 1 else recipe.learning_rate,
        optimizer="adamw",
        weight_decay=decays,
        negatives=recipe.mlp_negatives if mlp_alone else recipe.negatives,
        selection="last",
        seed=seed,
        progress=progress,
    )


def _softmax_trainer(model: MatrixFactorization, recipe: Recipe, seed: int, progress: bool | None) -> Trainer:
    """Softmax of the cosine over shared negatives (Wu et al., TOIS 2024); a cosine is bounded and needs no decay."""
    return Trainer(
        model,
        epochs=recipe.softmax_epochs,
        batch_size=1024,
        learning_rate=2e-2,
        weight_decay=0.0,
        loss=SampledSoftmax(recipe.temperature),
        shared_negatives=512,
        selection="last",
        seed=seed,
        progress=progress,
    )


def _train_parts(
    name: str,
    train: Interactions,
    recipe: Recipe,
    seed: int,
    progress: bool | None,
    *,
    members: int,
    only: Mapping[str, float] | None = None,
) -> tuple[list[_Part], History]:
    """Train each part on its own; of ``only`` those parts whose strength is not zero."""
    history, parts = History("last"), []
    sizes = train.num_users, train.num_items

    def wanted(part: str) -> bool:
        return not only or only.get(part, 0.0) > 0

    if name != "MLP":
        if "bce" in recipe.losses and wanted("bce"):
            trained = []
            for member in range(members):
                kind = MatrixFactorization if name == "MatrixFactorization" else GMF
                model = kind(*sizes, factors=recipe.factors, init_std=0.1, seed=seed + 1000 * member)
                history = _whole(_trainer(model, recipe, seed + 1000 * member, progress), train)
                trained.append(model)
            parts.append(_joined(trained))
        if "softmax" in recipe.losses and wanted("softmax"):
            cosine = MatrixFactorization(
                *sizes, factors=recipe.softmax_factors, cosine=True, init_std=0.1, seed=seed
            )
            history = _whole(_softmax_trainer(cosine, recipe, seed, progress), train)
            tables = cosine.scoring_tables()
            assert tables.user_gmf is not None
            assert tables.item_gmf is not None
            parts.append(_Part("softmax", tables.user_gmf.detach(), tables.item_gmf.detach()))
        if recipe.spectral and wanted("spectral"):
            spectral = Spectral(train, factors=recipe.spectral, seed=seed)
            parts.append(_Part("spectral", spectral.user_factors, spectral.item_factors))
        if wanted("popularity"):
            counts = train.item_counts().to(torch.float32).log1p()
            parts.append(
                _Part(
                    "popularity", torch.ones(sizes[0], 1, dtype=torch.float32, device="cpu"), counts[:, None]
                )
            )
    if name in ("NeuMF", "MLP") and (name == "MLP" or wanted("mlp")):
        mlp = MLP(*sizes, layers=recipe.layers, init_std=0.1, seed=seed)
        of_mlp = _whole(_trainer(mlp, recipe, seed, progress), train)
        history = history if history.epochs else of_mlp
        parts.append(_Part("mlp", mlp=mlp))
    return parts, history


def _whole(trainer: Trainer, train: Interactions) -> History:
    """Train all epochs: a `Trainer` returns at Ctrl-C, and the next part would begin."""
    history = trainer.fit(_split(train))
    if history.interrupted:
        raise KeyboardInterrupt
    return history


def _joined(models: list[Any]) -> _Part:
    """The mean of trained products as one: their rows side by side."""
    tables = [model.scoring_tables() for model in models]
    share = 1 / len(tables)

    def mean(name: str) -> Tensor | None:
        found = [getattr(table, name) for table in tables]
        return None if found[0] is None else torch.stack(found).mean(dim=0).detach()

    return _Part(
        "bce",
        torch.cat([table.user_gmf for table in tables], dim=1).detach() * share,
        torch.cat([table.item_gmf for table in tables], dim=1).detach(),
        mean("user_bias"),
        mean("item_bias"),
    )


def _choose(parts: list[_Part], train: Interactions, held_out: Interactions, seed: int) -> dict[str, float]:
    """Choose the strengths that rank held-out items best: one part after the other, twice.

    A strength is in units of the spread of a part's scores. The first part has strength one. Popularity decides alone
    where nothing gains more on it than two standard errors: too few users hide that a part only overfits.
    """
    order = torch.randperm(len(held_out), generator=stream(seed, "judged"), dtype=torch.int64, device="cpu")
    row = torch.zeros(train.num_users, dtype=torch.int64, device="cpu")
    row[held_out.users[order]] = order  # one of each user's, at random
    users = held_out.users.unique()
    users = users[: max(100, _SCORES // train.num_items)] if len(users) * train.num_items > _SCORES else users
    items = held_out.items[row[users]]
    offsets, seen = select_lists(*train.csr(), users)
    left_out = torch.repeat_interleave(offsets.diff()) * train.num_items + seen
    strengths = {part.name: 1.0 if at == 0 else 0.0 for at, part in enumerate(parts)}
    scores = {}
    for part in parts:
        of_part = part.scores(users)
        scores[part.name] = of_part.div_(_spread(of_part))
    scores[parts[0].name].view(-1)[left_out] = -torch.inf
    best = _quality(strengths, scores, items)
    for _ in range(2):
        for part in parts[1:]:
            for strength in _STRENGTHS:
                tried = strengths | {part.name: strength}
                if tried != strengths and (quality := _quality(tried, scores, items)).mean() > best.mean():
                    best, strengths = quality, tried
    if "popularity" in strengths:
        alone = dict.fromkeys(strengths, 0.0) | {parts[0].name: 1.0, "popularity": _ALONE}
        gain = best - _quality(alone, scores, items)
        if gain.mean() < 2 * gain.std(correction=0) / math.sqrt(len(gain)):
            return alone
    return strengths


def _spread(scores: Tensor) -> float:
    return max(1e-12, float(scores.std(dim=1).mean()))


def _quality(strengths: Mapping[str, float], scores: Mapping[str, Tensor], items: Tensor) -> Tensor:
    """NDCG of each held-out item in the whole catalogue, ``[U]``; ties lose."""
    total = None
    for name, strength in strengths.items():
        if strength:
            total = scores[name] * strength if total is None else total.add_(scores[name], alpha=strength)
    assert total is not None
    ranks = (total >= total.gather(1, items[:, None])).sum(dim=1) - 1
    return (ranks < _DEPTH) / torch.log2(ranks + 2.0)


def _fused(
    name: str,
    parts: list[_Part],
    strengths: Mapping[str, float],
    data: Interactions,
    recipe: Recipe,
    seed: int,
) -> EmbeddingModel:
    """One model whose logits are the weighted sum of the parts'."""
    products = [part for part in parts if part.mlp is None]
    mlp = next((part.mlp for part in parts if part.mlp is not None), None)
    if name == "MLP":
        assert mlp is not None
        return mlp
    asked = torch.arange(data.num_users, dtype=torch.int64, device="cpu")[
        :: max(1, data.num_users // min(256, max(1, _SCORES // data.num_items)))
    ]
    base = parts[0]
    unit = _spread(base.scores(asked))

    def scale(part: _Part) -> float:
        return 1.0 if part is base else strengths.get(part.name, 0.0) * unit / _spread(part.scores(asked))

    scales = {part.name: scale(part) for part in parts}
    user = torch.cat([part.user * scales[part.name] for part in products if part.user is not None], dim=1)
    item = torch.cat([part.item for part in products if part.item is not None], dim=1)
    padding = -user.shape[1] % 4  # FBGEMM needs a multiple of four columns
    user, item = (torch.nn.functional.pad(rows, (0, padding)) for rows in (user, item))
    settings: dict[str, Any] = {"factors": user.shape[1], "seed": seed}
    if name == "NeuMF":
        settings["layers"] = recipe.layers
    kind: Any = _MODELS[name]
    fused: EmbeddingModel = kind(data.num_users, data.num_items, **settings)
    with torch.no_grad():
        table = "mf" if name == "MatrixFactorization" else "gmf"
        of_user, of_item = (fused.embeddings.weight(f"{side}_{table}") for side in ("user", "item"))
        width = user.shape[1]
        of_user[:, :width], of_item[:, :width] = user, item
        if table == "mf":
            if base.user_bias is not None and base.item_bias is not None:
                of_user[:, width], of_item[:, width] = base.user_bias, base.item_bias
        else:
            fused.head.weight[:, :width] = 1.0
            fused.head.bias.zero_()
        if name == "NeuMF" and mlp is not None:
            for side in ("user", "item"):
                fused.embeddings.weight(f"{side}_mlp").copy_(mlp.embeddings.weight(f"{side}_mlp"))
            fused.towers["mlp"].load_state_dict(mlp.towers["mlp"].state_dict())
            fused.head.weight[:, width:] = mlp.head.weight * scales["mlp"]
        elif name == "NeuMF":
            fused.head.weight[:, width:] = 0.0
    return fused


def _within(recipe: Recipe, name: str, train: Interactions, seed: int, seconds: float) -> Recipe:
    """Cut the epochs so that two trainings fit the time: an epoch of each part is timed first."""
    began = time.perf_counter()
    once = replace(recipe, epochs=1, softmax_epochs=1, mlp_epochs=1)
    _train_parts(name, train, once, seed, False, members=1)
    spent = time.perf_counter() - began
    most = max(recipe.epochs if "bce" in recipe.losses else 0, recipe.softmax_epochs, recipe.mlp_epochs)
    runs = 1 + recipe.members
    affordable = max(1, int((seconds - spent) / (runs * max(spent, 1e-3))))
    share = min(1.0, affordable / most)
    return replace(
        recipe,
        epochs=max(1, int(recipe.epochs * share)),
        softmax_epochs=max(1, int(recipe.softmax_epochs * share)),
        mlp_epochs=max(1, int(recipe.mlp_epochs * share)),
    )
