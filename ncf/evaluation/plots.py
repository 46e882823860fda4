"""Plots: learning curves, histograms of ranks, models side by side.

They need matplotlib: ``pip install 'ncf[plots]'``. Its global state stays unchanged, so that plots are safe in a
server and next to a notebook's own figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ncf.evaluation.beyond_accuracy import ListStatistics
from ncf.evaluation.figures import FAINT, INK, new_figure, save_figure
from ncf.evaluation.intervals import Interval
from ncf.evaluation.metrics import Metric, metric_label
from ncf.evaluation.ranking import Ranking

# Okabe & Ito's colours, which colour-blind readers can tell apart; their yellow is too pale for a line.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", ":", "-.")  # of the first seven lines, of the next seven …
_BEST, _ALIKE, _WORSE = "#0072B2", "#7FB8D8", "#C4C4C4"


class TrainingHistory(Protocol):
    """Losses and metrics by epoch, as `ncf.History` has them."""

    epochs: list[int]
    loss: list[float]
    hr: list[float | None]
    ndcg: list[float | None]
    best_epoch: int
    selection: str

    def __len__(self) -> int: ...


def learning_curves(
    histories: TrainingHistory | Mapping[str, TrainingHistory | Sequence[TrainingHistory]],
    path: str | PathLike[str],
    *,
    k: int = 10,
    baselines: Mapping[str, Ranking] | None = None,
    title: str | None = None,
    stacked: bool = False,
) -> None:
    """Draw training loss, HR and NDCG epoch by epoch, a line per model; a selected epoch is ringed.

    Args:
        histories: what `Trainer.fit` returned, or several of them by the model's name. Several histories of a
            model, one per seed, become their mean and a band of one standard deviation to each side.
        path: the file to write; its suffix decides the format.
        k: the ``k`` of the epochs' HR and NDCG, for the labels.
        baselines: rankings of models without epochs on the same candidates, drawn as level lines.
        title: a headline above the panels; none by default.
        stacked: put the panels below each other, for narrow pages.

    Raises:
        ImportError: if matplotlib is not installed.
        TypeError: if ``histories`` is neither a history nor a mapping.
        ValueError: if no history has an epoch.

    Example::

        >>> import tempfile
        >>> from ncf import History
        >>> from ncf.evaluation.plots import learning_curves
        >>> run = History("last", [1, 2], loss=[0.5, 0.4], hr=[0.3, 0.4], ndcg=[0.1, 0.2], best_epoch=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     learning_curves(run, f"{folder}/one.png")
        ...     learning_curves({"GMF": run, "MLP": [run, run]}, f"{folder}/several.png")
    """
    if not isinstance(histories, Mapping):
        if not hasattr(histories, "best_epoch"):
            raise TypeError(
                f"histories must be a History or a dict of them by name, got {type(histories).__name__}: "
                'give {"GMF": history, …}'
            )
        histories = {"": histories}
    runs = {name: list(h) if isinstance(h, Sequence) else [h] for name, h in histories.items()}
    runs = {name: kept for name, group in runs.items() if (kept := [h for h in group if len(h)])}
    if not runs:
        raise ValueError("there are no epochs to draw: give the histories of trained models")
    shape = (
        {"rows": 3, "width": 5.2, "height": 9.6} if stacked else {"columns": 3, "width": 11, "height": 4.2}
    )
    figure, axes = new_figure(**shape)  # type: ignore[arg-type]
    panels: tuple[tuple[_Series, str], ...] = (
        ("loss", "training loss"),
        ("hr", metric_label("hr", k)),
        ("ndcg", metric_label("ndcg", k)),
    )
    for axis, (series, label) in zip(axes, panels, strict=True):
        for index, (name, group) in enumerate(runs.items()):
            again, colour = divmod(index, len(_COLOURS))
            look = {"color": _COLOURS[colour], "marker": _MARKERS[colour]}
            _curve(axis, group, series, name, look | {"linestyle": _DASHES[again % len(_DASHES)]})
        if series != "loss":
            for ranking_name, ranking in (baselines or {}).items():
                value = ranking.at(k).mean(series)
                axis.axhline(value, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
                place = axis.get_yaxis_transform()
                axis.text(1.01, value, ranking_name, transform=place, va="center", fontsize=9, color=FAINT)
        axis.set_title(label, loc="left", fontsize=11, color=INK)
        axis.set_xlabel("epoch", color=INK)
        axis.xaxis.get_major_locator().set_params(integer=True)
    _set_title(figure, title)
    handles, labels = axes[0].get_legend_handles_labels()
    if any(labels):
        longest = max(map(len, labels))
        fitting = max(1, int(figure.get_figwidth() * 11 / (longest + 6)))  # some eleven letters to the inch
        figure.legend(
            handles, labels, loc="outside lower left", ncols=min(fitting, len(labels)), frameon=False
        )
    save_figure(figure, path)


def rank_histogram(
    rankings: Ranking | Mapping[str, Ranking], path: str | PathLike[str], *, title: str | None = None
) -> None:
    """Draw the distribution of the held-out items' places, a row per model; the first ``k`` are in colour.

    A dashed line shows what chance would do. Beyond 200 candidates the places are put into bins, on a
    logarithmic axis.

    Args:
        rankings: one ranking, or several by the model's name.
        path: the file to write; its suffix decides the format.
        title: a headline; none by default.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there is no ranking, or ``k`` differs between them.

    Example::

        >>> import tempfile, torch
        >>> from ncf import Ranking
        >>> from ncf.evaluation.plots import rank_histogram
        >>> ranking = Ranking(torch.arange(4), torch.tensor([0, 2, 9, 50]), torch.full((4,), 101))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rank_histogram({"GMF": ranking}, f"{folder}/ranks.svg")
    """
    named = {"": rankings} if isinstance(rankings, Ranking) else dict(rankings)
    if len({ranking.k for ranking in named.values()}) != 1:
        raise ValueError("give at least one ranking, all with the same k: `ranking.at(k)` brings them to one")
    k = next(iter(named.values())).k
    most = max(int(ranking.num_candidates.max()) for ranking in named.values())
    wide = most > 200
    edges = _bin_edges(k, most, wide)  # [B + 1]
    figure, axes = new_figure(rows=len(named), width=8, height=1.2 + 1.7 * len(named), share=True)
    for axis, (name, ranking) in zip(axes, named.items(), strict=True):
        shares = torch.histogram(ranking.ranks.to(torch.float64) + 1, edges).hist / len(ranking.ranks)
        colours = [_BEST if start < k else _WORSE for start in edges[:-1].tolist()]
        axis.bar(edges[:-1].tolist(), shares.tolist(), edges.diff().tolist(), align="edge", color=colours,
                 edgecolor="white", linewidth=0.4)  # fmt: skip
        axis.stairs(_chance(ranking, edges).tolist(), edges.tolist(), baseline=None, color=INK, linewidth=1,
                    linestyle=(0, (4, 3)))  # fmt: skip
        label = metric_label("hr", k)
        text = f"{name}   {label} {ranking.hr:.3f}" if name else f"{label} {ranking.hr:.3f}"
        side, align = (0.02, "left") if wide else (0.98, "right")  # where the bars are low
        axis.text(side, 0.9, text, transform=axis.transAxes, ha=align, va="top", fontsize=11, color=INK)
        axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    if wide:
        axes[-1].set_xscale("log")
        axes[-1].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes[-1].set_xlim(0.5, most + 0.5)
    alone = all(ranking.offsets is None for ranking in named.values())
    figure.supylabel("share of users" if alone else "share of held-out items", fontsize=10, color=INK)
    axes[-1].set_xlabel(f"place of the held-out item among up to {most} (dashed: by chance)", color=INK)
    _set_title(figure, title)
    save_figure(figure, path)


def comparison(
    rankings: Mapping[str, Ranking],
    path: str | PathLike[str],
    *,
    whole: Mapping[str, Ranking] | None = None,
    reference: str | None = None,
    p_values: Mapping[str, float] | None = None,
    metric: Metric = "ndcg",
    lists: Mapping[str, ListStatistics] | None = None,
    title: str | None = None,
) -> None:
    """Draw HR and NDCG of every model with 95% intervals, best on top; `Comparison.plot` calls it.

    The best is in dark blue. The reference of the tests, and each model whose test found no difference from
    it, is in light blue.

    Args:
        rankings: one ranking per model, by its name.
        path: the file to write; its suffix decides the format.
        whole: rankings of the same models in the whole catalogue.
        reference: the model that the others were tested against; without one no model is light blue.
        p_values: of each model but the reference, adjusted for the number of tests.
        metric: what orders the models, and what the tests compared.
        lists: statistics of the same models' lists, each in a panel of its own.
        title: a headline; none by default.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there is no ranking.

    Example::

        >>> import tempfile, torch
        >>> from ncf import Ranking
        >>> from ncf.evaluation import plots
        >>> users, sizes = torch.arange(40), torch.full((40,), 101)
        >>> rankings = {name: Ranking(users, users // step, sizes) for name, step in (("good", 8), ("fair", 2))}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plots.comparison(rankings, f"{folder}/models.png")
    """
    if not rankings:
        raise ValueError("there is nothing to draw: give at least one ranking")
    # a horizontal bar chart grows from below
    names = sorted(rankings, key=lambda name: rankings[name].mean(metric))
    alike = {name for name, p in (p_values or {}).items() if p >= 0.05} | {reference}
    colours = [_BEST if name == names[-1] else _ALIKE if name in alike else _WORSE for name in names]
    sides = [("", rankings)] + ([] if whole is None else [(", whole catalogue", whole)])
    several = rankings[names[0]].offsets is not None
    metrics: tuple[Metric, ...] = ("recall" if several else "hr", "ndcg")
    panels: list[tuple[str, list[float], list[Interval] | None]] = [
        (
            metric_label(shown, of_side[names[0]].k) + side,
            [of_side[name].mean(shown) for name in names],
            [of_side[name].interval(shown) for name in names],
        )
        for side, of_side in sides
        for shown in metrics
    ]
    if lists is not None:
        panels.append(("coverage", [lists[name].coverage for name in names], None))
        panels.append(("Gini of exposure", [lists[name].gini for name in names], None))
        for statistic in lists[names[0]].names:
            means = [lists[name].mean(statistic) for name in names]
            panels.append((statistic, means, [lists[name].interval(statistic) for name in names]))
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = new_figure(
        rows=rows, columns=columns, width=1.8 + 3.1 * columns, height=(1.4 + 0.42 * len(names)) * rows
    )
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for place, (axis, (panel, means, intervals)) in enumerate(zip(axes, panels, strict=False)):
        axis.barh(names, means, color=colours, height=0.66)
        highs = means
        if intervals is not None:
            lows, highs = (list(ends) for ends in zip(*intervals, strict=True))
            axis.hlines(range(len(names)), lows, highs, color="white", linewidth=3.5)
            axis.hlines(range(len(names)), lows, highs, color=INK, linewidth=1.5)
        for row, mean in enumerate(means):
            axis.annotate(f"{mean:.3f}", (highs[row], row), (4, 0), textcoords="offset points", va="center")
        axis.set_title(panel, loc="left", fontsize=11, color=INK)
        axis.set_xlim(0, 1.22 * max(highs) or 1)  # all may be zero
        axis.xaxis.get_major_locator().set_params(nbins=4)
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
        if place % columns:
            axis.set_yticklabels([])
    _set_title(figure, title)
    note = f"{len(rankings[names[0]])} users, 95% intervals"
    if _ALIKE in colours:
        label = metric_label(metric, rankings[names[0]].k)
        itself = "" if reference == names[-1] else f"{reference}, and "
        note += f"; light blue: {itself}no difference from {reference} found by a paired test of {label}"
    figure.supxlabel(note, x=0.01, ha="left", fontsize=9, color=FAINT)
    save_figure(figure, path)


def search(
    settings: Sequence[Mapping[str, Any]],
    values: Sequence[float],
    path: str | PathLike[str],
    *,
    stopped: Sequence[bool],
    label: str,
    title: str | None = None,
) -> None:
    """Draw a search for settings: what each trial reached in turn, and by each setting that varies.

    Args:
        settings: of each trial, by name; one that a trial does not have is left out of the setting's panel.
        values: of each trial, the higher the better.
        path: the file to write; its suffix decides the format.
        stopped: the trials that were ended early, which are drawn pale.
        label: of the values.
        title: a headline; none by default.

    Raises:
        ImportError: if matplotlib is not installed.

    Example::

        >>> import tempfile
        >>> from ncf.evaluation.plots import search
        >>> tried = [{"decay": 0.1, "loss": "bce"}, {"decay": 0.2, "loss": "bpr"}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     search(tried, [0.3, 0.4], f"{folder}/search.png", stopped=[False, False], label="NDCG@10")
    """
    names = list(dict.fromkeys(name for trial in settings for name in trial))
    names = [name for name in names if len({str(trial[name]) for trial in settings if name in trial}) > 1]
    columns = min(4, 1 + len(names))
    rows = -(-(1 + len(names)) // columns)
    figure, axes = new_figure(rows=rows, columns=columns, width=2.6 * columns + 1, height=2.6 * rows)
    colours = [_WORSE if early else _BEST for early in stopped]
    best = [
        max((v for v, early in zip(values[: n + 1], stopped, strict=False) if not early), default=math.nan)
        for n in range(len(values))
    ]
    axes[0].step(range(1, len(values) + 1), best, where="post", color=FAINT, linewidth=1.2, zorder=2)
    axes[0].scatter(range(1, len(values) + 1), values, c=colours, s=18, zorder=3)
    axes[0].set_xlabel("trial", color=INK)
    axes[0].set_ylabel(label, color=INK)
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    for axis, name in zip(axes[1:], names, strict=False):
        there = [n for n, trial in enumerate(settings) if name in trial]
        found = [settings[n][name] for n in there]
        numbers = all(isinstance(value, int | float) for value in found)
        if not numbers:
            found = ["\n".join(map(str, v)) if isinstance(v, tuple | list) else str(v) for v in found]
        axis.scatter(found, [values[n] for n in there], c=[colours[n] for n in there], s=18, zorder=3)
        if numbers and min(found) > 0 and max(found) >= 10 * min(found):
            axis.set_xscale("log")
        axis.set_xlabel(name, color=INK)
    for axis in axes[1 + len(names) :]:
        axis.set_visible(False)
    _set_title(figure, title)
    save_figure(figure, path)


_Series = Literal["loss", "hr", "ndcg"]


def _curve(axis: Any, runs: list[TrainingHistory], series: _Series, name: str, look: dict[str, str]) -> None:
    """Draw the mean over runs, at the epochs that all of them were evaluated in."""
    found = []
    for run in runs:
        values = zip(run.epochs, getattr(run, series), strict=False)
        found.append({epoch: value for epoch, value in values if value is not None})
    epochs = sorted(set.intersection(*(set(values) for values in found)))
    if not epochs:
        return
    table = torch.tensor(
        [[run[epoch] for epoch in epochs] for run in found], dtype=torch.float64, device="cpu"
    )  # [runs, E]
    mean = table.mean(0)
    axis.plot(epochs, mean.tolist(), label=name, linewidth=1.8, markersize=4, zorder=3,
              markevery=max(1, len(epochs) // 8), **look)  # fmt: skip
    if len(runs) > 1:
        spread = table.std(0)
        low, high = (mean - spread).tolist(), (mean + spread).tolist()
        axis.fill_between(epochs, low, high, color=look["color"], alpha=0.18, linewidth=0, zorder=2)
    elif runs[0].selection != "last" and runs[0].best_epoch in found[0]:  # the last needs no ring
        kept = runs[0].best_epoch
        axis.plot([kept], [found[0][kept]], marker="o", markersize=11, markerfacecolor="none",
                  markeredgecolor=look["color"], markeredgewidth=1.4, zorder=4)  # fmt: skip


def _set_title(figure: Any, title: str | None) -> None:
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, color=INK)


def _bin_edges(k: int, most: int, wide: bool) -> Tensor:
    """Between places, from 0.5: one bin a place, or a few per decade, with an edge behind place ``k``."""
    if not wide:
        return torch.arange(most + 1, dtype=torch.float64, device="cpu") + 0.5
    steps = torch.logspace(0, math.log10(most + 1.0), 45, dtype=torch.float64, device="cpu").round()
    edges: Tensor = torch.unique(
        torch.cat([steps, torch.tensor([k + 1.0], dtype=torch.float64, device="cpu")])
    )
    return edges - 0.5


def _chance(ranking: Ranking, edges: Tensor) -> Tensor:
    """The share of held-out items in every bin if each place were as likely."""
    each = ranking.num_candidates.repeat_interleave(ranking.held_out_per_user)
    sizes, counts = torch.unique(each, return_counts=True)
    within = edges[None, :].clamp(max=sizes[:, None] + 0.5).diff(dim=1) / sizes[:, None]  # [S, B]
    shares: Tensor = (within * counts[:, None]).sum(0) / len(each)
    return shares
