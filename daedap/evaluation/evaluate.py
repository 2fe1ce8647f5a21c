"""Test pairs and systems → scores: every system gets the same questions, candidates and bootstrap resamples.

Beside the systems under test stand two references: retrieval (the answer of the nearest known question) and "human"
(the written answers themselves). At the end: the bot on perturbed questions.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

import daedap.evaluation.metrics as measure
from daedap.errors import RunError
from daedap.evaluation.metrics import RatioTerms, Score, Scores
from daedap.evaluation.reply_retrieval import ReplyToQuestionScorer
from daedap.evaluation.tables import (
    PERCENT,
    align_columns,
    format_score,
    join_blocks,
    score_tables,
    summary_lines,
)
from daedap.evaluation.testset import EvalSet, EvalSettings, ScorableBot, ScorableModel, make_eval_set
from daedap.i18n import translate
from daedap.korean.text import comparison_form, morphemes
from daedap.retrieval.lexical import LexicalKnn
from daedap.types import Float64Array

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from daedap.evaluation.faq import FaqEvaluation
    from daedap.retrieval.lexical import LexicalIndex
    from daedap.types import Evidence, Pair


_LIKELIHOOD_METRICS = frozenset({"bpc", "question_gain"})


@dataclass(frozen=True, slots=True)
class Sample:
    """One test question and every system's reply."""

    question: str
    answer: str
    seen: bool
    """The answer is also that of a known pair."""
    replies: Mapping[str, str]
    """System → its reply."""
    evidence: Evidence
    """The nearest known question."""


@dataclass(frozen=True, slots=True)
class Row:
    """One test pair's terms of every ratio metric: what a paired comparison of two runs needs."""

    id: str
    component: int | str
    label: str
    seen: bool
    question: str
    answer: str
    replies: Mapping[str, str]
    """System → its reply; empty where none was requested."""
    terms: Mapping[str, Mapping[str, tuple[float, float]]]
    """System → metric → (numerator, denominator); metrics not measured on this pair are left out."""

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object, `terms` under the name "shares", NaN and infinity as null."""
        document: dict[str, Any] = measure.as_json(self)
        document["shares"] = document.pop("terms")
        return document

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Row:
        """The inverse of `to_json`, null as NaN. Raises KeyError, TypeError and ValueError."""
        fields = {**record}
        terms = {
            system: {metric: (_number(above), _number(below)) for metric, (above, below) in by_metric.items()}
            for system, by_metric in fields.pop("shares").items()
        }
        return cls(**fields, terms=terms)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of all systems on one evaluation set."""

    pairs: int
    components: int
    candidates: int
    """Length of the candidate lists: 20, fewer in a small test set."""
    chance: Mapping[str, float]
    """What random guessing scores in `hits_at_1`, `recall_at_5`, `mrr` and `backward_hits_at_1`."""
    scores: Scores
    samples: tuple[Sample, ...]
    rows: tuple[Row, ...]
    """In the order of the test pairs; not part of `to_json`."""
    perturbed: tuple[PerturbationEffect, ...] = ()
    """The bot on perturbed questions; empty unless requested."""
    faq: FaqEvaluation | None = None
    """The bot on paraphrases and on questions out of scope; None unless requested."""

    def to_json(self) -> dict[str, Any]:
        """All fields but `rows` as a JSON object, NaN and infinity as null."""
        names = ("pairs", "components", "candidates", "chance", "scores", "samples")
        document: dict[str, Any] = {name: measure.as_json(getattr(self, name)) for name in names}
        if self.perturbed:
            document["disturbed"] = robustness_json(self.perturbed)
        if self.faq:
            document["faq"] = self.faq.to_json()
        return document

    def summary(self) -> list[str]:
        """The most important scores, for a terminal."""
        return summary_lines(self.scores, self.chance, self.candidates)

    def lines(self) -> list[str]:
        """Tables for a terminal: one for each slice, metrics down, systems across; then the bot's other tests."""
        return join_blocks(
            [
                score_tables(self.scores, self.chance, self.candidates) if self.scores else [],
                robustness_table(self.perturbed, self.candidates) if self.perturbed else [],
                self.faq.lines() if self.faq else [],
            ]
        )


@dataclass(frozen=True)
class Systems:
    """What is evaluated on the same test pairs, by name."""

    models: Mapping[str, ScorableModel]
    """Language models on their own, without retrieval."""
    bots: Mapping[str, ScorableBot] = field(default_factory=dict)
    recorded: Mapping[str, Mapping[str, Row]] = field(default_factory=dict)
    """System → pair id → the row saved when it was evaluated on these very pairs before."""


