from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from daedap.config import ReadOptions
from daedap.data.clean import BadRow
from daedap.data.reader import Source, detect_source, read_pairs
from daedap.errors import DataError
from daedap.types import Message, Pair

PC = """홍길동 님과 카카오톡 대화
저장한 날짜 : 2024-01-02 12:00:00

--------------- 2024년 1월 1일 월요일 ---------------
[홍길동] [오후 3:12] 오늘 뭐 해?
[홍길동] [오후 3:12] 영화 볼래?
[김철수] [오후 3:13] 좋아
무슨 영화?
[홍길동] [오후 3:14] 사진
[홍길동] [오후 3:14] [예매 완료] 두 장
[김철수] [오후 3:15] 고마워
[김철수] [오후 5:30] 거의 다 왔어
--------------- 2024년 1월 2일 화요일 ---------------
[홍길동] [오전 9:00] 잘 잤어?
[김철수] [오전 9:01] 삭제된 메시지입니다.
박영희님이 들어왔습니다.
[김철수] [오전 9:02] 응 잘 잤지
"""


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAEDAP_LANG", "en")


def chat(folder: Path, text: str, name: str = "chat.txt", speaker: str | None = "김철수") -> list[Pair | BadRow]:
    path = folder / name
    path.write_text(text, encoding="utf-8-sig")
    source = detect_source(path, ReadOptions(speaker=speaker))
    assert source.format == "kakaotalk"
    return list(read_pairs(source))


def pairs(found: list[Pair | BadRow]) -> list[Pair]:
    return [row for row in found if isinstance(row, Pair)]


def test_pc_chat(tmp_path: Path) -> None:
    found = chat(tmp_path, PC)
    first, second, third = pairs(found)
    assert first == Pair("오늘 뭐 해?\n영화 볼래?", "좋아\n무슨 영화?", line=5, conversation_id="chat.txt:5")
    assert (second.question, second.answer) == ("[예매 완료] 두 장", "고마워")
    assert second.history == (Message("user", first.question), Message("assistant", first.answer))
    assert (third.question, third.answer, third.history) == ("잘 잤어?", "응 잘 잤지", ())
    assert third.line == 14
    assert [(row.line, row.kind, row.value) for row in found if isinstance(row, BadRow)] == [
        (9, "attachment", "사진"),
        (15, "attachment", "삭제된 메시지입니다."),
        (16, "system", "박영희님이 들어왔습니다."),
    ]


def test_the_other_side_can_be_learned(tmp_path: Path) -> None:
    found = pairs(chat(tmp_path, PC, speaker="홍길동"))
    assert [(pair.question, pair.answer) for pair in found] == [("좋아\n무슨 영화?", "[예매 완료] 두 장")]
    assert found[0].history[0] == Message("assistant", "오늘 뭐 해?\n영화 볼래?")


def test_a_long_pause_begins_a_new_conversation(tmp_path: Path) -> None:
    text = PC.replace("[오후 3:15] 고마워", "[오후 4:15] 고마워")
    assert "고마워" not in [pair.answer for pair in pairs(chat(tmp_path, text))]
    threads = [pair.conversation_id for pair in pairs(chat(tmp_path, PC))]
    assert threads == ["chat.txt:5", "chat.txt:5", "chat.txt:14"]


def test_midnight_is_no_pause(tmp_path: Path) -> None:
    lines = [
        "--------------- 2023년 12월 31일 일요일 ---------------",
        "[홍길동] [오후 11:59] 새해 복 많이 받아!",
        "--------------- 2024년 1월 1일 월요일 ---------------",
        "[김철수] [오전 12:01] 너도!",
    ]
    assert [pair.answer for pair in pairs(chat(tmp_path, "\n".join(lines)))] == ["너도!"]


