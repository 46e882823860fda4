from __future__ import annotations

from pathlib import Path

import torch

from ncf.distributed import checkpoint_planner as pieces
from ncf.distributed.checkpoint import Checkpoints


def test_a_tensor_of_many_pieces(tmp_path: Path) -> None:
    table = torch.randn(3 * 2**17 + 1, 20, dtype=torch.float32)  # 31 MB: two pieces, the last one short
    Checkpoints(tmp_path).save({"table": table}, {}, step=1)
    checkpoint = Checkpoints(tmp_path).latest()
    assert checkpoint is not None
    read = torch.empty_like(table)
    checkpoint.read({"table": read})
    assert torch.equal(read, table)
    chunks = pieces.stored(checkpoint.folder)["table"].chunks
    assert len(chunks) == 2
    assert all(4 * 20 * chunk.sizes[0] <= 2**24 for chunk in chunks)
