"""OpenAI's API: chat, responses, completions, models, embeddings. Real clients work unchanged.

Where an answer comes from stands in the field `daedap` of each choice. Answers are mostly looked up: temperature, top_p
and seed change only what a language model proposes.
"""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from daedap.errors import RunError
from daedap.model.sentence_encoder import built_in_encoder
from daedap.retrieval.bot import Bot
from daedap.runs import Json, Run
from daedap.serve.bots import Question, alternatives
from daedap.serve.errors import ApiError, invalid
from daedap.serve.openai_types import (
    ChatMessage,
    ChatRequest,
    Common,
    CompletionRequest,
    EmbeddingRequest,
    ResponseRequest,
    checked,
    conversation,
)
from daedap.serve.page import Server, pieces
from daedap.serve.service import Service, asked
from daedap.serve.tokens import count_tokens, first_tokens
from daedap.types import Reply

router = APIRouter(prefix="/v1")
_NAME, _ENCODER = "daedap", "daedap-encoder"
_TEXTS = 2048
"""Most texts of an embedding request, as at OpenAI."""


def caller_of(request: Request) -> str:
    """Whose turn it is in the queue: the API key or the address."""
    caller: str = request.scope["daedap.client"]
    return caller


Caller = Annotated[str, Depends(caller_of)]


@dataclass(frozen=True)
class Choice:
    """One answer, cut where the request wants it to end."""

    reply: Reply
    text: str
    finish: Literal["stop", "length"]
    run: int

    @classmethod
    def of(cls, reply: Reply, run: int, *, stop: str | Sequence[str] | None = None, most: int | None = None) -> Choice:
        """`stop`: texts that the answer ends before; `most`: tokens."""
        ends = [stop] if isinstance(stop, str) else stop or []
        places = [place for end in ends if (place := reply.text.find(end)) >= 0]
        text = reply.text[: min(places)] if places else reply.text
        short = first_tokens(text, most) if most else text
        return cls(reply, short, "stop" if short == text else "length", run)

    @property
    def extension(self) -> Json:
        """Where the answer comes from."""
        document = self.reply.to_json()
        lesson = self.reply.lesson.id if self.reply.lesson else None
        names = ("source", "score", "evidence", "suggestions")
        return {**{name: document[name] for name in names}, "run": self.run, "lesson": lesson}


async def _bot(server: Service, model: str | None) -> Bot:
    """The bot of a model's name: daedap, latest, daedap-7, 7. Never a path."""
    number = (model or _NAME).removeprefix(f"{_NAME}-")
    if number in (_NAME, "latest"):
        return await server.bot(None)
    if not (number.isascii() and number.isdecimal() and len(number) < 7):
        raise _no_model()
    try:
        return await server.bot(int(number))
    except ApiError as error:
        raise _no_model() from error


def _no_model() -> ApiError:
    return ApiError(404, "model_not_found", "There is no such model: see /v1/models.", param="model")


async def _replies(server: Service, caller: str, question: Question, n: int = 1) -> list[Reply]:
    """The reply, and the answers of the next known questions where more than one is wanted: never the same twice."""
    first = await server.complete(caller, question)
    if n == 1:
        return [first]
    others = await run_in_threadpool(alternatives, question.bot, question.pair.question, n)
    return [first, *(reply for reply in others if reply.text != first.text)][:n]


def _usage(prompt: str, choices: Sequence[Choice]) -> Json:
    asked, answered = count_tokens(prompt), sum(count_tokens(choice.text) for choice in choices)
    return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}


def _head(kind: str, prefix: str, bot: Bot) -> Json:
    return {
        "id": f"{prefix}{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": f"{_NAME}-{bot.run.number}",
        "system_fingerprint": f"{_NAME}-{version('daedap')}-run-{bot.run.number}",
    }


