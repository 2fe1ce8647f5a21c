from __future__ import annotations

import json
from pathlib import Path

import pytest

from daedap.config import ReadOptions
from daedap.data.corpus import Document, hold_out, read_texts
from daedap.errors import DataError

FILMS = [[f"{film}번째 영화의 {n}번째 감상이에요" for n in range(10)] for film in range(40)]


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "cp949", "utf-16"])
def test_blank_lines_part_documents(tmp_path: Path, encoding: str) -> None:
    file = write(tmp_path / "영화평.txt", "재미있어요\r\n  또   볼래요 \r\n\r\n\r\n별로였어요\r\n", encoding)
    assert read_texts(file).documents == [Document(("재미있어요", "또 볼래요")), Document(("별로였어요",))]


def test_a_text_without_blank_lines_is_cut_into_stretches(tmp_path: Path) -> None:
    lines = [f"{n}번째 줄" for n in range(1200)]
    documents = read_texts(write(tmp_path / "줄.txt", "\n".join(lines))).documents
    assert [len(document.texts) for document in documents] == [500, 700]
    assert all(document.cut for document in documents)
    assert [text for document in documents for text in document.texts] == lines


def test_letters_in_pieces_and_invisible_characters_are_repaired(tmp_path: Path) -> None:
    (document,) = read_texts(write(tmp_path / "a.txt", "\ufeff한글\u200b은\u3000좋다\n")).documents
    assert document.texts == ("한글은 좋다",)


def test_dialogues_are_read_whole(tmp_path: Path) -> None:
    turns = ["안녕", "안녕하세요!", "뭐 해?", "책을 읽어요."]
    roles = ["user", "assistant"] * 2
    talk = {"messages": [{"role": role, "content": text} for role, text in zip(roles, turns, strict=True)]}
    other = {"messages": [{"role": "user", "content": "잘 자"}, {"role": "assistant", "content": "좋은 꿈 꿔요."}]}
    lines = "\n".join(json.dumps(one, ensure_ascii=False) for one in (talk, other))
    documents = read_texts(write(tmp_path / "대화.jsonl", lines)).documents
    assert documents == [Document(tuple(turns), dialogue=True), Document(("잘 자", "좋은 꿈 꿔요."), dialogue=True)]


def test_a_table_of_pairs_is_one_dialogue_for_each_row(tmp_path: Path) -> None:
    documents = read_texts(write(tmp_path / "qa.csv", "질문,답변\n배고파,밥 먹어요.\n졸려,자요.\n")).documents
    assert [document.texts for document in documents] == [("배고파", "밥 먹어요."), ("졸려", "자요.")]


@pytest.mark.parametrize("text", ["\n \n\t\n", "\u200b\n"])
def test_no_text_is_told(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"빈\.txt holds no text"):
        read_texts(write(tmp_path / "빈.txt", text))


def test_whole_documents_are_held_out() -> None:
    films = [Document(tuple(film)) for film in FILMS]
    train, dev = hold_out([films], 0.1, seed=1)
    assert 3 <= len(dev) <= 5
    assert sorted([*train, *dev], key=films.index) == films
    assert hold_out([films], 0.1, seed=1) == (train, dev) != hold_out([films], 0.1, seed=2)
    assert hold_out([films], 0, seed=1) == (films, [])


def test_something_is_always_left_to_learn() -> None:
    train, dev = hold_out([[Document(("하나",)), Document(("둘",))]], 0.5, seed=1)
    assert (len(train), len(dev)) == (1, 1)
    assert hold_out([[Document(("하나뿐",))]], 0.5, seed=1) == ([Document(("하나뿐",))], [])


def test_held_out_texts_that_training_knows_are_left_out() -> None:
    films = [Document((*film, "재미 있어요!" if n % 2 else "재미있어요")) for n, film in enumerate(FILMS)]
    train, dev = hold_out([films], 0.1, seed=1)
    assert any("재미있어요" in document.texts for document in train)
    assert {text for document in dev for text in document.texts}.isdisjoint({"재미있어요", "재미 있어요!"})
    assert all(len(document.texts) == 10 for document in dev)


