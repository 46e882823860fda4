"""The documentation says what is true: its code runs, its links lead somewhere, its examples are there."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
import traceback
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from torch import Tensor

import ncf
from ncf.datasets import movielens

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))

import figures  # noqa: E402
import reference  # noqa: E402
from executed import executed  # noqa: E402
from linked import reference_names  # noqa: E402

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# What `reference` writes is of the docstrings.
PAGES = [page for page in PAGES if not {"_build", "api"} & set(page.parts)]


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if "```python\n" in page.read_text(encoding="utf-8")],
    ids=lambda page: page.name,
)
def test_the_code_of_a_page_runs(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    shown = executed(text, page.name)
    if "could not be had" in shown:
        pytest.skip("MovieLens-100K cannot be had here")
    assert len(shown) >= len(text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), target


# The names of everyday work are those that a package offers, and these. The rest are parts.
ALSO_PUBLIC = """
    datasets.movielens.load datasets.movielens.MovieLens evaluation.beyond_accuracy.ListStatistics
    evaluation.intervals.Interval evaluation.intervals.wilson_interval evaluation.intervals.normal_interval
    evaluation.metrics.metric_values evaluation.plots.learning_curves
    evaluation.plots.rank_histogram evaluation.plots.comparison evaluation.sampled_metrics.correct_for_sampling
    evaluation.sampled_metrics.CorrectedMetric evaluation.sampled_metrics.sampled_rank_distribution
    evaluation.significance.paired_test evaluation.significance.PairedTest evaluation.significance.holm
    evaluation.significance.sign_flip_p_value inference.fold_in.FoldIn inference.fold_in.FoldedRows
    kernels.score_candidates kernels.score_reference
    models.growing.Grown models.saving.save training.losses.binary_cross_entropy training.losses.bpr
    training.losses.SampledSoftmax training.losses.CosineContrastive training.recipes.Recipe
    training.recipes.recipe_for
"""


def public_names() -> list[str]:
    """The names of everyday work, each by the shortest name that imports it."""
    offered = {
        getattr(module, name)
        for module in (ncf, *reference.modules().values())
        if hasattr(module, "__path__") and module.__name__ != "ncf.kernels"
        for name in getattr(module, "__all__", ())
        if name[0] != "_"
    }
    there = [name for module in reference.modules().values() for name in reference.names_of(module)]
    also = [f"ncf.{name}" for name in ALSO_PUBLIC.split()]
    assert set(also) <= set(there)
    return sorted({name for name in there if found(name) in offered} | set(also))


def found(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def documented_arguments(docstring: str) -> dict[str, str]:
    """The entries of ``Args:``, and of what a base class documents for all its subclasses, by name."""
    title = r"^(?:Args|Other Parameters):\n((?: {4}.*\n|\n)+)"
    sections = re.findall(title, docstring + "\n", flags=re.MULTILINE)
    entries = [part for text in sections for part in re.split(r"^ {4}(\w+): ", text, flags=re.MULTILINE)[1:]]
    return dict(zip(entries[::2], entries[1::2], strict=True))


def shortcomings(thing: Any, name: str) -> list[str]:
    """What a docstring owes its reader: arguments, shapes, results, errors, and a run of it."""
    docstring = inspect.getdoc(thing) or ""
    owed = [] if ">>>" in docstring else ["an example"]
    bases = [inspect.getdoc(base) or "" for base in thing.__mro__[1:]] if inspect.isclass(thing) else []
    entries = documented_arguments("\n".join([*bases, docstring]))
    signature = inspect.signature(thing)
    for parameter in signature.parameters.values():
        if parameter.name not in entries:
            owed.append(f"its argument {parameter.name}")
        elif str(parameter.annotation).startswith("Tensor") and "[" not in entries[parameter.name]:
            owed.append(f"the shape of {parameter.name}")
    if not inspect.isclass(thing) and signature.return_annotation != "None" and "Returns:" not in docstring:
        owed.append("what it returns")
    if not inspect.isclass(thing):
        return owed + undocumented_errors(thing)
    for attribute, method in vars(thing).items():
        if attribute in ("__init__", "__post_init__"):
            owed += undocumented_errors(method, docstring)
        elif isinstance(method, FunctionType | classmethod | staticmethod) and attribute[0] != "_":
            method = getattr(thing, attribute)
            owed += [f"{attribute}: {error}" for error in undocumented_errors(method)]
            tensors = [
                p for p in inspect.signature(method).parameters.values() if str(p.annotation) == "Tensor"
            ]
            if tensors and "[" not in inspect.getdoc(method):
                owed.append(f"{attribute}: the shape of {tensors[0].name}")
    return owed


def undocumented_errors(function: Any, docstring: str = "") -> list[str]:
    raised = errors_raised_by(function) - {"NotImplementedError"}
    docstring = docstring or inspect.getdoc(function) or ""
    return [f"when it raises {error}" for error in sorted(raised) if error not in docstring]


def errors_raised_by(function: Any) -> set[str]:
    """Exceptions that the function's own lines raise, not those of what it calls."""
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):  # made by a decorator
        return set()
    raises = [node.exc for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Raise)]
    return {call.func.id for call in raises if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)}


