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
from daedap.evaluation.metrics import FloatArray, Score, Tally
from daedap.evaluation.reply_retrieval import BackwardJudge
from daedap.evaluation.result import Evaluation, Row, Sample
from daedap.evaluation.testset import Answerer, Exam, Options, Speaker, set_exam
from daedap.retrieval.lexical import NearestQuestion

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from daedap.retrieval.lexical import Index
    from daedap.types import Pair, Reply


@dataclass(frozen=True)
class Systems:
    """What is scored on the same test pairs, each system under its name."""

    speakers: Mapping[str, Speaker]
    """Language models by themselves."""
    bots: Mapping[str, Answerer] = field(default_factory=dict)
    earlier: Mapping[str, Mapping[str, Row]] = field(default_factory=dict)
    """Systems that were scored on these very pairs before: their rows by id, under the names of the systems."""


@dataclass(frozen=True)
class _Outcome:
    """What one system did."""

    tallies: Mapping[str, Tally]
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
    index: Index,
    options: Options | None = None,
) -> Evaluation:
    """Score the systems, with retrieval from `index` and people's own answers ("human") beside them.

    `components` names the component of each test pair; `index` holds the training pairs and no others. Raises RunError
    when there is nothing to test on.
    """
    assert len(components) == len(test), f"{len(components)} components for {len(test)} pairs"
    if not test:
        raise RunError("There are no pairs to evaluate on.", "Name a file of questions and answers with --data.")
    exam = set_exam(test, components, index.pairs, options or Options())
    outcomes = {name: _question(bot, exam) for name, bot in systems.bots.items()}
    outcomes |= {name: _examine(speaker, exam) for name, speaker in systems.speakers.items()}
    outcomes |= {name: _recorded(name, rows, exam) for name, rows in systems.earlier.items()}
    outcomes |= {"retrieval": _retrieve(index, exam), "human": _human(exam)}
    outcomes = _look_back(outcomes, exam, BackwardJudge.fit(index.pairs))
    size, questions = len(exam.candidates[0]), len(exam.candidate_questions[0])
    return Evaluation(
        pairs=len(test),
        components=len(set(components)),
        candidates=size,
        chance={**measure.chance(size), "backward_hits_at_1": measure.chance(questions)["hits_at_1"]},
        scores={name: _scores(outcome, exam) for name, outcome in outcomes.items()},
        samples=_samples(exam, outcomes, index),
        rows=_rows(exam, outcomes, components),
    )


def _question(bot: Answerer, exam: Exam) -> _Outcome:
    given = bot.answers(exam.questions)
    replies = tuple(reply.text for reply in given)
    ranks = measure.gold_ranks(bot.preferences(exam.questions, exam.candidates))
    tallies = {
        **measure.ranking(exam.spread(ranks, np.nan)),
        **_style(replies, exam),
        **_sources(given, exam),
    }
    return _Outcome(tallies, replies, _time(lambda pair: bot.answers([pair]), exam))


def _recorded(name: str, rows: Mapping[str, Row], exam: Exam) -> _Outcome:
    """What a system did when it was asked the same before; how long it took is not kept."""
    shares = [rows[pair.id].shares[name] for pair in exam.test]
    metrics = sorted({metric for share in shares for metric in share})
    tallies = {
        metric: Tally(*np.array([share.get(metric, (0.0, 0.0)) for share in shares], np.float64).T)
        for metric in metrics
    }
    return _Outcome(tallies, tuple(rows[pair.id].replies[name] for pair in exam.questions))


def _sources(replies: Sequence[Reply], exam: Exam) -> dict[str, Tally]:
    return {f"source_{name}": _rate(found, exam) for name, found in measure.sources(replies).items()}


def _look_back(outcomes: Mapping[str, _Outcome], exam: Exam, judge: BackwardJudge) -> dict[str, _Outcome]:
    """The outcomes with what the backward judge makes of the replies."""
    found = {}
    for name, outcome in outcomes.items():
        ranks = measure.gold_ranks(judge.scores(outcome.replies, exam.candidate_questions))
        hits = measure.ranking(exam.spread(ranks, np.nan))["hits_at_1"]
        found[name] = replace(outcome, tallies={**outcome.tallies, "backward_hits_at_1": hits})
    return found


def _examine(speaker: Speaker, exam: Exam) -> _Outcome:
    own = _likelihoods(speaker, exam, [exam.test[row] for row in exam.scored], exam.scored)
    other = _likelihoods(speaker, exam, exam.misled_pairs, exam.misled)
    answers = [pair.answer for pair in exam.test]
    spoken = speaker.reply(exam.questions)
    replies = tuple(reply.text for reply in spoken)
    tallies = {
        "bpc": measure.bits_per_character(own, answers, exam.marked(exam.scored)),
        "question_gain": measure.question_gain(own, other, answers, exam.marked(exam.misled)),
        **measure.ranking(exam.spread(measure.gold_ranks(_preferences(speaker, exam)), np.nan)),
        **_style(replies, exam),
        "ended": _rate(measure.ended(spoken), exam),
    }
    seconds = _time(lambda pair: speaker.reply([pair]), exam) if exam.options.timed_models else ()
    return _Outcome(tallies, replies, seconds)


