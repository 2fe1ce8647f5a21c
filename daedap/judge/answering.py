"""Rules on how the model answers, each with its evidence in the scores."""

from __future__ import annotations

from daedap.judge.facts import Facts
from daedap.judge.finding import Finding
from daedap.judge.metrics import SHORT, Score
from daedap.language import say

_DEAF = 0.05
"""Bits per character below which a question gain is as good as none."""
_LONG = 40
"""Characters of a middling answer that doesn't end within 32 tokens in any model."""
_ENDS, _HARDLY_ENDS = 0.8, 0.5
_VARIED, _HARDLY_VARIED = 0.5, 0.25
"""Different replies, as a share of how different people's own answers are."""


def ignores_question(facts: Facts) -> Finding | None:
    """The question changes nothing, or nothing that can be told from chance."""
    gain, right = facts.score("model", "question_gain"), facts.score("model", "hits_at_1")
    if not gain or not right or _low(gain) > 0:
        return None
    deaf = gain.value < _DEAF
    return Finding(
        "ignores_question",
        "serious" if deaf else "warning",
        say("The model ignores the question.")
        if deaf
        else say("Whether the model listens to the question can't be told."),
        say(
            "Question gain {gain} bits per character (n={rows:,}): its interval reaches 0. "
            "The right answer of {count} comes first in {right:.0%}; guessing: {chance:.0%}.",
            gain=_told(gain),
            rows=gain.n,
            count=facts.candidates,
            right=right.value,
            chance=facts.chance["hits_at_1"],
        ),
        say("Try more epochs, more rows, or a larger --base. Until then, look-up answers better."),
    )


def does_not_end(facts: Facts) -> Finding | None:
    """Replies run on: the end token was not learned."""
    ended, middling = facts.score("model", "ended"), facts.doctor["answers"]["p50"]
    if not ended or ended.value >= _ENDS or middling > _LONG:
        return None
    return Finding(
        "does_not_end",
        "serious" if ended.value < _HARDLY_ENDS else "warning",
        say("Answers do not end: the end token was not learned."),
        say(
            "{ended:.0%} of {rows:,} replies ended by themselves within {tokens} tokens; "
            "a middling answer to learn has {length} characters.",
            ended=ended.value,
            rows=ended.n,
            tokens=SHORT,
            length=middling,
        ),
        say("Train for more epochs: the end is a token like any other, and learned with the answers."),
    )


def bland(facts: Facts) -> Finding | None:
    """The model says the same things over and over, where people do not."""
    mine, people = (facts.score(who, "unique") for who in ("model", "human"))
    common, peoples = (facts.score(who, "bland") for who in ("model", "human"))
    if not mine or not people or not common or not peoples:
        return None
    share = mine.value / people.value
    if share >= _VARIED and _low(common) <= _high(peoples):
        return None
    return Finding(
        "bland",
        "serious" if share < _HARDLY_VARIED else "warning",
        say("Answers are bland: the model says the same things over and over."),
        say(
            "{mine:.0%} of {rows:,} replies are different from each other, people's own {people:.0%}; "
            "{common:.0%} are among the most frequent training answers, people's own {peoples:.0%}.",
            mine=mine.value,
            rows=mine.n,
            people=people.value,
            common=common.value,
            peoples=peoples.value,
        ),
        say("Try more epochs or a larger base; give often repeated answers in more than one wording."),
    )


def retrieval_better(facts: Facts) -> Finding | None:
    """Plain look-up finds the right answer more often than the model."""
    mine, looked_up = (facts.score(who, "hits_at_1") for who in ("model", "retrieval"))
    if not mine or not looked_up or _high(mine) >= _low(looked_up):
        return None
    return Finding(
        "retrieval_better",
        "warning",
        say("Plain look-up is better than the model."),
        say(
            "The right answer of {count} comes first in {looked:.0%} by look-up, in {right:.0%} by the model "
            "(n={rows:,}).",
            count=facts.candidates,
            looked=looked_up.value,
            right=mine.value,
            rows=mine.n,
        ),
        say("The bot looks up first anyway. For questions nobody asked before, a larger base or more epochs."),
    )


def unscored(facts: Facts) -> Finding | None:
    """Nothing is known of the answers."""
    if facts.scores:
        return None
    return Finding(
        "unscored",
        "hint",
        say("How it answers is not known: the run was not scored."),
        say("{rows:,} test rows.", rows=facts.manifest["data"]["test"]),
        say("Train with --test-size 0.1 and without --no-evaluate."),
    )


def _low(score: Score) -> float:
    return score.value if score.low is None else score.low


def _high(score: Score) -> float:
    return score.value if score.high is None else score.high


def _told(score: Score) -> str:
    return f"{score.value:.3f}" + ("" if score.low is None else f" [{score.low:.3f}, {score.high:.3f}]")
