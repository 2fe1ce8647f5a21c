"""What the judge asks of a system under test; whoever answers to the calls of one of these can be judged.

Test pairs and systems → scores: every system faces the same questions, candidates and resamples.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

import daedap.evaluation.metrics as measure
from daedap.errors import RunError
from daedap.evaluation.metrics import FloatArray, RatioTerms, Score
from daedap.evaluation.reply_retrieval import ReplyToQuestionScorer
from daedap.evaluation.result import Evaluation, Row, Sample
from daedap.evaluation.testset import EvalSet, EvalSettings, ScorableBot, ScorableModel, make_eval_set
from daedap.retrieval.lexical import LexicalKnn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from daedap.retrieval.lexical import LexicalIndex
    from daedap.types import Pair, Reply


@dataclass(frozen=True)
class Systems:
    """What is scored on the same test pairs, each system under its name."""

    speakers: Mapping[str, ScorableModel]
    """Language models by themselves."""
    bots: Mapping[str, ScorableBot] = field(default_factory=dict)
    earlier: Mapping[str, Mapping[str, Row]] = field(default_factory=dict)
    """Systems that were scored on these very pairs before: their rows by id, under the names of the systems."""


@dataclass(frozen=True)
class _Outcome:
    """What one system did."""

    tallies: Mapping[str, RatioTerms]
    replies: tuple[str, ...]
    """To each asked row."""
    seconds: tuple[float, ...] = ()
    """Of each question that was asked by itself."""
    human: bool = False
    """The replies are the right answers themselves."""


def evaluate(
    test: Sequence[Pair],
    *,
    components: Sequence[int | str],
    systems: Systems,
    index: LexicalIndex,
    options: EvalSettings | None = None,
) -> Evaluation:
    """Score the systems, with retrieval from `index` and people's own answers ("human") beside them.

    `components` names the component of each test pair; `index` holds the training pairs and no others. Raises RunError
    when there is nothing to test on.
    """
    assert len(components) == len(test), f"{len(components)} components for {len(test)} pairs"
    if not test:
        raise RunError("There are no pairs to evaluate on.", "Name a file of questions and answers with --data.")
    eval_set = make_eval_set(test, components, index.pairs, options or EvalSettings())
    outcomes = {name: _question(bot, eval_set) for name, bot in systems.bots.items()}
    outcomes |= {name: _examine(speaker, eval_set) for name, speaker in systems.speakers.items()}
    outcomes |= {name: _recorded(name, rows, eval_set) for name, rows in systems.earlier.items()}
    outcomes |= {"retrieval": _retrieve(index, eval_set), "human": _human(eval_set)}
    outcomes = _look_back(outcomes, eval_set, ReplyToQuestionScorer.fit(index.pairs))
    size, questions = len(eval_set.candidates[0]), len(eval_set.candidate_questions[0])
    return Evaluation(
        pairs=len(test),
        components=len(set(components)),
        candidates=size,
        chance={**measure.chance(size), "backward_hits_at_1": measure.chance(questions)["hits_at_1"]},
        scores={name: _scores(outcome, eval_set) for name, outcome in outcomes.items()},
        samples=_samples(eval_set, outcomes, index),
        rows=_rows(eval_set, outcomes, components),
    )


def _question(bot: ScorableBot, eval_set: EvalSet) -> _Outcome:
    given = bot.answers(eval_set.questions)
    replies = tuple(reply.text for reply in given)
    ranks = measure.gold_ranks(bot.preferences(eval_set.questions, eval_set.candidates))
    tallies = {
        **measure.ranking(eval_set.scatter(ranks, np.nan)),
        **_style(replies, eval_set),
        **_sources(given, eval_set),
    }
    return _Outcome(tallies, replies, _time(lambda pair: bot.answers([pair]), eval_set))


def _recorded(name: str, rows: Mapping[str, Row], eval_set: EvalSet) -> _Outcome:
    """What a system did when it was asked the same before; how long it took is not kept."""
    shares = [rows[pair.id].shares[name] for pair in eval_set.test]
    metrics = sorted({metric for share in shares for metric in share})
    tallies = {
        metric: RatioTerms(*np.array([share.get(metric, (0.0, 0.0)) for share in shares], np.float64).T)
        for metric in metrics
    }
    return _Outcome(tallies, tuple(rows[pair.id].replies[name] for pair in eval_set.questions))


def _sources(replies: Sequence[Reply], eval_set: EvalSet) -> dict[str, RatioTerms]:
    return {f"source_{name}": _rate(found, eval_set) for name, found in measure.sources(replies).items()}


def _look_back(
    outcomes: Mapping[str, _Outcome], eval_set: EvalSet, judge: ReplyToQuestionScorer
) -> dict[str, _Outcome]:
    """The outcomes with what the backward judge makes of the replies."""
    found = {}
    for name, outcome in outcomes.items():
        ranks = measure.gold_ranks(judge.scores(outcome.replies, eval_set.candidate_questions))
        hits = measure.ranking(eval_set.scatter(ranks, np.nan))["hits_at_1"]
        found[name] = replace(outcome, tallies={**outcome.tallies, "backward_hits_at_1": hits})
    return found


def _examine(speaker: ScorableModel, eval_set: EvalSet) -> _Outcome:
    own = _likelihoods(speaker, eval_set, [eval_set.test[row] for row in eval_set.scored], eval_set.scored)
    other = _likelihoods(speaker, eval_set, eval_set.other_question_pairs, eval_set.has_other_question)
    answers = [pair.answer for pair in eval_set.test]
    spoken = speaker.reply(eval_set.questions)
    replies = tuple(reply.text for reply in spoken)
    tallies = {
        "bpc": measure.bits_per_character(own, answers, eval_set.marked(eval_set.scored)),
        "question_gain": measure.question_gain(own, other, answers, eval_set.marked(eval_set.has_other_question)),
        **measure.ranking(eval_set.scatter(measure.gold_ranks(_preferences(speaker, eval_set)), np.nan)),
        **_style(replies, eval_set),
        "ended": _rate(measure.ended(spoken), eval_set),
    }
    seconds = _time(lambda pair: speaker.reply([pair]), eval_set) if eval_set.options.timed_models else ()
    return _Outcome(tallies, replies, seconds)


def _time(ask: Callable[[Pair], object], eval_set: EvalSet) -> tuple[float, ...]:
    """Seconds that each of the first questions takes by itself; the model is warm by now."""
    seconds = []
    for pair in eval_set.questions[: eval_set.options.timed]:
        start = perf_counter()
        ask(pair)
        seconds.append(perf_counter() - start)
    return tuple(seconds)


def _likelihoods(speaker: ScorableModel, eval_set: EvalSet, pairs: Sequence[Pair], rows: Sequence[int]) -> FloatArray:
    """(test pairs,): log2 p of the answers of `pairs`, which stand for these rows; 0 in the other rows."""
    return eval_set.scatter(speaker.log2_probability(pairs)[:, 0] if pairs else np.zeros(0), 0.0, rows)


def _preferences(speaker: ScorableModel, eval_set: EvalSet) -> FloatArray:
    """(asked, candidates): mean log2 p of a candidate's tokens."""
    offered = zip(eval_set.questions, eval_set.candidates, strict=True)
    pairs = [replace(pair, answer=text) for pair, texts in offered for text in texts]
    found = speaker.log2_probability(pairs)
    mean: FloatArray = found[:, 0] / np.maximum(found[:, 1], 1)
    return mean.reshape(len(eval_set.asked), -1)


