"""Normalization of texts: markup, spaces, control and invisible characters, Unicode composition. Unusable rows."""

from __future__ import annotations

import html
import re
import unicodedata
from dataclasses import dataclass, replace
from datetime import date

from daedap.korean.text import nfc
from daedap.types import Message, Pair

_SHOWN = 60
"""Maximum length of an excerpt in a message, in characters."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is left out, and why."""

    line: int
    """First line of the row in its file, from 1."""
    kind: str
    """One of `findings.KINDS`."""
    value: str
    """Excerpt of the row, safe to print."""


def excerpt(text: str) -> str:
    """The beginning of a text on one line; unprintable characters (a zero-width space) become escape sequences."""
    shown = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in shown)


_SPACES = "\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000\u3164"  # U+3164 is the Hangul filler, typed as a blank
_LINE_BREAKS = "\x0b\x0c\x85\u2028\u2029"
_CONTROLS = "\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f"
# Includes soft hyphens and bidirectional marks. The zero-width joiner (U+200D) is kept inside emoji sequences.
_INVISIBLE = "\u00ad\u180e\u200b\u200c\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff"
_JOINER = "\u200d(?![\u2190-\u2bff\U0001f000-\U0001faff])"

_TAGS = (
    "a|abbr|b|big|blockquote|br|center|code|dd|div|dl|dt|em|font|h[1-6]|hr|i|img|li|ol|o:p|p|pre|small|span|strike"
    "|strong|style|script|sub|sup|table|tbody|td|tfoot|th|thead|tr|u|ul"
)
# Without <s>: </s> is also an end token that people write about.
_ATTRIBUTES = r"""(?:\s+[a-z:-]+\s*=\s*(?:"[^"]*"|'[^']*'|[^\s<>"']+))*"""
_TAG = re.compile(rf"</?(?:{_TAGS}){_ATTRIBUTES}\s*/?>|<!--.*?-->", re.IGNORECASE | re.DOTALL)
_MARKUP_CHARACTERS = re.compile(r"[<&*#\\\]]")
_MARKUP = (
    (re.compile(r"<(style|script)\b.*?</\1\s*>", re.IGNORECASE | re.DOTALL), ""),
    (
        re.compile(r"""<a\s[^<>]*href\s*=\s*["']?(?!#|javascript)([^"'\s<>]+)["']?[^<>]*>(.*?)</a\s*>""", re.I | re.S),
        r"\2 (\1)",
    ),
    (
        re.compile(
            r"\s*<(?:br|hr)\s*/?>\s*|</(?:p|div|li|tr|h[1-6]|dt|dd|blockquote|table|ul|ol)\s*>\s*", re.IGNORECASE
        ),
        "\n",
    ),
    (re.compile(r"</t[dh]\s*>\s*", re.IGNORECASE), " "),
    (_TAG, ""),
    (re.compile(r"!?\[([^\[\]\n]+)\]\(((?:https?:|/|mailto:|tel:)[^\s()]*)\)"), r"\1 (\2)"),
    (re.compile(r"(?<![\w*])\*\*(\S(?:[^*\n]*\S)?)\*\*(?![A-Za-z0-9*])"), r"\1"),
    (re.compile(r"^#{1,6} +(?=\S)", re.MULTILINE), ""),
    (re.compile(r"(?<![\\:A-Za-z])\\r?\\?n(?![a-z])"), "\n"),  # a line break written as two characters
)
_HAS_MARKUP = re.compile(rf"{_TAG.pattern}|&(?:#\d+|#x[\da-f]+|[a-z]+\d?);|\]\(|\*\*|^#{{1,6}} |\\n", re.I | re.M)

_REPAIRS = (
    (re.compile(f"[{_LINE_BREAKS}]"), "\n", "control"),
    (re.compile(f"[{_CONTROLS}]"), "", "control"),
    (re.compile(f"[{_INVISIBLE}]|{_JOINER}"), "", "zero_width"),
    (re.compile(f"[{_SPACES}]"), " ", "spaces"),
)
_NEEDS_REPAIR = re.compile(f"[\r{_LINE_BREAKS}{_CONTROLS}{_INVISIBLE}{_SPACES}]|{_JOINER}")
_ASKED, _ANSWERED = (
    re.compile(rf"[\[<【(]?(?:{words})\s*\d*\s*[\]>】.:)：]+\s*(\S.*)$", re.IGNORECASE | re.DOTALL)
    for words in ("Q|질문|문", "A|답변|답")
)
"""A question and an answer that say what they are: Q. …, [질문] …; only where both do, as A. may be a choice."""
_IN_QUOTES = re.compile("'([^']+)'|\"([^\"]+)\"|‘([^‘’]+)’|“([^“”]+)”|「([^「」]+)」")
"""A text between quotation marks, as a list in a program has it; only where both are."""
_DAMAGED = re.compile("[\ufffd\ud800-\udfff]")


def is_damaged(*texts: str) -> bool:
    """Whether a text holds U+FFFD or a lone surrogate: characters were lost, or can't be encoded."""
    return any(map(_DAMAGED.search, texts))


def texts_of(pair: Pair) -> tuple[str, ...]:
    """All texts of a pair: question, answer, label, history."""
    return (pair.question, pair.answer, pair.label, *(message.content for message in pair.history))


