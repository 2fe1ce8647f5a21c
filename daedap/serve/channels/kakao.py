"""A skill server for a KakaoTalk channel's chatbot: requests and answers of schema 2.0.

Sources: kakaobusiness.gitbook.io/main/tool/chatbot/skill_guide. Kakao waits 5 seconds; where the block has "callback"
switched on, a request names an address that takes the answer within a minute, once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, cast
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from pydantic import AliasPath, BaseModel, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from daedap.runs import Json
from daedap.serve.channels.common import Answer, Channels, Message, Vote, channels_of, choices_of, parts_of, with_list

NAME = "kakao"
_TEXT, _OUTPUTS, _LABEL, _REPLIES = 1000, 3, 14, 10
"""Most characters of a simpleText, outputs, characters of a quick reply's label, quick replies."""

router = APIRouter(prefix=f"/channels/{NAME}", include_in_schema=False)


class Extra(BaseModel):
    """What a button of ours has brought back."""

    reply: Annotated[str, Field(pattern="^[0-9A-Za-z-]{1,40}$")]
    """Id of the reply that it belongs to."""
    vote: Vote | None = None


def _ours(given: Any, handler: ValidatorFunctionWrapHandler) -> Extra | None:
    try:
        return cast("Extra | None", handler(given))
    except ValidationError:
        return None


class SkillRequest(BaseModel):
    """What Kakao sends; the rest of it does not matter here."""

    utterance: str = Field(validation_alias=AliasPath("userRequest", "utterance"))
    user: str = Field(validation_alias=AliasPath("userRequest", "user", "id"), min_length=1, max_length=500)
    """Who writes: `botUserKey`, which is another one for each bot."""
    callback: str | None = Field(None, validation_alias=AliasPath("userRequest", "callbackUrl"), max_length=4000)
    extra: Annotated[Extra | None, WrapValidator(_ours)] = Field(
        None, validation_alias=AliasPath("action", "clientExtra")
    )
    """What a button of ours has brought back; None: the person has written, or another block's button it was."""


@dataclass(frozen=True)
class Buttons:
    """How answers are shown beside their text."""

    note: str
    """Told instead of what does not fit."""
    block: str | None = None
    """The block that a button calls; without, it sends its question as if the person had written it."""
    votes: Mapping[str, Vote] = field(default_factory=dict)
    """Label → vote; empty: nobody is asked."""

    @classmethod
    def of(cls, channels: Channels) -> Buttons:
        """As the server's options say."""
        note = channels.translate("The rest of the answer is too long to be shown here.")
        return cls(note, channels.service.options.kakao_block, channels.votes)

    def quick_reply(self, label: str, text: str, reply: str | None, vote: Vote | None = None) -> Json:
        """A button that says `text`. `extra` comes back as action.clientExtra where it calls a block."""
        button: Json = {"label": label, "action": "message", "messageText": text}
        if reply:
            button["extra"] = {"reply": reply, "vote": vote} if vote else {"reply": reply}
        return {**button, "action": "block", "blockId": self.block} if self.block else button


def skill_response(answer: Answer, buttons: Buttons) -> Json:
    """An answer in Kakao's words. What does not fit into three outputs is left out, and a note says so."""
    parts = parts_of(with_list(answer, _LABEL), _TEXT, _OUTPUTS, buttons.note)
    template: Json = {"outputs": [{"simpleText": {"text": part}} for part in parts]}
    votes = buttons.votes if answer.reply else {}
    choices = choices_of(answer.suggestions[: _REPLIES - len(votes)], _LABEL)
    replies = [buttons.quick_reply(choice.label, choice.question, answer.reply) for choice in choices]
    replies += [buttons.quick_reply(label, label, answer.reply, vote) for label, vote in votes.items()]
    if replies:
        template["quickReplies"] = replies
    return {"version": "2.0", "template": template}


def may_call_back(url: str | None, hosts: Sequence[str]) -> bool:
    """Whether an answer may be posted there: by https, to one of the hosts or a name below it."""
    url = url or ""
    try:
        parsed = urlsplit(url)
        host, port = parsed.hostname or "", parsed.port
    except ValueError:
        return False
    plain = url.isascii() and url.isprintable() and " " not in url and "@" not in parsed.netloc
    names = [name for name in (each.strip(".").lower() for each in hosts) if name]
    known = any(host == name or host.endswith(f".{name}") for name in names)
    return parsed.scheme == "https" and port in (None, 443) and plain and known


@router.post("/{secret}")
async def skill(secret: str, body: SkillRequest, request: Request) -> Json:
    """Answer at once; what takes longer is promised, where the request allows it, or politely put off."""
    channels = channels_of(request, NAME, secret)
    client, buttons = channels.client(NAME, body.user), Buttons.of(channels)
    pressed = body.extra.model_dump_json() if body.extra else ""
    event = (NAME, body.user, body.utterance, body.callback or "", pressed)
    work, new = channels.once(event, lambda: _answer(channels, client, body))
    if answer := await channels.in_time(work):
        return skill_response(answer, buttons)
    if (url := body.callback) and may_call_back(url, channels.service.options.kakao_callback_hosts):
        if new:
            channels.send_later(work, lambda late: Message(url, skill_response(late, buttons)))
        wait = channels.translate("I am looking for the answer. One moment, please.")
        return {"version": "2.0", "useCallback": True, "data": {"text": wait}}
    late = Answer(channels.translate("This takes me longer than usual. Please ask again in a moment."))
    return skill_response(late, buttons)


async def _answer(channels: Channels, client: str, body: SkillRequest) -> Answer:
    """Thanks for a vote, else the answer to a question. A button without a block sends its label alone."""
    extra, thanks = body.extra, None
    vote = (extra and extra.vote) or channels.votes.get(body.utterance.strip())
    if vote and channels.votes:
        thanks = await channels.vote(client, vote, extra.reply if extra else None)
    return thanks or await channels.ask(client, body.utterance)