def _time(ask: Callable[[Pair], object], exam: Exam) -> tuple[float, ...]:
    """Seconds that each of the first questions takes by itself; the model is warm by now."""
    seconds = []
    for pair in exam.questions[: exam.options.timed]:
        start = perf_counter()
        ask(pair)
        seconds.append(perf_counter() - start)
    return tuple(seconds)


def _likelihoods(speaker: Speaker, exam: Exam, pairs: Sequence[Pair], rows: Sequence[int]) -> FloatArray:
    """(test pairs,): log2 p of the answers of `pairs`, which stand for these rows; 0 in the other rows."""
    return exam.spread(speaker.log2_probability(pairs)[:, 0] if pairs else np.zeros(0), 0.0, rows)


def _preferences(speaker: Speaker, exam: Exam) -> FloatArray:
    """(asked, candidates): mean log2 p of a candidate's tokens."""
    offered = zip(exam.questions, exam.candidates, strict=True)
    pairs = [replace(pair, answer=text) for pair, texts in offered for text in texts]
    found = speaker.log2_probability(pairs)
    mean: FloatArray = found[:, 0] / np.maximum(found[:, 1], 1)
    return mean.reshape(len(exam.asked), -1)


def _retrieve(index: Index, exam: Exam) -> _Outcome:
    questions = [pair.question for pair in exam.questions]
    replies = tuple(nearest[0].answer for nearest in index.nearest(questions))
    ranks = measure.gold_ranks(NearestQuestion(index).scores(questions, exam.candidates))
    seconds = _time(lambda pair: index.nearest([pair.question]), exam)
    return _Outcome({**measure.ranking(exam.spread(ranks, np.nan)), **_style(replies, exam)}, replies, seconds)


def _human(exam: Exam) -> _Outcome:
    answers = tuple(pair.answer for pair in exam.questions)
    return _Outcome(_style(answers, exam), answers, human=True)


def _style(replies: Sequence[str], exam: Exam) -> dict[str, Tally]:
    return {
        "bland": _rate(measure.bland(replies, exam.frequent), exam),
        "polite": _rate(measure.polite(replies), exam),
    }


def _rate(values: FloatArray, exam: Exam) -> Tally:
    return Tally(exam.spread(values, 0.0), exam.spread(np.ones(len(values)), 0.0))


def _scores(outcome: _Outcome, exam: Exam) -> dict[str, dict[str, Score]]:
    words = measure.cut(outcome.replies)
    return {name: _slice(outcome, words, inside, exam) for name, inside in exam.slices.items()}


def _slice(
    outcome: _Outcome, words: Sequence[Sequence[str]], inside: NDArray[np.bool_], exam: Exam
) -> dict[str, Score]:
    found: dict[str, Score | None] = {}
    options = exam.options
    for metric, tally in outcome.tallies.items():
        part = Tally(tally.numerators[inside], tally.denominators[inside])
        found[metric] = measure.ratio(part, exam.groups[inside], resamples=options.resamples, seed=options.seed)
    chosen = [place for place, row in enumerate(exam.asked) if inside[row]]
    if chosen:
        found |= _corpus(outcome, words, chosen, exam)
    return {metric: score for metric, score in found.items() if score is not None}


def _corpus(
    outcome: _Outcome, words: Sequence[Sequence[str]], chosen: Sequence[int], exam: Exam
) -> dict[str, Score | None]:
    """Metrics of the chosen replies taken together."""
    replies = [outcome.replies[place] for place in chosen]
    cut = [words[place] for place in chosen]
    found: dict[str, Score | None] = {"unique": measure.unique(replies)}
    found |= {"distinct_1": measure.distinct(cut, 1), "distinct_2": measure.distinct(cut, 2)}
    if not outcome.human:
        found |= measure.overlap(replies, [exam.questions[place].answer for place in chosen])
    if outcome.seconds and len(chosen) == len(exam.asked):
        found |= measure.latency(outcome.seconds)  # of the whole only; a slice has too few
    return found


def _samples(exam: Exam, outcomes: Mapping[str, _Outcome], index: Index) -> tuple[Sample, ...]:
    pairs = exam.questions[: exam.options.samples]
    evidence = index.nearest([pair.question for pair in pairs])
    seen = exam.slices.get("seen", np.zeros(len(exam.test), dtype=np.bool_))
    return tuple(
        Sample(pair.question, pair.answer, bool(seen[row]), _said(outcomes, place), near[0])
        for place, (row, pair, near) in enumerate(zip(exam.asked, pairs, evidence, strict=False))
    )


def _said(outcomes: Mapping[str, _Outcome], place: int) -> dict[str, str]:
    return {name: outcome.replies[place] for name, outcome in outcomes.items() if not outcome.human}


def _rows(exam: Exam, outcomes: Mapping[str, _Outcome], components: Sequence[int | str]) -> tuple[Row, ...]:
    place = {row: i for i, row in enumerate(exam.asked)}
    seen = exam.slices.get("seen", np.zeros(len(exam.test), dtype=np.bool_))
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
        for row, pair in enumerate(exam.test)
    )


def _shares(outcome: _Outcome, row: int) -> dict[str, tuple[float, float]]:
    return {
        metric: (float(tally.numerators[row]), float(tally.denominators[row]))
        for metric, tally in outcome.tallies.items()
        if tally.denominators[row] > 0
    }
