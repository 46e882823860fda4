"""The parts of TorchRec that models use, or one error that says what to install."""

from __future__ import annotations

import logging
import warnings

_REMEDY = """\
TorchRec could not be loaded: {error}
Models train and rank in one process without it; tables spread over several processes need it.
The three packages must fit each other and the machine:
  without an NVIDIA GPU:  pip install -r requirements-cpu.txt && pip install --no-deps torchrec==1.8.0
                          (torch 2.13.0, fbgemm-gpu-cpu 1.8.0, torchrec 1.8.0)
  with an NVIDIA GPU:     pip install 'torch==2.13.*' 'fbgemm-gpu==1.8.*' 'torchrec==1.8.*'
Found: {found}"""


def _found() -> str:
    from importlib.metadata import PackageNotFoundError, version

    names = ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu")
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


_logging_before = logging.root.manager.disable
logging.disable(logging.INFO)  # FBGEMM names every library it loads
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # third parties' deprecations: nothing a user can act on
        import torch
        from torchrec.modules.embedding_configs import EmbeddingBagConfig
        from torchrec.modules.embedding_modules import EmbeddingBagCollection
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    torch.ops.fbgemm.asynchronous_complete_cumsum  # noqa: B018  absent when FBGEMM's library did not load
except (ImportError, OSError, AttributeError) as error:
    raise ImportError(_REMEDY.format(error=error, found=_found())) from error
finally:
    logging.disable(_logging_before)

__all__ = ["EmbeddingBagCollection", "EmbeddingBagConfig", "KeyedJaggedTensor"]
