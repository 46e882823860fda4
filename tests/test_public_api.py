from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest
import torch

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


def packages_of(code: str, after: str = "pass") -> set[str]:
    """The packages, Python's own aside, that some code imports when other code has run before it."""
    return set(
        run(
            f"import sys\n{after}\nbefore = set(sys.modules)\n{code}\n"
            "names = {name.split('.')[0] for name in set(sys.modules) - before}\n"
            "print(*sorted(names - set(sys.stdlib_module_names)))"
        ).split()
    )


def test_importing_the_package_imports_nothing_else() -> None:
    """It costs what it costs to read one module, whatever importing PyTorch costs: nothing is timed here."""
    assert packages_of("import ncf") == {"ncf"}
    assert packages_of("import ncf", after="import torch") == {"ncf"}


HEAVY = {"torchrec", "fbgemm_gpu", "matplotlib", "triton", "pandas", "scipy", "implicit"}


def test_data_and_ranking_need_neither_torchrec_nor_what_is_optional() -> None:
    names = "Interactions, ItemPop, leave_one_out, sample_candidates, evaluate, compare, recommend"
    assert not packages_of(f"from ncf import {names}\nimport ncf.datasets", after="import torch") & HEAVY


def test_a_model_brings_nothing_optional_that_torchrec_has_not_brought() -> None:
    brought = packages_of(
        "from ncf import NeuMF, Trainer\nNeuMF(3, 5)", after="import ncf.utils.torchrec_import"
    )
    assert not brought & HEAVY


@pytest.mark.parametrize("name", ncf.__all__)
def test_every_public_name_is_there_and_described(name: str) -> None:
    assert getattr(ncf, name) is not None
    assert name in dir(ncf)
    if name[0] != "_":
        assert getattr(ncf, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'SVD'"):
        _ = ncf.SVD


@pytest.mark.parametrize("absent", ["fbgemm_gpu", "torchrec"])
def test_without_fbgemm_one_error_says_what_to_install(absent: str) -> None:
    output = run(
        "import sys, traceback\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] == {absent!r}:\n"
        "            raise ImportError('libcuda.so.1: cannot open shared object file')\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from ncf import Interactions, leave_one_out, sample_candidates\n"  # data needs neither
        "for _ in range(2):\n"  # the second time as the first
        "    try:\n"
        "        from ncf import NeuMF\n"
        "    except ImportError as error:\n"
        "        print('one error:', error)\n"
    )
    assert output.count("one error: TorchRec could not be loaded: libcuda.so.1") == 2
    assert output.count("pip install -r requirements-cpu.txt") == 2
    assert output.count("fbgemm-gpu==1.8.*") == 2
    assert "Traceback" not in output


def test_the_version_is_that_of_the_package() -> None:
    assert importlib.metadata.version("ncf") == ncf.__version__


def test_what_a_prompt_shows_of_a_public_object_is_one_line_that_names_it() -> None:
    """Before, some showed an address, and Comparison and History all their numbers."""
    users = torch.arange(20).repeat_interleave(5)
    split = ncf.leave_one_out(ncf.Interactions.from_arrays(users, (users * 7 + torch.arange(100)) % 30))
    candidates = ncf.sample_candidates(split, num_negatives=5)
    popular = ncf.ItemPop(split.train)
    trainer = ncf.Trainer(ncf.GMF(20, 30, factors=4), epochs=1, k=3)
    objects = [
        split, split.train, candidates, popular, trainer, trainer.fit(split), ncf.NegativeSampler(split.train),
        ncf.whole_catalogue(split), ncf.evaluate(popular, candidates, k=3), ncf.EASE(split.train),
        ncf.compare({"popularity": popular}, candidates, k=3), split.train.user_ids,
    ]  # fmt: skip
    for shown in map(repr, objects):
        assert " object at 0x" not in shown
        assert "\n" not in shown
        assert len(shown) < 160
