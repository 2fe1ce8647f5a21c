"""The evaluation set: which test rows are scored, against which candidates, in which slices.

Every choice is drawn from the pair's own id and the set of test texts, never from row order, seed or settings, so that
two runs evaluated on the same pairs get the same candidates. The protocols of what can be evaluated are here as well.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from daedap.evaluation.metrics import frequent_answers
from daedap.korean.text import comparison_form
from daedap.types import Float64Array

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from daedap.types import Generation, Pair, Reply

CANDIDATES = 20
"""Size of a candidate list: the gold text and 19 distractors."""
LABELS = 10
"""Number of the most frequent labels that get a slice of their own."""


class ScorableModel(Protocol):
    """A language model: it generates, and assigns a probability to any answer."""

    def log2_probability(self, pairs: Sequence[Pair], /) -> NDArray[np.float64]:
        """(pairs, 2): log2 p summed over the tokens of the answer and its EOS, and the number of these tokens."""
        ...

    def reply(self, pairs: Sequence[Pair], /) -> Sequence[Generation]:
        """One greedy reply to each pair's question and history; the pairs' answers are not read."""
        ...


class ScorableBot(Protocol):
    """A bot: it replies by any means, and ranks candidate answers."""

    def reply_to_pairs(self, pairs: Sequence[Pair], /) -> Sequence[Reply]:
        """One reply to each pair's question and history, as a user would get it."""
        ...

    def score_candidates(self, pairs: Sequence[Pair], candidates: Sequence[Sequence[str]], /) -> NDArray[np.float64]:
        """(pairs, candidates): a score of each candidate as the answer, higher is better.

        All lists of candidates have the same length.
        """
        ...


def candidates(test: Sequence[Pair]) -> list[tuple[str, ...]]:
    """For each pair its gold answer first, then 19 answers of other pairs, no two of the same comparison form.

    All lists have the same length: 20, or the number of distinct answers if that is smaller.
    """
    return _with_distractors(test, [pair.answer for pair in test])


def candidate_questions(test: Sequence[Pair]) -> list[tuple[str, ...]]:
    """For each pair its own question first, then 19 questions of other pairs, of any label."""
    return _with_distractors(test, [pair.question for pair in test])


def other_questions(test: Sequence[Pair]) -> list[str | None]:
    """For each pair another question: of the same label if there is one, else of any label, else None."""
    everything = _by_form(pair.question for pair in test)
    by_label: defaultdict[str, list[str]] = defaultdict(list)
    for pair in test:
        by_label[pair.label].append(pair.question)
    same_label = {label: _by_form(questions) for label, questions in by_label.items()}
    return [_another(pair, same_label[pair.label], everything) for pair in test]


def _another(pair: Pair, *pools: Mapping[str, str]) -> str | None:
    """A question from the first pool that has another one."""
    return next((text for pool in pools for text in _draw(pair, pair.question, pool, 1)), None)


def _with_distractors(test: Sequence[Pair], texts: Sequence[str]) -> list[tuple[str, ...]]:
    """For each pair its own text first, then distractors drawn from `texts`."""
    pool = _by_form(texts)
    return [(text, *_draw(pair, text, pool, CANDIDATES - 1)) for pair, text in zip(test, texts, strict=True)]


def _by_form(texts: Iterable[str]) -> dict[str, str]:
    """One text for each comparison form (the first in code-point order), ordered by form."""
    chosen = {comparison_form(text): text for text in sorted(texts, reverse=True)}
    return dict(sorted(chosen.items()))


def _draw(pair: Pair, text: str, pool: Mapping[str, str], count: int) -> list[str]:
    """At most `count` texts of a pool by form, drawn by the pair's id; none has the comparison form of `text`."""
    own, forms = comparison_form(text), list(pool)
    # One more than needed, in case the text itself is among them.
    drawn = [forms[i] for i in _rng(pair).permutation(len(forms))[: count + 1]]
    return [pool[form] for form in drawn if form != own][:count]


def _rng(pair: Pair) -> np.random.RandomState:
    """Seeded by the pair's id. RandomState is the only generator of numpy with a stream that is frozen for good."""
    return np.random.RandomState(int(pair.id[:8], 16))


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """How much is measured."""

    rows: int = 500
    """At most this many pairs are ranked and replied to; the same ones in every run."""
    likelihood_rows: int | None = None
    """At most this many pairs count for bits per character and question gain, those that are ranked among them first;
    None: all."""
    resamples: int = 1000
    seed: int = 0
    """The seed of the bootstrap only."""
    samples: int = 20
    timed_questions: int = 20
    """This many questions are sent one by one to measure latency."""
    time_models: bool = True
    """Measure the latency of the language models too; that takes seconds for a model without an engine."""


