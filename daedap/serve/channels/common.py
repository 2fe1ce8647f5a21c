"""What all channels share: secrets, who writes, each event once, an answer in time, messages that are sent later.

Below, what a channel says is brought within its limits: long answers in parts, long questions behind short labels.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from http.client import HTTPConnection, HTTPSConnection
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool

from daedap.database.lessons import LONGEST_QUESTION
from daedap.database.schema import now
from daedap.database.server_state import SAME_EVENT, digest
from daedap.i18n import translate_to
from daedap.serve.errors import ApiError, not_found
from daedap.serve.observability import log_failure, log_undelivered
from daedap.serve.security import RateLimit
from daedap.serve.service import Change

if TYPE_CHECKING:
    from fastapi import Request

    from daedap.runs import Json
    from daedap.serve.service import Service

Vote = Literal["good", "bad"]
_ELLIPSIS = "…"
_BREAKS = ("\n\n", "\n", ". ", "? ", "! ", " ")
"""Where a text may be parted, the best first."""
_PER_MINUTE = 30
"""Questions of one person."""
_CLAIM_SECONDS, _POLL_SECONDS = 0.5, 0.1
"""For asking the database whether another process has got an event, and between looks for that one's answer."""
_EVENTS = 10_000
"""Events and people that are remembered: the latest."""
_PAUSE = timedelta(minutes=30)
"""After which a new conversation begins."""
_BUSY = ("too_busy", "too_late", "not_ready")


@dataclass(frozen=True)
class Answer:
    """What is said, and the questions to choose from."""

    text: str
    suggestions: tuple[str, ...] = ()
    reply: str | None = None
    """The id of the reply, where it is kept: votes name it."""
    retry: bool = False
    """It only asks to try again: the same question is a new event then."""


@dataclass(frozen=True)
class Choice:
    """A button: what it shows, and the question that it asks."""

    label: str
    question: str


@dataclass(frozen=True)
class Message:
    """What is posted later, and where."""

    url: str
    body: Json
    headers: Mapping[str, str] = field(default_factory=dict)


def post(message: Message) -> str:
    """Post JSON, once, following no redirect. Returns why it was refused, or nothing. Raises OSError, HTTPException."""
    url = urlsplit(message.url)
    kind = HTTPSConnection if url.scheme == "https" else HTTPConnection
    connection = kind(url.hostname or "", url.port, timeout=10)
    try:
        target = f"{url.path or '/'}?{url.query}" if url.query else url.path or "/"
        headers = {"Content-Type": "application/json; charset=utf-8", **message.headers}
        connection.request("POST", target, json.dumps(message.body, ensure_ascii=False).encode(), headers)
        response = connection.getresponse()
        if not 200 <= response.status < 300:
            return f"status {response.status}"
        return _refusal(response.read(4096))
    finally:
        connection.close()


def _refusal(body: bytes) -> str:
    """Naver says in a good response that it has refused: `{"success": false, "resultCode": "01"}`."""
    try:
        answer = json.loads(body)
    except ValueError:
        return ""
    refused = isinstance(answer, dict) and answer.get("success") is False
    return f"code {str(answer.get('resultCode'))[:4]}" if refused else ""


@dataclass(frozen=True)
class Work:
    """The work on an event."""

    claimed: asyncio.Task[bool]
    """Whether it is done here, and not by another process that got the same event."""
    answer: asyncio.Task[Answer]


