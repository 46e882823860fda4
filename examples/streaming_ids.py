"""A stream of ids that are never seen as a whole: tables of a fixed size, whose rows go to the ids of late.

    python examples/streaming_ids.py

TorchRec's managed collision modules give each raw id, any number of 62 bits, a row of its own (zero-collision
hashing), and take rows back from ids that have not come for a while. Ids that wait for a row share the last one, which
so becomes the row of everything unknown. Beside it is plain hashing, where ids collide for good.
"""

import argparse
import logging

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.modules.mc_embedding_modules import (
    ManagedCollisionEmbeddingBagCollection,
)
from torchrec.modules.mc_modules import (
    LRU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)

logging.getLogger("torch.fx._symbolic_trace").setLevel(
    logging.ERROR
)  # advice of PyTorch's to TorchRec

SIDES = "user", "item"
RAW = torch.randint(0, 2**61, (10_000,), generator=torch.Generator().manual_seed(1))


class StreamingGMF(nn.Module):
    """The weighted dot product of He et al., section 3.2, over tables of a fixed number of rows."""

    def __init__(self, rows: int, factors: int, every: int, managed: bool) -> None:
        super().__init__()
        configs = [
            EmbeddingBagConfig(
                name=side,
                embedding_dim=factors,
                num_embeddings=rows,
                feature_names=[side],
                init_fn=lambda weight: nn.init.normal_(weight, std=0.1),
            )
            for side in SIDES
        ]
        self.rows = rows
        self.tables: nn.Module = EmbeddingBagCollection(
            configs, device=torch.device("cpu")
        )
        if managed:
            modules = {
                side: MCHManagedCollisionModule(
                    zch_size=rows,
                    device=torch.device("cpu"),
                    eviction_policy=LRU_EvictionPolicy(),
                    eviction_interval=every,
                    input_hash_size=2**62,
                )
                for side in SIDES
            }
            collisions = ManagedCollisionCollection(modules, configs)
            self.tables = ManagedCollisionEmbeddingBagCollection(
                self.tables, collisions, return_remapped_features=True
            )
        self.managed = managed
        self.head = nn.Linear(factors, 1)

    def forward(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of pairs ``[B]``, and the rows that the users and the items have, ``[2, B]``."""
        ids = torch.cat([users, items])
        if not self.managed:
            ids = ids % self.rows
        keyed = KeyedJaggedTensor(
            list(SIDES), ids, lengths=torch.ones_like(ids, dtype=torch.int32)
        )
        found = self.tables(keyed)
        pooled, remapped = found if self.managed else (found, keyed)
        product = pooled["user"] * pooled["item"]
        return self.head(product).squeeze(-1), remapped.values().view(2, -1)


def batch(
    day: int, size: int, random: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of a day: a tenth of the users and items is new each day; users like the items of their own parity."""
    users = torch.randint(day * 30, day * 30 + 300, (size,), generator=random)
    items = torch.randint(day * 20, day * 20 + 200, (size,), generator=random)
    liked = (users + items) % 2 == 0
    return RAW[users], RAW[items], liked.float()


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--days", type=int, default=10)
    parser.add_argument("--rows", type=int, default=400)
    args = parser.parse_args()
    if not 1 <= args.days <= 300:
        parser.error("--days must lie between 1 and 300")
    print(f"{'':10} {'accuracy':>9} {'pairs of ids that share a row':>31}")
    for managed in (True, False):
        torch.manual_seed(0)
        random = torch.Generator().manual_seed(0)
        model = StreamingGMF(rows=args.rows, factors=16, every=5, managed=managed)
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
        right: list[Tensor] = []
        for day in range(args.days):
            rows_of: dict[int, set[int]] = {}
            for step in range(20):
                users, items, liked = batch(day, 1000, random)
                logits, rows = model(users, items)
                if step >= 15:  # before the step that learns from them
                    right.append(((logits > 0) == liked.bool()).float().mean())
                if step == 19:
                    for raw, row in zip(
                        users.tolist(), rows[0].tolist(), strict=True
                    ):
                        rows_of.setdefault(row, set()).add(raw)
                optimizer.zero_grad()
                nn.functional.binary_cross_entropy_with_logits(
                    logits, liked
                ).backward()
                optimizer.step()
        shared = sum(len(ids) * (len(ids) - 1) // 2 for ids in rows_of.values())
        name = "managed" if managed else "hashed"
        print(f"{name:10} {torch.stack(right).mean():9.3f} {shared:31}")


if __name__ == "__main__":
    main()