def _stream(lines: Iterator[str]) -> StreamingResponse:
    async def body() -> AsyncIterator[str]:
        for line in lines:
            yield line

    return StreamingResponse(body(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


def _data(value: Json) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


# ---- chat ----


@router.post("/chat/completions")
async def chat(body: ChatRequest, server: Server, caller: Caller) -> Any:
    """Answer the last message of the user."""
    body.refuse_unsupported()
    bot, (text, history) = await _bot(server, body.model), conversation(body.messages)
    most = body.max_completion_tokens or body.max_tokens
    replies = await _replies(server, caller, asked(bot, text, history, body.sampling), body.n or 1)
    choices = [Choice.of(reply, bot.run.number, stop=body.stop, most=most) for reply in replies]
    prompt = "\n".join([*(turn.content for turn in history), text])
    if body.stream:
        return _stream(_chat_chunks(_head("chat.completion.chunk", "chatcmpl-", bot), body, choices, prompt))
    listed = [
        {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "finish_reason": choice.finish,
            "logprobs": None,
            "daedap": choice.extension,
        }
        for index, choice in enumerate(choices)
    ]
    return {**_head("chat.completion", "chatcmpl-", bot), "choices": listed, "usage": _usage(prompt, choices)}


def _chat_chunks(head: Json, body: Common, choices: Sequence[Choice], prompt: str) -> Iterator[str]:
    usage = {"usage": None} if body.with_usage else {}

    def chunk(index: int, delta: Json, finish: str | None = None, **more: Any) -> str:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish, **more}
        return _data({**head, "choices": [choice], **usage})

    for index, choice in enumerate(choices):
        yield chunk(index, {"role": "assistant", "content": ""})
        for piece in pieces(choice.text):
            yield chunk(index, {"content": piece})
        yield chunk(index, {}, choice.finish, daedap=choice.extension)
    if body.with_usage:
        yield _data({**head, "choices": [], "usage": _usage(prompt, choices)})
    yield "data: [DONE]\n\n"


# ---- completions ----


@router.post("/completions")
async def completions(body: CompletionRequest, server: Server, caller: Caller) -> Any:
    """Answer each prompt."""
    body.refuse_unsupported()
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if not prompts or len(prompts) > _TEXTS or not all(isinstance(prompt, str) for prompt in prompts):
        raise invalid("Give a text or a list of texts; token ids are not supported.", "prompt")
    bot = await _bot(server, body.model)
    choices: list[Choice] = []
    for prompt in prompts:
        question = asked(bot, checked(prompt, "prompt"), sampling=body.sampling)
        replies = await _replies(server, caller, question, body.n or 1)
        choices += [Choice.of(each, bot.run.number, stop=body.stop, most=body.max_tokens) for each in replies]
    head, prompt = _head("text_completion", "cmpl-", bot), "\n".join(prompts)
    if body.stream:
        return _stream(_completion_chunks(head, body, choices, prompt))
    listed = [_completion(index, choice.text, choice.finish, choice) for index, choice in enumerate(choices)]
    return {**head, "choices": listed, "usage": _usage(prompt, choices)}


def _completion(index: int, text: str, finish: str | None, choice: Choice | None = None) -> Json:
    more = {"daedap": choice.extension} if choice else {}
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish, **more}


def _completion_chunks(head: Json, body: Common, choices: Sequence[Choice], prompt: str) -> Iterator[str]:
    usage = {"usage": None} if body.with_usage else {}
    for index, choice in enumerate(choices):
        for piece in pieces(choice.text):
            yield _data({**head, "choices": [_completion(index, piece, None)], **usage})
        yield _data({**head, "choices": [_completion(index, "", choice.finish, choice)], **usage})
    if body.with_usage:
        yield _data({**head, "choices": [], "usage": _usage(prompt, choices)})
    yield "data: [DONE]\n\n"


# ---- responses ----


