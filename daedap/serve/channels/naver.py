"""The webhook of Naver TalkTalk's chatbot API.

Source: github.com/navertalk/chatbot-api. Naver waits 5 seconds for an answer; a later one is sent to its gateway,
with the token of the account. An empty response is silence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

from daedap.runs import Json
from daedap.serve.bots import example_questions
from daedap.serve.channels.common import (
    Answer,
    Channels,
    Choice,
    Message,
    Vote,
    channels_of,
    choices_of,
    parts_of,
    with_list,
)

NAME = "naver"
_GATEWAY = "https://gw.talk.naver.com/chatbot/v1/event"
_TEXT, _LABEL, _CODE, _REPLIES = 10_000, 10, 1000, 10
"""Most characters of a text, of a quick reply's label and code; most quick replies."""
_VOTE = re.compile(r"daedap:(good|bad):([0-9a-f-]{1,40})")
"""The code of a button that votes on a reply."""

router = APIRouter(prefix=f"/channels/{NAME}", include_in_schema=False)


class Event(BaseModel):
    """What Naver sends. Contents of other kinds than text are only known to be there."""

    event: Annotated[str, Field(max_length=100)]
    user: Annotated[str, Field(max_length=500)] = ""
    content: Annotated[dict[str, Any] | None, Field(alias="textContent")] = None
    standby: bool = False
    """Whether a person has taken over, and the bot has to be silent."""


@dataclass(frozen=True)
class Said:
    """What an event asks of the bot."""

    kind: Literal["question", "vote", "greeting", "telephone", "other", "nothing"]
    question: str = ""
    vote: Vote = "good"
    reply: str = ""
    """Id of the reply that is voted on."""


def read_event(event: Event) -> Said:
    """What an event asks of the bot. `echo` tells of what the bot itself said: whoever answers it talks for ever."""
    if event.standby or not event.user:
        return Said("nothing")
    if event.event != "send":  # leave, friend, echo, action, profile: Naver advises not to answer
        return Said("greeting" if event.event == "open" else "nothing")
    content = event.content or {}
    if content.get("inputType") == "vphone":
        return Said("telephone")
    text, code = content.get("text"), content.get("code")
    if content.get("inputType") == "button" and isinstance(code, str) and code.strip():
        pressed = _VOTE.fullmatch(code)
        return Said("vote", "", cast("Vote", pressed[1]), pressed[2]) if pressed else Said("question", code)
    return Said("question", text) if isinstance(text, str) and text.strip() else Said("other")


def send_event(answer: Answer, note: str, votes: Mapping[str, Vote] | None = None) -> Json:
    """An answer in Naver's words. `note` stands for what is left out of a very long one; `votes`: label → vote."""
    (text,) = parts_of(with_list(answer, _LABEL), _TEXT, 1, note)
    content: Json = {"text": text}
    votes = votes if votes and answer.reply else {}
    questions = [one for one in answer.suggestions if len(one) <= _CODE][: _REPLIES - len(votes)]
    choices = choices_of(questions, _LABEL)
    choices += [Choice(label, f"daedap:{vote}:{answer.reply}") for label, vote in votes.items()]
    if choices:
        buttons = [{"type": "TEXT", "data": {"title": one.label, "code": one.question}} for one in choices]
        content["quickReply"] = {"buttonList": buttons}
    return {"event": "send", "textContent": content}


@router.post("/{secret}")
async def webhook(secret: str, body: Event, request: Request) -> Response:
    """Answer at once; what takes longer is sent later, where there is a token, or politely put off."""
    channels, said = channels_of(request, NAME, secret), read_event(body)
    if said.kind == "nothing":
        return Response()
    client = channels.client(NAME, body.user)
    content = body.content or {}
    event = (NAME, body.event, body.user, *(str(content.get(name)) for name in ("inputType", "text", "code")))
    work, new = channels.once(event, lambda: _answer(channels, client, said))
    if not new or not await work.claimed:
        return Response()  # the first response answers, or what is sent later
    note, votes = channels.translate("The rest of the answer is too long to be shown here."), channels.votes
    if answer := await channels.in_time(work):
        return JSONResponse(send_event(answer, note, votes))
    if token := channels.service.options.naver_token:
        headers = {"Authorization": token}
        channels.send_later(
            work, lambda late: Message(_GATEWAY, {"user": body.user, **send_event(late, note, votes)}, headers)
        )
        return Response()
    late = Answer(channels.translate("This takes me longer than usual. Please ask again in a moment."))
    return JSONResponse(send_event(late, note))


async def _answer(channels: Channels, client: str, said: Said) -> Answer:
    if said.kind == "question":
        return await channels.ask(client, said.question)
    if said.kind == "greeting":
        greeting = channels.translate("Hello! What would you like to know?")
        shown = channels.with_ai_notice(greeting) if channels.first_word(client) else greeting
        return Answer(shown, tuple(example_questions(channels.service.bots.current, 3)))
    if said.kind == "telephone":
        refusal = "I don't take telephone numbers, and have not kept yours. Please ask me in words."
        return Answer(channels.translate(refusal))
    thanks = await channels.vote(client, said.vote, said.reply) if said.kind == "vote" and channels.votes else None
    return thanks or Answer(channels.translate("Please ask me in words."))
