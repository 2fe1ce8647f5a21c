from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from daedap.config import ReadOptions
from daedap.data.clean import BadRow
from daedap.data.reader import detect_source, read_pairs
from daedap.errors import DataError
from daedap.types import Message, Pair


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAEDAP_LANG", "en")


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def read(path: Path, **read_options: Any) -> list[Pair | BadRow]:
    return list(read_pairs(detect_source(path, ReadOptions(**read_options))))


def message(found: list[Pair | BadRow]) -> list[tuple[int, str, str]]:
    """Line, question and answer of pairs; line, kind and value of problems."""
    return [
        (row.line, row.question, row.answer) if isinstance(row, Pair) else (row.line, row.kind, row.value)
        for row in found
    ]


def refused(path: Path, message: str, **read_options: str) -> None:
    with pytest.raises(DataError, match=f"{re.escape(str(path))}.*{message}"):
        read(path, **read_options)


def test_csv_with_a_header(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "Q,A,label\r\n12시 땡!,하루가 또 가네요.,0\r\n안녕,반가워요,1\r\n")
    assert read(path) == [
        Pair("12시 땡!", "하루가 또 가네요.", "0", line=2),
        Pair("안녕", "반가워요", "1", line=3),
    ]
    source = detect_source(path)
    assert (source.format, source.encoding_name) == ("csv", "utf-8")
    assert source.columns is not None and source.columns.answer.name == "A"


def test_csv_without_a_header(tmp_path: Path) -> None:
    assert message(read(written(tmp_path, "a.csv", "안녕,반가워요\n잘 가,또 봐요\n"))) == [
        (1, "안녕", "반가워요"),
        (2, "잘 가", "또 봐요"),
    ]


@pytest.mark.parametrize(
    ("name", "delimiter", "format_"),
    [
        ("a.csv", ";", "csv"),
        ("a.csv", "\t", "tsv"),
        ("a.tsv", "\t", "tsv"),
        ("a.txt", "\t", "tsv"),
        ("a.txt", "|", "csv"),
    ],
)
def test_the_delimiter_is_told_though_sentences_hold_commas(
    tmp_path: Path, name: str, delimiter: str, format_: str
) -> None:
    lines = ["안녕, 나야|응, 반가워, 진짜", "밥, 먹었니|네, 먹었어요", "잘 가|또, 봐요"]
    path = written(tmp_path, name, "\n".join(lines).replace("|", delimiter))
    assert detect_source(path).format == format_
    assert message(read(path))[0] == (1, "안녕, 나야", "응, 반가워, 진짜")


def test_quoted_line_breaks_keep_the_line_numbers_right(tmp_path: Path) -> None:
    text = '질문,답변\n"첫째,\n둘째 ""줄""",그래요\n다음, "네, 다음이요"\n5" 화면,작아요\n'
    assert message(read(written(tmp_path, "a.csv", text))) == [
        (2, '첫째,\n둘째 "줄"', "그래요"),
        (4, "다음", "네, 다음이요"),
        (5, '5" 화면', "작아요"),
    ]


def test_an_unclosed_quote_costs_one_row(tmp_path: Path) -> None:
    text = '질문,답변\n"안녕,반가워\n' + "".join(f"질문 {i},답 {i}\n" for i in range(3000)) + '"끝,이에요\n'
    found = message(read(written(tmp_path, "a.csv", text)))
    assert found[0] == (2, "quote", '"안녕,반가워')
    assert found[1:3] == [(3, "질문 0", "답 0"), (4, "질문 1", "답 1")]
    assert found[-1] == (3003, "quote", '"끝,이에요')
    assert len(found) == 3002


def test_an_unclosed_quote_before_a_quoted_row(tmp_path: Path) -> None:
    found = message(read(written(tmp_path, "a.csv", '질문,답변\n"안녕,반가워\n그래,"네, 좋아"\n"밥","먹자"\n')))
    assert found == [(2, "quote", '"안녕,반가워'), (3, "그래", "네, 좋아"), (4, "밥", "먹자")]