@pytest.mark.parametrize("name", public_names())
def test_every_public_name_says_what_a_caller_needs(name: str) -> None:
    assert shortcomings(found(name), name) == [], f"the docstring of {name} owes these"


# Methods that others published: the docstring names the source by its year.
PUBLISHED = """
    GMF MLP NeuMF MatrixFactorization ItemKNN EASE ALS NegativeSampler Trainer leave_one_out sample_candidates
    whole_catalogue training.losses.binary_cross_entropy training.losses.bpr
    evaluation.significance.paired_test evaluation.significance.holm
    evaluation.significance.sign_flip_p_value evaluation.significance.wilson_interval
    evaluation.sampled_metrics.correct_for_sampling datasets.movielens
"""


@pytest.mark.parametrize("name", PUBLISHED.split())
def test_a_published_method_names_its_source(name: str) -> None:
    assert re.search(r"\b(19|20)\d\d\b", found(f"ncf.{name}").__doc__ or ""), f"ncf.{name} names no source"


def test_the_reference_has_a_page_for_each_module_with_each_of_its_names() -> None:
    pages = reference.pages()
    sources = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for file in (ROOT / "ncf").rglob("*.py")
    }
    assert set(pages) == {name for name in sources if not name.endswith("__main__")} - {"ncf"}
    shown = re.findall(r"^\.\. auto(?:class|function):: (\S+)$", "\n".join(pages.values()), flags=re.M)
    assert len(set(shown)) == len(shown)
    assert {found(name) for name in public_names()} <= {found(name) for name in shown}
    assert "ncf.datasets.movielens.load" in shown  # another one than ncf.load
    overview = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    reached = re.findall(r"^(?:api/)?(ncf\.[\w.]+)$", "\n".join((overview, *pages.values())), flags=re.M)
    assert sorted(reached) == sorted(pages)  # each in the menu, once


def test_what_a_docstring_owes_is_found() -> None:
    def poor(rows: Tensor, k: int) -> int:
        """Do it.

        Args:
            rows: the rows.
        """
        if k < 0:
            raise ValueError(k)
        return k

    assert shortcomings(poor, "poor") == [
        "an example", "the shape of rows", "its argument k", "what it returns", "when it raises ValueError",
    ]  # fmt: skip


def test_a_page_shows_what_its_blocks_print() -> None:
    page = "A page.\n\n```python\nx = 2\nprint(x)\nx + 1\n```\n\nText.\n\n```python\ny = x\n```\n"
    expected = page.replace("x + 1\n```", "x + 1\n```\n\n```{code-block} text\n:class: output\n\n2\n3\n```")
    assert executed(page, "page.md") == expected


def test_a_page_shows_the_table_of_a_value_that_has_one() -> None:
    page = "```python\nfrom ncf import Interactions\nInteractions.from_arrays([1, 1], [1, 2])\n```\n"
    shown = executed(page, "page.md")
    assert "```{raw} html" in shown
    assert "<td" in shown


