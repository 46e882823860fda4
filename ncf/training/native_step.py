"""Training steps on a CPU without PyTorch's overhead: a kernel in C takes several batches in one call."""

from __future__ import annotations

import ctypes
import inspect
import time
from collections.abc import Sequence
from ctypes import byref, c_float, c_void_p
from typing import Any

import torch
from torch import Tensor, nn

from ncf.kernels.native import (
    MAX_LAYERS,
    RULES,
    Chunk,
    Model,
    Parameter,
    address,
    lanes_for,
    library,
    raise_kernel_error,
    use_huge_pages,
)
from ncf.models.neural import GMF, MLP, MatrixFactorization, NeuMF
from ncf.training.batches import Batch
from ncf.training.losses import (
    Corrections,
    CosineContrastive,
    Loss,
    SampledSoftmax,
    binary_cross_entropy,
    bpr,
)
from ncf.training.optimizers import RowSparse, adam_scales, started

LOSS_KINDS = binary_cross_entropy, bpr, SampledSoftmax, CosineContrastive  # in the order of native.c
# Calls after which the slower number of threads is tried again, times how much slower it was.
_LOOK_EVERY = 20
_SAMPLES_PER_CALL = 1 << 14  # a few milliseconds: Ctrl-C and the progress bar wait for no more


