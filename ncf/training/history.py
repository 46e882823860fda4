"""Record of a training run, epoch by epoch, and the evaluation that selects an epoch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal

from ncf.data.candidates import Candidates, Catalogue, sample_candidates, whole_catalogue
from ncf.data.interactions import Interactions
from ncf.data.splitting import Split
from ncf.evaluation.evaluator import evaluate
from ncf.models.scoring import SupportsScore
from ncf.utils.html import html_table

SELECTIONS = ("validation", "paper", "last")


@dataclass(repr=False)
class History:
    """One entry per epoch, and which epoch was kept.

    Args:
        selection: how the kept epoch was chosen; ``"paper"`` means on the test set, as the paper did.
        epochs: epoch numbers, from 1.
        loss: mean training loss of each epoch, over its samples.
        hr: HR@k after each epoch, ``None`` where the epoch was not evaluated.
        ndcg: NDCG@k after each epoch, likewise.
        seconds: training time of each epoch, sampling included, evaluation excluded.
        samples: training samples of each epoch, positives and negatives.
        best_epoch: the epoch whose weights the model has; 0 before the first has ended.
        interrupted: Ctrl-C ended the training. With ``selection="last"`` the weights are then of the step where it
            stopped, after ``best_epoch``.

    Example::

        >>> from ncf import History
        >>> History("last", epochs=[1], loss=[0.5], seconds=[2.0], samples=[1000], best_epoch=1).samples_per_second
        500.0
    """

    selection: str
    epochs: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    hr: list[float | None] = field(default_factory=list)
    ndcg: list[float | None] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    best_epoch: int = 0
    interrupted: bool = False

    def __len__(self) -> int:
        return len(self.epochs)

    def __str__(self) -> str:
        how = {
            "paper": " (chosen on the test part, as in the paper)",
            "validation": " (chosen on the validation part)",
        }
        text = f"{len(self)} epochs in {sum(self.seconds):.1f} s, kept epoch {self.best_epoch}"
        return text + how.get(self.selection, "") + (", interrupted" if self.interrupted else "")

    def __repr__(self) -> str:
        return f"History({self})"

    def _repr_html_(self) -> str:
        columns = (self.epochs, self.loss, self.hr, self.ndcg, self.seconds)
        rows = [
            [str(epoch), *("–" if value is None else f"{value:.4f}" for value in values)]
            for epoch, *values in zip(*columns, strict=False)
        ]
        return html_table(["epoch", "loss", "HR@k", "NDCG@k", "seconds"], rows, str(self))

    @property
    def samples_per_second(self) -> float:
        """Median over the epochs, 0 before the first has ended."""
        rates = [samples / seconds for samples, seconds in zip(self.samples, self.seconds, strict=True)]
        return median(rates) if rates else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def selection_candidates(split: Split, selection: str, *, seed: int = 0) -> Candidates | Catalogue | None:
    """Draw what each epoch is evaluated on, if the caller brings no candidates.

    ``"validation"`` draws for the validation set, ``"paper"`` for the test set; with ``"last"`` nothing is evaluated.
    Where the set holds several interactions of a user, each epoch is evaluated in the whole catalogue.

    Raises:
        ValueError: if the split lacks that set.
    """
    if selection == "last":
        return None
    part: Literal["test", "validation"] = "test" if selection == "paper" else "validation"
    held_out: Interactions | None = getattr(split, part)
    if held_out is None:
        raise ValueError(
            f'selection = "{selection}" needs the {part} part of the split, which is missing: '
            'split with leave_one_out(..., validation=True), or train with selection="last"'
        )
    if len(held_out.users.unique()) < len(held_out):
        return whole_catalogue(split, part)
    return sample_candidates(split, part, seed=seed)


def evaluate_epoch(
    model: SupportsScore, candidates: Candidates | Catalogue | None, selection: str, *, k: int = 10
) -> tuple[float | None, float | None, float | None]:
    """Evaluate a model after an epoch.

    Returns:
        HR@k, NDCG@k, and the one of them whose best epoch is kept: NDCG@k on the validation set and, as the paper
        did, HR@k on the test set. ``None`` where there is no such figure.
    """
    if candidates is None:
        return None, None, None
    ranking = evaluate(model, candidates, k=k)
    selected = {"paper": ranking.hr, "validation": ranking.ndcg, "last": None}[selection]
    return ranking.hr, ranking.ndcg, selected
