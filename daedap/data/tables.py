"""Tables: the records of text files, separated by commas, tabs, …; and the pairs of their rows, Excel's as well."""

from __future__ import annotations

import csv
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from daedap.data.clean import BadRow, excerpt
from daedap.data.columns import Columns, TurnColumns
from daedap.data.conversation import Conversation, Turn, pairs_of, rendered_turns, round_pairs
from daedap.data.headers import Column, find_header, header_role
from daedap.korean.text import comparison_form, nfc
from daedap.types import Pair

DELIMITERS = "\t,;|"
"""In order of trust: a tab hardly ever occurs in a sentence, a comma often does."""
MULTI_SPACE = "  "
"""Stands for two or more spaces: columns of text that was pasted from a web page."""
QUOTED_LINES = '"'
"""Before a delimiter: whole records stand between quotes ("질문,답변"), as programs write that see one column only."""
_AFTER_QUOTE = re.compile(r'"[,;\t ]+(?=[\r\n]*$)')
_LONGEST_RECORD = 1_000
"""Lines. A quote that is not closed by then never will be."""
_RULE = re.compile(r"[\s|:+-]*-{2,}[\s|:+-]*$")
"""Below the header of a Markdown table."""
_SEP_LINE = re.compile(r'\ufeff?"?sep=(.)"?[\s,;]*$')

csv.field_size_limit(1 << 24)  # the default of 131,072 characters refuses long documents


class Record(NamedTuple):
    """One row as it is in the file."""

    line: int
    """Its first line, from 1."""
    fields: list[str] | None
    """None: a quote is not closed. Empty: a blank line."""
    text: str
    """The first line of the record."""


def records(lines: Iterable[str], delimiter: str) -> Iterator[Record]:
    """The records of a text table.

    An unclosed quote costs its own line only: reading continues with the next one. Blank lines at the end, a first line
    `sep=,` and the rule below the header of a Markdown table are skipped.
    """
    if delimiter.startswith(QUOTED_LINES):
        lines, delimiter = _unquoted(lines), delimiter.removeprefix(QUOTED_LINES)
    ahead: deque[str] = deque()  # lines that were read in search of a closing quote and put back
    rest = iter(lines)
    blank: list[Record] = []
    number = 1
    while (line := ahead.popleft() if ahead else next(rest, None)) is not None:
        taken = [line]
        if not line.strip():
            blank.append(Record(number, [], ""))
        elif not (number == 1 and _SEP_LINE.match(line)) and not (delimiter == "|" and _RULE.match(line)):
            yield from blank
            blank.clear()
            yield Record(number, _fields(taken, ahead, rest, delimiter), line)
        number += len(taken)


def _fields(taken: list[str], ahead: deque[str], rest: Iterator[str], delimiter: str) -> list[str] | None:
    """The fields of a record; appends the further lines that a quoted field needs to `taken`."""
    line = taken[0].rstrip("\r\n")
    if delimiter == MULTI_SPACE:
        return re.split(r" {2,}", line.strip())
    if delimiter == "|" and line.strip().startswith("|"):  # a Markdown table
        return [field.strip() for field in line.strip().strip("|").split("|")]
    if '"' not in line:
        return line.split(delimiter)

    def feed() -> Iterator[str]:
        yield taken[0].removeprefix("\ufeff")
        while len(taken) < _LONGEST_RECORD:
            following = ahead.popleft() if ahead else next(rest, None)
            if following is None:
                return
            taken.append(following)
            yield following

    try:
        return next(csv.reader(feed(), delimiter=delimiter, strict=True, skipinitialspace=delimiter != "\t"))
    except csv.Error:
        ahead.extendleft(reversed(taken[1:]))
        del taken[1:]
        return _fields_by_hand(line, delimiter)


def _fields_by_hand(line: str, delimiter: str) -> list[str] | None:
    """The fields of a line whose quotes are not as CSV has them; None when one is not closed."""
    if (closed := re.sub(rf'" +(?={re.escape(delimiter)}|$)', '"', line)) != line:  # "주차 되나요?" ,"네"
        return _fields([closed], deque(), iter(()), delimiter)
    # Tab-separated files are often written without any quoting: there a quote is just a character, and so it is in a
    # line such as `"따옴표" 있어요?,네 "있어요".`, in which every quote is closed again.
    return line.split(delimiter) if delimiter == "\t" or line.count('"') % 2 == 0 else None


def _unquoted(lines: Iterable[str]) -> Iterator[str]:
    """The lines of a table without the quotes around whole records; blank lines keep the numbers right."""
    number = 1
    for record in _outer_records(lines):
        yield from ["\n"] * (record.line - number)
        text = record.fields[0] if record.fields and _is_quoted(record) else record.text
        inner = text.rstrip("\r\n").replace("\r\n", "\n").split("\n")
        yield from (f"{line}\n" for line in inner)
        number = record.line + len(inner)