@dataclass(frozen=True)
class _Outcome:
    """The raw results of one system."""

    terms: Mapping[str, RatioTerms]
    """Metric → its terms."""
    replies: tuple[str, ...]
    """(ranked rows,)"""
    seconds: tuple[float, ...] = ()
    """The seconds of each question that was timed on its own."""
    human: bool = False
    """The replies are the gold answers."""


def evaluate(
    test: Sequence[Pair],
    *,
    components: Sequence[int | str],
    systems: Systems,
    index: LexicalIndex,
    options: EvalSettings | None = None,
) -> Evaluation:
    """Evaluate the systems and the two references.

    `components` has one name for each test pair. `index` holds the known pairs: the training pairs and those that are
    only used for retrieval; they determine which answers count as bland or seen, and the retrieval baseline answers
    from them. Raises RunError without test pairs.
    """
    assert len(components) == len(test), f"{len(components)} components for {len(test)} pairs"
    if not test:
        raise RunError("There are no pairs to evaluate on.", "Name a file of questions and answers with --data.")
    eval_set = make_eval_set(test, components, index.pairs, options or EvalSettings())
    known = {(pair.question, pair.answer) for pair in index.pairs}
    outcomes = {name: _evaluate_bot(bot, eval_set, known) for name, bot in systems.bots.items()}
    outcomes |= {name: _evaluate_model(model, eval_set) for name, model in systems.models.items()}
    outcomes |= {name: _from_rows(name, rows, eval_set) for name, rows in systems.recorded.items()}
    outcomes |= {"retrieval": _evaluate_retrieval(index, eval_set), "human": _evaluate_human(eval_set)}
    scorer = ReplyToQuestionScorer.fit(index.pairs)
    outcomes = {name: _with_reply_retrieval(outcome, eval_set, scorer) for name, outcome in outcomes.items()}
    size, questions = len(eval_set.candidates[0]), len(eval_set.candidate_questions[0])
    rows = _rows(eval_set, outcomes, components)
    shown = [rows[row] for row in eval_set.ranked_rows[: eval_set.options.samples]]
    evidence = (nearest[0] for nearest in index.nearest([row.question for row in shown]))
    return Evaluation(
        pairs=len(test),
        components=len(set(components)),
        candidates=size,
        chance={**measure.chance(size), "backward_hits_at_1": measure.chance(questions)["hits_at_1"]},
        scores={name: _scores(outcome, eval_set) for name, outcome in outcomes.items()},
        samples=tuple(
            Sample(row.question, row.answer, row.seen, row.replies, nearest)
            for row, nearest in zip(shown, evidence, strict=True)
        ),
        rows=rows,
    )


def _evaluate_bot(bot: ScorableBot, eval_set: EvalSet, known: Collection[tuple[str, str]]) -> _Outcome:
    given = bot.reply_to_pairs(eval_set.ranked_pairs)
    replies = tuple(reply.text for reply in given)
    terms = {
        **_ranking(bot.score_candidates(eval_set.ranked_pairs, eval_set.candidates), eval_set),
        **_style(replies, eval_set),
        **{f"source_{name}": _rate(rate, eval_set) for name, rate in measure.parts(given, known).items()},
    }
    return _Outcome(terms, replies, _time(lambda pair: bot.reply_to_pairs([pair]), eval_set))


def _evaluate_model(model: ScorableModel, eval_set: EvalSet) -> _Outcome:
    pairs, rows = [eval_set.test[row] for row in eval_set.likelihood_rows], eval_set.likelihood_rows
    own = _likelihoods(model, eval_set, pairs, rows)
    other = _likelihoods(model, eval_set, eval_set.other_question_pairs, eval_set.has_other_question)
    answers = [pair.answer for pair in eval_set.test]
    generations = model.reply(eval_set.ranked_pairs)
    replies = tuple(generation.text for generation in generations)
    terms = {
        "bpc": measure.per_character(0.0 - own, answers, eval_set.mask(rows)),
        "question_gain": measure.per_character(own - other, answers, eval_set.mask(eval_set.has_other_question)),
        **_ranking(_mean_log2(model, eval_set), eval_set),
        **_style(replies, eval_set),
        "ended": _rate(measure.ended(generations), eval_set),
    }
    seconds = _time(lambda pair: model.reply([pair]), eval_set) if eval_set.options.time_models else ()
    return _Outcome(terms, replies, seconds)


