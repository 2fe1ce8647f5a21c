"""OpenAI's API over plain HTTP: what clients rely on, and errors in one shape."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PAIRS
from serving import runs_with, served
from starlette.testclient import TestClient

from daedap.config import AnswerOptions
from daedap.model.decoding import LanguageModel
from daedap.model.prompt import Prompt
from daedap.retrieval.bot import Bot
from daedap.runs import Run
from daedap.serve.bots import Question
from daedap.serve.openai import ChatMessage, ChatRequest
from daedap.types import Float64Array, Generation, Pair, Sampling

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
    received: dict[str, Any] = answer.json()
    return received


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
    received = post(
        client, "chat/completions", messages=messages, model="daedap", logit_bias={}, store=True, metadata={}
    )
    (choice,) = received["choices"]
    assert choice["message"] == {"role": "assistant", "content": KNOWN.answer, "refusal": None}
    assert (choice["finish_reason"], choice["logprobs"]) == ("stop", None)
    assert choice["daedap"]["evidence"]["question"] == KNOWN.question
    assert (received["object"], received["model"]) == ("chat.completion", "daedap-2")
    assert (
        received["usage"]["total_tokens"]
        == received["usage"]["prompt_tokens"] + received["usage"]["completion_tokens"]
        > 0
    )


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
    received = post(client, "completions", prompt=[KNOWN.question, PAIRS[6].question], model="daedap-1")
    assert [choice["text"] for choice in received["choices"]] == [KNOWN.answer, PAIRS[6].answer]
    chunks = stream(client, "completions", prompt=KNOWN.question)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == KNOWN.answer


def test_responses(client: TestClient) -> None:
    for wanted in (
        KNOWN.question,
        [USER],
        [{"role": "user", "content": [{"type": "input_text", "text": KNOWN.question}]}],
    ):
        received = post(client, "responses", input=wanted, instructions="짧게", store=False)
        (item,) = received["output"]
        assert item["content"][0]["text"] == KNOWN.answer
        assert (received["status"], received["id"][:5], item["id"][:4]) == ("completed", "resp_", "msg_")


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
    received = post(client, "embeddings", input=["배송 언제 와요", "배송은 언제 오나요?", "환불"], model="any")
    vectors = np.array([each["embedding"] for each in received["data"]])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    packed = post(client, "embeddings", input="배송 언제 와요", encoding_format="base64")["data"][0]["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(packed), "<f4"), vectors[0], atol=0.05)
    assert received["usage"]["prompt_tokens"] > 0


REFUSED: list[tuple[str, dict[str, Any], int, str, str | None]] = [
    ("chat/completions", {}, 400, "invalid_request", "messages"),
    ("chat/completions", {"messages": []}, 400, "invalid_request", "messages"),
    ("chat/completions", {"messages": "안녕"}, 400, "invalid_request", "messages"),
    ("chat/completions", {"messages": [{"role": "system", "content": "x"}]}, 400, "invalid_request", "messages"),
    ("chat/completions", {"messages": [{"role": "king", "content": "x"}]}, 400, "invalid_request", "messages.0.role"),
    ("chat/completions", {"messages": [{"content": "x"}]}, 400, "invalid_request", "messages.0.role"),
    ("chat/completions", {"messages": [USER], "n": 0}, 400, "invalid_request", "n"),
    ("chat/completions", {"messages": [USER], "temperature": 3}, 400, "invalid_request", "temperature"),
    ("chat/completions", {"messages": [USER], "seed": 2**63}, 400, "invalid_request", "seed"),
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


# ---- how the language model proposes answers, where it takes part ----


@dataclass(frozen=True)
class Recorder:
    """A run's language model that notes how it is asked."""

    model: LanguageModel
    asked: list[tuple[int, float, float, int]] = field(default_factory=list)
    """Questions, temperature, top_p and seed of each call; greedy ones have a temperature of 0."""

    @property
    def prompt(self) -> Prompt:
        return self.model.prompt

    def log2_probability(self, pairs: Sequence[Pair]) -> Float64Array:
        return self.model.log2_probability(pairs)

    def reply(self, pairs: Sequence[Pair]) -> list[Generation]:
        self.asked.append((len(pairs), 0, 0, 0))
        return self.model.reply(pairs)

    def sample(
        self,
        pairs: Sequence[Pair],
        count: int,
        *,
        seed: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> list[list[Generation]]:
        self.asked.append((len(pairs), temperature, top_p, seed))
        return self.model.sample(pairs, count, seed=seed, temperature=temperature, top_k=top_k, top_p=top_p)


def test_a_language_model_is_asked_as_the_client_wants(client: TestClient, trained: Run) -> None:
    app: Any = client.app
    options = AnswerOptions(samples=2, fallback="off")
    model = Recorder(Bot.from_run(trained, answer_options=options, held_out=True).language_model)
    bot = Bot.from_run(trained, answer_options=options, held_out=True, model=model)
    wanted: list[Any] = [None, None, Sampling(1.5), Sampling(1.5), Sampling(0), *[Sampling(2.0, 0.5, 7)] * 2]
    questions = [Question(bot, Pair(f"양자역학을 설명해 봐 {n}", ""), each) for n, each in enumerate(wanted)]
    replies = app.app.state.service.bots.answer(questions)
    assert [reply.question for reply in replies] == [question.pair.question for question in questions]
    assert sorted(model.asked) == sorted(
        [
            (2, 0.7, 1.0, 42),
            (2, 1.5, 1.0, 42),
            (1, 0, 0, 0),
            *[(1, 2.0, 0.5, 7)] * 2,
        ]  # a seed: alone, whoever else asks
    )


def test_top_p(trained: Run) -> None:
    model = Bot.from_run(trained, answer_options=AnswerOptions(samples=2), held_out=True).language_model
    asked = [Pair("양자역학을 설명해 봐", "")]
    (greedy,) = model.reply(asked)
    (certain,) = model.sample(asked, 6, seed=1, temperature=5.0, top_p=1e-6)
    assert {one.text for one in certain} == {greedy.text}
    (loose,) = model.sample(asked, 6, seed=1, temperature=5.0)
    assert len({one.text for one in loose}) > 1


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, None),
        ({"temperature": 0}, Sampling(temperature=0)),
        ({"temperature": 1.5, "top_p": 0.3, "seed": -1}, Sampling(1.5, 0.3, 2**32 - 1)),
    ],
)
def test_sampling_of_a_request(given: dict[str, Any], wanted: Sampling | None) -> None:
    assert ChatRequest(messages=[ChatMessage(**USER)], **given).sampling == wanted


def test_where_answers_are_looked_up_sampling_changes_nothing(client: TestClient) -> None:
    options: Any = ({}, {"temperature": 2, "top_p": 0.1, "seed": 2**63 - 1}, {"temperature": 0, "seed": -(2**63)})
    received = [post(client, "chat/completions", messages=[USER], **each)["choices"][0]["message"] for each in options]
    assert [each["content"] for each in received] == [KNOWN.answer] * 3
