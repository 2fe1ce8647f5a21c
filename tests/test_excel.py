from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from daedap.config import ReadOptions
from daedap.data.clean import BadRow
from daedap.data.doctor import check
from daedap.data.excel import format_cell
from daedap.data.reader import detect_source, read_pairs
from daedap.errors import DataError
from daedap.types import Pair

HEADER = ("질문", "답변")


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAEDAP_LANG", "en")


def workbook(path: Path, **sheets: Sequence[tuple[object, ...]]) -> Any:
    book = openpyxl.Workbook()
    del book["Sheet"]
    for name, table in sheets.items():
        sheet = book.create_sheet(name)
        for row in table:
            sheet.append(row)
    book.save(path)
    return book


def read(path: Path, sheet: str | None = None) -> list[Pair | BadRow]:
    return list(read_pairs(detect_source(path, ReadOptions(sheet=sheet))))


def texts(found: list[Pair | BadRow]) -> list[tuple[str, str]]:
    return [(row.question, row.answer) for row in found if isinstance(row, Pair)]


def test_all_sheets_with_pairs_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.xlsx"
    workbook(
        path,
        배송=[HEADER, ("언제 와요?", "내일 와요.")],
        교환=[("번호", *HEADER), (1, "바꿔 주세요", "네 바꿔 드려요.")],
        연락처=[("이름", "전화번호"), ("김철수", "02-000-0000")],
    )
    found = read(path)
    assert texts(found) == [("언제 와요?", "내일 와요."), ("바꿔 주세요", "네 바꿔 드려요.")]
    assert [(row.kind, row.value) for row in found if isinstance(row, BadRow)] == [("sheet", "연락처")]
    report = check(path)
    assert "sheets: 배송, 교환" in report.lines()
    assert (report.rows, report.usable, report.to_json()["sheets"]) == (2, 2, ["배송", "교환"])