@dataclass
class Channels:
    """The channels of one server process."""

    service: Service
    secrets: Mapping[str, str]
    """By the name of the channel. They stand in its address, since neither platform signs its requests."""
    timeout: float = 4.0
    """Seconds after which a platform, which waits for 5, is sent something other than the answer."""
    limit: RateLimit = field(default_factory=lambda: RateLimit(_PER_MINUTE, "channels"))
    """Of each person."""
    post: Callable[[Message], str] = post
    _events: OrderedDict[str, Work] = field(default_factory=OrderedDict)
    _told: OrderedDict[str, float] = field(default_factory=OrderedDict)
    """Who was told that an AI answers, and when they last wrote."""
    _later: set[asyncio.Task[Any]] = field(default_factory=set)

    def translate(self, template: str) -> str:
        """A message in the bot's language."""
        return translate_to(self.service.bots.current.speaks_korean, template)

    def once(self, event: tuple[str, ...], work: Callable[[], Awaitable[Answer]]) -> tuple[Work, bool]:
        """The work on an event, which is begun once, and whether this is the first time the event came here.

        `event`: the name of the channel, and all that makes the event another one.
        """
        secret = self.secrets.get(event[0], "")
        key = hmac.digest(secret.encode(), json.dumps(event).encode(), "sha256").hex()
        if known := self._events.get(key):
            return known, False
        claimed = asyncio.create_task(self._claim(key))

        async def run() -> Answer:
            if await claimed:
                answer = await work()
                if answer.retry:
                    self._events.pop(key, None)
                self._in_background(self._keep(key, answer))
                return answer
            return await self._answer_of_another(key) or await work()

        # forgotten with its answer, as soon as the same event counts as another one
        begun = self._events[key] = Work(claimed, asyncio.create_task(run()))
        asyncio.get_running_loop().call_later(SAME_EVENT.total_seconds(), self._events.pop, key, None)
        if len(self._events) > _EVENTS:
            self._events.popitem(last=False)
        return begun, True

    async def _claim(self, key: str) -> bool:
        """Whether no other process has got the event. Without a database it is better answered twice than never."""
        try:
            claim = Change(lambda connection: self.service.events.claim(connection, key))
            return bool(await asyncio.wait_for(self.service.write(claim), _CLAIM_SECONDS))
        except Exception as error:
            log_failure(error)
            return True

    async def _keep(self, key: str, answer: Answer) -> None:
        events = self.service.events
        if answer.retry:
            await self.service.write(Change(lambda connection: events.forget(connection, key)))
        elif self.service.options.store:
            await self.service.write(Change(lambda connection: events.keep(connection, key, asdict(answer))))

    async def _answer_of_another(self, key: str) -> Answer | None:
        """What another process answers to the event; None: it keeps no answers, or it was ended."""
        end = time.monotonic() + self.timeout
        while self.service.options.store and time.monotonic() < end:
            if kept := await run_in_threadpool(self.service.events.answer, key):
                return Answer(kept["text"], tuple(kept["suggestions"]), kept["reply"])
            await asyncio.sleep(_POLL_SECONDS)
        return None

    async def in_time(self, work: Work) -> Answer | None:
        """The answer, if it is there before the platform gives up."""
        done, _ = await asyncio.wait({work.answer}, timeout=self.timeout)
        return work.answer.result() if done else None

    def send_later(self, work: Work, message: Callable[[Answer], Message]) -> None:
        """Post the answer once it is there; once, whatever comes of it, and by one process."""

        async def deliver() -> None:
            if await work.claimed and (refusal := await run_in_threadpool(self.post, message(await work.answer))):
                log_undelivered(refusal)

        self._in_background(deliver())

    def _in_background(self, action: Coroutine[Any, Any, None]) -> None:
        async def logged() -> None:
            try:
                await action
            except Exception as error:  # nobody else would hear of it
                log_failure(error)

        task = asyncio.create_task(logged())
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def drain(self) -> None:
        """Wait until everything that was promised is sent."""
        while self._later:
            await asyncio.gather(*self._later)

    def first_word(self, client: str) -> bool:
        """Whether somebody begins to talk, and has to be told that an AI answers; they count as told from now on."""
        time_now, then = time.monotonic(), self._told.pop(client, -math.inf)
        self._told[client] = time_now
        if len(self._told) > _EVENTS:
            self._told.popitem(last=False)
        return self.service.options.ai_notice and time_now - then > _PAUSE.total_seconds()

    def with_ai_notice(self, text: str) -> str:
        """A text after the words that an AI answers."""
        return f"{self.translate('An AI answers. It can be wrong.')}\n\n{text}"

    def client(self, name: str, user: str) -> str:
        """Whom a conversation belongs to: the platform's name for somebody can't be read from it."""
        return digest(f"{self.secrets[name]} {name} {user}")

    async def ask(self, client: str, question: str) -> Answer:
        """The answer to somebody's question, whatever happens."""
        question = question.strip()
        if not question:
            return Answer(self.translate("Please ask me in words."))
        if len(question) > LONGEST_QUESTION:
            return Answer(self.translate("That is too long for me. Please ask in fewer words."))
        try:
            self.limit.take(client)
            conversation = await run_in_threadpool(self._conversation, client)
            stored = await self.service.ask(client, question, conversation=conversation)
        except Exception as error:
            if isinstance(error, ApiError) and error.code in _BUSY:
                busy = self.translate("Many people are asking right now. Please try again in a moment.")
                return Answer(busy, retry=True)
            log_failure(error)
            return Answer(self.translate("Something went wrong. Please try again."), retry=True)
        begins = self.first_word(client) and conversation is None
        text = self.with_ai_notice(stored.answer) if begins else stored.answer
        return Answer(text, tuple(stored.suggestions), stored.id if stored.conversation else None)

    @property
    def votes(self) -> dict[str, Vote]:
        """What people press, or write, to vote on an answer → the vote; empty where they are not asked."""
        if not (self.service.options.channel_votes and self.service.options.store):
            return {}
        return {self.translate("👍 Good"): "good", self.translate("👎 Bad"): "bad"}

    async def vote(self, client: str, vote: Vote, reply: str | None) -> Answer | None:
        """Thanks for a vote on somebody's reply, by default their latest; None: they have none like that."""
        try:
            if not await run_in_threadpool(self._vote, client, vote, reply):
                return None
        except Exception as error:
            log_failure(error)
            return Answer(self.translate("Something went wrong. Please try again."), retry=True)
        if vote == "good":
            return Answer(self.translate("Thank you! I am glad that it helped."))
        return Answer(self.translate("Thank you for telling me. The answer will be looked at."))

    def _vote(self, client: str, vote: Vote, reply: str | None) -> bool:
        conversations = self.service.conversations
        if not reply:
            latest = conversations.of_client(client, limit=1)
            reply = conversations.replies(latest[0]["id"], 1)[0].id if latest else ""
        if not conversations.reply(reply, client):
            return False
        conversations.vote(reply, vote, None)
        return True

    def _conversation(self, client: str) -> str | None:
        """The conversation that goes on, if one does."""
        latest = self.service.conversations.of_client(client, limit=1) if self.service.options.store else []
        return str(latest[0]["id"]) if latest and latest[0]["updated"] >= now(-_PAUSE) else None


