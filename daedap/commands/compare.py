"""`daedap compare`: what is better in one run than in another, by the numbers and by eye."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

import daedap.runs as run_store
from daedap.config import RUNS
from daedap.errors import SettingsError
from daedap.evaluation.compare import (
    EvaluatedRun,
    ReplyPair,
    common_rows,
    count_replied,
    differences,
    differing_replies,
    differing_settings,
    read_evaluated_run,
)
from daedap.evaluation.comparison_report import RunComparison, setting_lines
from daedap.evaluation.preferences import (
    Preference,
    append_preference,
    count_preferences,
    on_answers,
    read_preferences,
)
from daedap.i18n import translate
from daedap.runs import Json, Run

PREFERENCES = "verdicts.jsonl"
"""The file of preferences, in the folder of the runs."""


@dataclass(frozen=True)
class Comparison:
    """Runs, each compared with the first of them."""

    runs: Sequence[Run]
    settings: dict[str, list[object]]
    """Differing settings by name; values in the order of the runs."""
    comparisons: Sequence[RunComparison]
    """One for each run after the first."""
    names: Sequence[str]
    samples: int
    blind: bool
    """Show the preferences only: scores would bias the next blind comparison."""

    def to_json(self) -> Json:
        """Runs, settings and comparisons as a JSON object."""
        return {
            "runs": [
                {"name": name, "folder": str(run.folder)} for name, run in zip(self.names, self.runs, strict=True)
            ],
            "settings": self.settings,
            "comparisons": [one.to_json(self.samples) for one in self.comparisons],
        }

    def lines(self) -> list[str]:
        """Tables and replies, or the preferences alone after a blind comparison."""
        if self.blind:
            return [line for one in self.comparisons for line in one.preference_lines()]
        blocks = [setting_lines(self.settings, self.names), *(one.lines(self.samples) for one in self.comparisons)]
        return [line for block in blocks for line in [*block, ""]][:-1]


def compare(
    run: Annotated[Sequence[str], Parameter(negative=())],
    *,
    samples: int = 10,
    blind: bool = False,
    runs: Path = RUNS,
) -> Comparison:
    """Compare runs with the first of them: scores with paired intervals, settings, answers side by side.

    Raises RunError and SettingsError.

    Parameters
    ----------
    run
        Two or more runs: number, folder, latest or best. The first is what the others are compared with.
    samples
        Show this many questions that the runs answer differently.
    blind
        Choose the better of two answers without knowing which run gave it; every choice is saved at once.
    runs
        Folder of the runs.
    """
    chosen = _find_runs(run, runs, blind=blind)
    if samples < 0:
        raise SettingsError("--{name} {value}: must not be negative.", name="samples", value=samples)
    evaluated = [read_evaluated_run(one) for one in chosen]
    names = _names(chosen)
    pairs = [
        _RunPair(runs, evaluated[0], other, (names[0], name))
        for other, name in zip(evaluated[1:], names[1:], strict=True)
    ]
    comparisons = [pair.compare() for pair in pairs]
    if blind:
        _ask_preferences(pairs[0], comparisons[0])
        comparisons = [pairs[0].compare()]
    return Comparison(chosen, differing_settings(chosen), comparisons, names, samples, blind)


def _find_runs(named: Sequence[str], runs: Path, *, blind: bool) -> list[Run]:
    if len(named) < 2:
        raise SettingsError("A comparison needs at least two runs.", "Name another one: daedap compare RUN RUN")
    chosen = [run_store.find(name, runs) for name in named]
    if len({run.folder.resolve() for run in chosen}) < len(chosen):
        raise SettingsError("{runs}: a run is named twice.", "Name different runs.", runs=" ".join(named))
    if blind and len(chosen) > 2:
        raise SettingsError("--blind compares two runs, not {count}.", "Name two runs.", count=len(chosen))
    return chosen


def _names(chosen: Sequence[Run]) -> list[str]:
    """The runs' numbers, or their folders if the numbers are not unique."""
    numbers = {run.number for run in chosen}
    unique = len(numbers) == len(chosen) and 0 not in numbers
    return [str(run.number) if unique else str(run.folder) for run in chosen]


@dataclass(frozen=True)
class _RunPair:
    """The baseline and another run."""

    runs: Path
    first: EvaluatedRun
    second: EvaluatedRun
    names: tuple[str, str]

    @property
    def preference_file(self) -> Path:
        return self.runs / PREFERENCES

    @property
    def keys(self) -> tuple[str, str]:
        """The runs' names in the preference file: relative paths, so that the folder of the runs can be moved."""
        folders = [one.run.folder.resolve() for one in (self.first, self.second)]
        root = self.runs.resolve()
        first, second = (str(path.relative_to(root) if path.is_relative_to(root) else path) for path in folders)
        return first, second

    def replies(self, pair: ReplyPair) -> dict[str, str]:
        return dict(zip(self.keys, pair.replies, strict=True))

    def compare(self) -> RunComparison:
        common = common_rows(self.first, self.second)
        replies = differing_replies(common, {**self.second.questions, **self.first.questions})
        saved = read_preferences(self.preference_file)
        preferences = [one for pair in replies for one in on_answers(saved, self.replies(pair), pair.id)]
        return RunComparison(
            *self.names,
            rows=len(common.rows),
            components=len(set(common.groups.tolist())),
            leaked=common.leaked,
            alone=common.alone,
            same_test=common.same_test,
            candidates=self.first.candidates,
            differences=differences(common),
            answered=count_replied(common),
            answers=replies,
            preferences=count_preferences(preferences, *self.keys),
        )


def _ask_preferences(runs: _RunPair, comparison: RunComparison) -> None:
    """Ask which reply is better until all pairs have a preference, `q`, Ctrl-C or the end of input."""
    saved = read_preferences(runs.preference_file)
    # By id, which is as good as random: with the largest differences first, the sample would be biased.
    pending = sorted(
        (pair for pair in comparison.answers if not on_answers(saved, runs.replies(pair), pair.id)),
        key=lambda pair: pair.id,
    )
    total, done = len(comparison.answers), len(comparison.answers) - len(pending)
    _print(
        translate("{count:,} questions are answered differently, {done:,} of them compared.", count=total, done=done)
    )
    try:
        for number, pair in enumerate(pending, start=done + 1):
            order = random.sample(runs.keys, 2)
            _show(f"[{number}/{total}] {pair.question}", [runs.replies(pair)[key] for key in order])
            if (choice := _ask()) is None:
                return
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            winner = None if choice == 0 else order[choice - 1]
            shown = (order[0], order[1])
            preference = Preference(now, pair.id, pair.question, runs.replies(pair), shown, winner)
            append_preference(runs.preference_file, preference)
    except KeyboardInterrupt:  # earlier preferences are saved
        _print("")


def _show(question: str, replies: Sequence[str]) -> None:
    _print(f"\n{question}")
    for number, reply in enumerate(replies, start=1):
        _print(f"  {number}  {reply or translate('(nothing)')}")


def _ask() -> int | None:
    """1 or 2, 0 for a tie, None to stop."""
    choices = {"1": 1, "2": 2, "=": 0, "q": None, "ㅂ": None}  # ㅂ: the q key of a Korean keyboard
    while True:
        sys.stderr.write(translate("Which is better? 1, 2, = (alike), q (enough)") + " > ")
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not line or line.strip().casefold() in choices:
            return choices[line.strip().casefold()] if line else None


def _print(text: str) -> None:
    sys.stderr.write(text + "\n")
