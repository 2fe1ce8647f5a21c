"""The result of a study: its trials, the best one compared with the defaults, option importance, and the HTML page."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from daedap.evaluation.metrics import bootstrap, characters
from daedap.evaluation.report import Chart, Series, make_chart, render
from daedap.i18n import translate
from daedap.tuning.objective import DevRows
from daedap.tuning.study import Value, as_flag, as_flags, default_trial, finished_trials

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

    from daedap.runs import Json, Run

Verdict = Literal["better", "unclear", "defaults"]
MAX_BPC_RATIO = 1.02
"""A trial with a BPC above this multiple of the defaults' BPC is not chosen, whatever its score."""
_MIN_TRIALS = 6
"""Finished trials from which on the importance of options is estimated."""


@dataclass(frozen=True, slots=True)
class TrialResult:
    """One trial."""

    number: int
    state: str
    """complete, pruned, fail, running or waiting."""
    settings: Mapping[str, Value]
    score: float | None
    """On the selection rows; of a pruned trial, on the pruning rows after its last epoch."""
    bpc: float | None
    gain: float | None
    seconds: float
    default: bool


@dataclass(frozen=True, slots=True)
class VersusDefaults:
    """Score minus the score of the defaults on the comparison rows, with its 95% interval; below 0 is better."""

    value: float
    low: float
    high: float
    rows: int

    @property
    def verdict(self) -> Verdict:
        """better: the whole interval is below 0; defaults: the value is not below 0."""
        if self.value >= 0:
            return "defaults"
        return "better" if self.high < 0 else "unclear"

    def line(self) -> str:
        """The comparison as a line of text."""
        verdicts = {
            "better": translate("better than the defaults"),
            "unclear": translate("no clear difference from the defaults"),
            "defaults": translate("not better than the defaults"),
        }
        template = "{verdict}: {value:+.3f} [{low:+.3f}, {high:+.3f}] bits, on {rows} other dev rows"
        return translate(template, **{**asdict(self), "verdict": verdicts[self.verdict]})


@dataclass(frozen=True)
class SearchResult:
    """All trials of a study so far."""

    study: str
    fraction: float
    """Share of the training rows that a trial trains on."""
    rows: int
    """Number of these rows."""
    epochs: int | None
    """Epochs of every trial; None: searched or set by the user."""
    trials: tuple[TrialResult, ...]
    best: TrialResult
    default: TrialResult
    against: VersusDefaults
    """The best trial."""
    importance: Mapping[str, float]
    """Option → share of the importance (PED-ANOVA); empty with too few trials."""
    chosen: TrialResult
    """The best trial, or the defaults if it is not better on the comparison rows."""

    def to_json(self) -> Json:
        """All fields and the verdict as a JSON object."""
        return {**asdict(self), "verdict": self.against.verdict}

    def lines(self) -> list[str]:
        """A summary for a terminal."""
        head = "Study {study}: {trials} trials ({finished} finished, {pruned} stopped early, {failed} failed or killed)"
        best = "Best, trial {number}: score {score:.3f} (defaults {default:.3f}; lower is better)  {options}"
        scores = {"number": self.best.number, "score": self.best.score, "default": self.default.score}
        lines = [
            translate(head, study=self.study, trials=len(self.trials), **self.counts),
            self.size_line(),
            translate(best, **scores, options=as_flags(self.best.settings)),
            self.against.line(),
        ]
        if self.importance:
            shares = (f"{as_flag(name, '').strip()} {share:.0%}" for name, share in self.importance.items())
            lines.append(translate("Option importance: {shares}", shares=", ".join(shares)))
        return lines

    @property
    def counts(self) -> dict[str, int]:
        """Number of finished, pruned and failed trials."""
        states = Counter(trial.state for trial in self.trials)
        return {"finished": states["complete"], "pruned": states["pruned"], "failed": states["fail"]}

    def size_line(self) -> str:
        """Rows and epochs of a trial as a line of text."""
        if self.epochs is None:
            template = "Each trial was trained on {rows:,} rows ({fraction:.0%})."
            return translate(template, rows=self.rows, fraction=self.fraction)
        template = (
            "Each trial was trained on {rows:,} rows ({fraction:.0%}) for {epochs} epochs: there was no time for more."
        )
        return translate(template, rows=self.rows, fraction=self.fraction, epochs=self.epochs)


