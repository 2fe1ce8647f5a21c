"""A row that can't be learned from, and how its text is shown to the user.

Repair of what can't be meant: stray spaces, invisible characters, letters in pieces.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace

from daedap.korean.text import nfc
from daedap.types import Message, Pair

_SHOWN = 60
"""Characters of a row that a message shows."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """An unreadable row."""

    line: int
    """Where it begins in its file, counted from 1."""
    kind: str
    """One of `findings.KINDS`."""
    value: str
    """The beginning of what stands there, safe to print."""


def excerpt(text: str) -> str:
    """The beginning of a text on one line; what can't be seen or printed (a zero-width space) becomes its escape."""
    shown = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in shown)


_SPACES = "\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000\u3164"  # U+3164: the Hangul filler, typed as a blank
_BREAKS = "\x0b\x0c\x85\u2028\u2029"
_CONTROLS = "\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f"
# Also soft hyphens and marks of writing direction. The zero-width joiner (U+200D) stays where it builds an emoji.
_INVISIBLE = "\u00ad\u180e\u200b\u200c\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff"
_JOINER = "\u200d(?![\u2190-\u2bff\U0001f000-\U0001faff])"

_REPAIRS = (
    (re.compile(f"[{_BREAKS}]"), "\n", "control"),
    (re.compile(f"[{_CONTROLS}]"), "", "control"),
    (re.compile(f"[{_INVISIBLE}]|{_JOINER}"), "", "zero_width"),
    (re.compile(f"[{_SPACES}]"), " ", "spaces"),
)
_DIRT = re.compile(f"[\r{_BREAKS}{_CONTROLS}{_INVISIBLE}{_SPACES}]|{_JOINER}")
_DAMAGE = re.compile("[\ufffd\ud800-\udfff]")


def is_damaged(*texts: str) -> bool:
    """Whether letters were lost: U+FFFD, or half of a surrogate pair, which no encoding can write."""
    return any(map(_DAMAGE.search, texts))


def texts_of(pair: Pair) -> tuple[str, ...]:
    """All that is written in a pair."""
    return (pair.question, pair.answer, pair.label, *(turn.content for turn in pair.history))


def clean(pair: Pair) -> tuple[Pair, tuple[str, ...]]:
    """The pair as it's learned, and the kinds of repair it took (`findings.KINDS`), each once."""
    question, kinds = clean_text(pair.question)
    answer, more = clean_text(pair.answer)
    label, dirt = clean_text(pair.label)
    history = tuple(Message(turn.role, clean_text(turn.content)[0]) for turn in pair.history)
    if not (kinds or more or dirt) and history == pair.history:
        return pair, ()
    repaired = replace(pair, question=question, answer=answer, label=label, history=history)
    return repaired, tuple(sorted(kinds | more | ({"label"} if dirt else frozenset())))


def clean_text(text: str) -> tuple[str, frozenset[str]]:
    """NFC, no invisible or control characters, line feeds as line ends, no space at the ends; and what it took."""
    if not _DIRT.search(text) and unicodedata.is_normalized("NFC", text) and text == text.strip():
        return text, frozenset()
    kinds = set()
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    for pattern, substitute, kind in _REPAIRS:
        text, count = pattern.subn(substitute, text)
        if count:
            kinds.add(kind)
    for tidy, kind in ((nfc(text), "decomposed"), (nfc(text).strip(), "spaces")):
        if tidy != text:
            kinds.add(kind)
            text = tidy
    return text, frozenset(kinds)
