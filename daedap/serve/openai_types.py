"""Requests of OpenAI's API, as far as they matter to a bot; unknown fields are ignored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, Field

from daedap.database.lessons import LONGEST_QUESTION
from daedap.serve.errors import ApiError, invalid
from daedap.types import Message, Sampling

Choices = Annotated[int, Field(ge=1, le=8)]
Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Tokens = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(max_length=200_000)]
StopTexts = Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=16)]
_TEXT_PARTS = ("text", "input_text", "output_text")
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_IGNORED_TOOLS = (None, "auto", "none")


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


class Common(BaseModel):
    """What chat, text completions and responses have in common."""

    model: Annotated[str, Field(max_length=200)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    tool_choice: Any = None
    response_format: Any = None
    text: Any = None

    def refuse_unsupported(self) -> None:
        """Raise ApiError for what would change the kind of reply, and can't."""
        wanted = {"tool_choice": self.tool_choice not in _IGNORED_TOOLS}
        for name in ("response_format", "text"):
            value = getattr(self, name)
            kind = value.get("format", value) if isinstance(value, dict) and name == "text" else value
            wanted[name] = isinstance(kind, dict) and str(kind.get("type", "")).startswith("json")
        for name, is_wanted in wanted.items():
            if is_wanted:
                message = f"This bot answers in plain text: {name} is not supported."
                raise ApiError(400, "unsupported_parameter", message, param=name)

    @property
    def sampling(self) -> Sampling | None:
        """How the language model is to propose answers; None: as the bot does by itself."""
        wanted = {"temperature": self.temperature, "top_p": self.top_p}
        wanted["seed"] = None if self.seed is None else self.seed % 2**32
        given: Any = {name: value for name, value in wanted.items() if value is not None}
        return Sampling(**given) if given else None

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the tokens used."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(Common):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)]
    n: Choices | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    stop: Annotated[str, Field(min_length=1, max_length=200)] | StopTexts | None = None


class CompletionRequest(Common):
    """POST /v1/completions."""

    prompt: Text | list[Any]
    n: Choices | None = None
    max_tokens: Tokens | None = None
    stop: Annotated[str, Field(min_length=1, max_length=200)] | StopTexts | None = None


class ResponseRequest(Common):
    """POST /v1/responses."""

    input: Text | list[ChatMessage]
    max_output_tokens: Tokens | None = None
    previous_response_id: str | None = None


class EmbeddingRequest(BaseModel):
    """POST /v1/embeddings."""

    input: Text | list[Any]
    model: Annotated[str, Field(max_length=200)] | None = None
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
    asked = [place for place, turn in enumerate(turns) if turn.role == "user"]
    if not asked:
        raise invalid("There is no message of a user to answer.", param)
    return checked(turns[asked[-1]].content, param), turns[: asked[-1]]


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
        kind = other[0] if other[0] in ("image_url", "input_image", "input_audio", "file", "input_file") else "other"
        raise ApiError(400, "unsupported_parameter", f"This bot reads text only, no {kind} parts.", param=param)
    return "\n".join(part.text for part in parts if part.text)
