"""What the comparison with other libraries does before and after they run."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from benchmarks.peers import __main__ as runner
from benchmarks.peers import environments, protocol, report
from benchmarks.peers.protocol import Clock, Data, Setting
from ncf import Candidates, Interactions, Split, evaluate, leave_one_out, sample_candidates
from ncf.datasets import write_ncf


def small_split() -> Split:
    generator = torch.Generator().manual_seed(0)
    users = torch.arange(30).repeat_interleave(6)
    items = torch.cat([torch.randperm(60, generator=generator)[:6] for _ in range(30)])
    return leave_one_out(Interactions(users, items, torch.arange(180), 30, 60), validation=False)


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    split = small_split()
    write_ncf(tmp_path / "tiny", split, sample_candidates(split, num_negatives=12))
    return tmp_path / "tiny"


# Reading


def test_data_read_are_those_written(prefix: Path) -> None:
    split = small_split()
    candidates = sample_candidates(split, num_negatives=12)
    data = protocol.read(prefix)
    assert data.users.tolist() == split.train.users.tolist()
    assert data.items.tolist() == split.train.items.tolist()
    assert data.test_users.tolist() == candidates.users.tolist()
    assert data.candidates.tolist() == candidates.items.tolist()
    assert (data.num_users, data.samples) == (30, 150 * 5)


def test_pairs_are_every_candidate_with_its_user(prefix: Path) -> None:
    data = protocol.read(prefix)
    pairs = list(zip(*data.pairs(), strict=True))
    assert pairs == [(u, i) for u, row in zip(data.test_users, data.candidates, strict=True) for i in row]


def test_a_file_with_fewer_negatives_on_a_line_is_refused(prefix: Path) -> None:
    file = Path(f"{prefix}.test.negative")
    file.write_text(file.read_text().rstrip("\n").rpartition("\t")[0] + "\n")
    with pytest.raises(ValueError, match=r"lines of \[13, 14\] numbers"):
        protocol.read(prefix)


# Ranks and metrics

SCORES = arrays(
    np.float64, st.tuples(st.integers(1, 8), st.integers(11, 20)), elements=st.integers(-3, 3).map(float)
)


@given(SCORES)
def test_ranks_are_those_of_a_count_by_hand(scores: np.ndarray) -> None:
    expected = [sum(negative >= row[0] for negative in row[1:]) for row in scores.tolist()]
    assert protocol.ranks(scores).tolist() == expected


@given(SCORES)
def test_ranks_and_metrics_are_those_of_evaluate(scores: np.ndarray) -> None:
    class Given:
        def score(self, users: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(scores)[users]

    users, width = torch.arange(len(scores)), scores.shape[1]
    items = torch.arange(1, width).expand(len(scores), -1)
    ranking = evaluate(Given(), Candidates(users, torch.zeros_like(users), items), k=10)
    placed = protocol.ranks(scores)
    assert placed.tolist() == ranking.ranks.tolist()
    assert math.isclose(protocol.hr(placed), ranking.hr)
    assert math.isclose(protocol.ndcg(placed), ranking.ndcg)


@pytest.mark.parametrize(("rank", "expected"), [(0, 1), (1, 0.63093), (2, 0.5), (9, 0.28906), (10, 0)])
def test_ndcg_has_the_logarithm_of_two(rank: int, expected: float) -> None:
    assert protocol.ndcg(np.array([rank])) == pytest.approx(expected, abs=1e-5)


def test_ties_won_by_the_model_are_absent() -> None:
    placed = protocol.ranks(np.ones((5, 101)))
    assert protocol.hr(placed) == 0


def test_a_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        protocol.ranks(np.array([[1.0, np.nan]]))


# The clock


def clock(seconds: list[float], ranks: list[int]) -> Clock:
    times, places = iter(seconds), iter(ranks)
    return Clock(lambda: np.array([next(places)]), wall=lambda: next(times))


def test_judging_does_not_count_as_training() -> None:
    timed = clock([0, 3, 100, 104, 200], [50, 0])  # judged from 3 to 100, and from 104 to 200
    timed.start()
    timed.epoch()
    timed.epoch()
    assert timed.seconds == [3, 4]
    assert timed.hr == [0, 1]
    assert timed.seconds_to(0.65) == 7


def test_a_target_that_is_never_reached_has_no_seconds() -> None:
    timed = clock([0, 3, 100], [50])
    timed.start()
    timed.epoch()
    assert timed.seconds_to(0.65) is None


def test_an_epoch_before_the_start_is_refused() -> None:
    with pytest.raises(RuntimeError, match="start"):
        clock([0], [0]).epoch()


# A worker


class Popularity:
    """Counts: a contestant that needs no library."""

    def __init__(self, data: Data, prefix: str) -> None:
        self.counts = np.bincount(data.items, minlength=data.num_items)
        self.fitted: list[Setting] = []

    def fit(self, setting: Setting, seed: int, clock: Clock) -> None:
        self.fitted.append(setting)
        clock.start()
        for _ in range(setting.epochs):
            clock.epoch()

    def score(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        return self.counts[items].astype(float)

    def top(self, users: np.ndarray, k: int) -> object:
        return self.counts.argsort()[-k:]


def test_a_worker_measures_every_setting(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = prefix.with_name("out.json")
    arguments = ["work", "--data", str(prefix), "--out", str(out), "--epochs", "4", "--seed", "7"]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(protocol.rate, "__kwdefaults__", None)
    monkeypatch.setattr(protocol.rate, "__defaults__", (1, 0.0))
    protocol.main(Popularity, version="1", model="counts")
    result = json.loads(out.read_text())
    data = protocol.read(prefix)
    placed = protocol.ranks(np.bincount(data.items, minlength=data.num_items)[data.candidates].astype(float))
    assert result["seed"] == 7
    assert result["small"]["hr"] == [protocol.hr(placed)] * 4
    assert {"large", "recipe", "ranking_users_per_s", "top_users_per_s"} <= result.keys()
    assert "documented_users_per_s" not in result
    assert 0 < result["memory_mb_imported"] <= result["memory_mb"]


def test_ranks_that_are_not_those_of_the_scores_are_refused(prefix: Path) -> None:
    class Liar(Popularity):
        def ranks(self) -> np.ndarray:
            return np.zeros(30, dtype=np.int64)

    data = protocol.read(prefix)
    with pytest.raises(RuntimeError, match="not those of its scores"):
        protocol.measure(Liar(data, ""), data, {"small": Setting(10, 0.1, 1)}, seed=0)


def test_a_worker_that_dies_gives_no_result_but_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('it broke')"]
    assert runner.run(command, tmp_path / "it", threads=1) is None
    assert "it broke" in (tmp_path / "it.log").read_text()


def test_a_result_left_from_before_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "it.json").write_text('{"version": "0"}')
    assert runner.run([sys.executable, "-c", ""], tmp_path / "it", threads=1) is None


def test_a_worker_has_the_threads_it_was_given(tmp_path: Path) -> None:
    script = (
        "import json, os, sys; "
        "json.dump({n: os.environ[n] for n in ('OMP_NUM_THREADS', 'TF_NUM_INTRAOP_THREADS')}, open(sys.argv[-1], 'w'))"
    )
    result = runner.run([sys.executable, "-c", script], tmp_path / "it", threads=2)
    assert result == {"OMP_NUM_THREADS": "2", "TF_NUM_INTRAOP_THREADS": "2"}


# The table


def result(samples: float, hr: list[float], reached: float | None, **more: float) -> report.Result:
    run = {"samples_per_s": samples, "hr": hr, "ndcg": [x / 2 for x in hr], "seconds_to_target": reached}
    return {"version": "1", "model": "M", "small": run, "large": run, "recipe": run} | more


def test_rounds_are_summed_up_by_medians_and_means() -> None:
    rounds = [result(1, [0, 0.6], 5), result(3, [0, 0.7], 9), result(100, [0, 0.8], None)]
    row = report.summarize(rounds)
    assert row["train_256"] == 3
    assert row["hr"] == pytest.approx(0.7)
    assert row["ndcg"] == pytest.approx(0.35)
    assert row["seconds_small"] == 7


def test_a_target_that_most_rounds_missed_was_not_reached() -> None:
    assert report.summarize([result(1, [1], 5), result(1, [1], None)])["seconds_small"] is None


def test_ratios_say_how_many_times_ours_is_ahead() -> None:
    ours = result(400, [0.7], 2, ranking_users_per_s=1000, memory_mb=100)
    peer = result(100, [0.6], 10, ranking_users_per_s=250, documented_users_per_s=50, memory_mb=150)
    summaries = {"ncf": report.summarize([ours]), "peer": report.summarize([peer])}
    table = report.ratios(summaries, {"ncf": "ncf", "peer": "Peer"}, ["ncf", "absent"])
    cells = [cell.strip() for cell in table.splitlines()[-1].strip("|").split("|")]
    speeds = ["4 ×", "4 ×", "4 ×", "20 ×", "–", "5 ×", "1.5 ×"]
    assert cells == ["ncf", "Peer", *speeds, ".700 / .600", ".350 / .300"]


def test_the_tables_are_rectangular_even_where_figures_lack() -> None:
    summaries = {"ncf": report.summarize([result(1, [1.0], 1)]), "peer": report.summarize([{"version": "1"}])}
    labels = {name: name for name in summaries}
    for table in (report.figures(summaries, labels), report.ratios(summaries, labels, ["ncf"])):
        assert len({line.count("|") for line in table.splitlines()}) == 1


# The environments


@pytest.mark.parametrize("peer", environments.PEERS)
def test_every_requirement_is_pinned(peer: str) -> None:
    *before, last = environments.requirements(peer)
    pins = [pin for call in [*before, last] for pin in call if pin != "--no-deps"]
    assert pins
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    if any(pin.startswith("torch==") for pin in pins):
        assert len(before[0]) == 1  # by itself, before anything that would ask for another build


def test_the_home_of_the_environments_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NCF_PEERS_HOME", str(tmp_path))
    assert environments.home() == tmp_path


def test_an_environment_that_cannot_be_made_is_said_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NCF_PEERS_HOME", str(tmp_path))
    (tmp_path / "cornac/bin").mkdir(parents=True)
    (tmp_path / "cornac/bin/python").symlink_to(sys.executable)  # a new one takes long
    monkeypatch.setattr(environments, "requirements", lambda _: [["--no-index", "no-such-package==1"]])
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no environment for cornac: see"):
            environments.python_for("cornac", tmp_path / "log")
    assert "no-such-package" in (tmp_path / "log").read_text()


def test_an_unknown_peer_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", "--peers", "spotlight"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 2
    assert "--peers spotlight: choose from librecommender" in done.stderr
