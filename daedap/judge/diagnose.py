"""A run's facts → what went wrong in it, the most serious first, each with its evidence and what to try next."""

from __future__ import annotations

from collections.abc import Callable

from daedap.judge import answering, learning, teaching
from daedap.judge.facts import Facts
from daedap.judge.finding import SEVERITIES, Finding
from daedap.language import say

RULES: tuple[Callable[[Facts], Finding | None], ...] = (
    teaching.leak,
    learning.rate_too_high,
    learning.rate_too_low,
    learning.overfitting,
    teaching.constant_answers,
    answering.ignores_question,
    answering.does_not_end,
    answering.bland,
    learning.out_of_time,
    learning.too_few_epochs,
    answering.retrieval_better,
    teaching.mixed_speech,
    teaching.few_rows,
    teaching.few_for_label,
    learning.unwatched,
    answering.unscored,
)
"""Causes before what comes of them: the order of findings that are equally serious."""


def diagnose(facts: Facts) -> list[Finding]:
    """Ask every rule."""
    found = [finding for rule in RULES if (finding := rule(facts))]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def healthy() -> str:
    """What is said when no rule found anything."""
    return say("Nothing to complain about: none of the {rules} rules found anything.", rules=len(RULES))