def test_a_quote_in_a_tsv_is_a_letter(tmp_path: Path) -> None:
    text = '질문\t답변\n"안녕" 하고 웃더라\t왜 웃었을까요?\n"잘 가\t또 봐요\n'
    assert message(read(written(tmp_path, "a.tsv", text))) == [
        (2, '"안녕" 하고 웃더라', "왜 웃었을까요?"),
        (3, '"잘 가', "또 봐요"),
    ]


def test_wrong_numbers_of_fields_and_blank_lines(tmp_path: Path) -> None:
    text = "질문,답변\n안녕,반가워,친구\n안녕\n잘 가,또 봐,,\n\n밥,먹자\n\n\n"
    assert message(read(written(tmp_path, "a.csv", text))) == [
        (2, "fields", "안녕,반가워,친구"),
        (3, "fields", "안녕"),
        (4, "잘 가", "또 봐"),
        (5, "blank", ""),
        (6, "밥", "먹자"),
    ]


def test_a_broken_first_row_without_a_header(tmp_path: Path) -> None:
    text = "안녕,나야,반가워\n" + "밥 먹자,그래\n" * 5
    found = message(read(written(tmp_path, "a.csv", text)))
    assert found[:2] == [(1, "fields", "안녕,나야,반가워"), (2, "밥 먹자", "그래")]


