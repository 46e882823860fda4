"""Is `ncf.fit` ever worse than the popularity list? Ten drawn data sets, from 100 to 100,000 users.

    python -m benchmarks.shapes

Every user likes four of forty groups of items, and takes nine of ten items from them; within a group, and for the
tenth item, popularity follows a power law. ``--only-popularity`` draws every item by popularity, so that nothing beats
that list. One interaction of each user is held out and ranked in the whole catalogue. It ends with exit code 1 where
`fit` is worse by more than a standard error.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

import ncf

SHAPES = (  # users, items, density
    (100, 100, 1e-1),
    (300, 1_000, 1e-2),
    (1_000, 300, 1e-1),
    (1_000, 3_000, 3e-3),
    (3_000, 1_000, 2e-2),
    (10_000, 2_000, 5e-3),
    (10_000, 20_000, 5e-4),
    (30_000, 10_000, 1e-3),
    (100_000, 5_000, 1e-3),
    (100_000, 40_000, 1e-4),
)
SHARE = 0.9


def draw(
    users: int,
    items: int,
    density: float,
    seed: int,
    *,
    groups: int = 40,
    liked: int = 4,
    share: float = SHARE,
    power: float = 0.8,
) -> ncf.Interactions:
    """Draw interactions of users who like some groups of items, and take a share of their items from them."""
    random = torch.Generator().manual_seed(seed)
    per_user = max(3, round(items * density))
    who = torch.arange(users).repeat_interleave(per_user)
    odds = 1 / torch.arange(1.0, items + 1) ** power
    odds = odds[torch.randperm(items, generator=random)]
    what = torch.multinomial(odds, len(who), replacement=True, generator=random)
    if share:
        group = torch.randint(groups, (items,), generator=random)
        own = torch.rand(users, groups, generator=random).argsort(dim=1)[:, :liked]
        asked = own.gather(1, torch.randint(liked, (users, per_user), generator=random)).view(-1)
        asked[torch.rand(len(who), generator=random) > share] = -1
        for number in range(groups):
            members, drawn = (group == number).nonzero()[:, 0], (asked == number).nonzero()[:, 0]
            if len(members) and len(drawn):
                within = torch.multinomial(odds[members], len(drawn), replacement=True, generator=random)
                what[drawn] = members[within]
    return ncf.Interactions.from_arrays(who, what)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="NeuMF")
    parser.add_argument("--only-popularity", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most-users", type=int, default=100_000, help="leave out larger shapes")
    options = parser.parse_args()
    worse = 0
    print(f"{'users':>7}  {'items':>6}  {'rows':>9}  {'ItemPop HR@10 / NDCG@10':>24}  {'fit':>13}  {'s':>5}")
    for users, items, density in SHAPES:
        if users > options.most_users:
            continue
        share = 0.0 if options.only_popularity else SHARE
        data = draw(users, items, density, options.seed, share=share)
        split = ncf.leave_one_out(data, validation=False)
        candidates = ncf.whole_catalogue(split)
        began = time.perf_counter()
        model = ncf.fit(split, options.model, seed=options.seed, progress=False)
        seconds = time.perf_counter() - began
        fitted, popular = (ncf.evaluate(it, candidates) for it in (model, ncf.ItemPop(split.train)))
        loss = popular.values("ndcg") - fitted.values("ndcg")
        below = float(loss.mean()) > float(loss.std()) / len(loss) ** 0.5
        worse += below
        print(
            f"{users:>7,}  {items:>6,}  {len(split.train):>9,}  {popular.hr:>15.3f} / {popular.ndcg:.3f}  "
            f"{fitted.hr:.3f} / {fitted.ndcg:.3f}  {seconds:>5.0f}{'  worse' * below}",
            flush=True,
        )
    return int(worse > 0)


if __name__ == "__main__":
    sys.exit(main())
