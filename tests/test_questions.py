from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from conftest import PAIRS

from daedap.cli import run as cli
from daedap.data.questions import read_questions
from daedap.errors import DataError
from daedap.runs import Run

QUESTIONS = ["주차 되나요?", "네, 몇 시에 열어요?", "환불되나요?"]
FILES = {
    "lines.txt": "주차 되나요?\n\n네, 몇 시에 열어요?\n환불되나요?\n",
    "header.csv": '질문\n주차 되나요?\n"네, 몇 시에 열어요?"\n환불되나요?\n',
    "lines.csv": '주차 되나요?\n"네, 몇 시에 열어요?"\n환불되나요?\n',
    "table.csv": '번호,분류,문의내용\n1,시설,주차 되나요?\n2,시간,"네, 몇 시에 열어요?"\n3,교환,환불되나요?\n',
    "pairs.csv": '질문,답변\n주차 되나요?,네 됩니다.\n"네, 몇 시에 열어요?",아홉 시요.\n환불되나요?,\n',
    "content.csv": '1,주차 되나요?\n2,"네, 몇 시에 열어요?"\n3,환불되나요?\n',
    "quoted.csv": '"1,주차 되나요?"\n"2,""네, 몇 시에 열어요?"""\n"3,환불되나요?"\n',
    "table.tsv": "id\t질문\n1\t주차 되나요?\n2\t네, 몇 시에 열어요?\n3\t환불되나요?\n",
    "objects.jsonl": "".join(json.dumps({"id": 1, "question": text}, ensure_ascii=False) + "\n" for text in QUESTIONS),
    "list.json": json.dumps([{"question": text} for text in QUESTIONS]),
}


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAEDAP_LANG", "en")


@pytest.mark.parametrize("name", FILES)
def test_questions_of_every_kind_of_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    assert list(read_questions(tmp_path / name)) == QUESTIONS


def test_questions_of_a_workbook(tmp_path: Path) -> None:
    book: Any = openpyxl.Workbook()
    for row in [
        ("자주 묻는 질문",),
        ("번호", "질문"),
        (1, QUESTIONS[0]),
        (2, QUESTIONS[1]),
        (3, None),
        (4, QUESTIONS[2]),
    ]:
        book.active.append(row)
    book.create_sheet("코드").append((1, 2))
    book.save(tmp_path / "a.xlsx")
    assert list(read_questions(tmp_path / "a.xlsx")) == QUESTIONS


def test_the_column_is_chosen(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "코너,글귀,글월\n배송,언제 와요?,내일 도착합니다.\n교환,바꿀 수 있나요?,네 됩니다.\n", encoding="utf-8"
    )
    with pytest.raises(DataError, match=r"1 '코너', 2 '글귀', 3 '글월'.*--question-column 2"):
        list(read_questions(path))
    assert list(read_questions(path, "글귀")) == ["언제 와요?", "바꿀 수 있나요?"]
    with pytest.raises(DataError, match="has no column 질문; its columns are 1 '코너'"):
        list(read_questions(path, "질문"))


def test_a_sheet_is_answered(trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book: Any = openpyxl.Workbook()
    for row in [("번호", "질문"), (1, PAIRS[0].question), (2, PAIRS[2].question)]:
        book.active.append(row)
    book.save(tmp_path / "q.xlsx")
    files = ["--in", str(tmp_path / "q.xlsx"), "--out", str(tmp_path / "a.jsonl")]
    assert cli(["answer", *files, "--runs", str(trained.folder.parent)]) == 0
    assert capsys.readouterr().out.startswith("2 replies written to")
    replies = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [reply["answer"] for reply in replies] == [PAIRS[0].answer, PAIRS[2].answer]
