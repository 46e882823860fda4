"""The base of the baselines: vocabularies, the check of ids, padding, and what is saved."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ncf.data.interactions import Interactions
from ncf.models.scoring import Ranker
from ncf.utils.checks import check_ids, of_type, whole

if TYPE_CHECKING:
    from typing_extensions import Self

    from ncf.data.vocabulary import Vocabulary

_SCORES_PER_BLOCK = 1 << 22  # 16 MB of float32


def training_interactions(train: Interactions) -> Interactions:
    """Return what a baseline was given, if it can learn from it."""
    return of_type("train", train, Interactions, "a split has them as split.train")


class Baseline(nn.Module, Ranker):
    """A model without gradient, fitted by its constructor: what a trained model must beat.

    Its numbers are buffers, so that it moves between devices, and is saved and loaded, as every model is.

    Args:
        train: the training interactions; `EASE`, `ItemKNN`, `ItemPop` and `ALS` take them alike.
        config: what `unfitted` needs besides the numbers of users and items.

    Example::

        >>> import torch
        >>> from ncf import Interactions
        >>> from ncf.models.baselines.base import Baseline
        >>> class ByNumber(Baseline):
        ...     def _score(self, users, candidates):
        ...         return candidates.float()
        >>> model = ByNumber(Interactions.from_arrays([0, 1], [0, 1]))
        >>> model.score(torch.tensor([1]), torch.tensor([[1, 0, -1]]))
        tensor([[1., 0., -inf]])
    """

    user_ids: Vocabulary | None = None
    item_ids: Vocabulary | None = None
    record: dict[str, Any] | None = None

    def __init__(self, train: Interactions, **config: Any) -> None:
        train = training_interactions(train)
        self._set(train.num_users, train.num_items, **config)
        self.user_ids, self.item_ids = train.user_ids, train.item_ids

    @classmethod
    def unfitted(cls, num_users: int, num_items: int, **config: Any) -> Self:
        """Make one without values, on the meta device, of the given entries of ``config``."""
        model = cls.__new__(cls)
        model._set(whole("num_users", num_users), whole("num_items", num_items), **config)
        for name, (shape, dtype) in model._shapes().items():
            model.register_buffer(name, torch.empty(shape, dtype=dtype, device="meta"))
        return model.eval()

    def _set(self, num_users: int, num_items: int, **config: Any) -> None:
        super().__init__()
        self.num_users, self.num_items = num_users, num_items
        self.config = {"num_users": num_users, "num_items": num_items, **config}

    def _shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """The shape and the type of each buffer, from ``config``."""
        return {}

    def extra_repr(self) -> str:
        """The arguments it was fitted with."""
        return ", ".join(f"{name}={value}" for name, value in self.config.items())

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Device of the numbers."""
        return next((buffer.device for buffer in self.buffers()), torch.device("cpu"))

    def save(self, path: str | PathLike[str], **options: Any) -> None:
        """Write the model to a folder; `ncf.load` reads it. See `ncf.models.saving.save`."""
        from ncf.models.saving import save

        save(self, path, **options)

    @torch.no_grad()
    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        """Return scores ``[U, C]``, float32, of users ``[U]`` and candidates ``[U, C]`` or ``[C]``.

        See `ncf.models.base.SupportsScore.score`.

        Raises:
            ValueError: if an id is out of range, or the shapes do not fit.
        """
        self._check(users, candidates)
        listed = candidates[None] if candidates.dim() == 1 else candidates
        shape = (len(users), candidates.shape[-1])
        if 0 in shape:
            return torch.empty(shape, dtype=torch.float32, device=self.device)
        scores = self._score(users, listed.clamp(min=0)).expand(shape).contiguous()
        return scores.masked_fill(listed < 0, -torch.inf) if bool((listed < 0).any()) else scores

    def for_histories(self, offsets: Tensor, items: Tensor) -> Self:
        """The same fitted model for other users, each known by a history; nothing is fitted.

        Args:
            offsets: ``[U + 1]``, int64.
            items: ``[N]``, int64; user u has ``items[offsets[u]:offsets[u + 1]]``.
        """
        other = copy.copy(self)
        other.__dict__["_buffers"] = dict(self._buffers)  # which a shallow copy would share
        other.num_users, other.user_ids = len(offsets) - 1, None
        other.config = {**self.config, "num_users": other.num_users}
        return other

    def _score(self, users: Tensor, candidates: Tensor) -> Tensor:
        """Scores of real items, ``[U, C]``; where ``candidates`` has one row for all, so may the result."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.num_users} users, {self.num_items} items)"

    def _check(self, users: Tensor, candidates: Tensor) -> None:
        if users.dim() != 1 or (candidates.dim() != 1 and candidates.shape[:-1] != users.shape):
            raise ValueError(
                f"candidates {tuple(candidates.shape)} must be [U, C], or [C] for all users, "
                f"for users {tuple(users.shape)}"
            )
        check_ids(users, "users", self.num_users, "num_users")
        check_ids(candidates, "candidates", self.num_items, "num_items", lowest=-1)


class DotProduct(Baseline):
    """A baseline whose score is a dot product of a user's and an item's row; ``config`` has ``factors``."""

    user_factors: Tensor  # [num_users, F]
    item_factors: Tensor  # [num_items, F]

    def _shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        factors = self.config["factors"]
        return {
            "user_factors": ((self.num_users, factors), torch.float32),
            "item_factors": ((self.num_items, factors), torch.float32),
        }

    def _score(self, users: Tensor, candidates: Tensor) -> Tensor:
        if len(candidates) == 1:
            return self.user_factors[users] @ self.item_factors[candidates[0]].T
        scores = torch.empty(candidates.shape, dtype=torch.float32, device=self.device)
        for block in blocks_of(len(users), candidates.shape[1] * self.item_factors.shape[1]):
            of_users = self.user_factors[users[block], :, None]  # [b, F, 1]
            scores[block] = torch.bmm(self.item_factors[candidates[block]], of_users)[:, :, 0]
        return scores


def blocks_of(rows: int, width: int, most: int | None = None) -> Iterator[slice]:
    """Cut rows of ``width`` numbers into blocks of at most ``most`` numbers, by default few; one row at least."""
    step = max(1, (_SCORES_PER_BLOCK if most is None else most) // max(1, width))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