def clean(pair: Pair) -> tuple[Pair, tuple[str, ...]]:
    """The normalized pair, and the kinds of repair that were applied (keys of `findings.KINDS`), each once."""
    question, kinds = clean_text(pair.question)
    answer, more = clean_text(pair.answer)
    label, label_kinds = clean_text(pair.label)
    history = tuple(Message(message.role, clean_text(message.content)[0]) for message in pair.history)
    if (asked := _ASKED.match(question)) and (answered := _ANSWERED.match(answer)):
        question, answer, kinds = asked[1], answered[1], kinds | {"marks"}
    if (asked := _IN_QUOTES.fullmatch(question)) and (answered := _IN_QUOTES.fullmatch(answer)):
        question, answer = asked[asked.lastindex or 0].strip(), answered[answered.lastindex or 0].strip()
        kinds = kinds | {"quotation"}
    if (question, answer, label, history) == (pair.question, pair.answer, pair.label, pair.history):
        return pair, ()
    repaired = replace(pair, question=question, answer=answer, label=label, history=history)
    return repaired, tuple(sorted(kinds | more | ({"label"} if label_kinds else frozenset())))


def clean_text(text: str) -> tuple[str, frozenset[str]]:
    """A text in NFC without invisible and control characters, with \\n line ends, stripped; and the repairs applied."""
    has_markup = bool(_MARKUP_CHARACTERS.search(text) and _HAS_MARKUP.search(text))
    is_clean = not has_markup and not _NEEDS_REPAIR.search(text) and text == text.strip()
    if is_clean and unicodedata.is_normalized("NFC", text):
        return text, frozenset()
    kinds = set()
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if has_markup and (plain := without_markup(text)) != text:
        kinds.add("markup")
        text = plain
    for pattern, substitute, kind in _REPAIRS:
        text, count = pattern.subn(substitute, text)
        kinds |= {kind} if count else set()
    composed = nfc(text)
    kinds |= {"decomposed"} if composed != text else set()
    kinds |= {"spaces"} if composed.strip() != composed else set()
    return composed.strip(), frozenset(kinds)


def without_markup(text: str) -> str:
    """HTML tags and entities, and the commonest Markdown, as plain text; links keep their address in parentheses."""
    plain = text
    for pattern, substitute in _MARKUP:
        plain = pattern.sub(substitute, plain)
    if (plain := html.unescape(plain)) == text:
        return text
    lines = [re.sub(r"[ \t\u00a0]+", " ", line).strip() for line in plain.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


_MOBILE = re.compile(
    r"(?<![\d-])(01[016-9])[-. )]?(\d{3,4})[-. ]?(\d{4})(?![\d-])|\+82[- ]?10[- ]?\d{3,4}[- ]?\d{4}(?!\d)"
)
_EMAIL = re.compile(r"[A-Za-z0-9][\w.+-]*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}")
_RESIDENT = re.compile(
    r"(?<![\d-])(\d{2})(\d{2})(\d{2})\s?-\s?([1-8])\d{6}(?![\d-])|(?<!\d)(\d{2})(\d{2})(\d{2})([1-8])\d{6}(?!\d)"
)
_CARD = re.compile(r"(?<![\d-])\d{4}[- ]?\d{4}[- ]?\d{4}[- ]?\d{4}(?![\d-])")
_ACCOUNT = re.compile(r"(?<![\d-])\d{2,6}-\d{2,6}-\d{2,8}(?:-\d{1,3})?(?![\d-])|(?<![\d-])\d{10,14}(?![\d-])")
_BANK = re.compile("은행|뱅크|계좌|입금|송금|농협|수협|신협|우체국|새마을금고|국민|신한|우리|하나|기업")
_CANDIDATE = re.compile(r"\d{4}|\d[-. )]\d{3}|@")
_LANDLINE = re.compile(r"0(?:2|[3-6]\d|70|80)-|1[5-9]\d\d-")


def find_personal(text: str) -> list[tuple[int, int]]:
    """Start and end of all personal data in a text, in order."""
    if not _CANDIDATE.search(text):
        return []
    spans = [match.span() for match in (*_MOBILE.finditer(text), *_EMAIL.finditer(text))]
    spans += [match.span() for match in _RESIDENT.finditer(text) if _is_birthday(match)]
    spans += [match.span() for match in _CARD.finditer(text) if _luhn(match[0])]
    if _BANK.search(text):
        spans += [match.span() for match in _ACCOUNT.finditer(text) if not _LANDLINE.match(match[0])]
    apart: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if not apart or start >= apart[-1][1]:
            apart.append((start, end))
    return apart


def mask_personal(text: str) -> str:
    """The text with every letter and digit of personal data as `*`; signs between them stay."""
    for start, end in reversed(find_personal(text)):
        text = text[:start] + re.sub(r"[^\W_]", "*", text[start:end]) + text[end:]
    return text


def _is_birthday(match: re.Match[str]) -> bool:
    """Whether the first six digits of a resident registration number are a date."""
    year, month, day, century = (match[group] or match[group + 4] for group in (1, 2, 3, 4))
    try:
        return bool(date((1900 if century in "1256" else 2000) + int(year), int(month), int(day)))
    except ValueError:
        return False


def _luhn(number: str) -> bool:
    """Whether the check digit of a card number is right (Luhn's algorithm)."""
    digits = [int(digit) for digit in number if digit.isdigit()]
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0
