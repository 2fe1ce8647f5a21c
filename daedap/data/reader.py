"""Reads a file of pairs: detects its format, encoding and columns, and yields its raw pairs one after the other."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from daedap.config import ReadOptions
from daedap.data.clean import BadRow, excerpt
from daedap.data.column_stats import Column
from daedap.data.columns import Columns, Part, choose_columns, choose_keys
from daedap.data.conversation import assistant_among
from daedap.data.encoding import Encoding, detect, open_text
from daedap.data.excel import Sheet, is_excel, read_sheets
from daedap.data.inputs import (
    JSON_SUFFIXES,
    empty_file,
    inner_name,
    refuse_damaged_archive,
    refuse_unknown,
    refuse_unreadable,
)
from daedap.data.json_layouts import Chooser, as_text, conversation_of, object_pairs
from daedap.data.json_stream import objects
from daedap.data.kakaotalk import ChatMessage, chat_columns, chat_pairs, is_chat, messages, speakers, table_messages
from daedap.data.other_formats import has_marked_lines, marked_lines, parquet_objects, yaml_objects
from daedap.data.source import DEFAULT_READ_OPTIONS, Format, Source
from daedap.data.table_rows import cell_turns, table_rows, text_rows
from daedap.data.tables import Record, records, sniff
from daedap.data.turn_columns import TurnColumns, turn_columns, turns_by_content
from daedap.errors import DataError
from daedap.korean.text import comparison_form, nfc
from daedap.types import Pair

_SAMPLE = 200
"""Lines or rows read to detect the delimiter and the columns."""


def open_source(path: Path, read_options: ReadOptions = DEFAULT_READ_OPTIONS) -> Source:
    """Detect what a file is and where its questions and answers are; reads all of it to detect the encoding.

    Raises DataError when the file can't be read, or holds no questions and answers.
    """
    refuse_unreadable(path)
    refuse_damaged_archive(path)
    if is_excel(path):
        source = _open_excel(path, read_options)
    else:
        refuse_unknown(path)
        suffix = Path(inner_name(path)).suffix.lower()
        source = _open_objects(path, suffix, read_options) if suffix in _OBJECTS else _open_text(path, read_options)
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


# ---- workbooks ----


def _open_excel(path: Path, read_options: ReadOptions) -> Source:
    sheets = read_sheets(path)
    if not sheets:
        raise empty_file(path)
    chosen = _chosen_sheets(path, sheets, read_options)
    refusal: DataError | None = None
    read: list[tuple[Sheet, Columns | TurnColumns]] = []
    for sheet in chosen:
        if chat_columns(sheet.records[0].fields or []) and not read_options.question_column:
            return _open_chat(Source(path=path, format="kakaotalk", sheets=(sheet.name,), read_options=read_options))
        try:
            read.append((sheet, _sheet_columns(path, sheet, read_options)))
        except DataError as error:
            refusal = refusal or error
    if not read:
        raise refusal or empty_file(path)
    first, columns = read[0]
    if isinstance(columns, TurnColumns):
        speaker = _answer_speaker(path, _rows_of(first, columns), columns, read_options)
        return Source(
            path=path, format="xlsx", turns=columns, speaker=speaker, sheets=(first.name,), read_options=read_options
        )
    names = tuple(sheet.name for sheet, found in read if isinstance(found, Columns))
    return Source(path=path, format="xlsx", columns=columns, sheets=names, read_options=read_options)


def _chosen_sheets(path: Path, sheets: Sequence[Sheet], read_options: ReadOptions) -> list[Sheet]:
    """The sheet that the user named, or all visible ones."""
    wanted = read_options.sheet
    if not wanted:
        return [sheet for sheet in sheets if not sheet.hidden] or list(sheets)
    for number, sheet in enumerate(sheets, 1):
        if comparison_form(sheet.name) == comparison_form(wanted) or wanted == str(number):
            return [sheet]
    raise DataError(
        "{file} has no sheet {value}; its sheets are {sheets}.",
        "Give one of these names, or a number counted from 1.",
        file=path,
        value=wanted,
        sheets=", ".join(sheet.name for sheet in sheets),
    )


def _sheet_columns(path: Path, sheet: Sheet, read_options: ReadOptions) -> Columns | TurnColumns:
    rows = [(record.line, record.fields or []) for record in sheet.records[:_SAMPLE]]
    columns = choose_columns(rows, _requested(read_options), path)
    _refuse_lone_header(path, columns, [line for line, fields in rows if fields])
    return columns


def _excel_rows(source: Source) -> Iterator[Pair | BadRow]:
    """The rows of all sheets that are read; what is left out comes as BadRow."""
    sheets = read_sheets(source.path)
    for sheet in sheets:
        if sheet.name not in source.sheets:
            if not source.read_options.sheet:
                yield BadRow(1, "hidden" if sheet.hidden else "sheet", excerpt(sheet.name))
            continue
        yield from (BadRow(row, "hidden", excerpt(sheet.name)) for row in sheet.hidden_rows)
        formulas = dict(sheet.formulas)
        columns = source.turns or _sheet_columns(source.path, sheet, source.read_options)
        for row in table_rows(_rows_of(sheet, columns), columns, source):
            formula = formulas.get(row.line)
            empty = isinstance(row, Pair) and not (row.question.strip() and row.answer.strip())
            yield BadRow(row.line, "formula", excerpt(formula)) if formula and empty else row


def _rows_of(sheet: Sheet, columns: Columns | TurnColumns) -> list[Record]:
    return [record for record in sheet.records if record.line > columns.header_line]


# ---- text files ----


_OBJECTS: dict[str, Format] = {".yml": "yaml", ".yaml": "yaml", ".parquet": "parquet"}


def _open_objects(path: Path, suffix: str, read_options: ReadOptions) -> Source:
    source = Source(
        path=path,
        format=_OBJECTS[suffix],
        text=detect(path) if suffix != ".parquet" else None,
        read_options=read_options,
    )
    rows = [row for _, row in islice(_objects_of(source), _SAMPLE)]
    if not rows:
        raise empty_file(path)
    columns = _object_columns(path, rows, read_options)
    return replace(source, columns=columns)


def _objects_of(source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    if not source.text:
        yield from parquet_objects(source.path)
        return
    with open_text(source.path, source.text) as lines:
        yield from yaml_objects(source.path, lines.read())


def _open_text(path: Path, read_options: ReadOptions) -> Source:
    encoding = detect(path)
    with open_text(path, encoding) as lines:
        sample = list(islice(lines, _SAMPLE))
    if not any(map(str.strip, sample)):
        raise empty_file(path)
    suffix = Path(inner_name(path)).suffix.lower()
    start = next(line for line in sample if line.strip()).lstrip("\ufeff \t")
    if suffix not in JSON_SUFFIXES and is_chat(sample) and not chat_columns(re.split("[,;\t]", start)):
        return _open_chat(Source(path=path, format="kakaotalk", text=encoding, read_options=read_options))
    if suffix in JSON_SUFFIXES or start.startswith(("{", "[{", "[[", '["')) or start.strip() == "[":
        return _open_json(path, encoding, start, read_options)
    if start[:200].lstrip().casefold().startswith(("<html", "<!doctype", "<table", "<?xml", "<meta", "<head")):
        raise DataError(
            "{file} is a web page or XML that was saved under another name.",
            "Open it in Excel and save it as .xlsx or as CSV (UTF-8).",
            file=path,
        )
    if has_marked_lines(sample) and not any(_requested(read_options).values()):
        return Source(path=path, format="text", text=encoding, read_options=read_options)
    return _open_table(path, encoding, sample, read_options)


def _open_table(path: Path, encoding: Encoding, sample: Sequence[str], read_options: ReadOptions) -> Source:
    suffix = Path(inner_name(path)).suffix.lower()
    delimiter = sniff(sample, "\t" if suffix in (".tsv", ".tab") else ",")
    table = list(records(sample, delimiter))
    filled = [record for record in table if record.fields != []]
    if not filled:
        raise empty_file(path)
    if chat_columns(filled[0].fields or []) and not read_options.question_column:
        return _open_chat(
            Source(path=path, format="kakaotalk", text=encoding, delimiter=delimiter, read_options=read_options)
        )
    rows = [(record.line, record.fields if record.fields is not None else [record.text.strip()]) for record in filled]
    source = Source(
        path=path,
        format="tsv" if delimiter.endswith("\t") else "csv",
        text=encoding,
        delimiter=delimiter,
        read_options=read_options,
    )
    try:
        columns = choose_columns(rows, _requested(read_options), path)
    except DataError:
        if any(_requested(read_options).values()) or not (texts := _text_column([cells for _, cells in rows])):
            raise
        return replace(source, texts=texts)
    _refuse_lone_header(path, columns, [line for line, _ in rows])
    if isinstance(columns, Columns):
        return replace(source, columns=columns)
    with open_text(path, encoding) as lines:
        after = (record for record in records(lines, delimiter) if record.line > columns.header_line)
        return replace(source, turns=columns, speaker=_answer_speaker(path, after, columns, read_options))


def _text_column(rows: Sequence[Sequence[str]]) -> Column | None:
    """The column whose texts are rendered conversations (### 질문: … ### 답변: …), below a header or not."""
    for index in range(max(map(len, rows))):
        cells = [row[index] for row in rows if index < len(row) and row[index].strip()]
        marked = [bool(cell_turns(cell, 0)) for cell in cells]
        if sum(marked) > 0 and sum(marked) >= 0.8 * (len(marked) - (not marked[0])):
            return Column(index, "" if marked[0] else cells[0].strip())
    return None


def _refuse_lone_header(path: Path, columns: Columns | TurnColumns, lines: Sequence[int]) -> None:
    if columns.header_line and not any(line > columns.header_line for line in lines):
        raise DataError("{file} holds only a header.", "Add one question and answer per line below it.", file=path)


def _open_json(path: Path, encoding: Encoding, start: str, read_options: ReadOptions) -> Source:
    source = Source(path=path, format="jsonl", text=encoding, read_options=read_options)
    with open_text(path, encoding) as lines:
        rows = [row for _, row in islice(objects(lines), _SAMPLE) if isinstance(row, dict)]
    if not rows:
        raise DataError(
            "{file} holds no JSON objects; it begins: {value}",
            'Write one object per line: {{"question": "…", "answer": "…"}}.',
            file=path,
            value=excerpt(start.strip()),
        )
    if not (turns := _message_keys(rows, read_options)):
        return replace(source, columns=_object_columns(path, rows, read_options))
    with open_text(path, encoding) as lines:
        speaker = _answer_speaker(path, _message_records(objects(lines), turns, []), turns, read_options)
    return replace(source, turns=turns, speaker=speaker)


def _message_keys(rows: Sequence[dict[str, Any]], read_options: ReadOptions) -> TurnColumns | None:
    """The keys of speaker and text when every object is one message; None for other objects."""
    names = list(rows[0])
    flat = all(list(row) == names and not any(isinstance(value, dict) for value in row.values()) for row in rows)
    if not flat or len(rows) < 2 or len(names) < 2 or any(_requested(read_options).values()):
        return None
    values = [[as_text(value) or "" for value in row.values()] for row in rows]
    turns = turn_columns(names, 0) or turns_by_content(names, values, 0)
    return turns if turns and turns.speaker else None


def _object_columns(path: Path, rows: Sequence[dict[str, Any]], read_options: ReadOptions) -> Columns | None:
    """The keys of the first objects that hold a pair; None for conversations and other layouts."""
    if any(conversation_of(row) is not None for row in rows):
        return None
    refusal: DataError | None = None
    for row in {tuple(row): row for row in reversed(rows)}.values():
        try:
            return choose_keys(list(row), _requested(read_options), path, [str(value) for value in row.values()])
        except DataError as error:
            refusal = error
    assert refusal, "there are rows"
    if any(_requested(read_options).values()):
        raise refusal
    choose = _key_chooser(path, read_options)
    pairs = (pair for number, row in enumerate(rows) for pair in object_pairs(row, number, choose, path.name))
    if any(isinstance(pair, Pair) for pair in pairs):
        return None
    raise refusal


# ---- chats and tables of messages ----


def _open_chat(source: Source) -> Source:
    """Accept a chat in which the speaker writes at least one message, and somebody else another."""
    counts = speakers(_chat_messages(source))
    if not counts:
        raise DataError("{file} is a KakaoTalk chat without any message.", "Export the chat again.", file=source.path)
    if len(counts) == 1:
        raise DataError(
            "{file} is a KakaoTalk chat in which only {name} writes: there are no questions and answers in it.",
            "Give a chat of two or more people, or a table with a column of questions and one of answers.",
            file=source.path,
            name=excerpt(next(iter(counts))),
        )
    if _requested_speaker(source.read_options) not in counts:
        raise _wrong_speaker(source.path, counts, source.read_options, chat=True)
    return source


def _chat_messages(source: Source) -> Iterator[ChatMessage | BadRow]:
    if source.text is None:
        sheet = next(sheet for sheet in read_sheets(source.path) if sheet.name in source.sheets)
        yield from table_messages(sheet.records)
        return
    with open_text(source.path, source.text) as lines:
        yield from messages(lines, source.delimiter)


def _wrong_speaker(path: Path, counts: Counter[str], read_options: ReadOptions, *, chat: bool) -> DataError:
    """Refusal that lists the number of messages of each speaker; `chat`: of a KakaoTalk chat, else of a table."""
    shown = ", ".join(f"{excerpt(name)} ({count:,})" for name, count in counts.most_common(10))
    listed = shown + (", …" if len(counts) > 10 else "")
    if read_options.speaker:
        return DataError(
            "{file}: nobody called {value} speaks in this chat; messages by speaker: {speakers}.",
            "Choose whose messages are the answers with --speaker.",
            file=path,
            value=read_options.speaker,
            speakers=listed,
        )
    what = "{file} is a table of messages; messages by speaker: {speakers}."
    if chat:
        what = "{file} is a KakaoTalk chat; messages by speaker: {speakers}."
    return DataError(what, "Choose whose messages are the answers with --speaker.", file=path, speakers=listed)


def _answer_speaker(path: Path, table: Iterable[Record], turns: TurnColumns, read_options: ReadOptions) -> str:
    """Whose messages are the answers in a table of messages. Raises DataError when it is not clear."""
    if not turns.speaker:
        return ""
    index = turns.speaker.index
    names = (record.fields[index].strip() for record in table if record.fields and index < len(record.fields))
    counts = Counter(nfc(name) for name in names if name)
    if _requested_speaker(read_options) in counts:
        return _requested_speaker(read_options)
    speaker = assistant_among(list(counts))
    if read_options.speaker or speaker is None:
        raise _wrong_speaker(path, counts, read_options, chat=False)
    return speaker


# ---- rows ----


def rows(source: Source) -> Iterator[Pair | BadRow]:
    """The pairs and the unreadable rows of a file, in order; text files are streamed."""
    if source.format == "xlsx":
        yield from _excel_rows(source)
        return
    if source.format == "kakaotalk":
        yield from chat_pairs(_chat_messages(source), _requested_speaker(source.read_options), source.path.name)
        return
    if source.format in ("yaml", "parquet"):
        yield from _object_rows(_objects_of(source), source)
        return
    assert source.text, "all other formats are text"
    with open_text(source.path, source.text) as lines:
        if source.format == "jsonl":
            rows = objects(lines)
            yield from _message_rows(rows, source.turns, source) if source.turns else _object_rows(rows, source)
        elif source.format == "text":
            yield from marked_lines(lines)
        elif source.texts:
            yield from text_rows(records(lines, source.delimiter), source.texts, source.path.name)
        else:
            columns = source.columns or source.turns
            assert columns, "a table has columns"
            yield from table_rows(records(lines, source.delimiter), columns, source)


def _message_rows(
    rows: Iterable[tuple[int, dict[str, Any] | BadRow]], turns: TurnColumns, source: Source
) -> Iterator[Pair | BadRow]:
    """The pairs of objects each of which is one message."""
    broken: list[BadRow] = []
    for row in table_rows(_message_records(rows, turns, broken), turns, source):
        yield from broken
        broken.clear()
        yield row
    yield from broken


def _message_records(
    rows: Iterable[tuple[int, dict[str, Any] | BadRow]], turns: TurnColumns, broken: list[BadRow]
) -> Iterator[Record]:
    """Messages as records of a table; what is no object is appended to `broken`."""
    columns = [turns.text, *turns.more_texts, turns.speaker, turns.conversation, turns.turn]
    for line, row in rows:
        if isinstance(row, BadRow):
            broken.append(row)
            continue
        fields = [""] * turns.width
        for column in filter(None, columns):
            fields[column.index] = as_text(row.get(column.name)) or ""
        yield Record(line, fields, excerpt(str(row)))


def _object_rows(rows: Iterable[tuple[int, dict[str, Any] | BadRow]], source: Source) -> Iterator[Pair | BadRow]:
    choose = _key_chooser(source.path, source.read_options)
    for line, row in rows:
        if isinstance(row, BadRow):
            yield row
        else:
            yield from object_pairs(row, line, choose, source.path.name)


def _key_chooser(path: Path, read_options: ReadOptions) -> Chooser:
    """Finds the keys of question and answer of an object; remembers them, as objects have few kinds of keys."""

    @lru_cache(256)
    def choose(keys: tuple[str, ...]) -> Columns | None:
        try:
            return choose_keys(keys, _requested(read_options), path)
        except DataError:
            return None

    return choose


def _requested(read_options: ReadOptions) -> dict[Part, str | None]:
    """The columns that the user named, by what they hold."""
    return {
        "question": read_options.question_column,
        "answer": read_options.answer_column,
        "label": read_options.label_column,
    }


def _requested_speaker(read_options: ReadOptions) -> str:
    """The name of the speaker whose messages are the answers, in NFC as in the parsed chat."""
    return nfc((read_options.speaker or "").strip())


__all__ = ["BadRow", "Source", "open_source", "rows"]
