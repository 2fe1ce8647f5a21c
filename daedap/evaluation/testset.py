"""What the judge asks of a system under test; whoever answers to the calls of one of these can be judged.

What each test pair is compared with: 19 wrong answers, 19 wrong questions, and another question.

All of it hangs on the pair's own id and on which texts the test set holds, never on row order, seed or settings: two
runs that are judged on the same pairs face the same choices.

What every system under test is asked: the same questions, candidates and slices.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from daedap.evaluation.metrics import FloatArray, frequent_answers
from daedap.korean.text import comparison_form

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from daedap.types import Generation, Pair, Reply


class ScorableModel(Protocol):
    """A model: it speaks for itself, and knows how likely an answer is."""

    def log2_probability(self, pairs: Sequence[Pair], /) -> NDArray[np.float64]:
        """(pairs, 2): log2 p summed over the answer's tokens and its end, and how many tokens these are."""
        ...

    def reply(self, pairs: Sequence[Pair], /) -> Sequence[Generation]:
        """One greedy reply to each pair's question and the turns before it; the answers are not looked at."""
        ...


class ScorableBot(Protocol):
    """A bot: it answers by whatever means, and prefers one answer to another."""

    def answers(self, pairs: Sequence[Pair], /) -> Sequence[Reply]:
        """One reply to each pair's question and the turns before it, as a user would get it."""
        ...

    def preferences(self, pairs: Sequence[Pair], candidates: Sequence[Sequence[str]], /) -> NDArray[np.float64]:
        """(pairs, candidates): how well each candidate answers its question, more is better.

        All lists of candidates are equally long.
        """
        ...


CANDIDATES = 20


def candidates(test: Sequence[Pair]) -> list[tuple[str, ...]]:
    """For each pair its own answer first, then 19 other answers of the test set, no two of one comparison form.

    All lists are equally long: 20, or as many as the test set has different answers.
    """
    return _offered(test, [pair.answer for pair in test])


def candidate_questions(test: Sequence[Pair]) -> list[tuple[str, ...]]:
    """The same the other way round: for each pair its own question first, then 19 others, of whatever label."""
    return _offered(test, [pair.question for pair in test])


def other_questions(test: Sequence[Pair]) -> list[str | None]:
    """For each pair another question of the same label, of another label only if there is none, else None."""
    everywhere = list(_by_form(pair.question for pair in test).items())
    asked: defaultdict[str, list[str]] = defaultdict(list)
    for pair in test:
        asked[pair.label].append(pair.question)
    inside = {label: list(_by_form(questions).items()) for label, questions in asked.items()}
    return [_another(pair, inside[pair.label]) or _another(pair, everywhere) for pair in test]


def _offered(test: Sequence[Pair], texts: Sequence[str]) -> list[tuple[str, ...]]:
    """For each pair its own one of the `texts` first, then others of them."""
    pool = _by_form(texts)
    forms = list(pool)
    return [(text, *(pool[form] for form in _wrong(pair, text, forms))) for pair, text in zip(test, texts, strict=True)]


def _by_form(texts: Iterable[str]) -> dict[str, str]:
    """One text for each comparison form (the first in code-point order), ordered by form."""
    chosen = {comparison_form(text): text for text in sorted(texts, reverse=True)}
    return dict(sorted(chosen.items()))


def _wrong(pair: Pair, text: str, forms: Sequence[str]) -> list[str]:
    own = comparison_form(text)
    # One more than needed is drawn, in case the right one is among them.
    drawn = [forms[i] for i in _rng(pair).permutation(len(forms))[:CANDIDATES]]
    return [form for form in drawn if form != own][: CANDIDATES - 1]


def _another(pair: Pair, questions: Sequence[tuple[str, str]]) -> str | None:
    own = comparison_form(pair.question)
    drawn = [questions[i] for i in _rng(pair).permutation(len(questions))[:2]]
    return next((question for form, question in drawn if form != own), None)


def _rng(pair: Pair) -> np.random.RandomState:
    """The pair's own random numbers; of numpy's generators only this one promises the same numbers in all versions."""
    return np.random.RandomState(int(pair.id[:8], 16))


