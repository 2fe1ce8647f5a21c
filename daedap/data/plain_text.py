"""Plain texts of questions and answers: Q. … A. …, an arrow between both, numbers and bullets, one above the other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple

from daedap.data.clean import BadRow, excerpt
from daedap.data.headers import column_stats, is_header
from daedap.data.tables import DELIMITERS, MULTI_SPACE
from daedap.types import Pair

_FRONT = r"\s*(?:[#>*-]\s*)*\**\s*"


class Style(NamedTuple):
    """How a text marks its questions and answers."""

    question: re.Pattern[str]
    answer: re.Pattern[str] | None
    """None: the answer is whatever follows the question, on the same line too if the pattern has two groups."""


def _word_mark(letter: str, words: str, speakers: str) -> str:
    """Q., 질문 1), [답변], 고객: and the like."""
    marked = rf"[\[<【(]?(?:{letter}|{words})\s*\d*\s*\**\s*[\]>】.:)：]\**\s*:?\s*"
    return rf"(?:{marked}|{letter}\d*\s+(?=[가-힣])|(?:{speakers})\s*[:：]\s*)"


_ASKED = _word_mark("Q", "질문|질의|물음|문", "사용자|고객|손님|유저|user|human|customer")
_ANSWERED = _word_mark("A", "답변|대답|응답|답", "챗봇|봇|상담원|상담사|점원|직원|assistant|bot|chatbot|agent")
_WORDS = Style(*(re.compile(rf"{_FRONT}{mark}(.*?)(?:\*\*)?\s*$", re.IGNORECASE) for mark in (_ASKED, _ANSWERED)))
_WORDS_INLINE = Style(re.compile(rf"{_FRONT}{_ASKED}(.+?)(?:\s*[/|,;\t]\s*|\s+){_ANSWERED}(.*)$", re.IGNORECASE), None)
_LISTED = r"\s*(?:\d+[.)]\s+|[①-⑳]\s*|[-*•]\s+)?"
_SEPARATOR = r"(?:[-=]+>|→|⇒|➔|➜|::+|(?<=[?？])\s*(?:[-–—:/])(?=\s))"
_ARROWS = Style(re.compile(rf"{_LISTED}(\S.*?)\s*{_SEPARATOR}\s*(\S.*)$"), None)
_BULLETS = Style(re.compile(r"[-*•]\s+(\S.*)$"), re.compile(r"\s+[-*•◦]\s+(\S.*)$"))
_NUMBERS = Style(re.compile(r"\s*(?:\d+[.)]|[①-⑳])\s*(.+)$"), re.compile(r"\s*(?:[-–—→▶▷ㄴ└>:]|=>|->)\s*(.+)$"))
_HEADINGS = Style(re.compile(r"(#{1,6}\s+\S.*)$"), None)
_SYMBOL = r"[^\w\s\"'“‘「『(\[<{*•-]{1,2}\s+"
_QUESTION_MARKS = Style(re.compile(rf"\s*(?:{_SYMBOL}|\d+[.)]\s+)?(.+[?？])\s*$"), None)
_SAMPLE = 200
"""Lines by which the style is recognized."""


def style_of(sample: Sequence[str]) -> Style | None:
    """The style in which the questions of the first lines have their answers; None for tables and other texts."""
    lines = [line.rstrip("\r\n").lstrip("\ufeff") for line in sample if line.strip()]
    for style in (_WORDS, _NUMBERS, _BULLETS):
        assert style.answer, "these styles mark answers"
        questions, answers = (sum(bool(mark.match(line)) for line in lines) for mark in (style.question, style.answer))
        if (
            questions - 1 <= answers <= questions + 1
            and questions > (style is not _WORDS)
            and (style.question.match(lines[0]) or (style is _WORDS and questions > 1 and _begins_asking(lines)))
        ):
            return style
    if inline := _inline_style(lines):
        return inline
    if any(all(delimiter in line for line in lines) for delimiter in DELIMITERS):
        return None
    for style in (_HEADINGS, _QUESTION_MARKS):
        marks = [bool(style.question.match(line)) for line in lines]
        # An answer stands below each of them; only headings of sections may follow each other.
        unanswered = sum(mark and following for mark, following in zip(marks, [*marks[1:], False], strict=True))
        allowed = sum(marks) // 2 if style is _HEADINGS else 0
        if marks[:1] == [True] and sum(marks) - unanswered > 1 and unanswered <= allowed:
            return style
    return None


def _begins_asking(lines: Sequence[str]) -> bool:
    """Whether a question stands before the first answer, below a title of a few lines at most."""
    question = next((number for number, line in enumerate(lines) if _WORDS.question.match(line)), len(lines))
    return question < 4 and not any(_WORDS.answer and _WORDS.answer.match(line) for line in lines[:question])


def _inline_style(lines: Sequence[str]) -> Style | None:
    """The style of lines each of which holds a question and its answer."""
    inline, asking = ([bool(one.question.match(line)) for line in lines] for one in (_WORDS_INLINE, _WORDS))
    if inline[0] and sum(inline) == sum(asking):
        return _WORDS_INLINE
    arrows = [match for line in lines if (match := _ARROWS.question.match(line))]
    if len(arrows) < 2 or len(arrows) < 0.5 * len(lines) or not _ARROWS.question.match(lines[0]):
        return None
    # In a table the text before an arrow holds a delimiter: the arrow belongs to an answer (설정 -> 회원 정보).
    is_table = any(all(mark in match[1] for match in arrows) for mark in (*DELIMITERS, MULTI_SPACE))
    is_text = column_stats([[match[1]] for match in arrows], 0).kind in ("text", "category")
    return _ARROWS if is_text and not is_table else None


def marked_lines(lines: Iterable[str]) -> Iterator[Pair | BadRow]:
    """The pairs of a text in one of these styles; a line without a mark continues the one before."""
    rest = iter(lines)
    sample = list(islice(rest, _SAMPLE))
    style, section = style_of(sample), ""
    assert style, "the text was recognized"
    for block in _blocks(chain(sample, rest), style):
        if isinstance(block, BadRow):
            yield block
        elif style is _HEADINGS and not any(map(str.strip, block.answer)):
            section = block.question[0]  # a heading above other headings
        elif not (block.line == 1 and is_header([*block.question, *block.answer[:1]])):
            question, answer = ("\n".join(part).strip() for part in (block.question, block.answer))
            answer = re.sub(f"^{_SYMBOL}", "", answer) if style is _QUESTION_MARKS else answer
            yield Pair(question, answer, section, line=block.line)


class _Block(NamedTuple):
    """A question and its answer as lines."""

    line: int
    question: list[str]
    answer: list[str]


def _blocks(lines: Iterable[str], style: Style) -> Iterator[_Block | BadRow]:
    block: _Block | None = None
    current: list[str] = []
    for number, raw in enumerate(lines, 1):
        line = raw.rstrip("\r\n").lstrip("\ufeff")
        if match := style.question.match(line):
            if block:
                yield block
            block = _Block(number, [match[1].lstrip("# ")], list(match.groups()[1:]))
            current = block.question if style.answer else block.answer
        elif block:
            match = style.answer.match(line) if style.answer else None
            current = block.answer if match else current
            current.append(match[1] if match else line)
        elif line.strip():
            yield BadRow(number, "fields", excerpt(line.strip()))
    if block:
        yield block
