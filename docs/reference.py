"""Writes the pages of the API reference into docs/api: one for each module, and one for each package."""

from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import ncf

FOLDER = Path(__file__).parent / "api"


def modules() -> dict[str, ModuleType]:
    """All modules and packages of ncf by name, but for those that are run or are no Python."""
    found = (info.name for info in pkgutil.walk_packages(ncf.__path__, "ncf."))
    return {name: import_module(name) for name in found if not name.rpartition(".")[2].startswith("_")}


def names_of(module: ModuleType) -> dict[str, Any]:
    """The public classes and functions that a module defines, by the shortest name that imports each."""
    names = {}
    for name, value in vars(module).items():
        defined = getattr(value, "__module__", None) == module.__name__
        if name[0] != "_" and defined and (inspect.isclass(value) or inspect.isfunction(value)):
            names[f"{_home(name, value)}.{name}"] = value
    return names


def _home(name: str, value: Any) -> str:
    """The outermost package that offers a class or function, else its module."""
    parts = value.__module__.split(".")
    for depth in range(1, len(parts)):
        package = import_module(".".join(parts[:depth]))
        if name in getattr(package, "__all__", ()) and getattr(package, name) is value:
            return package.__name__
    return ".".join(parts)


def pages() -> dict[str, str]:
    """The pages in Markdown, by the name of the module."""
    known = modules()
    return {name: _page(module, known) for name, module in known.items()}


def _page(module: ModuleType, known: dict[str, ModuleType]) -> str:
    name = module.__name__
    entries = [f".. automodule:: {name}", "   :no-members:", ""]
    for full, value in names_of(module).items():
        entries.append(f".. auto{'class' if inspect.isclass(value) else 'function'}:: {full}")
        if inspect.isclass(value) and value.__bases__ != (object,):
            entries.append("   :show-inheritance:")
    text = "\n".join((f"# {name}\n", "```{eval-rst}", *entries, "```", ""))
    inside = {other: known[other] for other in known if other.rpartition(".")[0] == name}
    if not inside:
        return text
    rows = [f"| [{other}]({other}.md) | {_summary(inside[other])} |" for other in inside]
    return "\n".join(
        (
            text,
            "| module | holds |",
            "|---|---|",
            *rows,
            "",
            "```{toctree}",
            ":hidden:",
            "",
            *inside,
            "```",
            "",
        )
    )


def _summary(module: ModuleType) -> str:
    return " ".join((module.__doc__ or "").split("\n\n")[0].split()).replace("``", "`").replace("|", r"\|")


def write(*_: Any) -> None:
    """Write each page that is not as it should be, and remove those of modules that are gone."""
    FOLDER.mkdir(exist_ok=True)
    texts = {FOLDER / f"{name}.md": text for name, text in pages().items()}
    for file in FOLDER.glob("*.md"):
        if file not in texts:
            file.unlink()
    for file, text in texts.items():
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    """Let Sphinx find the pages when it looks for files."""
    app.connect("config-inited", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
