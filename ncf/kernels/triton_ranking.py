# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Ranks and the best items, counted and selected beside the scores: no table of scores is written.

A program takes a few users. Its first tile of pairs are the held-out items, whose scores stay in registers; the code
that scores them is the code that scores the others, so that equal rows have equal scores to the bit. A tile leaves
its counts, or the keys of its best pairs, and its scores are gone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ncf.kernels.scoring_tables import ScoringTables, check_pairs
from ncf.kernels.triton_launch import Launch, padded, resident_programs
from ncf.kernels.triton_scoring import _scores, network_arguments

_USERS = 8  # of a program: with 16 the one for lists spills, as docs/kernels.md has it
_NO_RANK = tl.constexpr(-(1 << 40))  # below any sum of counts
_NO_KEY = tl.constexpr(-(1 << 63))


@triton.jit
def _listed(items, wanted, listed, low, high):
    """Return whether each item, ``[BLOCK]``, is in an ascending list, ``listed[low:high]``; looked up where wanted."""
    place = tl.zeros_like(items) + low
    wanted = wanted & (place < high)
    size = high - low
    while size > 1:
        half = size // 2
        value = tl.load(listed + place + half - 1, mask=wanted, other=0)
        place = tl.where(value < items, place + half, place)
        size -= half
    return wanted & (tl.load(listed + place, mask=wanted, other=-1) == items)