def test_a_held_out_stretch_loses_its_ends() -> None:
    stretches = [Document(tuple(f"{n}-{line}" for line in range(500)), cut=True) for n in range(10)]
    _, (dev,) = hold_out([stretches], 0.05, seed=3)
    assert len(dev.texts) == 300
    assert dev.texts[0].endswith("-100")


def test_a_dialogue_is_left_out_only_when_all_of_it_is_known() -> None:
    greeting = ("안녕", "안녕하세요!")
    talks = [Document((*greeting, f"{n}번 질문", f"{n}번 대답"), dialogue=True) for n in range(20)]
    talks += [Document(greeting, dialogue=True)] * 20
    _, dev = hold_out([talks], 0.5, seed=1)
    assert dev
    assert all(document.texts != greeting for document in dev)
    assert all(document.texts[:2] == greeting for document in dev)


def test_a_blank_line_somewhere_holds_out_no_half_of_it(tmp_path: Path) -> None:
    lines = [f"{n}번째 감상평" for n in range(8000)]
    documents = read_texts(write(tmp_path / "감상.txt", "\n".join([*lines[:4000], "", *lines[4000:]]))).documents
    for seed in range(10):
        train, dev = hold_out([documents], 0.01, seed)
        held = 8000 - sum(len(document.texts) for document in train)
        assert 0 < held <= 500
        assert 0 < sum(len(document.texts) for document in dev) <= held - 200


def test_a_text_held_out_of_one_file_is_not_learned_from_another() -> None:
    films = [Document(tuple(film)) for film in FILMS]
    train, dev = hold_out([films, [Document(("다른 글",)), *films]], 0.1, seed=1)
    learned = {text for document in train for text in document.texts}
    assert all(learned.isdisjoint(document.texts) for document in dev)


def test_no_more_is_held_out_than_measuring_takes_time_for() -> None:
    long = [Document((f"{n}" * 10_000,)) for n in range(1000, 1200)]
    _, dev = hold_out([long], 0.5, seed=1)
    assert sum(document.characters for document in dev) <= 600_000


def test_a_greeting_that_many_dialogues_share_is_kept_in_each(tmp_path: Path) -> None:
    talks = []
    for answer in ("먹었어요.", "아직이에요."):
        turns = [("user", "안녕"), ("assistant", "반가워요"), ("user", "밥은"), ("assistant", answer)]
        talks.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    lines = "\n".join(json.dumps(one, ensure_ascii=False) for one in [*talks, talks[0]])
    documents = read_texts(write(tmp_path / "대화.jsonl", lines)).documents
    assert [document.texts for document in documents] == [
        ("안녕", "반가워요", "밥은", "먹었어요."),
        ("안녕", "반가워요", "밥은", "아직이에요."),
    ]


def test_json_lines_with_a_text_are_a_document_each(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in ("첫 줄\n둘째 줄", "", "다른 글")]
    texts = read_texts(write(tmp_path / "글.jsonl", "\n".join(lines)))
    assert texts.documents == [Document(("첫 줄", "둘째 줄")), Document(("다른 글",))]
    assert texts.left_out == 1


def test_lines_that_lost_letters_are_left_out(tmp_path: Path) -> None:
    texts = read_texts(write(tmp_path / "a.txt", "멀쩡한 줄\n깨진 \ufffd 줄\n또 멀쩡한 줄\n"))
    assert [text for document in texts.documents for text in document.texts] == ["멀쩡한 줄", "또 멀쩡한 줄"]
    assert texts.left_out == 1


def test_an_exported_chat_is_a_dialogue(tmp_path: Path) -> None:
    chat = "친구 님과 카카오톡 대화\n저장한 날짜 : 2024-01-02 10:00:00\n\n"
    chat += "--------------- 2024년 1월 1일 월요일 ---------------\n"
    chat += "[영희] [오후 3:13] 뭐 해?\n[철수] [오후 3:14] 밥 먹어\n"
    file = write(tmp_path / "KakaoTalk.txt", chat)
    assert [document.texts for document in read_texts(file, ReadOptions(speaker="철수")).documents] == [
        ("뭐 해?", "밥 먹어")
    ]
    with pytest.raises(DataError, match="--speaker"):
        read_texts(file)