ANDROID = """홍길동 님과 카카오톡 대화
저장한 날짜 : 2024년 1월 2일 오후 3:12


2024년 1월 1일 오후 3:12
2024년 1월 1일 오후 3:12, 홍길동 : 시간 있어? : )
2024년 1월 1일 오후 3:12, 김철수 : 응

왜?
2024년 1월 1일 오후 3:13, 박영희님이 나갔습니다.
"""
IPHONE = """Talk_2024.1.2 15:12-1.txt
저장한 날짜 : 2024. 1. 2. 오후 3:12

2024년 1월 1일 월요일
2024. 1. 1. 오후 3:12, 홍길동 : 시간 있어? : )
2024. 1. 1. 15:12, 김철수 : 응

왜?
2024. 1. 1. 오후 3:13: 박영희님이 나갔습니다.
"""
MAC = """Date,User,Message
2024-01-01 15:12:00,"홍길동","시간 있어? : )"
2024-01-01 15:12:30,"김철수","응

왜?"
2024-01-01 15:13:00,"박영희","박영희님이 나갔습니다."
"""
ENGLISH = """홍길동 with KakaoTalk Chats
Date Saved : 2024-01-02 12:00:00

--------------- Monday, January 1, 2024 ---------------
[홍길동] [3:12 PM] 시간 있어? : )
[김철수] [3:12 PM] 응

왜?
박영희 left.
"""


@pytest.mark.parametrize(
    ("name", "text", "line"), [("a.txt", ANDROID, 6), ("i.txt", IPHONE, 5), ("m.csv", MAC, 2), ("e.txt", ENGLISH, 5)]
)
def test_every_device_writes_its_own_format(tmp_path: Path, name: str, text: str, line: int) -> None:
    notice, pair = chat(tmp_path, text, name)  # a pair comes when it is complete
    assert pair == Pair("시간 있어? : )", "응\n\n왜?", line=line, conversation_id=f"{name}:{line}")
    assert isinstance(notice, BadRow) and notice.kind == "system"


def test_the_others_in_a_group_ask_together(tmp_path: Path) -> None:
    text = PC.replace("[홍길동] [오후 3:12] 영화 볼래?", "[박영희] [오후 3:12] 영화 볼래?")
    assert pairs(chat(tmp_path, text))[0].question == "오늘 뭐 해?\n영화 볼래?"


def test_history_is_capped_at_six_turns(tmp_path: Path) -> None:
    lines = [f"[{'홍길동' if i % 2 == 0 else '김철수'}] [오후 3:{i:02}] {i}번째" for i in range(20)]
    last = pairs(chat(tmp_path, "\n".join(lines)))[-1]
    assert last.answer == "19번째"
    assert [turn.content for turn in last.history] == [f"{i}번째" for i in range(12, 18)]


@pytest.mark.parametrize("speaker", [None, "김철"])
def test_the_speaker_must_be_somebody(tmp_path: Path, speaker: str | None) -> None:
    with pytest.raises(DataError, match=r"홍길동 \(4\), 김철수 \(4\).*--speaker"):
        chat(tmp_path, PC, speaker=speaker)


def test_a_name_in_pieces_is_the_same_name(tmp_path: Path) -> None:
    assert pairs(chat(tmp_path, PC, speaker="\u1100\u1175\u11b7\u110e\u1165\u11af\u1109\u116e"))


def test_an_impossible_time_is_text(tmp_path: Path) -> None:
    found = pairs(chat(tmp_path, PC.replace("무슨 영화?", "[홍길동] [오후 3:99] 무슨 영화?")))
    assert found[0].answer == "좋아\n[홍길동] [오후 3:99] 무슨 영화?"


ASKED = [
    "안녕하세요 무엇을 도와드릴까요?",
    "내일 예약 되나요?",
    "네 오후 두 시에 가능해요.",
    "주차는요?",
    "뒤에 세우세요.",
]
WHO = ["김철수", "홍길동"]


def lines_of(stamps: list[str], shape: str) -> list[str]:
    """The five messages, alternately of both speakers, each in the shape of a line."""
    return [
        shape.format(at=at, who=WHO[n % 2], text=text) for n, (at, text) in enumerate(zip(stamps, ASKED, strict=True))
    ]


