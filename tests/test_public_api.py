from __future__ import annotations

import subprocess
import sys

import pytest

import ncf


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def test_import_is_light() -> None:
    assert (
        run(
            "import sys, ncf; print([m for m in ('torchrec', 'matplotlib', 'pandas', 'pyarrow') if m in sys.modules])"
        )
        == "[]\n"
    )


def test_a_model_brings_torchrec_and_no_word_on_the_screen() -> None:
    assert run("import sys; from ncf import NeuMF; print('torchrec' in sys.modules)") == "True\n"


@pytest.mark.parametrize("name", ncf.__all__)
def test_every_public_name_is_there_and_described(name: str) -> None:
    assert getattr(ncf, name) is not None
    assert name in dir(ncf)
    if name[0] != "_":
        assert getattr(ncf, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'SVD'"):
        _ = ncf.SVD


def test_without_fbgemm_one_error_says_what_to_install() -> None:
    output = run(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'fbgemm_gpu':\n"
        "            raise ImportError('libcuda.so.1: cannot open shared object file')\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from ncf import NeuMF\n"
    )
    assert "pip install -r requirements-cpu.txt" in output
    assert "libcuda.so.1" in output