def test_a_name_in_prose_leads_to_the_reference() -> None:
    class Documented:
        def __init__(self, objtype: str) -> None:
            self.objtype = objtype

    names = reference_names(
        {
            "ncf.datasets.movielens.load": Documented("function"),
            "ncf.load": Documented("function"),
            "ncf.Trainer": Documented("class"),
            "ncf.Trainer.fit": Documented("method"),
            "ncf.data": Documented("module"),
        }
    )
    assert names["load"] == "ncf.load"
    assert names["movielens.load"] == "ncf.datasets.movielens.load"
    assert names["Trainer.fit"] == "ncf.Trainer.fit"
    assert "fit" not in names
    assert "data" not in names


def test_code_on_pages_fits_a_page() -> None:
    for page in PAGES:
        for block in re.findall(
            r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M
        ):
            assert all(len(line) <= 84 for line in block.splitlines()), (page.name, block)


def test_an_error_in_a_block_has_the_line_of_its_page() -> None:
    with pytest.raises(ZeroDivisionError) as failure:
        executed("Text.\n\n```python\nx = 1\nx / 0\n```\n", "page.md")
    last = traceback.extract_tb(failure.value.__traceback__)[-1]
    assert (last.filename, last.lineno) == ("page.md", 5)


def test_a_page_without_its_data_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str) -> None:
        raise OSError("no network")

    monkeypatch.setattr(movielens, "load", unreachable)
    page = '```python\nfrom ncf.datasets import movielens\nmovielens.load("100k")\n```\n'
    shown = executed(page, "page.md")
    assert shown.startswith(page)
    assert "could not be had" in shown
    assert "no network" in shown


def test_the_figures_are_those_of_the_script(tmp_path: Path) -> None:
    for name, draw in figures.FIGURES.items():
        draw().save(tmp_path / f"{name}.svg")
        committed = (ROOT / "docs" / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        drawn = (tmp_path / f"{name}.svg").read_text(encoding="utf-8")
        # Every piece of text is in the file as a comment; outlines may differ from one matplotlib to the next.
        assert re.findall(r"<!-- .* -->", drawn) == re.findall(r"<!-- .* -->", committed), (
            "run `make figures`"
        )


def test_the_figure_of_factors_has_the_numbers_of_its_table_wide_and_narrow() -> None:
    drawn = []
    for narrow in (False, True):
        axes = figures.factors(narrow).figure.axes
        drawn.append([line.get_xydata().tolist() for axis in axes for line in axis.get_lines()])
        assert len({axis.get_position().x0 for axis in axes}) == (1 if narrow else 2)
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 2 * (4 + 4 + 1)  # a line for each model, the paper's, and popularity's
    of_hr = [y for line in drawn[0][:8:2] for _, y in line]
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    shown = re.findall(r"^[\w -]+, \d+ factors +(\S+)", text.split("--part factors")[1], flags=re.M)
    assert sorted(of_hr) == sorted(map(float, shown))
    assert len(of_hr) == 16


def test_every_figure_has_a_script() -> None:
    widths = "", "_narrow"
    curves = {f"curves_{data}{width}.svg" for data in ("ml1m", "gowalla", "beauty") for width in widths}
    made = {f"{name}.svg" for name in figures.FIGURES} | {f"learning_curves{width}.png" for width in widths}
    made |= curves  # by `benchmarks.quality --curves`
    assert {file.name for file in (ROOT / "docs" / "figures").iterdir()} == made


def test_every_example_is_a_page_with_what_it_prints() -> None:
    scripts = sorted((ROOT / "examples").glob("*.py"))
    scripts.remove(
        ROOT / "examples" / "serve.py"
    )  # prints nothing until it is stopped; docs/serve.md is its page
    for example in [script for script in scripts if "__main__" in script.read_text(encoding="utf-8")]:
        page = (ROOT / "docs" / "examples" / f"{example.stem}.md").read_text(encoding="utf-8")
        assert f"../../examples/{example.name}" in page
        assert f"output/{example.stem}.txt" in page


def test_the_example_of_ones_own_data_prints_what_its_page_shows() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "own_data.py"], capture_output=True, text=True, check=True
    )
    shown = (ROOT / "docs" / "examples" / "output" / "own_data.txt").read_text(encoding="utf-8")
    # Digits differ between machines, and between trainings that are equally right.
    shape, expected = (re.sub(r"[\d.]+", "0", text.split("customer-000")[0]) for text in (done.stdout, shown))
    assert shape == expected
    *_, popularity, neumf = re.findall(r"HR@5 ([\d.]+)", done.stdout)
    assert float(neumf) > float(popularity)