@triton.jit
def _known_scores(
    users, items, inside, known_users, known_items, tables, strides, layers, head, bias,
    WIDTHS: tl.constexpr, PADDED: tl.constexpr, CHUNK: tl.constexpr,
    FACTORS: tl.constexpr, FACTOR_CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    ROUND: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Scores of a tile, ``[BLOCK]``; NaN where an id is unknown."""
    known = inside & (users >= 0) & (users < known_users) & (items >= 0) & (items < known_items)
    score = _scores(
        users, items, known, known, tables, strides, layers, head, bias,
        WIDTHS, PADDED, CHUNK, FACTORS, FACTOR_CHUNK, BLOCK, ROUND, DOT, PRECISION,
    )  # fmt: skip
    return tl.where(inside & (known == 0), float("nan"), score)


# A size that is another number is no other kernel.
@triton.jit(do_not_specialize=["row_stride", "num_users", "num_candidates", "known_users", "known_items"])
def _rank_lists(
    ranks, counts, users, positives, candidates, row_stride, num_users, num_candidates, known_users, known_items,
    tables, strides, layers, head, bias,
    WIDTHS: tl.constexpr, PADDED: tl.constexpr, CHUNK: tl.constexpr,
    FACTORS: tl.constexpr, FACTOR_CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    ROUND: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, USERS: tl.constexpr,
):  # fmt: skip
    """Ranks and numbers of distinct candidates, ``[U]``; each user's candidates ascend."""
    first = tl.cast(tl.program_id(0), tl.int64) * USERS
    here = tl.minimum(num_users - first, USERS).to(tl.int32)
    num_pairs = here * num_candidates
    group, lanes = tl.arange(0, USERS), tl.arange(0, BLOCK)
    width = tl.maximum(num_candidates, 1)
    own = tl.zeros([USERS], tl.float32)
    wins, distinct, wrong = (
        tl.zeros([USERS], tl.int32),
        tl.zeros([USERS], tl.int32),
        tl.zeros([USERS], tl.int32),
    )
    for step in range(1 + tl.cdiv(num_pairs, BLOCK)):
        of_own = (lanes >= 0) & (step == 0)
        pairs = (step - 1) * BLOCK + lanes
        owner = tl.where(of_own, lanes, pairs // width)  # [BLOCK], the user's place in the program
        inside = tl.where(of_own, lanes < here, pairs < num_pairs)
        among = inside & (of_own == 0)
        user = tl.load(users + first + owner, mask=inside, other=0)
        positive = tl.load(positives + first + owner, mask=inside, other=0)
        place = pairs - owner * width
        row = candidates + (first + owner) * row_stride
        listed = tl.load(row + place, mask=among, other=-1)
        before = tl.load(row + place - 1, mask=among & (place > 0), other=-1)
        item = tl.where(of_own, positive, listed)
        real = inside & (of_own | (listed >= 0))
        counted = among & real & (listed != before) & (listed != positive)
        score = _known_scores(
            user, item, real, known_users, known_items, tables, strides, layers, head, bias,
            WIDTHS, PADDED, CHUNK, FACTORS, FACTOR_CHUNK, BLOCK, ROUND, DOT, PRECISION,
        )  # fmt: skip
        mine = (owner[:, None] == group[None, :]) & real[:, None]  # [BLOCK, USERS]
        if step == 0:
            own = tl.sum(tl.where(mine, score[:, None], 0.0), 0)
        least = tl.sum(tl.where(mine, own[None, :], 0.0), 1)  # [BLOCK]
        higher = counted & ((score < least) == 0)
        distinct += tl.sum((mine & counted[:, None]).to(tl.int32), 0)
        wins += tl.sum((mine & higher[:, None]).to(tl.int32), 0)
        wrong += tl.sum((mine & (score != score)[:, None]).to(tl.int32), 0)
    valid = group < here
    tl.store(ranks + first + group, tl.where(wrong > 0, _NO_RANK, wins.to(tl.int64)), mask=valid)
    tl.store(counts + first + group, 1 + distinct.to(tl.int64), mask=valid)


# A size that is another number is no other kernel.
@triton.jit(do_not_specialize=["num_users", "num_items", "tiles", "known_users", "known_items"])
def _rank_catalogue(
    ranks, users, positives, num_users, num_items, tiles, seen_offsets, seen_items, known_users, known_items,
    tables, strides, layers, head, bias,
    WIDTHS: tl.constexpr, PADDED: tl.constexpr, CHUNK: tl.constexpr,
    FACTORS: tl.constexpr, FACTOR_CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    ROUND: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, USERS: tl.constexpr,
):  # fmt: skip
    """Counts ``[parts, U]`` of the items of a part of the catalogue that score as high as the held-out one."""
    first = tl.cast(tl.program_id(0), tl.int64) * USERS
    here = tl.minimum(num_users - first, USERS).to(tl.int32)
    group, lanes = tl.arange(0, USERS), tl.arange(0, BLOCK)
    first_tile = tl.program_id(1) * tiles
    last_tile = tl.minimum(first_tile + tiles, tl.cdiv(num_items, BLOCK))
    own = tl.zeros([USERS], tl.float32)
    wins, wrong = tl.zeros([USERS], tl.int32), tl.zeros([USERS], tl.int32)
    # The users take turns with one block of items, whose rows stay in the cache closest to the processor.
    for step in range(1 + here * (last_tile - first_tile)):
        of_own = (lanes >= 0) & (step == 0)
        turn = (step + here - 1) % here
        items = (first_tile + (step - 1) // here) * BLOCK + lanes
        owner = tl.where(of_own, lanes, turn)
        inside = tl.where(of_own, lanes < here, items < num_items)
        user = tl.load(users + first + owner, mask=inside, other=0)
        positive = tl.load(positives + first + owner, mask=inside, other=0)
        item = tl.where(of_own, positive, items)
        score = _known_scores(
            user, item, inside, known_users, known_items, tables, strides, layers, head, bias,
            WIDTHS, PADDED, CHUNK, FACTORS, FACTOR_CHUNK, BLOCK, ROUND, DOT, PRECISION,
        )  # fmt: skip
        if step == 0:
            mine = (lanes[:, None] == group[None, :]) & inside[:, None]
            own = tl.sum(tl.where(mine, score[:, None], 0.0), 0)
            wrong += (own != own).to(tl.int32)
        else:
            least = tl.sum(tl.where(group == turn, own, 0.0), 0)
            higher = inside & ((score < least) == 0) & (item != positive)
            if tl.sum(higher.to(tl.int32), 0) > 0:
                low, high = tl.load(seen_offsets + first + turn), tl.load(seen_offsets + first + turn + 1)
                higher = higher & (_listed(item, higher, seen_items, low, high) == 0)
                wins += tl.where(group == turn, tl.sum(higher.to(tl.int32), 0), 0)
                wrong += tl.where(group == turn, tl.sum((higher & (score != score)).to(tl.int32), 0), 0)
    at = tl.cast(tl.program_id(1), tl.int64) * num_users + first + group
    tl.store(ranks + at, tl.where(wrong > 0, _NO_RANK, wins.to(tl.int64)), mask=group < here)


# A size that is another number is no other kernel.
@triton.jit(do_not_specialize=["num_users", "num_places", "tiles", "known_users", "known_items"])
def _select(
    keys, wrong_at, users, items, num_users, num_places, tiles, offsets, left_out, known_users, known_items,
    tables, strides, layers, head, bias,
    WIDTHS: tl.constexpr, PADDED: tl.constexpr, CHUNK: tl.constexpr,
    FACTORS: tl.constexpr, FACTOR_CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    ROUND: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, USERS: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """Keys of the best of a part of the items, ``[U, parts, KEPT]``: of equal scores, the earlier item's is higher."""
    first = tl.cast(tl.program_id(0), tl.int64) * USERS
    here = tl.minimum(num_users - first, USERS).to(tl.int32)
    group, lanes = tl.arange(0, USERS), tl.arange(0, BLOCK)
    first_tile = tl.program_id(1) * tiles
    last_tile = tl.minimum(first_tile + tiles, tl.cdiv(num_places, BLOCK))
    best = tl.full([USERS, KEPT], _NO_KEY, tl.int64)
    lowest = tl.full([USERS], _NO_KEY, tl.int64)
    wrong = tl.zeros([USERS], tl.int32)
    for step in range(here * (last_tile - first_tile)):
        turn = step % here
        places = (first_tile + step // here) * BLOCK + lanes
        inside = places < num_places
        item = tl.load(items + places, mask=inside, other=0)
        user = tl.load(users + first + turn + tl.zeros_like(lanes))
        score = _known_scores(
            user, item, inside, known_users, known_items, tables, strides, layers, head, bias,
            WIDTHS, PADDED, CHUNK, FACTORS, FACTOR_CHUNK, BLOCK, ROUND, DOT, PRECISION,
        )  # fmt: skip
        # Whole numbers in the order of the scores, then of the places, the first one highest; -0 is 0.
        bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)
        bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        key = bits.to(tl.int64) * 4294967296 + (0x7FFFFFFF - places)
        mine = group == turn
        candidate = inside & ((key > tl.max(tl.where(mine, lowest, _NO_KEY), 0)) | (score != score))
        if tl.sum(candidate.to(tl.int32), 0) > 0:
            if left_out is not None:
                low, high = tl.load(offsets + first + turn), tl.load(offsets + first + turn + 1)
                candidate = candidate & (_listed(item, candidate, left_out, low, high) == 0)
            wrong += tl.where(mine, tl.sum((candidate & (score != score)).to(tl.int32), 0), 0)
            found = tl.topk(tl.where(candidate, key, _NO_KEY), KEPT)  # descending
            held = tl.max(tl.where(mine[:, None], best, _NO_KEY), 0)
            held = tl.sort(tl.maximum(held, tl.flip(found, 0)), descending=True)  # the best of both
            best = tl.where(mine[:, None], held[None, :], best)
            lowest = tl.where(mine, tl.min(held, 0), lowest)
    parts = tl.num_programs(1)
    row = (first + group) * parts + tl.program_id(1)
    at = row[:, None] * KEPT + tl.arange(0, KEPT)[None, :]
    tl.store(keys + at, best, mask=(group < here)[:, None])
    tl.store(wrong_at + row, wrong, mask=group < here)


def rank_launch(
    tables: ScoringTables, users: Tensor, positives: Tensor, candidates: Tensor, ranks: Tensor, counts: Tensor
) -> Launch:
    """Return the launch that ranks held-out items among lists of candidates.

    Args:
        tables: for which `ncf.kernels.triton_scoring.fits` holds, with rows on both sides.
        users: ``[U]``, int64.
        positives: ``[U]``, int64.
        candidates: ``[U, C]``, int64, ascending within a user; a negative one is padding.
        ranks: ``[U]``, int64, to be filled; below zero for an unknown id or NaN.
        counts: distinct candidates with the held-out item, ``[U]``, int64, to be filled.
    """
    arguments = network_arguments(tables) | {
        "ranks": ranks,
        "counts": counts,
        "users": users.contiguous(),
        "positives": positives.contiguous(),
        "candidates": candidates,
        "row_stride": candidates.stride(0),
        "num_users": len(users),
        "num_candidates": candidates.shape[1],
        "known_users": tables.num_users,
        "known_items": tables.num_items,
        "USERS": _USERS,
    }
    return Launch(_rank_lists, (triton.cdiv(len(users), _USERS),), arguments)


def rank_triton(
    tables: ScoringTables, users: Tensor, positives: Tensor, negatives: Tensor
) -> tuple[Tensor, Tensor]:
    """Rank each user's held-out item among its negatives: ties lose, an item counts once.

    Args:
        tables: see `rank_launch`.
        users: ``[U]``, int64.
        positives: ``[U]``, int64.
        negatives: ``[U, C]``, int64; a negative one is padding.

    Returns:
        Ranks and numbers of distinct candidates, both ``[U]``, int64. A rank below zero means an unknown id or a
        score that is NaN.

    Example::

        >>> import torch
        >>> from ncf.kernels import ScoringTables
        >>> from ncf.kernels.triton_ranking import rank_triton
        >>> tables = ScoringTables(user_bias=torch.ones(2), item_bias=torch.ones(3), bias=torch.zeros(1))
        >>> nobody = torch.empty(0, dtype=torch.int64)  # no user: no GPU is needed
        >>> rank_triton(tables, nobody, nobody, nobody.view(0, 5))
        (tensor([], dtype=torch.int64), tensor([], dtype=torch.int64))
    """
    check_pairs(users, positives[:, None], tables.device, "positives")
    check_pairs(users, negatives, tables.device, "negatives")
    shared = len(negatives) > 1 and negatives.stride(0) == 0
    ordered = (negatives[:1] if shared else negatives).sort(dim=1).values.expand(len(users), -1)
    ranks, counts = torch.empty_like(users), torch.empty_like(users)
    rank_launch(tables, users, positives, ordered, ranks, counts).run()
    return ranks, counts


def catalogue_launch(
    tables: ScoringTables,
    users: Tensor,
    positives: Tensor,
    num_items: int,
    seen_offsets: Tensor,
    seen_items: Tensor,
) -> tuple[Launch, Tensor]:
    """Return the launch that counts in the catalogue, and what it fills: ``[parts, U]``, to be added up.

    Args:
        tables: see `rank_launch`.
        users: ``[U]``, int64.
        positives: ``[U]``, int64.
        num_items: how many items are ranked.
        seen_offsets: ``[U + 1]``, int64.
        seen_items: items to leave out, int64, ascending within a user.
    """
    arguments = network_arguments(tables)
    groups, tiles, parts = _shares(tables, len(users), _USERS, num_items, arguments["BLOCK"])
    ranks = users.new_empty((parts, len(users)), dtype=torch.int64)
    arguments |= {
        "ranks": ranks,
        "users": users.contiguous(),
        "positives": positives.contiguous(),
        "num_users": len(users),
        "num_items": num_items,
        "tiles": tiles,
        "seen_offsets": seen_offsets.contiguous(),
        "seen_items": seen_items.contiguous(),
        "known_users": tables.num_users,
        "known_items": tables.num_items,
        "USERS": _USERS,
    }
    return Launch(_rank_catalogue, (groups, parts), arguments), ranks


def rank_catalogue_triton(
    tables: ScoringTables,
    users: Tensor,
    positives: Tensor,
    num_items: int,
    seen_offsets: Tensor,
    seen_items: Tensor,
) -> Tensor:
    """Rank each user's held-out item among the first ``num_items`` items, less those that the user has seen.

    Args:
        tables: see `rank_launch`.
        users: ``[U]``, int64.
        positives: ``[U]``, int64.
        num_items: how many items are ranked.
        seen_offsets: where each user's items begin in ``seen_items``, ``[U + 1]``, int64.
        seen_items: items to leave out, int64, ascending within a user, without the held-out one.

    Returns:
        Ranks, ``[U]``, int64; see `rank_triton`.
    """
    check_pairs(users, positives[:, None], tables.device, "positives")
    launch, counts = catalogue_launch(tables, users, positives, num_items, seen_offsets, seen_items)
    launch.run()
    return counts.sum(0)


def most_selected(tables: ScoringTables) -> int:
    """Return the longest list that `top_k_triton` selects, a tile's pairs.

    Example::

        >>> from ncf import MLP
        >>> from ncf.kernels.triton_ranking import most_selected
        >>> most_selected(MLP(num_users=2, num_items=3, layers=(64, 32, 16)).scoring_tables())
        128
    """
    most: int = network_arguments(tables)["BLOCK"]
    return most


def select_launch(
    tables: ScoringTables, users: Tensor, k: int, items: Tensor, left_out: tuple[Tensor, Tensor] | None
) -> tuple[Launch, Tensor, Tensor]:
    """Return the launch that selects, and what it fills: keys ``[U, parts, kept]``, numbers of NaN ``[U, parts]``.

    Args:
        tables: see `rank_launch`.
        users: ``[U]``, int64.
        k: length of a list, at most `most_selected`.
        items: what may be selected, ``[C]``, int64, ascending.
        left_out: offsets ``[U + 1]`` and items that a user is not offered, ascending within a user.
    """
    arguments = network_arguments(tables)
    groups, tiles, parts = _shares(tables, len(users), _USERS, len(items), arguments["BLOCK"])
    kept = padded(k)
    keys = users.new_empty((len(users), parts, kept), dtype=torch.int64)
    wrong = users.new_empty((len(users), parts), dtype=torch.int32)
    offsets, hidden = (None, None) if left_out is None else (each.contiguous() for each in left_out)
    arguments |= {
        "keys": keys,
        "wrong_at": wrong,
        "users": users.contiguous(),
        "items": items.contiguous(),
        "num_users": len(users),
        "num_places": len(items),
        "tiles": tiles,
        "offsets": offsets,
        "left_out": hidden,
        "known_users": tables.num_users,
        "known_items": tables.num_items,
        "USERS": _USERS,
        "KEPT": kept,
    }
    return Launch(_select, (groups, parts), arguments), keys, wrong


def top_k_triton(
    tables: ScoringTables, users: Tensor, k: int, items: Tensor, left_out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Select the best items of each user; of equal scores the item that comes first.

    Args:
        tables: see `rank_launch`.
        users: ``[U]``, int64.
        k: length of a list, at most `most_selected`.
        items: what may be selected, ``[C]``, int64, ascending.
        left_out: offsets ``[U + 1]`` and items that a user is not offered, ascending within a user.

    Returns:
        Scores, ``[U, k]``, fp32, and items, ``[U, k]``, int64; past the end of a list ``-inf`` and -1. Then one element
        that is true if an id is unknown or a score NaN.
    """
    check_pairs(users, items, tables.device, "items")
    launch, keys, wrong = select_launch(tables, users, k, items, left_out)
    launch.run()
    best = keys.flatten(1).topk(k, dim=1).values  # no two keys of a user are equal
    present = best != _NO_KEY.value
    bits = best >> 32
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int32)
    places = torch.where(present, 0x7FFFFFFF - (best & 0xFFFFFFFF), 0)
    selected = items[places].masked_fill(~present, -1) if len(items) else torch.full_like(places, -1)
    scores = bits.view(torch.float32).masked_fill(~present, -torch.inf)
    return scores, selected, wrong.any()


def _shares(tables: ScoringTables, users: int, at_once: int, items: int, block: int) -> tuple[int, int, int]:
    """Groups of users, tiles of items in a part, and parts: programs enough for the device."""
    groups, tiles = triton.cdiv(users, at_once), max(1, triton.cdiv(items, block))
    wanted = resident_programs(tables.device, groups * tiles)
    in_part = triton.cdiv(tiles, max(1, min(tiles, wanted // max(1, groups))))
    return groups, in_part, triton.cdiv(tiles, in_part)
