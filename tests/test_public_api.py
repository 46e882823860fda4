from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    code = "import sys; from ncf import NeuMF; {}print('torchrec' in sys.modules)"
    assert run(code.format("")) == "False\n"
    assert run(code.format("NeuMF(3, 4); ")) == "True\n"


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


def test_answers_of_a_saved_model_need_neither_torchrec_nor_what_is_optional(tmp_path: Path) -> None:
    bought = ncf.Interactions.from_arrays(["ann", "bob", "bob", "cat"], ["tea", "tea", "milk", "rice"])
    model = ncf.GMF(3, 3, init_std=0.1)
    model.user_ids, model.item_ids = bought.user_ids, bought.item_ids
    titles = ["Milk", "Rice", "Tea"]
    ncf.Recommender(model, seen=bought, item_columns={"title": titles}).save(tmp_path)
    answers = (
        f"from ncf import Recommender\nfound = Recommender.load({str(tmp_path)!r})\n"
        "found.recommend('ann', items=['milk', 'rice'])\nfound.recommend(history=['tea', 'milk'])\n"
        "found.explain('bob', 'rice')\nassert found.titles(['milk', 'tea']) == ['Milk', 'Tea']"
    )
    brought = packages_of(answers, after="import torch")
    assert "ncf" in brought, brought
    assert not brought & HEAVY


@pytest.mark.parametrize(("users", "items"), [("abc", ["tea", "milk", "rice"]), ([7, 8, 9], [30, 10, 20])])
def test_opening_a_saved_model_and_making_a_list_need_no_arrow(
    tmp_path: Path, users: Any, items: list
) -> None:
    """It is 60 MB and 0.2 s, as much again as all else that PyTorch has not brought."""
    bought = ncf.Interactions.from_arrays(list(users), items)
    model = ncf.NeuMF(3, 3)
    model.user_ids, model.item_ids = bought.user_ids, bought.item_ids
    ncf.Recommender(model, seen=bought, item_columns={"title": ["Milk", "Rice", "Tea"]}).save(tmp_path)
    answers = (
        f"from ncf import Recommender\nfound = Recommender.load({str(tmp_path)!r})\n"
        f"assert {items[0]!r} not in found.recommend({users[0]!r}).items[0]\n"
        f"assert found.recommend({users[0] * 2!r}, unknown='popular').sources == ['popularity']\n"
        f"assert found.similar({items[0]!r}, k=2).items and found.history({users[2]!r}) == [{items[2]!r}]"
    )
    brought = packages_of(answers, after="import torch")
    assert "ncf" in brought, brought
    assert not brought & (HEAVY | {"pyarrow"})


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


IN_ONE_PROCESS = """
import sys, tempfile, warnings
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == {absent!r}:
            raise ImportError('libcuda.so.1: cannot open shared object file')
sys.meta_path.insert(0, Absent())
import torch, ncf
from ncf.distributed import shard
users, items = torch.arange(300) % 20, (torch.arange(300) * 7 + torch.arange(300) // 40) % 30
split = ncf.leave_one_out(ncf.Interactions.from_arrays(users, items, range(300)))
model = ncf.NeuMF(20, 30, factors=4, layers=(8, 4), seed=1)
history = ncf.Trainer(model, epochs=2, batch_size=64, k=3).fit(split)
with tempfile.TemporaryDirectory() as folder:
    model.save(folder)
    again = ncf.load(folder)
assert again.state_dict().keys() == model.state_dict().keys()
print(sorted(model.state_dict()), history.loss, ncf.recommend(again, [3], k=3).items)
try:
    shard(again, verbose=False)
except ImportError as error:
    print('one error:', error)
print('torchrec' in sys.modules and 'fbgemm_gpu' in sys.modules)
"""


@pytest.mark.parametrize("absent", ["fbgemm_gpu", "torchrec"])
def test_without_torchrec_a_model_trains_and_answers_alike_and_sharding_is_one_clear_error(
    absent: str,
) -> None:
    output = run(IN_ONE_PROCESS.format(absent=absent))
    assert output.count("one error: TorchRec could not be loaded: libcuda.so.1") == 1
    assert "Models train and rank in one process without it" in output
    assert output.count("pip install -r requirements-cpu.txt") == 1
    assert output.count("fbgemm-gpu==1.8.*") == 1
    assert "Traceback" not in output
    there = run(IN_ONE_PROCESS.format(absent="nothing"))
    assert "Traceback" not in there
    assert output.splitlines()[0] == there.splitlines()[0]  # names, losses and lists


def test_a_saved_model_answers_without_torchrec_and_what_is_optional(tmp_path: Path) -> None:
    model = ncf.NeuMF(20, 30)
    model.user_ids = ncf.Interactions.from_arrays(range(20), range(20)).user_ids
    model.save(tmp_path)
    code = f"import ncf; ncf.load({str(tmp_path)!r}).score(torch.arange(2), torch.tensor([[3, 4], [5, 6]]))"
    brought = packages_of(code, after="import torch")
    assert "ncf" in brought
    assert not brought & (HEAVY | {"sympy"})  # sympy would be a sign of PyTorch's compiler


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
