"""OpenAI's API: chat, responses, completions, models, embeddings. Real clients work unchanged.

Where an answer comes from stands in the field `daedap` of each choice. Answers are mostly looked up: temperature, top_p
and seed change only what a language model proposes. Unknown fields of requests are ignored.
"""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.metadata import version
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from daedap.database.lessons import LONGEST_QUESTION
from daedap.errors import RunError
from daedap.model.sentence_encoder import built_in_encoder
from daedap.retrieval.bot import Bot
from daedap.runs import Json, Run
from daedap.serve.bots import Question, alternatives
from daedap.serve.errors import ApiError, invalid
from daedap.serve.page import ServiceDep, pieces
from daedap.serve.service import Service, make_question
from daedap.types import Message, Reply, Sampling

router = APIRouter(prefix="/v1")
_NAME, _ENCODER = "daedap", "daedap-encoder"
_TEXTS = 2048
"""Most texts of an embedding request, as at OpenAI."""
_TEXT_PARTS = ("text", "input_text", "output_text")
_OTHER_PARTS = ("image_url", "input_image", "input_audio", "file", "input_file")
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


# ---- requests ----

ModelName = Annotated[str, Field(max_length=200)]
Choices = Annotated[int, Field(ge=1, le=8)]
Tokens = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(max_length=200_000)]
StopText = Annotated[str, Field(min_length=1, max_length=200)]
Stop = StopText | Annotated[list[StopText], Field(max_length=16)]


class Part(BaseModel):
    """A piece of a message."""

    type: str = "text"
    text: Text | None = None


class ChatMessage(BaseModel):
    """A message; `developer` is `system`, and neither changes what a bot knows."""

    role: str
    content: Text | list[Part | Text] | None = None


class StreamOptions(BaseModel):
    """What a stream tells."""

    include_usage: bool | None = None
    """Whether it ends with the tokens used."""


class Common(BaseModel):
    """What chat, text completions and responses have in common."""

    model: ModelName | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    tool_choice: Any = None
    response_format: Any = None
    text: Any = None

    def refuse_unsupported(self) -> None:
        """Raise ApiError for what would change the kind of reply, and can't."""
        wanted = {"tool_choice": self.tool_choice not in (None, "auto", "none")}
        text_format = self.text.get("format", self.text) if isinstance(self.text, dict) else None
        for name, kind in (("response_format", self.response_format), ("text", text_format)):
            wanted[name] = isinstance(kind, dict) and str(kind.get("type", "")).startswith("json")
        if refused := [name for name, is_wanted in wanted.items() if is_wanted]:
            message = f"This bot answers in plain text: {refused[0]} is not supported."
            raise ApiError(400, "unsupported_parameter", message, param=refused[0])

    @property
    def sampling(self) -> Sampling | None:
        """How the language model is to propose answers; None: as the bot does by itself."""
        seed = None if self.seed is None else self.seed % 2**32
        wanted = {"temperature": self.temperature, "top_p": self.top_p, "seed": seed}
        given: Any = {name: value for name, value in wanted.items() if value is not None}
        return Sampling(**given) if given else None


class ChatRequest(Common):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)]
    n: Choices | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    stop: Stop | None = None


class CompletionRequest(Common):
    """POST /v1/completions."""

    prompt: Text | list[Any]
    n: Choices | None = None
    max_tokens: Tokens | None = None
    stop: Stop | None = None


class ResponseRequest(Common):
    """POST /v1/responses."""

    input: Text | list[ChatMessage]
    max_output_tokens: Tokens | None = None
    previous_response_id: str | None = None


class EmbeddingRequest(BaseModel):
    """POST /v1/embeddings."""

    input: Text | list[Any]
    model: ModelName | None = None
    encoding_format: str | None = None
    dimensions: int | None = None


def conversation(messages: Sequence[ChatMessage], param: str = "messages") -> tuple[str, list[Message]]:
    """The question and the turns before it. Raises ApiError when nobody asks."""
    turns: list[Message] = []
    for place, message in enumerate(messages):
        if message.role not in _ROLES:
            raise invalid(f"Unknown role. Use one of {', '.join(_ROLES)}.", f"{param}.{place}.role")
        text = _text(message, f"{param}.{place}.content")
        if message.role in ("user", "assistant"):
            turns.append(Message("user" if message.role == "user" else "assistant", text))
    user_turns = [place for place, turn in enumerate(turns) if turn.role == "user"]
    if not user_turns:
        raise invalid("There is no message of a user to answer.", param)
    return checked(turns[user_turns[-1]].content, param), turns[: user_turns[-1]]


def checked(question: str, param: str) -> str:
    """The question, unless it is too long."""
    if len(question) > LONGEST_QUESTION:
        message = f"A question may have {LONGEST_QUESTION} characters; this one has {len(question)}."
        raise ApiError(400, "context_length_exceeded", message, param=param)
    return question


