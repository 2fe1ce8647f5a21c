"""Small files of the kinds that people have: exports of spreadsheets, help desks, messengers and data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from daedap.config import ReadOptions
from daedap.data.doctor import check, load
from daedap.errors import DataError
from daedap.types import Message, Pair

Q1, A1 = "주차 되나요?", "네 됩니다."
Q2, A2 = "언제 열어요?", "아홉 시예요."
BOTH = [(Q1, A1), (Q2, A2)]
JSON = json.dumps


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAEDAP_LANG", "en")


def read(folder: Path, name: str, text: str | bytes, speaker: str | None = None) -> list[Pair]:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(path, ReadOptions(speaker=speaker)).pairs


def texts(pairs: list[Pair]) -> list[tuple[str, str]]:
    return [(pair.question, pair.answer) for pair in pairs]


TABLES = {
    "line ends of three kinds": (
        "a.csv",
        '질문,답변\r\n주차 되나요?,네 됩니다.\r언제 열어요?,"아홉\r\n시예요."\n\n',
        [(Q1, A1), (Q2, "아홉\n시예요.")],
    ),
    "carriage returns": ("A.CSV", f"질문,답변\r{Q1},{A1}\r{Q2},{A2}\r", BOTH),
    "typographic quotes": (
        "a.csv",
        "질문,답변\n“주차”, 되나요?,네\n‘몇 시’예요?,“종로, 2가예요.”\n",
        [("‘몇 시’예요?", "“종로, 2가예요.”")],
    ),
    "tabs in cells": ("a.csv", '질문,답변\n주차\t되나요?,"네\t됩니다."\n', [("주차\t되나요?", "네\t됩니다.")]),
    "a tab in an answer": ("a.tsv", "질문\t답변\n주차 되나요?\t네\t됩니다.\n", [(Q1, A1)]),
    "emoji": (
        "a.csv",
        "질문,답변\n👨‍👩‍👧‍👦 되나요?,네 ❤️ 👍🏽\n😀,😁\n",
        [("👨‍👩‍👧‍👦 되나요?", "네 ❤️ 👍🏽"), ("😀", "😁")],
    ),
    "Hanja and wide characters": (
        "a.csv",
        "질문,답변\n營業時間은？,９시～１８시　입니다．\n",
        [("營業時間은？", "９시～１８시 입니다．")],
    ),
    "one pair, no header": ("a.csv", "안녕하세요,반가워요\n", [("안녕하세요", "반가워요")]),
    "one pair": ("a.csv", f"질문,답변\n{Q1},{A1}\n", BOTH[:1]),
    "an index without a name": (
        "a.csv",
        f",제목,등록일,질문,답변\n0,주차,2020-01-01,{Q1},{A1}\n1,시간,2020-01-02,{Q2},{A2}\n",
        BOTH,
    ),
    "spaces behind the quotes": (
        "a.csv",
        f'질문,답변\n"{Q1}" ,"{A1}" \n"{Q2}" ,"네, 됩니다." \n',
        [(Q1, A1), (Q2, "네, 됩니다.")],
    ),
    "pipes": ("a.txt", f"질문|답변\n{Q1}|{A1}\n{Q2}|{A2}\n", BOTH),
    "a Markdown table": ("a.md", f"# FAQ\n\n| 질문 | 답변 |\n|---|:--|\n| {Q1} | {A1} |\n| {Q2} | {A2} |\n", BOTH),
    "line breaks as two characters": ("a.csv", f"질문,답변\n{Q1},네.\\n됩니다.\n", [(Q1, "네.\n됩니다.")]),
    "titles of a form": (
        "a.csv",
        f"타임스탬프,성함,이메일 주소,문의하실 내용을 적어 주세요,답변\n"
        f"2024. 3. 1,김철수,a@b.kr,{Q1},{A1}\n2024. 3. 2,박영희,c@d.kr,{Q2},{A2}\n",
        BOTH,
    ),
    "five columns, no header": (
        "a.csv",
        "1,배송,언제 와요?,내일 도착합니다.,2024-01-01\n2,배송,배송비 얼마예요?,삼천 원입니다.,2024-01-02\n"
        "3,교환,바꿀 수 있나요?,네 바꿔 드립니다.,2024-01-03\n4,교환,며칠 걸려요?,사흘 걸립니다.,2024-01-04\n",
        [
            ("언제 와요?", "내일 도착합니다."),
            ("배송비 얼마예요?", "삼천 원입니다."),
            ("바꿀 수 있나요?", "네 바꿔 드립니다."),
            ("며칠 걸려요?", "사흘 걸립니다."),
        ],
    ),
    "Q and A in rows": ("a.csv", f"번호,구분,내용\n1,Q,{Q1}\n1,A,{A1}\n2,Q,{Q2}\n2,A,{A2}\n", BOTH),
    "sides by a type": (
        "a.csv",
        f"chatId,personType,createdAt,plainText\nc1,user,2024-03-11,{Q1}\nc1,manager,2024-03-11,{A1}\nc2,user,2024-03-12,{Q2}\nc2,manager,2024-03-12,{A2}\n",
        BOTH,
    ),
    "senders": (
        "a.csv",
        f"날짜,보낸사람,내용\n3-11,고객,{Q1}\n3-11,상담원,{A1}\n3-12,고객,{Q2}\n3-12,상담원,{A2}\n",
        BOTH,
    ),
    "messages in several columns": (
        "a.csv",
        "대화셋일련번호,화자,QA,고객질문(요청),상담사질문(요청),고객답변,상담사답변\n"
        f"1,고객,Q,{Q1},,,\n1,상담사,A,,,,{A1}\n2,고객,Q,{Q2},,,\n2,상담사,A,,,,{A2}\n",
        BOTH,
    ),
    "rendered texts": ("a.csv", f"text\n<usr>{Q1}<sys>{A1}</s>\n<usr>{Q2}<sys>{A2}</s>\n", BOTH),
    "rendered texts, quoted": ("a.csv", f'text,\n"### 명령문: {Q1}\\n\\n### 답변: {A1}"\n', BOTH[:1]),
    "marks in brackets": ("a.txt", f"[질문] {Q1}\n[답변] {A1}\n\n[질문] {Q2}\n[답변] {A2}\n", BOTH),
    "numbers and dashes": ("a.txt", f"1. {Q1}\n- {A1}\n\n2. {Q2}\n- {A2}\n", BOTH),
    "문 and 답": ("a.txt", f"문: {Q1}\n답: {A1}\n\n문: {Q2}\n답: {A2}\n", BOTH),
    "a question above its answer": ("a.txt", f"{Q1}\n네\n됩니다.\n\n{Q2}\n{A2}\n", [(Q1, "네\n됩니다."), (Q2, A2)]),
    "an arrow between both": (
        "a.txt",
        f"질문 -> 답변\n{Q1} -> {A1}\n2. {Q2} => 아홉\n시예요.\n",
        [(Q1, A1), (Q2, "아홉\n시예요.")],
    ),
    "a dash behind the question mark": ("a.txt", f"1. {Q1} - {A1}\n2. {Q2} – {A2}\n", BOTH),
    "marks on one line": ("a.txt", f"질문: {Q1} / 답변: {A1}\n\n질문: {Q2} / 답변: {A2}\n", BOTH),
    "Q and A on one line": ("a.csv", f"Q. {Q1}, A. 네, 됩니다.\nQ. {Q2} A. {A2}\n", [(Q1, "네, 됩니다."), (Q2, A2)]),
    "bullets below bullets": ("a.md", f"- {Q1}\n  - {A1}\n- {Q2}\n  - {A2}\n", BOTH),
    "arrows in the answers of a table": (
        "a.csv",
        "비번 바꾸려면?,설정 -> 회원 -> 변경\n주소 바꾸려면?,설정 -> 주소\n",
        [("비번 바꾸려면?", "설정 -> 회원 -> 변경"), ("주소 바꾸려면?", "설정 -> 주소")],
    ),
    "whole lines between quotes": (
        "a.csv",
        f'"번호,질문,답변",\r\n"1,{Q1},""네, 됩니다.\n지하요.""",\r\n"2,{Q2},{A2}",\r\n',
        [(Q1, "네, 됩니다.\n지하요."), (Q2, A2)],
    ),
    "whole lines between quotes, no header": ("a.csv", f'"{Q1};{A1}"\n"{Q2};{A2}"\n', BOTH),
    "whole lines between quotes below a bare header": ("a.csv", f'질문,답변\n"{Q1},{A1}"\n"{Q2},{A2}"\n', BOTH),
    "bold marks below a title": ("a.md", f"## FAQ\n\n**Q. {Q1}**\n\nA. {A1}\n\n**Q. {Q2}**\n\nA. {A2}\n", BOTH),
    "speakers": ("a.txt", f"고객: {Q1}\n상담원: {A1}\n\n고객: {Q2}\n상담원: {A2}\n", BOTH),
    "letters without a point": ("a.txt", f"Q {Q1}\nA {A1}\n\nQ {Q2}\nA {A2}\n", BOTH),
    "symbols before both": ("a.txt", f"❓ {Q1}\n💬 {A1}\n\n❓ {Q2}\n💬 {A2}\n", BOTH),
    "numbers above the answers": ("a.txt", f"1. {Q1}\n   {A1}\n\n2. {Q2}\n   {A2}\n", BOTH),
    "both in one cell": ("a.csv", f'번호,내용\n1,"Q. {Q1}\nA. {A1}"\n2,"Q. {Q2}\nA. {A2}"\n', BOTH),
    "objects that were encoded twice": ("a.jsonl", "\n".join(JSON(JSON({"q": q, "a": a})) for q, a in BOTH), BOTH),
    "a table of messages below a broken line": ("a.csv", f"습니다.\n고객,{Q1}\n상담원,{A1}\n", BOTH[:1]),
    "marks in the cells": ("a.csv", f"질문,답변\nQ1. {Q1},A1. {A1}\n[질문] {Q2},[답변] {A2}\n", BOTH),
    "a form's own words": ("a.csv", f"타임스탬프,문의 내용을 입력하세요,답변\n3. 1,{Q1},{A1}\n3. 2,{Q2},{A2}\n", BOTH),
    "headings": ("a.md", f"# 자주 묻는 질문\n\n## {Q1}\n\n{A1}\n\n## {Q2}\n{A2}\n", BOTH),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_and_texts(tmp_path: Path, kind: str) -> None:
    name, text, expected = TABLES[kind]
    assert texts(read(tmp_path, name, text)) == expected


