from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ncf import GMF, MLP, Interactions, MatrixFactorization, NeuMF, Trainer, leave_one_out
from ncf.models.base import EmbeddingModel
from ncf.training.batches import Batch
from ncf.training.losses import CosineContrastive, Loss, SampledSoftmax, binary_cross_entropy, bpr
from ncf.training.native_step import NativeStep, can_be_native
from ncf.training.optimizers import make_optimizer, started
from ncf.training.steps import EagerStep

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
USERS, ITEMS = 9, 13


def build(name: str, factors: int, half: int, hidden: list[int]) -> EmbeddingModel:
    sizes: dict[str, Any] = {"init_std": 0.7, "seed": 3}
    if name != "MLP":
        sizes["factors"] = factors
    if name in ("MLP", "NeuMF"):
        sizes["layers"] = (2 * half, *hidden)
    if name == "cosine":
        name, sizes["cosine"] = "MatrixFactorization", True
    classes = {"GMF": GMF, "MLP": MLP, "NeuMF": NeuMF, "MatrixFactorization": MatrixFactorization}
    model: EmbeddingModel = classes[name](USERS, ITEMS, **sizes)
    with torch.no_grad():  # biases start at zero
        for parameter in model.parameters():
            if parameter.dim() == 1 and parameter.requires_grad:
                parameter.normal_(generator=torch.Generator().manual_seed(len(parameter)))
    return model


