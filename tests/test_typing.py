"""A user's script type-checks outside the checkout, after each install that the README documents."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = Path(__file__).parent / "typed_script.py"
INSTALLS = {"plain": ["."], "editable": ["--config-settings", "editable_mode=compat", "-e", "."]}


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "CC": "false"
    }
    return subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module", params=INSTALLS)
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with a copy of the checkout installed, and the test's own dependencies."""
    folder = tmp_path_factory.mktemp(request.param)
    checkout = folder / "checkout"
    shutil.copytree(ROOT / "ncf", checkout / "ncf", ignore=shutil.ignore_patterns("__pycache__", "_native*"))
    for name in ("setup.py", "pyproject.toml", "README.md", "MANIFEST.in", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    assert run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder).returncode == 0
    found = folder / "venv" / "bin" / "python"
    site = run(
        found, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder
    ).stdout.strip()
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", *INSTALLS[request.param]
    installed = run(found, *pip, cwd=checkout)
    assert installed.returncode == 0, installed.stderr
    return found


@pytest.mark.slow
def test_a_users_script_runs_and_type_checks(python: Path, tmp_path: Path) -> None:
    """Before, pyright and mypy did not find an editable ncf, and `mypy --strict` none of its names."""
    script = shutil.copy(SCRIPT, tmp_path)
    ran = run(python, script, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    mypy = run(
        sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "--cache-dir", tmp_path / "cache",
        script, cwd=tmp_path,
    )  # fmt: skip
    assert mypy.returncode == 0, mypy.stdout
    pyright = run(sys.executable, "-m", "pyright", "--pythonpath", python, script, cwd=tmp_path)
    if "error" in pyright.stderr and not pyright.stdout:
        pytest.skip(f"pyright could not be fetched: {pyright.stderr[-200:]}")
    assert "0 errors" in pyright.stdout, pyright.stdout