def test_a_very_long_field(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", f'질문,답변\n"{"가" * 300_000}",길다\n')
    assert [len(row.question) for row in read(path) if isinstance(row, Pair)] == [300_000]


def test_columns_by_name_and_number(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "번호,글,댓글,분류\n1,안녕,반가워,인사\n")
    assert read(path, question_column="글", answer_column="댓글", label_column="분류") == [
        Pair("안녕", "반가워", "인사", line=2)
    ]
    refused(path, "no column 댓굴.*Did you mean 댓글", question_column="글", answer_column="댓굴")


def test_jsonl_of_pairs(tmp_path: Path) -> None:
    objects = [
        {"question": "안녕", "answer": "반가워", "label": 2},
        {"prompt": "밥?", "completion": "국밥"},
        {"instruction": "번역해 줘", "input": "hello", "output": "안녕"},
        {"question": "안녕", "source": "어디"},
        {"question": {"안녕": 1}, "answer": "응"},
        {"question": None, "answer": "응"},
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in objects]
    path = written(tmp_path, "a.jsonl", "\n".join(["", *lines, '{"question": "끊', "[1, 2]", "[" * 100_000, ""]))
    found = read(path)
    assert found[1:4] == [
        Pair("안녕", "반가워", "2", line=2),
        Pair("밥?", "국밥", line=3),
        Pair("번역해 줘\nhello", "안녕", line=4),
    ]
    kinds = [(row.line, row.kind) for row in found if isinstance(row, BadRow)]
    assert kinds == [(1, "blank"), (5, "keys"), (6, "keys"), (8, "json"), (9, "json"), (10, "json")]
    assert found[6] == Pair("", "응", line=7)


def test_jsonl_with_chosen_keys(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"글": "안녕", "댓글": "반가워"}\n')
    assert message(read(path, question_column="글", answer_column="댓글")) == [(1, "안녕", "반가워")]
    refused(path, "not clear which column.*Columns: 1 글 '안녕', 2 댓글 '반가워'")


def test_conversations_become_a_pair_for_every_answer(tmp_path: Path) -> None:
    turns = [("system", "친절해라"), ("user", "안녕"), ("assistant", "반가워"), ("user", "밥?"), ("assistant", "국밥!")]
    messages = [{"role": role, "content": text} for role, text in turns]
    shared = [{"from": "human", "value": "뭐 해"}, {"from": "gpt", "value": "쉬어"}]
    objects = [
        {"messages": messages, "label": "일상"},
        {"conversations": shared},
        {"messages": messages[:2]},
        {"messages": [3]},
    ]
    path = written(tmp_path, "a.jsonl", "\n".join(map(json.dumps, objects)))
    first, second, third, *problems = read(path)
    system = Message("system", "친절해라")
    assert first == Pair("안녕", "반가워", "일상", (system,), line=1, conversation_id="a.jsonl:1")
    assert isinstance(second, Pair)
    assert second.history == (system, Message("user", "안녕"), Message("assistant", "반가워"))
    assert (second.question, second.answer, second.conversation_id) == ("밥?", "국밥!", "a.jsonl:1")
    assert third == Pair("뭐 해", "쉬어", line=2, conversation_id="a.jsonl:2")
    assert [(row.line, row.kind) for row in problems if isinstance(row, BadRow)] == [(3, "turns"), (4, "turns")]


def workbook(path: Path, *table: tuple[object, ...]) -> Path:
    book = openpyxl.Workbook()
    sheet = book.create_sheet("자료")  # the first sheet stays empty
    for row in table:
        sheet.append(row)
    book.save(path)
    book.close()
    return path


def test_excel(tmp_path: Path) -> None:
    table = [("질문", "답변", "분류"), ("안녕", "반가워", 0), (None, None, None), ("3 더하기 4?", 7, None), ("밥?",)]
    found = read(workbook(tmp_path / "a.xlsx", *table))
    assert found == [
        Pair("안녕", "반가워", "0", line=2),
        BadRow(3, "blank", ""),
        Pair("3 더하기 4?", "7", line=4),
        Pair("밥?", "", line=5),
    ]


def test_excel_is_known_by_its_content(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", ("안녕", "반가워")).rename(tmp_path / "a.csv")
    assert detect_source(path).format == "xlsx"
    assert message(read(path)) == [(1, "안녕", "반가워")]


def test_a_damaged_workbook(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", ("안녕", "반가워"))
    data = path.read_bytes()
    at = data.index(b"xl/worksheets/sheet2.xml") + 40
    path.write_bytes(data[:at] + bytes(100) + data[at + 100 :])
    refused(path, "can't be read as an Excel workbook.*save it again")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "\n \n", "is empty"),
        ("a.csv", "질문,답변\n", "holds only a header"),
        ("a.csv", "안녕\n반가워\n", "has only one column"),
        ("a.jsonl", '[{"question": "안녕"}]', "only one column"),
        ("a.jsonl", "안녕,반가워\n", "no JSON objects; it begins: 안녕,반가워"),
        ("a.hwp", "안녕,반가워\n", "ending in '.hwp' can't be read.*xlsx"),
        ("a.xls", "<html><table><tr><td>질문</td></tr></table></html>", "a web page or XML.*save it as .xlsx"),
        ("a.csv", "\x0b<html><table><tr><td>질문</td></tr></table></html>", "a web page or XML.*save it as .xlsx"),
        ("대화.eml", "From: a@example.com\n\n안녕", "an e-mail.*save the .txt"),
    ],
)
def test_files_of_no_use(tmp_path: Path, name: str, text: str, message: str) -> None:
    refused(written(tmp_path, name, text), message)


@pytest.mark.parametrize(("name", "message"), [("a.xls", "the old Excel format"), ("a.xlsx", "has a password")])
def test_old_and_locked_workbooks(tmp_path: Path, name: str, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))
    refused(path, message)


def test_what_is_not_a_file(tmp_path: Path) -> None:
    refused(tmp_path, "is a folder")
    refused(tmp_path / "없음.csv", "doesn't exist. Check")
    written(tmp_path, "대화 자료.csv", "안녕,반가워")
    refused(tmp_path / "대화자료.csv", "doesn't exist. Did you mean .*대화 자료.csv")
    refused(tmp_path / ("가" * 300 + ".csv"), "can't be opened")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read every file")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "안녕,반가워")
    path.chmod(0)
    refused(path, "may not be read")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system")
def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.csv")
    refused(tmp_path / "a.csv", "not a regular file")


def test_a_speaker_is_for_chats(tmp_path: Path) -> None:
    refused(written(tmp_path, "a.csv", "안녕,반가워"), "not a KakaoTalk chat.*speaker 철수", speaker="철수")