class NativeStep:
    """Several steps with their updates in one call of a kernel in C, `ncf.kernels`.

    The numbers are those of `EagerStep` up to rounding, and the state stays in the optimizer, so one can take over from
    the other. With `RowSparse` a step costs what it reads, whatever the size of the tables. The bits are the same
    for any number of threads.

    Args:
        model: what to train, one for which `can_be_native` holds.
        optimizer: holder of the settings and state.
        loss: one of `ncf.training.losses`.
        samples_per_batch: positives and negatives; a call takes as many batches as make some ten thousand.
        at_most: batches in a call.
        corrections: what `ncf.training.losses.SampledSoftmax` takes from logits, see there; nothing by default.
        threads: CPU threads of a call.
        adaptive: take one thread while that is faster, such as where other processes use the cores.
        lanes: width of the vector unit in floats: 4, 8 (AVX2) or 16 (AVX-512); see `ncf.kernels.native.lanes_for`.
        kernel: what `ncf.kernels.native.library` returned; its default by default.

    Example::

        >>> import torch
        >>> from ncf import GMF
        >>> from ncf.training.batches import Batch
        >>> from ncf.training.losses import binary_cross_entropy
        >>> from ncf.training.native_step import NativeStep, can_be_native
        >>> from ncf.training.optimizers import make_optimizer
        >>> model = GMF(num_users=3, num_items=9)
        >>> optimizer = make_optimizer(model, "adam", learning_rate=0.01)
        >>> chunk = Batch(torch.tensor([[0, 2], [1, 0]]), torch.tensor([[[1, 5], [3, 7]], [[8, 2], [1, 3]]]))
        >>> if can_be_native(model, optimizer, binary_cross_entropy):
        ...     step = NativeStep(model, optimizer, binary_cross_entropy, samples_per_batch=4)
        ...     assert step(chunk, rates=[1.0, 0.5]).shape == (2,)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        *,
        samples_per_batch: int,
        at_most: int | None = None,
        corrections: Corrections | None = None,
        threads: int = 1,
        adaptive: bool = True,
        lanes: int | None = None,
        kernel: Any = None,
    ) -> None:
        self.batches_per_call = max(
            1, min(_SAMPLES_PER_CALL // samples_per_batch, at_most or _SAMPLES_PER_CALL)
        )
        self.threads = threads
        self._adaptive = adaptive
        self._until_look = 0
        self._seconds = {threads: 0.0, 1: 0.0}  # of a batch, of late; 0 where it has not been tried
        self._in_huge_pages: set[int] = set()  # addresses
        self._kernel = library() if kernel is None else kernel
        self._model: Any = model
        self._lanes = lanes_for(self._kernel, self._widths()) if lanes is None else lanes
        self._optimizer: Any = optimizer
        self._rule = optimizer.rule if isinstance(optimizer, RowSparse) else "adam"
        self._loss: Any = loss
        self._parameters = dict(model.named_parameters())
        self._tables = [name for name in self._parameters if name.startswith("embeddings.")]
        self._shapes = {name: value.shape for name, value in self._parameters.items()}
        self._groups = {id(value): group for group in optimizer.param_groups for value in group["params"]}
        self._corrections = (
            None
            if corrections is None
            else tuple(None if c is None else c.to("cpu", torch.float32).contiguous() for c in corrections)
        )

    def __call__(self, chunk: Batch, rates: Sequence[float]) -> Tensor:
        """See `ncf.training.steps.Step`.

        Raises:
            IndexError: if a user or an item is unknown to the model.
            ValueError: if a parameter, or its state, no longer has the type, shape or place that it had.
        """
        states = {
            name: started(self._optimizer, value)
            for name, value in self._parameters.items()
            if id(value) in self._groups
        }
        for name in self._tables:
            for tensor in (self._parameters[name], *states.get(name, {}).values()):
                if tensor.data_ptr() not in self._in_huge_pages:
                    use_huge_pages(tensor.detach())
                    self._in_huge_pages.add(tensor.data_ptr())
        users, items = chunk.users.contiguous(), chunk.items.contiguous()
        losses = torch.empty(len(rates), dtype=torch.float32, device="cpu")
        batches, positives, samples_per_positive = items.shape
        shared = None if chunk.shared is None else chunk.shared.contiguous()
        if shared is not None:
            assert chunk.seen is not None
            assert chunk.seen_offsets is not None
        counts = [state["step"] for state in states.values() if "step" in state]
        betas = self._optimizer.param_groups[0].get("betas", (0.0, 0.0))
        group = {"initial_lr": 1.0, "betas": betas}  # each parameter has a rate of its own
        scales = adam_scales(group, int(counts[0]) if counts else 0, rates)
        of_batches = [(c_float * batches)(*numbers) for numbers in (rates, *scales)]
        given = Chunk(
            address("users", users, torch.int64, (batches, positives)),
            address("items", items, torch.int64, items.shape),
            *(
                None if tensor is None else address(name, tensor, torch.int64, shape)
                for name, tensor, shape in (
                    ("shared", shared, (batches, shared.shape[1] if shared is not None else 0)),
                    ("seen", chunk.seen, (len(chunk.seen) if chunk.seen is not None else 0,)),
                    ("seen_offsets", chunk.seen_offsets, (batches + 1,)),
                )
            ),
            *(ctypes.cast(numbers, c_void_p) for numbers in of_batches),
            address("losses", losses, torch.float32, (batches,)),
            *(batches, positives, samples_per_positive),
            0 if shared is None else shared.shape[1],
        )
        model, threads, began = self._described(states), self._threads_now(), time.perf_counter()
        failed = self._kernel.ncf_train(byref(model), byref(given), self._lanes, threads)
        seconds, of_late = (time.perf_counter() - began) / batches, self._seconds[threads]
        self._seconds[threads] = 0.7 * of_late + 0.3 * seconds if of_late else seconds
        known = self._model.num_users, self._model.num_items
        if shared is not None and failed >= users.numel() + items.numel():
            items, samples_per_positive = torch.cat([items.view(-1), shared.view(-1)])[:, None], 1
        raise_kernel_error(failed, users.view(-1), items.view(-1, samples_per_positive), *known)
        for count in counts:
            count += len(rates)
        return losses

    def _threads_now(self) -> int:
        """All threads or one, whichever has been faster of late: other processes may use the cores, too."""
        if not self._adaptive or self.threads == 1:
            return self.threads
        faster, slower = sorted((self.threads, 1), key=self._seconds.__getitem__)
        if not self._seconds[faster]:
            return faster
        self._until_look -= 1
        if self._until_look >= 0:
            return faster
        self._until_look = int(_LOOK_EVERY * self._seconds[slower] / self._seconds[faster])
        return slower

    def _layers(self) -> list[Any]:
        return list(self._model.towers["mlp"].layers) if "mlp" in self._model.towers else []

    def _widths(self) -> list[int]:
        return [self._model.config.get("factors", 0), *(layer.out_features for layer in self._layers())]

    def _parameter(
        self, name: str, states: dict[str, dict[str, Tensor]], columns: slice | None = None
    ) -> Parameter:
        """Return the addresses of a parameter and of its state; of a head that has two parts, some of its columns."""
        value, shape = self._parameters[name], self._shapes[name]
        first = address(name, value, torch.float32, shape)
        if name not in states:  # it stays as it is
            return Parameter(first, row=shape[-1])
        group, state = self._groups[id(value)], states[name]
        moments: dict[str, c_void_p | None] = {"exp_avg": None, "exp_avg_sq": None}
        for key in ("exp_avg", "exp_avg_sq", "sum"):
            if key in state:
                by_row = key == "sum" and self._rule == "rowwise_adagrad" and group["rows"]
                place = address(f"{key} of {name}", state[key], torch.float32, shape[:1] if by_row else shape)
                moments["exp_avg_sq" if key == "sum" else key] = place
        rate, decay, target, start, size = group["initial_lr"], group["weight_decay"], 0.0, 0, value.numel()
        if columns is not None:
            start, stop, _ = columns.indices(shape[-1])
            size = stop - start
            if self._rule != "adam":
                of_product = start == 0 and group["columns"] > 0
                rate *= group["product_share"] if of_product else group["share"]
                decay = group["product_decay"] if of_product else decay
                target = float(of_product)
        places = [
            None if place is None else c_void_p((place.value or 0) + 4 * start)
            for place in (first, *moments.values())
        ]
        return Parameter(*places, size=size, row=shape[-1], rate=rate, decay=decay, target=target)

    def _described(self, states: dict[str, dict[str, Tensor]]) -> Model:
        """Build the C struct with the current addresses of all tensors."""
        model, layers, group, loss = self._model, self._layers(), self._optimizer.param_groups[0], self._loss
        factors = model.config.get("factors", 0)
        kind = "mf" if isinstance(model, MatrixFactorization) else "gmf"
        cosine = bool(model.config.get("cosine"))
        beta1, beta2 = group.get("betas", (0.0, 0.0))
        described = Model(
            bias=self._parameter("head.bias", states),
            num_users=model.num_users,
            num_items=model.num_items,
            factors=factors,
            biased=kind == "mf" and not cosine,
            cosine=cosine,
            dim=layers[0].in_features // 2 if layers else 0,
            layers=len(layers),
            rule=RULES.index(self._rule),
            loss=LOSS_KINDS.index(loss if inspect.isfunction(loss) else type(loss)),
            beta1=beta1,
            beta2=beta2,
            epsilon=group.get("eps", 0.0),
            temperature=getattr(loss, "temperature", 1.0),
            margin=getattr(loss, "margin", 0.0),
            weight=getattr(loss, "weight", 0.0),
        )
        for place, name in (("gmf", kind), ("mlp", "mlp")):
            for side in ("user", "item"):
                table = f"embeddings.ebc.embedding_bags.{side}_{name}.weight"
                if table in self._parameters:
                    setattr(described, f"{side}_{place}", self._parameter(table, states))
        if kind == "gmf" and factors:
            described.gmf_head = self._parameter("head.weight", states, slice(0, factors))
        if layers:
            described.mlp_head = self._parameter("head.weight", states, slice(factors, None))
        for at, layer in enumerate(layers):
            described.weights[at] = self._parameter(f"towers.mlp.layers.{at}.weight", states)
            described.biases[at] = self._parameter(f"towers.mlp.layers.{at}.bias", states)
            described.outputs[at] = layer.out_features
        if self._corrections is not None:
            of_items, of_users = self._corrections
            if of_items is not None:
                described.item_correction = address(
                    "corrections", of_items, torch.float32, (model.num_items,)
                )
            if of_users is not None:
                described.user_correction = address(
                    "corrections", of_users, torch.float32, (model.num_users,)
                )
        return described


def can_be_native(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, *, shared: bool = False
) -> bool:
    """Return whether there is a kernel that can train this model so.

    Args:
        model: one of ncf's own classes in fp32 on a CPU, without dropout and features, and with a hidden layer in its
            MLP.
        optimizer: `RowSparse`, or Adam in its usual form.
        loss: one of `ncf.training.losses`.
        shared: the positives of a batch share their negatives, which a perceptron is not written for.

    Example::

        >>> from ncf import GMF
        >>> from ncf.training.losses import binary_cross_entropy
        >>> from ncf.training.native_step import can_be_native
        >>> from ncf.training.optimizers import make_optimizer
        >>> model = GMF(num_users=3, num_items=9)
        >>> can_be_native(model, make_optimizer(model, "sgd", learning_rate=0.1), lambda logits: logits.sum())
        False
    """
    if type(model) not in (GMF, MLP, NeuMF, MatrixFactorization):
        return False
    if type(optimizer) not in (torch.optim.Adam, RowSparse):
        return False
    assert isinstance(model, (GMF, MLP, NeuMF, MatrixFactorization))
    layers = len(model.config["layers"]) - 1 if "layers" in model.config else 1
    group = optimizer.param_groups[0]
    return (
        library() is not None
        and (loss if inspect.isfunction(loss) else type(loss)) in LOSS_KINDS
        and not (shared and "layers" in model.config)
        and 1 <= layers <= MAX_LAYERS
        and not model.config["dropout"]
        and not model.embeddings.features
        and not any(group.get(option) for option in ("amsgrad", "maximize", "decoupled_weight_decay"))
        and (type(optimizer) is RowSparse or len(optimizer.param_groups) == 1)
        and all(
            value.dtype == torch.float32 and value.is_cpu and value.is_contiguous()
            for value in model.parameters()
        )
        and all(value.requires_grad or name == "head.bias" for name, value in model.named_parameters())
    )
