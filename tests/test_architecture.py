"""The import rules of docs/design.md: lower rooms never import higher ones."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ncf"

# From the ground up. A module may import its own room and those before it.
ROOMS = [
    [
        "files",
        "torchrec_import",
        "initialization",
        "metrics",
        "statistics",
        "history",
        "losses",
        "columns",
        "filtering",
    ],
    ["vocabulary", "tables", "filtering"],
    ["interactions"],
    ["splitting"],
    ["complement"],
    ["sampling", "candidates"],
    ["datasets", "batches"],
    ["embeddings", "towers", "optimizers", "kernels"],
    ["scoring", "steps"],
    ["recommender"],
    ["models"],
    ["ranking", "correction"],
    ["evaluation"],
    ["baselines", "comparison", "recommendation", "artifact", "training", "sharding", "plots"],
]
FLOOR = {module: floor for floor, room in enumerate(ROOMS) for module in room}


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(file: Path) -> set[str]:
    """Modules of the package that a file imports when it is itself imported, types and calls left aside."""
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} if node.module != "ncf" else {f"ncf.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if file != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down(file: Path) -> None:
    own = room(file)
    assert own in FLOOR, f"{own} has no place in the house: add it to ROOMS and to docs/design.md"
    for name in imported(file):
        top, *rest = name.split(".")
        assert top not in ("examples", "benchmarks", "tests"), f"{own} imports {name}"
        if top == "ncf" and rest:
            assert FLOOR[rest[0]] <= FLOOR[own], f"{own} imports {rest[0]}, which is above it"


def test_only_plots_needs_matplotlib_and_only_kernels_need_triton() -> None:
    for file in FILES:
        for name in imported(file):
            assert not name.startswith("matplotlib"), f"{file.name} imports matplotlib before it is used"
            if name.startswith("triton"):
                assert room(file) == "kernels"