def _outer_records(lines: Iterable[str]) -> Iterator[Record]:
    """Records that may stand between quotes, without delimiters behind them."""
    return records((_AFTER_QUOTE.sub('"', line) for line in lines), ",")


def _is_quoted(record: Record) -> bool:
    """Whether quotes were taken away from a whole record."""
    text = record.text.strip("\ufeff\r\n ")
    return bool(record.fields and len(record.fields) == 1 and text.startswith('"') and record.fields[0].strip() != text)


def sniff(sample: Sequence[str], default: str = "") -> str:
    """The delimiter of a table by its first lines: that of `sep=`, else the most regular; `default` wins a tie."""
    if sample and (match := _SEP_LINE.match(sample[0].rstrip("\r\n"))):
        return match[1]
    quoted = _quoted_lines(sample, default)
    return QUOTED_LINES + quoted if quoted else _most_regular(sample, default)


def _most_regular(sample: Sequence[str], default: str) -> str:
    order = sorted(DELIMITERS, key=lambda delimiter: delimiter != default)
    best = max(order, key=lambda delimiter: _regularity(sample, delimiter))
    spaced = _regularity(sample, best) == 0 and _regularity(sample, MULTI_SPACE) > 0.8
    return MULTI_SPACE if spaced else best


def _quoted_lines(sample: Sequence[str], default: str) -> str:
    """The delimiter inside of records that all stand between quotes; empty for other tables and for sentences."""
    outer = [record for record in _outer_records(sample) if record.fields != []]
    below = outer if outer and _is_quoted(outer[0]) else outer[1:]  # the header may stand there without quotes
    if len(below) < 1 + (below is not outer) or not all(map(_is_quoted, below)):
        return ""
    inner = list(_unquoted(sample))
    delimiter = _most_regular(inner, default)
    # A comma within a sentence is followed by a space.
    is_table = delimiter in DELIMITERS and (
        _regularity(inner, delimiter) == 2 or _regularity([line.replace(", ", " ") for line in inner], delimiter) > 0.8
    )
    return delimiter if is_table else ""


def _regularity(sample: Sequence[str], delimiter: str) -> float:
    """Share of the rows with the most common number of fields; 2 when there is a header; 0 for a single field."""
    rows = [record.fields for record in records(sample, delimiter) if record.fields]
    if not rows:
        return 0.0
    if (header := find_header(rows)) and len(header.names) > 1:
        return 2.0
    width, count = Counter(map(len, rows)).most_common(1)[0]
    return count / len(rows) if width > 1 else 0.0


# ---- rows → pairs ----

_BOTH = re.compile(
    r"\s*[\[<]?(?:Q|질문|문)\s*\d*[\]>.):]\s*(\S.*?)\s*\n\s*[\[<]?(?:A|답변|답)\s*\d*[\]>.):]\s*(\S.*)",
    re.DOTALL | re.IGNORECASE,
)
"""A cell with a question and its answer."""
_ANSWER_MARKS = ("a", "답변", "답", "answer")
"""Instead of a speaker's name: then every question stands for itself."""


def table_pairs(table: Iterable[Record], columns: Columns, name: str, delimiter: str = "") -> Iterator[Pair | BadRow]:
    """The pairs of a table's records below its header.

    `name` is the file's, for conversation ids; workbooks have no `delimiter`.
    """
    role = header_role(columns.answer.name) if columns.header else None
    # Scripts of chatbots (구분, 유저, 챗봇) list the wordings of a category beside its answers, of which there are
    # fewer. In other tables a row without an answer is incomplete.
    is_script = bool(columns.label and role and role.role == "answer" and role.rank > 3)
    pairs = _row_pairs(table, columns, name, delimiter)
    return _with_answers_of_category(pairs) if is_script else pairs


def _row_pairs(table: Iterable[Record], columns: Columns, name: str, delimiter: str) -> Iterator[Pair | BadRow]:
    names = [comparison_form(name) for name in columns.names]
    for record in table:
        fields = _fitted(record.fields or [], columns, delimiter)
        if names and record.fields and list(map(comparison_form, record.fields)) == names:
            yield BadRow(record.line, "header", excerpt(record.text.strip()))
        elif fields is None:
            yield bad_record(record)
        elif columns.rounds:
            label = fields[columns.label.index] if columns.label else ""
            yield from round_pairs(fields, columns, record.line, Conversation(f"{name}:{record.line}", label))
        else:
            yield from _wordings(fields, columns, record.line)


def _wordings(fields: Sequence[str], columns: Columns, line: int) -> Iterator[Pair]:
    """A pair for every wording of the question of a row."""
    label = fields[columns.label.index] if columns.label else ""
    texts = [fields[columns.question.index]]
    for column in columns.alternatives:
        several = [fields[column.index]]
        if not column.name[-1:].isdigit():
            several = several[0].replace(";", "\n").split("\n")
        texts += filter(str.strip, several)
    yield from (Pair(text, fields[columns.answer.index], label, line=line) for text in texts)