@router.post("/responses")
async def responses(body: ResponseRequest, server: Server, caller: Caller) -> Any:
    """Answer the last message of the input."""
    body.refuse_unsupported()
    if body.previous_response_id:
        message = "Responses are not kept here: send the whole conversation as input."
        raise ApiError(400, "unsupported_parameter", message, param="previous_response_id")
    messages = [ChatMessage(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    bot, (text, history) = await _bot(server, body.model), conversation(messages, "input")
    (reply,) = await _replies(server, caller, asked(bot, text, history, body.sampling))
    choice = Choice.of(reply, bot.run.number, most=body.max_output_tokens)
    response = _response(bot, body, choice, "\n".join([*(turn.content for turn in history), text]))
    return _stream(_response_events(response, choice)) if body.stream else response


def _response(bot: Bot, body: ResponseRequest, choice: Choice, prompt: str) -> Json:
    cut = choice.finish == "length"
    used = _usage(prompt, [choice])
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "incomplete" if cut else "completed",
        "model": f"{_NAME}-{bot.run.number}",
        "output": [_output(f"msg_{uuid.uuid4().hex}", choice.text)],
        "usage": {
            "input_tokens": used["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": used["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": used["total_tokens"],
        },
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": False,
        "temperature": body.temperature,
        "tool_choice": "none",
        "tools": [],
        "top_p": body.top_p,
        "daedap": choice.extension,
    }


def _output(id: str, text: str | None, status: str = "completed") -> Json:
    content = [] if text is None else [_output_text(text)]
    return {"id": id, "type": "message", "role": "assistant", "status": status, "content": content}


def _output_text(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _response_events(response: Json, choice: Choice) -> Iterator[str]:
    begun = {**response, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    item = response["output"][0]
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    deltas = [("response.output_text.delta", {**place, "delta": piece}) for piece in pieces(choice.text)]
    last = "response.completed" if response["status"] == "completed" else "response.incomplete"
    events: list[tuple[str, Json]] = [
        ("response.created", {"response": begun}),
        ("response.in_progress", {"response": begun}),
        ("response.output_item.added", {"output_index": 0, "item": _output(item["id"], None, "in_progress")}),
        ("response.content_part.added", {**place, "part": _output_text("")}),
        *((name, {**delta, "logprobs": []}) for name, delta in deltas),
        ("response.output_text.done", {**place, "text": choice.text, "logprobs": []}),
        ("response.content_part.done", {**place, "part": _output_text(choice.text)}),
        ("response.output_item.done", {"output_index": 0, "item": item}),
        (last, {"response": response}),
    ]
    for number, (name, event) in enumerate(events):
        yield f"event: {name}\n" + _data({"type": name, "sequence_number": number, **event})


# ---- models, embeddings ----


@router.get("/models")
def models(server: Server) -> Json:
    """The runs; `daedap` is the one that is served."""
    served = {**_model(server.bots.current.run), "id": _NAME}
    return {"object": "list", "data": [served, *map(_model, server.bots.complete())]}


@router.get("/models/{name}")
async def model(name: str, server: Server) -> Json:
    """One model."""
    known = {each["id"]: each for each in (await run_in_threadpool(models, server))["data"]}
    if name not in known:
        raise _no_model()
    result: Json = known[name]
    return result


def _model(run: Run) -> Json:
    try:
        finished = int(datetime.fromisoformat(run.manifest["finished"]).timestamp())
    except (RunError, KeyError, ValueError):
        finished = 0
    return {"id": f"{_NAME}-{run.number}", "object": "model", "created": finished, "owned_by": _NAME}


@router.post("/embeddings")
async def embeddings(body: EmbeddingRequest, server: Server) -> Json:
    """Sentence vectors of the built-in encoder, of length 1."""
    texts = [body.input] if isinstance(body.input, str) else body.input
    if not texts or len(texts) > _TEXTS or not all(isinstance(text, str) for text in texts):
        raise invalid(f"Give a text or up to {_TEXTS} texts; token ids are not supported.", "input")
    if body.encoding_format not in (None, "float", "base64"):
        raise invalid("Use float or base64.", "encoding_format")
    encoder = built_in_encoder()
    if body.dimensions not in (None, encoder.width):
        message = f"The vectors have {encoder.width} numbers; that can't be changed."
        raise ApiError(400, "unsupported_parameter", message, param="dimensions")
    vectors = (await run_in_threadpool(encoder.encode, texts)).astype("<f4")
    encoded = [_vector(vector, body.encoding_format) for vector in vectors]
    data = [{"object": "embedding", "index": index, "embedding": each} for index, each in enumerate(encoded)]
    tokens = sum(map(count_tokens, texts))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "model": _ENCODER, "data": data, "usage": usage}


def _vector(vector: Any, form: str | None) -> str | list[float]:
    if form == "base64":
        return base64.b64encode(np.ascontiguousarray(vector).tobytes()).decode("ascii")
    return [float(number) for number in vector]
