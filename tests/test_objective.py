"""The objective of a search, on models with known probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from conftest import PAIRS

from daedap.errors import SettingsError
from daedap.evaluation.metrics import characters
from daedap.tuning.objective import GROUP, DevRows, measure_objective, split_dev
from daedap.tuning.result import versus_defaults
from daedap.types import Float64Array, Pair

COMPONENTS = [str(row) for row in range(len(PAIRS))]
ANSWER_OF = {pair.question: pair.answer for pair in PAIRS}


def ignorant(pairs: Sequence[Pair]) -> Float64Array:
    """Two bits a character, whatever is asked."""
    size = characters([pair.answer for pair in pairs])
    return np.stack([-2 * size, size], axis=1)


def attentive(bits: float) -> object:
    """The same with the right question, so many bits less likely after every other one."""

    def scorer(pairs: Sequence[Pair]) -> Float64Array:
        scores = ignorant(pairs)
        scores[:, 0] -= [0.0 if ANSWER_OF[pair.question] == pair.answer else bits for pair in pairs]
        return scores

    return scorer


@pytest.fixture(scope="module")
def rows() -> DevRows:
    return split_dev(PAIRS, COMPONENTS)[0]


def test_halves_share_no_component_and_do_not_hang_on_the_order() -> None:
    components = [str(row // 2) for row in range(len(PAIRS))]
    selection, comparison = split_dev(PAIRS, components)
    assert not {*selection.components} & {*comparison.components}
    assert min(len(selection.pairs), len(comparison.pairs)) >= 2 * GROUP
    again = split_dev(PAIRS[::-1], components[::-1])
    assert [half.pairs for half in again] == [selection.pairs, comparison.pairs]


def test_no_group_has_a_question_or_an_answer_twice() -> None:
    doubled = [Pair(pair.question, PAIRS[row % 5].answer, "") for row, pair in enumerate(PAIRS)]
    for half in split_dev(doubled, COMPONENTS):
        assert len(half.pairs) % GROUP == 0
        for start in range(0, len(half.pairs), GROUP):
            group = half.pairs[start : start + GROUP]
            assert len({pair.answer for pair in group}) == len({pair.question for pair in group}) == GROUP


def test_too_few_dev_rows() -> None:
    with pytest.raises(SettingsError, match="12 dev rows are too few to compare settings"):
        split_dev(PAIRS[:12], COMPONENTS[:12])


def test_a_model_that_ignores_questions_gains_nothing(rows: DevRows) -> None:
    terms = measure_objective(ignorant, rows)
    assert terms.gain == pytest.approx(0)
    assert terms.bpc == terms.score == pytest.approx(2)


def test_the_gain_is_two_bits_at_most(rows: DevRows) -> None:
    for bits in (1, 3, 100):
        terms = measure_objective(attentive(bits), rows)  # type: ignore[arg-type]
        assert terms.gain == pytest.approx(-math.log2((1 + 3 * 2.0**-bits) / 4))
        assert terms.bpc == pytest.approx(2)
    assert terms.gain == pytest.approx(2)


def test_a_confident_wrong_model_loses(rows: DevRows) -> None:
    assert measure_objective(attentive(-3), rows).gain < -2  # type: ignore[arg-type]


def test_higher_gain_does_not_make_up_for_worse_bpc(rows: DevRows) -> None:
    def forgetful(pairs: Sequence[Pair]) -> Float64Array:
        return np.asarray(2 * attentive(1)(pairs))  # type: ignore[operator]

    good, bad = measure_objective(attentive(1), rows), measure_objective(forgetful, rows)  # type: ignore[arg-type]
    assert bad.gain > good.gain
    assert bad.score > good.score


def test_differences_are_paired(rows: DevRows) -> None:
    noise = np.random.default_rng(0).normal(30, 10, len(rows.pairs))
    difference = versus_defaults((noise - 1).tolist(), noise.tolist(), rows)
    size = characters([pair.answer for pair in rows.pairs])
    assert difference.value == pytest.approx(-len(rows.pairs) / size.sum())
    assert difference.low < difference.value < difference.high < 0
