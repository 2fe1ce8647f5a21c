"""Reads a file of pairs: detects its format, encoding and columns, and yields its raw pairs one after the other."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from daedap.config import ReadOptions
from daedap.data.clean import BadRow, excerpt
from daedap.data.columns import Columns, TurnColumns, choose_columns, choose_keys, turn_columns, turns_by_content
from daedap.data.conversation import assistant_among
from daedap.data.excel import Sheet, is_excel, read_sheets
from daedap.data.headers import Column, Part
from daedap.data.inputs import (
    JSON_SUFFIXES,
    Encoding,
    detect,
    empty_file,
    open_text,
    refuse_damaged_archive,
    refuse_unknown,
    refuse_unreadable,
    suffix_of,
)
from daedap.data.json_layouts import as_text, conversation_of, object_pairs
from daedap.data.kakaotalk import (
    ChatMessage,
    chat_columns,
    chat_pairs,
    is_chat,
    table_messages,
    text_messages,
)
from daedap.data.objects import objects, parquet_objects, yaml_objects
from daedap.data.plain_text import marked_lines, style_of
from daedap.data.tables import Record, message_pairs, records, rendered_column, rendered_pairs, sniff, table_pairs
from daedap.errors import DataError
from daedap.korean.text import comparison_form, nfc
from daedap.types import Pair

Format = Literal["csv", "tsv", "jsonl", "xlsx", "kakaotalk", "text", "yaml", "parquet"]
DEFAULT_READ_OPTIONS = ReadOptions()
STARTER = Path(__file__).with_name("starter.csv")
"""The built-in pairs."""
_SAMPLE = 200
"""Lines or rows read to detect the delimiter and the columns."""
_OBJECTS: dict[str, Format] = {".yml": "yaml", ".yaml": "yaml", ".parquet": "parquet"}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A readable file and how to read it."""

    path: Path
    format: Format = "csv"
    """By content, whatever the file's name ends with."""
    encoding: Encoding | None = None
    """None for Excel and Parquet."""
    delimiter: str = ""
    """Field separator of a text table."""
    columns: Columns | None = None
    """None for chats, conversations and tables of messages."""
    turns: TurnColumns | None = None
    """Of a table of messages."""
    texts: Column | None = None
    """Of a table with a column of rendered conversations: ### 질문: … ### 답변: …"""
    speaker: str = ""
    """Of a table of messages: whose messages are the answers."""
    sheets: tuple[str, ...] = ()
    """Sheets of a workbook that are read."""
    read_options: ReadOptions = DEFAULT_READ_OPTIONS

    @property
    def encoding_name(self) -> str:
        """Name of the encoding, for the report."""
        return self.encoding.name if self.encoding else ""

    @property
    def requested(self) -> dict[Part, str | None]:
        """The columns that the user named, by what they hold."""
        options = self.read_options
        return {"question": options.question_column, "answer": options.answer_column, "label": options.label_column}

    @property
    def requested_speaker(self) -> str:
        """The name of the speaker whose messages are the answers, in NFC as in the parsed chat."""
        return nfc((self.read_options.speaker or "").strip())


def built_in_pairs() -> list[Pair]:
    """All built-in pairs."""
    return [row for row in read_pairs(detect_source(STARTER)) if isinstance(row, Pair)]


def detect_source(path: Path, read_options: ReadOptions = DEFAULT_READ_OPTIONS) -> Source:
    """Detect what a file is and where its questions and answers are; reads all of it to detect the encoding.

    Raises DataError when the file can't be read, or holds no questions and answers.
    """
    refuse_unreadable(path)
    refuse_damaged_archive(path)
    source = Source(path=path, read_options=read_options)
    if is_excel(path):
        source = _detect_excel(source)
    else:
        refuse_unknown(path)
        source = _detect_objects(source) if suffix_of(path) in _OBJECTS else _detect_text(source)
    if read_options.speaker and source.format != "kakaotalk" and not source.turns:
        raise DataError(
            "{file} is not a KakaoTalk chat, so there is no speaker {value} in it.",
            "Leave out --speaker.",
            file=path,
            value=read_options.speaker,
        )
    if read_options.sheet and source.format != "xlsx":
        raise DataError(
            "--sheet {value}: {file} is not an Excel workbook.",
            "Leave out --sheet.",
            file=path,
            value=read_options.sheet,
        )
    return source


