from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from daedap.evaluation import robustness as suite
from daedap.evaluation.robustness import Effect, disturbed
from daedap.evaluation.testset import EvalSet, EvalSettings, make_eval_set
from daedap.types import Pair, Reply

NOUNS = "밥물술옷집차책꽃별달해눈비강산길말글꿈손"
TEST = [Pair(f"{noun} 좋아해", f"{noun}이라면 정말 좋지요.", "0") for noun in NOUNS]
TRUTH = {pair.question: pair.answer for pair in TEST}


class Literal:
    """Knows each question only as it is written, and how to pass."""

    def answers(self, pairs: Sequence[Pair]) -> list[Reply]:
        return [Reply(one.question, TRUTH.get(one.question, "글쎄요"), "retrieved", 1.0) for one in pairs]

    def preferences(self, pairs: Sequence[Pair], candidates: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        asked = zip(pairs, candidates, strict=True)
        return np.array([[float(TRUTH.get(one.question) == answer) for answer in offered] for one, offered in asked])


def joined(question: str, rng: random.Random) -> str:
    """Half of the questions lose their space."""
    return question.replace(" ", "") if question[0] in NOUNS[:10] else question


def again(question: str, rng: random.Random) -> str:
    return question


def louder(question: str, rng: random.Random) -> str:
    return question + "!" * rng.randrange(1, 1000)


def eval_set(components: Sequence[int] = range(20)) -> EvalSet:
    return make_eval_set(TEST, components, TEST, EvalSettings(resamples=200))


@pytest.fixture(scope="module")
def effects() -> dict[str, Effect]:
    kinds = {"spacing": joined, "typo": again, "louder": louder}
    return {effect.kind: effect for effect in disturbed(Literal(), eval_set(), kinds)}


def test_only_changed_questions_count(effects: dict[str, Effect]) -> None:
    found = effects["spacing"]
    assert found.rows == 10
    assert found.clean and found.disturbed and found.difference and found.same_reply
    assert [found.clean.value, found.disturbed.value, found.difference.value, found.same_reply.value] == [1, 0, -1, 0]
    assert (found.difference.low, found.difference.high, found.difference.n) == (-1, -1, 10)


def test_a_kind_that_changes_nothing_has_no_scores(effects: dict[str, Effect]) -> None:
    assert effects["typo"] == Effect("typo", 0, None, None, None, None)


def test_the_interval_is_that_of_the_difference() -> None:
    class Half(Literal):
        """Reads questions without spaces as well, where the noun is one of the first five."""

        def preferences(self, pairs: Sequence[Pair], candidates: Sequence[Sequence[str]]) -> NDArray[np.float64]:
            texts = [pair.question for pair in pairs]
            read = [Pair(f"{text[0]} 좋아해" if text[0] in NOUNS[:5] else text, "") for text in texts]
            return super().preferences(read, candidates)

    (one_by_one,) = disturbed(Half(), eval_set(), {"spacing": joined})
    (in_fives,) = disturbed(Half(), eval_set([row // 5 for row in range(20)]), {"spacing": joined})
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


def test_the_dice_hang_on_the_pair_and_the_kind() -> None:
    thrown: list[tuple[str, float]] = []

    def note(question: str, rng: random.Random) -> str:
        thrown.append((question, rng.random()))
        return question

    disturbed(Literal(), eval_set(), {"typo": note})
    first = dict(thrown)
    disturbed(Literal(), make_eval_set(TEST[::-1], range(20), TEST, EvalSettings()), {"typo": note})
    assert dict(thrown) == first
    disturbed(Literal(), eval_set(), {"laughter": note})
    assert len({*thrown}) == 40


def test_replies_are_the_same_by_comparison_form() -> None:
    class Wavering(Literal):
        def answers(self, pairs: Sequence[Pair]) -> list[Reply]:
            texts = [pair.question for pair in pairs]
            return [Reply(text, "그래요!" if "!" in text else "그래요.", "generated", 0.0) for text in texts]

    (effect,) = disturbed(Wavering(), eval_set(), {"louder": louder})
    assert effect.same_reply
    assert effect.same_reply.value == 1


def test_table_and_json(effects: dict[str, Effect]) -> None:
    lines = suite.lines(list(effects.values()), 20)
    assert lines[0].split("  ")[0] == "disturbed questions"
    assert lines[1].split()[:2] == ["spaces", "10"]
    assert [part.strip() for part in lines[1].split("  ") if "[" in part] == [
        "100.0 [100.0, 100.0]",
        "0.0 [0.0, 0.0]",
        "-100.0 [-100.0, -100.0]",
        "0.0 [0.0, 0.0]",
    ]
    assert lines[2].split() == ["typing", "slips", "0", "-", "-", "-", "-"]
    assert lines[3].startswith("louder ")
    document = suite.to_json(list(effects.values()))
    assert document["spacing"]["difference"] == {"value": -1, "low": -1, "high": -1, "n": 10}
    assert document["typo"] == {"rows": 0, "clean": None, "disturbed": None, "difference": None, "same_reply": None}