def _with_answers_of_category(rows: Iterable[Pair | BadRow]) -> Iterator[Pair | BadRow]:
    """The rows; those without an answer get those of their category (their label) in turns."""
    label, answers, given = "", list[str](), 0
    for row in rows:
        if isinstance(row, BadRow) or not row.label or not row.question.strip():
            yield row
            continue
        if row.label != label:
            label, answers, given = row.label, [], 0
        if row.answer.strip() or not answers:
            answers += filter(str.strip, [row.answer])
            yield row
        else:
            yield BadRow(row.line, "category", excerpt(row.question))
            yield replace(row, answer=answers[given % len(answers)])
            given += 1


def _fitted(fields: list[str], columns: Columns, delimiter: str) -> list[str] | None:
    """A row with as many fields as the table has columns; None when it is blank or broken.

    Programs leave out empty cells at the end of a row, and remarks may stand beside a sheet's table. Commas in an
    answer without quotes (`네, 됩니다`) are followed by a space, unlike those between fields; a tab is no part of text.
    """
    width = columns.width
    if not any(map(str.strip, fields)):
        return None
    if len(fields) < width:
        complete = not delimiter or max(columns.question.index, columns.answer.index) < len(fields)
        return fields + [""] * (width - len(fields)) if complete else None
    rest = fields[width:]
    if not delimiter or not any(map(str.strip, rest)):
        return fields[:width]
    delimiter = delimiter.removeprefix(QUOTED_LINES)
    joins = delimiter == "\t" or all(part.startswith(" ") and part.strip() for part in rest)
    if columns.answer.index == width - 1 and joins:
        return [*fields[: width - 1], delimiter.replace("\t", " ").join(fields[width - 1 :])]
    return None


def message_pairs(
    table: Iterable[Record | BadRow], turns: TurnColumns, speaker: str, name: str
) -> Iterator[Pair | BadRow]:
    """The pairs of a table in which every record below the header is one message.

    The messages of `speaker` are the answers; without a column of speakers, two take turns.
    """
    conversation, last, previous, answers = Conversation(f"{name}:0"), "", -1, False
    unrelated = comparison_form(speaker) in _ANSWER_MARKS
    for record in table:
        if isinstance(record, BadRow) or not record.fields or len(record.fields) < turns.text.index + 1:
            yield bad_record(record)
            continue
        fields = [*record.fields, *[""] * (turns.width - len(record.fields))]
        number, key = (fields[one.index].strip() if one else "" for one in (turns.turn, turns.conversation))
        place = int(number) if number.isdecimal() else -1
        # Some tables mark only the first message of each dialogue (S), others repeat its id: then `last` is the same.
        if (key and key != last) or (0 <= place <= previous):
            yield from conversation.end()
            conversation, answers = Conversation(f"{name}:{record.line}"), False
        last, previous = key, place
        if turns.speaker:
            answered, answers = answers, nfc(fields[turns.speaker.index].strip()) == speaker
            if unrelated and answered and not answers:
                yield from conversation.end()
                conversation = Conversation(f"{name}:{record.line}")
        if text := turns.text_of(fields):
            yield from conversation.add("assistant" if answers else "user", text, record.line)
        if not turns.speaker:
            answers = not answers
    yield from conversation.end()


def rendered_column(rows: Sequence[Sequence[str]]) -> Column | None:
    """The column whose texts are rendered conversations (### 질문: … ### 답변: …), below a header or not."""
    for index in range(max(map(len, rows))):
        cells = [row[index] for row in rows if index < len(row) and row[index].strip()]
        marked = [bool(_cell_turns(cell, 0)) for cell in cells]
        if sum(marked) > 0 and sum(marked) >= 0.8 * (len(marked) - (not marked[0])):
            return Column(index, "" if marked[0] else cells[0].strip())
    return None


def rendered_pairs(table: Iterable[Record], texts: Column, name: str) -> Iterator[Pair | BadRow]:
    """The pairs of a table that holds whole conversations in one column."""
    for record in table:
        fields = record.fields or []
        cell = fields[texts.index] if texts.index < len(fields) else ""
        if turns := _cell_turns(cell, record.line):
            yield from pairs_of(turns, Conversation(f"{name}:{record.line}"))
        elif record.fields is None or cell.strip() != texts.name:
            yield bad_record(record)


def _cell_turns(cell: str, line: int) -> list[Turn]:
    """The turns of a text that was rendered for training, or of a question and its answer: Q. …, A. … below it."""
    text = cell.replace("\\n", "\n")
    if match := _BOTH.match(text):
        return [("user", match[1], line), ("assistant", match[2], line)]
    return rendered_turns(text, line)


def bad_record(record: Record | BadRow) -> BadRow:
    """What is wrong with a record that is no row: an open quote, nothing in it, or a wrong number of fields."""
    if isinstance(record, BadRow):
        return record
    if record.fields is not None and not any(map(str.strip, record.fields)):
        return BadRow(record.line, "blank", "")
    return BadRow(record.line, "quote" if record.fields is None else "fields", excerpt(record.text.strip()))
