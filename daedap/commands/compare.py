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

import daedap.evaluation.preferences as kept
import daedap.runs as store
from daedap.errors import SettingsError
from daedap.evaluation.compare import (
    Answers,
    EvaluatedRun,
    answered,
    answers,
    common,
    differences,
    differing,
    read_judged,
)
from daedap.evaluation.comparison import RunComparison, setting_lines
from daedap.evaluation.preferences import Verdict
from daedap.i18n import translate
from daedap.runs import FOLDER, Json, Run

VERDICTS = "verdicts.jsonl"
"""Where verdicts are kept, in the folder of the runs."""


@dataclass(frozen=True)
class Comparison:
    """Runs beside the first of them."""

    runs: Sequence[Run]
    settings: dict[str, list[object]]
    """What differs, by name; the values in the order of the runs."""
    duels: Sequence[RunComparison]
    """One for each run after the first."""
    names: Sequence[str]
    samples: int
    blind: bool
    """The answers have just been judged blind, so that nothing else is told: there may be more to judge."""

    def to_json(self) -> Json:
        """A JSON object."""
        return {
            "runs": [
                {"name": name, "folder": str(run.folder)} for name, run in zip(self.names, self.runs, strict=True)
            ],
            "settings": self.settings,
            "comparisons": [duel.to_json(self.samples) for duel in self.duels],
        }

    def lines(self) -> list[str]:
        """Tables and answers, or the verdicts alone after a blind comparison."""
        if self.blind:
            return [line for duel in self.duels for line in duel.verdict_lines()]
        blocks = [setting_lines(self.settings, self.names), *(duel.lines(self.samples) for duel in self.duels)]
        return [line for block in blocks for line in [*block, ""]][:-1]


def compare(
    run: Annotated[Sequence[str], Parameter(negative=())],
    *,
    samples: int = 10,
    blind: bool = False,
    runs: Path = FOLDER,
) -> Comparison:
    """Compare runs with the first of them: scores with paired intervals, settings, answers side by side.

    Raises RunError and SettingsError.

    Parameters
    ----------
    run
        Two or more runs: number, folder, latest or best. The first is what the others are compared with.
    samples
        Show so many questions that the runs answer differently.
    blind
        Say yourself which of two answers is better, without knowing whose it is; every verdict is kept at once.
    runs
        Folder of the runs.
    """
    found = _found(run, runs, blind=blind)
    if samples < 0:
        raise SettingsError("--{name} {value}: must not be negative.", name="samples", value=samples)
    judged = [read_judged(one) for one in found]
    names = _names(found)
    rivals = [
        _Rivals(runs, judged[0], other, (names[0], name)) for other, name in zip(judged[1:], names[1:], strict=True)
    ]
    duels = [one.duel() for one in rivals]
    if blind:
        _judge(rivals[0], duels[0])
        duels = [rivals[0].duel()]
    return Comparison(found, differing(found), duels, names, samples, blind)


def _found(named: Sequence[str], runs: Path, *, blind: bool) -> list[Run]:
    if len(named) < 2:
        raise SettingsError("A comparison needs at least two runs.", "Name another one: daedap compare RUN RUN")
    found = [store.find(name, runs) for name in named]
    if len({run.folder.resolve() for run in found}) < len(found):
        raise SettingsError("{runs}: a run is named twice.", "Name different runs.", runs=" ".join(named))
    if blind and len(found) > 2:
        raise SettingsError("--blind compares two runs, not {count}.", "Name two runs.", count=len(found))
    return found


def _names(found: Sequence[Run]) -> list[str]:
    """What the runs are called: their numbers, or their folders where numbers don't tell them apart."""
    numbers = {run.number for run in found}
    plain = len(numbers) == len(found) and 0 not in numbers
    return [str(run.number) if plain else str(run.folder) for run in found]


@dataclass(frozen=True)
class _Rivals:
    """The baseline and another run, with the verdicts on them."""

    runs: Path
    first: EvaluatedRun
    second: EvaluatedRun
    names: tuple[str, str]

    @property
    def verdicts(self) -> Path:
        return self.runs / VERDICTS

    @property
    def keys(self) -> tuple[str, str]:
        """What the runs are called in the file of verdicts: moving the folder of the runs changes nothing."""
        folders = [one.run.folder.resolve() for one in (self.first, self.second)]
        root = self.runs.resolve()
        first, second = (str(path.relative_to(root) if path.is_relative_to(root) else path) for path in folders)
        return first, second

    def replies(self, one: Answers) -> dict[str, str]:
        return dict(zip(self.keys, one.replies, strict=True))

    def duel(self) -> RunComparison:
        rows = common(self.first, self.second)
        listed = answers(rows, {**self.second.asked, **self.first.asked})
        told = kept.read(self.verdicts)
        mine = [verdict for one in listed for verdict in kept.on(told, self.replies(one), one.id)]
        return RunComparison(
            *self.names,
            rows=len(rows.rows),
            components=len(set(rows.groups.tolist())),
            leaked=rows.leaked,
            alone=rows.alone,
            same_test=rows.same_test,
            candidates=self.first.candidates,
            differences=differences(rows),
            answered=answered(rows),
            answers=listed,
            verdicts=kept.count(mine, *self.keys),
        )


def _judge(rivals: _Rivals, duel: RunComparison) -> None:
    """Ask which answer is better until all are judged, `q`, Ctrl-C or the end of input."""
    told = kept.read(rivals.verdicts)
    # By id, which is as good as random: the most telling ones first would judge the metrics rather than the runs.
    waiting = sorted(
        (one for one in duel.answers if not kept.on(told, rivals.replies(one), one.id)), key=lambda one: one.id
    )
    done = len(duel.answers) - len(waiting)
    _tell(
        translate(
            "{count:,} questions are answered differently, {done:,} of them judged.", count=len(duel.answers), done=done
        )
    )
    try:
        for place, one in enumerate(waiting, start=done + 1):
            order = random.sample(rivals.keys, 2)
            _show(f"[{place}/{len(duel.answers)}] {one.question}", [rivals.replies(one)[key] for key in order])
            if (choice := _ask()) is None:
                return
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            winner = None if choice == 0 else order[choice - 1]
            shown = (order[0], order[1])
            kept.add(rivals.verdicts, Verdict(now, one.id, one.question, rivals.replies(one), shown, winner))
    except KeyboardInterrupt:  # ends the judging; what was said is kept
        _tell("")


def _show(question: str, replies: Sequence[str]) -> None:
    _tell(f"\n{question}")
    for place, reply in enumerate(replies, start=1):
        _tell(f"  {place}  {reply or translate('(nothing)')}")


def _ask() -> int | None:
    """1, 2, or 0 for a tie; None when there is enough."""
    answers = {"1": 1, "2": 2, "=": 0, "q": None, "ㅂ": None}  # ㅂ: q on a Korean keyboard
    while True:
        sys.stderr.write(translate("Which is better? 1, 2, = (alike), q (enough)") + " > ")
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not line or line.strip().casefold() in answers:
            return answers[line.strip().casefold()] if line else None


def _tell(text: str) -> None:
    sys.stderr.write(text + "\n")
