"""Text tables as spreadsheets, public portals and help desks write them."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from daedap.config import ReadOptions
from daedap.data.clean import BadRow
from daedap.data.doctor import check, load
from daedap.data.reader import detect_source, read_pairs
from daedap.errors import DataError
from daedap.types import Message, Pair


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAEDAP_LANG", "en")


def written(folder: Path, text: str, name: str = "a.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def read(path: Path, read_options: ReadOptions = ReadOptions()) -> list[Pair | BadRow]:
    return list(read_pairs(detect_source(path, read_options)))


def texts(found: list[Pair | BadRow]) -> list[tuple[str, str]]:
    return [(row.question, row.answer) for row in found if isinstance(row, Pair)]


def bad(found: list[Pair | BadRow]) -> list[tuple[int, str]]:
    return [(row.line, row.kind) for row in found if isinstance(row, BadRow)]


EXPECTED = [("여권은 어디서 만드나요?", "민원실에서 신청하세요."), ("며칠 걸리나요?", "보통 나흘 걸립니다.")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949", "utf-16"])
@pytest.mark.parametrize(
    "above",
    [
        "",
        "○○시청 자주 묻는 질문,,,,\n",
        "○○시청 자주 묻는 질문\n",
        "자주 묻는 질문,,,,\n,,,,\n",
        "작성일,2024-03-01,,,\n담당,민원과,,,\n\n",
    ],
)
def test_titles_above_the_header(tmp_path: Path, above: str, encoding: str) -> None:
    table = "순번,구분,질문,답변,담당부서\n" + "".join(
        f"{n},여권,{q},{a},민원과\n" for n, (q, a) in enumerate(EXPECTED)
    )
    found = read(written(tmp_path, above + table, encoding=encoding))
    assert texts(found) == EXPECTED
    assert [row.label for row in found if isinstance(row, Pair)] == ["여권", "여권"]
    assert [row.line for row in found] == [above.count("\n") + 2, above.count("\n") + 3]


@pytest.mark.parametrize(
    ("first", "delimiter"), [("sep=,", ","), ("sep=;", ";"), ("SEP=\t".lower(), "\t"), ('"sep=;"', ";")]
)
def test_a_sep_line_is_obeyed(tmp_path: Path, first: str, delimiter: str) -> None:
    lines = [first, delimiter.join(["질문", "답변"]), *(delimiter.join(pair) for pair in EXPECTED)]
    for encoding in ("utf-8-sig", "cp949"):
        assert texts(read(written(tmp_path, "\r\n".join(lines), encoding=encoding))) == EXPECTED


def test_a_repeated_header_is_no_pair(tmp_path: Path) -> None:
    found = read(written(tmp_path, "\ufeff질문,답변\n몇 시예요?,아홉 시예요.\n\ufeff질문,답변\n어디예요?,종로예요.\n"))
    assert texts(found) == [("몇 시예요?", "아홉 시예요."), ("어디예요?", "종로예요.")]
    assert bad(found) == [(3, "header")]


def test_short_rows_are_padded(tmp_path: Path) -> None:
    found = read(written(tmp_path, "질문,답변,비고\n가게 어디예요?,종로예요.,\n주차돼요?,네 돼요.\n얼마예요?\n"))
    assert texts(found) == [("가게 어디예요?", "종로예요."), ("주차돼요?", "네 돼요.")]
    assert bad(found) == [(4, "fields")]


def test_delimiters_inside_an_answer_without_quotes(tmp_path: Path) -> None:
    found = read(
        written(tmp_path, "질문,답변\n주차 돼요?,네, 지하에, 있어요.\n어디예요?,종로예요.\n둘 다?,이것,저것\n")
    )
    assert texts(found) == [("주차 돼요?", "네, 지하에, 있어요."), ("어디예요?", "종로예요.")]
    assert bad(found) == [(4, "fields")]
    assert texts(read(written(tmp_path, "질문\t답변\n어디예요?\t종로\t2가예요.\n", "a.tsv"))) == [
        ("어디예요?", "종로 2가예요.")
    ]


def test_quotes_inside_a_sentence(tmp_path: Path) -> None:
    found = read(written(tmp_path, '질문,답변\n"따옴표" 있어요?,네 "있어요".\n“어디예요?”,“종로, 2가예요.”\n'))
    assert texts(found) == [('"따옴표" 있어요?', '네 "있어요".'), ("“어디예요?”", "“종로, 2가예요.”")]


def test_several_questions_for_one_answer(tmp_path: Path) -> None:
    found = read(written(tmp_path, "질문1,질문2,질문3,답변\n주차 돼요?,차 세워요?,,네 돼요.\n"))
    assert texts(found) == [("주차 돼요?", "네 돼요."), ("차 세워요?", "네 돼요.")]
    found = read(
        written(tmp_path, "Question,Alt_Phrasings,Answer\n영업시간은?,몇 시에 열어요?;언제 열어요?,아홉 시요.\n")
    )
    assert [question for question, _ in texts(found)] == ["영업시간은?", "몇 시에 열어요?", "언제 열어요?"]


def test_rows_that_are_messages(tmp_path: Path) -> None:
    messages = ["1,고객,예약되나요?", "1,상담원,네 됩니다.", "1,고객,내일도요?", "1,상담원,내일은 쉬어요."]
    messages += ["2,고객,주차는요?", "2,상담원,뒤에 세우세요."]
    path = written(tmp_path, "\n".join(["대화번호,화자,발화", *messages]))
    found = [row for row in read(path) if isinstance(row, Pair)]
    assert texts([*found]) == [
        ("예약되나요?", "네 됩니다."),
        ("내일도요?", "내일은 쉬어요."),
        ("주차는요?", "뒤에 세우세요."),
    ]
    assert found[1].history == (Message("user", "예약되나요?"), Message("assistant", "네 됩니다."))
    assert (found[2].history, found[2].line) == ((), 6)
    assert texts(read(path, ReadOptions(speaker="고객"))) == [("네 됩니다.", "내일도요?")]
    with pytest.raises(DataError, match="nobody called 점원"):
        read(path, ReadOptions(speaker="점원"))
    assert "columns: messages = 발화; answers are those of 상담원" in check(path).lines()


def test_speakers_that_say_nothing_about_their_role(tmp_path: Path) -> None:
    text = "speaker,utterance\nA,예약되나요?\nB,네 됩니다.\n"
    assert texts(read(written(tmp_path, text))) == [("예약되나요?", "네 됩니다.")]
    with pytest.raises(DataError, match=r"is a table of messages.*A \(1\), B \(1\), C \(1\).*--speaker"):
        read(written(tmp_path, text + "C,저도요.\n"))


def test_dialogues_without_speakers(tmp_path: Path) -> None:
    found = read(
        written(tmp_path, "dialog #,발화,감정\nS,오늘 춥다,중립\n,옷 입어,중립\nS,배고파,슬픔\n,밥 먹자,기쁨\n")
    )
    assert texts(found) == [("오늘 춥다", "옷 입어"), ("배고파", "밥 먹자")]


def test_marked_lines_of_a_text(tmp_path: Path) -> None:
    text = (
        "Q. 몇 시에 문 여나요?\nA. 아홉 시에 엽니다.\n\nQ. 주차 되나요?\nA. 네, 지하에 있습니다.\n두 시간 무료입니다.\n"
    )
    found = read(written(tmp_path, text, "a.txt"))
    assert texts(found) == [
        ("몇 시에 문 여나요?", "아홉 시에 엽니다."),
        ("주차 되나요?", "네, 지하에 있습니다.\n두 시간 무료입니다."),
    ]
    numbered = text.replace("Q.", "질문 1)").replace("A.", "**답변**:")
    assert texts(read(written(tmp_path, numbered, "a.md")))[0][0] == "몇 시에 문 여나요?"


def test_columns_between_several_spaces(tmp_path: Path) -> None:
    found = read(written(tmp_path, "밤에 잠이 안 와요.    물을 마셔 보세요.\n배가 고파요.   밥을 드세요.\n", "a.txt"))
    assert texts(found) == [("밤에 잠이 안 와요.", "물을 마셔 보세요."), ("배가 고파요.", "밥을 드세요.")]


def test_compressed(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress("질문,답변\n어디예요?,종로예요.\n".encode("cp949")))
    assert texts(read(path)) == [("어디예요?", "종로예요.")]


def test_tables_under_the_names_of_workbooks(tmp_path: Path) -> None:
    assert texts(read(written(tmp_path, "질문\t답변\n어디예요?\t종로예요.\n", "a.xls", "utf-16"))) == [
        ("어디예요?", "종로예요.")
    ]
    assert texts(read(written(tmp_path, "질문,답변\n어디예요?,종로예요.\n", "a.xlsx"))) == [("어디예요?", "종로예요.")]


def test_markup_becomes_text(tmp_path: Path) -> None:
    answer = '<p>보통&nbsp;2~3일 걸립니다.<br>도서&middot;산간은 &lt;하루&gt; 더 걸려요. <a href=""https://example.com/a"">여기</a></p>'
    loaded = load(
        written(
            tmp_path, f'번호,제목,내용\n1,배송은 며칠 걸리나요?,"{answer}"\n2,**교환**은요?,네 돼요.\\n지하로 오세요.\n'
        )
    )
    assert [(pair.question, pair.answer) for pair in loaded.pairs] == [
        ("배송은 며칠 걸리나요?", "보통 2~3일 걸립니다.\n도서·산간은 <하루> 더 걸려요. 여기 (https://example.com/a)"),
        ("교환은요?", "네 돼요.\n지하로 오세요."),
    ]
    finding = loaded.report.finding("markup")
    assert finding is not None and (finding.count, finding.action) == (2, "repaired")


def test_the_first_pair_is_shown_as_learned(tmp_path: Path) -> None:
    report = check(written(tmp_path, "카테고리,질문,답변\n배송,,\n배송, 언제 와요? ,내일 와요.\n"))
    assert "first pair: '언제 와요?' → '내일 와요.'" in report.lines()
    assert report.to_json()["first_pair"] == {"question": "언제 와요?", "answer": "내일 와요."}


def test_personal_data_is_counted_and_masked(tmp_path: Path) -> None:
    rows_ = [
        "질문,답변",
        "제 번호는 010-1234-5678이에요,메모할게요.",
        "메일은요?,kim.cs@example.co.kr로 보내세요.",
        "주민번호는 900101-1234567,그건 말하지 마세요.",
        "카드는 4111-1111-1111-1111,네.",
        "입금은요?,국민은행 123-45-678901로 해 주세요.",
        "대표 번호는?,02-123-4567이나 1588-0000이에요.",
        "주문번호는?,2024-0301-1234예요.",
    ]
    path = written(tmp_path, "\n".join(rows_))
    report = check(path)
    finding = report.finding("personal")
    assert finding is not None
    assert [example.line for example in finding.examples] == [2, 3, 4, 5, 6]
    assert "1234" not in " ".join(example.value for example in finding.examples), "they are not shown either"
    pairs = load(path, ReadOptions(mask_personal=True)).pairs
    assert (pairs[0].question, pairs[1].answer) == ("제 번호는 ***-****-****이에요", "***.**@*******.**.**로 보내세요.")
    assert [pair.answer for pair in pairs[-2:]] == ["02-123-4567이나 1588-0000이에요.", "2024-0301-1234예요."]


def test_personal_data_between_tags_and_in_labels(tmp_path: Path) -> None:
    path = written(tmp_path, "질문,답변,분류\n전화는 010-<b>1234</b>-5678?,네,시설\n메일은요?,네,담당 kim@shop.kr\n")
    finding = check(path).finding("personal")
    assert finding is not None
    assert [example.value for example in finding.examples] == ["전화는 ***-****-****?", "담당 ***@****.**"]
    pairs = load(path, ReadOptions(mask_personal=True)).pairs
    assert [(pair.question, pair.label) for pair in pairs] == [
        ("전화는 ***-****-****?", "시설"),
        ("메일은요?", "담당 ***@****.**"),
    ]


def test_a_private_chat_is_warned_about(tmp_path: Path) -> None:
    path = written(tmp_path, "[철수] [오후 3:12] 안녕\n[영희] [오후 3:13] 응 안녕\n", "a.txt")
    assert any(line.startswith("This is a private chat") for line in check(path, ReadOptions(speaker="영희")).lines())
