"""One finding of the diagnosis: what is wrong, the numbers behind it, what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Severity = Literal["serious", "warning", "hint"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""serious: the run or its scores are unreliable. warning: a better run is possible. hint: worth knowing."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one rule, in the user's language."""

    rule: str
    severity: Severity
    message: str
    """What is wrong."""
    evidence: str
    """The numbers behind it."""
    advice: str
    """What to try next."""

    def line(self) -> str:
        """The finding as a line for a terminal."""
        return f"{self.message} {self.evidence} → {self.advice}"