def test_one_sheet_is_chosen(tmp_path: Path) -> None:
    path = tmp_path / "a.xlsx"
    workbook(path, 배송=[HEADER, ("언제 와요?", "내일 와요.")], 교환=[HEADER, ("바꿔 주세요", "네 바꿔 드려요.")])
    assert texts(read(path, sheet="교환")) == texts(read(path, sheet="2")) == [("바꿔 주세요", "네 바꿔 드려요.")]
    with pytest.raises(DataError, match="no sheet 환불; its sheets are 배송, 교환"):
        read(path, sheet="환불")
    (tmp_path / "a.csv").write_text("질문,답변\n안녕,네\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"not an Excel workbook.*Leave out --sheet"):
        read(tmp_path / "a.csv", sheet="1")


def test_hidden_sheets_and_rows_are_left_out_and_told(tmp_path: Path) -> None:
    path = tmp_path / "a.xlsx"
    book = workbook(
        path,
        옛것=[HEADER, ("옛 질문?", "옛 답이에요.")],
        새것=[HEADER, ("새 질문?", "새 답이에요."), ("숨은 질문?", "숨은 답이에요.")],
    )
    book["옛것"].sheet_state = "hidden"
    book["새것"].row_dimensions[3].hidden = True
    book.save(path)
    found = read(path)
    assert texts(found) == [("새 질문?", "새 답이에요.")]
    assert [(row.line, row.kind, row.value) for row in found if isinstance(row, BadRow)] == [
        (1, "hidden", "옛것"),
        (3, "hidden", "새것"),
    ]
    assert texts(read(path, sheet="옛것")) == [("옛 질문?", "옛 답이에요.")], "whoever names it wants it"


def test_merged_cells_are_filled_downwards(tmp_path: Path) -> None:
    path = tmp_path / "a.xlsx"
    table = [
        ("우리 가게 자주 묻는 질문",),
        (),
        ("구분", *HEADER),
        ("배송", "언제 와요?", "내일 와요."),
        (None, "얼마예요?", "삼천 원이에요."),
    ]
    book = workbook(path, 자료=table)
    book["자료"].merge_cells("A1:C1")
    book["자료"].merge_cells("A4:A5")
    book.save(path)
    assert [(row.question, row.label, row.line) for row in read(path) if isinstance(row, Pair)] == [
        ("언제 와요?", "배송", 4),
        ("얼마예요?", "배송", 5),
    ]


def test_a_formula_without_a_value_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.xlsx"
    workbook(path, 자료=[HEADER, ("어디예요?", '="서울 "&"종로예요."'), ("주차 돼요?", "네 됩니다.")])
    found = read(path)
    assert found[0] == BadRow(2, "formula", '="서울 "&"종로예요."')
    assert texts(found) == [("주차 돼요?", "네 됩니다.")]


@pytest.mark.parametrize(
    ("value", "number_format", "shown"),
    [
        (15000, "General", "15000"),
        (15000, "#,##0", "15,000"),
        (15000, '#,##0"원"', "15,000원"),
        (15000, '"₩"#,##0', "₩15,000"),
        (15000, "[$₩-412]#,##0", "₩15,000"),
        (-15000, "#,##0_);[Red](#,##0)", "(15,000)"),
        (-3, "0", "-3"),
        (0.1, "0%", "10%"),
        (0.125, "0.0%", "12.5%"),
        (3.14159, "0.00", "3.14"),
        (3.5, "General", "3.5"),
        (0.1 + 0.2, "General", "0.3"),
        (7, "000", "007"),
        (2.5, "0.##", "2.5"),
        (2.0, "General", "2"),
        (123456789012, "General", "123456789012"),
        (True, "General", "TRUE"),
        ("글", "@", "글"),
        (datetime.datetime(2024, 3, 1), 'yyyy"년" m"월" d"일"', "2024년 3월 1일"),
        (datetime.datetime(2024, 3, 1), "yyyy-mm-dd", "2024-03-01"),
        (datetime.datetime(2024, 3, 1), "yy.m.d", "24.3.1"),
        (datetime.datetime(2024, 3, 1), "General", "2024-03-01"),
        (datetime.datetime(2024, 3, 1, 14, 5), "yyyy-mm-dd hh:mm", "2024-03-01 14:05"),
        (datetime.datetime(2024, 3, 1, 14, 5), "h:mm AM/PM", "2:05 PM"),
        (datetime.datetime(2024, 3, 1, 14, 5), '[$-412]AM/PM h"시" mm"분";@', "PM 2시 05분"),
        (datetime.time(9, 30), "h:mm:ss", "9:30:00"),
        (datetime.time(9, 30), "hh:mm", "09:30"),
        (datetime.date(2024, 3, 1), "m/d", "3/1"),
        (datetime.date(2024, 3, 1), "m월 d일 aaaa", "3월 1일 금요일"),
        (datetime.timedelta(hours=26, minutes=5), "[h]:mm", "26:05"),
    ],
)
def test_cells_as_the_screen_shows_them(value: object, number_format: str, shown: str) -> None:
    assert format_cell(value, number_format) == shown


def test_messages_below_a_cover_sheet(tmp_path: Path) -> None:
    path = tmp_path / "a.xlsx"
    messages = [
        ("speaker", "utterance"),
        ("고객", "예약되나요?"),
        ("상담원", "네 됩니다."),
        ("고객", "내일도요?"),
        ("상담원", "네."),
    ]
    workbook(path, 표지=[("2026년 상담 기록",), ("작성: 고객지원팀",)], 상담=messages)
    assert texts(read(path)) == [("예약되나요?", "네 됩니다."), ("내일도요?", "네.")]


def test_a_sheet_of_messages_beside_pairs_is_left_out_and_told(tmp_path: Path) -> None:
    path = tmp_path / "a.xlsx"
    messages = [("speaker", "utterance"), ("고객", "예약되나요?"), ("상담원", "네 됩니다.")]
    workbook(path, 배송=[HEADER, ("언제 와요?", "내일 와요.")], 상담=messages)
    found = read(path)
    assert texts(found) == [("언제 와요?", "내일 와요.")]
    assert [(row.kind, row.value) for row in found if isinstance(row, BadRow)] == [("sheet", "상담")]
