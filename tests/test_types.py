from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace

import pytest

from daedap.types import Evidence, Message, Pair, Reply

TURNS = (Message("user", "안녕"), Message("assistant", "반가워요"))
PAIR = Pair("오늘 날씨 어때?", "맑고 따뜻해요.", "0", line=2)


def test_id_is_a_digest_of_what_is_learned() -> None:
    assert PAIR.id == "bb96c24ca7b43f5a"  # the same on every machine, today and later: runs on disk name rows by it
    assert PAIR.id == replace(PAIR, label="1", line=9, conversation_id="가").id


@pytest.mark.parametrize(
    "other",
    [
        replace(PAIR, question="오늘 날씨 어때"),
        replace(PAIR, answer="맑고 따뜻해요"),
        replace(PAIR, history=TURNS),
        Pair("오늘 날씨 어때?맑고", " 따뜻해요."),
    ],
)
def test_another_text_has_another_id(other: Pair) -> None:
    assert other.id != PAIR.id


def test_history_is_part_of_the_id() -> None:
    swapped = tuple(Message(turn.role, other.content) for turn, other in zip(TURNS, TURNS[::-1], strict=True))
    assert replace(PAIR, history=TURNS).id != replace(PAIR, history=swapped).id


def test_messages_end_with_the_answer() -> None:
    roles = [(turn.role, turn.content) for turn in replace(PAIR, history=TURNS).messages]
    assert roles == [
        ("user", "안녕"),
        ("assistant", "반가워요"),
        ("user", "오늘 날씨 어때?"),
        ("assistant", "맑고 따뜻해요."),
    ]


def test_a_pair_never_changes() -> None:
    with pytest.raises(FrozenInstanceError):
        PAIR.question = "바뀐 질문"  # type: ignore[misc]


def test_reply_for_programs_and_for_people() -> None:
    reply = Reply("날씨?", "맑아요.\n따뜻해요.", "retrieved", 0.87654321, Evidence("날씨 어때?", "맑아요.", 0.9))
    assert json.loads(json.dumps(reply.to_json())) == {
        "question": "날씨?",
        "answer": "맑아요.\n따뜻해요.",
        "source": "retrieved",
        "score": 0.876543,
        "evidence": {"question": "날씨 어때?", "answer": "맑아요.", "similarity": 0.9},
        "suggestions": [],
    }
    assert reply.lines() == ["맑아요.", "따뜻해요."]
    assert Reply("", "네?", "fallback", 0.0).to_json()["evidence"] is None
    unsure = Reply("", "혹시?", "fallback", 0.3, suggestions=("날씨 어때?", "비 와?"))
    assert unsure.lines() == ["혹시?", "  1. 날씨 어때?", "  2. 비 와?"]