def read_pairs(source: Source) -> Iterator[Pair | BadRow]:
    """The pairs and the unreadable rows of a file, in order; text files are streamed."""
    name = source.path.name
    if source.format == "xlsx":
        yield from _excel_rows(source)
    elif source.format == "kakaotalk":
        yield from chat_pairs(_chat_messages(source), source.requested_speaker, name)
    elif source.format in ("jsonl", "yaml", "parquet") and source.turns:
        messages = _message_records(_objects_of(source), source.turns)
        yield from message_pairs(messages, source.turns, source.speaker, name)
    elif source.format in ("jsonl", "yaml", "parquet"):
        yield from _pairs_of_objects(source, _objects_of(source))
    else:
        assert source.encoding, "all other formats are text"
        with open_text(source.path, source.encoding) as lines:
            if source.format == "text":
                yield from marked_lines(lines)
            elif source.texts:
                yield from rendered_pairs(records(lines, source.delimiter), source.texts, name)
            else:
                yield from _table_rows(source, records(lines, source.delimiter), source.columns or source.turns)


def _table_rows(
    source: Source, table: Iterable[Record], columns: Columns | TurnColumns | None
) -> Iterator[Pair | BadRow]:
    assert columns, "a table has columns"
    below = (record for record in table if record.line > columns.header_line)
    if isinstance(columns, TurnColumns):
        return message_pairs(below, columns, source.speaker, source.path.name)
    return table_pairs(below, columns, source.path.name, source.delimiter)


# ---- workbooks ----


def _detect_excel(source: Source) -> Source:
    sheets = read_sheets(source.path)
    if not sheets:
        raise empty_file(source.path)
    refusal: DataError | None = None
    read: list[tuple[Sheet, Columns | TurnColumns]] = []
    for sheet in _chosen_sheets(source, sheets):
        if chat_columns(sheet.records[0].fields or []) and not source.read_options.question_column:
            return _detect_chat(replace(source, format="kakaotalk", sheets=(sheet.name,)))
        try:
            read.append((sheet, _sheet_columns(source, sheet)))
        except DataError as error:
            refusal = refusal or error
    if not read:
        raise refusal or empty_file(source.path)
    first, columns = read[0]
    if isinstance(columns, TurnColumns):
        speaker = _answer_speaker(source, first.records, columns)
        return replace(source, format="xlsx", turns=columns, speaker=speaker, sheets=(first.name,))
    names = tuple(sheet.name for sheet, found in read if isinstance(found, Columns))
    return replace(source, format="xlsx", columns=columns, sheets=names)


def _chosen_sheets(source: Source, sheets: Sequence[Sheet]) -> Sequence[Sheet]:
    """The sheet that the user named, or all visible ones."""
    wanted = source.read_options.sheet
    if not wanted:
        return [sheet for sheet in sheets if not sheet.hidden] or sheets
    for number, sheet in enumerate(sheets, 1):
        if comparison_form(sheet.name) == comparison_form(wanted) or wanted == str(number):
            return [sheet]
    raise DataError(
        "{file} has no sheet {value}; its sheets are {sheets}.",
        "Give one of these names, or a number counted from 1.",
        file=source.path,
        value=wanted,
        sheets=", ".join(sheet.name for sheet in sheets),
    )


def _sheet_columns(source: Source, sheet: Sheet) -> Columns | TurnColumns:
    return _columns_of(source, [(record.line, record.fields or []) for record in sheet.records[:_SAMPLE]])


def _excel_rows(source: Source) -> Iterator[Pair | BadRow]:
    """The rows of all sheets that are read; what is left out comes as BadRow."""
    for sheet in read_sheets(source.path):
        if sheet.name not in source.sheets:
            if not source.read_options.sheet:
                yield BadRow(1, "hidden" if sheet.hidden else "sheet", excerpt(sheet.name))
            continue
        yield from (BadRow(row, "hidden", excerpt(sheet.name)) for row in sheet.hidden_rows)
        for row in _table_rows(source, sheet.records, source.turns or _sheet_columns(source, sheet)):
            formula = sheet.formulas.get(row.line)
            empty = isinstance(row, Pair) and not (row.question.strip() and row.answer.strip())
            yield BadRow(row.line, "formula", excerpt(formula)) if formula and empty else row


# ---- text files ----


