"""Comparison of several models on the same users and candidates, with intervals and paired tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from html import escape
from os import PathLike
from typing import Any

from torch import Tensor

from ncf.data.candidates import Candidates, Catalogue
from ncf.data.interactions import Interactions
from ncf.evaluation.beyond_accuracy import ListStatistics, list_statistics
from ncf.evaluation.evaluator import Ranking, evaluate
from ncf.evaluation.metrics import Metric, metric_label
from ncf.evaluation.ranking import shown_users
from ncf.evaluation.significance import PairedTest, holm, paired_test
from ncf.models.base import SupportsScore
from ncf.utils.html import html_table

_ALONE: tuple[Metric, ...] = ("hr", "ndcg", "mrr")
_SIDE_BY_SIDE: tuple[Metric, ...] = ("hr", "ndcg")  # as many as fit a terminal twice
_OF_SEVERAL: tuple[Metric, ...] = ("recall", "ndcg", "precision")


@dataclass(frozen=True, eq=False)
class Comparison:
    """Rankings of several models side by side, the best first.

    Args:
        rankings: by the model's name; all of the same users, candidates and ``k``.
        whole: rankings of the same models in the whole catalogue, if they were made.
        baseline: the model that the others are tested against; the best one by default.
        metric: what decides which is best, and what the test compares.
        lists: statistics of the same models' lists, if they were computed; see `list_statistics`.

    Raises:
        ValueError: if there is no ranking, the baseline is unknown, ``whole`` or ``lists`` has other models, or users
            or candidates differ.

    Example::

        >>> import torch
        >>> from ncf import Ranking
        >>> from ncf.evaluation.comparison import Comparison
        >>> users, sizes = torch.arange(40), torch.full((40,), 101)
        >>> good, fair = (Ranking(users, users // part, sizes) for part in (8, 2))
        >>> comparison = Comparison({"good": good, "fair": fair}, baseline="fair")
        >>> comparison.best
        'good'
        >>> print(comparison.tests["good"])
        NDCG@10 +0.363 [+0.322, +0.403], p = 0.0001
    """

    rankings: Mapping[str, Ranking]
    whole: Mapping[str, Ranking] | None = None
    baseline: str | None = None
    metric: Metric = "ndcg"
    lists: Mapping[str, ListStatistics] | None = None

    def __post_init__(self) -> None:
        if not self.rankings:
            raise ValueError("there is nothing to compare: give at least one model")
        if self.baseline is not None and self.baseline not in self.rankings:
            raise ValueError(f"baseline = {self.baseline!r} is none of {', '.join(self.rankings)}")
        for name, given in (("whole", self.whole), ("lists", self.lists)):
            if given is not None and given.keys() != self.rankings.keys():
                models, others = ", ".join(self.rankings), ", ".join(given)
                raise ValueError(f"{name} has {others}, but the models are {models}")
        _ = self.tests  # raises for rankings of different users or candidates

    @property
    def names(self) -> list[str]:
        """The models, the best first."""
        return sorted(self.rankings, key=lambda name: self.rankings[name].mean(self.metric), reverse=True)

    @property
    def best(self) -> str:
        """The model with the highest mean."""
        return self.names[0]

    @property
    def reference(self) -> str:
        """The model that the others are tested against."""
        return self.baseline if self.baseline is not None else self.best

    @cached_property
    def tests(self) -> dict[str, PairedTest]:
        """Each model but the reference against it; p-values as they come, not yet adjusted."""
        reference = self.rankings[self.reference]
        others = [name for name in self.names if name != self.reference]
        return {name: paired_test(self.rankings[name], reference, self.metric) for name in others}

    @property
    def p_values(self) -> dict[str, float]:
        """Of each model but the reference, adjusted for the number of tests by Holm's method."""
        adjusted = holm([test.p_value for test in self.tests.values()])
        return dict(zip(self.tests, adjusted, strict=True))

    def text(self) -> str:
        """The table in columns, for a terminal; a second one for ``lists``."""
        parts = [*_aligned(*self._table(best="{}*", other="{} ")), self._footnote("*")]
        if self.lists is not None:
            parts += ["", *_aligned(*self._list_table())]
        return "\n".join(parts)

    def markdown(self) -> str:
        """The table in Markdown; a second one for ``lists``."""

        def escaped(text: str) -> str:
            return text.replace("|", "\\|")

        tables = [self._table(best="**{}**", other="{}", escaped=escaped)]
        tables += [] if self.lists is None else [self._list_table(escaped)]
        return "\n\n".join(_markdown(header, rows) for header, rows in tables)

    def plot(self, path: str | PathLike[str]) -> None:
        """Draw the metrics with their intervals; see `ncf.evaluation.plots.comparison`."""
        from ncf.evaluation.plots import comparison

        comparison(
            self.rankings,
            path,
            whole=self.whole,
            reference=self.reference,
            p_values=self.p_values,
            metric=self.metric,
            lists=self.lists,
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON: every metric with its interval, and the p-values; the statistics of ``lists`` likewise."""
        p_values = self.p_values
        return {
            name: {
                "sampled": _as_dict(self.rankings[name]),
                "whole": _as_dict(self.whole[name]) if self.whole else None,
                "p_value": p_values.get(name),
                "lists": None if self.lists is None else _lists_as_dict(self.lists[name]),
            }
            for name in self.names
        }

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        means = (f"{name} {self.rankings[name].mean(self.metric):.3f}" for name in self.names)
        label = metric_label(self.metric, self.rankings[self.best].k)
        return f"Comparison({label}: {', '.join(means)})"

    def _repr_html_(self) -> str:
        header, rows = self._table(best="<b>{}</b>", other="{}", escaped=escape)
        table = html_table(header, rows, escape(self._footnote("bold:")).replace("\n", "<br/>"))
        return table if self.lists is None else table + html_table(*self._list_table(escape))

    def _table(
        self, best: str, other: str, escaped: Callable[[str], str] = str
    ) -> tuple[list[str], list[list[str]]]:
        """Cells; the means of a column are put into the forms ``best`` and ``other``, all text through ``escaped``."""
        names, tests, p_values = self.names, self.tests, self.p_values
        header, columns = ["model"], [[escaped(n) for n in names]]
        sides = [("", self.rankings)] + ([(", whole", self.whole)] if self.whole is not None else [])
        for side, rankings in sides:
            alone = _ALONE if rankings[names[0]].offsets is None else _OF_SEVERAL
            for metric in alone if len(sides) == 1 else _SIDE_BY_SIDE:
                header.append(metric_label(metric, rankings[names[0]].k) + side)
                means = {n: rankings[n].mean(metric) for n in names}
                form = {n: best if means[n] == max(means.values()) else other for n in names}
                columns.append(
                    [f"{form[n].format(f'{means[n]:.3f}')} {rankings[n].interval(metric)}" for n in names]
                )
        if tests:
            metric_name = next(iter(tests.values())).metric
            header += [f"{metric_name} less {escaped(self.reference)}'s", "p"]
            columns.append([f"{tests[n].difference:+.3f}" if n in tests else "" for n in names])
            columns.append([escaped(_p_value(p_values[n])) if n in tests else "" for n in names])
        return header, [list(row) for row in zip(*columns, strict=True)]

    def _list_table(self, escaped: Callable[[str], str] = str) -> tuple[list[str], list[list[str]]]:
        """Cells of the lists' statistics; those of users with intervals, and p-values against the reference."""
        assert self.lists is not None
        names, reference = self.names, self.lists[self.reference]
        others = [name for name in names if name != self.reference]
        header = ["lists", "coverage", "Gini"]
        columns = [
            [escaped(name) for name in names],
            [f"{self.lists[name].coverage:.3f}" for name in names],
            [f"{self.lists[name].gini:.3f}" for name in names],
        ]
        for shown in reference.names:
            header.append(shown)
            columns.append(
                [f"{self.lists[n].mean(shown):.3f} {self.lists[n].interval(shown)}" for n in names]
            )
            if others:
                adjusted = holm([self.lists[name].test(reference, shown).p_value for name in others])
                of_name = dict(zip(others, adjusted, strict=True))
                header.append("p")
                columns.append([escaped(_p_value(of_name[n])) if n in of_name else "" for n in names])
        return header, [list(row) for row in zip(*columns, strict=True)]

    def _footnote(self, mark: str) -> str:
        ranking = self.rankings[self.best]
        sizes = ranking.num_candidates
        among = (
            f"{int(sizes.max())}"
            if sizes.min() == sizes.max()
            else f"{int(sizes.min())} to {int(sizes.max())}"
        )
        users = shown_users(len(ranking), ranking.untested)
        note = f"{users}; {among} candidates each; {mark} best of its column; 95% intervals"
        if len(self.rankings) > 1:
            label = metric_label(self.metric, ranking.k)
            note += (
                f"\np: paired sign-flip test of {label} against {self.reference}, adjusted by Holm's method"
            )
        return note


def compare(
    models: Mapping[str, SupportsScore],
    candidates: Candidates | Catalogue,
    k: int = 10,
    *,
    catalogue: Catalogue | None = None,
    baseline: str | None = None,
    metric: Metric = "ndcg",
    block_users: int | None = None,
    train: Interactions | None = None,
    item_features: Tensor | None = None,
) -> Comparison:
    """Evaluate several models on the same candidates, and test their differences.

    The p-values come from `paired_test`, which compares the models user by user. Intervals that overlap do
    not say that two models are alike.

    Args:
        models: anything with ``score(users, candidates)``, by name.
        candidates: what to rank, the same for all.
        k: length of the list that HR and NDCG look at.
        catalogue: rank in the whole catalogue as well, and show both side by side. Sampled metrics can order
            models differently (Krichene & Rendle 2020).
        baseline: the model that the others are tested against; the best one by default.
        metric: what decides which is best, and what the test compares.
        block_users: users scored at once; see `evaluate`.
        train: the training interactions, to show the statistics of the models' lists as well; see `list_statistics`.
            The lists are those of the whole catalogue.
        item_features: features of the items, ``[I, D]``, for the diversity of the lists.

    Returns:
        `Comparison`: ``print`` it, or call ``markdown()``, ``plot(path)``, ``to_dict()``.

    Raises:
        TypeError: if ``models`` has no names.
        ValueError: see `evaluate` and `Comparison`; or if ``train`` is given without a catalogue.

    Example::

        >>> from ncf import EASE, Interactions, ItemPop, compare, leave_one_out, sample_candidates
        >>> users = [user for user in range(6) for _ in range(3)]
        >>> items = [0, 1, 2, 0, 2, 1, 1, 2, 0, 3, 4, 5, 3, 5, 4, 5, 4, 3]
        >>> split = leave_one_out(Interactions.from_arrays(users, items), validation=False)
        >>> models = {"popularity": ItemPop(split.train), "EASE": EASE(split.train, regularization=1.0)}
        >>> compare(models, sample_candidates(split, num_negatives=3), k=1, metric="mrr").names
        ['EASE', 'popularity']
    """
    if not isinstance(models, Mapping):
        raise TypeError(
            f"models must be a dict of models by name, got {type(models).__name__}: "
            'give each a name, {"GMF": first, "ItemPop": second}'
        )
    if baseline is not None and baseline not in models:
        raise ValueError(f"baseline = {baseline!r} is none of {', '.join(models)}")
    of_lists = candidates if catalogue is None else catalogue
    if train is not None and not isinstance(of_lists, Catalogue):
        raise ValueError(
            "train is given without a catalogue, whose lists are shown: give whole_catalogue(split)"
        )
    rankings = {n: evaluate(model, candidates, k, block_users=block_users) for n, model in models.items()}
    whole = None
    if catalogue is not None:
        whole = {n: evaluate(model, catalogue, k, block_users=block_users) for n, model in models.items()}
    lists = None
    if train is not None and isinstance(of_lists, Catalogue):
        lists = {
            n: list_statistics(m, of_lists, train, k, item_features=item_features) for n, m in models.items()
        }
    return Comparison(rankings, whole, baseline, metric, lists)


def _aligned(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        ).rstrip()
        for line in lines
    ]


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    ruler = "|:--" + "|--:" * (len(header) - 1) + "|"
    lines = ["| " + " | ".join(line) + " |" for line in [header, *rows]]
    return "\n".join([lines[0], ruler, *lines[1:]])


def _p_value(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def _as_dict(ranking: Ranking) -> dict[str, Any]:
    return {
        metric_label(metric, ranking.k): {"mean": ranking.mean(metric), "interval": list(interval)}
        for metric, interval in ranking.intervals.items()
    }


def _lists_as_dict(lists: ListStatistics) -> dict[str, Any]:
    of_users = {
        name: {"mean": lists.mean(name), "interval": list(lists.interval(name))} for name in lists.names
    }
    return {"coverage": lists.coverage, "gini": lists.gini, **of_users}
