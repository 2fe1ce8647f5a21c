"""What a file is, and where its questions and answers stand.

A file of pairs, whatever its layout → raw pairs, one after the other; nothing is cleaned yet.
"""

from __future__ import annotations

import contextlib
import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import dropwhile, islice
from pathlib import Path
from typing import Literal, TextIO

from daedap.data.clean import BadRow, excerpt
from daedap.data.encoding import Encoding, detect, open_text
from daedap.data.jsonl import conversation_of, object_pairs, objects
from daedap.data.kakaotalk import Said, chat_pairs, is_chat, is_chat_table, messages, speakers
from daedap.data.tables import Columns, Part, Record, choose, excel_records, is_excel, records, sniff
from daedap.errors import DataError
from daedap.korean.text import nfc
from daedap.types import Pair

Format = Literal["csv", "tsv", "jsonl", "xlsx", "kakaotalk"]

_JSON = (".jsonl", ".ndjson", ".json")
_TABLES = (".csv", ".tsv", ".tab", ".txt")
_SAMPLE = 200
"""Lines looked at to tell a table's delimiter and columns."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Where things are, as far as the user says."""

    question_column: str | None = None
    """Name of the questions' column or key, or its number counted from 1; None: told by its name or position."""
    answer_column: str | None = None
    """The same for the answers."""
    label_column: str | None = None
    """The same for the labels, which are optional."""
    speaker: str | None = None
    """In a KakaoTalk chat: whose messages are the answers."""

    @property
    def wanted(self) -> dict[Part, str | None]:
        """The columns by what they hold."""
        return {"question": self.question_column, "answer": self.answer_column, "label": self.label_column}

    @property
    def answerer(self) -> str:
        """The speaker as the chat spells the name."""
        return nfc((self.speaker or "").strip())


DEFAULT_READ_OPTIONS = ReadOptions()


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file that can be read, and how."""

    path: Path
    format: Format
    """What it is, whatever its name ends with."""
    text: Encoding | None = None
    """How to decode it; None for Excel."""
    delimiter: str = ""
    """Between the fields of a text table."""
    columns: Columns | None = None
    """The columns chosen; None for chats and conversations."""
    read_options: ReadOptions = DEFAULT_READ_OPTIONS
    """What the user said."""

    @property
    def encoding(self) -> str:
        """The encoding's name, for the report."""
        return self.text.name if self.text else ""


def open_source(path: Path, read_options: ReadOptions = DEFAULT_READ_OPTIONS) -> Source:
    """Find out what a file is and where its questions and answers stand; reads the beginning, decodes all of it.

    Raises:
        DataError: The file can't be read, or holds no questions and answers.
    """
    refuse_unreadable(path)
    if is_excel(path):
        source = _open_excel(path, read_options)
    else:
        _refuse_unknown(path)
        source = _open_text(path, read_options)
    if read_options.speaker and source.format != "kakaotalk":
        raise DataError(
            "{file} is not a KakaoTalk chat, so there is no speaker {value} in it.",
            "Leave out --speaker.",
            file=path,
            value=read_options.speaker,
        )
    return source


def refuse_unreadable(path: Path) -> None:
    """Raise DataError when there is no file with something in it that may be read twice."""
    try:
        if path.is_dir():
            raise DataError("{file} is a folder.", "Give one file of pairs in it.", file=path)
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise DataError("{file} is not a regular file.", "Save it as a file first: it is read twice.", file=path)
        with path.open("rb") as file:
            empty = not file.read(1)
    except FileNotFoundError as error:
        raise _missing(path) from error
    except PermissionError as error:
        raise DataError("{file} may not be read.", "Give yourself permission to read it.", file=path) from error
    except OSError as error:
        raise DataError("{file} can't be opened ({error}).", "Copy it elsewhere.", file=path, error=error) from error
    if empty:
        raise _empty(path)


def _missing(path: Path) -> DataError:
    names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    if near := difflib.get_close_matches(path.name, names, 1):
        return DataError("{file} doesn't exist.", "Did you mean {near}?", file=path, near=path.with_name(near[0]))
    return DataError("{file} doesn't exist.", "Check the name and the folder.", file=path)


