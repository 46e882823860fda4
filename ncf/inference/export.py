"""A trained model as a file for other programs: a `torch.export` program, or ONNX. See the page *Export*.

Both compute ``scores = model(users, candidates)`` under the names of the model's own parameters: ``users`` is ``[U]``,
``candidates`` ``[U, C]``, int64, and U and C may be any size. Padding, ``-1`` among the candidates, scores ``-inf``. A
negative user, who may be a raw id that was not found, scores NaN.
"""

from __future__ import annotations

import copy
import math
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ncf.models.base import EmbeddingModel, unwrap_model
from ncf.models.scoring import full_precision
from ncf.utils.files import atomic_write
from ncf.utils.warnings import suppress_warnings

_PROTOBUF = 3 << 29  # bytes; a message of ONNX ends at 2 GiB, so tables above this stand in a file beside
_NAMES = ("users", "candidates")


def export_program(model: Any, path: str | PathLike[str]) -> torch.export.ExportedProgram:
    """Write a model as a `torch.export` program, which `torch.export.load` reads without ncf.

    The program is compared with the model before the file is there.

    Args:
        model: a trained model, in one process; one of your own must be an `EmbeddingModel`. It stays as it is.
        path: the file, usually ``*.pt2``; it is replaced at once or not at all.

    Returns:
        The program: ``program.module()(users, candidates)`` scores, ``[U]`` and ``[U, C]`` to ``[U, C]``.

    Raises:
        TypeError: if it is no `EmbeddingModel`; a baseline is arrays that any program can read.
        ValueError: if the model is sharded or without values, or the program's scores differ from the model's.
        OSError: if the file cannot be written.

    Example::

        >>> import tempfile, torch, ncf
        >>> from ncf.inference import export_program
        >>> model = ncf.GMF(10, 20, factors=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = export_program(model, f"{folder}/model.pt2")
        ...     program = torch.export.load(f"{folder}/model.pt2").module()
        >>> users, candidates = torch.tensor([3]), torch.tensor([[7, 8, -1]])
        >>> torch.equal(program(users, candidates), model.score(users, candidates))
        True
    """
    model = _exportable(model)
    program = _program(model)
    scorer = program.module()
    with torch.no_grad():
        _compare("the torch.export program", model, lambda users, items: scorer(users, items))
    with atomic_write(path) as beside:
        torch.export.save(program, str(beside))
    return program


def export_onnx(model: Any, path: str | PathLike[str]) -> None:
    """Write a model as ONNX, for onnxruntime and others; needs the extra ``ncf[onnx]``.

    The file has the inputs ``users`` and ``candidates`` and the output ``scores``. Tables of more than 1.5 GiB stand in
    a second file, named as the first with ``.data`` behind it. onnxruntime's scores are compared with the model's.

    Args:
        model: a trained model, in one process; one of your own must be an `EmbeddingModel`. It stays as it is.
        path: the file, usually ``*.onnx``; it is replaced at once or not at all.

    Raises:
        ImportError: if onnx, onnxscript or onnxruntime is not installed.
        TypeError: if it is no `EmbeddingModel`.
        ValueError: if the model is sharded or without values, or onnxruntime's scores differ from the model's.
        OSError: if the file cannot be written.

    Example::

        >>> import tempfile, torch, ncf, onnxruntime
        >>> from ncf.inference import export_onnx
        >>> model = ncf.GMF(10, 20, factors=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_onnx(model, f"{folder}/model.onnx")
        ...     session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
        >>> users, candidates = torch.tensor([3]), torch.tensor([[7, 8, -1]])
        >>> inputs = {"users": users.numpy(), "candidates": candidates.numpy()}
        >>> session.run(["scores"], inputs)[0].round(4).shape
        (1, 3)
    """
    model = _exportable(model)
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error.name} is missing: pip install 'ncf[onnx]'") from error
    target = Path(path)
    size = sum(parameter.nbytes for parameter in model.parameters())
    # An ONNX file has no device, and its parameters are written from the CPU.
    program = _program(model if model.device.type == "cpu" else copy.deepcopy(model).to("cpu"))
    with suppress_warnings():
        exported: Any = torch.onnx.export(
            program, dynamo=True, input_names=_NAMES, output_names=["scores"], verbose=False
        )
    with atomic_write(target) as beside:
        exported.save(str(beside), external_data=size > _PROTOBUF)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # not its advice on the graph
        session = onnxruntime.InferenceSession(str(beside), options, providers=["CPUExecutionProvider"])

        def scores(users: Tensor, candidates: Tensor) -> Tensor:
            inputs = dict(zip(_NAMES, (users.cpu().numpy(), candidates.cpu().numpy()), strict=True))
            return torch.from_numpy(session.run(["scores"], inputs)[0])

        _compare("the ONNX file", model, scores)
        tables = beside.with_name(f"{target.name}.data")
        if tables.exists():
            tables.replace(target.with_name(tables.name))


