"""A run that goes on from another one: what it has forgotten of the old rows, and what it has gained on the new.

A run beside the baseline, for people (tables) and for programs (JSON).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from daedap.data.split import drawn
from daedap.evaluation.compare import FEW, CommonRows, Difference, differences
from daedap.evaluation.metrics import Score
from daedap.evaluation.robustness import Paraphrase, answer_paraphrases
from daedap.evaluation.tables import Line, align, cell, metrics_shown
from daedap.i18n import translate
from daedap.korean.text import comparison_form

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from daedap.evaluation.compare import Answers, Difference
    from daedap.evaluation.preferences import Count
    from daedap.evaluation.result import Row
    from daedap.evaluation.testset import ScorableBot
    from daedap.types import Pair

BEFORE = {"parent": "model", "parent_bot": "bot"}
"""Systems that are the parent's → what they are in a run of its own."""
_TOLD = ("hits_at_1", "bpc", "question_gain")
_MOST = 200
"""New questions that are asked at most."""


@dataclass(frozen=True)
class ForgettingReport:
    """A run beside its parent, in one evaluation: the same rows, the same candidates."""

    run: str
    parent: str
    candidates: int
    kept: Mapping[str, Difference]
    """Metric → difference on the parent's test rows: what is forgotten makes it worse."""
    gained: Mapping[str, Difference]
    """The same on the new test rows; empty where there are none."""
    before: Score
    """Share of the new training questions that the parent answered as the file does."""
    after: Score
    """… and that this run does."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        differing = {
            name: {metric: asdict(one) for metric, one in found.items()}
            for name, found in (("kept", self.kept), ("gained", self.gained))
        }
        return {
            "parent": self.parent,
            **differing,
            "answered": {"before": asdict(self.before), "after": asdict(self.after)},
        }

    def lines(self) -> list[str]:
        """For a terminal."""
        right = Line("right", "", 100)
        told = "New questions answered as the file does (%): {before} → {after} (n={count:,})"
        answered = translate(told, before=cell(right, self.before), after=cell(right, self.after), count=self.after.n)
        tables = [
            self._table(translate("known test rows"), self.kept),
            self._table(translate("new test rows"), self.gained),
        ]
        return [*(line for table in tables if table for line in [*table, ""]), answered]

    def _table(self, name: str, found: Mapping[str, Difference]) -> list[str]:
        lines = [line for line in metrics_shown(self.candidates) if line.metric in found]
        if not lines:
            return []
        n = max(one.n for one in found.values())
        runs = [translate("run {name}", name=run) for run in (self.parent, self.run)]
        return align(
            [
                [f"{name} (n={n:,})", *runs, translate("difference"), ""],
                *(cells(line, found[line.metric]) for line in lines),
            ]
        )


def beside_parent(rows: Sequence[Row], known: Collection[str]) -> tuple[dict[str, Difference], dict[str, Difference]]:
    """Differences to the parent on the test rows with known ids, and on the others."""
    old = [row for row in rows if row.id in known]
    return _difference(old), _difference([row for row in rows if row.id not in known])


def answered_as_told(bot: ScorableBot, new: Sequence[Pair]) -> Score:
    """Share of these pairs' questions (at least one pair) to which a bot gives one of their answers."""
    asked = sorted(_questions(new), key=lambda one: one.question)
    return answer_paraphrases(bot, drawn(asked, _MOST, 0)).right


def _questions(pairs: Iterable[Pair]) -> list[Paraphrase]:
    """Each different question with all its answers."""
    answers: dict[str, list[str]] = {}
    first: dict[str, str] = {}
    for pair in pairs:
        form = comparison_form(pair.question)
        first.setdefault(form, pair.question)
        answers.setdefault(form, []).append(pair.answer)
    return [Paraphrase(first[form], tuple(texts)) for form, texts in answers.items()]


def _difference(rows: Sequence[Row]) -> dict[str, Difference]:
    if not rows:
        return {}
    _, groups = np.unique([str(row.component) for row in rows], return_inverse=True)
    both = [(_parents(row), row) for row in rows]
    found = differences(CommonRows(both, groups.astype(np.int64), leaked=0, alone=0, same_test=True))["all"]
    return {metric: found[metric] for metric in _TOLD if metric in found}


def _parents(row: Row) -> Row:
    """The row as the parent would have kept it."""
    return replace(
        row,
        shares={mine: row.shares[name] for name, mine in BEFORE.items() if name in row.shares},
        replies={mine: row.replies[name] for name, mine in BEFORE.items() if name in row.replies},
    )