README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_fits_two_screens() -> None:
    assert len(README.splitlines()) <= 100
    assert all(len(line) <= 125 for line in README.splitlines())


def test_the_figures_of_the_readme_are_those_of_the_results() -> None:
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^```text\n(model .*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    for row in table.splitlines()[2:]:
        name, *values = row.split()
        (of_results,) = re.findall(rf"^{name} .*samples|^{name}  .*$", results, flags=re.MULTILINE)[:1]
        cells = of_results.split()
        assert values == [cells[1], cells[4], cells[-1]], name


def test_the_commands_of_the_pages_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for target in re.findall(r"(?:^|`)make ([\w -]+?)(?: +#.*)?(?:`|$)", text, flags=re.MULTILINE):
        for word in target.split():
            assert re.search(rf"^{word}:", makefile, flags=re.MULTILINE), f"make {word}"
    for script in re.findall(r"\b((?:examples|docs|benchmarks)/[\w/]+\.py)\b", text):
        assert (ROOT / script).is_file(), script


# The glossary of CONTRIBUTING.md: the words on the left have one of the field on the right.
GLOSSARY = {
    r"\bjudg": "evaluate",
    r"\btouch(ed|es)\b": "interacted with, updated",
    r"\b(validation|test|training) part\b": "set",
    r"\barticle\b": "paper",
    r"\brefus": "raise",
    r"\b(goes|gone) on\b": "resume, continue",
    r"\b(whoever|nobody)\b": "name the thing",
    r"\b(asks|asked) for\b": "need, give",
    r"\bis told\b": "describe",
    r"\bwritten beside\b": "temporary file",
    r"\bon demand\b": "optional",
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_have_the_words_of_the_field(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"`[^`]*`", "x", prose)
    for word, instead in GLOSSARY.items():
        found = re.search(f"(?i).{{0,40}}{word}.{{0,20}}", prose)
        assert found is None, f"{found[0]!r}: {instead}"


def first_screen(page: Path) -> list[str]:
    """The sentences of the prose in the first forty lines; no tables, code or formulas."""
    text = "\n".join(page.read_text(encoding="utf-8").splitlines()[:40])
    text = re.sub(r"^(```|:::).*?(^\1`*$|\Z)", "\n\n", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^(\||#|!\[|\[.*\]: ).*$", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"\$\$?.*?\$\$?", "x", text, flags=re.DOTALL)
    text = re.sub(r"`[^`]*`", "x", text)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    blocks = re.split(r"\n\s*\n|\n(?=[-*:\d])", text)
    return [s for block in blocks for s in re.split(r"(?<=[.:;?!])\s+", " ".join(block.split())) if s]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sentences_of_the_first_screen_are_short(page: Path) -> None:
    for sentence in first_screen(page):
        words = re.findall(r"[\w’'@.%-]*\w[\w’'@.%-]*", sentence)
        assert len(words) <= 25, f"{len(words)} words: {sentence}"


def test_no_docstring_begins_with_a_question_word() -> None:
    wrong = []
    for file in sorted((ROOT / "ncf").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                docstring = ast.get_docstring(node) or ""
                if re.match(r"(What|Whether|Where|Who|Whose|Whatever|Whoever|How)\b", docstring):
                    wrong.append(f"{file.relative_to(ROOT)}: {docstring.splitlines()[0]}")
    assert not wrong, "\n".join(wrong)


def test_the_table_of_packages_names_every_module() -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    for package in sorted(path.parent for path in (ROOT / "ncf").glob("*/__init__.py")):
        row = next(line for line in text.splitlines() if line.startswith(f"| `ncf/{package.name}/` |"))
        modules = {path.stem for path in package.glob("*.py")} - {"__init__", "__main__"}
        assert modules == {name for name in re.findall(r"`(\w+)`", row) if (package / f"{name}.py").exists()}
        assert len(modules) <= 10
