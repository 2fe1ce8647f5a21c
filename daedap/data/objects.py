"""The objects of a file: JSON in bounded memory (lines, a list, or a list inside an object), YAML and Parquet."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from daedap.data.clean import BadRow, excerpt
from daedap.data.headers import has_role, header_role, is_second_header
from daedap.errors import DataError

Row = dict[str, Any]

CONVERSATIONS = (
    *("messages", "conversations", "conversation", "dialogue", "dialog", "dialogs", "dialogues", "turns", "utterances"),
    *("utterance", "lines", "chat", "talks", "대화", "발화"),
)
"""Keys of a list of messages."""
_CHUNK = 1 << 16
_LONGEST_OBJECT = 1 << 24
"""Characters. An object that is not closed by then is broken."""
_BLANK = "\ufeff \t\r\n"
_SPACE = re.compile(r"[\s\ufeff]*")
_SEPARATOR = re.compile(r"[\s,\ufeff]*")
_NEXT_OBJECT = re.compile(r"\}\s*,\s*(?=\{)")
_DECODER = json.JSONDecoder()


def objects(lines: Iterable[str]) -> Iterator[tuple[int, Row | BadRow]]:
    """Line number and object, or BadRow for what is none.

    One object a line where the first line is a whole object; otherwise one document: a list of objects, an object with
    such a list (`{"data": [...]}`), or objects that extend over several lines.
    """
    rest = iter(lines)
    skipped: list[str] = []
    first = ""
    while not first and (line := next(rest, None)) is not None:
        skipped.append(line)
        first = line.strip(_BLANK)
    lines = chain(skipped, rest)
    if (first.startswith("[") and not _is_conversation(first)) or (first.startswith("{") and not _is_row(first)):
        return _document(_Buffer(lines))
    return _by_lines(lines)


def _is_conversation(line: str) -> bool:
    """Whether a line is a list of texts or messages by itself, with others on the lines below it."""
    is_begun = bool(re.match(r'\[\s*(?:"|\{\s*"(?:role|from)"\s*:)', line))
    return is_begun and line.rstrip(", ").endswith("]") and len(line) < _CHUNK


def are_messages(values: list[Any]) -> bool:
    """Whether a list holds the messages of a conversation, as OpenAI or ShareGPT write them, and nothing else."""
    return bool(values) and all(
        isinstance(one, dict)
        and len(one) <= 3
        and ({"role", "content"} <= one.keys() or {"from", "value"} <= one.keys())
        for one in values
    )


def _is_row(line: str) -> bool:
    """Whether a line is an object by itself, and not one around a list of all rows."""
    if not line.rstrip(", ").endswith("}"):
        return False
    key = re.match(r'\{\s*"([^"]*)"\s*:\s*\[\s*\{', line)
    return not (key and key[1] not in CONVERSATIONS and header_role(key[1]) is None)


def _by_lines(lines: Iterable[str]) -> Iterator[tuple[int, Row | BadRow]]:
    """One object a line. Blank lines at the end don't count."""
    blank: list[int] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            blank.append(number)
            continue
        yield from ((at, BadRow(at, "blank", "")) for at in blank)
        blank.clear()
        yield number, _as_row(_value(line.strip(_BLANK).rstrip(",")), number, line.strip())


def _value(text: str) -> object:
    """The value of a line: JSON, JSON encoded twice, or a Python dict as print() shows it (`{'question': …}`)."""
    try:
        value = json.loads(text)
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        if not text.startswith("{'"):
            return None
    try:
        return _with_text_keys(ast.literal_eval(text))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _with_text_keys(value: Any, copies: dict[int, Any] | None = None) -> Any:
    """A value whose objects have texts for keys, as in JSON; those of YAML and Python may be numbers or dates.

    `copies`: by id. YAML's aliases stay one object: a nest of them would grow exponentially.
    """
    copies = {} if copies is None else copies
    if isinstance(value, dict) and id(value) not in copies:
        copies[id(value)] = {str(key): _with_text_keys(inner, copies) for key, inner in value.items()}
    elif isinstance(value, list) and id(value) not in copies:
        copies[id(value)] = [_with_text_keys(inner, copies) for inner in value]
    return copies.get(id(value), value)


def _as_row(value: Any, line: int, text: str) -> Row | BadRow:
    """An object, or a list of texts or messages as the conversation that it is; BadRow for other values."""
    if isinstance(value, list) and len(value) > 1 and all(isinstance(one, str) for one in value):
        return BadRow(line, "header", excerpt(text)) if is_second_header(value) else {"conversation": value}
    if isinstance(value, list) and are_messages(value):
        return {"conversation": value}
    return value if isinstance(value, dict) else BadRow(line, "json", excerpt(text))


