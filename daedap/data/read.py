"""A file of pairs, whatever its layout → raw pairs, one after the other; nothing is cleaned yet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import dropwhile, islice
from typing import TextIO

from daedap.data.columns import Columns, choose
from daedap.data.encoding import open_text
from daedap.data.jsonl import object_pairs, objects
from daedap.data.kakao import chat_pairs, messages
from daedap.data.problem import Problem, excerpt
from daedap.data.source import TOLD_BY_THE_FILE, Layout, Source, open_source
from daedap.data.table import Record, excel_records, records
from daedap.pair import Pair

__all__ = ["TOLD_BY_THE_FILE", "Layout", "Problem", "Source", "open_source", "rows"]


def rows(source: Source) -> Iterator[Pair | Problem]:
    """The pairs and the unreadable rows of a file, in order; holds one at a time."""
    if source.text is None:
        yield from _table_rows(excel_records(source.path), source)
        return
    with open_text(source.path, source.text) as lines:
        if source.format == "jsonl":
            yield from _json_rows(lines, source)
        elif source.format == "kakaotalk":
            yield from chat_pairs(messages(lines, source.delimiter), source.layout.answerer, source.path.name)
        else:
            yield from _table_rows(records(lines, source.delimiter), source)


def _json_rows(lines: TextIO, source: Source) -> Iterator[Pair | Problem]:
    @lru_cache(256)  # the objects of a file have the same keys, or a few kinds of them
    def columns_of(keys: tuple[str, ...]) -> Columns:
        return choose(keys, source.layout.wanted, source.path, keys=True)

    for line, row in objects(lines):
        if isinstance(row, Problem):
            yield row
        else:
            yield from object_pairs(row, line, columns_of, source.path.name)


def _table_rows(found: Iterable[Record], source: Source) -> Iterator[Pair | Problem]:
    assert source.columns, "a table has columns"
    if source.columns.header:  # blank lines may come before it
        found = islice(dropwhile(lambda record: record.fields == [], found), 1, None)
    for record in found:
        yield _row(record, source.columns, sheet=source.format == "xlsx")


def _row(record: Record, columns: Columns, *, sheet: bool) -> Pair | Problem:
    fields, width = record.fields, columns.width
    if fields is None:
        return Problem(record.line, "quote", excerpt(record.text.strip()))
    if len(fields) != width:
        if not any(map(str.strip, fields)):
            return Problem(record.line, "blank", "")
        # A sheet doesn't store empty cells at the end of a row, and notes may stand beside the table.
        if not sheet and (len(fields) < width or any(map(str.strip, fields[width:]))):
            return Problem(record.line, "fields", excerpt(record.text.strip()))
        fields = fields + [""] * (width - len(fields))
    label = fields[columns.label.index] if columns.label else ""
    return Pair(fields[columns.question.index], fields[columns.answer.index], label, line=record.line)
