"""A skill server for a KakaoTalk channel's chatbot: requests and answers of schema 2.0.

Sources: kakaobusiness.gitbook.io/main/tool/chatbot/skill_guide. Kakao waits 5 seconds; where the block has "callback"
switched on, a request names an address that takes the answer within a minute, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from daedap.runs import Json
from daedap.serve.channels.common import Message, channels_of
from daedap.serve.channels.texts import Answer, choices_of, parts_of, with_list

NAME = "kakao"
_TEXT, _OUTPUTS, _LABEL, _REPLIES = 1000, 3, 14, 10
"""Most characters of a simpleText, outputs, characters of a quick reply's label, quick replies."""

router = APIRouter(prefix=f"/channels/{NAME}", include_in_schema=False)


class User(BaseModel):
    """Who writes: `botUserKey`, which is another one for each bot."""

    id: Annotated[str, Field(min_length=1, max_length=500)]


class UserRequest(BaseModel):
    """What somebody wrote."""

    utterance: str
    user: User
    callback: Annotated[str | None, Field(alias="callbackUrl", max_length=4000)] = None


class SkillRequest(BaseModel):
    """What Kakao sends; the rest of it does not matter here."""

    request: Annotated[UserRequest, Field(alias="userRequest")]


def skill_response(answer: Answer, note: str) -> Json:
    """An answer in Kakao's words. What does not fit into three outputs is left out, and `note` says so."""
    parts = parts_of(with_list(answer, _LABEL), _TEXT, _OUTPUTS, note)
    template: Json = {"outputs": [{"simpleText": {"text": part}} for part in parts]}
    if answer.suggestions:
        template["quickReplies"] = [
            {"label": choice.label, "action": "message", "messageText": choice.question}
            for choice in choices_of(answer.suggestions[:_REPLIES], _LABEL)
        ]
    return {"version": "2.0", "template": template}


def may_call_back(url: str | None, hosts: Sequence[str]) -> bool:
    """Whether an answer may be posted there: by https, to one of the hosts or a name below it."""
    try:
        parsed = urlsplit(url or "")
        host, port = parsed.hostname or "", parsed.port
    except ValueError:
        return False
    plain = parsed.scheme == "https" and port in (None, 443) and "@" not in parsed.netloc and (url or "").isascii()
    names = [name for name in (each.strip(".").lower() for each in hosts) if name]
    known = any(host == name or host.endswith(f".{name}") for name in names)
    return plain and known and (url or "").isprintable() and " " not in (url or "")


@router.post("/{secret}")
async def skill(secret: str, body: SkillRequest, request: Request) -> Json:
    """Answer at once; what takes longer is promised, where the request allows it, or politely put off."""
    channels, asked = channels_of(request, NAME, secret), body.request
    client = channels.client(NAME, asked.user.id)
    note = channels.translate("The rest of the answer is too long to be shown here.")
    event = (NAME, asked.user.id, asked.utterance, asked.callback or "")
    task, new = channels.once(event, lambda: channels.ask(client, asked.utterance))
    answer = await channels.in_time(task)
    if answer:
        return skill_response(answer, note)
    if asked.callback and may_call_back(asked.callback, channels.service.options.kakao_callback_hosts):
        if new:
            url = asked.callback
            channels.send_later(task, lambda late: Message(url, skill_response(late, note)))
        wait = channels.translate("I am looking for the answer. One moment, please.")
        return {"version": "2.0", "useCallback": True, "data": {"text": wait}}
    return skill_response(
        Answer(channels.translate("This takes me longer than usual. Please ask again in a moment.")), note
    )