def _empty(path: Path) -> DataError:
    return DataError("{file} is empty.", "Write one question and answer a line.", file=path)


def _refuse_unknown(path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix == ".xls":
        raise DataError("{file}: the old Excel format .xls can't be read.", "Save it as .xlsx.", file=path)
    if suffix == ".xlsx":
        raise DataError(
            "{file} is not an Excel workbook, or it is damaged or has a password.",
            "Open it in Excel and save it again as .xlsx, or as CSV (UTF-8).",
            file=path,
        )
    if suffix not in (*_JSON, *_TABLES):
        raise DataError(
            "{file}: files ending in '{value}' can't be read.",
            "Give a .csv, .tsv, .jsonl, .xlsx or a KakaoTalk .txt file.",
            file=path,
            value=path.suffix,
        )


def _open_excel(path: Path, read_options: ReadOptions) -> Source:
    found = [record.fields or [] for record in islice(excel_records(path), 2)]
    if not found:
        raise _empty(path)
    columns = choose(found[0], read_options.wanted, path)
    _refuse_lone_header(path, columns, len(found))
    return Source(path=path, format="xlsx", columns=columns, read_options=read_options)


def _open_text(path: Path, read_options: ReadOptions) -> Source:
    encoding = detect(path)
    with open_text(path, encoding) as lines:
        sample = list(islice(dropwhile(str.isspace, lines), _SAMPLE))
    if not sample:
        raise _empty(path)
    suffix = path.suffix.lower()
    if suffix in _JSON:
        columns = _json_columns(path, sample, read_options)
        return Source(path=path, format="jsonl", text=encoding, columns=columns, read_options=read_options)
    if suffix == ".txt" and is_chat(sample):
        return _open_chat(Source(path=path, format="kakaotalk", text=encoding, read_options=read_options))
    return _open_table(path, encoding, sample, read_options)


def _open_table(path: Path, encoding: Encoding, sample: Sequence[str], read_options: ReadOptions) -> Source:
    delimiter = sniff(sample, "\t" if path.suffix.lower() in (".tsv", ".tab") else ",")
    found = [record.fields or [record.text.strip()] for record in records(sample, delimiter) if record.fields != []]
    if is_chat_table(found[0]) and not read_options.question_column:
        return _open_chat(
            Source(path=path, format="kakaotalk", text=encoding, delimiter=delimiter, read_options=read_options)
        )
    columns = choose(found[0], read_options.wanted, path)
    if not columns.header:  # the first row may be the broken one
        columns = choose(_typical(found), read_options.wanted, path)
    _refuse_lone_header(path, columns, len(found))
    format_: Format = "tsv" if delimiter == "\t" else "csv"
    return Source(
        path=path, format=format_, text=encoding, delimiter=delimiter, columns=columns, read_options=read_options
    )


def _typical(found: Sequence[list[str]]) -> list[str]:
    width = Counter(map(len, found)).most_common(1)[0][0]
    return next(fields for fields in found if len(fields) == width)


def _refuse_lone_header(path: Path, columns: Columns, count: int) -> None:
    if columns.header and count == 1:
        raise DataError("{file} holds only a header.", "Write one question and answer a line below it.", file=path)


def _json_columns(path: Path, sample: Sequence[str], read_options: ReadOptions) -> Columns | None:
    if sample[0].lstrip().startswith("["):
        raise DataError(
            "{file} is one JSON list; it must hold one object a line (JSONL).",
            "Convert it, for instance with jq -c '.[]'.",
            file=path,
        )
    found = [row for _, row in objects(sample) if isinstance(row, dict)]
    if not found:
        raise DataError(
            "{file} holds no JSON objects; it begins: {value}",
            'Write one object a line: {{"question": "…", "answer": "…"}}.',
            file=path,
            value=excerpt(sample[0].strip()),
        )
    if any(conversation_of(row) is not None for row in found):
        return None
    return _first_choice(path, list(dict.fromkeys(map(tuple, found))), read_options)


def _first_choice(path: Path, keys: Sequence[tuple[str, ...]], read_options: ReadOptions) -> Columns:
    """The columns of the first object that has them; when none has, what is wrong with the first one."""
    for names in keys:
        with contextlib.suppress(DataError):
            return choose(names, read_options.wanted, path, keys=True)
    return choose(keys[0], read_options.wanted, path, keys=True)


def _open_chat(source: Source) -> Source:
    """Accept a chat in which the speaker says something."""
    assert source.text, "a chat is text"
    with open_text(source.path, source.text) as lines:
        said = messages(lines, source.delimiter)
        if any(isinstance(item, Said) and item.speaker == source.read_options.answerer for item in said):
            return source
    with open_text(source.path, source.text) as lines:
        raise _wrong_speaker(source, speakers(messages(lines, source.delimiter)))


def _wrong_speaker(source: Source, counts: Counter[str]) -> DataError:
    """Nobody of that name speaks, or none was given; the message lists who does."""
    shown = ", ".join(f"{excerpt(name)} ({count:,})" for name, count in counts.most_common(10))
    listed = shown + (", …" if len(counts) > 10 else "")
    if not counts:
        return DataError("{file} is a KakaoTalk chat without any message.", "Export the chat again.", file=source.path)
    if source.read_options.speaker:
        return DataError(
            "{file}: nobody called {value} speaks in this chat; messages by speaker: {speakers}.",
            "Choose whose messages are the answers with --speaker.",
            file=source.path,
            value=source.read_options.speaker,
            speakers=listed,
        )
    return DataError(
        "{file} is a KakaoTalk chat; messages by speaker: {speakers}.",
        "Choose whose messages are the answers with --speaker.",
        file=source.path,
        speakers=listed,
    )


__all__ = ["DEFAULT_READ_OPTIONS", "BadRow", "ReadOptions", "Source", "open_source", "rows"]


def rows(source: Source) -> Iterator[Pair | BadRow]:
    """The pairs and the unreadable rows of a file, in order; holds one at a time."""
    if source.text is None:
        yield from _table_rows(excel_records(source.path), source)
        return
    with open_text(source.path, source.text) as lines:
        if source.format == "jsonl":
            yield from _json_rows(lines, source)
        elif source.format == "kakaotalk":
            yield from chat_pairs(messages(lines, source.delimiter), source.read_options.answerer, source.path.name)
        else:
            yield from _table_rows(records(lines, source.delimiter), source)


def _json_rows(lines: TextIO, source: Source) -> Iterator[Pair | BadRow]:
    @lru_cache(256)  # the objects of a file have the same keys, or a few kinds of them
    def columns_of(keys: tuple[str, ...]) -> Columns:
        return choose(keys, source.read_options.wanted, source.path, keys=True)

    for line, row in objects(lines):
        if isinstance(row, BadRow):
            yield row
        else:
            yield from object_pairs(row, line, columns_of, source.path.name)


def _table_rows(found: Iterable[Record], source: Source) -> Iterator[Pair | BadRow]:
    assert source.columns, "a table has columns"
    if source.columns.header:  # blank lines may come before it
        found = islice(dropwhile(lambda record: record.fields == [], found), 1, None)
    for record in found:
        yield _row(record, source.columns, sheet=source.format == "xlsx")


def _row(record: Record, columns: Columns, *, sheet: bool) -> Pair | BadRow:
    fields, width = record.fields, columns.width
    if fields is None:
        return BadRow(record.line, "quote", excerpt(record.text.strip()))
    if len(fields) != width:
        if not any(map(str.strip, fields)):
            return BadRow(record.line, "blank", "")
        # A sheet doesn't store empty cells at the end of a row, and notes may stand beside the table.
        if not sheet and (len(fields) < width or any(map(str.strip, fields[width:]))):
            return BadRow(record.line, "fields", excerpt(record.text.strip()))
        fields = fields + [""] * (width - len(fields))
    label = fields[columns.label.index] if columns.label else ""
    return Pair(fields[columns.question.index], fields[columns.answer.index], label, line=record.line)
