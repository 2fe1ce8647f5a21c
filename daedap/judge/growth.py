"""A run that goes on from another one: what it has forgotten of the old rows, and what it has gained on the new."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from daedap.data.split import drawn
from daedap.judge.compare import Difference, differences
from daedap.judge.duel import cells
from daedap.judge.judged import Common
from daedap.judge.metrics import Score
from daedap.judge.paraphrases import Paraphrase, answer_paraphrases
from daedap.judge.table import Line, align, cell, metrics_shown
from daedap.korean import comparison_form
from daedap.language import say

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from daedap.judge.evaluation import Row
    from daedap.judge.systems import Answerer
    from daedap.pair import Pair

BEFORE = {"parent": "model", "parent_bot": "bot"}
"""Systems that are the parent's → what they are in a run of its own."""
_TOLD = ("hits_at_1", "bpc", "question_gain")
_MOST = 200
"""New questions that are asked at most."""


@dataclass(frozen=True)
class Growth:
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
        answered = say(told, before=cell(right, self.before), after=cell(right, self.after), count=self.after.n)
        tables = [self._table(say("known test rows"), self.kept), self._table(say("new test rows"), self.gained)]
        return [*(line for table in tables if table for line in [*table, ""]), answered]

    def _table(self, name: str, found: Mapping[str, Difference]) -> list[str]:
        lines = [line for line in metrics_shown(self.candidates) if line.metric in found]
        if not lines:
            return []
        n = max(one.n for one in found.values())
        runs = [say("run {name}", name=run) for run in (self.parent, self.run)]
        return align(
            [[f"{name} (n={n:,})", *runs, say("difference"), ""], *(cells(line, found[line.metric]) for line in lines)]
        )


def beside_parent(rows: Sequence[Row], known: Collection[str]) -> tuple[dict[str, Difference], dict[str, Difference]]:
    """Differences to the parent on the test rows with known ids, and on the others."""
    old = [row for row in rows if row.id in known]
    return _difference(old), _difference([row for row in rows if row.id not in known])


def answered_as_told(bot: Answerer, new: Sequence[Pair]) -> Score:
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
    found = differences(Common(both, groups.astype(np.int64), leaked=0, alone=0, same_test=True))["all"]
    return {metric: found[metric] for metric in _TOLD if metric in found}


def _parents(row: Row) -> Row:
    """The row as the parent would have kept it."""
    return replace(
        row,
        shares={mine: row.shares[name] for name, mine in BEFORE.items() if name in row.shares},
        replies={mine: row.replies[name] for name, mine in BEFORE.items() if name in row.replies},
    )
