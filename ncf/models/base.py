"""Base class of trained models: ids in, logits out, scores for ranking, a folder on disk."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from ncf.kernels.dispatch import can_fuse, fused_lookup, fused_rows
from ncf.models.embeddings import Side, Table, UserItemEmbeddings
from ncf.models.scoring import ForwardScorer, ModelScorer, Ranker, Scorer, ShardedScorer, full_precision
from ncf.utils.checks import check_ids, whole
from ncf.utils.threads import cpu_threads

if TYPE_CHECKING:
    from ncf.data.features import Features
    from ncf.data.vocabulary import Vocabulary
    from ncf.kernels.scoring_tables import ScoringTables


_LOGITS = ("logits", "forward")
M = TypeVar("M", bound=nn.Module)


@runtime_checkable
class SupportsScore(Protocol):
    """The protocol of what can be evaluated and recommended from.

    A scorer that can rank faster than by a table of scores also has
    ``rank(candidates) -> (ranks [U], numbers of candidates [U])``, see `ncf.models.scoring.Ranker.rank`.

    Example::

        >>> import torch
        >>> from ncf.models.base import SupportsScore
        >>> class ByNumber:
        ...     def score(self, users, candidates):
        ...         return candidates.float()
        >>> isinstance(ByNumber(), SupportsScore), isinstance(torch.nn.Linear(2, 1), SupportsScore)
        (True, False)
    """

    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        """Score each user's candidates.

        Args:
            users: ``[U]``, int64.
            candidates: items, ``[U, C]``, int64; ``-1`` is padding.

        Returns:
            Scores, ``[U, C]``; padding has ``-inf``.
        """
        ...


@dataclass(frozen=True)
class FusedParts:
    """The arguments of `ncf.kernels.fused_lookup` for a model: its GMF product, and its MLP's first layer.

    Args:
        product: suffix of the two tables that are multiplied, as ``"gmf"`` of ``user_gmf`` and ``item_gmf``.
        factors: leading columns that the product has.
        summed: how many of them, the last ones, are added: the biases.
        hidden: suffix of the two tables under the first layer.
        tower: name of the tower whose first layer it is.
    """

    product: str | None = None
    factors: int | None = None
    summed: int = 0
    hidden: str | None = None
    tower: str | None = None

    def arguments(self, rows: Mapping[str, Tensor], towers: Any) -> list[Any]:
        """Tables, or rows by table, the first layer, and the columns, in the order of `fused_lookup`."""
        found = [
            None if kind is None else rows[f"{side}_{kind}"]
            for kind in (self.product, self.hidden)
            for side in ("user", "item")
        ]
        layer: Any = None if self.tower is None else towers[self.tower].layers[0]
        first = (None, None) if layer is None else (layer.weight, layer.bias)
        return [*found, *first, self.factors, self.summed]


class SideInformation(TypedDict, total=False):
    """Arguments of every model: features, or in a saved description their sizes; and dropout of ids."""

    item_features: Features | Mapping[str, int] | None
    user_features: Features | Mapping[str, int] | None
    id_dropout: float


class EmbeddingModel(nn.Module):
    """Embeddings, towers and a head.

    A subclass says which tables and towers it has, how it turns looked-up rows into logits, and how its
    parameters are laid out for ranking. Nothing else differs between models.

    Args:
        num_users: size of the user vocabulary; ids are ``0 .. num_users - 1``.
        num_items: size of the item vocabulary.
        tables: the embedding tables.
        towers: the dense towers by name.
        head: the module that turns the towers' output into the logit.
        config: the keyword arguments that build the same model again.
        seed: of the initial values.
        device: where to build the model; ``"meta"`` for one to be sharded.
        side: features and their dropout, see below.

    Other Parameters:
        dropout: probability with which an element of the product, or of a hidden layer, is dropped in training.
        init_std: standard deviation of the initial rows.
        item_features: side information of the items, `ncf.Features` of them all. The row of an item is then the sum
            of its own row, which starts at zero, and of its features' rows.
        user_features: likewise of the users.
        id_dropout: probability with which, in training, the own row of a user or item that has features counts
            nothing, so that features can stand in for an id never seen (DropoutNet, Volkovs et al., NIPS 2017).

    Raises:
        ValueError: if a size is no positive whole number, or features are of another number of ids.
        TypeError: for a keyword argument that no model has.

    Example::

        >>> import torch
        >>> from ncf.models.embeddings import Table
        >>> from ncf.kernels.scoring_tables import ScoringTables
        >>> from ncf.models.base import EmbeddingModel
        >>> from ncf.models.towers import SumHead
        >>> class DotProduct(EmbeddingModel):
        ...     def __init__(self, num_users, num_items, seed=0, device=None):
        ...         tables = [Table("user", "user", 4, 0.1), Table("item", "item", 4, 0.1)]
        ...         parts = {"tables": tables, "towers": {}, "head": SumHead()}
        ...         super().__init__(num_users, num_items, **parts, config={}, seed=seed, device=device)
        ...     def logits(self, rows):
        ...         return self.head(rows["user"] * rows["item"]).squeeze(-1)
        ...     def scoring_tables(self, rows=None):
        ...         rows = self.embeddings.weights() if rows is None else rows
        ...         return ScoringTables(user_gmf=rows["user"], item_gmf=rows["item"], bias=self.head.bias)
        >>> DotProduct(3, 5).score(torch.tensor([0]), torch.tensor([[1, 4]])).shape
        torch.Size([1, 2])
    """

    # Typed loosely: nn.Module says of every attribute that it is a tensor or a module.
    towers: Any
    head: Any
    user_ids: Vocabulary | None = None
    item_ids: Vocabulary | None = None
    record: dict[str, Any] | None = None  # what it was trained on and how good it was; saved with it

    def __init__(
        self,
        num_users: int,
        num_items: int,
        *,
        tables: Sequence[Table],
        towers: dict[str, nn.Module],
        head: nn.Module,
        config: dict[str, Any],
        seed: int,
        device: torch.device | str | None,
        **side: Unpack[SideInformation],
    ) -> None:
        super().__init__()
        seed = whole("seed", seed, least=None)
        self.num_users = num_users = whole("num_users", num_users)
        self.num_items = num_items = whole("num_items", num_items)
        self.config = {"num_users": num_users, "num_items": num_items, **config, "seed": seed}
        if unexpected := side.keys() - SideInformation.__annotations__.keys():
            raise TypeError(f"{type(self).__name__} got an unexpected keyword argument {min(unexpected)!r}")
        id_dropout = side.get("id_dropout", 0.0)
        if not 0.0 <= id_dropout < 1.0:
            raise ValueError(f"id_dropout = {id_dropout!r}: give a probability of at least 0 and below 1")
        given = {each: side.get(f"{each}_features") for each in ("user", "item")}
        features: dict[Any, Any] = {each: value for each, value in given.items() if value is not None}
        self.embeddings = UserItemEmbeddings(
            num_users, num_items, tables, seed=seed, device=device, features=features, id_dropout=id_dropout
        )
        for each, bags in self.embeddings.features.items():
            # So that data of other ids is an error.
            setattr(self, f"{each}_ids", getattr(given[each], "ids", None))
            self.config |= {f"{each}_features": bags.sizes, "id_dropout": id_dropout}
        dense_device = None if device is None or torch.device(device).type == "meta" else device
        self.towers = nn.ModuleDict(towers).to(dense_device)
        self.head = head.to(dense_device)
        # Its fused parts were written for these logits: no class nearer to the model's own has other logits.
        self.is_fused_as_written = _is_written_for(type(self), "fused_parts", _LOGITS)

    def extra_repr(self) -> str:
        """The arguments it was built with."""
        return ", ".join(f"{name}={value}" for name, value in self.config.items())

    @property
    def device(self) -> torch.device:
        """Device of the dense parameters."""
        bias: Tensor = self.head.bias
        return bias.device

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Logits of user-item pairs.

        Args:
            users: ``[B]``, int64.
            items: ``[B]``, or ``[B, C]`` for several items of each user.

        Returns:
            Logits of the shape of ``items``; `torch.sigmoid` and the loss are the caller's.

        Raises:
            ValueError: if ids are no tensor of whole numbers; on a CPU, if one is out of range. On a GPU nothing
                waits to raise: the fused lookup's logit is then NaN, and `predict` and `score` raise.
        """
        parts = self.fused_parts() if self.is_fused_as_written and can_fuse(self.device) else None
        if parts is not None and not self.embeddings.is_sharded and not self.embeddings.features:
            own = {table.name: self.embeddings.weight(table.name) for table in self.embeddings.tables}
            given = parts.arguments(own, self.towers)
            given.append(self.embeddings.sparse_gradients)
            return self.logits_of(*fused_lookup(users, items, *given))
        try:
            rows = self.embeddings(users, items, training=self.training)
        except (AttributeError, IndexError, RuntimeError):
            for name, ids, size in (("user", users, self.num_users), ("item", items, self.num_items)):
                whole_numbers = isinstance(ids, Tensor) and not ids.is_floating_point()
                check_ids(ids.to(torch.int64) if whole_numbers else ids, f"{name}s", size, f"num_{name}s")
            raise
        if parts is not None:
            return self.logits_of(*fused_rows(*parts.arguments(rows, self.towers)))
        return self.logits(rows)

    def features(self, side: Side) -> Features | None:
        """The features of a side, ``"user"`` or ``"item"``, as the model has them; ``None`` without any."""
        if side not in self.embeddings.features:
            return None
        features: Features = self.embeddings.features[side].features(getattr(self, f"{side}_ids"))
        return features

    def logits(self, rows: dict[str, Tensor]) -> Tensor:
        """Logits from looked-up rows: ``[..., D]`` per table to ``[...]``."""
        raise NotImplementedError

    def fused_parts(self) -> FusedParts | None:
        """Return what `ncf.kernels.fused_lookup` makes of the model's tables; ``None`` where it cannot."""
        return None

    def logits_of(self, product: Tensor | None, hidden: Tensor | None) -> Tensor:
        """Logits from the two results of `ncf.kernels.fused_lookup`; for a model that has `fused_parts`."""
        raise NotImplementedError

    def scoring_tables(self, rows: Mapping[str, Tensor] | None = None) -> ScoringTables:
        """The parameters laid out for ranking: what depends on a user or an item alone, worked out once.

        Args:
            rows: the rows of some users and items by table; the whole tables by default.
        """
        raise NotImplementedError

    @torch.no_grad()
    def predict(self, users: Tensor, items: Tensor) -> Tensor:
        """The probability, in (0, 1), that a user and an item interact (He et al. 2017, equation 6).

        Args:
            users: ``[B]``, int64.
            items: ``[B]`` or ``[B, C]``.

        Returns:
            Probabilities of the shape of ``items``.

        Raises:
            ValueError: if an id is out of range, or the shapes do not fit.
        """
        check_ids(users, "users", self.num_users, "num_users")
        check_ids(items, "items", self.num_items, "num_items")
        if items.shape[:1] != users.shape or items.dim() > 2:
            raise ValueError(
                f"items {tuple(items.shape)} must be [B] or [B, C] for users {tuple(users.shape)}"
            )
        model = in_evaluation_mode(self, keep=self.embeddings)
        with full_precision(self.device):
            logits = model(users.to(self.device), items.to(self.device))
        # float32 rounds the sigmoid of 17 to one: stay inside the open interval
        tiny = torch.finfo(logits.dtype).tiny
        return torch.sigmoid(logits).clamp(tiny, 1 - torch.finfo(logits.dtype).eps / 2)

    def scorer(self) -> Ranker:
        """Return a frozen, fast view of the model for ranking, in evaluation mode; later training does not change it.

        The view of a sharded model looks rows up as it goes, and every process must use it together. A subclass that
        overrides `score` is ranked by that. One whose `scoring_tables` do not belong to its ``logits`` and ``forward``
        is ranked by its ``forward``. These two follow later training.
        """
        if type(self).score is not EmbeddingModel.score:
            own = in_evaluation_mode(self, keep=self.embeddings)
            return ModelScorer(own, distributed=self.embeddings.is_sharded)
        return self._scorer()

    def _scorer(self) -> Ranker:
        sharded, device = self.embeddings.is_sharded, self.device
        if not self.is_separable:
            own = in_evaluation_mode(self, keep=self.embeddings)
            return ForwardScorer(own, distributed=sharded, device=device)
        if sharded:
            return ShardedScorer(self.embeddings, self.scoring_tables, device)
        # PyTorch's threads would stay awake for a while, on the cores that the kernel's threads need next.
        with torch.no_grad(), full_precision(device), cpu_threads(1 if device.type == "cpu" else None):
            return Scorer(self.scoring_tables())

    @property
    def is_separable(self) -> bool:
        """The scoring tables were written for these logits: no class nearer to the model's own has other logits."""
        return _is_written_for(type(self), "scoring_tables", _LOGITS)

    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        """Return logits ``[U, C]`` for ranking, of users ``[U]`` and candidates ``[U, C]`` or ``[C]``.

        See `SupportsScore.score`.

        Raises:
            ValueError: if an id is out of range, or the shapes do not fit.
        """
        check_ids(users, "users", self.num_users, "num_users")
        check_ids(candidates, "candidates", self.num_items, "num_items", lowest=-1)
        if users.dim() != 1 or (candidates.dim() != 1 and candidates.shape[:-1] != users.shape):
            raise ValueError(
                f"candidates {tuple(candidates.shape)} must be [U, C], or [C] for all users, "
                f"for users {tuple(users.shape)}"
            )
        return self._scorer().score(users.to(self.device), candidates.to(self.device))

    def save(self, path: str | PathLike[str], **options: Any) -> None:
        """Write the model to a folder; `ncf.load` reads it. See `ncf.models.saving.save` for the options."""
        from ncf.models.saving import save

        save(self, path, **options)


