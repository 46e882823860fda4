"""Host side of the Triton kernels: a launch that can be run or compiled, and its sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

_DOT_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
_SMALLEST_DOT = 16  # tensor cores multiply blocks of at least 16 × 16


@dataclass(frozen=True)
class Launch:
    """A kernel, its grid and its arguments: run it, or compile it ahead of time without a device.

    Args:
        kernel: what ``triton.jit`` returned.
        grid: number of programs in each direction; with none in one of them nothing runs.
        arguments: by name, with the compile-time ones and options such as ``num_warps``.

    Example::

        >>> import torch
        >>> from ncf.kernels import ScoringTables
        >>> from ncf.kernels.triton_scoring import scoring_launch
        >>> tables = ScoringTables(item_bias=torch.ones(1000), bias=torch.zeros(1))
        >>> users, candidates = torch.arange(40), torch.arange(1000)
        >>> launch = scoring_launch(tables, users, candidates, torch.empty(40, 1000))
        >>> launch.grid  # by 128 items and 16 users
        (8, 3)
        >>> launch.arguments["num_candidates"], launch.arguments["num_warps"]
        (1000, 4)
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]

    def run(self) -> None:
        """Start the kernel on the current stream of the tensors' device; while a graph is traced, put it there."""
        if all(self.grid):
            kernel = wrap_triton(self.kernel)
            # In a graph the compiler has its own default, which is the same.
            options = {"enable_fp_fusion": True} if kernel is self.kernel else {}
            kernel[self.grid](**self.arguments, **options)

    def compile(self) -> Any:
        """Compile for Triton's active target, which need not be a device of this machine."""
        return self.kernel.warmup(grid=self.grid, **self.arguments, enable_fp_fusion=True)


def padded(width: int, smallest: int = _SMALLEST_DOT) -> int:
    """The power of two that holds a width: blocks in registers have no other sizes.

    Example::

        >>> from ncf.kernels.triton_launch import padded
        >>> padded(33), padded(3), padded(3, smallest=1)
        (64, 16, 4)
    """
    return max(smallest, int(triton.next_power_of_2(width)))


def dot_types(dtype: torch.dtype) -> dict[str, Any]:
    """The type to which operands of a product are rounded, and the one in which it is carried out.

    The two differ in Triton's interpreter alone, which multiplies the bit patterns of bf16. A product of two
    bf16 numbers is exact in fp32, so that multiplying there what was rounded gives the same sums.

    Example::

        >>> import torch
        >>> from ncf.kernels.triton_launch import dot_types
        >>> {name: str(dtype) for name, dtype in dot_types(torch.float16).items()}
        {'ROUND': 'fp16', 'DOT': 'fp16'}
    """
    rounded = _DOT_TYPES[dtype]
    interpreted = triton.knobs.runtime.interpret and rounded == tl.bfloat16
    return {"ROUND": rounded, "DOT": tl.float32 if interpreted else rounded}


def dot_precision() -> str:
    """Return the mode of fp32 products on tensor cores, by `torch.set_float32_matmul_precision`.

    ``"highest"``, torch's default: three tf32 products, with an error near fp32's. Else one.

    Example::

        >>> from unittest import mock
        >>> from ncf.kernels.triton_launch import dot_precision
        >>> with mock.patch("torch.get_float32_matmul_precision", return_value="high"):
        ...     dot_precision()
        'tf32'
    """
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def resident_programs(device: torch.device, programs: int, per_processor: int = 4) -> int:
    """Return the number of programs to start when each takes several tiles in turn and keeps the weights.

    Example::

        >>> import torch
        >>> from ncf.kernels.triton_launch import resident_programs
        >>> cpu = torch.device("cpu")  # counts as one processor
        >>> resident_programs(cpu, programs=1000), resident_programs(cpu, programs=3)
        (4, 3)
    """
    processors = (
        1 if device.type != "cuda" else torch.cuda.get_device_properties(device).multi_processor_count
    )
    return min(programs, processors * per_processor)