LAYOUTS: dict[str, Any] = {
    "intents": {
        "intents": [
            {"tag": "주차", "patterns": [Q1], "responses": [A1]},
            {"tag": "시간", "patterns": [Q2], "responses": [A2]},
        ]
    },
    "utterances and responses": [{"utterances": [Q1], "responses": [A1]}, {"utterances": [Q2], "responses": [A2]}],
    "Dialogflow": [
        {
            "name": "주차",
            "auto": True,
            "responses": [{"messages": [{"type": "0", "lang": "ko", "speech": [A1]}]}],
            "userSays": [{"data": [{"text": "주차 "}, {"text": "되나요?", "meta": "@sys.any"}]}],
        },
        {"displayName": "시간", "trainingPhrases": [{"parts": [{"text": Q2}]}], "messages": [{"text": {"text": [A2]}}]},
    ],
    "FAQPage": {
        "@context": "https://schema.org",
        "@type": "FAQPage",
        "mainEntity": [
            {"@type": "Question", "name": q, "acceptedAnswer": {"@type": "Answer", "text": a}} for q, a in BOTH
        ],
    },
    "question: answer": {Q1: A1, Q2: A2},
    "lists of messages": [[{"from": "human", "value": q}, {"from": "gpt", "value": a}] for q, a in BOTH],
    "conversations inside": {
        "conversations": [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in BOTH]
    },
    "answers with votes": [{"question": q, "answers": [{"answer": a, "votes": 3}]} for q, a in BOTH],
    "Gemini": [
        {"contents": [{"role": "user", "parts": [{"text": q}]}, {"role": "model", "parts": [{"text": a}]}]}
        for q, a in BOTH
    ],
    "Clova": [{"C_ID": n, "T_ID": 0, "Text": q, "Completion": a} for n, (q, a) in enumerate(BOTH)],
    "a table of columns and data": {"columns": ["번호", "질문", "답변"], "data": [[1, Q1, A1], [2, Q2, A2]]},
    "title and content inside": {"result": {"items": [{"faqTitle": q, "faqContent": a, "no": 1} for q, a in BOTH]}},
    "lists of two": [list(pair) for pair in BOTH],
    "lists below a header": [["질문", "답변"], *map(list, BOTH)],
    "whole columns": {"question": [Q1, Q2], "answer": [A1, A2]},
    "columns of pandas": {"question": {"0": Q1, "1": Q2}, "answer": {"0": A1, "1": A2}},
    "by category": {"faq": {"시설": [{"q": Q1, "a": A1}], "시간": [{"q": Q2, "a": A2}]}},
    "one message an object": [
        {"dialogue_id": n, "speaker": who, "utterance": text}
        for n, pair in enumerate(BOTH)
        for who, text in zip(("고객", "상담원"), pair, strict=True)
    ],
    "lines of AI-Hub": {
        "info": [
            {
                "annotations": {
                    "lines": [
                        {"id": n, "text": f"{n % 2 + 1} : {text}", "norm_text": text, "speaker": {"id": str(n % 2 + 1)}}
                        for n, text in enumerate([Q1, A1, Q2, A2])
                    ]
                }
            }
        ]
    },
    "speaker and listener": {
        "utterances": [{"role": ("speaker", "listener")[n % 2], "text": t} for n, t in enumerate([Q1, A1, Q2, A2])]
    },
    "rendered, on one line": [{"text": f"### Human: {Q1}### Assistant: {A1}### Human: {Q2}### Assistant: {A2}"}],
    "rendered, [INST]": [{"text": f"<s>[INST] {Q1} [/INST] {A1} </s>"}, {"text": f"<s>[INST] {Q2} [/INST] {A2} </s>"}],
    "rendered, ChatML": [
        {"text": f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n{a}<|im_end|>"} for q, a in BOTH
    ],
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_json(tmp_path: Path, kind: str) -> None:
    assert texts(read(tmp_path, "a.json", JSON(LAYOUTS[kind], ensure_ascii=False, indent=1))) == BOTH


def test_lists_of_messages_on_lines_of_their_own(tmp_path: Path) -> None:
    lines = [JSON([{"role": "user", "content": q}, {"role": "assistant", "content": a}]) for q, a in BOTH]
    pairs = read(tmp_path, "a.jsonl", "\n".join(lines))
    assert texts(pairs) == BOTH
    assert not any(pair.history for pair in pairs), "each is a conversation"


def test_history_beside_an_instruction(tmp_path: Path) -> None:
    row = {"instruction": Q2, "input": "", "output": A2, "history": [[Q1, A1]]}
    assert read(tmp_path, "a.json", JSON([row]))[0].history == (Message("user", Q1), Message("assistant", A1))


def test_a_script_with_fewer_answers_than_questions(tmp_path: Path) -> None:
    book: Any = openpyxl.Workbook()
    rows = [
        ("구분", "유저", "챗봇"),
        ("기분", "눈물이 나요.", "많이 힘드셨군요."),
        ("기분", "마음이 무거워요.", "옆에 있을게요."),
        ("기분", "자꾸 화가 나요.", None),
    ]
    rows += [("잠", "잠이 안 와요.", "밤이 길겠어요."), ("잠", "새벽에 깨요.", None), ("밥", "입맛이 없어요.", None)]
    for row in rows:
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    loaded = load(tmp_path / "a.xlsx")
    assert texts(loaded.pairs)[2:] == [
        ("자꾸 화가 나요.", "많이 힘드셨군요."),
        ("잠이 안 와요.", "밤이 길겠어요."),
        ("새벽에 깨요.", "밤이 길겠어요."),
    ]
    assert {finding.kind: finding.count for finding in loaded.report.findings} == {"category": 2, "empty_answer": 1}
    incomplete = read(tmp_path, "a.csv", "구분,질문,답변\n기분,눈물이 나요.,힘드셨군요.\n기분,화가 나요.,\n")
    assert len(incomplete) == 1, "in other tables a row without an answer is incomplete"


def test_a_chat_in_a_workbook(tmp_path: Path) -> None:
    book: Any = openpyxl.Workbook()
    for row in [("Date", "User", "Message"), ("2024-03-11 21:12:00", "손님", Q1), ("2024-03-11 21:13:00", "점원", A1)]:
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    assert texts(load(tmp_path / "a.xlsx", ReadOptions(speaker="점원")).pairs) == BOTH[:1]


@pytest.mark.parametrize(
    "text",
    [
        "손님とのトーク\n2024年3月11日月曜日\n2024年3月11日 午後9:12, 손님 : 주차 되나요?\n"
        "2024年3月11日 午後9:13, 점원 : 네 됩니다.\n",
        "11 March 2024\n11 Mar 2024 at 21:12, 손님 : 주차 되나요?\n11 Mar 2024 at 21:13, 점원 : 네 됩니다.\n",
        "11.03.2024, 21:12, 손님 : 주차 되나요?\n11.03.2024, 21:13, 점원 : 네 됩니다.\n",
        "3/11/24, 9:12\u202fPM, 손님 : 주차 되나요?\n3/11/24, 9:13\u202fPM, 점원 : 네 됩니다.\n",
        "[손님] [오후 9:12] 주차 되나요?\n[오픈채팅봇] [오후 9:12] 환영합니다\n[점원] [오후 9:13] 네 됩니다.\n",
        "날짜;사용자;메시지\n2024-03-11 21:12;손님;주차 되나요?\n2024-03-11 21:13;점원;네 됩니다.\n",
    ],
)
def test_chats_of_other_places(tmp_path: Path, text: str) -> None:
    assert texts(read(tmp_path, "a.txt", text, speaker="점원")) == BOTH[:1]


REFUSED: dict[str, tuple[str, str | bytes, str]] = {
    "notes to oneself": ("a.txt", "[나] [오후 9:12] 장보기\n[나] [오후 9:13] 우유\n", "only 나 writes"),
    "questions alone": ("a.txt", f"{Q1}\n\n{Q2}\n", "only one column"),
    "a NUL byte": ("a.csv", f"질문,답변\n{Q1},{A1}\n언제\0 열어요?,{A2}\n", "line 3: a NUL byte"),
    "periods": ("a.txt", "2024-01-01 -> 2024-01-31\n2024-02-01 -> 2024-02-29\n", "only one column"),
    "sentences between quotes": ("a.csv", '"안녕하세요, 주차되나요?"\n"네, 언제 열어요?"\n', "only one column"),
    "answers first": (
        "a.csv",
        f"{A1},{Q1}\n{A2},{Q2}\n칠 일 안에 됩니다.,환불되나요?\n",
        "--question-column 2 --answer-column 1",
    ),
    "speakers beside texts": (
        "a.csv",
        "가,주차 되나요?\n나,네 됩니다.\n가,언제 열어요?\n나,아홉 시예요.\n가,그래요?\n나,네.\n",
        "not clear",
    ),
    "titles beside": (
        "a.csv",
        f"1,주차 안내,{Q1},{A1}\n2,시간 안내,{Q2},{A2}\n3,환불 안내,환불돼요?,칠 일 안에 됩니다.\n",
        "--question-column 3 --answer-column 4",
    ),
    "three texts": (
        "a.csv",
        f"id,subject,description,comment\n1,주차,{Q1},{A1}\n2,시간,{Q2},{A2}\n",
        "--question-column 3 --answer-column 4",
    ),
    "a cut archive": ("a.csv.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03cut", "can't be unpacked"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_names_a_way_out(tmp_path: Path, kind: str) -> None:
    name, text, message = REFUSED[kind]
    with pytest.raises(DataError, match=message):
        read(tmp_path, name, text)


def test_windows_line_ends_in_a_cell(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes('질문,답변\r\n서류는요?,"신분증,\r\n통장입니다."\r\n'.encode("cp949"))
    assert texts(load(path).pairs) == [("서류는요?", "신분증,\n통장입니다.")]
    assert check(path).findings == ()
