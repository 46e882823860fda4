"""`fit`: hold out, train the parts, choose their strengths, train again on everything."""

from __future__ import annotations

import logging
import time
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from ncf.data.filters import stable_order
from ncf.data.interactions import Interactions
from ncf.data.splitting import Split
from ncf.models.base import EmbeddingModel
from ncf.training.recipes.blending import choose_strengths, fuse
from ncf.training.recipes.laws import Recipe, recipe_for, shown
from ncf.training.recipes.parts import MODELS, TIMED, alone, histories, next_part, train_parts, trainer_for
from ncf.training.run import History
from ncf.utils.checks import check_choice
from ncf.utils.seeding import stream

_log = logging.getLogger("ncf")
_SORTED = 0.7  # correlation of places from which on an order is one of items


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
    section 3.4.1). The rows of a product stand side by side: a part trained by gradient (`recipe_for` says with
    which loss), the first singular vectors of the interactions (`ncf.Spectral`), and one column for popularity.
    `NeuMF` has an MLP beside them, and in `MLP` one unit of each layer passes popularity on. Where the order of
    time is known and tells something, a user's last items count more: the model is then one for the next item after
    them. The order is known by timestamps, or by a validation set that was held out by it; timestamps that number
    the lines of a file sorted by items are not taken for times. How strongly each part counts is chosen on held-out
    interactions: those of the validation set, or one of each user. Popularity decides alone where nothing gains two
    standard errors on it. Then all parts are trained again with nothing held out.

    Args:
        data: `Interactions`, or a `Split`, whose training and validation sets are trained on in the end. Its test set
            is never looked at.
        model: ``"NeuMF"``, ``"GMF"``, ``"MLP"`` or ``"MatrixFactorization"``; or a model of these, which is trained in
            place by `Trainer` with the settings of its class, and keeps its widths and features. A cosine is trained
            by softmax, others by cross-entropy.
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
    everything, inner, held_out, ordered = _hold_out(data, seed)
    name = model if isinstance(model, str) else type(model).__name__
    check_choice("model", name, MODELS)
    recipe = recipe_for(everything, name)
    known = {field.name for field in fields(Recipe)}
    if unknown := sorted(set(overrides) - known):
        raise TypeError(f"{unknown[0]!r} is no setting of fit: choose among {', '.join(sorted(known))}")
    if "factors" in overrides and "weight_decay" not in overrides:
        overrides["weight_decay"] = round(0.2 * (overrides["factors"] / 128) ** 0.75, 3)
    recipe = replace(recipe, **overrides)
    if isinstance(model, EmbeddingModel):
        trainer = trainer_for(model, recipe, seed, progress)
        line = f"{name} as given: {trainer.loss}, {trainer.epochs} epochs, batches of {trainer.batch_size}"
        return _finished(model, everything, trainer.fit(alone(everything)), line, progress)
    if seconds is not None:
        recipe = _within(recipe, name, inner, seed, seconds - (time.perf_counter() - began), ordered)
    strengths: dict[str, float] = {}
    if held_out is not None:
        # Half the epochs tell as much of the strengths.
        quick = replace(recipe, softmax_epochs=max(1, recipe.softmax_epochs // 2))
        parts, _ = train_parts(name, inner, quick, seed, progress, members=1, ordered=ordered)
        strengths = choose_strengths(parts, inner, held_out, seed)
        if recipe.chain and any(strengths.get(part) for part in TIMED):
            parts.append(next_part(inner, quick, seed, progress))
            strengths = choose_strengths(parts, inner, held_out, seed)
    parts, history = train_parts(
        name, everything, recipe, seed, progress, members=recipe.members, ordered=ordered, only=strengths
    )
    fused = fuse(name, parts, strengths, everything, recipe, seed)
    chosen = ", ".join(f"{part} {strength:g}" for part, strength in strengths.items())
    line = f"{name}: {shown(recipe, everything)}; strengths on held-out interactions: {chosen or 'none held out'}"
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


def _hold_out(
    data: Interactions | Split, seed: int
) -> tuple[Interactions, Interactions, Interactions | None, bool]:
    """Return all there is to train on, what to train on first, what is held out meanwhile; true if that is the newest.

    With a validation set it has to be shown by its users: rows without timestamps count as ordered there.
    """
    if isinstance(data, Split):
        if data.validation is not None and len(data.validation):
            return data.with_validation_in_train().train, data.train, data.validation, True
        data = data.train
    if not isinstance(data, Interactions):
        raise TypeError(f"data must be Interactions or a Split, got {type(data).__name__}")
    if not len(data):
        raise ValueError("there are no interactions to train on")
    offsets, rows = histories(data)
    ordered = data.timestamps is not None and not _order_is_of_items(data, offsets, rows)
    if not ordered:
        shuffled = torch.randperm(
            len(data), generator=stream(seed, "hold out"), dtype=torch.int64, device="cpu"
        )
        rows = shuffled[stable_order(data.users[shuffled])]
    last = rows[offsets[1:][offsets.diff() >= 3] - 1]
    if not len(last):
        return data, data, None, False
    held = torch.zeros(len(data), dtype=torch.bool, device="cpu").index_fill_(0, last, True)
    return data, data.take(~held), data.take(held), ordered


def _order_is_of_items(data: Interactions, offsets: Tensor, rows: Tensor) -> bool:
    """True if timestamps are no times: all lists follow one order of the items, as in a sorted file.

    An item's place in a list, from 0 to 1, is then known from its places in the others' lists. Their correlation is .4
    for the times of MovieLens-100K and of Amazon Beauty, and .86 for the lines of MovieLens-1M's file.
    """
    counts = offsets.diff()
    users = data.users[rows]
    places = torch.arange(len(rows), dtype=torch.float64, device="cpu") + 0.5
    places = (places - offsets[users]) / counts[users]
    items = data.items[rows]
    of_item = torch.zeros(data.num_items, dtype=torch.float64, device="cpu").index_add_(0, items, places)
    others = items.bincount(minlength=data.num_items)[items] - 1
    told = others > 0
    elsewhere = (of_item[items] - places)[told] / others[told]
    return bool(torch.stack([elsewhere, places[told]]).corrcoef()[0, 1] > _SORTED)


def _within(
    recipe: Recipe, name: str, train: Interactions, seed: int, seconds: float, ordered: bool
) -> Recipe:
    """Cut the epochs so that two trainings fit the time: an epoch of each part is timed first."""
    began = time.perf_counter()
    once = replace(recipe, epochs=1, softmax_epochs=1, mlp_epochs=1)
    train_parts(name, train, once, seed, False, members=1, ordered=False)
    if ordered and recipe.chain:
        next_part(train, once, seed, False)
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