_OPTIONS = ("layout", "splitting", "learner", "recipe")
"""Groups of settings whose names are options of `daedap train`."""


@dataclass(frozen=True)
class RunComparison:
    """Two runs on the rows that both were tested on."""

    first: str
    """Name of the baseline."""
    second: str
    rows: int
    components: int
    leaked: int
    """Rows left out because one run has learned them, or nearly, and the other has not."""
    alone: int
    """Rows left out because only one run was tested on them."""
    same_test: bool
    candidates: int
    differences: Mapping[str, Mapping[str, Difference]]
    """Slice → metric → difference."""
    answered: int
    """Questions that both runs answered."""
    answers: Sequence[Answers]
    """Those that they answered differently, the most telling first."""
    verdicts: Count

    def to_json(self, samples: int) -> dict[str, Any]:
        """A JSON object with the first so many answers; a value that is not a number becomes null."""
        fields = ("rows", "components", "leaked", "alone", "same_test", "candidates", "answered")
        found = {
            name: {metric: _entry(one) for metric, one in metrics.items()} for name, metrics in self.differences.items()
        }
        return {
            "first": self.first,
            "second": self.second,
            **{name: getattr(self, name) for name in fields},
            "answered_differently": len(self.answers),
            "differences": found,
            "samples": [one.to_json() for one in self.answers[:samples]],
            "verdicts": asdict(self.verdicts),
        }

    def lines(self, samples: int) -> list[str]:
        """Tables, the first so many answers side by side, and the verdicts."""
        blocks = [
            self._head(),
            *(self._table(name, found) for name, found in self.differences.items() if self._apart(name)),
            self._note(),
            self._answer_lines(samples),
            self.verdict_lines(),
        ]
        return [line for block in blocks if block for line in [*block, ""]][:-1]

    def _head(self) -> list[str]:
        told = translate(
            "Run {second} beside run {first}, on the {rows:,} rows that both were tested on.",
            first=self.first,
            second=self.second,
            rows=self.rows,
        )
        lines = [told]
        if self.leaked:
            left_out = (
                "{count:,} test rows are left out: one of the runs has learned them, or nearly the same question."
            )
            lines.append(translate(left_out, count=self.leaked))
        if self.alone:
            lines.append(
                translate("{count:,} rows are left out: only one of the runs was tested on them.", count=self.alone)
            )
        if not self.same_test:
            lines.append(
                translate(
                    "Their tests differ, and so do the wrong answers to choose from: places and question gain can't be "
                    "compared. Score both on one file for these: daedap evaluate --run RUN --data FILE"
                )
            )
        return lines

    def _apart(self, name: str) -> bool:
        """Whether a slice says anything that the whole doesn't."""
        sizes = {part: max(one.n for one in found.values()) for part, found in self.differences.items() if found}
        return name == "all" or sizes.get(name, 0) not in (0, sizes["all"])

    def _table(self, name: str, found: Mapping[str, Difference]) -> list[str]:
        runs = [translate("run {name}", name=run) for run in (self.first, self.second)]
        n = max(one.n for one in found.values())
        grid = [[f"{_slice(name)} (n={n:,})", *runs, translate("difference"), ""]]
        grid += [cells(line, found[line.metric]) for line in self._shown() if line.metric in found]
        return align(grid)

    def _shown(self) -> list[Line]:
        """Metrics that have a line of their own, then any other."""
        known = metrics_shown(self.candidates)
        names = {line.metric for line in known}
        others = dict.fromkeys(metric for found in self.differences.values() for metric in found if metric not in names)
        return [*known, *(Line(metric, metric, digits=3) for metric in others)]

    def _note(self) -> list[str]:
        if self.components < FEW:
            told = "No intervals: {count} groups of questions are too few to tell a difference from chance."
            return [translate(told, count=self.components)]
        return [
            translate(
                "Difference: run {second} less run {first}, with its 95 % interval. Better and worse are said where "
                "the interval leaves out 0; 1 in 20 does so by chance.",
                first=self.first,
                second=self.second,
            )
        ]

    def _answer_lines(self, samples: int) -> list[str]:
        if not self.answered:
            return []
        if not self.answers:
            return [translate("All {answered:,} questions are answered alike.", answered=self.answered)]
        told = "{different:,} of {answered:,} questions are answered differently. Where it matters most:"
        if not samples:
            told = "{different:,} of {answered:,} questions are answered differently."
        head = translate(told, different=len(self.answers), answered=self.answered)
        return [head, *(line for one in self.answers[:samples] for line in ["", *self._side_by_side(one)])]

    def _side_by_side(self, answers: Answers) -> list[str]:
        grid = [[translate("right answer"), answers.right]]
        for run, name in enumerate((self.first, self.second)):
            place = answers.places and translate("place {place:g}", place=round(answers.places[run], 1))
            label = translate("run {name}", name=name)
            said = answers.replies[run] or translate("(nothing)")
            grid.append([f"{label} ({place})" if place else label, said])
        flat = [[cell.replace("\n", " ") for cell in row] for row in grid]
        return [f"> {answers.question}", *(f"  {line}" for line in align(flat))]

    def verdict_lines(self) -> list[str]:
        """How people judged their answers without knowing whose they were; nothing before the first verdict."""
        found = self.verdicts
        if not found.first + found.second + found.ties:
            return []
        told = translate(
            "Judged blind: run {first} better {wins:,} times, run {second} better {others:,} times, {ties:,} ties.",
            first=self.first,
            second=self.second,
            wins=found.first,
            others=found.second,
            ties=found.ties,
        )
        return [told, *self._share_lines()]

    def _share_lines(self) -> list[str]:
        found = self.verdicts
        if found.share is None or found.low is None or found.high is None:
            return []
        numbers = [round(100 * value) for value in (found.share, found.low, found.high)]
        told = translate(
            "Without the ties run {second} wins {share} % (95 % interval {low} to {high}, sign test p = {p:.2g}):",
            second=self.second,
            **dict(zip(("share", "low", "high"), numbers, strict=True)),
            p=found.p,
        )
        better = self.second if found.share > 0.5 else self.first
        clear = translate("run {name} is better.", name=better) if found.clear else translate("no clear difference.")
        return [f"{told} {clear}"]


