from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from daedap.data.doctor import load
from daedap.errors import DataError
from daedap.evaluation.robustness import Paraphrase, answer_paraphrases, read_paraphrases
from daedap.retrieval.small_talk import STARTER
from daedap.types import Pair, Reply

KNOWN = [Pair("배고파", "얼른 드세요."), Pair("졸려", "푹 자요"), Pair("자고 싶어", "눈 좀 붙여요")]


class Sleepy:
    """Answers everything as if it were about sleep."""

    def answers(self, pairs: Sequence[Pair]) -> list[Reply]:
        texts = [pair.question for pair in pairs]
        return [Reply(text, "푹 자요!!" if "잠" in text else "글쎄요", "generated", -1.0) for text in texts]

    def preferences(self, pairs: Sequence[Pair], candidates: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        return np.zeros((len(pairs), len(candidates[0])))


def written(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    file = folder / "바꿔 말하기.csv"
    file.write_bytes(text.encode(encoding))
    return file


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949"])
def test_answers_stand_in_the_file(tmp_path: Path, encoding: str) -> None:
    text = 'question,answers\r\n잠이 와,푹 자요|눈 좀 붙여요\r\n"밥, 밥을 줘",얼른 드세요.\r\n\r\n'
    assert read_paraphrases(written(tmp_path, text, encoding), []) == [
        Paraphrase("잠이 와", ("푹 자요", "눈 좀 붙여요")),
        Paraphrase("밥, 밥을 줘", ("얼른 드세요.",)),
    ]


def test_or_they_are_named_by_their_ids(tmp_path: Path) -> None:
    ids = "|".join(pair.id for pair in KNOWN[1:])
    file = written(tmp_path, f"\n label , Question,answer_ids\n0,잠이 와, {ids} \n")
    assert read_paraphrases(file, KNOWN) == [Paraphrase("잠이 와", ("푹 자요", "눈 좀 붙여요"))]
    with pytest.raises(DataError, match=rf"말하기\.csv, line 3: no pair has the id {KNOWN[1].id}\. Use a run"):
        read_paraphrases(file, KNOWN[:1])


def test_the_built_in_paraphrases_can_be_read() -> None:
    pairs = load(STARTER).pairs
    found = read_paraphrases(STARTER.with_name("starter_paraphrases.csv"), pairs)
    assert len(found) == 300
    answers = {pair.answer for pair in pairs}
    assert all({*paraphrase.answers} <= answers for paraphrase in found)


@pytest.mark.parametrize(
    ("text", "told"),
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
def test_what_can_not_be_read_is_said(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        read_paraphrases(written(tmp_path, text), KNOWN)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="doesn't exist"):
        read_paraphrases(tmp_path / "a.csv", KNOWN)
    with pytest.raises(DataError, match="is a folder"):
        read_paraphrases(tmp_path, KNOWN)


def test_replies_are_right_by_comparison_form() -> None:
    asked = [Paraphrase("잠이 와", ("푹 자요", "눈 좀 붙여요")), Paraphrase("굶었어", ("얼른 드세요.",))]
    found = answer_paraphrases(Sleepy(), asked)
    assert (found.right.value, found.right.n) == (0.5, 2)
    assert [(reply.question, right) for reply, right in found.replies] == [("잠이 와", True), ("굶었어", False)]
    document = found.to_json()
    assert document["right"]["value"] == 0.5
    assert document["replies"][1] == {"question": "굶었어", "answer": "글쎄요", "source": "generated", "right": False}
    assert found.lines() == ["Paraphrases answered exactly right (%): 50.0 [0.0, 100.0] (n=2)"]


def test_paraphrases_of_one_answer_stand_or_fall_together() -> None:
    asked = [Paraphrase(f"잠이 와 {i}", ("푹 자요",)) for i in range(50)]
    assert answer_paraphrases(Sleepy(), asked).right.low is None  # one answer, so one component
    more = answer_paraphrases(Sleepy(), [*asked, *(Paraphrase(f"굶었어 {i}", (f"드세요 {i}",)) for i in range(50))])
    assert more.right.value == 0.5
    assert more.right.low is not None
    assert more.right.low < 0.2  # 50 rows that are one make it wide