@dataclass(frozen=True)
class EvalSet:
    """The test pairs, and what every evaluated system gets to answer, score and rank."""

    test: tuple[Pair, ...]
    groups: NDArray[np.int64]
    """(pairs,): number of each pair's component."""
    ranked_rows: tuple[int, ...]
    """Rows that are ranked and replied to, ordered by pair id."""
    likelihood_rows: tuple[int, ...]
    """Rows whose answer likelihood is measured, in the order of the test pairs."""
    candidates: tuple[tuple[str, ...], ...]
    """(ranked rows, candidates): the gold answer first."""
    candidate_questions: tuple[tuple[str, ...], ...]
    """(ranked rows, candidates): the row's own question first."""
    other_questions: tuple[str | None, ...]
    """(pairs,): another question for the question gain."""
    frequent: frozenset[str]
    """Comparison forms of the most frequent known answers."""
    slices: Mapping[str, NDArray[np.bool_]]
    """Name → (pairs,)."""
    options: EvalSettings

    @property
    def ranked_pairs(self) -> list[Pair]:
        """The pairs of `ranked_rows`."""
        return [self.test[row] for row in self.ranked_rows]

    @property
    def has_other_question(self) -> list[int]:
        """The likelihood rows that have another question."""
        return [row for row in self.likelihood_rows if self.other_questions[row] is not None]

    @property
    def other_question_pairs(self) -> list[Pair]:
        """The pairs of `has_other_question` with their question replaced by the other one."""
        return [replace(self.test[row], question=str(self.other_questions[row])) for row in self.has_other_question]

    @property
    def seen(self) -> NDArray[np.bool_]:
        """(pairs,): whether the answer is also that of a known pair."""
        return self.slices.get("seen", np.zeros(len(self.test), np.bool_))

    def mask(self, rows: Sequence[int]) -> NDArray[np.bool_]:
        """(pairs,): true in these rows."""
        mask = np.zeros(len(self.test), np.bool_)
        mask[list(rows)] = True
        return mask

    def scatter(self, values: Float64Array, empty: float, rows: Sequence[int] | None = None) -> Float64Array:
        """(rows,) → (pairs,), with `empty` in all other rows; `rows` defaults to the ranked rows."""
        scattered = np.full(len(self.test), empty)
        scattered[list(self.ranked_rows if rows is None else rows)] = values
        return scattered


def make_eval_set(
    test: Sequence[Pair], components: Sequence[int | str], known: Sequence[Pair], options: EvalSettings
) -> EvalSet:
    """Choose rows, candidates and slices; none of it depends on the order of the test pairs.

    `known`: the pairs that the evaluated bot knows; an answer that is also one of theirs is seen.
    """
    _, groups = np.unique([str(component) for component in components], return_inverse=True)
    by_id = sorted(range(len(test)), key=lambda row: test[row].id)
    ranked = by_id[: options.rows]
    answers, questions = candidates(test), candidate_questions(test)
    return EvalSet(
        test=tuple(test),
        groups=groups.astype(np.int64),
        ranked_rows=tuple(ranked),
        likelihood_rows=tuple(sorted(by_id[: options.likelihood_rows])),
        candidates=tuple(answers[row] for row in ranked),
        candidate_questions=tuple(questions[row] for row in ranked),
        other_questions=tuple(other_questions(test)),
        frequent=frequent_answers([pair.answer for pair in known]),
        slices=_slices(test, known),
        options=options,
    )


def _slices(test: Sequence[Pair], known: Sequence[Pair]) -> dict[str, NDArray[np.bool_]]:
    known_answers = {comparison_form(pair.answer) for pair in known}
    seen = np.array([comparison_form(pair.answer) in known_answers for pair in test])
    slices = {"all": np.ones(len(test), dtype=np.bool_), "seen": seen, "unseen": ~seen}
    labels = Counter(pair.label for pair in test if pair.label)
    for label in sorted(sorted(labels), key=lambda label: -labels[label])[:LABELS]:
        slices[f"label:{label}"] = np.array([pair.label == label for pair in test])
    return {name: inside for name, inside in slices.items() if inside.any()}
