"""Each rule on rows that a bot confuses, and none on rows that it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import write_csv

import daedap
from daedap.cli import run as cli
from daedap.evaluation.row_rules import MAX_ROWS, Finding, diagnose_rows
from daedap.types import Pair

FAQ = [
    Pair("배송비는 얼마인가요?", "배송비는 3,000원이에요.", line=2),
    Pair("해외 배송도 되나요?", "해외 배송은 하지 않고 국내로만 보내 드려요.", line=3),
    Pair("매장은 어디에 있나요?", "매장은 솔빛시 단풍로 12에 있어요.", line=4),
    Pair("비밀번호를 잊어버렸어요.", "로그인 화면의 ‘비밀번호 찾기’에서 새 비밀번호를 정하세요.", line=5),
]


def finding(pairs: list[Pair], rule: str, faq: dict[str, Any] | None = None) -> Finding:
    return next(found for found in diagnose_rows(pairs, faq) if found.rule == rule)


def test_distinct_rows_have_no_findings() -> None:
    assert diagnose_rows(FAQ) == []
    assert diagnose_rows(FAQ[:1]) == []


def test_rows_too_alike_are_named_with_their_lines() -> None:
    alike = Pair("반품 배송비는 얼마인가요?", "반품하실 때는 6,000원을 빼고 돌려 드려요.", line=6)
    found = finding([*FAQ, alike], "rows_too_alike")
    assert found.severity == "warning"
    assert found.evidence.startswith("1 pair(s) with a similarity of at least 0.75: ")
    assert "line 2 '배송비는 얼마인가요?' ~ line 6 '반품 배송비는 얼마인가요?' (0." in found.evidence
    same = Pair("배송비가 얼마인가요?", FAQ[0].answer, line=6)
    assert diagnose_rows([*FAQ, same]) == [], "two wordings with one answer are fine"


def test_a_question_that_its_answer_does_not_take_up() -> None:
    pairs = [*FAQ, Pair("해외로도 보낼 수 있는 물건은요?", "도장은 정문 옆 안내 창구에서 찍어 드려요.", line=6)]
    found = finding(pairs, "far_from_answer")
    assert found.severity == "hint"
    assert found.evidence.startswith("1 of 5 questions are nearer to the answer of another row than to their own: ")
    assert "line 6 '해외로도" in found.evidence
    talk = [Pair(f"{word} 어때?", answer) for word, answer in zip("밥물술옷", "가나다라", strict=True)]
    assert "far_from_answer" not in {one.rule for one in diagnose_rows(talk)}, "small talk is no FAQ"


@pytest.mark.parametrize(
    ("answer", "severity"),
    [
        ("배송비는 2,500원이에요.", "warning"),
        ("배송비는 3,000원입니다.", "hint"),
    ],
)
def test_nearly_equal_answers(answer: str, severity: str) -> None:
    found = finding([*FAQ, Pair("제주도는 택배 값을 얼마나 내요?", answer, line=6)], "repeated_answers")
    assert found.severity == severity
    assert "line 2 '배송비는 얼마인가요?' ~ line 6 '제주도는 택배 값을 얼마나 내요?'" in found.evidence


def test_rows_whose_paraphrases_are_missed() -> None:
    replies = [
        {"question": "택배 요금", "answers": [FAQ[0].answer], "outcome": "known"},
        {"question": "얼마 내요", "answers": [FAQ[0].answer], "outcome": "right"},
        {"question": "외국에도 보내요?", "answers": [FAQ[1].answer], "outcome": "right"},
        {"question": "주식 살까?", "answers": [], "outcome": "refused"},
    ]
    found = finding(FAQ, "missed_paraphrases", {"replies": replies})
    assert found.evidence == (
        "1 of 2 rows miss at least half of their paraphrases: line 2 '배송비는 얼마인가요?' 1/2 ('택배 요금')."
    )
    assert diagnose_rows(FAQ, {"replies": replies[1:]}) == []


def test_large_files_are_not_compared() -> None:
    many = [Pair(f"질문 {number}번", "네.", line=number) for number in range(MAX_ROWS)]
    assert diagnose_rows([*many, *FAQ]) == []


def test_check_names_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alike = Pair("반품 배송비는 얼마인가요?", "반품하실 때는 6,000원을 빼고 돌려 드려요.")
    file = write_csv(tmp_path / "faq.csv", [*FAQ, alike])
    report = daedap.check(file)
    assert report.diagnosis[0].rule == "rows_too_alike"
    assert report.to_json()["diagnosis"][0]["severity"] == "warning"
    assert cli(["check", str(file)]) == 0
    assert "line 2 '배송비는 얼마인가요?' ~ line 6" in capsys.readouterr().out