LABELS = 10
"""So many of the most frequent labels are scored apart."""


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """How much is measured."""

    rows: int = 500
    """At most so many pairs are ranked and replied to; the same ones in every run."""
    likelihoods: int | None = None
    """At most so many pairs count for bits per character and question gain, the first of them those that are ranked;
    None: all."""
    resamples: int = 1000
    seed: int = 0
    """Of the bootstrap alone."""
    samples: int = 20
    timed: int = 20
    """So many questions are asked one by one, for the latency."""
    timed_models: bool = True
    """Of the language models by themselves, too, which takes seconds where a model has no engine."""


@dataclass(frozen=True)
class EvalSet:
    """What every system is asked."""

    test: tuple[Pair, ...]
    groups: NDArray[np.int64]
    """(pairs,): component numbers."""
    asked: tuple[int, ...]
    """Rows that are ranked and replied to, in the order of their ids."""
    scored: tuple[int, ...]
    """Rows whose answers' likelihood is taken, in the order of the test pairs."""
    candidates: tuple[tuple[str, ...], ...]
    """Of each asked row, its own answer first."""
    candidate_questions: tuple[tuple[str, ...], ...]
    """Of each asked row, its own question first."""
    others: tuple[str | None, ...]
    """Of each row, another question."""
    frequent: frozenset[str]
    slices: Mapping[str, NDArray[np.bool_]]
    """Name → (pairs,)."""
    options: EvalSettings

    @property
    def questions(self) -> list[Pair]:
        """The asked pairs."""
        return [self.test[row] for row in self.asked]

    @property
    def has_other_question(self) -> list[int]:
        """The scored rows that have another question."""
        return [row for row in self.scored if self.others[row] is not None]

    @property
    def other_question_pairs(self) -> list[Pair]:
        """Their pairs with the other question in the place of their own."""
        return [replace(self.test[row], question=str(self.others[row])) for row in self.has_other_question]

    def marked(self, rows: Sequence[int]) -> NDArray[np.bool_]:
        """(pairs,): true in these rows."""
        marked = np.zeros(len(self.test), np.bool_)
        marked[list(rows)] = True
        return marked

    def scatter(self, values: FloatArray, empty: float, rows: Sequence[int] | None = None) -> FloatArray:
        """(asked,) → (pairs,), `empty` where nothing was asked; or of other rows than the asked ones."""
        whole = np.full(len(self.test), empty)
        whole[list(self.asked if rows is None else rows)] = values
        return whole


def make_eval_set(
    test: Sequence[Pair], components: Sequence[int | str], train: Sequence[Pair], options: EvalSettings
) -> EvalSet:
    """Choose the rows, candidates and slices; none of it depends on the order of the rows."""
    _, groups = np.unique([str(component) for component in components], return_inverse=True)
    by_id = sorted(range(len(test)), key=lambda row: test[row].id)
    asked = by_id[: options.rows]
    offered, questions = candidates(test), candidate_questions(test)
    return EvalSet(
        test=tuple(test),
        groups=groups.astype(np.int64),
        asked=tuple(asked),
        scored=tuple(sorted(by_id[: options.likelihoods])),
        candidates=tuple(offered[row] for row in asked),
        candidate_questions=tuple(questions[row] for row in asked),
        others=tuple(other_questions(test)),
        frequent=frequent_answers([pair.answer for pair in train]),
        slices=_slices(test, train),
        options=options,
    )


def _slices(test: Sequence[Pair], train: Sequence[Pair]) -> dict[str, NDArray[np.bool_]]:
    known = {comparison_form(pair.answer) for pair in train}
    seen = np.array([comparison_form(pair.answer) in known for pair in test])
    slices = {"all": np.ones(len(test), dtype=np.bool_), "seen": seen, "unseen": ~seen}
    labels = Counter(pair.label for pair in test if pair.label)
    for label in sorted(sorted(labels), key=lambda label: -labels[label])[:LABELS]:
        slices[f"label:{label}"] = np.array([pair.label == label for pair in test])
    return {name: inside for name, inside in slices.items() if inside.any()}
