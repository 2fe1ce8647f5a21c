"""Two runs compared, and a run compared with its parent (forgetting and gain), as text and as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from daedap.data.split import sample_rows
from daedap.evaluation.compare import MIN_COMPONENTS, CommonRows, Difference, differences
from daedap.evaluation.faq import right_answer_rate
from daedap.evaluation.metrics import Score
from daedap.evaluation.question_files import EvalQuestion
from daedap.evaluation.tables import MetricFormat, align_columns, format_score, metric_formats
from daedap.i18n import translate
from daedap.korean.text import comparison_form

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from daedap.evaluation.compare import ReplyPair
    from daedap.evaluation.evaluate import Row
    from daedap.evaluation.preferences import PreferenceCounts
    from daedap.evaluation.testset import ScorableBot
    from daedap.types import Pair

PARENT_SYSTEMS = {"parent": "model", "parent_bot": "bot"}
"""The parent's systems in a run's evaluation → their names in the parent's own evaluation."""
_FORGETTING_METRICS = ("hits_at_1", "bpc", "question_gain")
_MAX_QUESTIONS = 200
"""New training questions that are asked at most."""


@dataclass(frozen=True)
class ForgettingReport:
    """A run compared with its parent in one evaluation: the same rows, the same candidates."""

    run: str
    parent: str
    candidates: int
    forgetting: Mapping[str, Difference]
    """Metric → difference on the parent's test rows; forgetting makes it worse."""
    gain: Mapping[str, Difference]
    """Metric → difference on the new test rows; empty if there are none."""
    before: Score
    """Share of the new training questions that the parent answers as the file does."""
    after: Score
    """Share of the new training questions that this run answers as the file does."""

    def to_json(self) -> dict[str, Any]:
        """`evaluation/growth.json`."""
        parts = {"kept": self.forgetting, "gained": self.gain}
        return {
            "parent": self.parent,
            **{name: {metric: asdict(one) for metric, one in part.items()} for name, part in parts.items()},
            "answered": {"before": asdict(self.before), "after": asdict(self.after)},
        }

    def lines(self) -> list[str]:
        """Two tables and the share of new questions, for a terminal."""
        percent = MetricFormat("", "", 100)
        template = "New questions answered as the file does (%): {before} → {after} (n={count:,})"
        before, after = format_score(percent, self.before), format_score(percent, self.after)
        tables = [
            self._table(translate("known test rows"), self.forgetting),
            self._table(translate("new test rows"), self.gain),
        ]
        return [
            *(line for table in tables if table for line in [*table, ""]),
            translate(template, before=before, after=after, count=self.after.n),
        ]

    def _table(self, name: str, differences: Mapping[str, Difference]) -> list[str]:
        lines = [line for line in metric_formats(self.candidates) if line.metric in differences]
        if not lines:
            return []
        n = max(one.n for one in differences.values())
        runs = [translate("run {name}", name=run) for run in (self.parent, self.run)]
        return align_columns(
            [
                [f"{name} (n={n:,})", *runs, translate("difference"), ""],
                *(difference_cells(line, differences[line.metric]) for line in lines),
            ]
        )


def differences_from_parent(
    rows: Sequence[Row], known: Collection[str]
) -> tuple[dict[str, Difference], dict[str, Difference]]:
    """Differences from the parent on the test rows with known ids, and on the other rows."""
    old = [row for row in rows if row.id in known]
    return _parent_difference(old), _parent_difference([row for row in rows if row.id not in known])


def exact_answer_rate(bot: ScorableBot, pairs: Sequence[Pair]) -> Score:
    """Share of the distinct questions of at least one pair that a bot answers with one of the file's answers."""
    answers: dict[str, list[str]] = {}
    questions: dict[str, str] = {}
    for pair in pairs:
        form = comparison_form(pair.question)
        questions.setdefault(form, pair.question)
        answers.setdefault(form, []).append(pair.answer)
    known = [EvalQuestion(questions[form], tuple(texts)) for form, texts in answers.items()]
    return right_answer_rate(bot, sample_rows(sorted(known, key=lambda one: one.question), _MAX_QUESTIONS, 0))


def _parent_difference(rows: Sequence[Row]) -> dict[str, Difference]:
    if not rows:
        return {}
    _, groups = np.unique([str(row.component) for row in rows], return_inverse=True)
    pairs = [(_as_parent(row), row) for row in rows]
    by_metric = differences(CommonRows(pairs, groups.astype(np.int64), leaked=0, alone=0, same_test=True))["all"]
    return {metric: by_metric[metric] for metric in _FORGETTING_METRICS if metric in by_metric}


