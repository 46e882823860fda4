"""Metrics beyond accuracy: coverage, exposure, popularity, novelty and diversity of the recommended lists."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ncf.data.candidates import Catalogue
from ncf.data.interactions import Interactions
from ncf.evaluation.evaluator import check_known_ids
from ncf.evaluation.intervals import Interval, normal_interval
from ncf.evaluation.ranking import shown_users
from ncf.evaluation.significance import PairedTest, paired_values
from ncf.models.base import SupportsScore, inference_scorer, unwrap_model
from ncf.utils.checks import check_choice, whole
from ncf.utils.html import html_table

_NUMBERS_AT_ONCE = 1 << 22  # of a block of lists' features: 32 MB


@dataclass(frozen=True, eq=False)
class ListStatistics:
    """Properties of users' lists that need no held-out item; see `list_statistics`.

    Args:
        users: whose lists, ``[U]``, int64.
        items: the lists, ``[U, K]``, int64, best first; ``-1`` past the end of a list.
        num_items: size of the catalogue.
        popularity: mean number of training interactions of a list's items, ``[U]``, float64.
        novelty: mean of -log₂ of an item's share of the training interactions, in bits, ``[U]``, float64.
        diversity: 1 less the mean cosine of a list's pairs of items, ``[U]``, float64; ``None`` without features.
        untested: number of trained users who have no held-out item, and whose lists are left out.

    Example::

        >>> import torch
        >>> from ncf.evaluation.beyond_accuracy import ListStatistics
        >>> items, ones = torch.tensor([[0, 1], [1, 0]]), torch.ones(2, dtype=torch.float64)
        >>> lists = ListStatistics(torch.arange(2), items, 4, 5 * ones, 2 * ones, None)
        >>> lists.coverage, lists.gini
        (0.5, 0.5)
    """

    users: Tensor
    items: Tensor
    num_items: int
    popularity: Tensor
    novelty: Tensor
    diversity: Tensor | None
    untested: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Statistics with one value for each user, and so with intervals and tests."""
        return "popularity", "novelty", *(() if self.diversity is None else ("diversity",))

    @property
    def coverage(self) -> float:
        """Share of the catalogue that stands in at least one list."""
        return len(self.items[self.items >= 0].unique()) / self.num_items

    @property
    def gini(self) -> float:
        """Gini coefficient of how often each item is listed: 0 where all are alike, near 1 where one has all."""
        listed = self.items[self.items >= 0].bincount(minlength=self.num_items)
        listed = listed.sort().values.to(torch.float64)  # [I]
        place = torch.arange(1, self.num_items + 1, dtype=torch.float64, device="cpu")
        weights = 2 * place - self.num_items - 1
        return float((weights * listed).sum() / (self.num_items * listed.sum().clamp(min=1)))

    def mean(self, name: str) -> float:
        """Mean of ``"popularity"``, ``"novelty"`` or ``"diversity"`` over users."""
        return float(getattr(self, name).mean())

    def interval(self, name: str, *, confidence: float = 0.95) -> Interval:
        """Confidence interval of the mean of ``"popularity"``, ``"novelty"`` or ``"diversity"`` over users."""
        return normal_interval(getattr(self, name), confidence=confidence)

    def test(self, other: ListStatistics, name: str) -> PairedTest:
        """Test whether another model's lists for the same users differ, as `paired_test` does for ranks.

        Args:
            other: of the other model.
            name: ``"popularity"``, ``"novelty"`` or ``"diversity"``.

        Returns:
            `PairedTest` of this model less the other, with the p-value as it comes: adjust several by `holm`.

        Raises:
            ValueError: if the name is another, or a statistic is missing, or users or lengths of lists differ.
        """
        check_choice("name", name, ("popularity", "novelty", "diversity"))
        if not torch.equal(self.users, other.users) or self.items.shape != other.items.shape:
            raise ValueError("users or lengths of lists differ: give lists of the same catalogue and k")
        mine, theirs = getattr(self, name), getattr(other, name)
        if mine is None or theirs is None:
            raise ValueError(
                "diversity was not computed: give list_statistics the same item_features for both"
            )
        return paired_values(f"{name}@{self.items.shape[1]}", mine - theirs)

    def _rows(self) -> list[list[str]]:
        rows = [["coverage", f"{self.coverage:.3f}", ""], ["Gini of exposure", f"{self.gini:.3f}", ""]]
        for name in self.names:
            interval = str(self.interval(name)) if len(self.users) > 1 else ""
            rows.append([name, f"{self.mean(name):.3f}", interval])
        return rows

    def __str__(self) -> str:
        line = "  ".join(" ".join(cell for cell in row if cell) for row in self._rows())
        return f"{line}  (without held-out items: {self.untested} users)" if self.untested else line

    def __repr__(self) -> str:
        return f"ListStatistics({len(self.users)} users, {self.items.shape[1]} items each, {self})"

    def _repr_html_(self) -> str:
        header = ["statistic", "value", "95% interval"]
        users = shown_users(len(self.users), self.untested)
        return html_table(header, self._rows(), f"{users}, {self.items.shape[1]} items each")