def _retrieve(index: LexicalIndex, eval_set: EvalSet) -> _Outcome:
    questions = [pair.question for pair in eval_set.questions]
    replies = tuple(nearest[0].answer for nearest in index.nearest(questions))
    ranks = measure.gold_ranks(LexicalKnn(index).scores(questions, eval_set.candidates))
    seconds = _time(lambda pair: index.nearest([pair.question]), eval_set)
    return _Outcome({**measure.ranking(eval_set.scatter(ranks, np.nan)), **_style(replies, eval_set)}, replies, seconds)


def _human(eval_set: EvalSet) -> _Outcome:
    answers = tuple(pair.answer for pair in eval_set.questions)
    return _Outcome(_style(answers, eval_set), answers, human=True)


def _style(replies: Sequence[str], eval_set: EvalSet) -> dict[str, RatioTerms]:
    return {
        "bland": _rate(measure.bland(replies, eval_set.frequent), eval_set),
        "polite": _rate(measure.polite(replies), eval_set),
    }


def _rate(values: FloatArray, eval_set: EvalSet) -> RatioTerms:
    return RatioTerms(eval_set.scatter(values, 0.0), eval_set.scatter(np.ones(len(values)), 0.0))


def _scores(outcome: _Outcome, eval_set: EvalSet) -> dict[str, dict[str, Score]]:
    words = measure.cut(outcome.replies)
    return {name: _slice(outcome, words, inside, eval_set) for name, inside in eval_set.slices.items()}


