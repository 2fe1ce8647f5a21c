from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daedap.data.clean import BadRow
from daedap.data.objects import objects
from daedap.data.reader import detect_source, read_pairs
from daedap.errors import DataError
from daedap.types import Message, Pair

PAIRS = [
    {"question": "주차 되나요?", "answer": "네, 지하에 있어요."},
    {"question": "몇 시에 열어요?", "answer": "아홉 시요."},
]
EXPECTED = [("주차 되나요?", "네, 지하에 있어요."), ("몇 시에 열어요?", "아홉 시요.")]


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAEDAP_LANG", "en")


def read(folder: Path, text: str, name: str = "a.json") -> list[Pair | BadRow]:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return list(read_pairs(detect_source(path)))


def texts(found: list[Pair | BadRow]) -> list[tuple[str, str]]:
    return [(row.question, row.answer) for row in found if isinstance(row, Pair)]


def kinds(found: list[Pair | BadRow]) -> list[str]:
    return [row.kind for row in found if isinstance(row, BadRow)]


def dumps(value: Any, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, **options)


FORMS = {
    "lines": "\n".join(map(dumps, PAIRS)),
    "list": dumps(PAIRS),
    "list, indented": dumps(PAIRS, indent=2),
    "list, one object a line": "[\n" + ",\n".join(map(dumps, PAIRS)) + "\n]\n",
    "in an object": dumps({"version": "1", "data": PAIRS, "count": 2}),
    "in an object, indented": dumps({"info": {"name": "자료"}, "rows": PAIRS}, indent=4),
    "in two objects": dumps({"result": {"items": PAIRS}}),
    "objects over several lines": "\n".join(dumps(pair, indent=2) for pair in PAIRS),
    "commas at the ends of lines": ",\n".join(map(dumps, PAIRS)) + ",\n",
    "printed by Python": "\n".join(map(str, PAIRS)),
    "escaped": json.dumps(PAIRS),
}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.txt"])
@pytest.mark.parametrize("form", FORMS)
def test_the_same_pairs_in_every_form(tmp_path: Path, form: str, name: str) -> None:
    found = read(tmp_path, FORMS[form], name)
    assert texts(found) == EXPECTED
    assert kinds(found) == []


def test_lines_of_a_list_are_counted(tmp_path: Path) -> None:
    assert [row.line for row in read(tmp_path, FORMS["list, indented"])] == [2, 6]


def test_a_broken_object_in_a_list_costs_itself(tmp_path: Path) -> None:
    text = dumps([*PAIRS, PAIRS[0], *PAIRS], indent=2).replace('"answer": "아홉 시요."', '"answer" "아홉 시요."', 1)
    found = read(tmp_path, text)
    assert texts(found) == [EXPECTED[0], EXPECTED[0], *EXPECTED]
    assert kinds(found) == ["json"]
    cut = read(tmp_path, dumps(PAIRS)[:-30])
    assert (texts(cut), kinds(cut)) == (EXPECTED[:1], ["json"])


