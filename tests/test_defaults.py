"""PyTorch's default dtype and device are the caller's business: nothing in ncf depends on them."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ncf
from ncf import (
    EASE,
    GMF,
    MatrixFactorization,
    NeuMF,
    Split,
    Trainer,
    evaluate,
    leave_one_out,
    recommend,
    sample_candidates,
    whole_catalogue,
)
from ncf.models import EmbeddingModel
from tests.conftest import random_interactions

SOURCES = sorted(Path(ncf.__file__).parent.rglob("*.py"))
FACTORIES = {
    *(
        "arange",
        "as_tensor",
        "asarray",
        "empty",
        "eye",
        "full",
        "linspace",
        "logspace",
        "normal",
        "ones",
        "rand",
    ),
    *("randint", "randn", "randperm", "scalar_tensor", "sparse_coo_tensor", "tensor", "zeros"),
}
LAYERS = {"BatchNorm1d", "Embedding", "LayerNorm", "Linear"}  # their parameters are made by factories


def unnamed(source: str) -> Iterator[str]:
    """The calls that make a tensor, or a layer, of whatever dtype or device is the default."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = node.args[0] if ast.unparse(node.func).endswith("skip_init") else node.func
        owner, _, name = ast.unparse(called).rpartition(".")
        makes = (owner == "torch" and name in FACTORIES) or (owner == "nn" and name in LAYERS)
        named = {keyword.arg for keyword in node.keywords}
        if makes and not {"dtype", "device"} <= named and None not in named:  # None: `**kind`
            yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_new_tensor_names_its_dtype_and_its_device(path: Path) -> None:
    assert not list(unnamed(path.read_text(encoding="utf-8")))


def test_a_tensor_of_the_default_dtype_is_found() -> None:
    assert len(list(unnamed("torch.zeros(3, device=d)\nnn.utils.skip_init(nn.Linear, 2, 3)\n"))) == 2
    assert not list(unnamed("torch.zeros(3, dtype=t, device=d)\nx.new_zeros(3)\ntorch.zeros_like(x)\n"))


MODELS: dict[str, Callable[[Split], Any]] = {
    "GMF": lambda split: GMF(40, 60, init_std=1.0),
    "NeuMF": lambda split: NeuMF(40, 60, init_std=1.0),
    "MatrixFactorization": lambda split: MatrixFactorization(40, 60, init_std=1.0),
    "EASE": lambda split: EASE(split.train),
    "EASE of neighbours": lambda split: EASE(split.train, neighbours=9),
}


def answers(build: Callable[[Split], Any]) -> list[Any]:
    """Everything a user asks for, with everything made anew."""
    split = leave_one_out(random_interactions(40, 60, 12))
    model = build(split)
    some, lists = split.test.users[:4], sample_candidates(split, num_negatives=20).items[:4]
    found: list[Any] = [model.score(some, lists)]
    if isinstance(model, EmbeddingModel):
        found += [model(some, lists).detach(), model.predict(some, lists)]
    tasks = (sample_candidates(split), whole_catalogue(split))
    found += [evaluate(model, task).ranks for task in tasks]
    found += [evaluate(model, tasks[0]).ndcg]
    offered = recommend(model, [0, 7, 3], k=5, exclude=split.train)
    found += [offered.items, offered.scores]
    if isinstance(model, EmbeddingModel):
        history = Trainer(model, epochs=2, batch_size=64).fit(split)
        found += [torch.tensor(history.loss, dtype=torch.float64, device="cpu"), history.hr]
        found += list(model.state_dict().values())
    return found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, torch.float16, "meta"], ids=str)
def test_answers_and_training_are_the_same_under_any_default(name: str, default: Any) -> None:
    expected = answers(MODELS[name])
    before = torch.get_default_dtype()
    try:
        if default == "meta":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(default)
        found = answers(MODELS[name])
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, torch.Tensor):
            assert (one.dtype, one.device) == (other.dtype, other.device)
            assert torch.equal(one, other)
        else:
            assert one == other