def list_statistics(
    model: SupportsScore,
    catalogue: Catalogue,
    train: Interactions,
    k: int = 10,
    *,
    item_features: Tensor | None = None,
) -> ListStatistics:
    """Compute how varied a model's lists are, apart from their accuracy.

    Coverage and Gini coefficient say how the lists share the catalogue. Popularity and novelty (Zhou et al., PNAS 2010)
    say how well known the listed items are. Diversity is as Smyth and McClave (2001) define it.

    Args:
        model: any object with ``score(users [U], candidates) -> [U, C]``.
        catalogue: whose lists: those that `evaluate` ranks, without the users' seen items.
        train: the training interactions, for popularity and novelty. An item without any counts as one with one.
        k: length of a list.
        item_features: features of the items, ``[I, D]``, for diversity: attributes as 0 and 1, or an embedding
            table. An item without features is similar to no other.

    Returns:
        `ListStatistics`. ``first.test(second, "novelty")`` compares two models user by user.

    Raises:
        ValueError: if the catalogue, ``train`` and ``item_features`` have other numbers of items, or ``k`` is no whole
            number between 1 and that number.

    Example::

        >>> from ncf import Interactions, ItemPop, leave_one_out, list_statistics, whole_catalogue
        >>> split = leave_one_out(Interactions.from_arrays([0, 0, 0, 1, 1, 1], [0, 1, 2, 2, 3, 4]))
        >>> lists = list_statistics(ItemPop(split.train), whole_catalogue(split), split.train, k=2)
        >>> lists.items
        tensor([[2, 3],
                [0, 1]])
    """
    scorer = inference_scorer(model)
    num_items, k = catalogue.num_items, whole("k", k)
    for name, length in (
        ("train", train.num_items),
        ("item_features", num_items if item_features is None else len(item_features)),
    ):
        if length != num_items:
            raise ValueError(f"{name} has {length} items, the catalogue {num_items}: give the same items")
    if k > num_items:
        raise ValueError(f"k = {k}: the catalogue has {num_items} items")
    check_known_ids(unwrap_model(model), catalogue)
    every = torch.arange(num_items, dtype=torch.int64, device="cpu")
    seen = catalogue.seen_offsets.cpu(), catalogue.seen_items.cpu()
    users = catalogue.users.cpu()
    _, items = scorer.top_k(users, k, every, seen)
    counts = train.item_counts().cpu().to(torch.float64)
    novelty = -torch.log2(counts.clamp(min=1) / counts.sum().clamp(min=1))
    return ListStatistics(
        users,
        items,
        num_items,
        _mean_over(items, counts),
        _mean_over(items, novelty),
        None if item_features is None else _diversity(items, item_features.detach().cpu()),
        catalogue.untested,
    )


def _mean_over(items: Tensor, values: Tensor) -> Tensor:
    """Mean of the listed items' values, ``[U]``; 0 for an empty list."""
    real = items >= 0
    return (values[items.clamp(min=0)] * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)


def _diversity(items: Tensor, features: Tensor) -> Tensor:
    """1 less the mean cosine over a list's pairs of items, ``[U]``; 0 for a single item."""
    means = []
    for block in items.split(max(1, _NUMBERS_AT_ONCE // max(1, items.shape[1] * features.shape[1]))):
        real = block >= 0  # [b, K]
        rows = features[block.clamp(min=0)].to(torch.float64)  # [b, K, D]
        norms = rows.norm(dim=2, keepdim=True)
        rows = torch.where(real[:, :, None] & (norms > 0), rows / norms, 0.0)
        # |Σ rows|² is the sum of the cosines of all ordered pairs, an item's pair with itself among them
        cosines = rows.sum(dim=1).square().sum(dim=1) - rows.square().sum(dim=(1, 2))
        lengths = real.sum(dim=1)
        pairs = (lengths * (lengths - 1)).to(torch.float64)
        means.append(torch.where(pairs > 0, 1 - cosines / pairs.clamp(min=1), 0.0))
    return torch.cat(means)
