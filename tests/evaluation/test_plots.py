from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ncf import Ranking
from ncf.evaluation import plots
from ncf.evaluation.comparison import Comparison
from ncf.training.run import History

pytest.importorskip("matplotlib", reason="matplotlib is an optional extra")


def ranking(scale: float, num_candidates: int = 101, seed: int = 0) -> Ranking:
    ranks = torch.rand(300, generator=torch.Generator().manual_seed(seed)).pow(scale) * num_candidates
    return Ranking(torch.arange(300), ranks.long(), torch.full((300,), num_candidates))


def history(ndcg: list[float | None], best_epoch: int, selection: str = "validation") -> History:
    epochs = list(range(1, len(ndcg) + 1))
    hr = [None if value is None else 1.7 * value for value in ndcg]
    return History(selection, epochs, [0.6 / epoch for epoch in epochs], hr, ndcg, best_epoch=best_epoch)


def text_of(path: Path) -> str:
    """Matplotlib writes each text of an SVG as a comment beside its glyphs."""
    return path.read_text(encoding="utf-8")


def draw_curves(path: Path) -> None:
    plots.learning_curves({"GMF": history([0.2, 0.3], 2), "NeuMF": history([0.25, 0.35], 2)}, path)


def draw_ranks(path: Path) -> None:
    plots.rank_histogram({"good": ranking(3), "fair": ranking(1)}, path)


def draw_comparison(path: Path) -> None:
    Comparison({"good": ranking(3), "fair": ranking(1)}).plot(path)


DRAW: list[Callable[[Path], None]] = [draw_curves, draw_ranks, draw_comparison]


@pytest.mark.parametrize("draw", DRAW)
def test_a_figure_is_written_and_no_other_file(draw: Callable[[Path], None], tmp_path: Path) -> None:
    from matplotlib.image import imread

    path = tmp_path / "new folder" / "picture.png"
    draw(path)
    pixels = imread(path)
    assert pixels.shape[1] > 900
    assert pixels[:, :, :3].std() > 0.02  # not an empty page
    assert pixels[0, :, :3].min() == 1  # with a margin: nothing is cut off
    assert [file.name for file in path.parent.iterdir()] == ["picture.png"]


