"""The import rules of docs/design.md: lower rooms never import higher ones."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ncf"
DESIGN = PACKAGE.parent / "docs" / "design.md"

ROWS = re.findall(r"^\| (\d+) \| `(\w+)` \| \S", DESIGN.read_text(encoding="utf-8"), flags=re.MULTILINE)
FLOOR = {module: int(floor) for floor, module in ROWS}


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(file: Path, *, late: bool = False) -> set[str]:
    """Modules that a file imports when it is itself imported; with ``late`` also those in functions and branches."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree) if late else tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:  # relative
            names.add(".".join(["ncf", *file.relative_to(PACKAGE).parts[: -node.level], node.module or ""]))
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} if node.module != "ncf" else {f"ncf.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if file != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down(file: Path) -> None:
    own = room(file)
    assert own in FLOOR, f"{own} has no place in the house: add it to the table of rooms in docs/design.md"
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


# What a method offers by way of a higher room, which is imported when it is called, or for types alone.
UPWARD = {
    ("recommender", "artifact"),  # model.save
    ("recommender", "collective_scoring"),  # model.scorer
    ("comparison", "plots"),
}


def test_late_imports_go_down_too_but_for_those_listed() -> None:
    upward = set()
    for file in FILES:
        for name in imported(file, late=True):
            top, *rest = name.split(".")
            assert top not in ("examples", "benchmarks", "tests"), f"{file.name} imports {name}"
            if top == "ncf" and rest and FLOOR[rest[0]] > FLOOR[room(file)]:
                upward.add((room(file), rest[0]))
    assert upward <= UPWARD, "a lower room imports a higher one"


def test_every_room_exists_and_has_one_floor() -> None:
    assert len(ROWS) == len(FLOOR)
    assert set(FLOOR) == {room(file) for file in FILES}


def test_the_table_reads_from_the_ground_up() -> None:
    floors = list(FLOOR.values())
    assert floors == sorted(floors)


def test_the_rules_are_read_from_real_imports() -> None:
    """The parser sees what is there: models import embeddings, and a recommender loads its scorer late."""
    assert "ncf.embeddings" in imported(PACKAGE / "models.py")
    assert "ncf.artifact" not in imported(PACKAGE / "recommender.py")
    assert "ncf.artifact" in imported(PACKAGE / "recommender.py", late=True)
