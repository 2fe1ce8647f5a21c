"""Text tables: records of comma, tab, semicolon, `|` or multi-space separated files, and their delimiter."""

from __future__ import annotations

import csv
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from daedap.data.clean import BadRow, excerpt
from daedap.data.columns import find_header

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
        inner = [f"{line}\n" for line in text.rstrip("\r\n").replace("\r\n", "\n").split("\n")]
        yield from inner
        number = record.line + len(inner)


def _outer_records(lines: Iterable[str]) -> Iterator[Record]:
    """Records that may stand between quotes, without delimiters behind them."""
    return records((_AFTER_QUOTE.sub('"', line) for line in lines), ",")


def _is_quoted(record: Record) -> bool:
    """Whether quotes were taken away from a whole record."""
    text = record.text.strip("\ufeff\r\n ")
    return bool(record.fields and len(record.fields) == 1 and text.startswith('"') and record.fields[0].strip() != text)


def bad_record(record: Record) -> BadRow:
    """What is wrong with a record that is no row: an open quote, nothing in it, or a wrong number of fields."""
    if record.fields is None:
        return BadRow(record.line, "quote", excerpt(record.text.strip()))
    blank = not any(map(str.strip, record.fields))
    return BadRow(record.line, "blank" if blank else "fields", "" if blank else excerpt(record.text.strip()))


def sniff(sample: Sequence[str], default: str = "") -> str:
    """The delimiter of a table by its first lines: that of `sep=`, else the most regular; `default` wins a tie."""
    if sample and (match := _SEP_LINE.match(sample[0].rstrip("\r\n"))):
        return match[1]
    quoted = _quoted_lines(sample, default)
    return QUOTED_LINES + quoted if quoted else _most_regular(sample, default)


def _most_regular(sample: Sequence[str], default: str) -> str:
    order = sorted(DELIMITERS, key=lambda delimiter: delimiter != default)
    best = max(order, key=lambda delimiter: _regularity(sample, delimiter))
    if _regularity(sample, best) == 0 and _regularity(sample, MULTI_SPACE) > 0.8:
        return MULTI_SPACE
    return best


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