def _text(message: ChatMessage, param: str) -> str:
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    parts = [Part(text=part) if isinstance(part, str) else part for part in message.content]
    if message.role == "user" and (other := [part.type for part in parts if part.type not in _TEXT_PARTS]):
        kind = other[0] if other[0] in _OTHER_PARTS else "other"
        raise ApiError(400, "unsupported_parameter", f"This bot reads text only, no {kind} parts.", param=param)
    return "\n".join(part.text for part in parts if part.text)


def _texts_of(given: str | list[Any], param: str, message: str) -> list[str]:
    """One text or several as a list. Raises ApiError for none, too many, or ids of tokens."""
    texts = [given] if isinstance(given, str) else given
    if not texts or len(texts) > _TEXTS or not all(isinstance(text, str) for text in texts):
        raise invalid(message, param)
    return texts


# ---- answers ----


def caller_of(request: Request) -> str:
    """Whose turn it is in the queue: the API key or the address."""
    return str(request.scope["daedap.client"])


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
        text = reply.text[: min(places, default=None)]
        short = first_tokens(text, most) if most else text
        return cls(reply, short, "stop" if short == text else "length", run)

    @property
    def extension(self) -> Json:
        """Where the answer comes from."""
        document = self.reply.to_json()
        shown = {name: document[name] for name in ("source", "score", "evidence", "suggestions")}
        return {**shown, "run": self.run, "lesson": self.reply.lesson.id if self.reply.lesson else None}


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


@cache
def _tokenizer() -> Any:
    """That of the sentence encoder, which every run has: the API counts its tokens."""
    tokenizer = built_in_encoder().tokenizer
    whole = type(tokenizer).from_str(tokenizer.to_str())
    whole.no_truncation()
    return whole


def count_tokens(text: str) -> int:
    """Tokens of a text."""
    return len(_tokenizer().encode(text, add_special_tokens=False).ids)


def first_tokens(text: str, count: int) -> str:
    """The beginning of a text: so many tokens, or all of it."""
    offsets = _tokenizer().encode(text, add_special_tokens=False).offsets
    return text if len(offsets) <= count else text[: offsets[count - 1][1]]


def _usage(prompt: str, choices: Sequence[Choice]) -> Json:
    read, written = count_tokens(prompt), sum(count_tokens(choice.text) for choice in choices)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _whole_prompt(history: Sequence[Message], text: str) -> str:
    return "\n".join([*(turn.content for turn in history), text])


def _head(kind: str, prefix: str, bot: Bot) -> Json:
    return {
        "id": f"{prefix}{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": f"{_NAME}-{bot.run.number}",
        "system_fingerprint": f"{_NAME}-{version('daedap')}-run-{bot.run.number}",
    }