PHONE_STAMPS = {
    "korean": [f"2026년 5월 20일 오후 8:3{n}" for n in range(5)],
    "korean, 24 hours": [f"2026년 5월 20일 20:3{n}" for n in range(5)],
    "hyphens": [f"2026-05-20 오후 8:3{n}" for n in range(5)],
    "dots": [f"2026. 5. 20. 오후 8:3{n}" for n in range(5)],
    "dots, 24 hours": [f"2026.05.20 20:3{n}" for n in range(5)],
    "slashes": [f"2026/05/20 20:3{n}" for n in range(5)],
    "english": [f"May 20, 2026, 8:3{n} PM" for n in range(5)],
    "english, narrow space": [f"May 20, 2026 at 8:3{n}\u202fPM" for n in range(5)],
    "english, canadian": [f"May 20, 2026, 8:3{n} p.m." for n in range(5)],
    "english, british": [f"20 May 2026 at 20:3{n}" for n in range(5)],
    "english, weekday": [f"Wednesday, May 20, 2026, 8:3{n} PM" for n in range(5)],
    "month first": [f"5/20/26, 8:3{n} PM" for n in range(5)],
    "day first": [f"20/05/2026, 20:3{n}" for n in range(5)],
    "seconds": [f"2026-05-20 20:3{n}:15" for n in range(5)],
    "time before AM and PM": [f"2026년 5월 20일 PM 8:3{n}" for n in range(5)],
}


@pytest.mark.parametrize("kind", PHONE_STAMPS)
def test_dates_of_phones(tmp_path: Path, kind: str) -> None:
    lines = ["홍길동 님과 카카오톡 대화", "저장한 날짜 : 2026년 5월 21일 오전 9:00", ""]
    found = pairs(chat(tmp_path, "\n".join(lines + lines_of(PHONE_STAMPS[kind], "{at}, {who} : {text}"))))
    assert [(pair.question, pair.answer) for pair in found] == [(ASKED[1], ASKED[2]), (ASKED[3], ASKED[4])]


@pytest.mark.parametrize(
    ("day", "shape", "hours"),
    [
        ("2021년 12월 29일 수요일", "{at}, {who} : {text}", "오후 8:3{n}"),
        ("2021년 12월 29일 수요일", "{at}, {who} : {text}", "20:3{n}"),
        ("Wednesday, December 29, 2021", "{at}, {who} : {text}", "8:3{n} PM"),
        ("--------------- 2021년 12월 29일 수요일 ---------------", "[{who}] [{at}] {text}", "오후 8:3{n}"),
        ("--------------- 2021년 12월 29일 수요일 ---------------", "[{who}] [{at}] {text}", "20:3{n}"),
        ("--------------- Wednesday, December 29, 2021 ---------------", "[{who}] [{at}] {text}", "8:3{n} PM"),
        ("--------------- 2021-12-29 ---------------", "[{who}] [{at}] {text}", "8:3{n} p.m."),
    ],
)
def test_the_day_on_a_line_of_its_own(tmp_path: Path, day: str, shape: str, hours: str) -> None:
    lines = ["홍길동 님과 카카오톡 대화", "저장한 날짜 : 2021년 12월 30일 오전 9:00", "", day]
    lines += lines_of([hours.format(n=n) for n in range(5)], shape)
    found = pairs(chat(tmp_path, "\n".join(lines)))
    assert [pair.answer for pair in found] == [ASKED[2], ASKED[4]]


def with_line(line: str) -> str:
    """A Windows chat with this line between the question and its answer."""
    return "\n".join(
        [
            "--------------- 2024년 1월 1일 월요일 ---------------",
            "[홍길동] [오후 3:12] 예약 되나요?",
            line,
            "[김철수] [오후 3:13] 네 돼요",
        ]
    )


@pytest.mark.parametrize(
    "text",
    [
        "사진",
        "사진 3장",
        "동영상",
        "이모티콘",
        "(이모티콘)",
        "<사진>",
        "<사진 읽지 않음>",
        "‹사진 읽지 않음>",
        "<동영상 읽지 않음>",
        "음성메시지",
        "삭제된 메시지입니다.",
        "메시지가 삭제되었습니다.",
        "파일: 안내문.pdf",
        "샵검색: #주차",
        "지도: 종로",
        "보이스톡 해요",
        "보이스톡 0:42",
        "페이스톡 취소",
        "선물 메시지를 보냈습니다.",
        "송금 10,000원",
        "3f9ad0c1b2e4.jpg",
        "abc123.mp4",
        "Photo",
        "Photos 3",
        "Video",
        "Emoticon",
        "Sticker",
        "Voice Note",
        "This message was deleted.",
        "<Photo omitted>",
        "<Media omitted>",
    ],
)
def test_placeholders_are_no_messages(tmp_path: Path, text: str) -> None:
    found = chat(tmp_path, with_line(f"[홍길동] [오후 3:12] {text}"))
    assert [(pair.question, pair.answer) for pair in pairs(found)] == [("예약 되나요?", "네 돼요")]
    assert [row.kind for row in found if isinstance(row, BadRow)] == ["attachment"]


