"""Which epoch of a training is kept: what each is judged on, and by which metric."""

from __future__ import annotations

from typing import Literal

from ncf.data.candidates import Candidates, sample_candidates
from ncf.data.splitting import Split
from ncf.evaluation.evaluator import evaluate
from ncf.models.scoring import SupportsScore
from ncf.training.history import History

SELECTIONS = ("validation", "paper", "last")


def what_to_judge(split: Split, selection: str, *, seed: int = 0) -> Candidates | None:
    """The candidates that each epoch is judged on, if the caller brings none.

    Args:
        split: what `leave_one_out` returned.
        selection: ``"validation"``: of its validation part; ``"paper"``: of its test part; ``"last"``: none.
        seed: of the negatives.

    Returns:
        What `sample_candidates` draws, or ``None`` where nothing is judged.

    Raises:
        ValueError: if the split lacks that part.

    Example::

        >>> from ncf import Interactions, leave_one_out
        >>> from ncf.training.selection import what_to_judge
        >>> split = leave_one_out(Interactions.from_arrays([0, 0, 0, 1, 1, 1], [0, 1, 2, 1, 3, 4]))
        >>> what_to_judge(split, "paper").positives
        tensor([2, 4])
    """
    if selection == "last":
        return None
    part: Literal["test", "validation"] = "test" if selection == "paper" else "validation"
    if getattr(split, part) is None:
        raise ValueError(
            f'selection = "{selection}" needs the {part} part of the split, which is missing: '
            'split with leave_one_out(..., validation=True), or train with selection="last"'
        )
    return sample_candidates(split, part, seed=seed)


def judge(
    model: SupportsScore, candidates: Candidates | None, history: History, *, k: int = 10
) -> float | None:
    """Write the last epoch's metrics into the history.

    Args:
        model: as it is after the epoch.
        candidates: what to judge it on; ``None`` where nothing is judged.
        history: of the training; one entry is added to its ``hr`` and ``ndcg``.
        k: length of the list.

    Returns:
        The metric whose best epoch is kept: NDCG@k on the validation part and, as the paper did, HR@k on the
        test part; ``None`` where nothing is selected.

    Example::

        >>> from ncf import History, Interactions, ItemPop, leave_one_out, sample_candidates
        >>> from ncf.training.selection import judge
        >>> split = leave_one_out(Interactions.from_arrays([0, 0, 0, 1, 1, 1], [2, 1, 0, 3, 1, 2]))
        >>> history = History("paper")
        >>> judge(ItemPop(split.train), sample_candidates(split, num_negatives=1), history, k=1)
        0.5
        >>> history.hr
        [0.5]
    """
    if candidates is None:
        history.hr.append(None)
        history.ndcg.append(None)
        return None
    ranking = evaluate(model, candidates, k=k)
    history.hr.append(ranking.hr)
    history.ndcg.append(ranking.ndcg)
    if history.selection == "last":
        return None
    return ranking.hr if history.selection == "paper" else ranking.ndcg
