"""What `daedap compare` reports on two runs: scores, replies side by side, preferences, settings; text and JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from daedap.evaluation.compare import (
    MIN_COMPONENTS,
    PREFERENCES,
    CommonRows,
    Difference,
    EvaluatedRun,
    ReplyPair,
    common_rows,
    count_preferences,
    count_replied,
    differences,
    differing_replies,
    on_answers,
    preference_keys,
    read_preferences,
)
from daedap.evaluation.metrics import PreferenceCounts, as_json
from daedap.evaluation.tables import MetricFormat, align_columns, join_blocks, metric_formats, slice_title
from daedap.i18n import translate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from daedap.runs import Run


@dataclass(frozen=True)
class RunComparison:
    """Everything that `daedap compare` reports on two runs."""

    first: str
    """Name of the run that the other one is compared with."""
    second: str
    common: CommonRows
    candidates: int
    differences: Mapping[str, Mapping[str, Difference]]
    """Slice → metric → difference."""
    answers: Sequence[ReplyPair]
    """The questions answered differently, the largest difference in rank first."""
    preferences: PreferenceCounts

    def to_json(self, samples: int) -> dict[str, Any]:
        """A JSON object with the first `samples` reply pairs; NaN and infinity as null."""
        return {
            "first": self.first,
            "second": self.second,
            "rows": len(self.common.rows),
            "components": self.common.components,
            "leaked": self.common.leaked,
            "alone": self.common.alone,
            "same_test": self.common.same_test,
            "candidates": self.candidates,
            "answered": count_replied(self.common),
            "answered_differently": len(self.answers),
            "differences": as_json(self.differences),
            "samples": [one.to_json() for one in self.answers[:samples]],
            "verdicts": as_json(self.preferences),
        }

    def lines(self, samples: int) -> list[str]:
        """Tables, the first `samples` reply pairs side by side, and the preferences."""
        formats, runs = self._formats(), (self.first, self.second)
        tables = [
            difference_table(slice_title(name), runs, metrics, formats)
            for name, metrics in self.differences.items()
            if self._is_informative(name)
        ]
        return join_blocks([self._head(), *tables, self._note(), self._answer_lines(samples), self.preference_lines()])

    def _head(self) -> list[str]:
        first, second, common = self.first, self.second, self.common
        heading = "Run {second} compared with run {first}, on the {rows:,} rows that both were tested on."
        lines = [translate(heading, first=first, second=second, rows=len(common.rows))]
        if common.leaked:
            left_out = (
                "{count:,} test rows are left out: one of the runs was trained on them, or on nearly the same question."
            )
            lines.append(translate(left_out, count=common.leaked))
        if common.alone:
            only_one = "{count:,} rows are left out: only one of the runs was tested on them."
            lines.append(translate(only_one, count=common.alone))
        if not common.same_test:
            other_test = (
                "Their test rows differ, and so do the wrong answers to choose from: ranks and question gain can't "
                "be compared. Score both on one file for these: daedap evaluate --run RUN --data FILE"
            )
            lines.append(translate(other_test))
        return lines

    def _is_informative(self, name: str) -> bool:
        """Whether a slice is neither empty nor equal to all rows."""
        sizes = {part: max(one.n for one in metrics.values()) for part, metrics in self.differences.items() if metrics}
        return name == "all" or sizes.get(name, 0) not in (0, sizes["all"])

    def _formats(self) -> list[MetricFormat]:
        """The metrics of the table in its order, then any other (of a run evaluated by a later version)."""
        known = metric_formats(self.candidates)
        names = {line.metric for line in known}
        others = dict.fromkeys(metric for part in self.differences.values() for metric in part if metric not in names)
        return [*known, *(MetricFormat(metric, metric, digits=3) for metric in others)]

    def _note(self) -> list[str]:
        if self.common.components < MIN_COMPONENTS:
            template = "No intervals: {count} groups of questions are too few to tell a difference from chance."
            return [translate(template, count=self.common.components)]
        template = (
            "Difference: run {second} minus run {first}, with its interval of 95 %. Better or worse: the interval "
            "excludes 0, which 1 in 20 does by chance."
        )
        return [translate(template, first=self.first, second=self.second)]

    def _answer_lines(self, samples: int) -> list[str]:
        answered = count_replied(self.common)
        if not answered:
            return []
        if not self.answers:
            return [translate("All {answered:,} questions are answered alike.", answered=answered)]
        template = "{different:,} of {answered:,} questions are answered differently. The largest differences in rank:"
        if not samples:
            template = "{different:,} of {answered:,} questions are answered differently."
        head = translate(template, different=len(self.answers), answered=answered)
        return [head, *(line for one in self.answers[:samples] for line in ["", *self._side_by_side(one)])]

    def _side_by_side(self, pair: ReplyPair) -> list[str]:
        grid = [[translate("right answer"), pair.right]]
        for run, label in enumerate(run_heads((self.first, self.second))):
            place = pair.places and translate("rank {place:g}", place=round(pair.places[run], 1))
            grid.append([f"{label} ({place})" if place else label, pair.replies[run] or translate("(nothing)")])
        flat = [[cell.replace("\n", " ") for cell in row] for row in grid]
        return [f"> {pair.question}", *(f"  {line}" for line in align_columns(flat))]

    def preference_lines(self) -> list[str]:
        """The result of blind comparisons; empty before the first one."""
        counts = self.preferences
        if not counts.first + counts.second + counts.ties:
            return []
        template = (
            "Blind comparison: run {first} better {wins:,} times, run {second} better {losses:,} times, {ties:,} ties."
        )
        wins = {"wins": counts.first, "losses": counts.second, "ties": counts.ties}
        summary = translate(template, first=self.first, second=self.second, **wins)
        return [summary, *self._share_lines()]

    def _share_lines(self) -> list[str]:
        counts = self.preferences
        if counts.share is None or counts.low is None or counts.high is None:
            return []
        share, low, high = (round(100 * value) for value in (counts.share, counts.low, counts.high))
        template = (
            "Without the ties run {second} wins {share} % (interval of 95 %: {low} to {high}, sign test p = {p:.2g}):"
        )
        wins = translate(template, second=self.second, share=share, low=low, high=high, p=counts.p)
        better = self.second if counts.share > 0.5 else self.first
        clear = translate("run {name} is better.", name=better) if counts.clear else translate("no clear difference.")
        return [f"{wins} {clear}"]


def compare_runs(runs: Path, first: EvaluatedRun, second: EvaluatedRun, names: tuple[str, str]) -> RunComparison:
    """Compare two runs, whose preferences lie in the folder `runs`. Raises RunError."""
    common = common_rows(first, second)
    replies = differing_replies(common, {**second.questions, **first.questions})
    keys, saved = preference_keys(runs, first.run, second.run), read_preferences(runs / PREFERENCES)
    current = [one for pair in replies for one in on_answers(saved, pair.by_run(keys), pair.id)]
    return RunComparison(
        *names,
        common=common,
        candidates=first.candidates,
        differences=differences(common),
        answers=replies,
        preferences=count_preferences(current, *keys),
    )


def run_heads(names: Sequence[str]) -> list[str]:
    """The heads of the runs' columns."""
    return [translate("run {name}", name=name) for name in names]


