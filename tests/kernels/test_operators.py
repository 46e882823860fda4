"""The operators of a training step: their registration, and the graphs that PyTorch traces through them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck
from torch.utils._pytree import tree_map

import ncf
from ncf.training.batches import Batch
from ncf.training.fused_step import FusedStep, can_be_fused
from ncf.training.losses import LOSSES
from ncf.training.optimizers import make_optimizer
from ncf.training.steps import EagerStep

needs_triton = pytest.mark.skipif(not find_spec("triton"), reason="needs triton")
MODELS = ["GMF", "MLP", "NeuMF", "MatrixFactorization"]
# Operators whose result, or its shape, the CPU has to wait for.
WAITING = {
    "_local_scalar_dense",
    "item",
    "nonzero",
    "unique",
    "_unique2",
    "masked_select",
    "equal",
    "is_nonzero",
}


def _check_operators(device: str, several: int, parts: tuple[bool, bool]) -> list[str]:
    """What `torch.library.opcheck` says of each operator."""
    from ncf.kernels.triton_operators import DENSE, lookup, lookup_backward, sort_ids, update_rows

    generator = torch.Generator().manual_seed(0)

    def draw(present: bool, *shape: int) -> Tensor | None:
        return torch.randn(shape, generator=generator).to(device).requires_grad_() if present else None

    product, layer = parts
    shape = (20, several) if several else (20,)
    users, items = torch.randint(7, (20,)).to(device), torch.randint(9, shape).to(device)
    tables = draw(product, 7, 6), draw(product, 9, 6), draw(layer, 7, 5), draw(layer, 9, 5)
    tensors = *tables, draw(layer, 4, 10), draw(layer, 4)
    columns = (5, 1) if product else (0, 0)
    arguments = (users, items, *tensors, *columns, torch.float32, DENSE)
    outputs = lookup(*arguments)
    gradients = [torch.ones_like(each).detach() for each in outputs]
    detached = [value if value is None else value.detach() for value in tensors]
    backward = (*gradients, outputs[1].detach(), users, items, *detached, *columns, torch.float32)
    table = torch.randn(9, 6).to(device)
    ids = sort_ids((items.flatten(), 9))[0]
    update = table, table.clone(), table.abs(), *ids, torch.randn(items.numel(), 6).to(device)
    settings = torch.ones(3).to(device), 0.1, 0.1, 0.9, 0.99, 1e-8
    calls = (lookup, arguments), (lookup_backward, backward), (update_rows, (*update, *settings))
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if device != "cpu":
        checks.append("test_aot_dispatch_dynamic")
    with _interpreted_kernels_untraced(device):
        return [
            f"{operator._qualname} {check} {found}"
            for operator, given in calls
            for check, found in opcheck(operator, given, test_utils=checks).items()
        ]


def _interpreted_kernels_untraced(device: str) -> Any:
    """An interpreted kernel can be run, and not traced."""
    from ncf.kernels.triton_launch import Launch

    own = Launch.run

    def run(launch: Launch) -> None:
        if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is None:
            own(launch)

    return mock.patch.object(Launch, "run", run if device == "cpu" else own)


@pytest.mark.parametrize("several", [0, 3])
@pytest.mark.parametrize("parts", [(True, True), (True, False), (False, True)], ids=str)
def test_operators_are_registered_rightly(
    run: Callable[..., Any], several: int, parts: tuple[bool, bool]
) -> None:
    found = run(_check_operators, several, parts)
    assert len(found) >= 9
    assert [each for each in found if not each.endswith("SUCCESS")] == []


@needs_triton
@pytest.mark.parametrize("rows", [(7, 31), (10**9, 10**9)], ids=str)
def test_the_ids_of_each_side_are_sorted_stably(rows: tuple[int, int]) -> None:
    """Unknown ids too, and in the largest tables."""
    from ncf.kernels.triton_operators import sort_ids

    generator = torch.Generator().manual_seed(0)
    sides = [(torch.randint(-3, 3, (60,), generator=generator) % (number + 3) - 1, number) for number in rows]
    for (ids, number), (ordered, order) in zip(sides, sort_ids(*sides), strict=True):
        assert {-1, number, number - 1} <= {*ids.clamp(-1, number).tolist()}
        expected, places = ids.clamp(-1, number).sort(stable=True)
        assert torch.equal(ordered.to(torch.int64), expected)
        assert torch.equal(order, places)


def _everywhere(device: torch.device) -> bool:
    return True  # PyTorch's compiler traces a function, and no mock


def _made(name: str) -> tuple[Any, Any, Batch]:
    """A model, its optimizer, and two batches of four positives."""
    model = getattr(ncf, name)(
        29,
        31,
        seed=1,
        init_std=0.3,
        **({} if name in ("GMF", "MatrixFactorization") else {"layers": (20, 16, 8)}),
    )
    optimizer = make_optimizer(model, "adamw", learning_rate=0.01, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    users = torch.randint(29, (2, 4), generator=generator)
    return model, optimizer, Batch(users, torch.randint(31, (2, 4, 3), generator=generator))


def _compiled(device: str, name: str, loss: str, by_compiler: bool) -> list[Tensor]:
    """Losses and weights after two steps: one graph that PyTorch's compiler traced, or `EagerStep`."""
    model, optimizer, chunk = _made(name)
    model = model.to(device)
    optimizer = make_optimizer(model, "adamw", learning_rate=0.01, weight_decay=0.1)
    chunk = Batch(chunk.users.to(device), chunk.items.to(device))
    if by_compiler:
        backend = "eager" if device == "cpu" else "inductor"  # an interpreted kernel cannot be compiled
        with mock.patch("ncf.kernels.dispatch._has_triton", _everywhere):
            step: Any = FusedStep(
                model, optimizer, LOSSES[loss], samples_per_batch=12, compiled=True, backend=backend
            )
            with _interpreted_kernels_untraced(device):
                losses = step(chunk, [1.0, 0.5])
    else:
        losses = EagerStep(model, optimizer, LOSSES[loss])(chunk, [1.0, 0.5])
    return [losses.cpu(), *(value.detach().cpu() for value in model.parameters())]


