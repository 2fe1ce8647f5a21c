"""Which column holds the questions, the answers and the labels."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from daedap.data.problem import excerpt
from daedap.errors import DataError
from daedap.korean import comparison_form

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
