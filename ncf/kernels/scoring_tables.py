"""The parameters of a model laid out for ranking, the common input of every scorer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class ScoringTables:
    """Tables for scoring (user, item) pairs, with all that depends on one side alone computed beforehand.

    With g the GMF rows, b the biases, h₁ the halves of the MLP's first layer, and w the head's MLP weights::

        score(u, i) = b + bᵤ + bᵢ + ⟨gᵤ, gᵢ⟩ + ⟨w, ReLU(W_L … ReLU(W₂ ReLU(h₁ᵤ + h₁ᵢ) + b₂) …)⟩

    Every part but ``bias`` may be absent; the two sides of the MLP, and of the product, come and go together.

    Args:
        user_hidden: the user's half of the first layer before its ReLU, with its bias, ``[num_users, H]``.
        item_hidden: the item's half, ``[num_items, H]``.
        layers: weight ``[H_out, H_in]`` and bias ``[H_out]`` of each later layer; every one has a ReLU.
        mlp_head: the head's weights for the last layer, ``[H_last]``.
        user_gmf: user rows already multiplied by the head's GMF weights, ``[num_users, F]``.
        item_gmf: item rows, ``[num_items, F]``.
        user_bias: ``[num_users]``.
        item_bias: ``[num_items]``.
        bias: the head's, ``[1]`` or ``[]``.

    Raises:
        ValueError: if a part is there without its counterpart, or shapes, types or devices do not fit.

    Example::

        >>> import torch
        >>> from ncf.kernels import ScoringTables, score_candidates
        >>> user_rows, item_rows = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]])
        >>> tables = ScoringTables(user_gmf=user_rows, item_gmf=item_rows, bias=torch.zeros(1))
        >>> score_candidates(tables, torch.tensor([0]), torch.tensor([[0, 1, -1]]))
        tensor([[11.,  2., -inf]])
    """

    user_hidden: Tensor | None = None
    item_hidden: Tensor | None = None
    layers: tuple[tuple[Tensor, Tensor], ...] = ()
    mlp_head: Tensor | None = None
    user_gmf: Tensor | None = None
    item_gmf: Tensor | None = None
    user_bias: Tensor | None = None
    item_bias: Tensor | None = None
    bias: Tensor

    def __post_init__(self) -> None:
        mlp = {name: getattr(self, name) is not None for name in ("user_hidden", "item_hidden", "mlp_head")}
        gmf = {name: getattr(self, name) is not None for name in ("user_gmf", "item_gmf")}
        for part in (mlp, gmf):
            if len(set(part.values())) > 1:
                missing = [name for name, given in part.items() if not given]
                raise ValueError(f"{', '.join(part)} belong together: {', '.join(missing)} is missing")
        if self.layers and not mlp["user_hidden"]:
            raise ValueError("layers are given without user_hidden, item_hidden and mlp_head")
        if self.bias.numel() != 1:
            raise ValueError(f"bias must hold one element, got shape {tuple(self.bias.shape)}")
        self._check_shapes()
        for name, value in self._tensors():
            if (value.dtype, value.device) != (self.bias.dtype, self.bias.device):
                raise ValueError(
                    f"{name} is {value.dtype} on {value.device}, but bias is {self.bias.dtype} on "
                    f"{self.bias.device}: bring them together with to()"
                )

    def _check_shapes(self) -> None:
        factors = None if self.user_gmf is None else self.user_gmf.shape[-1]
        width = None if self.user_hidden is None else self.user_hidden.shape[-1]
        expected: dict[str, tuple[int | None, ...]] = {
            "user_hidden": (self.num_users, width),
            "item_hidden": (self.num_items, width),
            "user_gmf": (self.num_users, factors),
            "item_gmf": (self.num_items, factors),
            "user_bias": (self.num_users,),
            "item_bias": (self.num_items,),
        }
        for index, (weight, bias) in enumerate(self.layers):
            expected[f"layers[{index}].weight"] = (len(bias), width)
            expected[f"layers[{index}].bias"] = (len(bias),)
            width = weight.shape[0]
        expected["mlp_head"] = (width,)
        for name, value in self._tensors():
            if name in expected and tuple(value.shape) != expected[name]:
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}, the other tables need {expected[name]}"
                )

    def _tensors(self) -> list[tuple[str, Tensor]]:
        named = [(field.name, getattr(self, field.name)) for field in fields(self) if field.name != "layers"]
        for index, (weight, bias) in enumerate(self.layers):
            named += [(f"layers[{index}].weight", weight), (f"layers[{index}].bias", bias)]
        return [(name, value) for name, value in named if value is not None]

    @property
    def num_users(self) -> int | None:
        """Rows of the user tables; ``None`` if there is no user table."""
        return next(
            (len(t) for t in (self.user_hidden, self.user_gmf, self.user_bias) if t is not None), None
        )

    @property
    def num_items(self) -> int | None:
        """Rows of the item tables; ``None`` if there is no item table."""
        return next(
            (len(t) for t in (self.item_hidden, self.item_gmf, self.item_bias) if t is not None), None
        )

    @property
    def device(self) -> torch.device:
        """Device of the tables."""
        return self.bias.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of every table."""
        return self.bias.dtype

    @property
    def score_dtype(self) -> torch.dtype:
        """Type of the sums and of the scores: fp32, or fp64 if the tables are."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def detach(self) -> ScoringTables:
        """The same tables, outside any autograd graph; nothing is copied."""
        return self._map(Tensor.detach)

    def copied(self) -> ScoringTables:
        """The same numbers in memory of their own, outside any autograd graph."""
        return self._map(lambda tensor: tensor.detach().clone())

    def to(self, *args: Any, **kwargs: Any) -> ScoringTables:
        """The same tables on another device or in another type, as `torch.Tensor.to`."""
        return self._map(lambda tensor: tensor.to(*args, **kwargs))

    def _map(self, change: Callable[[Tensor], Tensor]) -> ScoringTables:
        changed = {
            field.name: change(value)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        layers = tuple((change(weight), change(bias)) for weight, bias in self.layers)
        return replace(self, **changed, layers=layers)


def check_pairs(users: Tensor, items: Tensor, device: torch.device, name: str = "candidates") -> None:
    """Reject what a kernel would answer with another tensor's memory; the ids themselves are not looked at.

    Args:
        users: should be ``[U]``, int64.
        items: should be ``[U, C]``, or ``[C]`` for one list for all users, int64.
        device: where both should be.
        name: what the items are called.

    Raises:
        ValueError: if they are not.

    Example::

        >>> import torch
        >>> from ncf.kernels.scoring_tables import check_pairs
        >>> check_pairs(torch.tensor([7]), torch.tensor([[1, 2, -1]]), torch.device("cpu"))
        >>> check_pairs(torch.tensor([7]), torch.tensor([[1], [2]]), torch.device("cpu"))
        Traceback (most recent call last):
        ValueError: users has shape (1,), candidates (2, 1): give [U] and [U, C], or [C] for all users
    """
    if users.dim() != 1 or items.dim() not in (1, 2) or (items.dim() == 2 and len(users) != len(items)):
        raise ValueError(
            f"users has shape {tuple(users.shape)}, {name} {tuple(items.shape)}: give [U] and [U, C], "
            "or [C] for all users"
        )
    for which, ids in (("users", users), (name, items)):
        if ids.dtype != torch.int64 or ids.device != device:
            raise ValueError(
                f"{which} is {ids.dtype} on {ids.device}: give int64 on {device}, where the tables are"
            )
