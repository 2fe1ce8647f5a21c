"""Tables: comma, tab or semicolon separated text, and Excel sheets; one record after the other.

Which column holds the questions, the answers and the labels.
"""

from __future__ import annotations

import csv
import difflib
import itertools
import re
import zipfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

from daedap.data.clean import excerpt
from daedap.errors import DataError
from daedap.korean.text import comparison_form

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


Part = Literal["question", "answer", "label"]

_NAMES: dict[Part, str] = {  # the surest first: beside a column `question`, `user` holds somebody's number
    "question": "question questions 질문 질문내용 q prompt instruction 질의 물음 문의 사용자발화 사람문장1"
    " 발화 utterance query 프롬프트 지시문 지시 input 입력 사용자 유저 사람 고객 user human customer",
    "answer": "answer answers 답변 답변내용 대답 응답 a completion output response reply 챗봇응답"
    " 시스템응답 시스템문장1 답 답장 회신 출력 챗봇 봇 상담사 상담원 시스템 chatbot bot assistant gpt system target",
    "label": "label labels 라벨 레이블 분류 category class 카테고리 클래스 범주 감정 emotion sentiment 의도 intent"
    " 유형 종류 주제 topic 태그 tag 도메인 domain",
}
_NUMBERS = {"id", "no", "idx", "index", "번호", "순번", ""}
"""Names of columns that hold neither questions nor answers."""
_RANKS = {name: (rank, part) for part, names in _NAMES.items() for rank, name in enumerate(names.split())}
_BRACKETS = re.compile(r"\(.*?\)|\[.*?\]")


@dataclass(frozen=True)
class Column:
    """One column of a table, or one key of JSON objects."""

    index: int
    """Counted from 0."""
    name: str
    """What its header says; its number, counted from 1, when there is no header."""


@dataclass(frozen=True)
class Columns:
    """What was chosen."""

    question: Column
    answer: Column
    label: Column | None
    header: bool
    """Whether the first row names the columns."""
    width: int
    """How many columns there are."""


def part_of(name: str) -> Part | None:
    """What a column of this name holds, by common English and Korean names; spacing, case and brackets don't count."""
    return _rank(name)[1]


def _rank(name: str) -> tuple[int, Part | None]:
    unknown = (len(_RANKS), None)
    return _RANKS.get(comparison_form(name)) or _RANKS.get(comparison_form(_BRACKETS.sub("", name))) or unknown


def is_header(names: Sequence[str]) -> bool:
    """Whether a first row names columns: the question's or the answer's; letters as short as Q and A only together."""
    found = {part: name for name in reversed(names) if (part := part_of(name)) in ("question", "answer")}
    return len(found) == 2 or any(len(comparison_form(name)) > 1 for name in found.values())


def choose(names: Sequence[str], wanted: Mapping[Part, str | None], file: Path, *, keys: bool = False) -> Columns:
    """The columns, found by what the user `wanted`, by name, or by position when there is no header.

    Args:
        names: The first row of a table, or the keys of a JSON object.
        wanted: For each part a name, or a number counted from 1.
        file: Named in messages.
        keys: The names are certainly names.

    Raises:
        DataError: A wanted column doesn't exist, or the question or answer can't be told.
    """
    if len(names) < 2:
        _refuse_single(names, file)
    places = {part: _find(name, names, file) for part, name in wanted.items() if name}
    by_name = any(places[part] == _named(wanted[part] or "", names) for part in places)
    header = keys or by_name or is_header(names)
    if header:
        _add_named(places, names)
    else:
        _add_positions(places, len(names))
    if len(names) == 2 and len(places) == 1 and not keys:
        _add_other(places, names)
    return _columns(places, [name.strip() for name in names], file, header)


def _refuse_single(names: Sequence[str], file: Path) -> NoReturn:
    raise DataError(
        "{file} has only one column ({columns}): questions and answers need one each.",
        "Separate them with a comma or a tab, one pair a line.",
        file=file,
        columns=_listed(names),
    )


def _named(wanted: str, names: Sequence[str]) -> int | None:
    exact = [i for i, name in enumerate(names) if name.strip() == wanted.strip()]
    alike = [i for i, name in enumerate(names) if comparison_form(name) == comparison_form(wanted)]
    return next(iter(exact + alike), None)


def _find(wanted: str, names: Sequence[str], file: Path) -> int:
    if (index := _named(wanted, names)) is not None:
        return index
    if wanted.strip().isdecimal() and 1 <= int(wanted) <= len(names):
        return int(wanted) - 1
    near = difflib.get_close_matches(wanted.strip().casefold(), [name.strip().casefold() for name in names], 3, 0.5)
    if near:
        raise DataError(
            "{file} has no column {value}; its columns are {columns}.",
            "Did you mean {near}?",
            file=file,
            value=wanted,
            columns=_listed(names),
            near=_listed([name for name in names if name.strip().casefold() in near]),
        )
    raise DataError(
        "{file} has no column {value}; its columns are {columns}.",
        "Give one of these names, or a number counted from 1.",
        file=file,
        value=wanted,
        columns=_listed(names),
    )


def _add_named(places: dict[Part, int], names: Sequence[str]) -> None:
    for index in sorted(range(len(names)), key=lambda index: _rank(names[index])[0]):
        part = part_of(names[index])
        if part and part not in places and index not in places.values():
            places[part] = index


def _add_positions(places: dict[Part, int], width: int) -> None:
    parts: tuple[Part, ...] = ("question", "answer", "label") if width == 3 else ("question", "answer")
    for part in parts:
        free = [index for index in range(width) if index not in places.values()]
        if part not in places and free:
            places[part] = free[0]


def _add_other(places: dict[Part, int], names: Sequence[str]) -> None:
    """Of two columns, one known: the other is the other, unless it only numbers the rows."""
    ((part, index),) = places.items()
    if part != "label" and comparison_form(names[1 - index]) not in _NUMBERS:
        places["answer" if part == "question" else "question"] = 1 - index


def _columns(places: dict[Part, int], names: Sequence[str], file: Path, header: bool) -> Columns:
    if "question" not in places:
        raise DataError(
            "{file}: no column is named like a question; the columns are {columns}.",
            "Say which one holds the questions with --question-column.",
            file=file,
            columns=_listed(names),
        )
    if "answer" not in places:
        raise DataError(
            "{file}: no column is named like an answer; the columns are {columns}.",
            "Say which one holds the answers with --answer-column.",
            file=file,
            columns=_listed(names),
        )
    if len(set(places.values())) < len(places):
        raise DataError(
            "{file}: one column was chosen twice; the columns are {columns}.",
            "Choose different columns for question, answer and label.",
            file=file,
            columns=_listed(names),
        )
    chosen = {part: Column(i, names[i] if header else str(i + 1)) for part, i in places.items()}
    return Columns(chosen["question"], chosen["answer"], chosen.get("label"), header, len(names))


def _listed(names: Sequence[str]) -> str:
    shown = [excerpt(name.strip())[:30] or "''" for name in names[:12]]
    return ", ".join(shown) + (", …" if len(names) > 12 else "")