def _as_parent(row: Row) -> Row:
    """The row as the parent's own evaluation would have saved it."""
    return replace(
        row,
        terms={own: row.terms[name] for name, own in PARENT_SYSTEMS.items() if name in row.terms},
        replies={own: row.replies[name] for name, own in PARENT_SYSTEMS.items() if name in row.replies},
    )


_OPTION_GROUPS = ("read", "split", "model", "train")
"""Groups of settings whose names are command-line options of `daedap train`."""


@dataclass(frozen=True)
class RunComparison:
    """Everything that `daedap compare` reports on two runs."""

    first: str
    """Name of the run that the other one is compared with."""
    second: str
    rows: int
    components: int
    leaked: int
    """Rows left out because only one run was trained on their question or a near-duplicate."""
    alone: int
    """Rows left out because only one run was tested on them."""
    same_test: bool
    candidates: int
    differences: Mapping[str, Mapping[str, Difference]]
    """Slice → metric → difference."""
    answered: int
    """Questions that both runs answered."""
    answers: Sequence[ReplyPair]
    """The questions answered differently, the largest difference in rank first."""
    preferences: PreferenceCounts

    def to_json(self, samples: int) -> dict[str, Any]:
        """A JSON object with the first `samples` reply pairs; NaN and infinity as null."""
        fields = ("rows", "components", "leaked", "alone", "same_test", "candidates", "answered")
        by_slice = {
            name: {metric: _finite_fields(one) for metric, one in metrics.items()}
            for name, metrics in self.differences.items()
        }
        return {
            "first": self.first,
            "second": self.second,
            **{name: getattr(self, name) for name in fields},
            "answered_differently": len(self.answers),
            "differences": by_slice,
            "samples": [one.to_json() for one in self.answers[:samples]],
            "verdicts": asdict(self.preferences),
        }

    def lines(self, samples: int) -> list[str]:
        """Tables, the first `samples` reply pairs side by side, and the preferences."""
        blocks = [
            self._head(),
            *(self._table(name, metrics) for name, metrics in self.differences.items() if self._is_informative(name)),
            self._note(),
            self._answer_lines(samples),
            self.preference_lines(),
        ]
        return [line for block in blocks if block for line in [*block, ""]][:-1]

    def _head(self) -> list[str]:
        heading = translate(
            "Run {second} compared with run {first}, on the {rows:,} rows that both were tested on.",
            first=self.first,
            second=self.second,
            rows=self.rows,
        )
        lines = [heading]
        if self.leaked:
            left_out = (
                "{count:,} test rows are left out: one of the runs was trained on them, or on nearly the same question."
            )
            lines.append(translate(left_out, count=self.leaked))
        if self.alone:
            lines.append(
                translate("{count:,} rows are left out: only one of the runs was tested on them.", count=self.alone)
            )
        if not self.same_test:
            lines.append(
                translate(
                    "Their test rows differ, and so do the wrong answers to choose from: ranks and question gain can't "
                    "be compared. Score both on one file for these: daedap evaluate --run RUN --data FILE"
                )
            )
        return lines

    def _is_informative(self, name: str) -> bool:
        """Whether a slice is neither empty nor equal to all rows."""
        sizes = {part: max(one.n for one in metrics.values()) for part, metrics in self.differences.items() if metrics}
        return name == "all" or sizes.get(name, 0) not in (0, sizes["all"])

    def _table(self, name: str, differences: Mapping[str, Difference]) -> list[str]:
        runs = [translate("run {name}", name=run) for run in (self.first, self.second)]
        n = max(one.n for one in differences.values())
        grid = [[f"{_slice_name(name)} (n={n:,})", *runs, translate("difference"), ""]]
        grid += [
            difference_cells(line, differences[line.metric]) for line in self._formats() if line.metric in differences
        ]
        return align_columns(grid)

    def _formats(self) -> list[MetricFormat]:
        """The metrics of the table in its order, then any other (of a run evaluated by a later version)."""
        known = metric_formats(self.candidates)
        names = {line.metric for line in known}
        others = dict.fromkeys(metric for part in self.differences.values() for metric in part if metric not in names)
        return [*known, *(MetricFormat(metric, metric, digits=3) for metric in others)]

    def _note(self) -> list[str]:
        if self.components < MIN_COMPONENTS:
            template = "No intervals: {count} groups of questions are too few to tell a difference from chance."
            return [translate(template, count=self.components)]
        return [
            translate(
                "Difference: run {second} minus run {first}, with its interval of 95 %. Better or worse: the interval "
                "excludes 0, which 1 in 20 does by chance.",
                first=self.first,
                second=self.second,
            )
        ]

    def _answer_lines(self, samples: int) -> list[str]:
        if not self.answered:
            return []
        if not self.answers:
            return [translate("All {answered:,} questions are answered alike.", answered=self.answered)]
        template = "{different:,} of {answered:,} questions are answered differently. The largest differences in rank:"
        if not samples:
            template = "{different:,} of {answered:,} questions are answered differently."
        head = translate(template, different=len(self.answers), answered=self.answered)
        return [head, *(line for one in self.answers[:samples] for line in ["", *self._side_by_side(one)])]

    def _side_by_side(self, pair: ReplyPair) -> list[str]:
        grid = [[translate("right answer"), pair.right]]
        for run, name in enumerate((self.first, self.second)):
            place = pair.places and translate("rank {place:g}", place=round(pair.places[run], 1))
            label = translate("run {name}", name=name)
            reply = pair.replies[run] or translate("(nothing)")
            grid.append([f"{label} ({place})" if place else label, reply])
        flat = [[cell.replace("\n", " ") for cell in row] for row in grid]
        return [f"> {pair.question}", *(f"  {line}" for line in align_columns(flat))]

    def preference_lines(self) -> list[str]:
        """The result of blind comparisons; empty before the first one."""
        counts = self.preferences
        if not counts.first + counts.second + counts.ties:
            return []
        summary = translate(
            "Blind comparison: run {first} better {wins:,} times, run {second} better {losses:,} times, {ties:,} ties.",
            first=self.first,
            second=self.second,
            wins=counts.first,
            losses=counts.second,
            ties=counts.ties,
        )
        return [summary, *self._share_lines()]

    def _share_lines(self) -> list[str]:
        counts = self.preferences
        if counts.share is None or counts.low is None or counts.high is None:
            return []
        numbers = [round(100 * value) for value in (counts.share, counts.low, counts.high)]
        share = translate(
            "Without the ties run {second} wins {share} % (interval of 95 %: {low} to {high}, sign test p = {p:.2g}):",
            second=self.second,
            **dict(zip(("share", "low", "high"), numbers, strict=True)),
            p=counts.p,
        )
        better = self.second if counts.share > 0.5 else self.first
        clear = translate("run {name} is better.", name=better) if counts.clear else translate("no clear difference.")
        return [f"{share} {clear}"]


