from __future__ import annotations

import json
from pathlib import Path

import pytest

from daedap.config import SplitOptions
from daedap.data.split import read_components, read_rows, split, write_lookup, write_split
from daedap.errors import RunError
from daedap.types import Message, Pair

HISTORY = (Message("user", "안녕"), Message("assistant", "반가워요"))
PAIRS = [
    Pair("오늘 날씨 어때?", '맑고 "따뜻"해요.\n그렇죠?', "0", line=2),
    Pair("배고파 죽겠어", "얼른 드세요.", "일상", HISTORY, 3, "대화 1"),
    Pair("ㅋㅋ 웃기다 😀", "\u2028하하", "", line=4),
]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_split(tmp_path, split(PAIRS, SplitOptions(dev_size=0, test_size=0)))
    assert read_rows(tmp_path, "train") == PAIRS
    assert read_components(tmp_path, "train") == [pair.id for pair in PAIRS]
    assert read_rows(tmp_path, "dev") == read_rows(tmp_path, "test") == []


def test_every_pair_is_on_its_side(tmp_path: Path) -> None:
    rows = [Pair(f"{n}번째 질문은 {chr(0xAC00 + 37 * n)}{chr(0xAC00 + 53 * n)}이다", f"답 {n}") for n in range(60)]
    parts = split(rows, SplitOptions(split="random", dev_size=0.2, test_size=0.3))
    write_split(tmp_path, parts)
    for side in ("train", "dev", "test"):
        assert read_rows(tmp_path, side) == parts.rows(side)
        assert read_components(tmp_path, side) == parts.components_of(side)


def test_rows_on_disk_say_what_they_are(tmp_path: Path) -> None:
    write_split(tmp_path, split(PAIRS[1:2], SplitOptions(dev_size=0, test_size=0)))
    record = json.loads((tmp_path / "data" / "train.jsonl").read_text(encoding="utf-8"))
    assert record == {
        "id": PAIRS[1].id,
        "component": PAIRS[1].id,
        "question": "배고파 죽겠어",
        "answer": "얼른 드세요.",
        "label": "일상",
        "history": [{"role": "user", "content": "안녕"}, {"role": "assistant", "content": "반가워요"}],
        "line": 3,
        "conversation_id": "대화 1",
    }


def test_a_missing_or_broken_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"train\.jsonl"):
        read_rows(tmp_path, "train")
    write_split(tmp_path, split(PAIRS, SplitOptions(dev_size=0, test_size=0)))
    path = tmp_path / "data" / "train.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RunError, match="backup"):
        read_rows(tmp_path, "train")


def test_rows_of_earlier_runs_are_read(tmp_path: Path) -> None:
    write_split(tmp_path, split(PAIRS[1:2], SplitOptions(dev_size=0, test_size=0)))
    path = tmp_path / "data" / "train.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"conversation_id"', '"thread"'), encoding="utf-8")
    assert read_rows(tmp_path, "train") == PAIRS[1:2]


def test_rows_that_are_only_looked_up(tmp_path: Path) -> None:
    write_split(tmp_path, split(PAIRS[:1], SplitOptions(dev_size=0, test_size=0)))
    assert read_rows(tmp_path, "lookup") == []
    write_lookup(tmp_path, PAIRS[1:])
    assert read_rows(tmp_path, "lookup") == PAIRS[1:]
