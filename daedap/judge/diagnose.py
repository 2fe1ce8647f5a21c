"""A run's facts → what went wrong in it, the most serious first, each with its evidence and what to try next."""

from __future__ import annotations

from collections.abc import Callable

from daedap.judge.answering import bland, does_not_end, ignores_question, retrieval_better, unscored
from daedap.judge.facts import Facts
from daedap.judge.finding import SEVERITIES, Finding
from daedap.judge.learning import out_of_time, overfitting, rate_too_high, rate_too_low, too_few_epochs, unwatched
from daedap.judge.teaching import constant_answers, few_for_label, few_rows, leak, mixed_speech
from daedap.language import say

RULES: tuple[Callable[[Facts], Finding | None], ...] = (
    leak,
    rate_too_high,
    rate_too_low,
    overfitting,
    constant_answers,
    ignores_question,
    does_not_end,
    bland,
    out_of_time,
    too_few_epochs,
    retrieval_better,
    mixed_speech,
    few_rows,
    few_for_label,
    unwatched,
    unscored,
)
"""Causes before what comes of them: the order of findings that are equally serious."""


def diagnose(facts: Facts) -> list[Finding]:
    """Ask every rule."""
    found = [finding for rule in RULES if (finding := rule(facts))]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def healthy() -> str:
    """What is said when no rule found anything."""
    return say("Nothing to complain about: none of the {rules} rules found anything.", rules=len(RULES))