def _from_rows(name: str, rows: Mapping[str, Row], eval_set: EvalSet) -> _Outcome:
    """The outcome of a system from its saved rows, on the rows measured now; latency is not saved."""
    saved = [rows[pair.id].terms[name] for pair in eval_set.test]
    terms = {}
    for metric in sorted({metric for by_metric in saved for metric in by_metric}):
        measured = eval_set.mask(eval_set.likelihood_rows if metric in _LIKELIHOOD_METRICS else eval_set.ranked_rows)
        values = np.array([by_metric.get(metric, (0.0, 0.0)) for by_metric in saved], np.float64)
        terms[metric] = RatioTerms(*np.where(measured, values.T, 0.0))
    return _Outcome(terms, tuple(rows[pair.id].replies[name] for pair in eval_set.ranked_pairs))


def _evaluate_retrieval(index: LexicalIndex, eval_set: EvalSet) -> _Outcome:
    questions = [pair.question for pair in eval_set.ranked_pairs]
    replies = tuple(nearest[0].answer for nearest in index.nearest(questions))
    scores = LexicalKnn(index).scores(questions, eval_set.candidates)
    terms = {**_ranking(scores, eval_set), **_style(replies, eval_set)}
    return _Outcome(terms, replies, _time(lambda pair: index.nearest([pair.question]), eval_set))


def _evaluate_human(eval_set: EvalSet) -> _Outcome:
    answers = tuple(pair.answer for pair in eval_set.ranked_pairs)
    return _Outcome(_style(answers, eval_set), answers, human=True)


def _with_reply_retrieval(outcome: _Outcome, eval_set: EvalSet, scorer: ReplyToQuestionScorer) -> _Outcome:
    """The outcome with reply-to-question Hits@1 added."""
    hits = _ranking(scorer.scores(outcome.replies, eval_set.candidate_questions), eval_set)["hits_at_1"]
    return replace(outcome, terms={**outcome.terms, "backward_hits_at_1": hits})


def _time(reply: Callable[[Pair], object], eval_set: EvalSet) -> tuple[float, ...]:
    """Seconds of each of the first questions, one by one; called last, so that the system is warm."""
    seconds = []
    for pair in eval_set.ranked_pairs[: eval_set.options.timed_questions]:
        start = perf_counter()
        reply(pair)
        seconds.append(perf_counter() - start)
    return tuple(seconds)


def _likelihoods(model: ScorableModel, eval_set: EvalSet, pairs: Sequence[Pair], rows: Sequence[int]) -> Float64Array:
    """(test pairs,): log2 p of the answers of `pairs`, scattered to `rows`; 0 in the other rows."""
    return eval_set.scatter(model.log2_probability(pairs)[:, 0] if pairs else np.zeros(0), 0.0, rows)


def _mean_log2(model: ScorableModel, eval_set: EvalSet) -> Float64Array:
    """(ranked rows, candidates): mean log2 p of a candidate's tokens, EOS included."""
    lists = zip(eval_set.ranked_pairs, eval_set.candidates, strict=True)
    log2 = model.log2_probability([replace(pair, answer=text) for pair, texts in lists for text in texts])
    mean: Float64Array = log2[:, 0] / np.maximum(log2[:, 1], 1)
    return mean.reshape(len(eval_set.ranked_rows), -1)


def _ranking(scores: Float64Array, eval_set: EvalSet) -> dict[str, RatioTerms]:
    """(ranked rows, candidates), the gold text first → Hits@1, R@5 and MRR."""
    return measure.ranking(eval_set.scatter(measure.gold_ranks(scores), np.nan))


def _style(replies: Sequence[str], eval_set: EvalSet) -> dict[str, RatioTerms]:
    return {
        "bland": _rate(measure.bland(replies, eval_set.frequent), eval_set),
        "polite": _rate(measure.polite(replies), eval_set),
    }


def _rate(values: Float64Array, eval_set: EvalSet) -> RatioTerms:
    """(ranked rows,) of 0 and 1 → their rate."""
    return RatioTerms(eval_set.scatter(values, 0.0), eval_set.scatter(np.ones(len(values)), 0.0))


def _scores(outcome: _Outcome, eval_set: EvalSet) -> dict[str, dict[str, Score]]:
    morphs = [morphemes(reply) for reply in outcome.replies]
    return {name: _score_slice(outcome, morphs, inside, eval_set) for name, inside in eval_set.slices.items()}


def _score_slice(
    outcome: _Outcome, morphs: Sequence[Sequence[str]], inside: NDArray[np.bool_], eval_set: EvalSet
) -> dict[str, Score]:
    options, groups = eval_set.options, eval_set.groups[inside]
    scores: dict[str, Score | None] = {}
    for metric, terms in outcome.terms.items():
        part = RatioTerms(terms.numerators[inside], terms.denominators[inside])
        scores[metric] = measure.ratio(part, groups, resamples=options.resamples, seed=options.seed)
    positions = [position for position, row in enumerate(eval_set.ranked_rows) if inside[row]]
    if positions:
        scores |= _corpus_metrics(outcome, morphs, positions, eval_set)
    return {metric: score for metric, score in scores.items() if score is not None}


