"""Courtesies: messages of set phrases that people send to any bot, and what it replies (courtesies.json).

Greetings, thanks, goodbyes, "네", "아니요", insults, who are you, what can you do. Only a message that consists of such
phrases counts: "안녕하세요, 배송비는 얼마예요?" is a question.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from daedap.korean.text import strip_emoticons
from daedap.types import Evidence

LONGEST = 40
"""Characters of the comparison form, beyond which nobody only greets."""
_WORD, _EMOTICON = re.compile(r"[^\W_]+"), re.compile("[ㅋㅎㅠㅜ]+")


@dataclass(frozen=True)
class Courtesy:
    """One kind of courtesy."""

    name: str
    question: str
    """An example."""
    replies: dict[str, str]
    """By language: ko, en."""

    def reply(self, *, korean: bool) -> Evidence:
        """What a bot says that knows nothing better."""
        return Evidence(self.question, self.replies["ko" if korean else "en"], 1.0)


def courtesy_of(text: str) -> Courtesy | None:
    """The kind of courtesy that a whole message is; of several in one message, the first in courtesies.json."""
    words = _words(text)
    form, begins = "".join(words), {0, *accumulate(map(len, words))}
    pattern, kinds = _phrases()
    if len(form) > LONGEST or not pattern.match(form):
        return None
    kinds_until: dict[int, set[str | None]] = {0: set()}  # a dynamic program: backtracking would take exponential time
    for start in range(len(form)):
        if start not in kinds_until:
            continue
        for end in range(start + 1, len(form) + 1):
            if end == start + 1 and start not in begins and form[start] != form[start - 1]:
                continue  # one syllable inside a word: 어음 is not "어, 음", but 네네 is "네, 네"
            if phrase := pattern.fullmatch(form, start, end):
                kinds_until.setdefault(end, set()).update(kinds_until[start], (phrase.lastgroup,))
    met = kinds_until.get(len(form), set())
    return next((kind for kind in kinds if kind.name in met), None)


def by_courtesy(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Kind of courtesy → what belongs to the first question of that kind."""
    found: dict[str, Any] = {}
    for question, value in pairs:
        if len(question) <= LONGEST and (courtesy := courtesy_of(question)):
            found.setdefault(courtesy.name, value)
    return found


def phrases() -> dict[str, Any]:
    """`fillers`, and `kinds` with their `phrases`: regular expressions of comparison forms."""
    data: dict[str, Any] = json.loads(Path(__file__).with_name("courtesies.json").read_text(encoding="utf-8"))
    return data


def _words(text: str) -> list[str]:
    """Comparison forms of the words without emoticons, if there are others; of the text, if there are no words."""
    words = [strip_emoticons(word) for word in _WORD.findall(text)] or [strip_emoticons(text)]
    return [word for word in words if not _EMOTICON.fullmatch(word)] or words


@cache
def _phrases() -> tuple[re.Pattern[str], list[Courtesy]]:
    """One pattern with a named group for each kind and one for the fillers; the kinds in order of precedence."""
    data = phrases()
    groups = {**{kind["name"]: kind["phrases"] for kind in data["kinds"]}, "filler": data["fillers"]}
    pattern = "|".join(f"(?P<{name}>{'|'.join(each)})" for name, each in groups.items())
    kinds = [
        Courtesy(kind["name"], kind["question"], {language: kind[language] for language in ("ko", "en")})
        for kind in data["kinds"]
    ]
    return re.compile(pattern), kinds
