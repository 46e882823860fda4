"""From the workers' results to a table: medians over rounds, and how many times ours is ahead."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.peers.protocol import TARGET

Result = dict[str, Any]  # what a worker wrote
Summary = dict[str, float | None]

SPEEDS = ("train_256", "train_8192", "ranking", "documented", "top")
_NONE = "–"


def summarize(results: Sequence[Result]) -> Summary:
    """One contestant's rounds as one row: medians of speeds and memory, means of HR and NDCG."""

    def median(get: Callable[[Result], float | None]) -> float | None:
        values = [value for value in map(get, results) if value is not None]
        # A target that most rounds missed was not reached.
        return statistics.median(values) if 2 * len(values) > len(results) else None

    def of(part: str, name: str) -> Callable[[Result], Any]:
        return lambda result: result.get(part, {}).get(name)

    def last(name: str) -> float | None:
        values = [result["small"][name][-1] for result in results if "small" in result]
        return statistics.fmean(values) if values else None

    neural = any("large" in result for result in results)
    return {
        "train_256": median(of("small", "samples_per_s")) if neural else None,
        "train_8192": median(of("large", "samples_per_s")),
        "ranking": median(lambda result: result.get("ranking_users_per_s")),
        "documented": median(lambda r: r.get("documented_users_per_s", r.get("ranking_users_per_s"))),
        "top": median(lambda result: result.get("top_users_per_s")),
        "hr": last("hr"),
        "ndcg": last("ndcg"),
        "seconds_small": median(of("small", "seconds_to_target")),
        "seconds_recipe": median(of("recipe", "seconds_to_target")),
        "memory": median(lambda result: result.get("memory_mb")),
    }


def figures(summaries: dict[str, Summary], labels: dict[str, str]) -> str:
    """The Markdown table of what was measured, a row per contestant."""
    heading = (
        "", "train, samples/s, batch 256", "batch 8192", "1 + 100, users/s", "as documented", "top 10 of all, users/s",
        "HR@10", "NDCG@10", f"s to HR@10 {TARGET}, batch 256", "batch 2048", "peak MB",
    )  # fmt: skip
    rows = [
        (
            labels[name],
            *(_count(row[key]) for key in SPEEDS),
            *(_share(row[key]) for key in ("hr", "ndcg")),
            *(_seconds(row[key]) for key in ("seconds_small", "seconds_recipe")),
            _count(row["memory"]),
        )
        for name, row in summaries.items()
    ]
    return _markdown(heading, rows)


def ratios(summaries: dict[str, Summary], labels: dict[str, str], ours: Sequence[str]) -> str:
    """The Markdown table of how many times ours is ahead of each peer: more is better throughout.

    Seconds to the target are the best of either setting on both sides.
    """
    heading = (
        "", "peer", "train, batch 256", "batch 8192", "1 + 100", "as documented", "top 10 of all",
        f"time to HR@10 {TARGET}", "memory", "HR@10, ours / peer", "NDCG@10, ours / peer",
    )  # fmt: skip
    rows = []
    for mine in ours:
        for peer, theirs in summaries.items():
            if peer in ours or mine not in summaries:
                continue
            own = summaries[mine]
            speeds = [_times(own[key], theirs[key]) for key in SPEEDS]
            rows.append(
                (
                    labels[mine],
                    labels[peer],
                    *speeds,
                    _times(fastest(theirs), fastest(own)),
                    _times(theirs["memory"], own["memory"]),
                    *(f"{_share(own[key])} / {_share(theirs[key])}" for key in ("hr", "ndcg")),
                )
            )
    return _markdown(heading, rows)


def fastest(row: Summary) -> float | None:
    """Seconds to the target in whichever setting got there sooner."""
    reached = [row[key] for key in ("seconds_small", "seconds_recipe")]
    return min((value for value in reached if value is not None), default=None)


def _times(mine: float | None, theirs: float | None) -> str:
    return _NONE if mine is None or theirs is None else f"{mine / theirs:.3g} ×"


def _count(value: float | None) -> str:
    if value is None:
        return _NONE
    return f"{float(f'{value:.3g}'):,.0f}"


def _share(value: float | None) -> str:
    return _NONE if value is None else f"{value:.3f}".lstrip("0")


def _seconds(value: float | None) -> str:
    return _NONE if value is None else f"{value:.1f}"


def _markdown(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
