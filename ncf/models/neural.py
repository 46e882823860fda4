"""The models of Neural Collaborative Filtering: GMF, MLP and NeuMF."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Unpack

from ncf.kernels.scoring_tables import ScoringTables
from ncf.models.base import EmbeddingModel, FusedParts, SideInformation
from ncf.models.embeddings import Side, Table
from ncf.models.matrix_factorization import MatrixFactorization
from ncf.models.towers import GMFTower, MLPTower, linear_head
from ncf.utils.checks import whole

__all__ = ["GMF", "MLP", "MatrixFactorization", "NeuMF"]

_PAPER_STD = 0.01  # He et al. 2017, section 4.1: parameters start Gaussian with this deviation


def _gmf_tables(factors: int, std: float) -> list[Table]:
    return [Table("user_gmf", "user", factors, std), Table("item_gmf", "item", factors, std)]


def _mlp_tables(layers: Sequence[int], std: float) -> list[Table]:
    return [Table("user_mlp", "user", layers[0] // 2, std), Table("item_mlp", "item", layers[0] // 2, std)]


class GMF(EmbeddingModel):
    """Generalized matrix factorization: a weighted dot product (He et al. 2017, section 3.2).

    Args:
        factors: width of a row.

    The other arguments are `EmbeddingModel`'s.

    Example::

        >>> import torch
        >>> from ncf import GMF
        >>> model = GMF(num_users=10, num_items=20, factors=4)
        >>> model(torch.tensor([0, 9]), torch.tensor([3, 19])).shape
        torch.Size([2])
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        *,
        factors: int = 8,
        dropout: float = 0.0,
        init_std: float = _PAPER_STD,
        seed: int = 0,
        device: torch.device | str | None = None,
        **side: Unpack[SideInformation],
    ) -> None:
        factors = whole("factors", factors)
        super().__init__(
            num_users,
            num_items,
            tables=_gmf_tables(factors, init_std),
            towers={"gmf": GMFTower(factors, dropout=dropout)},
            head=linear_head(factors, seed),
            config={"factors": factors, "dropout": dropout, "init_std": init_std},
            seed=seed,
            device=device,
            **side,
        )

    def logits(self, rows: dict[str, Tensor]) -> Tensor:
        """See `EmbeddingModel.logits`."""
        product = self.towers["gmf"](rows["user_gmf"], rows["item_gmf"])  # [..., F]
        logits: Tensor = self.head(product).squeeze(-1)
        return logits

    def fused_parts(self) -> FusedParts:
        """See `EmbeddingModel.fused_parts`."""
        return FusedParts("gmf")

    def logits_of(self, product: Tensor | None, hidden: Tensor | None) -> Tensor:
        """See `EmbeddingModel.logits_of`."""
        logits: Tensor = self.head(self.towers["gmf"].after_product(product)).squeeze(-1)
        return logits

    def scoring_tables(self, rows: Mapping[str, Tensor] | None = None) -> ScoringTables:
        """See `EmbeddingModel.scoring_tables`: the head's weights are folded into the user rows."""
        rows = self.embeddings.weights() if rows is None else rows
        return ScoringTables(
            user_gmf=rows["user_gmf"] * self.head.weight, item_gmf=rows["item_gmf"], bias=self.head.bias
        )


class MLP(EmbeddingModel):
    """A perceptron over the concatenated embeddings (He et al. 2017, section 3.3).

    Args:
        layers: widths of the layers. ``layers[0]`` is the width of the two rows side by side, as in the paper's code.

    The other arguments are `EmbeddingModel`'s.

    Example::

        >>> import torch
        >>> from ncf import MLP
        >>> model = MLP(num_users=10, num_items=20, layers=(16, 8))
        >>> model(torch.tensor([0, 9]), torch.tensor([[3, 19, 4], [0, 1, 2]])).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        *,
        layers: Sequence[int] = (64, 32, 16, 8),
        dropout: float = 0.0,
        init_std: float = _PAPER_STD,
        seed: int = 0,
        device: torch.device | str | None = None,
        **side: Unpack[SideInformation],
    ) -> None:
        tower = MLPTower(layers, dropout=dropout, seed=seed)
        super().__init__(
            num_users,
            num_items,
            tables=_mlp_tables(tower.widths, init_std),
            towers={"mlp": tower},
            head=linear_head(tower.out_features, seed),
            config={"layers": tower.widths, "dropout": dropout, "init_std": init_std},
            seed=seed,
            device=device,
            **side,
        )

    def logits(self, rows: dict[str, Tensor]) -> Tensor:
        """See `EmbeddingModel.logits`."""
        hidden = self.towers["mlp"](rows["user_mlp"], rows["item_mlp"])  # [..., layers[-1]]
        logits: Tensor = self.head(hidden).squeeze(-1)
        return logits

    def fused_parts(self) -> FusedParts | None:
        """See `EmbeddingModel.fused_parts`: without a hidden layer there are none."""
        return FusedParts(hidden="mlp", tower="mlp") if self.towers["mlp"].layers else None

    def logits_of(self, product: Tensor | None, hidden: Tensor | None) -> Tensor:
        """See `EmbeddingModel.logits_of`."""
        logits: Tensor = self.head(self.towers["mlp"].after_first_layer(hidden)).squeeze(-1)
        return logits

    def scoring_tables(self, rows: Mapping[str, Tensor] | None = None) -> ScoringTables:
        """See `EmbeddingModel.scoring_tables`: the first layer's two halves are computed per row."""
        rows = self.embeddings.weights() if rows is None else rows
        return ScoringTables(**_mlp_halves(self, rows, self.head.weight), bias=self.head.bias)