@dataclass(frozen=True)
class TuneResult:
    """What `daedap tune` returns."""

    search: SearchResult
    page: Path
    seconds: float
    """Duration of this call."""
    whole: VersusDefaults | None
    """The final run compared with a full training with the defaults, if there was time for one."""
    run: Run | None
    """Trained with the best settings; None with `--no-finish`."""

    def to_json(self) -> Json:
        """The search, the page and the run as a JSON object."""
        return {
            **self.search.to_json(),
            "page": str(self.page),
            "seconds": round(self.seconds, 1),
            "whole": self.whole and {**asdict(self.whole), "verdict": self.whole.verdict},
            "run": self.run and self.run.to_json(),
        }

    def lines(self) -> list[str]:
        """A summary for a terminal."""
        lines = [*self.search.lines(), str(self.page)]
        if self.whole:
            lines.append(translate("Full trainings:") + " " + self.whole.line())
        if self.run:
            template = "Run {number} was trained with the settings of trial {trial}."
            lines.append(translate(template, number=self.run.number, trial=self.search.chosen.number))
        return lines


def search_result(study: Study, rows: int, comparison: DevRows) -> SearchResult:
    """Read the study, of which the default trial is finished. `rows`: training rows of a trial."""
    default = default_trial(study)
    assert default is not None, "a search ends only after its default trial"
    limit = MAX_BPC_RATIO * default.user_attrs["bpc"]
    eligible = [trial for trial in finished_trials(study) if trial.user_attrs["bpc"] <= limit]
    best = min(eligible, key=lambda trial: (trial.value, trial.number))
    compared = versus_defaults(best.user_attrs["bits"], default.user_attrs["bits"], comparison)
    return SearchResult(
        study=study.study_name,
        fraction=study.user_attrs["scale"]["fraction"],
        rows=rows,
        epochs=study.user_attrs["scale"]["epochs"],
        trials=tuple(map(_trial_result, study.trials)),
        best=_trial_result(best),
        default=_trial_result(default),
        against=compared,
        importance=_importance(study),
        chosen=_trial_result(default if compared.verdict == "defaults" else best),
    )


def versus_defaults(bits: Sequence[float], default_bits: Sequence[float], comparison: DevRows) -> VersusDefaults:
    """Compare two models by the bits of each comparison row, paired."""
    difference, size = np.subtract(bits, default_bits), characters([pair.answer for pair in comparison.pairs])
    _, components = np.unique(comparison.components, return_inverse=True)
    interval = bootstrap(difference, size, components)
    return VersusDefaults(float(difference.sum() / size.sum()), interval.low, interval.high, len(bits))


def _trial_result(trial: FrozenTrial) -> TrialResult:
    attributes = trial.user_attrs
    return TrialResult(
        number=trial.number,
        state=trial.state.name.lower(),
        settings=dict(trial.params),
        score=trial.value,
        bpc=attributes.get("bpc"),
        gain=attributes.get("gain"),
        seconds=attributes.get("seconds", 0.0),
        default=bool(attributes.get("default")),
    )


def _importance(study: Study) -> dict[str, float]:
    import optuna

    if len(finished_trials(study)) < _MIN_TRIALS:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optuna marks its importance evaluators as experimental
        try:
            return dict(optuna.importance.get_param_importances(study))
        except (RuntimeError, ValueError):  # all trials have the same score
            return {}


def study_page(search: SearchResult, whole: VersusDefaults | None, run: int | None) -> str:
    """The study as an HTML page in the user's language; `run`: number of the final run, `whole`: its comparison."""
    states = {
        "complete": translate("run to its end"),
        "pruned": translate("stopped early"),
        "fail": translate("failed or killed"),
        "running": translate("running"),
        "waiting": translate("waiting"),
    }
    return render(
        Path(__file__).with_name("tune.html.jinja"),
        as_flag=as_flag,
        as_flags=as_flags,
        search=search,
        whole=whole,
        run=run,
        chart=_history(search),
        states=states,
    )


def _history(search: SearchResult) -> Chart | None:
    """Score minus the defaults' score of each finished trial, and the running minimum."""
    default = search.default.score or 0.0
    finished = [trial for trial in search.trials if trial.state == "complete"]
    differences = [(float(trial.number), trial.score - default) for trial in finished if trial.score is not None]
    best_so_far = list(accumulate(differences, lambda best, trial: (trial[0], min(best[1], trial[1]))))
    series = [Series(translate("best so far"), best_so_far), Series(translate("trial"), differences, dotted=True)]
    return make_chart(translate("Score minus that of the defaults (below 0 is better)"), series)