def _exportable(model: Any) -> EmbeddingModel:
    model = unwrap_model(model)
    if not isinstance(model, EmbeddingModel):
        raise TypeError(
            f"{type(model).__name__} is no EmbeddingModel: only models with embeddings are exported"
        )
    if model.embeddings.is_sharded:
        raise ValueError("the model is sharded: save it, and export what ncf.load reads")
    if model.embeddings.is_meta:
        raise ValueError('the model is on the meta device and its tables have no values: load it on "cpu"')
    return model


def _copied(module: Any, copies: dict[nn.Module, nn.Module] | None = None) -> Any:
    """The modules copied, in evaluation mode; parameters are shared."""
    copies = {} if copies is None else copies
    if module not in copies:
        twin = copies[module] = copy.copy(module)
        twin.__dict__["_modules"] = {
            name: None if child is None else _copied(child, copies) for name, child in module._modules.items()
        }
        twin.training = False
    return copies[module]


def _program(model: EmbeddingModel) -> torch.export.ExportedProgram:
    scorer = _copied(model)
    # A subclass of the model's class, so that every parameter keeps its name.
    scorer.__class__ = type(type(model).__name__, (_Scores, type(model)), {})
    device = model.device
    users = torch.zeros(2, dtype=torch.int64, device=device)
    candidates = torch.zeros(2, 3, dtype=torch.int64, device=device)
    sizes = {"users": torch.export.Dim("U", min=1), "candidates": torch.export.Dim("C", min=1)}
    with torch.no_grad(), full_precision(device), suppress_warnings():
        return torch.export.export(
            scorer,
            (users, candidates),
            dynamic_shapes=({0: sizes["users"]}, {0: sizes["users"], 1: sizes["candidates"]}),
        )


class _Scores(nn.Module):
    """Scores in place of logits: padding is known, and a negative id never reads a table from its end."""

    def forward(self, users: Tensor, candidates: Tensor) -> Tensor:
        scores: Tensor = super().forward(users.clamp(min=0), candidates.clamp(min=0))  # [U, C]
        return scores.masked_fill(users[:, None] < 0, math.nan).masked_fill(candidates < 0, -math.inf)


def _compare(name: str, model: EmbeddingModel, scores: Any) -> None:
    """Compare scores of other sizes than those that were traced, one user among them, with the model's own."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((1, 1), (7, 33)):
        users = torch.randint(
            model.num_users, shape[:1], generator=generator, dtype=torch.int64, device="cpu"
        )
        candidates = torch.randint(
            -1, model.num_items, shape, generator=generator, dtype=torch.int64, device="cpu"
        )
        found = scores(users.to(model.device), candidates.to(model.device)).to(model.device)
        expected = model.score(users, candidates)
        # A share of the largest score, or of 1.
        tolerance = 1e-5 if found.dtype in (torch.float32, torch.float64) else 0.05
        largest = expected.masked_fill(~expected.isfinite(), 0.0).abs().max().clamp(min=1.0)
        if not torch.allclose(found.to(expected.dtype), expected, rtol=0, atol=tolerance * float(largest)):
            raise ValueError(
                f"{name} has other scores than the model: please report it with the model's class"
            )
