"""Search for better settings than those computed from the data, evaluated on the validation set alone."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from html import escape
from inspect import signature
from os import PathLike
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ncf.data.candidates import whole_catalogue
from ncf.data.interactions import Interactions
from ncf.data.splitting import Split
from ncf.evaluation.evaluator import evaluate
from ncf.evaluation.metrics import metric_label
from ncf.models.base import SupportsScore
from ncf.models.baselines import ALS, EASE, ItemKNN
from ncf.models.baselines.spectral import default_factors
from ncf.training.batches import rows_fingerprint
from ncf.training.recipes import Recipe, fit, recipe_for
from ncf.utils.checks import check_choice, check_k, of_type, whole
from ncf.utils.html import html_table

__all__ = ["Trial", "Tuning", "tune"]

_GRADIENT = ("NeuMF", "GMF", "MLP", "MatrixFactorization")
_CLOSED_FORM: dict[str, Any] = {"ItemKNN": ItemKNN, "EASE": EASE, "ALS": ALS}
_BEFORE_STOPPING = 5  # trials that end before others are compared with their median
_PASSES = ("epochs", "softmax_epochs", "mlp_epochs")
_PART = 4  # a trial begins with the fourth part of its epochs


@dataclass(frozen=True)
class _Range:
    """Values of a setting: from ``low`` to ``high``, on a logarithmic scale or not, whole where both are."""

    low: float
    high: float
    log: bool = True

    def suggest(self, trial: Any, name: str) -> Any:
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)


@dataclass(frozen=True)
class _Choice:
    """Values of a setting, by a name that a storage can hold."""

    values: Mapping[str, Any]

    def suggest(self, trial: Any, name: str) -> Any:
        return self.values[trial.suggest_categorical(name, [*self.values])]


_RANGES: dict[str, _Range | _Choice] = {
    "losses": _Choice({"bce": ("bce",), "softmax": ("softmax",), "bce+softmax": ("bce", "softmax")}),
    "factors": _Choice({str(width): width for width in (32, 64, 128, 256)}),
    "epochs": _Range(5, 40),
    "negatives": _Range(2, 16),
    "learning_rate": _Range(1e-3, 1e-2),
    "weight_decay": _Range(0.02, 1.0),
    "softmax_epochs": _Range(5, 40),
    "temperature": _Range(0.05, 0.3),
    "layers": _Choice({"64-32-16": (64, 32, 16), "128-64-32": (128, 64, 32)}),
    "mlp_epochs": _Range(3, 20),
    "mlp_negatives": _Range(2, 8),
}
_RANGES_IN_CLOSED_FORM: dict[str, dict[str, _Range | _Choice]] = {
    "ItemKNN": {"neighbours": _Range(5, 500), "shrinkage": _Range(0.0, 50.0, log=False)},
    "EASE": {"regularization": _Range(1.0, 5000.0)},
    "ALS": {
        "factors": _Choice({str(width): width for width in (16, 32, 64, 128, 256)}),
        "regularization": _Range(0.1, 300.0),
        "alpha": _Range(0.5, 50.0),
    },
}
_FIRST = {
    "ItemKNN": {"neighbours": 20, "shrinkage": 0.0},
    "EASE": {"regularization": 200.0},
    "ALS": {"factors": 32, "regularization": 20.0, "alpha": 5.0},
}


@dataclass(frozen=True)
class Trial:
    """One set of settings and how good it was.

    Args:
        number: from 1, in the order of the search.
        settings: for `fit`, or for the constructor of a model in closed form.
        value: NDCG on the validation set; of a stopped trial after a fourth of its epochs.
        stopped: the trial was ended early, as it was worse than half of the trials before it.
        seconds: of training and evaluation.

    Example::

        >>> from ncf.training.tuning import Trial
        >>> Trial(1, {"regularization": 200.0}, value=0.31, stopped=False, seconds=0.5).settings["regularization"]
        200.0
    """

    number: int
    settings: Mapping[str, Any]
    value: float
    stopped: bool
    seconds: float


@dataclass(frozen=True, eq=False, repr=False)
class Tuning:
    """Result of `tune`: every trial, the best one, a table and a picture.

    Args:
        model: name of the model.
        trials: in the order of the search.
        k: length of the list that NDCG looks at.

    Example::

        >>> from ncf.training.tuning import Trial, Tuning
        >>> found = Tuning("EASE", [Trial(1, {"regularization": 200.0}, 0.31, False, 0.5)], k=10)
        >>> found.best, found
        ({'regularization': 200.0}, Tuning(EASE: NDCG@10 0.310 on the validation set, best of 1 trial))
    """

    model: str
    trials: list[Trial]
    k: int

    @property
    def best_trial(self) -> Trial:
        """The trial with the highest NDCG, of equal ones the first."""
        return max((trial for trial in self.trials if not trial.stopped), key=lambda trial: trial.value)

    @property
    def best(self) -> dict[str, Any]:
        """Settings of the best trial: ``fit(data, model, **best)``."""
        return dict(self.best_trial.settings)

    @property
    def value(self) -> float:
        """NDCG of the best trial on the validation set: the highest of several, so that it flatters."""
        return self.best_trial.value

    def text(self) -> str:
        """The table in columns, for a terminal, the best trial first."""
        header, rows = self._table()
        lines = [header, *rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = [
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
        ]
        return "\n".join([*aligned, self._footnote()])

    def to_pandas(self) -> Any:
        """A DataFrame with a row per trial, in the order of the search; it needs pandas."""
        import pandas as pd  # type: ignore[import-untyped]

        rows = [
            {
                "trial": t.number,
                metric_label("ndcg", self.k): t.value,
                "stopped": t.stopped,
                "seconds": t.seconds,
            }
            | dict(t.settings)
            for t in self.trials
        ]
        return pd.DataFrame(rows).set_index("trial")

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def plot(self, path: str | PathLike[str]) -> None:
        """Draw NDCG by trial and by setting; see `ncf.evaluation.plots.search`."""
        from ncf.evaluation.plots import search

        search(
            [trial.settings for trial in self.trials],
            [trial.value for trial in self.trials],
            path,
            stopped=[trial.stopped for trial in self.trials],
            label=f"{metric_label('ndcg', self.k)}, validation set",
        )

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        count = f"{len(self.trials)} trial" + ("s" if len(self.trials) > 1 else "")
        label = metric_label("ndcg", self.k)
        return f"Tuning({self.model}: {label} {self.value:.3f} on the validation set, best of {count})"

    def _repr_html_(self) -> str:
        header, rows = self._table()
        cells = [[escape(cell) for cell in row] for row in rows]
        return html_table([escape(name) for name in header], cells, escape(self._footnote()))

    def _table(self) -> tuple[list[str], list[list[str]]]:
        names = list(dict.fromkeys(name for trial in self.trials for name in trial.settings))
        ended = sorted(self.trials, key=lambda trial: (trial.stopped, -trial.value))
        rows = [
            [
                str(trial.number),
                f"{trial.value:.4f}" + ("†" if trial.stopped else " "),
                f"{trial.seconds:.1f}",
                *(_shown(trial.settings.get(name)) for name in names),
            ]
            for trial in ended
        ]
        return ["trial", metric_label("ndcg", self.k) + " ", "seconds", *names], rows

    def _footnote(self) -> str:
        note = f"{self.model}, validation set, whole catalogue"
        if any(trial.stopped for trial in self.trials):
            note += f"; † stopped after 1/{_PART} of the epochs"
        return note


def tune(
    split: Split,
    model: str = "NeuMF",
    *,
    seconds: float | None = None,
    trials: int | None = None,
    k: int = 10,
    folder: str | PathLike[str] | None = None,
    seed: int = 0,
    progress: bool | None = None,
    **settings: Any,
) -> Tuning:
    """Search for settings that rank the validation set best.

    The first trial has the settings that `fit` computes from the data, or the defaults of a model in closed form. The
    others come from a tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011), as Optuna has it. Each trial
    is trained on the training set and ranks the validation set in the whole catalogue; the test set is never looked
    at. A trial begins with a fourth of its epochs. It is stopped there if its NDCG is below the median of those that
    were not stopped, five at least. It trains one member of those whose mean `fit` keeps on dense data. Ctrl-C ends
    the search; the trials that ended before are returned.

    =================================  =========================================================================
    setting                            range
    =================================  =========================================================================
    ``losses``                         bce, softmax, or both
    ``factors``                        32, 64, 128, 256
    ``softmax_factors``                32, 64, 128, 256, 512, or as many as the recipe has
    ``epochs``, ``softmax_epochs``     5 to 40
    ``negatives``                      2 to 16
    ``learning_rate``                  0.001 to 0.01
    ``weight_decay``                   0.02 to 1
    ``temperature``                    0.05 to 0.3
    ``spectral``                       none, a fourth, half or all of the columns of the recipe
    ``layers`` (NeuMF, MLP)            64-32-16, 128-64-32
    ``mlp_epochs``, ``mlp_negatives``  3 to 20, 2 to 8
    ItemKNN                            ``neighbours`` 5 to 500, ``shrinkage`` 0 to 50
    EASE                               ``regularization`` 1 to 5000
    ALS                                ``factors`` 16 to 256, ``regularization`` 0.1 to 300, ``alpha`` 0.5 to 50
    =================================  =========================================================================

    Args:
        split: the training set and the validation set.
        model: ``"NeuMF"``, ``"GMF"``, ``"MLP"``, ``"MatrixFactorization"``, ``"EASE"``, ``"ItemKNN"`` or ``"ALS"``.
        seconds: begin no trial after this time; the last one may end later.
        trials: how many, those of the folder included; 30 by default, where no ``seconds`` are given.
        k: length of the list that NDCG looks at.
        folder: where each trial is kept when it ends. A call with the same data, model and settings resumes
            the search, with the same trials as one that was not cut off.
        seed: of the search and of each training. Together with the number of trials it decides the result.
        progress: show a bar; by default where the output is a terminal.
        settings: fields of `ncf.training.recipes.Recipe`, or arguments of a model in closed form, that are kept as
            they are given and not searched.

    Returns:
        `Tuning`: ``best`` for `fit`, a table (``print``, ``to_pandas()``), ``plot(path)``.

    Raises:
        ImportError: if Optuna is not installed.
        TypeError: if ``split`` is no `Split`, or a setting is unknown.
        ValueError: if the model is unknown, there is no validation set, a number is out of range, or the folder holds
            trials of other data or settings.

    Example::

        >>> import torch, ncf
        >>> users = torch.arange(40).repeat_interleave(5)
        >>> items = (users % 2) * 10 + (users * 3 + torch.arange(200) * 7) % 10
        >>> split = ncf.leave_one_out(ncf.Interactions.from_arrays(users, items))
        >>> found = ncf.tune(split, "EASE", trials=3)
        >>> len(found.trials), sorted(found.best)
        (3, ['regularization'])
        >>> model = ncf.EASE(split.with_validation_in_train().train, **found.best)
    """
    try:
        import optuna
    except ImportError as error:
        raise ImportError("tune needs Optuna: pip install 'ncf[tune]'") from error
    of_type("split", split, Split, "a function such as leave_one_out makes one")
    if split.validation is None or not len(split.validation):
        raise ValueError("split has no validation set: make it with validation=True")
    check_choice("model", model, (*_GRADIENT, *_CLOSED_FORM))
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds = {seconds}: give a positive number")
    most = whole("trials", trials) if trials is not None else None if seconds is not None else 30
    search = _Search(split.train, split.validation, model, k, seed, settings)
    end = math.inf if seconds is None else time.monotonic() + seconds
    with _quiet(optuna):
        study = _study(optuna, search, folder)
        ended = _ended(optuna, study)
        bar = tqdm(total=most, initial=len(ended), desc=f"tune {model}", unit=" trials",
                   disable=None if progress is None else not progress)  # fmt: skip
        with bar:
            while (most is None or len(ended) < most) and (time.monotonic() < end or not ended):
                try:
                    _run(optuna, study, search, len(ended))
                except KeyboardInterrupt:
                    if not ended:
                        raise
                    break
                ended = _ended(optuna, study)
                bar.update()
                bar.set_postfix_str(f"best {study.best_value:.4f}")
    return Tuning(model, [search.trial(number, trial) for number, trial in enumerate(ended, 1)], k)


class _Search:
    """The ranges of a model's settings, and how a set of them is trained and evaluated."""

    def __init__(
        self,
        train: Interactions,
        validation: Interactions,
        model: str,
        k: int,
        seed: int,
        given: Mapping[str, Any],
    ) -> None:
        self.train, self.model, self.k, self.seed, self.given = train, model, k, seed, dict(given)
        check_k(k, train.num_items)
        kind = _CLOSED_FORM.get(model, Recipe)
        known = set(signature(kind).parameters) - {"train"}
        if unknown := sorted(set(given) - known):
            raise TypeError(
                f"{unknown[0]!r} is no setting of {model}: choose among {', '.join(sorted(known))}"
            )
        self.catalogue = whole_catalogue(Split(train, None, validation))  # which the test set has no part in
        self.recipe = recipe_for(train, model)
        if model in _CLOSED_FORM:
            self.ranges, first = _RANGES_IN_CLOSED_FORM[model], _FIRST[model]
        else:
            self.recipe = replace(self.recipe, **given)
            columns = default_factors(train.num_users, train.num_items)
            shares = {0, *(max(4, columns // part // 4 * 4) for part in (4, 2, 1))}
            widths = {32, 64, 128, 256, 512, self.recipe.softmax_factors}
            of_data = {
                name: _Choice({str(width): width for width in sorted(among)})
                for name, among in (("spectral", shares), ("softmax_factors", widths))
            }
            self.ranges, first = {**_RANGES, **of_data}, asdict(self.recipe)
        self.first = {
            name: _name_in(values, first[name]) for name, values in self.ranges.items() if name not in given
        }
        self.identity = {
            "train": rows_fingerprint(train.users, train.items),
            "validation": rows_fingerprint(validation.users, validation.items),
            "model": model,
            "k": k,
            "seed": seed,
            "settings": {name: _shown(value) for name, value in given.items()},
        }

    def suggest(self, trial: Any) -> dict[str, Any]:
        """The settings of a trial: those that matter for the model and the losses."""
        found = dict(self.given)
        wanted = [name for name in self.ranges if name not in found]
        if self.model in _GRADIENT:
            if "losses" in wanted and self.model != "MLP":
                found["losses"] = self.ranges["losses"].suggest(trial, "losses")
            wanted = [name for name in wanted if name in self._used(found.get("losses", self.recipe.losses))]
        return found | {name: self.ranges[name].suggest(trial, name) for name in wanted}

    def _used(self, losses: tuple[str, ...]) -> set[str]:
        of_mlp = {"layers", "learning_rate", "weight_decay", "mlp_epochs", "mlp_negatives"}
        if self.model == "MLP":
            return of_mlp
        used = {"spectral"} | (of_mlp if self.model == "NeuMF" else set())
        if "bce" in losses:
            used |= {"factors", "epochs", "negatives", "learning_rate", "weight_decay"}
        if "softmax" in losses:
            used |= {"softmax_factors", "softmax_epochs", "temperature"}
        return used

    def values(self, settings: Mapping[str, Any]) -> Iterator[float]:
        """NDCG after a part of the epochs, and after all of them."""
        if self.model in _CLOSED_FORM:
            yield self._ndcg(_CLOSED_FORM[self.model](self.train, **settings))
            return
        whole_recipe: Recipe = replace(self.recipe, **settings)
        few = {name: max(1, getattr(whole_recipe, name) // _PART) for name in _PASSES}
        for passes in (few, {}):
            training: dict[str, Any] = {"members": 1, **settings, **passes}
            model: Any = fit(self.train, self.model, seed=self.seed, progress=False, **training)
            yield self._ndcg(model)

    def _ndcg(self, model: SupportsScore) -> float:
        return evaluate(model, self.catalogue, self.k).ndcg

    def trial(self, number: int, trial: Any) -> Trial:
        """Our record of one of Optuna's trials."""
        settings = dict(self.given)
        for name, value in trial.params.items():
            values = self.ranges[name]
            settings[name] = values.values[value] if isinstance(values, _Choice) else value
        stopped = trial.value is None or trial.state.name == "PRUNED"
        value = trial.intermediate_values[0] if stopped else trial.value
        return Trial(number, settings, value, stopped, trial.user_attrs["seconds"])


def _name_in(values: _Range | _Choice, value: Any) -> Any:
    """A value as Optuna is given it: inside the range, or the name of the nearest choice."""
    if isinstance(values, _Range):
        return min(max(value, values.low), values.high)
    named = next((name for name, choice in values.values.items() if choice == value), None)
    if named is None:
        named = min(values.values, key=lambda name: abs(values.values[name] - value))
    return named


def _run(optuna: Any, study: Any, search: _Search, number: int) -> None:
    """Train and evaluate one set of settings; what was cut off before is tried again."""
    # A sampler of its own for each trial: a search that is resumed draws what it would have drawn.
    study.sampler = optuna.samplers.TPESampler(seed=(search.seed * 1_000_003 + number) % 2**32)
    waiting = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,))
    if not number and not waiting:
        study.enqueue_trial(search.first)
    trial, began = study.ask(), time.perf_counter()
    settings = search.suggest(trial)
    value, state = 0.0, optuna.trial.TrialState.COMPLETE
    for step, value in enumerate(search.values(settings)):
        trial.report(value, step)
        if not step and search.model in _GRADIENT and trial.should_prune():
            state = optuna.trial.TrialState.PRUNED
            break
    trial.set_user_attr("seconds", time.perf_counter() - began)
    study.tell(trial, None if state == optuna.trial.TrialState.PRUNED else value, state=state)


def _study(optuna: Any, search: _Search, folder: str | PathLike[str] | None) -> Any:
    storage = None
    if folder is not None:
        from optuna.storages.journal import JournalFileBackend

        Path(folder).mkdir(parents=True, exist_ok=True)
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(Path(folder) / "trials.log")))
    pruner = optuna.pruners.MedianPruner(n_startup_trials=_BEFORE_STOPPING)
    study = optuna.create_study(
        storage=storage, study_name="ncf.tune", direction="maximize", pruner=pruner, load_if_exists=True
    )
    known = study.user_attrs.get("search")
    if known is None:
        study.set_user_attr("search", search.identity)
    elif known != search.identity:
        other = next(name for name, value in search.identity.items() if known.get(name) != value)
        raise ValueError(
            f"folder = {str(folder)!r} holds trials with another {other} ({known.get(other)}, now "
            f"{search.identity[other]}): give another folder"
        )
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def _ended(optuna: Any, study: Any) -> list[Any]:
    states = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED
    ended: list[Any] = study.get_trials(deepcopy=False, states=states)
    return ended


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Without Optuna's lines; its setting is the process's, and is put back."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}"
    return "+".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