def test_the_compiled_step_takes_the_steps_of_the_reference(run: Callable[..., Any]) -> None:
    found, expected = run(_compiled, "NeuMF", "bce", True), _compiled("cpu", "NeuMF", "bce", False)
    for result, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(result, exact, rtol=1e-5, atol=1e-5)


def _names(graph: GraphModule) -> list[str]:
    return [
        node.target.name() for node in graph.graph.nodes if isinstance(node.target, torch._ops.OpOverload)
    ]


@needs_triton
@pytest.mark.parametrize("loss", ["bce", "bpr"])
@pytest.mark.parametrize("name", MODELS)
def test_the_step_is_one_graph_in_which_nothing_waits_for_the_device(name: str, loss: str) -> None:
    """Traced on tensors without values, and taken through once more on those of a GPU that need not exist."""
    with mock.patch("ncf.kernels.dispatch._has_triton", _everywhere):
        model, optimizer, chunk = _made(name)
        assert can_be_fused(model, optimizer, LOSSES[loss])
        step = FusedStep(model, optimizer, LOSSES[loss], samples_per_batch=12)
        given = (chunk.users, chunk.items, torch.ones(2, 3), *step._state())
        with torch.no_grad():  # a value that is read while it is traced is an error
            graph = make_fx(lambda *inputs: step._take_steps(*inputs), tracing_mode="fake")(*given)
    names = _names(graph)
    tables = 4 if name == "NeuMF" else 2
    assert names.count("ncf::lookup") == names.count("ncf::lookup_backward") == 2
    assert names.count("ncf::update_rows") == 2 * tables
    assert not {each.split("::")[1].split(".")[0] for each in names} & WAITING
    shapes = {tuple(value.shape) for value in model.embeddings.weights().values()}
    made = [
        node
        for node in graph.graph.nodes
        if isinstance(value := node.meta.get("val"), Tensor)
        and tuple(value.shape) in shapes
        and node.op == "call_function"
    ]
    assert made == []  # no gradient of a table
    for node in graph.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": torch.device("cuda", 0)}
    graph.recompile()
    with FakeTensorMode(allow_non_fake_inputs=False):

        def on_gpu(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")

        processors = mock.patch(
            "torch.cuda.get_device_properties", return_value=SimpleNamespace(multi_processor_count=108)
        )
        with nullcontext() if torch.cuda.is_available() else processors:
            losses = graph(*tree_map(on_gpu, given))
    assert losses.device.type == "cuda"
    assert losses.shape == (2,)


@needs_triton
@pytest.mark.parametrize("name", MODELS)
def test_a_compiled_model_is_one_graph_with_the_fused_lookup(name: str) -> None:
    model, _, chunk = _made(name)
    arguments = chunk.users[0], chunk.items[0]
    graphs: list[GraphModule] = []

    def keep(graph: GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return lambda *given: (torch.zeros(4, 3),)

    with mock.patch("ncf.kernels.dispatch._has_triton", _everywhere):
        torch.compile(model, fullgraph=True, backend=keep)(*arguments)
        program = torch.export.export(model, arguments)
    (graph,) = graphs
    for traced in (graph, program.graph_module):
        assert _names(traced).count("ncf::lookup") == 1
        assert "aten::embedding" not in _names(traced)


def test_the_choice_of_the_kernels_can_be_traced() -> None:
    from ncf.kernels.dispatch import _runs_triton

    def add(value: Tensor) -> Tensor:
        return value + _runs_triton(0)

    expected = float(torch.cuda.is_available() and torch.cuda.get_device_capability(0) >= (8, 0))
    assert torch.compile(add, fullgraph=True, backend="eager")(torch.zeros(1)).item() == expected