def _corpus_metrics(
    outcome: _Outcome, morphs: Sequence[Sequence[str]], positions: Sequence[int], eval_set: EvalSet
) -> dict[str, Score | None]:
    """Metrics of a set of replies that are no mean over the replies; `positions` index the ranked rows."""
    replies = [outcome.replies[position] for position in positions]
    chosen = [morphs[position] for position in positions]
    scores: dict[str, Score | None] = {"unique": measure.unique(replies)}
    scores |= {"distinct_1": measure.distinct(chosen, 1), "distinct_2": measure.distinct(chosen, 2)}
    if not outcome.human:
        scores |= measure.overlap(replies, [eval_set.ranked_pairs[position].answer for position in positions])
    if outcome.seconds and len(positions) == len(eval_set.ranked_rows):
        scores |= measure.latency(outcome.seconds)  # of all rows only: too few questions of a slice are timed
    return scores


def _rows(eval_set: EvalSet, outcomes: Mapping[str, _Outcome], components: Sequence[int | str]) -> tuple[Row, ...]:
    position = {row: i for i, row in enumerate(eval_set.ranked_rows)}
    systems = {name: outcome for name, outcome in outcomes.items() if not outcome.human}
    seen = eval_set.seen
    return tuple(
        Row(
            id=pair.id,
            component=components[row],
            label=pair.label,
            seen=bool(seen[row]),
            question=pair.question,
            answer=pair.answer,
            replies={name: one.replies[position[row]] for name, one in systems.items()} if row in position else {},
            terms={name: _row_terms(outcome, row) for name, outcome in outcomes.items()},
        )
        for row, pair in enumerate(eval_set.test)
    )


def _row_terms(outcome: _Outcome, row: int) -> dict[str, tuple[float, float]]:
    return {
        metric: (float(terms.numerators[row]), float(terms.denominators[row]))
        for metric, terms in outcome.terms.items()
        if terms.denominators[row] > 0
    }


# Robustness: the bot on perturbed questions


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
    pairs, effects = eval_set.ranked_pairs, []
    hits, replies = _hits_and_replies(bot, eval_set, pairs, range(len(pairs)))
    for kind, perturb in kinds.items():
        questions = [perturb(pair.question, random.Random(f"{pair.id} {kind}")) for pair in pairs]
        changed = [place for place, pair in enumerate(pairs) if questions[place] != pair.question]
        perturbed = [replace(pairs[place], question=questions[place]) for place in changed]
        hits_after, replies_after = _hits_and_replies(bot, eval_set, perturbed, changed)
        same = np.array([replies[place] == after for place, after in zip(changed, replies_after, strict=True)], float)
        groups = eval_set.groups[[eval_set.ranked_rows[place] for place in changed]]
        scores = (
            measure.ratio(
                RatioTerms(values, np.ones(len(changed))),
                groups,
                resamples=eval_set.options.resamples,
                seed=eval_set.options.seed,
            )
            for values in (hits[changed], hits_after, hits_after - hits[changed], same)
        )
        effects.append(PerturbationEffect(kind, len(changed), *scores))
    return effects


def _hits_and_replies(
    bot: ScorableBot, eval_set: EvalSet, pairs: Sequence[Pair], places: Sequence[int]
) -> tuple[Float64Array, list[str]]:
    """Hits@1 and the replies' comparison forms; `pairs` stand at `places` of the ranked pairs."""
    if not pairs:
        return np.zeros(0), []
    ranks = measure.gold_ranks(bot.score_candidates(pairs, [eval_set.candidates[place] for place in places]))
    replies = [comparison_form(reply.text) for reply in bot.reply_to_pairs(pairs)]
    return measure.ranking(ranks)["hits_at_1"].numerators, replies


def robustness_json(effects: Sequence[PerturbationEffect]) -> dict[str, Any]:
    """Kind → its number of rows and its scores."""
    documents = [measure.as_json(effect) for effect in effects]
    return {document.pop("kind"): document for document in documents}


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
    rows = []
    for effect in effects:
        scores = (effect.clean, effect.disturbed, effect.difference, effect.same_reply)
        cells = [format_score(PERCENT, score) for score in scores]
        rows.append([kinds.get(effect.kind, effect.kind), f"{effect.rows:,}", *cells])
    return align_columns([heads, *rows])
