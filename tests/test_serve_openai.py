"""OpenAI's API over plain HTTP: what clients rely on, and errors in one shape."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PAIRS
from serving import runs_with, served
from starlette.testclient import TestClient

from daedap.runs import Run

KNOWN = PAIRS[5]
USER = {"role": "user", "content": KNOWN.question}


@pytest.fixture(scope="module")
def client(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    runs: Path = runs_with(trained, tmp_path_factory.mktemp("openai"), copies=2)
    with served(runs, requests_per_minute=0) as client:
        yield client


def post(client: TestClient, path: str, **body: Any) -> dict[str, Any]:
    answer = client.post(f"/v1/{path}", json=body)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def stream(client: TestClient, path: str, **body: Any) -> list[dict[str, Any]]:
    """The chunks; a stream of chat or completions ends with [DONE]."""
    lines = client.post(f"/v1/{path}", json={**body, "stream": True}).text.splitlines()
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    if path != "responses":
        assert data.pop() == "[DONE]"
    return [json.loads(one) for one in data]


@pytest.mark.parametrize(
    "messages",
    [
        [USER],
        [{"role": "system", "content": "You are a pirate."}, USER],
        [{"role": "developer", "content": "너는 해적이야"}, USER],
        [{"role": "user", "content": "안녕"}, {"role": "assistant", "content": None}, USER],
        [{"role": "user", "content": [{"type": "text", "text": KNOWN.question}]}],
        [{"role": "user", "content": KNOWN.question, "name": "철수", "unknown": {"field": 1}}],
        [USER, {"role": "tool", "content": "{}", "tool_call_id": "1"}],
    ],
)
def test_messages_of_all_kinds(client: TestClient, messages: list[dict[str, Any]]) -> None:
    told = post(client, "chat/completions", messages=messages, model="daedap", logit_bias={}, store=True, metadata={})
    (choice,) = told["choices"]
    assert choice["message"] == {"role": "assistant", "content": KNOWN.answer, "refusal": None}
    assert (choice["finish_reason"], choice["logprobs"]) == ("stop", None)
    assert choice["daedap"]["evidence"]["question"] == KNOWN.question
    assert (told["object"], told["model"]) == ("chat.completion", "daedap-2")
    assert told["usage"]["total_tokens"] == told["usage"]["prompt_tokens"] + told["usage"]["completion_tokens"] > 0


def test_a_stream(client: TestClient) -> None:
    first, *middle, last = stream(client, "chat/completions", messages=[USER])
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle) == KNOWN.answer
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "stop")
    assert last["choices"][0]["daedap"]["source"] == "retrieved"
    assert len({chunk["id"] for chunk in (first, *middle, last)}) == 1
    assert not any("usage" in chunk for chunk in (first, *middle, last)), "only when asked"


def test_usage_in_a_stream_when_asked(client: TestClient) -> None:
    *chunks, usage = stream(client, "chat/completions", messages=[USER], stream_options={"include_usage": True})
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] > 0
    assert all(chunk["usage"] is None for chunk in chunks)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_an_answer_can_be_cut(client: TestClient, name: str) -> None:
    (choice,) = post(client, "chat/completions", messages=[USER], **{name: 2})["choices"]
    assert KNOWN.answer.startswith(choice["message"]["content"])
    assert 0 < len(choice["message"]["content"]) < len(KNOWN.answer)
    assert choice["finish_reason"] == "length"


def test_an_answer_ends_before_a_stop(client: TestClient) -> None:
    place = KNOWN.answer.index(" ")
    for stop in (" ", ["없는 말", " "]):
        (choice,) = post(client, "chat/completions", messages=[USER], stop=stop)["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (KNOWN.answer[:place], "stop")


def test_several_choices_are_different(client: TestClient) -> None:
    options = {"n": 3, "temperature": 0.9, "top_p": 0.5, "seed": 7}
    choices = post(client, "chat/completions", messages=[USER], **options)["choices"]
    texts = [choice["message"]["content"] for choice in choices]
    assert texts[0] == KNOWN.answer
    assert len(set(texts)) == 3
    assert [choice["index"] for choice in choices] == [0, 1, 2]


def test_completions(client: TestClient) -> None:
    told = post(client, "completions", prompt=[KNOWN.question, PAIRS[6].question], model="daedap-1")
    assert [choice["text"] for choice in told["choices"]] == [KNOWN.answer, PAIRS[6].answer]
    chunks = stream(client, "completions", prompt=KNOWN.question)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == KNOWN.answer


def test_responses(client: TestClient) -> None:
    for wanted in (
        KNOWN.question,
        [USER],
        [{"role": "user", "content": [{"type": "input_text", "text": KNOWN.question}]}],
    ):
        told = post(client, "responses", input=wanted, instructions="짧게", store=False)
        (item,) = told["output"]
        assert item["content"][0]["text"] == KNOWN.answer
        assert (told["status"], told["id"][:5], item["id"][:4]) == ("completed", "resp_", "msg_")


def test_events_of_a_response(client: TestClient) -> None:
    events = stream(client, "responses", input=KNOWN.question)
    kinds = [event["type"].removeprefix("response.") for event in events]
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert [kind for kind in kinds if kind != "output_text.delta"] == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    assert "".join(deltas) == KNOWN.answer == events[-1]["response"]["output"][0]["content"][0]["text"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


def test_models(client: TestClient) -> None:
    names = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert names == ["daedap", "daedap-2", "daedap-1"]
    assert client.get("/v1/models/daedap-1").json()["object"] == "model"
    assert client.get("/v1/models/gpt").status_code == 404


def test_embeddings(client: TestClient) -> None:
    told = post(client, "embeddings", input=["배송 언제 와요", "배송은 언제 오나요?", "환불"], model="any")
    vectors = np.array([each["embedding"] for each in told["data"]])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    packed = post(client, "embeddings", input="배송 언제 와요", encoding_format="base64")["data"][0]["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(packed), "<f4"), vectors[0], atol=0.05)
    assert told["usage"]["prompt_tokens"] > 0


REFUSED: list[tuple[str, dict[str, Any], int, str, str | None]] = [
    ("chat/completions", {}, 400, "invalid_request", "messages"),
    ("chat/completions", {"messages": []}, 400, "invalid_request", "messages"),
    ("chat/completions", {"messages": "안녕"}, 400, "invalid_request", "messages"),
    ("chat/completions", {"messages": [{"role": "system", "content": "x"}]}, 400, "invalid_request", "messages"),
    ("chat/completions", {"messages": [{"role": "king", "content": "x"}]}, 400, "invalid_request", "messages.0.role"),
    ("chat/completions", {"messages": [{"content": "x"}]}, 400, "invalid_request", "messages.0.role"),
    ("chat/completions", {"messages": [USER], "n": 0}, 400, "invalid_request", "n"),
    ("chat/completions", {"messages": [USER], "temperature": 3}, 400, "invalid_request", "temperature"),
    ("chat/completions", {"messages": [USER], "max_tokens": 0}, 400, "invalid_request", "max_tokens"),
    ("chat/completions", {"messages": [USER], "model": "gpt-4"}, 404, "model_not_found", "model"),
    ("chat/completions", {"messages": [USER], "model": "/etc/passwd"}, 404, "model_not_found", "model"),
    ("chat/completions", {"messages": [USER], "model": "9"}, 404, "model_not_found", "model"),
    ("chat/completions", {"messages": [USER], "tool_choice": "required"}, 400, "unsupported_parameter", "tool_choice"),
    (
        "chat/completions",
        {"messages": [USER], "response_format": {"type": "json_object"}},
        *(400, "unsupported_parameter", "response_format"),
    ),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        *(400, "unsupported_parameter", "messages.0.content"),
    ),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": "가" * 2001}]},
        *(400, "context_length_exceeded", "messages"),
    ),
    ("completions", {"prompt": [1, 2, 3]}, 400, "invalid_request", "prompt"),
    (
        "responses",
        {"input": "?", "previous_response_id": "resp_1"},
        400,
        "unsupported_parameter",
        "previous_response_id",
    ),
    ("embeddings", {"input": [[1, 2]]}, 400, "invalid_request", "input"),
    ("embeddings", {"input": []}, 400, "invalid_request", "input"),
    ("embeddings", {"input": "x", "dimensions": 3}, 400, "unsupported_parameter", "dimensions"),
    ("audio/speech", {}, 404, "not_found", None),
    ("models", {}, 405, "method_not_allowed", None),
]


@pytest.mark.parametrize(("path", "body", "status", "code", "param"), REFUSED)
def test_errors(client: TestClient, path: str, body: dict[str, Any], status: int, code: str, param: str | None) -> None:
    refused = client.post(f"/v1/{path}", json=body)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (status, code)
    assert (error["param"] or "").startswith(param or "")
    assert error["message"]
    assert "Traceback" not in refused.text
