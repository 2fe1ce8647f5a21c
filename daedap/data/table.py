"""Tables: comma, tab or semicolon separated text, and Excel sheets; one record after the other."""

from __future__ import annotations

import csv
import itertools
import zipfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from daedap.data.columns import is_header
from daedap.errors import DataError

DELIMITERS = "\t,;|"
"""In order of trust: a tab hardly ever stands in a sentence, a comma often does."""
_LONGEST_RECORD = 1_000
"""Lines. A quote that isn't closed by then never will be."""

csv.field_size_limit(1 << 24)  # the default of 131,072 characters refuses long documents


class Record(NamedTuple):
    """One row, as it stands in the file."""

    line: int
    """Where it begins, counted from 1."""
    fields: list[str] | None
    """None: a quote in it is not closed. Empty: a blank line."""
    text: str
    """Its first line."""


def records(lines: Iterable[str], delimiter: str) -> Iterator[Record]:
    """The records of a text table.

    An unclosed quote costs its own line only: reading goes on with the next one. Blank lines at the end don't count.
    """
    ahead: deque[str] = deque()  # lines that were read in search of a closing quote and given back
    rest = iter(lines)
    blank: list[Record] = []
    number = 1
    while (line := ahead.popleft() if ahead else next(rest, None)) is not None:
        taken = [line]
        if not line.strip():
            blank.append(Record(number, [], ""))
        else:
            yield from blank
            blank.clear()
            plain = '"' not in line
            fields = line.rstrip("\r\n").split(delimiter) if plain else _quoted(taken, ahead, rest, delimiter)
            yield Record(number, fields, line)
        number += len(taken)


def _quoted(taken: list[str], ahead: deque[str], rest: Iterator[str], delimiter: str) -> list[str] | None:
    """The fields of a record with quotes; appends the further lines it needs to `taken`."""

    def feed() -> Iterator[str]:
        yield taken[0]
        while len(taken) < _LONGEST_RECORD:
            line = ahead.popleft() if ahead else next(rest, None)
            if line is None:
                return
            taken.append(line)
            yield line

    try:
        return next(csv.reader(feed(), delimiter=delimiter, strict=True, skipinitialspace=delimiter != "\t"))
    except csv.Error:
        ahead.extendleft(reversed(taken[1:]))
        del taken[1:]
        # Tab-separated files are often written without any quoting: there a quote is just a letter.
        return taken[0].rstrip("\r\n").split("\t") if delimiter == "\t" else None


def sniff(sample: Sequence[str], trusted: str = "") -> str:
    """The delimiter of a table by its first lines; the `trusted` one wins a tie."""
    order = sorted(DELIMITERS, key=lambda delimiter: delimiter != trusted)
    return max(order, key=lambda delimiter: _regularity(sample, delimiter))


def _regularity(sample: Sequence[str], delimiter: str) -> float:
    """Share of the rows with the most common number of fields; 2 when the first row names columns; 0 for one field."""
    rows = [record.fields for record in records(sample, delimiter) if record.fields]
    if not rows:
        return 0.0
    if len(rows[0]) > 1 and is_header(rows[0]):
        return 2.0
    width, count = Counter(map(len, rows)).most_common(1)[0]
    return count / len(rows) if width > 1 else 0.0


def is_excel(path: Path) -> bool:
    """Whether a file is an Excel workbook, whatever its name ends with."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "xl/workbook.xml" in archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):  # no archive, or a damaged one
        return False


def excel_records(path: Path) -> Iterator[Record]:
    """The rows of the first sheet that holds any.

    Raises:
        DataError: The workbook is damaged.
    """
    import openpyxl

    try:
        with path.open("rb") as file:  # given a path, openpyxl refuses workbooks whose names end otherwise
            book = openpyxl.load_workbook(file, read_only=True, data_only=True)
            sheets = (_sheet_records(sheet) for sheet in book.worksheets)
            yield from next((itertools.chain([first], rest) for rest in sheets if (first := next(rest, None))), ())
    except Exception as error:  # whatever zipfile, zlib, the XML parser and openpyxl make of damaged bytes
        raise DataError(
            "{file} can't be read as an Excel workbook ({error}).",
            "Open it in Excel and save it again as .xlsx, or as CSV (UTF-8).",
            file=path,
            error=str(error)[:100],
        ) from error


def _sheet_records(sheet: object) -> Iterator[Record]:
    from openpyxl.utils.escape import unescape

    sheet.reset_dimensions()  # type: ignore[attr-defined]  # many programs write a wrong size, which hides columns
    blank: list[Record] = []
    for number, row in enumerate(sheet.iter_rows(values_only=True), 1):  # type: ignore[attr-defined]
        fields = [unescape(str(cell)) if cell is not None else "" for cell in row]
        if not any(map(str.strip, fields)):
            blank.append(Record(number, [], ""))
            continue
        yield from blank
        blank.clear()
        yield Record(number, fields, "\t".join(fields))