@pytest.mark.parametrize("draw", DRAW)
def test_no_half_written_file_stays(draw: Callable[[Path], None], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Format 'bogus' is not supported"):
        draw(tmp_path / "picture.bogus")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("draw", DRAW)
def test_global_state_of_matplotlib_is_left_alone(draw: Callable[[Path], None], tmp_path: Path) -> None:
    import matplotlib as mpl
    from matplotlib._pylab_helpers import Gcf

    before = dict(mpl.rcParams)
    draw(tmp_path / "picture.png")
    assert dict(mpl.rcParams) == before
    assert not Gcf.figs  # no figure that pyplot would show or keep


@pytest.mark.parametrize("draw", DRAW)
def test_missing_matplotlib_says_what_to_install(
    draw: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'ncf\[plots\]'"):
        draw(tmp_path / "picture.png")


def rings(path: Path) -> int:
    """Kept epochs are ringed by a marker that is not filled."""
    return text_of(path).count("fill-opacity: 0; stroke: #0072b2; stroke-width: 1.4")


def test_learning_curves_label_what_they_show_and_compose_no_headline(tmp_path: Path) -> None:
    path = tmp_path / "curves.svg"
    runs = {
        "GMF": history([0.31, 0.32, 0.30], 2),
        "NeuMF": history([0.2, 0.391, 0.37], 2),
        "MLP": history([0.3], 1),
    }
    plots.learning_curves(runs, path, k=5, baselines={"ItemPop": ranking(1)})
    text = text_of(path)
    assert "highest" not in text
    for label in ("GMF", "MLP", "ItemPop", "training loss", "HR@5", "NDCG@5", "epoch"):
        assert f"<!-- {label} -->" in text
    plots.learning_curves(runs, path, title="Three models")
    assert "<!-- Three models -->" in text_of(path)


def test_learning_curves_of_one_history(tmp_path: Path) -> None:
    path = tmp_path / "curves.svg"
    plots.learning_curves(history([0.2, 0.3], 2), path)
    assert "legend" not in text_of(path)
    assert rings(path) > 0
    plots.learning_curves(history([0.2, 0.3], 2, "last"), path)  # nothing was selected
    assert rings(path) == 0
    with pytest.raises(TypeError, match=r"a History or a dict of them by name, got list: give \{"):
        plots.learning_curves([history([0.2], 1)], path)  # type: ignore[arg-type]


def test_learning_curves_of_many_long_names_fit_their_figure(tmp_path: Path) -> None:
    """Before, the legend ran off the figure's edge, and the eighth line looked like the first."""
    from matplotlib.image import imread

    runs = {f"a model with quite a long name, number {n}": history([0.1, 0.2 + n / 100], 2) for n in range(9)}
    plots.learning_curves(runs, tmp_path / "curves.png")
    pixels = imread(tmp_path / "curves.png")[:, :, :3]
    assert pixels[-150:, -6:].min() == 1  # the margin beside the legend is white: no name is cut off
    plots.learning_curves(runs, tmp_path / "curves.svg")
    assert "stroke-dasharray: 6.66" in text_of(tmp_path / "curves.svg")


def test_stacked_panels_are_narrow(tmp_path: Path) -> None:
    from matplotlib.image import imread

    plots.learning_curves({"GMF": history([0.2, 0.3], 2)}, tmp_path / "curves.png", stacked=True)
    height, width, _ = imread(tmp_path / "curves.png").shape
    assert height > width


def test_learning_curves_of_several_seeds_are_a_mean(tmp_path: Path) -> None:
    path = tmp_path / "curves.svg"
    seeds = [
        history([0.2, 0.300], 2, "paper"),
        history([0.2, 0.400], 2, "paper"),
        history([0.2, 0.3, 0.5], 3, "paper"),
    ]
    plots.learning_curves({"NeuMF": seeds}, path)
    assert text_of(path).count("FillBetweenPolyCollection") == 3


def test_learning_curves_of_epochs_that_were_not_evaluated(tmp_path: Path) -> None:
    path = tmp_path / "curves.svg"
    plots.learning_curves(
        {"one": history([None, 0.2, None], 2), "two": history([None, None], 0), "three": history([], 0)}, path
    )
    assert "<!-- one -->" in text_of(path)
    assert "<!-- three -->" not in text_of(path)
    for nothing in ({}, {"three": history([], 0)}, {"three": []}, history([], 0)):
        with pytest.raises(ValueError, match="no epochs to draw"):
            plots.learning_curves(nothing, path)


@pytest.mark.parametrize("num_candidates", [11, 101, 5000])
def test_rank_histogram_counts_every_user_and_colours_the_first_k(
    num_candidates: int, tmp_path: Path
) -> None:
    wide = num_candidates > 200
    edges = plots._bin_edges(10, num_candidates, wide)
    ranks = torch.arange(num_candidates)
    uniform = Ranking(ranks, ranks, torch.full((num_candidates,), num_candidates))
    counts = torch.histogram(ranks.double() + 1, edges).hist
    assert counts.sum() == num_candidates
    assert counts[edges[:-1] < 10].sum() == 10
    torch.testing.assert_close(counts / num_candidates, plots._chance(uniform, edges))
    path = tmp_path / "ranks.svg"
    plots.rank_histogram(uniform, path, title="One model")
    assert "<!-- One model -->" in text_of(path)
    assert f"<!-- HR@10 {uniform.hr:.3f} -->" in text_of(path)


def test_chance_of_users_with_fewer_candidates() -> None:
    sizes = torch.tensor([2, 4])
    found = plots._chance(
        Ranking(torch.arange(2), torch.zeros(2, dtype=torch.int64), sizes, k=1), torch.arange(5) + 0.5
    )
    assert found.tolist() == pytest.approx([0.375, 0.375, 0.125, 0.125])


def test_rank_histogram_of_several_models(tmp_path: Path) -> None:
    path = tmp_path / "ranks.svg"
    good, fair = ranking(3), ranking(1)
    plots.rank_histogram({"fair": fair, "good": good}, path)
    assert f"<!-- good   HR@10 {good.hr:.3f} -->" in text_of(path)
    with pytest.raises(ValueError, match="all with the same k"):
        plots.rank_histogram({"fair": fair, "good": good.at(5)}, path)
    with pytest.raises(ValueError, match="at least one ranking"):
        plots.rank_histogram({}, path)


def test_comparison_shows_values_and_which_models_do_not_differ(tmp_path: Path) -> None:
    path = tmp_path / "comparison.svg"
    good, same, fair = ranking(3), ranking(3, seed=1), ranking(1)
    rankings = {"fair": fair, "same": same, "good": good}
    whole = {name: ranking(scale, 2000) for name, scale in (("fair", 1), ("same", 3), ("good", 3))}
    result = Comparison(rankings, whole)
    result.plot(path)
    text = text_of(path)
    for ranks in (*rankings.values(), *whole.values()):
        assert f"<!-- {ranks.hr:.3f} -->" in text
        assert f"<!-- {ranks.ndcg:.3f} -->" in text
    assert "NDCG@10, whole catalogue" in text
    assert f"light blue: no difference from {result.best} found by a paired test of NDCG@10" in text
    Comparison({"good": good, "same": same}, baseline="same").plot(path)
    assert ("light blue: same, and no" in text_of(path)) == (good.ndcg > same.ndcg)
    plots.comparison(rankings, path, title="Plain rankings, without tests")
    assert "<!-- Plain rankings, without tests -->" in text_of(path)
    assert "light blue" not in text_of(path)
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.comparison({}, path)


def test_comparison_of_models_that_hit_nothing(tmp_path: Path) -> None:
    """All means and intervals are 0: an axis from 0 to 0 was a warning of Matplotlib."""
    users = torch.arange(30)
    nothing = Ranking(users, torch.full((30,), 90), torch.full((30,), 101))
    plots.comparison({"one": nothing}, tmp_path / "comparison.png")
