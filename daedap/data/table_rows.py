"""Rows of tables → pairs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from daedap.data.clean import BadRow, excerpt
from daedap.data.column_stats import Column
from daedap.data.columns import Columns
from daedap.data.conversation import Conversation, pairs_of, table_conversations
from daedap.data.headers import header_role
from daedap.data.json_layouts import marked_turns, round_pairs
from daedap.data.source import Source
from daedap.data.tables import QUOTED_LINES, Record, bad_record
from daedap.data.turn_columns import TurnColumns
from daedap.korean.text import comparison_form
from daedap.types import Pair, Role

_BOTH = re.compile(
    r"\s*[\[<]?(?:Q|질문|문)\s*\d*[\]>.):]\s*(\S.*?)\s*\n\s*[\[<]?(?:A|답변|답)\s*\d*[\]>.):]\s*(\S.*)",
    re.DOTALL | re.IGNORECASE,
)
"""A cell with a question and its answer."""


def table_rows(table: Iterable[Record], columns: Columns | TurnColumns, source: Source) -> Iterator[Pair | BadRow]:
    """The pairs of a table's records; those of its header and above it are passed over."""
    table = (record for record in table if record.line > columns.header_line)
    if isinstance(columns, TurnColumns):
        yield from table_conversations(table, columns, source.speaker, source.path.name)
        return
    names = [comparison_form(name) for name in columns.names]
    categories = _CategoryAnswers(columns)
    for record in table:
        if names and record.fields and _repeats(names, record.fields):
            yield BadRow(record.line, "header", excerpt(record.text.strip()))
        else:
            yield from categories.fill(_row(record, columns, source))


def _repeats(names: Sequence[str], fields: Sequence[str]) -> bool:
    """Whether a row is the header again; most rows differ in their first cell."""
    return len(names) == len(fields) and all(
        comparison_form(cell) == name for cell, name in zip(fields, names, strict=True)
    )


def _row(record: Record, columns: Columns, source: Source) -> Iterator[Pair | BadRow]:
    """The pairs of a row: one for every wording of the question, or those of the conversation in it."""
    fields, width = record.fields, columns.width
    if fields is None or not any(map(str.strip, fields)):
        yield bad_record(record)
        return
    if len(fields) != width:
        fields = _fitted(fields, columns, source)
    if fields is None:
        yield bad_record(record)
        return
    label = fields[columns.label.index] if columns.label else ""
    if columns.rounds:
        yield from round_pairs(fields, columns, record.line, Conversation(f"{source.path.name}:{record.line}", label))
        return
    answer = fields[columns.answer.index]
    yield Pair(fields[columns.question.index], answer, label, line=record.line)
    for column in columns.alternatives:
        numbered = column.name[-1:].isdigit()
        wordings = [fields[column.index]] if numbered else fields[column.index].replace(";", "\n").split("\n")
        yield from (Pair(text, answer, label, line=record.line) for text in wordings if text.strip())


class _CategoryAnswers:
    """Gives rows without an answer those of their category, in turns: scripts of a chatbot (구분, 유저, 챗봇).

    Such a script lists the wordings of a category beside its answers, of which there are fewer. In other tables a row
    without an answer is incomplete.
    """

    def __init__(self, columns: Columns) -> None:
        role = header_role(columns.answer.name) if columns.header else None
        self.is_script = bool(columns.label and role and role.role == "answer" and role.rank > 3)
        self.label, self.answers, self.given = "", list[str](), 0

    def fill(self, row: Iterable[Pair | BadRow]) -> Iterator[Pair | BadRow]:
        """The pairs of a row, completed."""
        for pair in row:
            if not self.is_script or isinstance(pair, BadRow) or not pair.label or not pair.question.strip():
                yield pair
                continue
            if pair.label != self.label:
                self.label, self.answers, self.given = pair.label, [], 0
            if pair.answer.strip():
                self.answers.append(pair.answer)
                yield pair
            elif self.answers:
                yield BadRow(pair.line, "category", excerpt(pair.question))
                yield replace(pair, answer=self.answers[self.given % len(self.answers)])
                self.given += 1
            else:
                yield pair


def text_rows(table: Iterable[Record], texts: Column, name: str) -> Iterator[Pair | BadRow]:
    """The pairs of a table that holds whole conversations in one column of texts.

    Args:
        table: Its records.
        texts: The column.
        name: Of the file, for conversation ids.
    """
    for record in table:
        fields = record.fields
        cell = fields[texts.index] if fields and texts.index < len(fields) else ""
        if turns := cell_turns(cell, record.line):
            yield from pairs_of(turns, Conversation(f"{name}:{record.line}"))
        elif fields is None or cell.strip() != texts.name:
            yield bad_record(record)


def cell_turns(cell: str, line: int) -> list[tuple[Role, str, int]]:
    """The turns of a text that was rendered for training, or of a question and its answer: Q. …, A. … below it."""
    text = cell.replace("\\n", "\n")
    if match := _BOTH.match(text):
        return [("user", match[1], line), ("assistant", match[2], line)]
    return marked_turns(text, line)


def _fitted(fields: list[str], columns: Columns, source: Source) -> list[str] | None:
    """A row with as many fields as the table has columns; None when it is broken.

    Programs leave out empty cells at the end of a row, and remarks may stand beside a sheet's table. Commas in an
    answer without quotes (`네, 됩니다`) are followed by a space, unlike those between fields; a tab is no part of text.
    """
    width = columns.width
    if len(fields) < width:
        complete = max(columns.question.index, columns.answer.index) < len(fields) or source.format == "xlsx"
        return fields + [""] * (width - len(fields)) if complete else None
    rest = fields[width:]
    if source.format == "xlsx" or not any(map(str.strip, rest)):
        return fields[:width]
    delimiter = source.delimiter.removeprefix(QUOTED_LINES)
    joins = delimiter == "\t" or all(part.startswith(" ") and part.strip() for part in rest)
    if columns.answer.index == width - 1 and joins:
        return [*fields[: width - 1], delimiter.replace("\t", " ").join(fields[width - 1 :])]
    return None