def random_chunk(batches: int, positives: int, negatives: int, seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    return Batch(
        torch.randint(USERS, (batches, positives), generator=random),
        torch.randint(ITEMS, (batches, positives, 1 + negatives), generator=random),
    )


def assert_same(model: nn.Module, optimizer: Any, other: nn.Module, others: Any, *, atol: float) -> None:
    """The states of two optimizers; where the values have moved by rounding errors, see `double`."""
    for (name, value), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        if not value.requires_grad:
            continue
        ours, expected = started(optimizer, value), started(others, theirs)
        assert ours.keys() == expected.keys()
        for key in ours:
            torch.testing.assert_close(
                ours[key], expected[key].to(ours[key].dtype), rtol=1e-4, atol=atol, msg=f"{key} of {name}"
            )


RULES = ["adamw", "adagrad", "rowwise_adagrad", "sgd", "adam"]
ALL_LOSSES = [binary_cross_entropy, bpr, SampledSoftmax(0.7), CosineContrastive(margin=0.1, weight=3.0)]


@settings(deadline=None, max_examples=150)
@given(
    name=st.sampled_from(["GMF", "MLP", "NeuMF", "MatrixFactorization"]),
    factors=st.integers(1, 40),
    half=st.integers(1, 40),
    hidden=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    positives=st.integers(1, 60),
    negatives=st.integers(1, 9),
    loss=st.sampled_from(ALL_LOSSES),
    rule=st.sampled_from(RULES),
    weight_decay=st.sampled_from([0.0, 0.1]),
    threads=st.integers(1, 3),
    lanes=st.sampled_from([None, 4, 8, 16]),
)
def test_gradients_and_losses_are_autograds(
    any_processor: Any,
    name: str,
    factors: int,
    half: int,
    hidden: list[int],
    positives: int,
    negatives: int,
    loss: Loss,
    rule: str,
    weight_decay: float,
    threads: int,
    lanes: int | None,
) -> None:
    """Against PyTorch; after one step Adam's two means are a tenth of the gradient, and a thousandth of its square."""
    chunk = random_chunk(1, positives, negatives, seed=factors)
    eager, native = build(name, factors, half, hidden), build(name, factors, half, hidden)
    optimizers = [
        make_optimizer(model, rule, learning_rate=1e-3, weight_decay=weight_decay)
        for model in (eager, native)
    ]
    size = positives * (1 + negatives)
    kernel = {} if lanes is None else {"lanes": lanes, "kernel": any_processor}
    expected = EagerStep(eager, optimizers[0], loss)(chunk, [0.5])
    step = NativeStep(native, optimizers[1], loss, samples_per_batch=size, threads=threads, **kernel)
    losses = step(chunk, [0.5])
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    assert_same(native, optimizers[1], eager, optimizers[0], atol=1e-5)
    if rule == "sgd":
        for ours, theirs in zip(native.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["GMF", "MLP", "NeuMF", "MatrixFactorization"])
def test_updates_are_those_of_pytorch(name: str, rule: str) -> None:
    """Against PyTorch in double precision, over steps in which some rows are absent."""
    eager, native = build(name, 8, 8, [16, 8]).double(), build(name, 8, 8, [16, 8])
    of_parts: Any = {"learning_rate": 3e-3, "weight_decay": 1e-2}
    if rule != "adam" and name == "NeuMF":
        of_parts = {
            "learning_rate": {"mlp": 1e-3, "gmf_head": 5e-3, "default": 3e-3},
            "weight_decay": {"gmf_head": 3.0, "head": 2.0, "tower": 0.3, "default": 0.1},
        }
    first, second = (make_optimizer(m, rule, **of_parts) for m in (eager, native))
    steps = (
        EagerStep(eager, first, binary_cross_entropy),
        NativeStep(native, second, binary_cross_entropy, samples_per_batch=20, threads=2),
    )
    rates = [1.0, 0.9, 0.5, 0.2, 0.1]
    for seed in range(3):
        chunk = random_chunk(5, 4, 1, seed)  # of 9 users and 13 items
        torch.testing.assert_close(
            steps[1](chunk, rates).double(), steps[0](chunk, rates), rtol=1e-4, atol=1e-5
        )
    assert_same(native, second, eager, first, atol=1e-5)
    for ours, theirs in zip(native.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)


def shared_chunk(batches: int, positives: int, shared: int, seed: int) -> Batch:
    """Some shared negatives come twice, some are positives too, and some have been seen by some users.

    The first is no positive, and seen with all others or not at all: else all that is left to a user may be the
    positive itself, whose gradient is zero but for rounding, which Adam blows up.
    """
    random = torch.Generator().manual_seed(seed)
    chunk = random_chunk(batches, positives, 0, seed)
    items = torch.randint(ITEMS, (batches, shared), generator=random)
    items[:, 0] = ITEMS - 1
    seen = torch.rand(batches, positives, shared, generator=random) < 0.2
    seen |= seen[..., :1]
    seen = seen.view(batches, -1)
    return chunk._replace(
        items=chunk.items % (ITEMS - 1),
        shared=items,
        seen=torch.cat([row.nonzero().squeeze(1) for row in seen]),
        seen_offsets=torch.cat([torch.zeros(1, dtype=torch.int64), seen.sum(1).cumsum(0)]),
    )


@settings(deadline=None, max_examples=100)
@given(
    name=st.sampled_from(["GMF", "MatrixFactorization", "cosine"]),
    factors=st.integers(1, 40),
    positives=st.integers(1, 300),
    shared=st.integers(1, 70),
    corrected=st.booleans(),
    loss=st.sampled_from(ALL_LOSSES),
    rule=st.sampled_from(RULES),
    lanes=st.sampled_from([None, 4, 8, 16]),
)
def test_shared_negatives_train_as_in_pytorch(
    any_processor: Any,
    name: str,
    factors: int,
    positives: int,
    shared: int,
    corrected: bool,
    loss: Loss,
    rule: str,
    lanes: int | None,
) -> None:
    chunk = shared_chunk(2, positives, shared, seed=factors)
    random = torch.Generator().manual_seed(0)
    corrections = (
        (torch.rand(ITEMS, generator=random), torch.rand(USERS, generator=random)) if corrected else None
    )
    eager, native = build(name, factors, 1, []).double(), build(name, factors, 1, [])
    optimizers = [make_optimizer(m, rule, learning_rate=1e-3, weight_decay=0.1) for m in (eager, native)]
    kernel = {} if lanes is None else {"lanes": lanes, "kernel": any_processor}
    expected = EagerStep(eager, optimizers[0], loss, corrections)(chunk, [0.5, 0.4])
    step = NativeStep(
        native, optimizers[1], loss, samples_per_batch=100, corrections=corrections, threads=2, **kernel
    )
    torch.testing.assert_close(step(chunk, [0.5, 0.4]).double(), expected, rtol=1e-5, atol=1e-5)
    assert_same(native, optimizers[1], eager, optimizers[0], atol=1e-5)


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_cosines_of_pairs_train_as_in_pytorch(loss: Loss) -> None:
    chunk, (eager, native) = random_chunk(4, 30, 4), (build("cosine", 12, 1, []) for _ in range(2))
    eager = eager.double()
    optimizers = [make_optimizer(model, "sgd", learning_rate=0.1) for model in (eager, native)]
    rates = [1.0, 0.5, 0.4, 0.3]
    expected = EagerStep(eager, optimizers[0], loss)(chunk, rates)
    losses = NativeStep(native, optimizers[1], loss, samples_per_batch=150)(chunk, rates)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(native.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    pairs = torch.tensor([1, 2]), torch.tensor([[3, 4, 5], [0, 1, 2]])
    torch.testing.assert_close(native.score(*pairs), native(*pairs))


@pytest.mark.parametrize("rule", ["adamw", "adam"])
@pytest.mark.parametrize("name", ["NeuMF", "MatrixFactorization"])
def test_any_number_of_threads_trains_to_the_same_bits(name: str, rule: str) -> None:
    """Batches of many slots, with rows that many slots have."""
    models = []
    for threads in (1, 2, 3, 8):
        model = build(name, 12, 6, [7, 3])
        optimizer = make_optimizer(model, rule, learning_rate=1e-2, weight_decay=0.1)
        step = NativeStep(model, optimizer, binary_cross_entropy, samples_per_batch=5000, threads=threads)
        losses = step(random_chunk(3, 1000, 4), [1.0, 0.5, 0.2])
        losses = torch.cat([losses, step(random_chunk(3, 900, 4), [1.0, 0.5, 0.2])])
        models.append([losses, *model.parameters()])
    for other in models[1:]:
        assert all(torch.equal(*pair) for pair in zip(models[0], other, strict=True))


def test_batches_in_one_call_are_those_of_several_to_the_bit() -> None:
    together, apart = (build("NeuMF", 5, 6, [7, 3]) for _ in range(2))
    chunk, rates = random_chunk(6, 50, 4), [0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    losses = []
    for model, cuts in ((together, [0, 6]), (apart, [0, 1, 4, 6])):
        optimizer = make_optimizer(model, "adam", learning_rate=1e-2)
        step = NativeStep(model, optimizer, binary_cross_entropy, samples_per_batch=250)
        losses.append(
            torch.cat(
                [
                    step(Batch(chunk.users[a:b], chunk.items[a:b]), rates[a:b])
                    for a, b in itertools.pairwise(cuts)
                ]
            )
        )
    assert torch.equal(*losses)
    for ours, theirs in zip(together.parameters(), apart.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_one_step_can_take_over_from_the_other() -> None:
    mixed, eager = (build("NeuMF", 5, 6, [7, 3]) for _ in range(2))
    first, second = (make_optimizer(m, "adam", learning_rate=1e-2) for m in (mixed, eager))
    for seed, kind in enumerate((EagerStep, NativeStep, EagerStep, NativeStep)):
        chunk = random_chunk(1, 50, 4, seed)
        size = {} if kind is EagerStep else {"samples_per_batch": 250}
        kind(mixed, first, binary_cross_entropy, **size)(chunk, [1.0])
        EagerStep(eager, second, binary_cross_entropy)(chunk, [1.0])
    assert_same(mixed, first, eager, second, atol=1e-5)


def test_a_call_takes_no_more_batches_than_allowed() -> None:
    model = build("GMF", 4, 1, [])
    optimizer = make_optimizer(model, "adam", learning_rate=1e-2)
    sizes = [
        NativeStep(model, optimizer, bpr, samples_per_batch=size, at_most=most).batches_per_call
        for size, most in ((256, None), (256, 7), (1 << 20, None), (1 << 20, 3))
    ]
    assert sizes == [64, 7, 1, 1]


@pytest.mark.parametrize(
    ("user", "item", "message"),
    [
        (USERS, 0, f"user {USERS} is out of range"),
        (0, ITEMS, f"item {ITEMS} is out"),
        (0, -1, "item -1 is out of"),
    ],
)
def test_an_unknown_id_is_refused_before_anything_is_changed(user: int, item: int, message: str) -> None:
    model = build("NeuMF", 5, 6, [7, 3])
    before = [parameter.detach().clone() for parameter in model.parameters()]
    step = NativeStep(model, make_optimizer(model, "adam", learning_rate=1.0), bpr, samples_per_batch=30)
    chunk = random_chunk(3, 5, 4)
    chunk.users[1, 3], chunk.items[2, 4, 2] = user, item
    with pytest.raises(IndexError, match=message):
        step(chunk, [1.0, 1.0, 1.0])
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_loss_that_is_no_number_is_seen() -> None:
    model = build("NeuMF", 5, 6, [7, 3])
    with torch.no_grad():
        model.towers["mlp"].layers[0].weight[0, 0] = torch.nan
    step = NativeStep(model, make_optimizer(model, "adam", learning_rate=1e-2), bpr, samples_per_batch=30)
    assert step(random_chunk(2, 5, 4), [1.0, 1.0]).isnan().all()


@pytest.mark.parametrize(
    "break_it",
    [
        lambda model: model.half(),
        lambda model: model.double(),
        lambda model: setattr(weight := model.embeddings.weight("user_gmf"), "data", weight.data[:3]),
        lambda model: setattr(weight := model.towers["mlp"].layers[0].weight, "data", weight.data.T),
    ],
    ids=["half", "double", "smaller", "strided"],
)
def test_a_model_that_was_changed_between_calls_is_refused(break_it: Callable[[Any], object]) -> None:
    """The addresses of such tensors once went to C: the heap was corrupted."""
    model = build("NeuMF", 6, 3, [7, 3])
    step = NativeStep(model, make_optimizer(model, "adam", learning_rate=1.0), bpr, samples_per_batch=30)
    step(random_chunk(1, 5, 4), [1.0])
    break_it(model)
    with pytest.raises(ValueError, match=r" is .*: the kernel works on contiguous torch.float32 \("):
        step(random_chunk(1, 5, 4), [1.0])


@pytest.mark.parametrize("default", [torch.float64, torch.float16])
def test_losses_do_not_depend_on_the_default_dtype(default: torch.dtype) -> None:
    losses = []
    for dtype in (torch.float32, default):
        model = build("NeuMF", 6, 3, [7, 3])
        optimizer = make_optimizer(model, "adam", learning_rate=1e-2)
        step = NativeStep(model, optimizer, bpr, samples_per_batch=30)
        torch.set_default_dtype(dtype)
        try:
            losses.append(step(random_chunk(3, 5, 4), [1.0, 1.0, 1.0]))
        finally:
            torch.set_default_dtype(torch.float32)
    assert losses[1].dtype == torch.float32
    assert torch.equal(*losses)


class Other(GMF):
    """A user's own model: the kernel does not know what it computes."""


@pytest.mark.parametrize(
    ("model", "optimizer", "possible"),
    [
        (NeuMF(3, 4), "adam", True),
        (NeuMF(3, 4), "sgd", True),
        (NeuMF(3, 4, dropout=0.5), "adam", False),
        (NeuMF(3, 4).double(), "adam", False),
        (MLP(3, 4, layers=(8,)), "adam", False),
        (MLP(3, 4, layers=(8, *[2] * 17)), "adam", False),
        (MLP(3, 4, layers=(8, *[2] * 16)), "adam", True),
        (Other(3, 4), "adam", False),
    ],
)
def test_where_it_is_possible(model: EmbeddingModel, optimizer: str, possible: bool) -> None:
    made = make_optimizer(model, optimizer, learning_rate=0.1)
    assert can_be_native(model, made, binary_cross_entropy) is possible
    assert not can_be_native(model, made, lambda logits: logits.sum())


def test_the_trainer_uses_it_and_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    users = torch.arange(60).repeat_interleave(8)
    split = leave_one_out(Interactions.from_arrays(users, (users * 7 + torch.arange(480) % 8 * 3) % 50))
    calls = []
    original = NativeStep.__call__

    def counted(step: NativeStep, chunk: Batch, rates: Any) -> torch.Tensor:
        calls.append(len(chunk.users))
        return original(step, chunk, rates)

    monkeypatch.setattr(NativeStep, "__call__", counted)
    histories = []
    for compiled in (None, False):
        model = NeuMF(60, 50, factors=4, layers=(8, 4))
        histories.append(Trainer(model, epochs=3, batch_size=100, compile=compiled, seed=1).fit(split))
    assert sum(calls) == 3 * -(-len(split.train) // 20)
    torch.testing.assert_close(histories[0].loss, histories[1].loss, rtol=1e-4, atol=0)
