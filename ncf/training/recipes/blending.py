"""The strength of each part, and one model of them all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ncf.data.interactions import Interactions
from ncf.models.base import EmbeddingModel
from ncf.models.neural import MLP
from ncf.training.recipes.laws import Recipe
from ncf.training.recipes.parts import MODELS, TIMED, Part
from ncf.utils.jagged import select_lists
from ncf.utils.seeding import stream

_STRENGTHS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 20.0, 100.0)  # 100: it alone
_ALONE = 1e4  # of popularity: the first part breaks its ties
_SCORES = 30_000_000  # at once, 120 MB
_PAIRS = 400_000_000  # of users who judge and items: a few seconds for each part
_JUDGES = 10_000  # users at most
_DEPTH = 100  # of the list that strengths are chosen by: deeper than is shown, for less noise
_LISTED = 3 * _DEPTH  # best items of each part: the best of a sum are nearly always among them


def choose_strengths(
    parts: list[Part], train: Interactions, held_out: Interactions, seed: int
) -> dict[str, float]:
    """Choose the strengths that rank held-out items best: one part after the other, twice.

    A strength is in units of the spread of a part's scores. The first part has strength one. Popularity decides alone
    where nothing gains more on it than two standard errors: too few users hide that a part only overfits. The order of
    time counts where it gains as much.
    """
    order = torch.randperm(len(held_out), generator=stream(seed, "judged"), dtype=torch.int64, device="cpu")
    row = torch.zeros(train.num_users, dtype=torch.int64, device="cpu")
    row[held_out.users[order]] = order  # one of each user's, at random
    users = held_out.users.unique()
    most = min(_JUDGES, max(100, _PAIRS // train.num_items))
    if len(users) > most:  # at random: numbers often follow age or activity
        drawn = torch.randperm(len(users), generator=stream(seed, "judges"), dtype=torch.int64, device="cpu")
        users = users[drawn[:most]].sort().values
    scores = _compared(parts, train, users, held_out.items[row[users]])
    strengths = {part.name: 1.0 if at == 0 else 0.0 for at, part in enumerate(parts)}
    best = _quality(strengths, scores)
    for _ in range(2):
        for part in parts[1:]:
            for strength in _STRENGTHS:
                tried = strengths | {part.name: strength}
                if tried != strengths and (quality := _quality(tried, scores)).mean() > best.mean():
                    best, strengths = quality, tried
    timeless = strengths | dict.fromkeys(strengths.keys() & TIMED, 0.0)
    if timeless != strengths and not _clearly(best, unordered := _quality(timeless, scores)):
        best, strengths = unordered, timeless
    if "popularity" in strengths:
        alone = dict.fromkeys(strengths, 0.0) | {parts[0].name: 1.0, "popularity": _ALONE}
        if not _clearly(best, _quality(alone, scores)):
            return alone
    return strengths


def _clearly(one: Tensor, other: Tensor) -> bool:
    """True if the mean of one, ``[U]``, is better by two standard errors."""
    gain = one - other
    return bool(gain.mean() >= 2 * gain.std(correction=0) / math.sqrt(len(gain)))


def _compared(parts: list[Part], train: Interactions, users: Tensor, items: Tensor) -> dict[str, Tensor]:
    """Scores of the users' held-out items and, behind them, of all that may be ahead, ``[U, 1 + C]``, by part.

    They are in units of the spread of a part's scores. Seen items, and those that stand twice, have ``-inf``.
    """
    size = train.num_items
    at_once = max(1, _SCORES // (size * len(parts)))
    found: dict[str, list[Tensor]] = {part.name: [] for part in parts}
    spread = dict.fromkeys(found, 0.0)
    others = torch.arange(size, dtype=torch.int64, device="cpu")[None]
    for some, own in zip(users.split(at_once), items[:, None].split(at_once), strict=True):
        offsets, seen = select_lists(*train.csr(), some)
        left_out = torch.repeat_interleave(offsets.diff()) * size + seen
        tables = {part.name: part.scores(some) for part in parts}
        for name, table in tables.items():
            spread[name] += _spread(table) * len(some) / len(users)
            table.view(-1)[left_out] = -torch.inf
        if size > _LISTED * len(parts):
            best = [table.topk(_LISTED, dim=1, sorted=False).indices for table in tables.values()]
            others = torch.cat(best, dim=1).sort(dim=1).values
        again = others == own
        again[:, 1:] |= others[:, 1:] == others[:, :-1]
        for name, table in tables.items():
            of_others = table.gather(1, others.expand(len(some), -1)).masked_fill_(again, -torch.inf)
            found[name].append(torch.cat([table.gather(1, own), of_others], dim=1))
    return {name: torch.cat(blocks).div_(spread[name]) for name, blocks in found.items()}


def _spread(scores: Tensor) -> float:
    return max(1e-12, float(scores.std(dim=1).mean()))


def _quality(strengths: Mapping[str, float], scores: Mapping[str, Tensor]) -> Tensor:
    """NDCG of each held-out item, the first of its row, ``[U]``; ties lose."""
    total = None
    for name, strength in strengths.items():
        if strength:
            total = scores[name] * strength if total is None else total.add_(scores[name], alpha=strength)
    assert total is not None
    ranks = (total >= total[:, :1]).sum(dim=1) - 1
    return (ranks < _DEPTH) / torch.log2(ranks + 2.0)


def fuse(
    name: str,
    parts: list[Part],
    strengths: Mapping[str, float],
    data: Interactions,
    recipe: Recipe,
    seed: int,
) -> EmbeddingModel:
    """One model whose logits are the weighted sum of the parts'."""
    products = [part for part in parts if part.mlp is None]
    mlp = next((part.mlp for part in parts if part.mlp is not None), None)
    asked = torch.arange(data.num_users, dtype=torch.int64, device="cpu")[
        :: max(1, data.num_users // min(256, max(1, _SCORES // data.num_items)))
    ]
    base = parts[0]
    unit = _spread(base.scores(asked))

    def scale(part: Part) -> float:
        return 1.0 if part is base else strengths.get(part.name, 0.0) * unit / _spread(part.scores(asked))

    scales = {part.name: scale(part) for part in parts}
    if name == "MLP":
        assert mlp is not None
        popularity = next((part for part in products if scales[part.name] > 0), None)
        return mlp if popularity is None else _with_popularity(mlp, popularity, scales["popularity"], seed)
    columns: dict[int, tuple[Tensor, Tensor]] = {}  # parts with the same rows of items share their columns
    for part in products:
        assert part.user is not None
        assert part.item is not None
        of_users, key = part.user * scales[part.name], id(part.item)
        columns[key] = (of_users + columns[key][0] if key in columns else of_users, part.item)
    user, item = (torch.cat(rows, dim=1) for rows in zip(*columns.values(), strict=True))
    padding = -user.shape[1] % 4  # FBGEMM needs a multiple of four columns
    user, item = (torch.nn.functional.pad(rows, (0, padding)) for rows in (user, item))
    settings: dict[str, Any] = {"factors": user.shape[1], "seed": seed}
    if name == "NeuMF":
        settings["layers"] = recipe.layers
    kind: Any = MODELS[name]
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


def _with_popularity(mlp: MLP, popularity: Part, weight: float, seed: int) -> MLP:
    """The same MLP, wider by one unit in each layer, which passes an item's popularity on to the head."""
    widths = mlp.config["layers"]
    layers = (widths[0] + 8, *(width + 1 for width in widths[1:]))  # FBGEMM needs a multiple of four columns
    wide = MLP(mlp.num_users, mlp.num_items, layers=layers, seed=seed)
    columns = widths[0] // 2
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter.zero_()
        for side in ("user", "item"):
            wide.embeddings.weight(f"{side}_mlp")[:, :columns] = mlp.embeddings.weight(f"{side}_mlp")
        assert popularity.item is not None
        # Never negative: ReLU passes it.
        wide.embeddings.weight("item_mlp")[:, columns] = popularity.item[:, 0]
        towers: Any = zip(wide.towers["mlp"].layers, mlp.towers["mlp"].layers, strict=True)
        inputs = [*range(columns), *range(columns + 4, 2 * columns + 4)]  # the user's columns, the item's
        passed = 2 * columns + 4
        for new, old in towers:
            new.weight[: len(old.weight), inputs] = old.weight
            new.weight[-1, passed] = 1.0
            new.bias[: len(old.bias)] = old.bias
            inputs, passed = [*range(len(old.weight))], len(old.weight)
        wide.head.weight[:, inputs] = mlp.head.weight
        wide.head.weight[:, passed] = weight
        wide.head.bias.copy_(mlp.head.bias)
    return wide
