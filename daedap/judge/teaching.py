"""Rules on what was there to learn, each with its evidence in the rows."""

from __future__ import annotations

from daedap.judge.facts import Facts
from daedap.judge.finding import Finding
from daedap.language import say

_LEAKS = 0.02
_REPEATED, _HARDLY_ELSE = 0.2, 0.5
"""Share of the rows with one and the same answer."""
_MIXED = (0.1, 0.9)
_FEW, _VERY_FEW = 1000, 200
"""A tenth of ChatbotData's 9,000 training rows costs 0.8 nats per token against all of them (`lm/plan.py`)."""
_FEW_FOR_LABEL = 10
_NAMED = 5


def leak(facts: Facts) -> Finding | None:
    """Test questions have twins in training, so that the scores are too good."""
    data = facts.manifest["data"]
    if data["leak"]["questions"] < _LEAKS:
        return None
    return Finding(
        "leak",
        "serious",
        say("Test rows leak: the scores are better than the bot."),
        say(
            "{questions:.0%} of the {rows:,} test questions have a near-twin in training (--split {split}).",
            questions=data["leak"]["questions"],
            rows=data["test"],
            split=data["split"],
        ),
        say("Train with --split components, the default, and compare only such runs."),
    )


def constant_answers(facts: Facts) -> Finding | None:
    """One answer stands everywhere."""
    if facts.common_share < _REPEATED or facts.manifest["data"]["train"] < _FEW_FOR_LABEL:
        return None
    return Finding(
        "constant_answers",
        "serious" if facts.common_share >= _HARDLY_ELSE else "warning",
        say("One answer stands everywhere: the model learns to say it always."),
        say(
            "'{answer}' answers {share:.0%} of the training rows.",
            answer=facts.common_answer,
            share=facts.common_share,
        ),
        say("Give these questions answers of their own, or keep a few of the rows."),
    )


def mixed_speech(facts: Facts) -> Finding | None:
    """Polite and casual endings stand side by side in the answers."""
    polite, (low, high) = facts.doctor["answers"]["polite"], _MIXED
    if not low < polite < high:
        return None
    return Finding(
        "mixed_speech",
        "warning",
        say("The training answers mix polite and casual speech; the bot will too."),
        say("{polite:.0%} of the answers end politely, the others do not.", polite=polite),
        say("Bring the answers to one speech level."),
    )


def few_rows(facts: Facts) -> Finding | None:
    """Too few rows to carry over to other questions."""
    rows = facts.manifest["data"]["train"]
    if rows >= _FEW:
        return None
    return Finding(
        "few_rows",
        "warning" if rows < _VERY_FEW else "hint",
        say("There are few rows to learn from."),
        say(
            "{rows:,} training rows. On ChatbotData, {few:,} rows instead of 9,000 cost 0.8 nats per token.",
            rows=rows,
            few=_FEW,
        ),
        say("Add rows, best of all several wordings of a question; look-up needs no more than one."),
    )


def few_for_label(facts: Facts) -> Finding | None:
    """A label with hardly any rows."""
    few = {label: count for label, count in facts.labels.items() if count < _FEW_FOR_LABEL}
    if not few or len(facts.labels) < 2:
        return None
    shown = ", ".join(f"{label} ({count})" for label, count in list(few.items())[-_NAMED:])
    return Finding(
        "few_for_label",
        "hint",
        say("Some labels have too few rows to be learned or scored."),
        say(
            "{few} of {all} labels have less than {enough} training rows: {labels}.",
            few=len(few),
            all=len(facts.labels),
            enough=_FEW_FOR_LABEL,
            labels=shown + (", …" if len(few) > _NAMED else ""),
        ),
        say("Add rows for them, or give them the label of a larger group."),
    )