def setting_lines(settings: Mapping[str, Sequence[object]], names: Sequence[str]) -> list[str]:
    """The settings that differ: settings down, runs across."""
    if not settings:
        return [translate("No setting differs.")]
    heads = [translate("what differs"), *(translate("run {name}", name=name) for name in names)]
    return align([heads, *([_setting(name), *map(_value, values)] for name, values in settings.items())])


def _entry(difference: Difference) -> dict[str, Any]:
    entry = asdict(difference)
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in entry.items()
    }


def cells(line: Line, found: Difference) -> list[str]:
    """A metric's line in a table: its name, both values, the difference with its interval, the verdict."""
    values = [_number(line, value) for value in (found.first, found.second)]
    difference = _number(line, found.difference, "+")
    if found.low is not None and found.high is not None:
        difference += f" [{_number(line, found.low, '+')}, {_number(line, found.high, '+')}]"
    return [line.heading, *values, difference, _verdict(found)]


def _number(line: Line, value: float, sign: str = "") -> str:
    return f"{value * line.scale:{sign}.{line.digits}f}" if math.isfinite(value) else "?"


def _verdict(found: Difference) -> str:
    told = {
        "better": translate("better"),
        "worse": translate("worse"),
        "more": translate("more"),
        "less": translate("less"),
        "none": translate("no clear difference"),
    }
    return told[found.verdict] if found.verdict else ""


def _slice(name: str) -> str:
    named = {"all": translate("all pairs"), "seen": translate("seen answers"), "unseen": translate("unseen answers")}
    return named.get(name, name)


def _setting(name: str) -> str:
    group, _, option = name.partition(".")
    if group in _OPTIONS:
        return "--" + option.replace("_", "-")
    named = {
        "file": translate("file"),
        "data.sha256": translate("digest of the file"),
        "data.rows": translate("rows of the file"),
        "data.usable": translate("usable rows"),
        "data.train": translate("rows learned"),
        "data.dev": translate("dev rows"),
        "data.test": translate("test rows"),
        "base.name": translate("base"),
        "base.licence": translate("licence of the base"),
        "learning_rate": translate("learning rate used"),
        "method": translate("method used"),
        "training.epochs": translate("epochs done"),
        "training.steps": translate("steps done"),
        "training.best_epoch": translate("best epoch"),
        "training.best_dev_loss": translate("best dev loss"),
        "training.averaged": translate("average of epochs"),
        "training.seconds": translate("seconds of training"),
        "parameters.trained": translate("weights trained"),
        "parameters.total": translate("weights"),
    }
    return named.get(name, name)


def _value(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…{text[-12:]}"
