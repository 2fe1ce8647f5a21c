"""Blind comparisons of two runs in the database: answers, verdicts, the tally."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sql

from daedap.database.connection import Database
from daedap.database.schema import comparisons

TIE = 0
"""The winner of a comparison that both runs won."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs' answers to a question, in the order in which they were shown."""

    id: str
    client: str
    question: str
    left_run: int
    right_run: int
    left_answer: str
    right_answer: str
    time: str
    winner: int | None = None
    """A run, TIE, or None: not judged yet."""


@dataclass(frozen=True)
class ComparisonStore:
    """The comparisons of a database."""

    database: Database

    def add(self, comparison: Comparison) -> None:
        """Keep a comparison that is about to be shown."""
        with self.database.write() as connection:
            connection.execute(comparisons.insert().values(**asdict(comparison)))

    def find(self, id: str, client: str) -> Comparison | None:
        """A comparison that was shown to this client."""
        with self.database.read() as connection:
            row = connection.execute(sql.select(comparisons).filter_by(id=id, client=client)).one_or_none()
            return Comparison(**row._mapping) if row else None

    def judge(self, id: str, winner: int) -> None:
        """Keep a verdict: a run or TIE."""
        with self.database.write() as connection:
            connection.execute(comparisons.update().where(comparisons.c.id == id).values(winner=winner))

    def winners(self, first: int, second: int) -> Counter[int]:
        """How often each of two runs won, and TIE."""
        both: Any = comparisons.c.left_run.in_((first, second)) & comparisons.c.right_run.in_((first, second))
        query = sql.select(comparisons.c.winner).where(both, comparisons.c.winner.is_not(None))
        with self.database.read() as connection:
            return Counter(connection.execute(query).scalars())
