"""What a study came to: its trials, the best one beside the defaults, and what mattered.

A study as one page of HTML.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from daedap.evaluation.report import Chart, Series, draw, render
from daedap.i18n import translate
from daedap.tuning.objective import Rows, difference
from daedap.tuning.space import Value, option, options
from daedap.tuning.study import default_of, finished

if TYPE_CHECKING:
    from pathlib import Path

    from optuna import Study
    from optuna.trial import FrozenTrial

    from daedap.runs import Json, Run

Verdict = Literal["better", "unclear", "defaults"]
WORSE = 1.02
"""BPC in relation to the defaults', from which on a trial is not chosen, whatever its gain."""
_TELLING = 6
"""Finished trials from which on it is said what mattered."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One trial."""

    number: int
    state: str
    """complete, pruned, fail, running or waiting."""
    settings: Mapping[str, Value]
    score: float | None
    """On the choosing half; of a pruned trial, on the first of its rows, as it stood when it was stopped."""
    bpc: float | None
    gain: float | None
    seconds: float
    default: bool


@dataclass(frozen=True, slots=True)
class Against:
    """Score less the score of the defaults, on the comparing half: below 0, it is better."""

    value: float
    low: float
    high: float
    rows: int

    @property
    def verdict(self) -> Verdict:
        """What may be said of it."""
        if self.value >= 0:
            return "defaults"
        return "better" if self.high < 0 else "unclear"

    def line(self) -> str:
        """In words."""
        verdicts = {
            "better": translate("better than the defaults"),
            "unclear": translate("no clear difference from the defaults"),
            "defaults": translate("not better than the defaults"),
        }
        told = "{verdict}: {value:+.3f} [{low:+.3f}, {high:+.3f}] bits, on {rows} other dev rows"
        return translate(told, **{**asdict(self), "verdict": verdicts[self.verdict]})


@dataclass(frozen=True)
class Found:
    """Everything that a study has found so far."""

    study: str
    fraction: float
    """Of the rows that a trial learns."""
    rows: int
    """That a trial learns."""
    epochs: int | None
    """How often; None: as searched."""
    trials: tuple[Tried, ...]
    best: Tried
    default: Tried
    against: Against
    importance: Mapping[str, float]
    """Option → its share of what the best trials have in common (PED-ANOVA); empty when there are too few trials."""
    chosen: Tried
    """The best trial, or the defaults where it is not better on the other dev rows."""

    def to_json(self) -> Json:
        """A JSON object."""
        return {**asdict(self), "verdict": self.against.verdict}

    def lines(self) -> list[str]:
        """For a terminal."""
        told = "Study {study}: {trials} trials ({finished} finished, {pruned} stopped early, {failed} failed or killed)"
        lines = [translate(told, study=self.study, trials=len(self.trials), **self.counts), self.scale_line()]
        told = "Best, trial {number}: score {score:.3f} (defaults {default:.3f}; lower is better)  {options}"
        best = {"number": self.best.number, "score": self.best.score, "default": self.default.score}
        lines += [translate(told, **best, options=options(self.best.settings)), self.against.line()]
        if self.importance:
            shares = (f"{option(name, '').strip()} {share:.0%}" for name, share in self.importance.items())
            lines.append(translate("What mattered: {shares}", shares=", ".join(shares)))
        return lines

    @property
    def counts(self) -> dict[str, int]:
        """Trials by how they ended."""
        states = Counter(one.state for one in self.trials)
        return {"finished": states["complete"], "pruned": states["pruned"], "failed": states["fail"]}

    def scale_line(self) -> str:
        """What a trial was."""
        if self.epochs is None:
            return translate(
                "Each trial learned {rows:,} rows ({fraction:.0%}).", rows=self.rows, fraction=self.fraction
            )
        told = "Each trial learned {rows:,} rows ({fraction:.0%}), {epochs} times: for more there was no time."
        return translate(told, rows=self.rows, fraction=self.fraction, epochs=self.epochs)


@dataclass(frozen=True)
class Tuned:
    """What a search came to."""

    found: Found
    page: Path
    seconds: float
    """Of this sitting."""
    whole: Against | None
    """The run against a whole training with the defaults, where there was time for one."""
    run: Run | None
    """Trained with the best settings; None with `--no-finish`."""

    def to_json(self) -> Json:
        """A JSON object."""
        return {
            **self.found.to_json(),
            "page": str(self.page),
            "seconds": round(self.seconds, 1),
            "whole": self.whole and {**asdict(self.whole), "verdict": self.whole.verdict},
            "run": self.run and self.run.to_json(),
        }

    def lines(self) -> list[str]:
        """For a terminal."""
        lines = [*self.found.lines(), str(self.page)]
        if self.whole:
            lines.append(translate("Whole trainings:") + " " + self.whole.line())
        if self.run:
            told = "Run {number} was trained with the settings of trial {trial}."
            lines.append(translate(told, number=self.run.number, trial=self.found.chosen.number))
        return lines


def found_by(study: Study, rows: int, comparing: Rows) -> Found:
    """What the study says. Its defaults are finished."""
    default = default_of(study)
    assert default is not None, "a search ends only after its defaults"
    limit = WORSE * default.user_attrs["bpc"]
    fluent = [trial for trial in finished(study) if trial.user_attrs["bpc"] <= limit]
    best = min(fluent, key=lambda trial: (trial.value, trial.number))
    compared = against(best.user_attrs["bits"], default.user_attrs["bits"], comparing)
    chosen = default if compared.verdict == "defaults" else best
    return Found(
        study=study.study_name,
        fraction=study.user_attrs["scale"]["fraction"],
        rows=rows,
        epochs=study.user_attrs["scale"]["epochs"],
        trials=tuple(map(_tried, study.trials)),
        best=_tried(best),
        default=_tried(default),
        against=compared,
        importance=_importance(study),
        chosen=_tried(chosen),
    )


def against(bits: Sequence[float], others: Sequence[float], comparing: Rows) -> Against:
    """Two models by their bits on the comparing half, the second one trained with the defaults."""
    value, interval = difference(np.array(bits), np.array(others), comparing)
    return Against(value, interval.low, interval.high, len(bits))


def _tried(trial: FrozenTrial) -> Tried:
    attributes = trial.user_attrs
    return Tried(
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

    if len(finished(study)) < _TELLING:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its evaluators are experiments
        try:
            return dict(optuna.importance.get_param_importances(study))
        except (RuntimeError, ValueError):  # all trials alike
            return {}


def page(found: Found, whole: Against | None, run: int | None) -> str:
    """The page, in the user's language. `run`: the number of the run; `whole`: it against one with the defaults."""
    return render(
        Path(__file__).with_name("tune.html.jinja"),
        option=option,
        options=options,
        found=found,
        whole=whole,
        run=run,
        chart=_history(found),
        states=_states(),
    )


def _states() -> dict[str, str]:
    return {
        "complete": translate("run to its end"),
        "pruned": translate("stopped early"),
        "fail": translate("failed or killed"),
        "running": translate("running"),
        "waiting": translate("waiting"),
    }


def _history(found: Found) -> Chart | None:
    """How far every trial that ran to its end is from the defaults, and the best one so far."""
    usual = found.default.score or 0.0
    ended = ((one.number, one.score) for one in found.trials if one.state == "complete")
    apart = [(float(number), score - usual) for number, score in ended if score is not None]
    best, so_far = math.inf, []
    for number, value in apart:
        best = min(best, value)
        so_far.append((number, best))
    told = [Series(translate("best so far"), so_far), Series(translate("trial"), apart, dotted=True)]
    return draw(translate("Score less that of the defaults (below 0 is better)"), told)