def test_a_list_is_streamed() -> None:
    def lines() -> Iterator[str]:
        yield "[\n"
        for number in range(50_000):
            yield f'  {{"question": "{number}번째 질문은 무엇인가요?", "answer": "답은 {number}입니다."}},\n'
        yield '  {"question": "끝", "answer": "네"}\n]\n'

    tracemalloc.start()
    count = sum(isinstance(row, dict) for _, row in objects(lines()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 50_001
    assert peak < 3_000_000


def test_sharegpt_with_a_system_text_and_tools(tmp_path: Path) -> None:
    rows_ = [
        {
            "system": "너는 상담원이야.",
            "conversations": [{"from": "human", "value": "예약 되나요?"}, {"from": "gpt", "value": "네 됩니다."}],
        },
        {
            "conversations": [
                {"from": "human", "value": "날씨 알려 줘"},
                {"from": "function_call", "value": '{"name": "weather"}'},
                {"from": "observation", "value": '{"t": 20}'},
                {"from": "gpt", "value": "20도예요."},
            ]
        },
    ]
    found = read(tmp_path, "\n".join(map(dumps, rows_)), "a.jsonl")
    assert texts(found) == [("예약 되나요?", "네 됩니다."), ("날씨 알려 줘", "20도예요.")]
    assert isinstance(found[0], Pair) and found[0].history == (Message("system", "너는 상담원이야."),)
    assert kinds(found) == ["tool"]


def test_openai_content_parts_and_tool_calls(tmp_path: Path) -> None:
    part = {"type": "text", "text": "사진 보여 줄게요"}
    image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    messages = [
        {"role": "user", "content": [part, image]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function"}]},
        {"role": "tool", "tool_call_id": "c1", "content": "{}"},
        {"role": "assistant", "content": [{"type": "text", "text": "네 보여 주세요."}]},
    ]
    found = read(tmp_path, dumps({"messages": messages}), "a.jsonl")
    assert texts(found) == [("사진 보여 줄게요", "네 보여 주세요.")]
    assert kinds(found) == ["tool"]


QUESTION, ANSWER = EXPECTED[0]
LAYOUTS: dict[str, Any] = {
    "TRL, conversational": {
        "prompt": [{"role": "user", "content": QUESTION}],
        "completion": [{"role": "assistant", "content": ANSWER}],
    },
    "TRL, preference": {"prompt": QUESTION, "chosen": ANSWER, "rejected": "몰라요."},
    "OpenAI, former completion": {"prompt": f"{QUESTION}\n\n###\n\n", "completion": f" {ANSWER} END"},
    "Alpaca": {"instruction": QUESTION, "input": "", "output": ANSWER},
    "KoAlpaca text": {"text": f"### 명령문: {QUESTION}\n\n### 답변: {ANSWER}"},
    "Alpaca text": {"text": f"### Instruction:\n{QUESTION}\n\n### Response:\n{ANSWER}"},
    "camel case": {"userMessage": QUESTION, "botMessage": ANSWER},
    "strings in turn": {"conversation": [QUESTION, ANSWER]},
    "exchanges": {"dialogue": [[QUESTION, ANSWER]]},
    "exchanges with keys": {"turns": [{"input": QUESTION, "output": ANSWER}]},
    "upper case roles": {"messages": [{"role": "USER", "content": QUESTION}, {"role": "ASSISTANT", "content": ANSWER}]},
    "AI-Hub, two speakers": {
        "header": {"dialogueInfo": {"topic": "음식"}},
        "body": {
            "dialogue": [
                {"participantID": "P01", "utterance": QUESTION},
                {"participantID": "P02", "utterance": ANSWER},
            ],
            "summary": "주차 이야기",
        },
    },
    "AI-Hub, 감성대화": {
        "profile": {"persona-id": "P1"},
        "talk": {"id": "T1", "content": {"HS01": QUESTION, "SS01": ANSWER, "HS02": "", "SS02": ""}},
    },
    "AI-Hub, nested": {"info": {"title": "상담"}, "qna": {"question": QUESTION, "answer": ANSWER}},
    "KorQuAD": {
        "version": "1",
        "data": [
            {
                "title": "가게",
                "paragraphs": [
                    {"context": "…", "qas": [{"question": QUESTION, "answers": [{"text": ANSWER, "answer_start": 0}]}]}
                ],
            }
        ],
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("as_list", [False, True])
def test_layouts_of_data_sets(tmp_path: Path, layout: str, as_list: bool) -> None:
    value = [LAYOUTS[layout]] if as_list else LAYOUTS[layout]
    assert texts(read(tmp_path, dumps(value))) == [EXPECTED[0]]


def test_several_wordings_and_answers(tmp_path: Path) -> None:
    found = read(tmp_path, dumps({"question": ["언제 열어요?", "몇 시에 열어요?"], "answer": "아홉 시요."}), "a.jsonl")
    assert texts(found) == [("언제 열어요?", "아홉 시요."), ("몇 시에 열어요?", "아홉 시요.")]


def test_three_speakers_are_no_conversation_of_two(tmp_path: Path) -> None:
    turns = [{"speaker": name, "text": name} for name in ("A", "B", "C")]
    with pytest.raises(DataError, match="not clear"):
        read(tmp_path, dumps([{"header": 1, "body": {"dialogue": turns}}]))


def test_objects_without_pairs_are_refused_with_their_keys(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 id '7', 2 name '주차'.*--question-column"):
        read(tmp_path, dumps({"id": 7, "name": "주차", "tags": []}))


def test_yaml_of_messages(tmp_path: Path) -> None:
    said = [("고객", "주차 되나요?"), ("상담원", "네 됩니다."), ("고객", "언제 열어요?"), ("상담원", "아홉 시예요.")]
    lines = (f"- 화자: {who}\n  발화: {text}\n" for who, text in said)
    (tmp_path / "a.yml").write_text("".join(lines), encoding="utf-8")
    pairs = texts(list(read_pairs(detect_source(tmp_path / "a.yml"))))
    assert pairs == [("주차 되나요?", "네 됩니다."), ("언제 열어요?", "아홉 시예요.")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yml", "- 1: 3\n  질문: 주차 되나요?\n  답변: 네 됩니다.\n"),
        ("a.yml", "- 질문: {0: '주차 되나요?', 1: '언제 열어요?'}\n  답변: {0: 네 됩니다., 1: 아홉 시예요.}\n"),
        ("a.jsonl", "{'질문': '주차 되나요?', 2: 'a', '답변': '네 됩니다.'}\n"),
    ],
)
def test_keys_that_are_numbers(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert texts(list(read_pairs(detect_source(tmp_path / name))))[0] == ("주차 되나요?", "네 됩니다.")


def test_yaml_and_parquet(tmp_path: Path) -> None:
    chatterbot = "categories:\n- 인사\nconversations:\n- - 안녕\n  - 반가워요\n- - 주차 되나요?\n  - 네 됩니다.\n"
    assert texts(read(tmp_path, chatterbot, "a.yml")) == [("안녕", "반가워요"), ("주차 되나요?", "네 됩니다.")]
    with pytest.raises(DataError, match="Rasa"):
        read(tmp_path, 'version: "3.1"\nnlu:\n- intent: a\n  examples: |\n    - 주차\n', "a.yml")
    with pytest.raises(DataError, match="as YAML"):
        read(tmp_path, "a: [1, 2\nb: }", "a.yml")
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(PAIRS), tmp_path / "a.parquet")
    assert texts(list(read_pairs(detect_source(tmp_path / "a.parquet")))) == EXPECTED
    (tmp_path / "b.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(DataError, match="as Parquet"):
        detect_source(tmp_path / "b.parquet")


def test_nested_aliases_of_yaml_do_not_grow(tmp_path: Path) -> None:
    """Nine aliases of nine aliases and so on: 9 ** 12 values, if each were copied."""
    levels = [f"x{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    text = "\n".join(["conversations:", "- - 주차 되나요?", "  - 네 됩니다.", "x0: &a0 [주차]", *levels])
    assert texts(read(tmp_path, text, "a.yml")) == [("주차 되나요?", "네 됩니다.")]
