"""What a diagnosis says of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Severity = Literal["serious", "warning", "hint"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""serious: the run, or its scores, can't be relied on. warning: a better run is to be had. hint: good to know."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a rule found in a run, in the user's language."""

    rule: str
    """Name of the rule."""
    severity: Severity
    told: str
    """What is wrong."""
    evidence: str
    """The numbers that say so."""
    advice: str
    """What to try next."""

    def line(self) -> str:
        """For a terminal."""
        return f"{self.told} {self.evidence} → {self.advice}"