@pytest.mark.parametrize(
    "line",
    [
        "박영희님이 들어왔습니다.",
        "박영희님이 나갔습니다.",
        "홍길동님이 박영희님을 초대했습니다.",
        "박영희님을 초대하였습니다.",
        "홍길동님이 박영희님을 내보냈습니다.",
        "채팅방 관리자가 메시지를 가렸습니다.",
        "방장이 채팅방 이름을 바꿨습니다.",
        "톡게시판 '공지': 회비 안내",
        "박영희 joined this chatroom.",
        "박영희 left.",
        "홍길동 invited 박영희.",
        "운영정책을 위반한 메시지로 신고 접수 시 카카오톡 이용에 제한이 있을 수 있습니다.",
    ],
)
def test_notices_are_no_messages(tmp_path: Path, line: str) -> None:
    found = chat(tmp_path, with_line(line))
    assert [(pair.question, pair.answer) for pair in pairs(found)] == [("예약 되나요?", "네 돼요")]
    assert [row.kind for row in found if isinstance(row, BadRow)] == ["system"]


@pytest.mark.parametrize(
    "text",
    [
        "이모티콘 주세요",
        "사진 보내 주세요",
        "보이스톡 되나요?",
        "예약: 내일 3시 : 두 명",
        "https://example.com/map",
        "파일 받았어요",
    ],
)
def test_messages_about_such_things_are_messages(tmp_path: Path, text: str) -> None:
    assert pairs(chat(tmp_path, with_line(f"[홍길동] [오후 3:12] {text}")))[0].question == f"예약 되나요?\n{text}"


def test_two_exports_in_one_file(tmp_path: Path) -> None:
    found = pairs(chat(tmp_path, ANDROID + "\ufeff" + ANDROID.replace("1월", "2월").replace("왜?", "그럼")))
    assert [pair.answer for pair in found] == ["응\n\n왜?", "응\n\n그럼"]


def test_a_table_that_a_spreadsheet_saved_again(tmp_path: Path) -> None:
    rows = [
        "Date,User,Message,비고",
        "2021-12-29 20:36,홍길동,예약 되나요?,",
        "2021-12-29 오후 8:38:00,김철수,네 돼요,",
    ]
    path = tmp_path / "KakaoTalk_Chat.csv"
    path.write_bytes("\r\n".join(rows).encode("cp949"))
    source = detect_source(path, ReadOptions(speaker="김철수"))
    assert [(row.question, row.answer) for row in rows_of(source)] == [("예약 되나요?", "네 돼요")]


def rows_of(source: Source) -> list[Pair]:
    return pairs(list(read_pairs(source)))


def test_inside_a_zip_archive(tmp_path: Path) -> None:
    path = tmp_path / "Kakaotalk_Chat.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("KakaoTalkChats.txt", ANDROID)
        archive.writestr("3f9ad0c1.jpg", b"\xff\xd8\xff")
    assert [pair.answer for pair in rows_of(detect_source(path, ReadOptions(speaker="김철수")))] == ["응\n\n왜?"]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", ANDROID)
        archive.writestr("b.txt", ANDROID)
    with pytest.raises(DataError, match=r"holds several files: a\.txt, b\.txt\. Unpack it"):
        detect_source(path, ReadOptions(speaker="김철수"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jpg", b"\xff\xd8\xff")
    with pytest.raises(DataError, match="no text file or table"):
        detect_source(path)


def test_a_chat_named_csv(tmp_path: Path) -> None:
    assert pairs(chat(tmp_path, PC, "KakaoTalk_20240102.csv"))[0].question == "오늘 뭐 해?\n영화 볼래?"
