"""Robustness of a bot: perturbed questions."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from daedap.evaluation.evaluate import (
    PerturbationEffect,
    measure_robustness,
    robustness_json,
    robustness_table,
)
from daedap.evaluation.testset import EvalSet, EvalSettings, make_eval_set
from daedap.types import Pair, Reply

NOUNS = "밥물술옷집차책꽃별달해눈비강산길말글꿈손"
TEST = [Pair(f"{noun} 좋아해", f"{noun}이라면 정말 좋지요.", "0") for noun in NOUNS]
TRUTH = {pair.question: pair.answer for pair in TEST}


class ExactMatch:
    """Knows each question only as it is written; anything else gets a fallback."""

    def reply_to_pairs(self, pairs: Sequence[Pair]) -> list[Reply]:
        return [Reply(one.question, TRUTH.get(one.question, "글쎄요"), "retrieved", 1.0) for one in pairs]

    def score_candidates(self, pairs: Sequence[Pair], candidates: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        rows = zip(pairs, candidates, strict=True)
        return np.array([[float(TRUTH.get(one.question) == answer) for answer in offered] for one, offered in rows])


def without_space(question: str, rng: random.Random) -> str:
    """Half of the questions lose their space."""
    return question.replace(" ", "") if question[0] in NOUNS[:10] else question


def unchanged(question: str, rng: random.Random) -> str:
    return question


def louder(question: str, rng: random.Random) -> str:
    return question + "!" * rng.randrange(1, 1000)


def eval_set(components: Sequence[int] = range(20)) -> EvalSet:
    return make_eval_set(TEST, components, TEST, EvalSettings(resamples=200))


@pytest.fixture(scope="module")
def effects() -> dict[str, PerturbationEffect]:
    kinds = {"spacing": without_space, "typo": unchanged, "louder": louder}
    return {effect.kind: effect for effect in measure_robustness(ExactMatch(), eval_set(), kinds)}


def test_only_changed_questions_count(effects: dict[str, PerturbationEffect]) -> None:
    spacing = effects["spacing"]
    assert spacing.rows == 10
    assert spacing.clean and spacing.disturbed and spacing.difference and spacing.same_reply
    assert [spacing.clean.value, spacing.disturbed.value, spacing.difference.value, spacing.same_reply.value] == [
        1,
        0,
        -1,
        0,
    ]
    assert (spacing.difference.low, spacing.difference.high, spacing.difference.n) == (-1, -1, 10)


def test_a_kind_that_changes_nothing_has_no_scores(effects: dict[str, PerturbationEffect]) -> None:
    assert effects["typo"] == PerturbationEffect("typo", 0, None, None, None, None)


def test_the_interval_is_that_of_the_difference() -> None:
    class Half(ExactMatch):
        """Reads questions without spaces as well, where the noun is one of the first five."""

        def score_candidates(self, pairs: Sequence[Pair], candidates: Sequence[Sequence[str]]) -> NDArray[np.float64]:
            texts = [pair.question for pair in pairs]
            read = [Pair(f"{text[0]} 좋아해" if text[0] in NOUNS[:5] else text, "") for text in texts]
            return super().score_candidates(read, candidates)

    (one_by_one,) = measure_robustness(Half(), eval_set(), {"spacing": without_space})
    (in_fives,) = measure_robustness(Half(), eval_set([row // 5 for row in range(20)]), {"spacing": without_space})
    for effect in (one_by_one, in_fives):
        assert effect.difference
        assert effect.difference.value == -0.5
        assert effect.difference.low is not None
        assert effect.difference.high is not None
        assert effect.difference.low < -0.5 < effect.difference.high
    (alone,), (together,) = ([effect.difference.low] for effect in (one_by_one, in_fives) if effect.difference)
    assert together == -1  # a component stands or falls as a whole
    assert alone is not None
    assert alone > -1


def test_randomness_depends_on_pair_and_kind_only() -> None:
    drawn: list[tuple[str, float]] = []

    def record(question: str, rng: random.Random) -> str:
        drawn.append((question, rng.random()))
        return question

    measure_robustness(ExactMatch(), eval_set(), {"typo": record})
    first = dict(drawn)
    measure_robustness(ExactMatch(), make_eval_set(TEST[::-1], range(20), TEST, EvalSettings()), {"typo": record})
    assert dict(drawn) == first
    measure_robustness(ExactMatch(), eval_set(), {"laughter": record})
    assert len({*drawn}) == 40


def test_replies_are_the_same_by_comparison_form() -> None:
    class Wavering(ExactMatch):
        def reply_to_pairs(self, pairs: Sequence[Pair]) -> list[Reply]:
            texts = [pair.question for pair in pairs]
            return [Reply(text, "그래요!" if "!" in text else "그래요.", "generated", 0.0) for text in texts]

    (effect,) = measure_robustness(Wavering(), eval_set(), {"louder": louder})
    assert effect.same_reply
    assert effect.same_reply.value == 1


def test_table_and_json(effects: dict[str, PerturbationEffect]) -> None:
    lines = robustness_table(list(effects.values()), 20)
    assert lines[0].split("  ")[0] == "disturbed questions"
    assert lines[1].split()[:2] == ["spaces", "10"]
    assert [part.strip() for part in lines[1].split("  ") if "[" in part] == [
        "100.0 [100.0, 100.0]",
        "0.0 [0.0, 0.0]",
        "-100.0 [-100.0, -100.0]",
        "0.0 [0.0, 0.0]",
    ]
    assert lines[2].split() == ["typos", "0", "-", "-", "-", "-"]
    assert lines[3].startswith("louder ")
    document = robustness_json(list(effects.values()))
    assert document["spacing"]["difference"] == {"value": -1, "low": -1, "high": -1, "n": 10}
    assert document["typo"] == {"rows": 0, "clean": None, "disturbed": None, "difference": None, "same_reply": None}
