"""Excel workbooks: the rows of their sheets, with cells as the screen shows them."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

from daedap.data.tables import Record
from daedap.errors import DataError

_LARGE = 50_000_000
"""Bytes of a sheet's XML from which on it is streamed: merged cells and hidden rows are not seen then."""


@dataclass(frozen=True)
class Sheet:
    """One sheet of a workbook."""

    name: str
    hidden: bool
    records: list[Record]
    """Its rows; merged cells are filled downwards, hidden rows left out."""
    hidden_rows: tuple[int, ...] = ()
    formulas: Mapping[int, str] = field(default_factory=dict)
    """Formulas without a stored value, by row."""


def is_excel(path: Path) -> bool:
    """Whether a file is an Excel workbook, whatever its name ends with."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "xl/workbook.xml" in archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):  # no archive, or a damaged one
        return False


def read_sheets(path: Path) -> list[Sheet]:
    """All sheets that hold any cell. Raises DataError for a damaged workbook."""
    import openpyxl

    try:
        with path.open("rb") as file:  # given a path, openpyxl refuses workbooks whose names end otherwise
            large, formulas = _survey(path)
            book = openpyxl.load_workbook(file, read_only=large, data_only=True)
            source = openpyxl.load_workbook(file, read_only=large) if formulas else None
            sheets = [_sheet(sheet, source[sheet.title] if source else None, large) for sheet in book.worksheets]
            book.close()
    except Exception as error:  # whatever zipfile, zlib, the XML parser and openpyxl make of damaged bytes
        raise DataError(
            "{file} can't be read as an Excel workbook ({error}).",
            "Open it in Excel and save it again as .xlsx, or as CSV (UTF-8).",
            file=path,
            error=str(error)[:100],
        ) from error
    return [sheet for sheet in sheets if sheet.records]


def _survey(path: Path) -> tuple[bool, bool]:
    """Whether a workbook is too large to be held in memory, and whether it has formulas."""
    with zipfile.ZipFile(path) as archive:
        sheets = [info for info in archive.infolist() if info.filename.startswith("xl/worksheets/")]
        if any(info.file_size > _LARGE for info in sheets):
            return True, False
        return False, any(re.search(rb"<f[ >]", archive.read(info)) for info in sheets)


def _sheet(sheet: Any, source: Any, large: bool) -> Sheet:
    merged: dict[tuple[int, int], str] = {}  # the cells below the first one of a vertically merged range
    hidden: set[int] = set()
    if large:
        sheet.reset_dimensions()  # many programs write a wrong size, which hides columns
    else:
        merged = {
            (row, area.min_col): _cell_text(sheet.cell(area.min_row, area.min_col))
            for area in sheet.merged_cells.ranges
            for row in range(area.min_row + 1, area.max_row + 1)
        }
        hidden = {row for row, size in sheet.row_dimensions.items() if size.hidden and row <= sheet.max_row}
    rows: list[Record] = []
    formulas: dict[int, str] = {}
    for number, cells in enumerate(sheet.iter_rows(), 1):
        if number in hidden:
            continue
        fields = [_cell_text(cell) or merged.get((number, column), "") for column, cell in enumerate(cells, 1)]
        empty = [column for column, text in enumerate(fields, 1) if source and not text]
        values = (source.cell(number, column).value for column in empty)
        formulas.update((number, value) for value in values if isinstance(value, str) and value.startswith("="))
        filled = any(map(str.strip, fields))
        rows.append(Record(number, fields, "\t".join(fields)) if filled else Record(number, [], ""))
    while rows and not rows[-1].fields:
        rows.pop()
    return Sheet(sheet.title, sheet.sheet_state != "visible", rows, tuple(sorted(hidden)), formulas)


def _cell_text(cell: Any) -> str:
    from openpyxl.utils.escape import unescape

    value = cell.value
    return "" if value is None else unescape(format_cell(value, getattr(cell, "number_format", "General")))


def format_cell(value: object, number_format: str) -> str:
    """A value as Excel shows it under a number format; formats that are not understood fall back to plain text."""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, timedelta):
        minutes, seconds = divmod(int(value.total_seconds()), 60)
        return f"{minutes // 60}:{minutes % 60:02}" + (f":{seconds:02}" if seconds else "")
    if isinstance(value, datetime | date | time):
        return _format_date(value, _section(value, number_format))
    if isinstance(value, int | float):
        return _format_number(value, _section(value, number_format))
    return str(value)


def _section(value: object, number_format: str) -> str:
    """The section of a format that applies to a value, without colours, conditions and padding."""
    sections = re.findall(r'(?:"[^"]*"|\\.|[^;"\\])+', number_format or "General")
    negative = isinstance(value, int | float) and value < 0 and len(sections) > 1
    section = sections[1 if negative else 0] if sections else "General"
    section = re.sub(r"\[\$([^\]-]*)[^\]]*\]", r'"\1"', section)
    return re.sub(r"\[(?!h|m|s)[^\]]*\]|_.|\*.", "", section)


_TOKEN = re.compile(
    r'"([^"]*)"|\\(.)|(General|aaaa?|AM/PM|A/P|오전/오후|y+|m+|d+|h+|s+|[#0?][#0?,.]*|%|@|E[+-]0+)|(.)', re.IGNORECASE
)


def _format_number(value: float, section: str) -> str:
    plain = str(value) if isinstance(value, int) else f"{value:.11g}"
    tokens = list(_TOKEN.finditer(section))
    masks = [token[3] for token in tokens if token[3] and token[3][0] in "#0?"]
    if len(masks) != 1 or re.search(r"E[+-]0", section):
        return plain
    percent = any(token[3] == "%" for token in tokens)
    whole, _, decimals = masks[0].partition(".")
    amount = abs(value) * (100 if percent else 1)
    digits = f"{amount:,.{len(decimals)}f}" if "," in whole.rstrip(",") else f"{amount:.{len(decimals)}f}"
    integer, dot, fraction = digits.partition(".")
    kept = fraction.rstrip("0") if "#" in decimals else fraction
    number = integer.zfill(whole.count("0")) + (dot + kept if kept else "")
    text = "".join(number if token[3] == masks[0] else _literal(token) for token in tokens)
    return f"-{text.strip()}" if value < 0 and not re.search(r"[-()]", section) else text.strip()


def _literal(token: re.Match[str]) -> str:
    return next((part for part in token.groups() if part is not None), "")


def _format_date(value: datetime | date | time, section: str) -> str:
    tokens = list(_TOKEN.finditer(section))
    if not any(token[3] and token[3][0].lower() in "ymdhs" for token in tokens):
        return _plain_date(value)
    half = any(token[3] and token[3].upper() in ("AM/PM", "A/P", "오전/오후") for token in tokens)
    parts, previous = [], ""
    for index, token in enumerate(tokens):
        code = (token[3] or "").lower()
        if not code or code[0] not in "ymdhsa오":
            parts.append(_literal(token))
            continue
        following = next((other[3].lower() for other in tokens[index + 1 :] if other[3]), "")
        minutes = code[0] == "m" and (previous.startswith("h") or following.startswith("s"))
        parts.append(_date_part(value, "n" * len(code) if minutes else code, half))
        previous = code
    return "".join(parts).strip()


def _date_part(value: datetime | date | time, code: str, half: bool) -> str:
    """One token of a date format; `n` stands for minutes."""
    hour = getattr(value, "hour", 0)
    if code.startswith(("aaa", "ddd")):
        weekday = "월화수목금토일"[value.weekday()] if isinstance(value, date) else ""
        return weekday + ("요일" if len(code) > 3 else "")
    if code[0] in "a오":
        return {"오": ("오전", "오후"), "a": ("AM", "PM")}[code[0]][hour >= 12]
    if code[0] == "m" and len(code) > 2 and isinstance(value, date):
        return value.strftime("%b" if len(code) == 3 else "%B")
    if code[0] == "h":
        number = (hour % 12 or 12) if half else hour
    else:
        names = {"y": "year", "m": "month", "d": "day", "n": "minute", "s": "second"}
        number = getattr(value, names[code[0]], 0)
    if code[0] == "y":
        return f"{number:04}" if len(code) > 2 else f"{number % 100:02}"
    return f"{number:0{min(len(code), 2)}}"


def _plain_date(value: datetime | date | time) -> str:
    clock = isinstance(value, datetime) and value.time() != time()
    return value.strftime("%Y-%m-%d %H:%M" if clock else "%Y-%m-%d" if isinstance(value, date) else "%H:%M")
