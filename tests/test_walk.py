"""The walk of ``users`` through packages and modules, as the page on design has it."""

import sys
from collections.abc import Callable
from functools import cache
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any

import ncf
from ncf import (
    Candidates,
    Interactions,
    ItemPop,
    NeuMF,
    Split,
    evaluate,
    leave_one_out,
    recommend,
    sample_candidates,
    whole_catalogue,
)

ROOT = Path(ncf.__file__).parent


@cache
def module_of(file: str) -> str | None:
    path = Path(file)
    return str(path.relative_to(ROOT).with_suffix("")) if path.is_relative_to(ROOT) else None


def packages_of(modules: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(package for package, _ in groupby(module.split("/")[0] for module in modules))


def descents(call: Callable[[], Any]) -> set[tuple[str, ...]]:
    """Each chain of modules that stood on the stack during a call, from the caller's down."""
    seen: set[tuple[str, ...]] = set()

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or module_of(frame.f_code.co_filename) is None:
            return
        chain: list[str] = []
        above: FrameType | None = frame
        while above is not None:
            module = module_of(above.f_code.co_filename)
            if module is not None and chain[-1:] != [module]:
                chain.append(module)
            above = above.f_back
        seen.add(tuple(reversed(chain)))

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        call()
    finally:
        sys.setprofile(before)
    return seen


def test_users_go_down_through_packages_and_modules_and_never_back_into_one(tmp_path):
    rows = [f"{user},{(user * 7 + step * 3) % 60},{step}" for user in range(40) for step in range(8)]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,timestamp", *rows]))

    def drawn() -> tuple[Split, Candidates]:
        split = leave_one_out(Interactions.from_files(tmp_path / "log.csv"))
        return split, sample_candidates(split, num_negatives=20)

    split, candidates = drawn()
    neural = NeuMF(split.train.num_users, split.train.num_items)
    neural.user_ids, neural.item_ids = split.train.user_ids, split.train.item_ids
    popular, catalogue = ItemPop(split.train), whole_catalogue(split)
    evaluate(neural, candidates)  # imports what is imported late

    read = descents(drawn)
    assert {packages_of(chain) for chain in read} == {("data",), ("data", "utils")}
    for model in (neural, popular):
        evaluated = descents(lambda model=model: evaluate(model, candidates))
        whole = descents(lambda model=model: evaluate(model, catalogue))
        answered = descents(lambda model=model: recommend(model, [0, 1], k=3, exclude=split.train))
        for first, chains in (("evaluation", evaluated | whole), ("inference", answered)):
            packages = {packages_of(chain) for chain in chains}
            assert (first, "models") in packages
            assert {chain[0] for chain in packages} == {first}
            assert (first, "models", "kernels") in packages
            for chain in [*packages, *chains, *read]:
                assert len(set(chain)) == len(chain) <= 8, chain