def _stream(lines: AsyncIterator[str]) -> StreamingResponse:
    return StreamingResponse(lines, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


def _data(value: Json) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


async def _chunks(
    head: Json, body: Common, choices: Sequence[Choice], prompt: str, parts: Callable[[Choice], Iterator[Json]]
) -> AsyncIterator[str]:
    """The lines of a stream: the parts of each choice, the tokens used where they are wanted, and the end."""
    with_usage = body.stream_options and body.stream_options.include_usage
    usage = {"usage": None} if with_usage else {}
    for index, choice in enumerate(choices):
        for part in parts(choice):
            yield _data({**head, "choices": [{"index": index, **part}], **usage})
    if with_usage:
        yield _data({**head, "choices": [], "usage": _usage(prompt, choices)})
    yield "data: [DONE]\n\n"


# ---- chat ----


@router.post("/chat/completions")
async def chat(body: ChatRequest, server: ServiceDep, caller: Caller) -> Any:
    """Answer the last message of the user."""
    body.refuse_unsupported()
    bot, (text, history) = await _bot(server, body.model), conversation(body.messages)
    most = body.max_completion_tokens or body.max_tokens
    replies = await _replies(server, caller, make_question(bot, text, history, body.sampling), body.n or 1)
    choices = [Choice.of(reply, bot.run.number, stop=body.stop, most=most) for reply in replies]
    prompt = _whole_prompt(history, text)
    if body.stream:
        head = _head("chat.completion.chunk", "chatcmpl-", bot)
        return _stream(_chunks(head, body, choices, prompt, _chat_parts))
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


def _chat_parts(choice: Choice) -> Iterator[Json]:
    unfinished = {"logprobs": None, "finish_reason": None}
    yield {"delta": {"role": "assistant", "content": ""}, **unfinished}
    for piece in pieces(choice.text):
        yield {"delta": {"content": piece}, **unfinished}
    yield {"delta": {}, "logprobs": None, "finish_reason": choice.finish, "daedap": choice.extension}


# ---- completions ----


@router.post("/completions")
async def completions(body: CompletionRequest, server: ServiceDep, caller: Caller) -> Any:
    """Answer each prompt."""
    body.refuse_unsupported()
    prompts = _texts_of(body.prompt, "prompt", "Give a text or a list of texts; token ids are not supported.")
    bot = await _bot(server, body.model)
    choices: list[Choice] = []
    for prompt in prompts:
        question = make_question(bot, checked(prompt, "prompt"), sampling=body.sampling)
        replies = await _replies(server, caller, question, body.n or 1)
        choices += [Choice.of(each, bot.run.number, stop=body.stop, most=body.max_tokens) for each in replies]
    head, prompt = _head("text_completion", "cmpl-", bot), "\n".join(prompts)
    if body.stream:
        return _stream(_chunks(head, body, choices, prompt, _completion_parts))
    listed = [{"index": index, **_completion(choice.text, choice)} for index, choice in enumerate(choices)]
    return {**head, "choices": listed, "usage": _usage(prompt, choices)}


def _completion_parts(choice: Choice) -> Iterator[Json]:
    for piece in pieces(choice.text):
        yield {"text": piece, "logprobs": None, "finish_reason": None}
    yield _completion("", choice)


def _completion(text: str, choice: Choice) -> Json:
    return {"text": text, "logprobs": None, "finish_reason": choice.finish, "daedap": choice.extension}


# ---- responses ----


@router.post("/responses")
async def responses(body: ResponseRequest, server: ServiceDep, caller: Caller) -> Any:
    """Answer the last message of the input."""
    body.refuse_unsupported()
    if body.previous_response_id:
        message = "Responses are not kept here: send the whole conversation as input."
        raise ApiError(400, "unsupported_parameter", message, param="previous_response_id")
    messages = [ChatMessage(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    bot, (text, history) = await _bot(server, body.model), conversation(messages, "input")
    (reply,) = await _replies(server, caller, make_question(bot, text, history, body.sampling))
    choice = Choice.of(reply, bot.run.number, most=body.max_output_tokens)
    response = _response(bot, body, choice, _whole_prompt(history, text))
    return _stream(_response_events(response, choice)) if body.stream else response


def _response(bot: Bot, body: ResponseRequest, choice: Choice, prompt: str) -> Json:
    cut, used = choice.finish == "length", _usage(prompt, [choice])
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


async def _response_events(response: Json, choice: Choice) -> AsyncIterator[str]:
    begun = {**response, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    (item,) = response["output"]
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    deltas = [{**place, "delta": piece, "logprobs": []} for piece in pieces(choice.text)]
    last = "response.completed" if response["status"] == "completed" else "response.incomplete"
    events: list[tuple[str, Json]] = [
        ("response.created", {"response": begun}),
        ("response.in_progress", {"response": begun}),
        ("response.output_item.added", {"output_index": 0, "item": _output(item["id"], None, "in_progress")}),
        ("response.content_part.added", {**place, "part": _output_text("")}),
        *(("response.output_text.delta", delta) for delta in deltas),
        ("response.output_text.done", {**place, "text": choice.text, "logprobs": []}),
        ("response.content_part.done", {**place, "part": _output_text(choice.text)}),
        ("response.output_item.done", {"output_index": 0, "item": item}),
        (last, {"response": response}),
    ]
    for number, (name, event) in enumerate(events):
        yield f"event: {name}\n" + _data({"type": name, "sequence_number": number, **event})


# ---- models, embeddings ----


@router.get("/models")
def models(server: ServiceDep) -> Json:
    """The runs; `daedap` is the one that is served."""
    served = {**_model(server.bots.current.run), "id": _NAME}
    return {"object": "list", "data": [served, *map(_model, server.bots.complete())]}


@router.get("/models/{name}")
def model(name: str, server: ServiceDep) -> Json:
    """One model."""
    found: Json | None = next((each for each in models(server)["data"] if each["id"] == name), None)
    if not found:
        raise _no_model()
    return found


def _model(run: Run) -> Json:
    try:
        finished = int(datetime.fromisoformat(run.manifest["finished"]).timestamp())
    except (RunError, KeyError, ValueError):
        finished = 0
    return {"id": f"{_NAME}-{run.number}", "object": "model", "created": finished, "owned_by": _NAME}


@router.post("/embeddings")
def embeddings(body: EmbeddingRequest) -> Json:
    """Sentence vectors of the built-in encoder, of length 1."""
    texts = _texts_of(body.input, "input", f"Give a text or up to {_TEXTS} texts; token ids are not supported.")
    if body.encoding_format not in (None, "float", "base64"):
        raise invalid("Use float or base64.", "encoding_format")
    encoder = built_in_encoder()
    if body.dimensions not in (None, encoder.width):
        message = f"The vectors have {encoder.width} numbers; that can't be changed."
        raise ApiError(400, "unsupported_parameter", message, param="dimensions")
    vectors = encoder.encode(texts).astype("<f4")
    if body.encoding_format == "base64":
        encoded: list[Any] = [base64.b64encode(vector.tobytes()).decode("ascii") for vector in vectors]
    else:
        encoded = vectors.tolist()
    data = [{"object": "embedding", "index": index, "embedding": each} for index, each in enumerate(encoded)]
    tokens = sum(map(count_tokens, texts))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "model": _ENCODER, "data": data, "usage": usage}