def _slice(
    outcome: _Outcome, words: Sequence[Sequence[str]], inside: NDArray[np.bool_], eval_set: EvalSet
) -> dict[str, Score]:
    found: dict[str, Score | None] = {}
    options = eval_set.options
    for metric, tally in outcome.tallies.items():
        part = RatioTerms(tally.numerators[inside], tally.denominators[inside])
        found[metric] = measure.ratio(part, eval_set.groups[inside], resamples=options.resamples, seed=options.seed)
    chosen = [place for place, row in enumerate(eval_set.asked) if inside[row]]
    if chosen:
        found |= _corpus(outcome, words, chosen, eval_set)
    return {metric: score for metric, score in found.items() if score is not None}


def _corpus(
    outcome: _Outcome, words: Sequence[Sequence[str]], chosen: Sequence[int], eval_set: EvalSet
) -> dict[str, Score | None]:
    """Metrics of the chosen replies taken together."""
    replies = [outcome.replies[place] for place in chosen]
    cut = [words[place] for place in chosen]
    found: dict[str, Score | None] = {"unique": measure.unique(replies)}
    found |= {"distinct_1": measure.distinct(cut, 1), "distinct_2": measure.distinct(cut, 2)}
    if not outcome.human:
        found |= measure.overlap(replies, [eval_set.questions[place].answer for place in chosen])
    if outcome.seconds and len(chosen) == len(eval_set.asked):
        found |= measure.latency(outcome.seconds)  # of the whole only; a slice has too few
    return found


def _samples(eval_set: EvalSet, outcomes: Mapping[str, _Outcome], index: LexicalIndex) -> tuple[Sample, ...]:
    pairs = eval_set.questions[: eval_set.options.samples]
    evidence = index.nearest([pair.question for pair in pairs])
    seen = eval_set.slices.get("seen", np.zeros(len(eval_set.test), dtype=np.bool_))
    return tuple(
        Sample(pair.question, pair.answer, bool(seen[row]), _said(outcomes, place), near[0])
        for place, (row, pair, near) in enumerate(zip(eval_set.asked, pairs, evidence, strict=False))
    )


def _said(outcomes: Mapping[str, _Outcome], place: int) -> dict[str, str]:
    return {name: outcome.replies[place] for name, outcome in outcomes.items() if not outcome.human}


def _rows(eval_set: EvalSet, outcomes: Mapping[str, _Outcome], components: Sequence[int | str]) -> tuple[Row, ...]:
    place = {row: i for i, row in enumerate(eval_set.asked)}
    seen = eval_set.slices.get("seen", np.zeros(len(eval_set.test), dtype=np.bool_))
    return tuple(
        Row(
            id=pair.id,
            component=components[row],
            label=pair.label,
            seen=bool(seen[row]),
            question=pair.question,
            answer=pair.answer,
            replies=_said(outcomes, place[row]) if row in place else {},
            shares={name: _shares(outcome, row) for name, outcome in outcomes.items()},
        )
        for row, pair in enumerate(eval_set.test)
    )


def _shares(outcome: _Outcome, row: int) -> dict[str, tuple[float, float]]:
    return {
        metric: (float(tally.numerators[row]), float(tally.denominators[row]))
        for metric, tally in outcome.tallies.items()
        if tally.denominators[row] > 0
    }
