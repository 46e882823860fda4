"""Parts of a model, each trained on its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from ncf.data.filters import stable_order
from ncf.data.interactions import Interactions
from ncf.data.splitting import Split
from ncf.models.base import EmbeddingModel
from ncf.models.baselines.spectral import Spectral
from ncf.models.matrix_factorization import MatrixFactorization
from ncf.models.neural import GMF, MLP, NeuMF
from ncf.training.losses import SampledSoftmax
from ncf.training.recipes.laws import Recipe
from ncf.training.run import History
from ncf.training.trainer import Trainer
from ncf.utils.jagged import lengths_to_offsets

FADING = (("last", 0.5), ("recent", 0.8))  # an item of a history counts so many times the one after it
TIMED = ("last", "recent", "next")  # parts that know the order of time

MODELS: dict[str, type[EmbeddingModel]] = {
    "NeuMF": NeuMF,
    "GMF": GMF,
    "MLP": MLP,
    "MatrixFactorization": MatrixFactorization,
}


@dataclass(frozen=True, eq=False)
class Part:
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


def alone(train: Interactions) -> Split:
    """A split for ``selection="last"``, which does not look at the test set."""
    return Split(train, None, train)


def trainer_for(model: EmbeddingModel, recipe: Recipe, seed: int, progress: bool | None) -> Trainer:
    """Trainer with the recipe's settings for this class of model: by softmax for a cosine, else by cross-entropy."""
    if model.config.get("cosine"):
        return _softmax_trainer(model, recipe, seed, progress)
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


def _softmax_trainer(model: EmbeddingModel, recipe: Recipe, seed: int, progress: bool | None) -> Trainer:
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


def train_parts(
    name: str,
    train: Interactions,
    recipe: Recipe,
    seed: int,
    progress: bool | None,
    *,
    members: int,
    ordered: bool,
    only: Mapping[str, float] | None = None,
) -> tuple[list[Part], History]:
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
                history = _whole(trainer_for(model, recipe, seed + 1000 * member, progress), train)
                trained.append(model)
            parts.append(_joined(trained))
        if "softmax" in recipe.losses and wanted("softmax"):
            user, item, history = _cosine(train, recipe, seed, progress)
            parts.append(Part("softmax", user, item))
        if ordered:
            base = parts[0].item
            assert base is not None
            parts += [Part(part, _faded(train, base, decay), base) for part, decay in FADING if wanted(part)]
        if only and only.get("next", 0.0) > 0:
            parts.append(next_part(train, recipe, seed, progress))
        if recipe.spectral and wanted("spectral"):
            spectral = Spectral(train, factors=recipe.spectral, seed=seed)
            parts.append(Part("spectral", spectral.user_factors, spectral.item_factors))
    if wanted("popularity"):
        counts = train.item_counts().to(torch.float32).log1p()
        ones = torch.ones(sizes[0], 1, dtype=torch.float32, device="cpu")
        parts.append(Part("popularity", ones, counts[:, None]))
    if name in ("NeuMF", "MLP") and (name == "MLP" or wanted("mlp")):
        mlp = MLP(*sizes, layers=recipe.layers, init_std=0.1, seed=seed)
        of_mlp = _whole(trainer_for(mlp, recipe, seed, progress), train)
        history = history if history.epochs else of_mlp
        parts.insert(0 if name == "MLP" else len(parts), Part("mlp", mlp=mlp))
    return parts, history


def _whole(trainer: Trainer, train: Interactions) -> History:
    """Train all epochs: a `Trainer` returns at Ctrl-C, and the next part would begin."""
    history = trainer.fit(alone(train))
    if history.interrupted:
        raise KeyboardInterrupt
    return history


def _cosine(
    train: Interactions, recipe: Recipe, seed: int, progress: bool | None
) -> tuple[Tensor, Tensor, History]:
    """Rows of length one, ``[U, F]`` and ``[I, F]``, trained by softmax."""
    model = MatrixFactorization(
        train.num_users, train.num_items, factors=recipe.softmax_factors, cosine=True, init_std=0.1, seed=seed
    )
    history = _whole(trainer_for(model, recipe, seed, progress), train)
    tables = model.scoring_tables()
    assert tables.user_gmf is not None
    assert tables.item_gmf is not None
    return tables.user_gmf.detach(), tables.item_gmf.detach(), history


def histories(data: Interactions) -> tuple[Tensor, Tensor]:
    """Rows of each user's interactions, the oldest first: offsets ``[U + 1]`` and rows ``[N]``."""
    order = torch.arange(len(data), dtype=torch.int64, device="cpu")
    order = order if data.timestamps is None else stable_order(data.timestamps)
    offsets = lengths_to_offsets(data.users.bincount(minlength=data.num_users))
    return offsets, order[stable_order(data.users[order])]


def _faded(train: Interactions, rows: Tensor, decay: float) -> Tensor:
    """Sum of the rows of each user's items, ``[U, F]``; each item counts ``decay`` times the one after it."""
    offsets, order = histories(train)
    later = (offsets[1:] - 1).repeat_interleave(offsets.diff())
    later -= torch.arange(len(order), dtype=torch.int64, device="cpu")
    weights = torch.tensor(decay, dtype=rows.dtype, device="cpu").pow(later)
    return embedding_bag(train.items[order], rows, offsets[:-1], mode="sum", per_sample_weights=weights)


def next_part(train: Interactions, recipe: Recipe, seed: int, progress: bool | None) -> Part:
    """The next item from those before it: pairs of neighbours in time take the place of user and item.

    A chain of first order (Rendle et al., WWW 2010, section 4), whose rows are trained like the softmax part.
    """
    _, order = histories(train)
    items, users = train.items[order], train.users[order]
    follows = users[1:] == users[:-1]
    pairs = (items[:-1][follows] * train.num_items + items[1:][follows]).unique()
    before, after = pairs // train.num_items, pairs % train.num_items
    chain = Interactions(before, after, None, train.num_items, train.num_items)
    half = replace(recipe, softmax_epochs=max(1, recipe.softmax_epochs // 2))  # as good as all of them
    of_before, of_after, _ = _cosine(chain, half, seed, progress)
    for rows, seen in ((of_before, before), (of_after, after)):  # a row that no pair has trained says nothing
        rows[seen.bincount(minlength=len(rows)) == 0] = 0.0
    return Part("next", _faded(train, of_before, FADING[0][1]), of_after)


def _joined(models: list[Any]) -> Part:
    """The mean of trained products as one: their rows side by side."""
    tables = [model.scoring_tables() for model in models]
    share = 1 / len(tables)

    def mean(name: str) -> Tensor | None:
        found = [getattr(table, name) for table in tables]
        return None if found[0] is None else torch.stack(found).mean(dim=0).detach()

    return Part(
        "bce",
        torch.cat([table.user_gmf for table in tables], dim=1).detach() * share,
        torch.cat([table.item_gmf for table in tables], dim=1).detach(),
        mean("user_bias"),
        mean("item_bias"),
    )
