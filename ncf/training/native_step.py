"""Training steps on a CPU without PyTorch's overhead: a kernel in C takes several batches in one call."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_float, c_int64
from typing import Any

import torch
from torch import Tensor, nn

from ncf.kernels.native import MAX_LAYERS, Adam, Model, Parameter, address, lanes_for, library, refuse
from ncf.models.neural import GMF, MLP, MatrixFactorization, NeuMF
from ncf.training.batches import Batch
from ncf.training.losses import Loss, binary_cross_entropy, bpr
from ncf.training.optimizers import adam_scales, started

_SAMPLES_PER_CALL = 1 << 14  # a few milliseconds: Ctrl-C and the progress bar wait for no more


class NativeStep:
    """Several steps with their Adam updates in one call of a kernel in C, `ncf.kernels`.

    The numbers are those of `EagerStep` with `torch.optim.Adam` up to rounding, and Adam's state stays in
    the optimizer, so one can take over from the other. It runs on one thread.

    Args:
        model: what to train, one for which `can_be_native` holds.
        optimizer: holder of Adam's settings and state.
        loss: `binary_cross_entropy` or `bpr`.
        samples_per_batch: positives and negatives; a call takes as many batches as make some ten thousand.
        at_most: batches in a call.
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
        lanes: int | None = None,
        kernel: Any = None,
    ) -> None:
        self.batches_per_call = max(
            1, min(_SAMPLES_PER_CALL // samples_per_batch, at_most or _SAMPLES_PER_CALL)
        )
        self._kernel = library() if kernel is None else kernel
        self._model: Any = model
        self._lanes = lanes_for(self._kernel, self._widths()) if lanes is None else lanes
        self._optimizer = optimizer
        self._parameters = dict(model.named_parameters())
        self._shapes = {name: value.shape for name, value in self._parameters.items()}
        self._gradients = {name: torch.zeros_like(value) for name, value in self._parameters.items()}
        self._pairwise = loss is bpr

    def __call__(self, chunk: Batch, rates: Sequence[float]) -> Tensor:
        """See `ncf.training.steps.Step`.

        Raises:
            IndexError: if a user or an item is unknown to the model.
            ValueError: if a parameter, or its state, no longer has the type, shape or place that it had.
        """
        group = self._optimizer.param_groups[0]
        states = {name: started(self._optimizer, value) for name, value in self._parameters.items()}
        scales = adam_scales(group, int(next(iter(states.values()))["step"]), rates)
        users, items = chunk.users.contiguous(), chunk.items.contiguous()
        losses = torch.empty(len(rates), dtype=torch.float32, device="cpu")
        batches, positives, each = items.shape
        failed = self._kernel.ncf_train(
            byref(self._described(states)),
            byref(Adam(*group["betas"], group["eps"], group["weight_decay"])),
            self._lanes,
            address("users", users, torch.int64, (batches, positives)),
            address("items", items, torch.int64, items.shape),
            *(c_int64(batches), c_int64(positives), c_int64(each)),
            *((c_float * batches)(*scale) for scale in scales),
            address("losses", losses, torch.float32, (batches,)),
        )
        known = self._model.num_users, self._model.num_items
        refuse(failed, users.view(-1), items.view(-1, each), *known)
        for state in states.values():
            state["step"] += len(rates)
        return losses

    def _layers(self) -> list[Any]:
        return list(self._model.towers["mlp"].layers) if "mlp" in self._model.towers else []

    def _widths(self) -> list[int]:
        return [self._model.config.get("factors", 0), *(layer.out_features for layer in self._layers())]

    def _described(self, states: dict[str, dict[str, Tensor]]) -> Model:
        """Where everything is at present."""
        model, layers, held = self._model, self._layers(), {}
        for name, value in self._parameters.items():
            tensors = (value, states[name]["exp_avg"], states[name]["exp_avg_sq"], self._gradients[name])
            shape = self._shapes[name]
            held[name] = Parameter(*(address(name, t, torch.float32, shape) for t in tensors), value.numel())
        table = {
            key.split(".")[-2]: parameter for key, parameter in held.items() if key.startswith("embeddings.")
        }
        factors = model.config.get("factors", 0)
        kind = "mf" if isinstance(model, MatrixFactorization) else "gmf"
        described = Model(
            *(
                table.get(f"{side}_{part}", Parameter())
                for part in (kind, "mlp")
                for side in ("user", "item")
            ),
            *(held.get(name, Parameter()) for name in ("head.weight", "head.bias")),
            num_users=model.num_users,
            num_items=model.num_items,
            factors=factors,
            gmf_row=model.embeddings.weight(f"user_{kind}").shape[1] if factors else 0,
            biased=kind == "mf",
            dim=layers[0].in_features // 2 if layers else 0,
            layers=len(layers),
            parameters=len(held),
            pairwise=self._pairwise,
        )
        for at, layer in enumerate(layers):
            described.weights[at] = held[f"towers.mlp.layers.{at}.weight"]
            described.biases[at] = held[f"towers.mlp.layers.{at}.bias"]
            described.outputs[at] = layer.out_features
        for at, parameter in enumerate(held.values()):
            described.all[at] = ctypes.pointer(parameter)
        return described


def can_be_native(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss) -> bool:
    """Whether there is a kernel, and it can train this model so.

    Args:
        model: one of ncf's own classes in fp32 on a CPU, without dropout, and with a hidden layer in its MLP.
        optimizer: Adam in its usual form.
        loss: `binary_cross_entropy` or `bpr`.

    Example::

        >>> from ncf import GMF
        >>> from ncf.training.losses import binary_cross_entropy
        >>> from ncf.training.native_step import can_be_native
        >>> from ncf.training.optimizers import make_optimizer
        >>> model = GMF(num_users=3, num_items=9)
        >>> can_be_native(model, make_optimizer(model, "sgd", learning_rate=0.1), binary_cross_entropy)
        False
    """
    if type(model) not in (GMF, MLP, NeuMF, MatrixFactorization) or type(optimizer) is not torch.optim.Adam:
        return False
    assert isinstance(model, (GMF, MLP, NeuMF, MatrixFactorization))
    layers = len(model.config["layers"]) - 1 if "layers" in model.config else 1
    group = optimizer.param_groups[0]
    return (
        library() is not None
        and loss in (binary_cross_entropy, bpr)
        and 1 <= layers <= MAX_LAYERS
        and not model.config["dropout"]
        and not any(group[option] for option in ("amsgrad", "maximize", "decoupled_weight_decay"))
        and len(optimizer.param_groups) == 1
        and all(
            value.dtype == torch.float32 and value.is_cpu and value.is_contiguous() and value.requires_grad
            for value in model.parameters()
        )
    )
