"""A row that can't be learned from, and how its text is shown to the user."""

from __future__ import annotations

from dataclasses import dataclass

_SHOWN = 60
"""Characters of a row that a message shows."""


@dataclass(frozen=True, slots=True)
class Problem:
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