def inference_scorer(model: SupportsScore) -> Ranker:
    """Return what ranks for a model, without a change to the model or to any global setting.

    Args:
        model: anything with ``score``. Its frozen view is taken if it offers ``scorer()``; of another `nn.Module` a
            copy in evaluation mode that shares its parameters.

    Raises:
        TypeError: if there is no ``score`` to call.

    Example::

        >>> import torch
        >>> from ncf import GMF
        >>> from ncf.models.base import inference_scorer
        >>> inference_scorer(GMF(num_users=2, num_items=3)).score(torch.tensor([1]), torch.tensor([0, 2])).shape
        torch.Size([1, 2])
    """
    model = unwrap_model(model)
    if isinstance(model, Ranker):
        return model
    if not isinstance(model, SupportsScore):
        raise TypeError(f"{type(model).__name__} has no method score(users [U], candidates [U, C]) -> [U, C]")
    view: Any = getattr(model, "scorer", None)
    if callable(view):
        with torch.no_grad():
            model = view()
    if isinstance(model, nn.Module):
        model = in_evaluation_mode(model)
    return model if isinstance(model, Ranker) else ModelScorer(model)


def in_evaluation_mode(module: M, keep: nn.Module | None = None) -> M:
    """Copy the modules, not their parameters, and set the copies to evaluation mode.

    Args:
        module: a module, which stays as it is.
        keep: a part that has no modes, and is shared rather than copied.
    """
    copies: dict[nn.Module, nn.Module] = {} if keep is None else {keep: keep}

    def copied(part: nn.Module) -> nn.Module:
        if part not in copies:
            twin = copies[part] = copy.copy(part)
            children = part._modules.items()
            twin.__dict__["_modules"] = {n: None if child is None else copied(child) for n, child in children}
            twin.training = False
        return copies[part]

    return copied(module) if any(part.training for part in module.modules()) else module  # type: ignore[return-value]


def unwrap_model(model: SupportsScore) -> SupportsScore:
    """Return the model itself, where TorchRec's or PyTorch's wrapper for several processes is around it."""
    inner = getattr(model, "module", None)
    return inner if isinstance(inner, SupportsScore) else model


def _is_written_for(kind: Any, method: str, others: tuple[str, ...]) -> bool:
    """Return whether a class that has the method stands no further from the model's own than any of the others."""
    place = {n: next(i for i, c in enumerate(kind.__mro__) if n in vars(c)) for n in (method, *others)}
    written = kind.__mro__[place[method]] is not EmbeddingModel
    return written and all(place[method] <= place[name] for name in others)
