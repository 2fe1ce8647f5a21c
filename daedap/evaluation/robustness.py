"""Robustness of a bot: Hits@1 on perturbed test questions.

Perturbations are typos, spacing, particles, speech level and laughter (`daedap.korean.perturb`).
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from daedap.evaluation.metrics import RatioTerms, Score, gold_ranks, ranking, ratio
from daedap.evaluation.tables import MetricFormat, align_columns, format_score
from daedap.i18n import translate
from daedap.korean.text import comparison_form
from daedap.types import Float64Array

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from daedap.evaluation.testset import EvalSet, ScorableBot
    from daedap.types import Pair

_PERCENT = MetricFormat("", "", 100)


@dataclass(frozen=True, slots=True)
class PerturbationEffect:
    """The effect of one kind of perturbation on the rows whose question it changes; scores are None without rows."""

    kind: str
    rows: int
    """Number of questions that were changed."""
    clean: Score | None
    """Hits@1 of these rows with their original question."""
    disturbed: Score | None
    """Hits@1 with the perturbed question."""
    difference: Score | None
    """Perturbed minus clean, with its paired interval by bootstrap over components."""
    same_reply: Score | None
    """Share of replies that stay the same, by comparison form."""


def measure_robustness(
    bot: ScorableBot, eval_set: EvalSet, kinds: Mapping[str, Callable[[str, random.Random], str]]
) -> list[PerturbationEffect]:
    """Evaluate the bot on the ranked pairs as they are and with each kind of perturbation; candidates stay the same.

    A perturbation takes a question and a generator seeded by the pair's id and the kind; it may return the question
    unchanged.
    """
    clean = _evaluate(bot, eval_set, range(len(eval_set.ranked_rows)), eval_set.ranked_pairs)
    return [_effect(kind, bot, eval_set, clean, perturb) for kind, perturb in kinds.items()]


@dataclass(frozen=True, slots=True)
class _BotResult:
    """A bot on some of the ranked rows; both (ranked rows,), undefined in the other rows."""

    hits: Float64Array
    replies: list[str]
    """Comparison forms."""


def _evaluate(bot: ScorableBot, eval_set: EvalSet, positions: Sequence[int], questions: Sequence[Pair]) -> _BotResult:
    hits, replies = np.zeros(len(eval_set.ranked_rows)), [""] * len(eval_set.ranked_rows)
    if questions:
        ranks = gold_ranks(bot.preferences(questions, [eval_set.candidates[position] for position in positions]))
        hits[list(positions)] = ranking(ranks)["hits_at_1"].numerators
        for position, reply in zip(positions, bot.answers(questions), strict=True):
            replies[position] = comparison_form(reply.text)
    return _BotResult(hits, replies)


def _effect(
    kind: str, bot: ScorableBot, eval_set: EvalSet, clean: _BotResult, perturb: Callable[[str, random.Random], str]
) -> PerturbationEffect:
    pairs = eval_set.ranked_pairs
    perturbed = [replace(pair, question=perturb(pair.question, random.Random(f"{pair.id} {kind}"))) for pair in pairs]
    positions = [position for position, pair in enumerate(pairs) if perturbed[position].question != pair.question]
    result = _evaluate(bot, eval_set, positions, [perturbed[position] for position in positions])
    same = np.array([before == after for before, after in zip(clean.replies, result.replies, strict=True)])
    values = (clean.hits, result.hits, result.hits - clean.hits, same.astype(np.float64))
    return PerturbationEffect(kind, len(positions), *(_score(value, positions, eval_set) for value in values))


def _score(values: Float64Array, positions: Sequence[int], eval_set: EvalSet) -> Score | None:
    groups = eval_set.groups[[eval_set.ranked_rows[position] for position in positions]]
    terms = RatioTerms(values[list(positions)], np.ones(len(positions)))
    return ratio(terms, groups, resamples=eval_set.options.resamples, seed=eval_set.options.seed)


def robustness_json(effects: Sequence[PerturbationEffect]) -> dict[str, Any]:
    """Kind → its number of rows and its scores."""
    return {
        effect.kind: {name: value for name, value in asdict(effect).items() if name != "kind"} for effect in effects
    }


def robustness_table(effects: Sequence[PerturbationEffect], candidates: int) -> list[str]:
    """A table with one row for each kind."""
    kinds = {
        "typo": translate("typos"),
        "spacing": translate("spaces"),
        "particles": translate("particles left out"),
        "polite": translate("politely"),
        "casual": translate("casually"),
        "laughter": translate("laughter or tears"),
    }
    heads = [
        translate("disturbed questions"),
        translate("rows"),
        translate("right of {count}, first (%)", count=candidates),
        translate("disturbed (%)"),
        translate("difference"),
        translate("same reply (%)"),
    ]
    rows = [
        [
            kinds.get(effect.kind, effect.kind),
            f"{effect.rows:,}",
            *(
                format_score(_PERCENT, score)
                for score in (effect.clean, effect.disturbed, effect.difference, effect.same_reply)
            ),
        ]
        for effect in effects
    ]
    return align_columns([heads, *rows])
