"""Files of questions to test a bot with: known questions in other words, and questions that no known answer fits.

Any table, workbook, JSON, YAML or Parquet file that daedap reads. Columns are found as in training data; a column of
kinds (a label, or one named `kind`) splits the scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from daedap.data.clean import BadRow, excerpt
from daedap.data.columns import Columns, choose_columns
from daedap.data.excel import is_excel, read_sheets
from daedap.data.headers import column_stats, find_header, header_role
from daedap.data.inputs import (
    JSON_SUFFIXES,
    YAML_SUFFIXES,
    detect,
    open_text,
    refuse_unknown,
    refuse_unreadable,
    suffix_of,
)
from daedap.data.objects import objects, parquet_objects, yaml_objects
from daedap.data.tables import records, sniff
from daedap.errors import DataError
from daedap.korean.text import comparison_form
from daedap.types import Pair

SEPARATOR = "|"
"""Between several right answers."""
_SAMPLE = 200
"""Rows read to find the columns."""
_QUESTION_HEADERS = frozenset({"question", "questions", "질문", "문의", "발화", "query"})
"""What a file's only column may be called; any other first line is a question."""


@dataclass(frozen=True, slots=True)
class EvalQuestion:
    """A question to test a bot with."""

    question: str
    answers: tuple[str, ...] = ()
    """Every right answer; none: out of scope, nothing known answers it."""
    kind: str = ""

    @property
    def forms(self) -> set[str]:
        """Comparison forms of the right answers."""
        return set(map(comparison_form, self.answers))


class _Row(NamedTuple):
    """One row of a table."""

    line: int
    """From 1."""
    cells: list[str]
    text: str
    """The row as it stands in the file."""


def read_paraphrases(file: Path, known: Iterable[Pair]) -> list[EvalQuestion]:
    """Read questions with their right answers, `|` between several; or with `answer_ids`, the ids of known pairs.

    `known` are the pairs that ids may refer to. Raises DataError if the file or one of its rows can't be read.
    """
    rows = _read_table(file)
    sample = rows[:_SAMPLE]
    ids = any("answer_ids" in map(str.strip, row.cells) for row in sample[:1])
    try:
        columns = choose_columns(
            [(row.line, row.cells) for row in sample],
            {"question": None, "answer": "answer_ids" if ids else None, "label": None},
            file,
        )
    except DataError:
        columns = None
    if not isinstance(columns, Columns):
        raise DataError(
            "{file}: no columns question and answers (or answer_ids); its first row is: {value}",
            "Write these names into the first row, and each question with its right answers below.",
            file=file,
            value=excerpt(rows[0].text.strip()),
        )
    below = [row for row in rows if row.line > columns.header_line]
    if not below:
        raise DataError("{file} holds only a header.", "Add one question and answer per line below it.", file=file)
    kind = columns.label.index if columns.label else _column(columns.names, "label", also="kind")
    answer_of = {pair.id: pair.answer for pair in known} if ids else None
    return [_paraphrase(row, columns, kind, answer_of, file) for row in below]


def read_out_of_scope(file: Path) -> list[EvalQuestion]:
    """Read questions that nothing known answers: a column of questions, and one of kinds if there is one.

    A text file without a header holds one question a line. Raises DataError.
    """
    rows = _read_table(file)
    cells = [row.cells for row in rows[:_SAMPLE]]
    width, regular = max(map(len, cells)), len(set(map(len, cells))) == 1
    header = find_header(cells) if width > 1 else None
    if header or (width > 1 and regular):
        names, below = (header.names, rows[header.row + 1 :]) if header else ([], rows)
        column, kind = _column(names, "question"), _column(names, "label", also="kind")
        if column is None:
            filled = [row.cells for row in below[:_SAMPLE]]
            column = max(range(width), key=lambda index: column_stats(filled, index).asks)
        questions = [EvalQuestion(_cell(row, column), (), _cell(row, kind)) for row in below]
    else:  # one question a line; in sentences, commas part no cells
        headed = comparison_form(rows[0].text) in _QUESTION_HEADERS
        questions = [EvalQuestion(row.text.strip().strip('"')) for row in rows[headed:]]
    if not any(question.question for question in questions):
        raise DataError("{file} holds only a header.", "Write one question a line below it.", file=file)
    return [question for question in questions if question.question]


