"""What each test pair is compared with: 19 wrong answers, 19 wrong questions, and another question.

All of it hangs on the pair's own id and on which texts the test set holds, never on row order, seed or settings: two
runs that are judged on the same pairs face the same choices.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from daedap.korean import comparison_form

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from daedap.pair import Pair

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
    drawn = [forms[i] for i in _dice(pair).permutation(len(forms))[:CANDIDATES]]
    return [form for form in drawn if form != own][: CANDIDATES - 1]


def _another(pair: Pair, questions: Sequence[tuple[str, str]]) -> str | None:
    own = comparison_form(pair.question)
    drawn = [questions[i] for i in _dice(pair).permutation(len(questions))[:2]]
    return next((question for form, question in drawn if form != own), None)


def _dice(pair: Pair) -> np.random.RandomState:
    """The pair's own random numbers; of numpy's generators only this one promises the same numbers in all versions."""
    return np.random.RandomState(int(pair.id[:8], 16))