def difference_table(
    title: str, runs: Sequence[str], differences: Mapping[str, Difference], formats: Sequence[MetricFormat]
) -> list[str]:
    """The differences between two runs, a metric a row; empty if there are none of these metrics."""
    rows = [_difference_cells(line, differences[line.metric]) for line in formats if line.metric in differences]
    if not rows:
        return []
    n = max(one.n for one in differences.values())
    return align_columns([[f"{title} (n={n:,})", *run_heads(runs), translate("difference"), ""], *rows])


def _difference_cells(line: MetricFormat, difference: Difference) -> list[str]:
    """A metric's row of a table: heading, both values, the difference with its interval, the verdict."""
    values = [line.number(value) for value in (difference.first, difference.second)]
    change = line.number(difference.difference, "+")
    if difference.low is not None and difference.high is not None:
        change += f" [{line.number(difference.low, '+')}, {line.number(difference.high, '+')}]"
    verdicts = {
        None: "",
        "better": translate("better"),
        "worse": translate("worse"),
        "more": translate("more"),
        "less": translate("less"),
        "none": translate("no clear difference"),
    }
    return [line.heading, *values, change, verdicts[difference.verdict]]


# Settings

_OPTION_GROUPS = ("read", "split", "model", "train")
"""Groups of settings whose names are command-line options of `daedap train`."""
_IGNORED_SETTINGS = frozenset({"format", "command", "evaluate", "study", "launch"})
_IGNORED_MANIFEST = frozenset(
    {"format", "number", "finished", "peak_memory_bytes", "seconds", "headline", "files", "rows"}
)
_COMPARED_DATA = frozenset({"sha256", "rows", "usable", "train", "dev", "test", "left_out", "unused"})


def differing_settings(runs: Sequence[Run]) -> dict[str, list[object]]:
    """Name (`train.learning_rate`, `training.epochs`) → its value in each run, None where a run has none.

    Only names whose values are not the same in all runs. Raises RunError.
    """
    settings = [dict(_settings(run)) for run in runs]
    names = dict.fromkeys(name for values in settings for name in values)
    columns = {name: [values.get(name) for values in settings] for name in names}
    return {name: values for name, values in columns.items() if any(value != values[0] for value in values)}


def _settings(run: Run) -> Iterator[tuple[str, object]]:
    config, manifest = run.document("config.json"), run.manifest
    yield from _flatten({name: value for name, value in config.items() if name not in _IGNORED_SETTINGS})
    data = {name: value for name, value in manifest["data"].items() if name in _COMPARED_DATA}
    record = {name: value for name, value in manifest.items() if name not in _IGNORED_MANIFEST}
    yield from _flatten({**record, "data": data})


def _flatten(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def setting_lines(settings: Mapping[str, Sequence[object]], names: Sequence[str]) -> list[str]:
    """A table of the differing settings: settings down, runs across."""
    if not settings:
        return [translate("No setting differs.")]
    rows = [[_setting_name(name), *map(_format_value, values)] for name, values in settings.items()]
    return align_columns([[translate("what differs"), *run_heads(names)], *rows])


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
