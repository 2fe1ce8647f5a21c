from __future__ import annotations

from pathlib import Path

import pytest

from daedap.data.reader import BadRow, ReadOptions, open_source, rows
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
    source = open_source(path, ReadOptions(speaker=speaker))
    assert source.format == "kakaotalk"
    return list(rows(source))


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
