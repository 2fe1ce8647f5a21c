from __future__ import annotations

from pathlib import Path

import pytest

from daedap.data.tables import Part, choose, is_header
from daedap.errors import DataError

FILE = Path("말뭉치.csv")


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAEDAP_LANG", "en")


def chosen(
    header: str, question: str | None = None, answer: str | None = None, label: str | None = None, keys: bool = False
) -> tuple[int, int, int | None, bool]:
    wanted: dict[Part, str | None] = {"question": question, "answer": answer, "label": label}
    columns = choose(header.split(","), wanted, FILE, keys=keys)
    return columns.question.index, columns.answer.index, columns.label.index if columns.label else None, columns.header


@pytest.mark.parametrize(
    ("header", "places"),
    [
        ("Q,A,label", (0, 1, 2)),
        ("QUESTION , Answer", (0, 1, None)),
        ("답변,질문,감정", (1, 0, 2)),
        ("대분류,발화,응답", (1, 2, None)),
        ("사용자,챗봇", (0, 1, None)),
        ("user,bot", (0, 1, None)),
        ("prompt,completion,category", (0, 1, 2)),
        ("id,instruction,input,output", (1, 3, None)),
        ("user,question,answer,system", (1, 2, None)),
        ("번호,질문(Q),대답(A),라벨", (1, 2, 3)),
        ("질문 내용,답변 내용", (0, 1, None)),
        ("문장,답변", (0, 1, None)),
    ],
)
def test_found_by_name(header: str, places: tuple[int, int, int | None]) -> None:
    assert chosen(header) == (*places, True)


def test_found_by_position_without_a_header() -> None:
    assert chosen("안녕,반가워") == (0, 1, None, False)
    assert chosen("안녕,반가워,0") == (0, 1, 2, False)
    assert chosen("a,안녕,반가워,b") == (0, 1, None, False)


def test_a_letter_alone_makes_no_header() -> None:
    assert not is_header(["A", "그건 에이예요"])
    assert is_header(["q", "a"])


def test_chosen_by_the_user() -> None:
    assert chosen("번호,글,댓글,분류", question="글", answer="댓글") == (1, 2, 3, True)
    assert chosen("번호,글,댓글,분류", question="2", answer="3") == (1, 2, None, False)
    assert chosen("질문,답변,다른 답변", answer="3") == (0, 2, None, True)
    assert chosen("안녕,반가워,0", question="2", answer="1") == (1, 0, 2, False)


def test_a_wrong_name_suggests_a_near_one() -> None:
    with pytest.raises(
        DataError, match=r"no column Qestion; its columns are id, Question, Answer\. Did you mean Question"
    ):
        chosen("id,Question,Answer", question="Qestion")


def test_a_wrong_number_lists_the_columns() -> None:
    with pytest.raises(DataError, match=r"no column 4; its columns are 질문, 답변, 라벨\. Give one of"):
        chosen("질문,답변,라벨", label="4")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("질문", "only one column"),
        ("번호,질문", "named like an answer; the columns are 번호, 질문.*--answer-column"),
        ("번호,글쓴이,답변", "named like a question.*--question-column"),
    ],
)
def test_what_cannot_be_told(header: str, message: str) -> None:
    with pytest.raises(DataError, match=f"말뭉치.csv.*{message}"):
        chosen(header)


def test_one_column_cannot_be_both() -> None:
    with pytest.raises(DataError, match="chosen twice"):
        chosen("질문,답변", question="1", answer="질문")


def test_keys_have_no_positions() -> None:
    with pytest.raises(DataError, match="named like a question"):
        chosen("글,댓글", keys=True)
    with pytest.raises(DataError, match="named like an answer"):
        chosen("질문,출처", keys=True)
