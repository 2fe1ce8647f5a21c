"""What a channel says, within its limits: long answers in parts, long questions behind short labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Vote = Literal["good", "bad"]
_ELLIPSIS = "…"
_BREAKS = ("\n\n", "\n", ". ", "? ", "! ", " ")
"""Where a text may be parted, the best first."""


@dataclass(frozen=True)
class Answer:
    """What is said, and the questions to choose from."""

    text: str
    suggestions: tuple[str, ...] = ()
    reply: str | None = None
    """The id of the reply, where it is kept: votes name it."""
    put_off: bool = False
    """It only asks to try again: the same question is a new event then."""


@dataclass(frozen=True)
class Choice:
    """A button: what it shows, and the question that it asks."""

    label: str
    question: str


def length(text: str) -> int:
    """Characters as JavaScript and Java count them, in UTF-16: an emoji is two. The platforms don't say how they do."""
    return len(text.encode("utf-16-le", "replace")) // 2


def parts_of(text: str, size: int, count: int, note: str) -> list[str]:
    """A text in at most `count` parts of at most `size` characters each; `note` stands for what is left out."""
    parts, rest = list[str](), text.strip()
    while rest and length(rest) > size and len(parts) < count - 1:
        part, rest = _parted(rest, size)
        parts.append(part)
    if length(rest) > size:
        end = f"{_ELLIPSIS}\n\n{note}"
        rest = _parted(rest, size - length(end))[0] + end
    return [part for part in (*parts, rest) if part] or [_ELLIPSIS]


def _parted(text: str, size: int) -> tuple[str, str]:
    """The beginning of a text, and the rest; parted at a break in the second half of what fits, if there is one."""
    head = _fitting(text, size)
    ends = [(head.rfind(mark) + len(mark.rstrip())) for mark in _BREAKS if head.rfind(mark) >= len(head) // 2]
    end = ends[0] if ends else len(head)
    return text[:end].rstrip(), text[end:].lstrip()


def _fitting(text: str, size: int) -> str:
    """As much of the beginning as fits."""
    head = text[:size]
    while length(head) > size:
        head = head[: -max(1, (length(head) - size) // 2)]
    return head


def choices_of(questions: Sequence[str], size: int) -> list[Choice]:
    """Buttons for questions; numbered where a label of at most `size` characters can't hold its question."""
    numbered = needs_list(questions, size)
    labels = [f"{number}. {one}" if numbered else one for number, one in enumerate(map(_line, questions), 1)]
    shown = [one if length(one) <= size else _fitting(one, size - 1).rstrip() + _ELLIPSIS for one in labels]
    return [Choice(label, question) for label, question in zip(shown, questions, strict=True)]


def needs_list(questions: Sequence[str], size: int) -> bool:
    """Whether a question is too long for a label, so that the text must tell them all."""
    return any(length(_line(one)) > size for one in questions)


def with_list(answer: Answer, size: int) -> str:
    """The text of an answer, with its suggestions in full where the labels can't hold them."""
    if not needs_list(answer.suggestions, size):
        return answer.text
    lines = [f"{number}. {_line(one)}" for number, one in enumerate(answer.suggestions, 1)]
    return "\n".join([answer.text, "", *lines])


def _line(text: str) -> str:
    return " ".join(text.split())