def _detect_text(source: Source) -> Source:
    source = replace(source, encoding=(encoding := detect(source.path)))
    with open_text(source.path, encoding) as lines:
        sample = list(islice(lines, _SAMPLE))
    if not any(map(str.strip, sample)):
        raise empty_file(source.path)
    start = next(line for line in sample if line.strip()).lstrip("\ufeff \t")
    is_json = suffix_of(source.path) in JSON_SUFFIXES
    if not is_json and is_chat(sample) and not chat_columns(re.split("[,;\t]", start)):
        return _detect_chat(replace(source, format="kakaotalk"))
    if is_json or start.startswith(("{", "[{", "[[", '["')) or start.strip() == "[":
        return _detect_objects(source, start)
    if start[:200].lstrip().casefold().startswith(("<html", "<!doctype", "<table", "<?xml", "<meta", "<head")):
        raise DataError(
            "{file} is a web page or XML that was saved under another name.",
            "Open it in Excel and save it as .xlsx or as CSV (UTF-8).",
            file=source.path,
        )
    if style_of(sample) and not any(source.requested.values()):
        return replace(source, format="text")
    return _detect_table(source, sample)


def _detect_table(source: Source, sample: Sequence[str]) -> Source:
    delimiter = sniff(sample, "\t" if suffix_of(source.path) in (".tsv", ".tab") else ",")
    source = replace(source, delimiter=delimiter, format="tsv" if delimiter.endswith("\t") else "csv")
    filled = [record for record in records(sample, delimiter) if record.fields != []]
    if not filled:
        raise empty_file(source.path)
    if chat_columns(filled[0].fields or []) and not source.read_options.question_column:
        return _detect_chat(replace(source, format="kakaotalk"))
    rows = [(record.line, record.fields if record.fields is not None else [record.text.strip()]) for record in filled]
    try:
        columns = _columns_of(source, rows)
    except DataError:
        if any(source.requested.values()) or not (texts := rendered_column([cells for _, cells in rows])):
            raise
        return replace(source, texts=texts)
    if isinstance(columns, Columns):
        return replace(source, columns=columns)
    assert source.encoding, "its encoding was detected"
    with open_text(source.path, source.encoding) as lines:
        return replace(source, turns=columns, speaker=_answer_speaker(source, records(lines, delimiter), columns))


def _columns_of(source: Source, rows: Sequence[tuple[int, Sequence[str]]]) -> Columns | TurnColumns:
    """The columns of a table by its first rows. Raises DataError when they are not clear, or for a header alone."""
    columns = choose_columns(rows, source.requested, source.path)
    if columns.header_line and not any(fields and line > columns.header_line for line, fields in rows):
        raise DataError(
            "{file} holds only a header.", "Add one question and answer per line below it.", file=source.path
        )
    return columns


# ---- objects ----

_Objects = Iterable[tuple[int, dict[str, Any] | BadRow]]


def _detect_objects(source: Source, start: str = "") -> Source:
    """Open JSON that begins with `start`, YAML or Parquet."""
    format = _OBJECTS.get(suffix_of(source.path), "jsonl")
    text = detect(source.path) if format == "yaml" else source.encoding
    source = replace(source, format=format, encoding=text)
    rows = [row for _, row in islice(_objects_of(source), _SAMPLE) if isinstance(row, dict)]
    if not rows and not start:
        raise empty_file(source.path)
    if not rows:
        raise DataError(
            "{file} holds no JSON objects; it begins: {value}",
            'Write one object per line: {{"question": "…", "answer": "…"}}.',
            file=source.path,
            value=excerpt(start.strip()),
        )
    if not (turns := _message_keys(source, rows)):
        return replace(source, columns=_object_columns(source, rows))
    speaker = _answer_speaker(source, _message_records(_objects_of(source), turns), turns)
    return replace(source, turns=turns, speaker=speaker)


def _objects_of(source: Source) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    if source.encoding is None:
        yield from parquet_objects(source.path)
        return
    with open_text(source.path, source.encoding) as lines:
        yield from objects(lines) if source.format == "jsonl" else yaml_objects(source.path, lines.read())


def _message_keys(source: Source, rows: Sequence[dict[str, Any]]) -> TurnColumns | None:
    """The keys of speaker and text when every object is one message; None for other objects."""
    names = list(rows[0])
    flat = all(list(row) == names and not any(isinstance(value, dict) for value in row.values()) for row in rows)
    if not flat or len(rows) < 2 or len(names) < 2 or any(source.requested.values()):
        return None
    values = [[as_text(value) or "" for value in row.values()] for row in rows]
    turns = turn_columns(names, 0) or turns_by_content(names, values, 0)
    return turns if turns and turns.speaker else None


