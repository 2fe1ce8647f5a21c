"""Robustness of a bot: perturbed questions and paraphrases."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from daedap.data.doctor import load
from daedap.errors import DataError
from daedap.evaluation.robustness import (
    Paraphrase,
    PerturbationEffect,
    measure_robustness,
    read_paraphrases,
    robustness_json,
    robustness_table,
    score_paraphrases,
)
from daedap.evaluation.testset import EvalSet, EvalSettings, make_eval_set
from daedap.retrieval.small_talk import STARTER
from daedap.types import Pair, Reply

NOUNS = "밥물술옷집차책꽃별달해눈비강산길말글꿈손"
TEST = [Pair(f"{noun} 좋아해", f"{noun}이라면 정말 좋지요.", "0") for noun in NOUNS]
TRUTH = {pair.question: pair.answer for pair in TEST}


class ExactMatch:
    """Knows each question only as it is written; anything else gets a fallback."""

    def answers(self, pairs: Sequence[Pair]) -> list[Reply]:
        return [Reply(one.question, TRUTH.get(one.question, "글쎄요"), "retrieved", 1.0) for one in pairs]

    def preferences(self, pairs: Sequence[Pair], candidates: Sequence[Sequence[str]]) -> NDArray[np.float64]:
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

        def preferences(self, pairs: Sequence[Pair], candidates: Sequence[Sequence[str]]) -> NDArray[np.float64]:
            texts = [pair.question for pair in pairs]
            read = [Pair(f"{text[0]} 좋아해" if text[0] in NOUNS[:5] else text, "") for text in texts]
            return super().preferences(read, candidates)

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
        def answers(self, pairs: Sequence[Pair]) -> list[Reply]:
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


# ---- paraphrases ----

KNOWN = [Pair("배고파", "얼른 드세요."), Pair("졸려", "푹 자요"), Pair("자고 싶어", "눈 좀 붙여요")]


class Sleepy:
    """Answers everything as if it were about sleep."""

    def answers(self, pairs: Sequence[Pair]) -> list[Reply]:
        texts = [pair.question for pair in pairs]
        return [Reply(text, "푹 자요!!" if "잠" in text else "글쎄요", "generated", -1.0) for text in texts]

    def preferences(self, pairs: Sequence[Pair], candidates: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        return np.zeros((len(pairs), len(candidates[0])))


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    file = folder / "바꿔 말하기.csv"
    file.write_bytes(text.encode(encoding))
    return file


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949"])
def test_answers_in_the_file(tmp_path: Path, encoding: str) -> None:
    text = 'question,answers\r\n잠이 와,푹 자요|눈 좀 붙여요\r\n"밥, 밥을 줘",얼른 드세요.\r\n\r\n'
    assert read_paraphrases(write(tmp_path, text, encoding), []) == [
        Paraphrase("잠이 와", ("푹 자요", "눈 좀 붙여요")),
        Paraphrase("밥, 밥을 줘", ("얼른 드세요.",)),
    ]


def test_answers_by_id(tmp_path: Path) -> None:
    ids = "|".join(pair.id for pair in KNOWN[1:])
    file = write(tmp_path, f"\n label , Question,answer_ids\n0,잠이 와, {ids} \n")
    assert read_paraphrases(file, KNOWN) == [Paraphrase("잠이 와", ("푹 자요", "눈 좀 붙여요"))]
    with pytest.raises(DataError, match=rf"말하기\.csv, line 3: no pair has the id {KNOWN[1].id}\. Use a run"):
        read_paraphrases(file, KNOWN[:1])


def test_the_built_in_paraphrases_can_be_read() -> None:
    pairs = load(STARTER).pairs
    result = read_paraphrases(STARTER.with_name("starter_paraphrases.csv"), pairs)
    assert len(result) == 300
    answers = {pair.answer for pair in pairs}
    assert all({*paraphrase.answers} <= answers for paraphrase in result)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", "no columns question and answers"),
        ("질문,답변\n잠이 와,푹 자요\n", "its first row is: 질문,답변 Write these names"),
        ("question,label\n잠이 와,0\n", "no columns question and answers"),
        ('"question,answers\n', "no columns question and answers"),
        ("question,answers\n", "holds only a header"),
        ("question,answers\n잠이 와,푹 자요\n배고파\n", "line 3: no question with its right answers, but: 배고파"),
        ("question,answers\n밥, 밥을 줘,얼른 드세요.\n", "line 2: .*between double quotes"),
        ("question,answers\n,푹 자요\n", "line 2: "),
        ("question,answers\n\n잠이 와, \n", "line 3: "),
        ("question,answers\n잠이 와,푹 자요|\n", "line 2: "),
        ('question,answers\n잠이 와,"푹 자요\n', "line 2: "),
        ("question,answers\n\x00,푹 자요\n", "line 2: a NUL byte"),
    ],
)
def test_unreadable_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_paraphrases(write(tmp_path, text), KNOWN)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="doesn't exist"):
        read_paraphrases(tmp_path / "a.csv", KNOWN)
    with pytest.raises(DataError, match="is a folder"):
        read_paraphrases(tmp_path, KNOWN)


def test_replies_are_right_by_comparison_form() -> None:
    paraphrases = [Paraphrase("잠이 와", ("푹 자요", "눈 좀 붙여요")), Paraphrase("굶었어", ("얼른 드세요.",))]
    result = score_paraphrases(Sleepy(), paraphrases)
    assert (result.right.value, result.right.n) == (0.5, 2)
    assert [(reply.question, right) for reply, right in result.replies] == [("잠이 와", True), ("굶었어", False)]
    document = result.to_json()
    assert document["right"]["value"] == 0.5
    assert document["replies"][1] == {"question": "굶었어", "answer": "글쎄요", "source": "generated", "right": False}
    assert result.lines() == ["Paraphrases answered exactly right (%): 50.0 [0.0, 100.0] (n=2)"]


def test_paraphrases_of_one_answer_are_one_bootstrap_group() -> None:
    paraphrases = [Paraphrase(f"잠이 와 {i}", ("푹 자요",)) for i in range(50)]
    assert score_paraphrases(Sleepy(), paraphrases).right.low is None  # one answer, so one component
    more = score_paraphrases(
        Sleepy(), [*paraphrases, *(Paraphrase(f"굶었어 {i}", (f"드세요 {i}",)) for i in range(50))]
    )
    assert more.right.value == 0.5
    assert more.right.low is not None
    assert more.right.low < 0.2  # 50 rows that are one make it wide