class _Buffer:
    """Text of a file that is decoded value by value."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self._text = ""
        self._at = self._counted = 0
        self._line = 1
        self._ended = False

    @property
    def line(self) -> int:
        """Line number of the next character."""
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    @property
    def excerpt(self) -> str:
        """What comes next, for messages."""
        return excerpt(self._text[self._at : self._at + 200].strip())

    def peek(self, pattern: re.Pattern[str] = _SPACE) -> str:
        """The next character after spaces (or commas); empty at the end."""
        while True:
            match = pattern.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read(_CHUNK):
                return ""

    def skip(self) -> None:
        """Pass over one character."""
        self._at += 1

    def decode(self) -> Any:
        """The value that begins here. Raises ValueError when it is no JSON."""
        size = _CHUNK
        while True:
            try:
                value, self._at = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - 100
                if not cut or len(self._text) - self._at > _LONGEST_OBJECT or not self._read(size):
                    raise
                size *= 2  # an object is decoded from its beginning again: doubling keeps that linear
            except RecursionError as error:
                raise ValueError("nested too deeply") from error
            else:
                return value

    def skip_object(self) -> None:
        """Continue at the next object of a list after a broken one; at the end of the file, if there is none."""
        while not (match := _NEXT_OBJECT.search(self._text, self._at)) and self._read(_CHUNK):
            pass
        self._at = match.end() if match else len(self._text)

    def _read(self, size: int) -> bool:
        """Append at least `size` characters; False at the end of the file."""
        if self._ended:
            return False
        chunks, total = [], 0
        for line in self._lines:
            chunks.append(line)
            total += len(line)
            if total >= size:
                break
        else:
            self._ended = True
        self._line = self.line
        self._text = self._text[self._at :] + "".join(chunks)
        self._at = self._counted = 0
        return total > 0


def _document(buffer: _Buffer) -> Iterator[tuple[int, Row | BadRow]]:
    """The objects of one document, or of several in a row."""
    while character := buffer.peek(_SEPARATOR):
        line = buffer.line
        if character == "[":
            buffer.skip()
            yield from _elements(buffer)
        elif character == "{":
            buffer.skip()
            yield from _members(buffer, line)
        else:
            yield line, BadRow(line, "json", buffer.excerpt)
            return


def _elements(buffer: _Buffer) -> Iterator[tuple[int, Row | BadRow]]:
    """The objects of a list whose bracket was passed."""
    while (character := buffer.peek(_SEPARATOR)) not in ("", "]"):
        line = buffer.line
        try:
            value = buffer.decode()
        except ValueError:
            yield line, BadRow(line, "json", buffer.excerpt)
            buffer.skip_object()
        else:
            yield line, _as_row(value, line, str(value))
    if character:
        buffer.skip()


def _members(buffer: _Buffer, line: int) -> Iterator[tuple[int, Row | BadRow]]:
    """An object whose brace was passed, or the objects of the list in it."""
    row: Row = {}
    is_container = False
    while (character := buffer.peek(_SEPARATOR)) not in ("", "}"):
        try:
            key = buffer.decode()
            if not isinstance(key, str) or buffer.peek() != ":":
                raise ValueError("no key")
            buffer.skip()
            if buffer.peek() == "[" and _holds_rows(key, row):
                buffer.skip()
                if buffer.peek() == "{":
                    is_container = True
                    yield from _elements(buffer)
                    continue
                row[key] = list(_plain_elements(buffer))
            else:
                row[key] = buffer.decode()
        except ValueError:
            yield line, BadRow(line, "json", buffer.excerpt)
            buffer.skip_object()
            return
    if character:
        buffer.skip()
    if row and not is_container:
        yield line, row


def _holds_rows(key: str, row: Row) -> bool:
    """Whether the list under a key may hold the rows of the file rather than be a part of this one."""
    holds_text = any(has_role(name, "question", "answer", below=2) for name in row)
    return key not in CONVERSATIONS and header_role(key) is None and not holds_text


def _plain_elements(buffer: _Buffer) -> Iterator[Any]:
    while buffer.peek(_SEPARATOR) not in ("", "]"):
        yield buffer.decode()
    buffer.skip()


# ---- YAML and Parquet ----


def yaml_objects(path: Path, text: str) -> Iterator[tuple[int, Row]]:
    """The conversations or rows of a YAML file; the number of each stands for its line.

    Raises DataError for other files, and for Rasa's intents, which name answers that stand in other files.
    """
    import yaml

    try:
        document = _with_text_keys(yaml.safe_load(text))
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError(
            "{file} can't be read as YAML ({error}).",
            "Save the pairs as CSV or JSONL.",
            file=path,
            error=" ".join(str(error).split())[:100],
        ) from error
    if isinstance(document, dict) and "nlu" in document:
        raise DataError(
            "{file} holds Rasa's intents: questions without the text of their answers.",
            "Write a CSV of question and answer; the answers stand in domain.yml.",
            file=path,
        )
    rows: object = document
    label: Row = {}
    if isinstance(document, dict):
        name = document.get("categories")
        label = {"category": name[0] if isinstance(name, list) and name else name}
        rows = next((rows for key, rows in document.items() if isinstance(rows, list) and key != "categories"), [])
    for number, row in enumerate(rows if isinstance(rows, list) else [], 1):
        if isinstance(row, dict | list):
            yield number, row if isinstance(row, dict) else {"conversation": row, **label}


def parquet_objects(path: Path) -> Iterator[tuple[int, Row]]:
    """The rows of a Parquet file, numbered from 1. Raises DataError without pyarrow, or when the file is damaged."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            "{file}: reading Parquet needs the package pyarrow.", "Install it: pip install pyarrow", file=path
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield from enumerate((row for batch in file.iter_batches(1_000) for row in batch.to_pylist()), 1)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            "{file} can't be read as Parquet ({error}).",
            "Save the pairs as CSV or JSONL.",
            file=path,
            error=" ".join(str(error).split())[:100],
        ) from error