def _cell(row: _Row, column: int | None) -> str:
    return row.cells[column].strip() if column is not None and column < len(row.cells) else ""


def _column(names: Sequence[str], role: str, also: str | None = None) -> int | None:
    """The first column whose name stands for a role, or is `also`."""
    for place, name in enumerate(names):
        if name.strip().casefold() == also or ((found := header_role(name)) and found.role == role):
            return place
    return None


def _paraphrase(
    row: _Row, columns: Columns, kind: int | None, answer_of: Mapping[str, str] | None, file: Path
) -> EvalQuestion:
    """The question and its right answers. `answer_of`: id of a pair → its answer, where the cell holds ids."""
    question = _cell(row, columns.question.index)
    parts = [part.strip() for part in _cell(row, columns.answer.index).split(SEPARATOR)]
    if not question or not all(parts) or len(row.cells) > columns.width:
        raise DataError(
            "{file}, line {line}: no question with its right answers, but: {value}",
            'Put a text that holds a comma or a quote between double quotes, and "|" between several answers.',
            file=file,
            line=row.line,
            value=excerpt(row.text.strip()),
        )
    if answer_of is None:
        return EvalQuestion(question, tuple(parts), _cell(row, kind))
    for name in parts:
        if name not in answer_of:
            raise DataError(
                "{file}, line {line}: no pair has the id {value}.",
                "Use a run that was trained on the pairs it means, or write the answers themselves: column answers.",
                file=file,
                line=row.line,
                value=excerpt(name),
            )
    return EvalQuestion(question, tuple(answer_of[name] for name in parts), _cell(row, kind))


def _read_table(file: Path) -> list[_Row]:
    """All rows of a file that are not blank, the header among them. Raises DataError."""
    refuse_unreadable(file)
    if is_excel(file):
        sheets = [sheet for sheet in read_sheets(file) if not sheet.hidden]
        rows = [_Row(each.line, each.fields or [], " ".join(each.fields or [])) for each in sheets[0].records]
    else:
        refuse_unknown(file)
        rows = _read_text(file)
    rows = [row for row in rows if any(map(str.strip, row.cells))]
    if not rows:
        raise DataError("{file} is empty.", "Write one question and answer per line.", file=file)
    return rows


def _read_text(file: Path) -> list[_Row]:
    suffix = suffix_of(file)
    if suffix == ".parquet":
        return _rows_of_objects(parquet_objects(file), file)
    with open_text(file, detect(file)) as text:
        lines = list(text)
    start = next((line for line in lines if line.strip()), "").lstrip("\ufeff \t")
    if suffix in YAML_SUFFIXES:
        return _rows_of_objects(yaml_objects(file, "".join(lines)), file)
    if suffix in JSON_SUFFIXES or start.startswith(("{", "[{")):
        return _rows_of_objects(objects(lines), file)
    table = list(records(lines, sniff(lines[:_SAMPLE], "\t" if suffix in (".tsv", ".tab") else ",")))
    return [_Row(one.line, [one.text] if one.fields is None else one.fields, one.text) for one in table]


def _rows_of_objects(parsed: Iterable[tuple[int, Mapping[str, Any] | BadRow]], file: Path) -> list[_Row]:
    """Objects as rows below a header of their keys; several answers in a list are joined as in a table."""
    numbered = list(parsed)
    bad = next((row for _, row in numbered if isinstance(row, BadRow) and row.kind != "blank"), None)
    if bad:
        raise DataError(
            "{file}, line {line}: no question with its right answers, but: {value}",
            'Write one object per line: {{"question": "…", "answer": "…"}}.',
            file=file,
            line=bad.line,
            value=bad.value,
        )
    rows = [(line, row) for line, row in numbered if not isinstance(row, BadRow)]
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    below = [_Row(line, [_as_cell(row.get(name)) for name in names], str(row)) for line, row in rows]
    return [_Row(0, names, ",".join(names)), *below]


def _as_cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return SEPARATOR.join(map(str, value))
    return "" if value is None else str(value)
