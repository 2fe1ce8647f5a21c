"""Questions of a file, for a bot to answer: a sheet's column of questions, JSON objects, or one question a line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from daedap.data.clean import clean_text, excerpt
from daedap.data.excel import is_excel, read_sheets
from daedap.data.headers import column_stats, has_role, header_role, index_of, is_header, is_sentence
from daedap.data.inputs import JSON_SUFFIXES, detect, open_text, refuse_damaged_archive, refuse_unreadable, suffix_of
from daedap.data.json_layouts import as_text
from daedap.data.objects import objects
from daedap.data.tables import QUOTED_LINES, records, sniff
from daedap.errors import DataError
from daedap.korean.text import comparison_form

_SAMPLE = 200


def read_questions(path: Path, column: str | None = None) -> Iterator[str]:
    """The questions of a workbook, a table, JSON objects, or a text with one question a line; without empty ones.

    `column` is the name of the questions' column or key, or its number from 1; None: found by its name or content.
    Raises DataError when the file can't be read, or when it is not clear which column holds the questions.
    """
    refuse_unreadable(path)
    refuse_damaged_archive(path)
    if is_excel(path):
        texts: Iterator[str] = _of_workbook(path, column)
    elif suffix_of(path) in JSON_SUFFIXES:
        texts = _of_objects(path, column)
    elif suffix_of(path) in (".csv", ".tsv", ".tab") or column:
        texts = _of_table(path, column)
    else:
        texts = _of_lines(path)
    yield from filter(None, (clean_text(text)[0] for text in texts))


def _of_lines(path: Path) -> Iterator[str]:
    with open_text(path, detect(path)) as lines:
        yield from lines


def _of_workbook(path: Path, column: str | None) -> Iterator[str]:
    """The questions of all visible sheets that have such a column."""
    sheets = read_sheets(path)
    refusals: list[DataError] = []
    sheets = [sheet for sheet in sheets if not sheet.hidden] or sheets
    for sheet in sheets:
        rows = [record.fields or [] for record in sheet.records]
        try:
            index, first = _question_column(rows[:_SAMPLE], column, path)
        except DataError as error:
            refusals.append(error)
        else:
            yield from (row[index] for row in rows[first:] if index < len(row))
    if refusals and len(refusals) == len(sheets):
        raise refusals[0]


def _of_table(path: Path, column: str | None) -> Iterator[str]:
    encoding = detect(path)
    with open_text(path, encoding) as lines:
        sample = list(islice(lines, _SAMPLE))
    delimiter = sniff(sample, "," if path.suffix.lower() == ".csv" else "\t")
    rows = [record.fields or [record.text.strip()] for record in records(sample, delimiter)]
    if max(map(len, rows), default=0) < 2 or not any(delimiter.removeprefix(QUOTED_LINES) in line for line in sample):
        rows, delimiter = [[line.strip().strip('"')] for line in sample], ""
    index, first = _question_column(rows, column, path)
    with open_text(path, encoding) as lines:
        if not delimiter:
            yield from (line.strip().strip('"') for line in islice(lines, first, None))
            return
        for row in islice(records(lines, delimiter), first, None):
            if row.fields and index < len(row.fields):
                yield row.fields[index]


def _of_objects(path: Path, column: str | None) -> Iterator[str]:
    index = -1
    with open_text(path, detect(path)) as lines:
        for _, row in objects(lines):
            if not isinstance(row, dict):
                continue
            names = list(row)
            if column not in names and index < 0:
                index, _ = _question_column([names], column, path)
            name = column if column in names else names[index] if index < len(names) else ""
            yield as_text(row.get(name)) or ""


def _question_column(rows: Sequence[Sequence[str]], column: str | None, path: Path) -> tuple[int, int]:
    """Index of the column of questions, and of the first row below the header."""
    filled = [sum(bool(cell.strip()) for cell in row) for row in rows]
    begin = [number for number, count in enumerate(filled) if count][:20]
    width = max(map(len, rows), default=0)
    usual = Counter(filter(None, filled)).most_common(1)
    header = next((number for number in begin if _is_header(rows[number], usual[0][0])), -1)
    if column:
        form = comparison_form(column)
        header = next((number for number in begin if form in map(comparison_form, rows[number])), header)
    names = rows[header] if header >= 0 else next((row for row in rows if len(row) == width), [])
    if column:
        return _chosen(names, width, column, path), header + 1
    roles = [(header_role(name), index) for index, name in enumerate(names)]
    named = [(role.rank, index) for role, index in roles if role and role.role == "question"]
    if named and header >= 0:
        return min(named)[1], header + 1
    stats = [column_stats(rows[header + 1 :], index) for index in range(width)]
    texts = [index for index, column_of in enumerate(stats) if column_of.kind in ("text", "category") or width == 1]
    if len(texts) != 1:
        likely = max(texts or range(width), key=lambda index: (stats[index].questions, stats[index].asks), default=0)
        raise DataError(
            "{file}: it is not clear which column holds the questions. Columns: {columns}.",
            "Say it with its name or number: --question-column {column}",
            file=path,
            columns=_listed(names),
            column=likely + 1,
        )
    return texts[0], header + 1


def _is_header(row: Sequence[str], usual: int) -> bool:
    """Whether a row names a column of questions; the only one when rows have usually one cell, else it is a title."""
    if sum(bool(cell.strip()) for cell in row) < min(2, usual):
        return False
    named = any(has_role(name, "question", below=3) for name in row)
    return is_header(row) or (named and not any(is_sentence(name) for name in row if not header_role(name)))


def _chosen(names: Sequence[str], width: int, column: str, path: Path) -> int:
    if (index := index_of(column, names)) is not None:
        return index
    if re.fullmatch(r"\d+", column.strip()) and 1 <= int(column) <= width:
        return int(column) - 1
    raise DataError(
        "{file} has no column {value}; its columns are {columns}.",
        "Give one of these names, or a number counted from 1.",
        file=path,
        value=column,
        columns=_listed(names),
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"{number} '{excerpt(name.strip())[:30]}'" for number, name in enumerate(names[:12], 1))
