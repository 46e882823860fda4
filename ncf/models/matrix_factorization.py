"""The dot product, the baseline of the models of Neural Collaborative Filtering."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Unpack

from ncf.kernels.scoring_tables import ScoringTables
from ncf.models.base import EmbeddingModel, FusedParts, SideInformation
from ncf.models.embeddings import Table
from ncf.models.towers import GMFTower, SumHead
from ncf.utils.checks import whole


class MatrixFactorization(EmbeddingModel):
    """The dot product with biases, the baseline that a neural model has to beat (Rendle et al. 2020).

    The logit is ⟨p, q⟩ + bᵤ + bᵢ + b; "Neural Collaborative Filtering vs. Matrix Factorization Revisited",
    RecSys 2020. A bias is a column of its side's table, so that one lookup brings both. The row is padded to a
    multiple of four columns, as FBGEMM requires. Biases start at zero.

    Args:
        factors: width of the dot product.
        cosine: the logit is the cosine of the two rows instead, without biases, for losses such as
            `ncf.training.losses.CosineContrastive`.

    The other arguments are `EmbeddingModel`'s.

    Example::

        >>> import torch
        >>> from ncf import MatrixFactorization
        >>> model = MatrixFactorization(num_users=10, num_items=20, factors=4)
        >>> model(torch.tensor([0, 9]), torch.tensor([3, 19])).shape
        torch.Size([2])
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        *,
        factors: int = 8,
        cosine: bool = False,
        dropout: float = 0.0,
        init_std: float = 0.1,
        seed: int = 0,
        device: torch.device | str | None = None,
        **side: Unpack[SideInformation],
    ) -> None:
        factors = whole("factors", factors)
        width = -(-(factors + 1) // 4) * 4
        super().__init__(
            num_users,
            num_items,
            tables=[
                Table("user_mf", "user", width, init_std, random_columns=factors),
                Table("item_mf", "item", width, init_std, random_columns=factors),
            ],
            towers={"dot": GMFTower(factors, dropout=dropout)},
            head=SumHead(),
            config={"factors": factors, "cosine": bool(cosine), "dropout": dropout, "init_std": init_std},
            seed=seed,
            device=device,
            **side,
        )
        self.head.bias.requires_grad_(not cosine)

    def logits(self, rows: dict[str, Tensor]) -> Tensor:
        """See `EmbeddingModel.logits`."""
        factors = self.config["factors"]
        user, item = rows["user_mf"], rows["item_mf"]  # [..., F + 1 + padding]
        if self.config["cosine"]:
            user, item = (F.normalize(side[..., :factors], dim=-1) for side in (user, item))
            cosine: Tensor = self.head(self.towers["dot"](user, item)).squeeze(-1)
            return cosine
        product = self.towers["dot"](user[..., :factors], item[..., :factors])  # [..., F]
        logits: Tensor = self.head(product).squeeze(-1) + user[..., factors] + item[..., factors]
        return logits

    def fused_parts(self) -> FusedParts | None:
        """See `EmbeddingModel.fused_parts`: the column of biases is added; cosines are not fused."""
        return None if self.config["cosine"] else FusedParts("mf", self.config["factors"] + 1, summed=1)

    def logits_of(self, product: Tensor | None, hidden: Tensor | None) -> Tensor:
        """See `EmbeddingModel.logits_of`."""
        assert product is not None  # [..., F + 1]
        multiplied = self.towers["dot"].after_product(product[..., :-1])
        logits: Tensor = self.head(multiplied).squeeze(-1) + product[..., -1]
        return logits

    def scoring_tables(self, rows: Mapping[str, Tensor] | None = None) -> ScoringTables:
        """See `EmbeddingModel.scoring_tables`."""
        rows = self.embeddings.weights() if rows is None else rows
        factors = self.config["factors"]
        user, item = rows["user_mf"], rows["item_mf"]
        if self.config["cosine"]:
            user, item = (F.normalize(side[:, :factors], dim=1) for side in (user, item))
            return ScoringTables(user_gmf=user, item_gmf=item, bias=self.head.bias)
        return ScoringTables(
            user_gmf=user[:, :factors],
            item_gmf=item[:, :factors],
            user_bias=user[:, factors],
            item_bias=item[:, factors],
            bias=self.head.bias,
        )
