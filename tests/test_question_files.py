"""Files of paraphrases and of questions out of scope."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from openpyxl import Workbook

from daedap.data.doctor import load
from daedap.data.reader import STARTER
from daedap.errors import DataError
from daedap.evaluation.question_files import EvalQuestion, read_out_of_scope, read_paraphrases
from daedap.types import Pair

KNOWN = [Pair("배고파", "얼른 드세요."), Pair("졸려", "푹 자요"), Pair("자고 싶어", "눈 좀 붙여요")]
PARAPHRASES = [
    EvalQuestion("잠이 와", ("푹 자요", "눈 좀 붙여요"), "words"),
    EvalQuestion("밥, 밥을 줘", ("얼른 드세요.",), "casual"),
]
OUTSIDE = [EvalQuestion("주식 살까?", (), "far"), EvalQuestion("너, 몇 살이야?", (), "chat")]


def write(folder: Path, text: str, name: str = "질문.csv", encoding: str = "utf-8") -> Path:
    file = folder / name
    file.write_bytes(text.encode(encoding))
    return file


def workbook(folder: Path, rows: list[list[str]]) -> Path:
    book = Workbook()
    assert book.active
    for row in rows:
        book.active.append(row)
    book.save(folder / "질문.xlsx")
    return folder / "질문.xlsx"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949"])
@pytest.mark.parametrize("header", ["question,answers,kind", "질문,답변,유형", " Question ,답변, kind"])
def test_paraphrases_in_a_text_table(tmp_path: Path, encoding: str, header: str) -> None:
    rows = '잠이 와,푹 자요|눈 좀 붙여요,words\r\n"밥, 밥을 줘",얼른 드세요.,casual\r\n\r\n'
    assert read_paraphrases(write(tmp_path, f"{header}\r\n{rows}", encoding=encoding), []) == PARAPHRASES


def test_paraphrases_in_a_workbook_and_in_json(tmp_path: Path) -> None:
    rows = [["질문", "답변", "유형"], *([one.question, "|".join(one.answers), one.kind] for one in PARAPHRASES)]
    assert read_paraphrases(workbook(tmp_path, rows), []) == PARAPHRASES
    lines = [{"question": one.question, "answer": list(one.answers), "kind": one.kind} for one in PARAPHRASES]
    file = write(tmp_path, "".join(json.dumps(line) + "\n" for line in lines), "질문.jsonl")
    assert read_paraphrases(file, []) == PARAPHRASES


def test_answers_by_id(tmp_path: Path) -> None:
    ids = "|".join(pair.id for pair in KNOWN[1:])
    file = write(tmp_path, f"\n label ,question,answer_ids\n0,잠이 와, {ids} \n")
    assert read_paraphrases(file, KNOWN) == [EvalQuestion("잠이 와", ("푹 자요", "눈 좀 붙여요"), "0")]
    with pytest.raises(DataError, match=rf"질문\.csv, line 3: no pair has the id {KNOWN[1].id}\. Use a run"):
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
        ("\n\n", "is empty"),
        ("question,label\n잠이 와,0\n", "no columns question and answers"),
        ("번호,날짜\n1,2024-01-02\n2,2024-01-03\n", "its first row is: 번호,날짜 Write these names"),
        ("question,answers\n", "holds only a header"),
        ("question,answers\n잠이 와,푹 자요\n배고파\n", "line 3: no question with its right answers, but: 배고파"),
        ("question,answers\n밥, 밥을 줘,얼른 드세요.\n", "line 2: .*between double quotes"),
        ("question,answers\n,푹 자요\n", "line 2: "),
        ("question,answers\n\n잠이 와, \n", "line 3: "),
        ("question,answers\n잠이 와,푹 자요|\n", "line 2: "),
        ("question,answers\n\x00,푹 자요\n", "line 2: a NUL byte"),
    ],
)
def test_unreadable_paraphrases_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_paraphrases(write(tmp_path, text), KNOWN)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'question,kind\n주식 살까?,far\n"너, 몇 살이야?",chat\n'),
        ("a.csv", '유형,질문\nfar,주식 살까?\nchat,"너, 몇 살이야?"\n'),
        ("a.tsv", "질문\t유형\n주식 살까?\tfar\n너, 몇 살이야?\tchat\n"),
        ("a.jsonl", '{"question": "주식 살까?", "kind": "far"}\n{"question": "너, 몇 살이야?", "kind": "chat"}\n'),
    ],
)
def test_questions_out_of_scope(tmp_path: Path, name: str, text: str) -> None:
    assert read_out_of_scope(write(tmp_path, text, name)) == OUTSIDE


@pytest.mark.parametrize("header", ["", "질문\n", "question\n"])
def test_a_question_a_line(tmp_path: Path, header: str) -> None:
    file = write(tmp_path, f"{header}주식 살까?\n너, 몇 살이야?\n", "a.txt")
    assert [one.question for one in read_out_of_scope(file)] == ["주식 살까?", "너, 몇 살이야?"]
    rows = [[one.question] for one in OUTSIDE]
    assert [one.question for one in read_out_of_scope(workbook(tmp_path, rows))] == ["주식 살까?", "너, 몇 살이야?"]


def test_files_without_questions(tmp_path: Path) -> None:
    for text in ("질문\n", "question,kind\n", "question,kind\n,far\n"):
        with pytest.raises(DataError, match="holds only a header"):
            read_out_of_scope(write(tmp_path, text))
    for read in (read_out_of_scope, lambda file: read_paraphrases(file, [])):
        with pytest.raises(DataError, match="doesn't exist"):
            read(tmp_path / "a.csv")
        with pytest.raises(DataError, match="is a folder"):
            read(tmp_path)
