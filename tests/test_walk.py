"""The walk of ``users`` through the packages, as the page on design has it."""

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import ncf
from ncf import ItemPop, NeuMF, evaluate, leave_one_out, recommend, sample_candidates
from ncf.data import Interactions

ROOT = Path(ncf.__file__).parent


@cache
def package_of(file: str) -> str | None:
    path = Path(file)
    return path.relative_to(ROOT).parts[0] if path.is_relative_to(ROOT) else None


def descents(call: Callable[[], Any]) -> set[tuple[str, ...]]:
    """Each chain of packages that stood on the stack during a call, from the caller's down."""
    seen: set[tuple[str, ...]] = set()

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or package_of(frame.f_code.co_filename) is None:
            return
        chain: list[str] = []
        above: FrameType | None = frame
        while above is not None:
            package = package_of(above.f_code.co_filename)
            if package is not None and chain[-1:] != [package]:
                chain.append(package)
            above = above.f_back
        seen.add(tuple(reversed(chain)))

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        call()
    finally:
        sys.setprofile(before)
    return seen


def test_users_go_down_through_the_packages_and_never_back_into_one(tmp_path):
    rows = [f"{user},{(user * 7 + step * 3) % 60},{step}" for user in range(40) for step in range(8)]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,timestamp", *rows]))
    split = leave_one_out(Interactions.from_files(tmp_path / "log.csv"))
    candidates = sample_candidates(split, num_negatives=20)
    neural = NeuMF(split.train.num_users, split.train.num_items)
    neural.user_ids, neural.item_ids = split.train.user_ids, split.train.item_ids
    popular = ItemPop(split.train)
    evaluate(neural, candidates)  # imports what is imported late

    read = descents(
        lambda: sample_candidates(
            leave_one_out(Interactions.from_files(tmp_path / "log.csv")), num_negatives=20
        )
    )
    assert {chain for chain in read if "utils" not in chain} == {("data",)}
    for model in (neural, popular):
        evaluated = descents(lambda model=model: evaluate(model, candidates))
        answered = descents(lambda model=model: recommend(model, [0, 1], k=3, exclude=split.train))
        for first, chains in (("evaluation", evaluated), ("inference", answered)):
            assert (first, "models") in chains
            for chain in chains:
                assert chain[0] == first
                assert len(set(chain)) == len(chain) <= 8, chain
    assert ("evaluation", "models", "kernels") in descents(lambda: evaluate(neural, candidates))
    assert ("inference", "models", "kernels") in descents(lambda: recommend(neural, [0], k=3))
