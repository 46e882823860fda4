"""Training negatives: items the user has no training interaction with, drawn anew each epoch."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ncf.data.complement import Complement
from ncf.data.interactions import Interactions
from ncf.utils.checks import check_ids, whole

_TOTAL_WEIGHT = 2**31  # of the popularity law: fine enough for any catalogue, small enough for 64-bit keys


class NegativeSampler:
    """Draws unobserved items as negative examples (He et al. 2017, section 3.1).

    A negative is never an item of the user's *training* interactions. The held-out items may be drawn: a
    model must not learn from what is held out. Draws are independent, with replacement.

    Args:
        train: the training interactions.
        law: ``"uniform"`` over the items the user has not touched, or ``"popularity"``: in proportion to
            (number of interactions)**power among them.
        power: exponent of the popularity law; word2vec's 0.75 by default.
        counts: numbers of interactions behind that law, ``[num_items]``; those of ``train`` by default, which of
            several processes has only a part.
        seed: of the sampler's own generator.
        device: where to draw; that of the interactions by default.

    Raises:
        ValueError: for an unknown law, or a power that is not finite.

    Example::

        >>> import torch
        >>> from ncf import Interactions, NegativeSampler
        >>> train = Interactions.from_arrays([0, 0, 1], [0, 1, 2])
        >>> NegativeSampler(train, seed=1).sample(torch.tensor([0, 0]), 2)  # only item 2 is left to user 0
        tensor([[2, 2],
                [2, 2]])
    """

    def __init__(
        self,
        train: Interactions,
        *,
        law: Literal["uniform", "popularity"] = "uniform",
        power: float = 0.75,
        counts: Tensor | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        device = torch.device(device) if device is not None else train.items.device
        offsets, items = (tensor.to(device) for tensor in train.csr())
        weights = None
        if law == "popularity":
            if not math.isfinite(power):
                raise ValueError(f"power = {power}: give a finite number")
            if counts is None:
                counts = torch.bincount(items, minlength=train.num_items)
            counts = counts.to(device, torch.float64)
            mass = counts.pow(power).masked_fill_(counts == 0, 0.0)
            weights = (mass * (_TOTAL_WEIGHT / mass.sum())).ceil().to(torch.int64)
        elif law != "uniform":
            raise ValueError(f'law = {law!r}: choose "uniform" or "popularity"')
        self.law = law
        self._complement = Complement(offsets, items, num_items=train.num_items, weights=weights)
        self.generator = torch.Generator(device).manual_seed(seed)

    @property
    def available(self) -> Tensor:
        """Whether a user has any item left to draw, ``[num_users]``, bool."""
        return self._complement.sizes > 0

    def __repr__(self) -> str:
        sizes = self._complement.sizes
        return f"NegativeSampler({len(sizes)} users, {self.law})"

    def sample(self, users: Tensor, num: int = 4) -> Tensor:
        """Draw ``num`` negatives for each of ``users``; fastest when the users come in ascending order.

        Args:
            users: ``[B]``, int64.
            num: negatives per entry.

        Returns:
            Items, ``[B, num]``, int64; ``-1`` for a user who has touched everything.

        Raises:
            ValueError: if a user is out of range, or ``num`` is negative.
        """
        if users.dtype != torch.int64 or users.dim() != 1:
            raise ValueError(f"users must be an int64 tensor [B], got {users.dtype} {tuple(users.shape)}")
        whole("num", num, least=0)
        check_ids(users, "users", len(self._complement.sizes), "num_users")
        return self._complement.draw(users, num, self.generator)
