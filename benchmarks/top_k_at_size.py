"""Top-10 of all users, beside the ALS of `implicit` at the same width, at MovieLens-20M's shape.

    pip install implicit
    python -m benchmarks.top_k_at_size --users 20000

The same random factors are in all models, and each user's seen items are left out. Rates are per CPU second, which a
machine that others use does not change as much as wall time. Some lists are compared with plain ones.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncf import GMF, MatrixFactorization
from ncf.kernels.reference import largest_k

K = 10


def timed(work: Any) -> tuple[Any, float, float]:
    """Result, seconds and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def seen_items(users: int, items: int, each: int) -> tuple[Tensor, Tensor]:
    """So many random items of each user, ascending: offsets and items."""
    random = torch.Generator().manual_seed(1)
    drawn = torch.randint(items // each, (users, each), generator=random)
    listed = drawn + torch.arange(each) * (items // each)
    return torch.arange(users + 1) * each, listed.flatten()


def implicit_lists(rows: Tensor, columns: Tensor, seen: tuple[Tensor, Tensor], threads: int) -> Any:
    """Lists of `implicit`'s ALS with these factors, by its fastest call: all users at once."""
    from implicit.cpu.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix

    model = AlternatingLeastSquares(factors=rows.shape[1], num_threads=threads)
    model.user_factors, model.item_factors = rows.numpy(), columns.numpy()
    data = np.ones(len(seen[1]), np.float32)
    matrix = csr_matrix((data, seen[1].numpy(), seen[0].numpy()), shape=(len(rows), len(columns)))
    return timed(lambda: model.recommend(np.arange(len(rows)), matrix, N=K, filter_already_liked_items=True))


def main() -> None:
    """Print rates and their ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=138_493)
    parser.add_argument("--items", type=int, default=26_744)
    parser.add_argument("--factors", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    torch.set_num_threads(options.threads)
    seen = seen_items(options.users, options.items, 144)
    users, items = torch.arange(options.users), torch.arange(options.items)
    for factors in options.factors:
        random = torch.Generator().manual_seed(0)
        rows = torch.randn(options.users, factors, generator=random)
        columns = torch.randn(options.items, factors, generator=random)
        _, wall, cpu = implicit_lists(rows, columns, seen, options.threads)
        theirs = options.users / cpu
        print(f"{factors} factors, {options.users} users, {options.items} items, {options.threads} thread(s)")
        print(
            f"  implicit ALS         {options.users / wall:8,.0f} users/s  {theirs:8,.0f} a CPU second",
            flush=True,
        )
        for model in (
            GMF(options.users, options.items, factors=factors),
            MatrixFactorization(options.users, options.items, factors=factors),
        ):
            with torch.no_grad():
                for table in model.embeddings.tables:
                    of = rows if table.side == "user" else columns
                    model.embeddings.weight(table.name)[:, :factors].copy_(of)
            scorer = model.scorer()
            (scores, listed), wall, cpu = timed(lambda s=scorer: s.top_k(users, K, items, seen))
            rate = options.users / cpu
            print(
                f"  {type(model).__name__:20} {options.users / wall:8,.0f} users/s  {rate:8,.0f} a CPU second, "
                f"{rate / theirs:4.1f} x implicit",
                flush=True,
            )
            some = users[:: max(1, options.users // 500)]
            plain = scorer.score(some, items.expand(len(some), -1))
            for row, user in zip(plain, some.tolist(), strict=True):
                row[seen[1][seen[0][user] : seen[0][user + 1]]] = -torch.inf
            expected = largest_k(plain, items, K)
            equal = torch.equal(expected[1], listed[some]) and torch.equal(expected[0], scores[some])
            print(
                f"  lists of {len(some)} users are {'equal' if equal else 'NOT EQUAL'} to the plain ones",
                flush=True,
            )


if __name__ == "__main__":
    main()
