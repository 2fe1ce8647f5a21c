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
    PREFERENCES,
    Preference,
    append_preference,
    on_answers,
    preference_keys,
    read_evaluated_run,
    read_preferences,
)
from daedap.evaluation.comparison_report import RunComparison, compare_runs, differing_settings, setting_lines
from daedap.evaluation.tables import join_blocks
from daedap.i18n import translate
from daedap.runs import Json, Run


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
        comparisons = (one.lines(self.samples) for one in self.comparisons)
        return join_blocks([setting_lines(self.settings, self.names), *comparisons])


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
    first, *others = [read_evaluated_run(one) for one in chosen]
    names = _names(chosen)
    comparisons = [
        compare_runs(runs, first, other, (names[0], name)) for other, name in zip(others, names[1:], strict=True)
    ]
    if blind:
        _ask_preferences(comparisons[0], runs / PREFERENCES, preference_keys(runs, *chosen))
        comparisons = [compare_runs(runs, first, others[0], (names[0], names[1]))]
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


def _ask_preferences(comparison: RunComparison, file: Path, keys: tuple[str, str]) -> None:
    """Ask which reply is better until all pairs have a preference, `q`, Ctrl-C or the end of input."""
    saved = read_preferences(file)
    # By id, which is as good as random: with the largest differences first, the sample would be biased.
    pending = sorted(
        (pair for pair in comparison.answers if not on_answers(saved, pair.by_run(keys), pair.id)),
        key=lambda pair: pair.id,
    )
    total, done = len(comparison.answers), len(comparison.answers) - len(pending)
    head = "{count:,} questions are answered differently, {done:,} of them compared."
    _print(translate(head, count=total, done=done))
    try:
        for number, pair in enumerate(pending, start=done + 1):
            replies, shown = pair.by_run(keys), random.choice([keys, (keys[1], keys[0])])
            _print(f"\n[{number}/{total}] {pair.question}")
            for place, key in enumerate(shown, start=1):
                _print(f"  {place}  {replies[key] or translate('(nothing)')}")
            if (choice := _ask()) is None:
                return
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            winner = None if choice == 0 else shown[choice - 1]
            append_preference(file, Preference(now, pair.id, pair.question, replies, shown, winner))
    except KeyboardInterrupt:  # earlier preferences are saved
        _print("")


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