class NeuMF(EmbeddingModel):
    """Neural matrix factorization: GMF and MLP, each with its own tables, under one head.

    He et al. 2017, section 3.4, equation 12.

    Args:
        factors: width of the GMF rows.
        layers: widths of the MLP's layers. ``layers[0]`` is the width of its two rows side by side.

    The other arguments are `EmbeddingModel`'s.

    Example::

        >>> import torch
        >>> from ncf import NeuMF
        >>> model = NeuMF(num_users=10, num_items=20, factors=4, layers=(16, 8, 4))
        >>> model.predict(torch.tensor([0, 9]), torch.tensor([3, 19])).shape
        torch.Size([2])
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        *,
        factors: int = 8,
        layers: Sequence[int] = (64, 32, 16, 8),
        dropout: float = 0.0,
        init_std: float = _PAPER_STD,
        seed: int = 0,
        device: torch.device | str | None = None,
        **side: Unpack[SideInformation],
    ) -> None:
        factors = whole("factors", factors)
        mlp = MLPTower(layers, dropout=dropout, seed=seed)
        super().__init__(
            num_users,
            num_items,
            tables=_gmf_tables(factors, init_std) + _mlp_tables(mlp.widths, init_std),
            towers={"gmf": GMFTower(factors, dropout=dropout), "mlp": mlp},
            head=linear_head(factors + mlp.out_features, seed),
            config={"factors": factors, "layers": mlp.widths, "dropout": dropout, "init_std": init_std},
            seed=seed,
            device=device,
            **side,
        )

    @classmethod
    def from_pretrained(cls, gmf: GMF, mlp: MLP, *, alpha: float = 0.5) -> NeuMF:
        """Fuse a trained GMF and a trained MLP (He et al. 2017, section 3.4.1, equation 13).

        The head is ``[alpha · h_gmf; (1 − alpha) · h_mlp]``, and its bias is mixed in the same way. The new model's
        logit is the weighted mean of the two.

        Two models without values, from ``ncf.load(path, device="meta")``, give a third without values, to be
        sharded. Its tables come from the same files.

        Args:
            gmf: the source of the GMF tables.
            mlp: the source of the MLP tables and tower.
            alpha: weight of the GMF part, between 0 and 1.

        Returns:
            A new model; it shares no memory with the two.

        Raises:
            ValueError: if the two do not have the same users, items and raw ids, or alpha is outside [0, 1], or
                if one is sharded or is alone in having no values.

        Example::

            >>> import torch
            >>> from ncf import GMF, MLP, NeuMF
            >>> gmf, mlp = GMF(10, 20, factors=4), MLP(10, 20, layers=(16, 8))
            >>> users, items = torch.tensor([3]), torch.tensor([7])
            >>> fused = NeuMF.from_pretrained(gmf, mlp, alpha=0.5)
            >>> torch.allclose(fused(users, items), (gmf(users, items) + mlp(users, items)) / 2)
            True
        """
        for name in ("num_users", "num_items"):
            if getattr(gmf, name) != getattr(mlp, name):
                raise ValueError(f"{name} differs: {getattr(gmf, name)} in gmf, {getattr(mlp, name)} in mlp")
        for name in ("user_ids", "item_ids"):
            ids, others = getattr(gmf, name), getattr(mlp, name)
            if ids is not None and others is not None and ids.fingerprint != others.fingerprint:
                raise ValueError(
                    f"{name} differs: gmf and mlp were trained on other raw ids, or in another order"
                )
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"alpha = {alpha}: give a number between 0 and 1")
        if gmf.embeddings.is_sharded or mlp.embeddings.is_sharded:
            raise ValueError('gmf or mlp is sharded: save both and load them with device="meta"')
        if gmf.embeddings.is_meta != mlp.embeddings.is_meta:
            raise ValueError("one of gmf and mlp is on the meta device: load both alike")
        side = _shared_side(gmf, mlp)
        model = cls(
            gmf.num_users,
            gmf.num_items,
            factors=gmf.config["factors"],
            layers=mlp.config["layers"],
            dropout=mlp.config["dropout"],
            init_std=mlp.config["init_std"],
            seed=mlp.config["seed"],
            device="meta" if gmf.embeddings.is_meta else gmf.device,
            **side,
        )
        model.embeddings.table_fillers = {**gmf.embeddings.table_fillers, **mlp.embeddings.table_fillers}
        state = {**gmf.state_dict(), **mlp.state_dict()}
        state["head.weight"] = torch.cat([alpha * gmf.head.weight, (1 - alpha) * mlp.head.weight], dim=1)
        state["head.bias"] = alpha * gmf.head.bias + (1 - alpha) * mlp.head.bias
        model.load_state_dict(state)
        for name in ("user_ids", "item_ids"):
            ids = getattr(gmf, name)
            setattr(model, name, getattr(mlp, name) if ids is None else ids)
        return model

    def logits(self, rows: dict[str, Tensor]) -> Tensor:
        """See `EmbeddingModel.logits`."""
        product = self.towers["gmf"](rows["user_gmf"], rows["item_gmf"])  # [..., F]
        hidden = self.towers["mlp"](rows["user_mlp"], rows["item_mlp"])  # [..., layers[-1]]
        logits: Tensor = self.head(torch.cat([product, hidden], dim=-1)).squeeze(-1)
        return logits

    def fused_parts(self) -> FusedParts | None:
        """See `EmbeddingModel.fused_parts`: without a hidden layer there are none."""
        return FusedParts("gmf", hidden="mlp", tower="mlp") if self.towers["mlp"].layers else None

    def logits_of(self, product: Tensor | None, hidden: Tensor | None) -> Tensor:
        """See `EmbeddingModel.logits_of`."""
        of_gmf = self.towers["gmf"].after_product(product)  # [..., F]
        of_mlp = self.towers["mlp"].after_first_layer(hidden)  # [..., layers[-1]]
        logits: Tensor = self.head(torch.cat([of_gmf, of_mlp], dim=-1)).squeeze(-1)
        return logits

    def scoring_tables(self, rows: Mapping[str, Tensor] | None = None) -> ScoringTables:
        """See `EmbeddingModel.scoring_tables`."""
        rows = self.embeddings.weights() if rows is None else rows
        of_gmf, of_mlp = self.head.weight.split(
            [self.config["factors"], self.towers["mlp"].out_features], dim=1
        )
        return ScoringTables(
            user_gmf=rows["user_gmf"] * of_gmf,
            item_gmf=rows["item_gmf"],
            **_mlp_halves(self, rows, of_mlp),
            bias=self.head.bias,
        )


def _shared_side(gmf: GMF, mlp: MLP) -> SideInformation:
    """The features of both models, which must be the same."""
    sides: tuple[Side, Side] = "user", "item"
    for side in sides:
        prints = [None if (own := each.features(side)) is None else own.fingerprint for each in (gmf, mlp)]
        if prints[0] != prints[1]:
            raise ValueError(f"{side}_features differ: build gmf and mlp with the same")
    return {
        "user_features": gmf.features("user"),
        "item_features": gmf.features("item"),
        "id_dropout": mlp.embeddings.id_dropout,
    }


def _mlp_halves(model: EmbeddingModel, rows: Mapping[str, Tensor], head: Tensor) -> dict[str, Any]:
    """The MLP's part of `ScoringTables`; without a hidden layer it is a bias per user and per item."""
    user, item = rows["user_mlp"], rows["item_mlp"]
    layers = model.towers["mlp"].layers
    if not layers:
        of_user, of_item = head[0].chunk(2)
        return {"user_bias": user @ of_user, "item_bias": item @ of_item}
    of_user, of_item = layers[0].weight.chunk(2, dim=1)  # [H, D] each
    return {
        "user_hidden": F.linear(user, of_user, layers[0].bias),
        "item_hidden": F.linear(item, of_item),
        "layers": tuple((layer.weight, layer.bias) for layer in layers[1:]),
        "mlp_head": head[0],
    }