def _object_columns(source: Source, rows: Sequence[dict[str, Any]]) -> Columns | None:
    """The keys of the first objects that hold a pair; None for conversations and other layouts."""
    if any(conversation_of(row) is not None for row in rows):
        return None
    refusal: DataError | None = None
    for row in {tuple(row): row for row in reversed(rows)}.values():
        try:
            return choose_keys(list(row), source.requested, source.path, [str(value) for value in row.values()])
        except DataError as error:
            refusal = error
    assert refusal, "there are rows"
    pairs = _pairs_of_objects(source, enumerate(rows))
    if any(source.requested.values()) or not any(isinstance(pair, Pair) for pair in pairs):
        raise refusal
    return None


def _message_records(rows: _Objects, turns: TurnColumns) -> Iterator[Record | BadRow]:
    """Messages as records of a table."""
    columns = [turns.text, *turns.more_texts, turns.speaker, turns.conversation, turns.turn]
    for line, row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        fields = [""] * turns.width
        for column in filter(None, columns):
            fields[column.index] = as_text(row.get(column.name)) or ""
        yield Record(line, fields, excerpt(str(row)))


def _pairs_of_objects(source: Source, rows: _Objects) -> Iterator[Pair | BadRow]:
    @lru_cache(256)  # objects have few kinds of keys
    def choose(keys: tuple[str, ...]) -> Columns | None:
        try:
            return choose_keys(keys, source.requested, source.path)
        except DataError:
            return None

    for line, row in rows:
        yield from [row] if isinstance(row, BadRow) else object_pairs(row, line, choose, source.path.name)


# ---- chats, and who answers ----


def _detect_chat(source: Source) -> Source:
    """Accept a chat in which the speaker writes at least one message, and somebody else another."""
    counts = Counter(message.speaker for message in _chat_messages(source) if isinstance(message, ChatMessage))
    if not counts:
        raise DataError("{file} is a KakaoTalk chat without any message.", "Export the chat again.", file=source.path)
    if len(counts) == 1:
        raise DataError(
            "{file} is a KakaoTalk chat in which only {name} writes: there are no questions and answers in it.",
            "Give a chat of two or more people, or a table with a column of questions and one of answers.",
            file=source.path,
            name=excerpt(next(iter(counts))),
        )
    if source.requested_speaker not in counts:
        raise _wrong_speaker(source, counts)
    return source


def _chat_messages(source: Source) -> Iterator[ChatMessage | BadRow]:
    if source.encoding is None:
        sheet = next(sheet for sheet in read_sheets(source.path) if sheet.name in source.sheets)
        yield from table_messages(sheet.records)
        return
    with open_text(source.path, source.encoding) as lines:
        yield from table_messages(records(lines, source.delimiter)) if source.delimiter else text_messages(lines)


def _answer_speaker(source: Source, table: Iterable[Record | BadRow], turns: TurnColumns) -> str:
    """Whose messages are the answers in a table of messages. Raises DataError when it is not clear."""
    if not turns.speaker:
        return ""
    index = turns.speaker.index
    rows = (row.fields for row in table if isinstance(row, Record) and row.line > turns.header_line and row.fields)
    counts = Counter(nfc(name) for fields in rows if index < len(fields) and (name := fields[index].strip()))
    if source.requested_speaker in counts:
        return source.requested_speaker
    speaker = assistant_among(list(counts))
    if source.read_options.speaker or speaker is None:
        raise _wrong_speaker(source, counts)
    return speaker


def _wrong_speaker(source: Source, counts: Counter[str]) -> DataError:
    """Refusal that lists the number of messages of each speaker."""
    shown = ", ".join(f"{excerpt(name)} ({count:,})" for name, count in counts.most_common(10))
    what = "{file} is a table of messages; messages by speaker: {speakers}."
    if source.format == "kakaotalk":
        what = "{file} is a KakaoTalk chat; messages by speaker: {speakers}."
    if source.read_options.speaker:
        what = "{file}: nobody called {value} speaks in this chat; messages by speaker: {speakers}."
    return DataError(
        what,
        "Choose whose messages are the answers with --speaker.",
        file=source.path,
        value=source.read_options.speaker,
        speakers=shown + (", …" if len(counts) > 10 else ""),
    )