def setting_lines(settings: Mapping[str, Sequence[object]], names: Sequence[str]) -> list[str]:
    """A table of the differing settings: settings down, runs across."""
    if not settings:
        return [translate("No setting differs.")]
    heads = [translate("what differs"), *(translate("run {name}", name=name) for name in names)]
    return align_columns(
        [heads, *([_setting_name(name), *map(_format_value, values)] for name, values in settings.items())]
    )


def _finite_fields(difference: Difference) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(difference).items()
    }


def difference_cells(line: MetricFormat, difference: Difference) -> list[str]:
    """A metric's row of a table: heading, both values, the difference with its interval, the verdict."""
    values = [_number(line, value) for value in (difference.first, difference.second)]
    change = _number(line, difference.difference, "+")
    if difference.low is not None and difference.high is not None:
        change += f" [{_number(line, difference.low, '+')}, {_number(line, difference.high, '+')}]"
    verdicts = {
        "better": translate("better"),
        "worse": translate("worse"),
        "more": translate("more"),
        "less": translate("less"),
        "none": translate("no clear difference"),
    }
    return [line.heading, *values, change, verdicts[difference.verdict] if difference.verdict else ""]


def _number(line: MetricFormat, value: float, sign: str = "") -> str:
    return f"{value * line.scale:{sign}.{line.digits}f}" if math.isfinite(value) else "?"


def _slice_name(name: str) -> str:
    names = {"all": translate("all pairs"), "seen": translate("seen answers"), "unseen": translate("unseen answers")}
    return names.get(name, name)


def _setting_name(name: str) -> str:
    group, _, option = name.partition(".")
    if group in _OPTION_GROUPS:
        return "--" + option.replace("_", "-")
    names = {
        "file": translate("file"),
        "data.sha256": translate("digest of the file"),
        "data.rows": translate("rows of the file"),
        "data.usable": translate("usable rows"),
        "data.train": translate("training rows"),
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
    return names.get(name, name)


def _format_value(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…{text[-12:]}"
