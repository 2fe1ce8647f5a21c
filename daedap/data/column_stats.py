"""What the content of a column says about it: numbers, names, categories or texts, and whether the texts ask."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from daedap.korean.text import speech_level

Kind = Literal["empty", "number", "name", "category", "text"]

_NUMBER = re.compile(
    r"[-+]?[\d.,:/\s%~()-]*\d[\d.,:/\s%~()-]*(?:원|개|명|세|살|호|점|년|월|일|시|분|초|AM|PM|am|pm)?"
    r"|\d{2,4}\s*년\s*\d{1,2}\s*월.*|\d{4}[-./]\s?\d{1,2}[-./]\s?\d{1,2}.*|[A-Za-z]{0,4}[-_]?\d+|true|false|예|아니오|[YNyn]"
    r"|[\w.+-]+@[\w-]+\.[\w.]+"
)
"""Numbers, dates, times, amounts, codes, flags and e-mail addresses: no text to answer."""
_SURNAMES = (
    "김이박최정강조윤장임한오서신권황안송류전홍고문양손배백허유남심노하곽성차주우구민진지엄채원천방공현함변염여추도소석"
    "선설마길연위표명기반왕금옥육인맹제모탁국"
)
_NAME = re.compile(rf"[{_SURNAMES}][가-힣]{{2}}(?:씨|님)?")
_QUESTION = re.compile(
    r"[?？]|(?:나요|까요?|는지|은지|은가요?|는가요?|인가요?|죠|려면|어요|아요|해요|돼요|요)[\s.!?~ㅠㅜㅋㅎ]*$"
)
"""Ends as a question may; many answers end so, too."""
_ASKS = re.compile(
    r"[?？]|(?:나요|까요?|는지|은지|가요|니|냐|나|지|려면|을까|ㄹ까|대|(?<!그)래|싶어|싶다|방법)[\s.!~ㅠㅜㅋㅎ]*$"
)
_ANSWERS = re.compile(r"(?<!싶어)(?<!주세)(?<!돼)(?:요|다|죠|오)[.!]+$")
"""Ends as a question hardly ever does, or an answer often does."""


@dataclass(frozen=True)
class Column:
    """One column of a table, or one key of JSON objects."""

    index: int
    """From 0."""
    name: str
    """Its header; its number from 1 when there is no header."""


class ColumnStats(NamedTuple):
    """Content of one column."""

    kind: Kind
    filled: int
    """Number of cells that are not empty."""
    questions: float
    """Share of cells that read like a question."""
    asks: float
    """Share of cells that end as questions do, less that of cells that end as answers do and of polite ones; -2 to 1.
    Answers are polite more often than questions are."""


def column_stats(rows: Sequence[Sequence[str]], index: int) -> ColumnStats:
    """Statistics of one column over sample rows (without the header)."""
    cells = [row[index].strip() for row in rows if index < len(row) and row[index].strip()]
    if not cells:
        return ColumnStats("empty", 0, 0.0, 0.0)
    evidence = (
        bool(_ASKS.search(cell)) - bool(_ANSWERS.search(cell)) - (speech_level(cell) == "polite") for cell in cells
    )
    asks = sum(evidence) / len(cells)
    mean_length = sum(map(len, cells)) / len(cells)
    questions = sum(bool(_QUESTION.search(cell)) for cell in cells) / len(cells)
    kind: Kind = "text"
    if sum(bool(_NUMBER.fullmatch(cell)) for cell in cells) >= 0.8 * len(cells):
        kind = "number"
    elif len(cells) > 2 and sum(bool(_NAME.fullmatch(cell)) for cell in cells) >= 0.8 * len(cells):
        kind = "name"
    elif len(cells) > 3 and mean_length <= 15 and questions < 0.3:
        repeats = len(set(cells)) <= max(1, (0.7 if mean_length <= 6 else 0.5) * len(cells))
        kind = "category" if repeats else "text"
    return ColumnStats(kind, len(cells), questions, asks)
