"""Less common formats as objects for json_layouts: YAML (ChatterBot), Parquet, and plain texts of Q. and A. lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from daedap.data.clean import BadRow, excerpt
from daedap.errors import DataError
from daedap.types import Pair

Row = dict[str, Any]

_QUESTION = re.compile(
    r"\s*(?:[#>*-]\s*)*\**\s*(?:Q|질문|질의|물음|문)\s*\d*\s*\**\s*[.:)>：]\**\s*(.*)$", re.IGNORECASE
)
_ANSWER = re.compile(r"\s*(?:[#>*-]\s*)*\**\s*(?:A|답변|대답|응답|답)\s*\d*\s*\**\s*[.:)>：]\**\s*(.*)$", re.IGNORECASE)


def has_marked_lines(sample: Sequence[str]) -> bool:
    """Whether a text has questions and answers on lines of their own: Q. …, A. …"""
    lines = [line for line in sample if line.strip()]
    questions, answers = (sum(bool(mark.match(line)) for line in lines) for mark in (_QUESTION, _ANSWER))
    return questions > 0 and questions - 1 <= answers <= questions + 1 and bool(_QUESTION.match(lines[0]))


def marked_lines(lines: Iterable[str]) -> Iterator[Pair | BadRow]:
    """The pairs of a text with Q. and A. lines; lines without a mark go on with the one before."""
    question: list[str] = []
    answer: list[str] = []
    start, current = 0, question
    for number, raw in enumerate(lines, 1):
        line = raw.rstrip("\r\n").lstrip("\ufeff")
        if match := _QUESTION.match(line):
            if start:
                yield _marked_pair(start, question, answer)
            question, answer, start = [match[1]], [], number
            current = question
        elif start and (match := _ANSWER.match(line)):
            answer.append(match[1])
            current = answer
        elif start:
            current.append(line)
        elif line.strip():
            yield BadRow(number, "fields", excerpt(line.strip()))
    if start:
        yield _marked_pair(start, question, answer)


def _marked_pair(line: int, question: Sequence[str], answer: Sequence[str]) -> Pair:
    return Pair("\n".join(question).strip(), "\n".join(answer).strip(), line=line)


def yaml_objects(path: Path, text: str) -> Iterator[tuple[int, Row]]:
    """The conversations or rows of a YAML file; the number of each stands for its line.

    Raises:
        DataError: The file is no YAML, or holds Rasa's intents, which name answers that stand in other files.
    """
    import yaml

    try:
        document = yaml.safe_load(text)
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
    rows = document
    if isinstance(document, dict):
        label = document.get("categories")
        label = label[0] if isinstance(label, list) and label else label
        lists = [value for key, value in document.items() if isinstance(value, list) and key != "categories"]
        rows = [
            {"conversation": row, "category": label} if isinstance(row, list) else row for row in (lists or [[]])[0]
        ]
    yield from (
        (number, row if isinstance(row, dict) else {"conversation": row})
        for number, row in enumerate(rows if isinstance(rows, list) else [], 1)
        if isinstance(row, dict | list)
    )


def parquet_objects(path: Path) -> Iterator[tuple[int, Row]]:
    """The rows of a Parquet file; the number of each stands for its line.

    Raises:
        DataError: pyarrow is not installed, or the file is damaged.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            "{file}: reading Parquet needs the package pyarrow.", "Install it: pip install pyarrow", file=path
        ) from error
    numbers = count(1)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1_000):
                yield from ((next(numbers), row) for row in batch.to_pylist())
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            "{file} can't be read as Parquet ({error}).",
            "Save the pairs as CSV or JSONL.",
            file=path,
            error=" ".join(str(error).split())[:100],
        ) from error