def channels_of(request: Request, name: str, secret: str) -> Channels:
    """The channels of the server, for a request that knows the secret. Raises ApiError (404)."""
    channels: Channels = request.app.state.channels
    if not hmac.compare_digest(secret.encode("utf-8", "replace"), channels.secrets[name].encode()):
        raise not_found("channel")
    return channels


# ---- within a channel's limits ----


def length(text: str) -> int:
    """Characters as JavaScript and Java count them, in UTF-16: an emoji is two. The platforms don't say how they do."""
    return len(text.encode("utf-16-le", "replace")) // 2


def parts_of(text: str, size: int, count: int, note: str) -> list[str]:
    """A text in at most `count` parts of at most `size` characters each; `note` stands for what is left out."""
    parts, rest = list[str](), text.strip()
    while rest and length(rest) > size and len(parts) < count - 1:
        part, rest = _parted(rest, size)
        parts.append(part)
    if length(rest) > size:
        end = f"{_ELLIPSIS}\n\n{note}"
        rest = _parted(rest, size - length(end))[0] + end
    return [part for part in (*parts, rest) if part] or [_ELLIPSIS]


def _parted(text: str, size: int) -> tuple[str, str]:
    """The beginning of a text, and the rest; parted at a break in the second half of what fits, if there is one."""
    head = _fitting(text, size)
    ends = (head.rfind(mark) + len(mark.rstrip()) for mark in _BREAKS if head.rfind(mark) >= len(head) // 2)
    end = next(ends, len(head))
    return text[:end].rstrip(), text[end:].lstrip()


def _fitting(text: str, size: int) -> str:
    """As much of the beginning as fits; an emoji fits as a whole or not at all."""
    return text.encode("utf-16-le", "replace")[: 2 * size].decode("utf-16-le", "ignore")


def choices_of(questions: Sequence[str], size: int) -> list[Choice]:
    """Buttons for questions; numbered where a label of at most `size` characters can't hold its question."""
    numbered = needs_list(questions, size)
    labels = [f"{number}. {one}" if numbered else one for number, one in enumerate(map(_line, questions), 1)]
    shown = [one if length(one) <= size else _fitting(one, size - 1).rstrip() + _ELLIPSIS for one in labels]
    return [Choice(label, question) for label, question in zip(shown, questions, strict=True)]


def needs_list(questions: Sequence[str], size: int) -> bool:
    """Whether a question is too long for a label, so that the text must tell them all."""
    return any(length(_line(one)) > size for one in questions)


def with_list(answer: Answer, size: int) -> str:
    """The text of an answer, with its suggestions in full where the labels can't hold them."""
    if not needs_list(answer.suggestions, size):
        return answer.text
    lines = [f"{number}. {_line(one)}" for number, one in enumerate(answer.suggestions, 1)]
    return "\n".join([answer.text, "", *lines])


def _line(text: str) -> str:
    return " ".join(text.split())
