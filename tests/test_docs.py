"""The documentation says what is true: its code runs, its links lead somewhere, its examples are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ncf
from ncf.datasets import movielens

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[str]:
    return re.findall(
        r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = blocks(page)
    if any("movielens" in block for block in code):
        try:
            movielens.load("100k")
        except OSError as error:
            pytest.skip(f"MovieLens-100K cannot be had here: {error}")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for number, block in enumerate(code):
        exec(compile(block, f"{page.name}, block {number + 1}", "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("name", [name for name in ncf.__all__ if name[0] != "_" and name != "datasets"])
def test_every_public_name_has_an_example(name: str) -> None:
    assert ">>>" in (getattr(ncf, name).__doc__ or ""), f"{name} has no example"
