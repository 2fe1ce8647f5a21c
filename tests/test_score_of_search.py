"""The dev score: models whose probabilities are known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from conftest import PAIRS

from daedap.errors import SettingsError
from daedap.evaluation.metrics import FloatArray, characters
from daedap.tuning.objective import GROUP, Rows, difference, halve, mark
from daedap.types import Pair

COMPONENTS = [str(row) for row in range(len(PAIRS))]
ANSWER_OF = {pair.question: pair.answer for pair in PAIRS}


def deaf(pairs: Sequence[Pair]) -> FloatArray:
    """Two bits a character, whatever is asked."""
    size = characters([pair.answer for pair in pairs])
    return np.stack([-2 * size, size], axis=1)


def attentive(bits: float) -> object:
    """The same with the right question, so many bits less likely after every other one."""

    def scorer(pairs: Sequence[Pair]) -> FloatArray:
        scores = deaf(pairs)
        scores[:, 0] -= [0.0 if ANSWER_OF[pair.question] == pair.answer else bits for pair in pairs]
        return scores

    return scorer


@pytest.fixture(scope="module")
def rows() -> Rows:
    return halve(PAIRS, COMPONENTS)[0]


def test_halves_share_no_component_and_do_not_hang_on_the_order() -> None:
    components = [str(row // 2) for row in range(len(PAIRS))]
    choosing, comparing = halve(PAIRS, components)
    assert not {*choosing.components} & {*comparing.components}
    assert min(len(choosing.pairs), len(comparing.pairs)) >= 2 * GROUP
    again = halve(PAIRS[::-1], components[::-1])
    assert [half.pairs for half in again] == [choosing.pairs, comparing.pairs]


def test_no_group_has_a_question_or_an_answer_twice() -> None:
    doubled = [Pair(pair.question, PAIRS[row % 5].answer, "") for row, pair in enumerate(PAIRS)]
    for half in halve(doubled, COMPONENTS):
        assert len(half.pairs) % GROUP == 0
        for start in range(0, len(half.pairs), GROUP):
            group = half.pairs[start : start + GROUP]
            assert len({pair.answer for pair in group}) == len({pair.question for pair in group}) == GROUP


def test_too_few_dev_rows() -> None:
    with pytest.raises(SettingsError, match="12 dev rows are too few to tell settings apart"):
        halve(PAIRS[:12], COMPONENTS[:12])


def test_a_model_that_ignores_questions_gains_nothing(rows: Rows) -> None:
    marks = mark(deaf, rows)
    assert marks.gain == pytest.approx(0)
    assert marks.bpc == marks.score == pytest.approx(2)


def test_the_gain_is_two_bits_at_most(rows: Rows) -> None:
    for bits in (1, 3, 100):
        marks = mark(attentive(bits), rows)  # type: ignore[arg-type]
        assert marks.gain == pytest.approx(-math.log2((1 + 3 * 2.0**-bits) / 4))
        assert marks.bpc == pytest.approx(2)
    assert marks.gain == pytest.approx(2)


def test_who_is_sure_and_wrong_pays(rows: Rows) -> None:
    assert mark(attentive(-3), rows).gain < -2  # type: ignore[arg-type]


def test_writing_worse_is_not_made_up_by_being_surprised(rows: Rows) -> None:
    def forgetful(pairs: Sequence[Pair]) -> FloatArray:
        return np.asarray(2 * attentive(1)(pairs))  # type: ignore[operator]

    good, bad = mark(attentive(1), rows), mark(forgetful, rows)  # type: ignore[arg-type]
    assert bad.gain > good.gain
    assert bad.score > good.score


def test_differences_are_paired(rows: Rows) -> None:
    noise = np.random.default_rng(0).normal(30, 10, len(rows.pairs))
    value, interval = difference(noise - 1, noise, rows)
    size = characters([pair.answer for pair in rows.pairs])
    assert value == pytest.approx(-len(rows.pairs) / size.sum())
    assert interval.low < value < interval.high < 0
