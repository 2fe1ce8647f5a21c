"""/api of the chat page: ask, vote, correct, look back, delete, compare two runs blindly."""

from __future__ import annotations

import json
import random
import re
import secrets
import uuid
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from daedap.database.conversations import TIE, Comparison, StoredReply
from daedap.database.lessons import LONGEST_ANSWER, LONGEST_QUESTION, Origin, TaughtLesson, new_lesson
from daedap.database.schema import now
from daedap.database.server_state import digest
from daedap.errors import RunError
from daedap.evaluation.metrics import sign_test
from daedap.runs import Json, Run
from daedap.serve.bots import example_questions
from daedap.serve.errors import ApiError, invalid, not_found
from daedap.serve.options import LOOPBACK
from daedap.serve.review import ASKED, conflicts, preview
from daedap.serve.service import Service, make_question, plain
from daedap.types import LessonScope

router = APIRouter(prefix="/api")
CLIENT, OWNER = "daedap_client", "daedap_owner"
"""Names of the cookies."""
_YEAR = 365 * 24 * 3600
_PIECES = re.compile(r"\S+\s*|\s+")
Id = Annotated[str, Field(min_length=8, max_length=40, pattern=r"^[0-9A-Za-z-]+$")]
Question = Annotated[str, Field(max_length=LONGEST_QUESTION)]
Answer = Annotated[str, Field(max_length=LONGEST_ANSWER)]
RunNumber = Annotated[int, Field(ge=1, le=10**6)]


def service_of(request: Request) -> Service:
    """The server behind a request."""
    return cast("Service", request.app.state.service)


def client_of(request: Request, response: Response) -> str:
    """Who asks: the digest of the visitor's cookie, which is set at the first request."""
    token = request.cookies.get(CLIENT)
    if not token or len(token) > 100:
        token = secrets.token_urlsafe(24)
        secure = request.url.scheme == "https"
        frames = bool(service_of(request).options.embed_origins) and (secure or request.url.hostname in LOOPBACK)
        limits: Any = {"secure": True, "samesite": "none"} if frames else {"secure": secure, "samesite": "lax"}
        response.set_cookie(CLIENT, token, max_age=_YEAR, httponly=True, **limits)
        if frames:  # a frame on another site gets cookies only with this, which Python 3.14 is the first to know
            response.headers["set-cookie"] += "; Partitioned"
    return digest(token)


def owner_of(request: Request) -> bool:
    """Whether the owner asks."""
    return service_of(request).sessions.valid(request.cookies.get(OWNER))


ServiceDep = Annotated[Service, Depends(service_of)]
Client = Annotated[str, Depends(client_of)]
IsOwner = Annotated[bool, Depends(owner_of)]


class Ask(BaseModel):
    """A question."""

    question: Question
    conversation: Id | None = None
    run: RunNumber | None = None
    stream: bool = False
    id: Id | None = None


class Vote(BaseModel):
    """A judgement of a reply."""

    vote: Literal["good", "bad"] | None
    comment: Annotated[str, Field(max_length=1000)] | None = None


class Correction(BaseModel):
    """A right answer to a reply's question, or to any."""

    id: Id | None = None
    reply: Id | None = None
    question: Question | None = None
    answer: Answer
    scope: LessonScope = "similar"


class Compare(BaseModel):
    """A question for two runs."""

    question: Question
    runs: Annotated[list[RunNumber], Field(min_length=2, max_length=2)]


class Verdict(BaseModel):
    """Which of two answers is better."""

    winner: Literal["left", "right", "tie"]


@router.get("/info")
def info(server: ServiceDep, client: Client, owner: IsOwner) -> Json:
    """What the page needs to know first."""
    options, bot = server.options, server.bots.current
    pairs = bot.retriever.index.pairs
    return {
        "name": options.name or "daedap",
        "version": version("daedap"),
        "run": bot.run.number,
        "language": "ko" if bot.speaks_korean else "en",
        "ai_notice": options.ai_notice,
        "stores": options.store,
        "retention_days": options.retention_days,
        "owner_login": True,
        "owner": owner,
        "choose_run": _may_choose(server, owner),
        "pairs": len(pairs),
        "examples": example_questions(bot, 4),
        "max_question": LONGEST_QUESTION,
        "max_answer": LONGEST_ANSWER,
    }


def _may_choose(server: Service, owner: bool) -> bool:
    """Whether other runs may be tried: by the owner, and where nobody else gets in anyway."""
    return owner or not server.options.is_public


@router.get("/runs")
def runs(server: ServiceDep, owner: IsOwner) -> Json:
    """The runs that can be chosen, the latest first."""
    current = server.bots.current.run
    chosen = server.bots.complete() if _may_choose(server, owner) else [current]
    return {"runs": [summary for run in chosen if (summary := run_json(run, current))]}


def run_json(run: Run, current: Run) -> Json | None:
    """A run for a list; None when it is damaged."""
    try:
        manifest = run.manifest
        return {
            "number": run.number,
            "finished": manifest.get("finished"),
            "rows": manifest.get("data", {}).get("train"),
            "base": manifest.get("base", {}).get("name"),
            "current": run.folder == current.folder,
            "headline": run.headline,
        }
    except RunError:
        return None


@router.post("/ask")
async def ask(body: Ask, server: ServiceDep, client: Client, owner: IsOwner, response: Response) -> Any:
    """Answer a question, at once or as a stream of events: start, text, done."""
    if body.run not in (None, server.bots.current.run.number) and not _may_choose(server, owner):
        raise ApiError(403, "forbidden", "Only the owner may choose a run.", param="run")
    stored = await server.ask(client, body.question, conversation=body.conversation, run=body.run, id=body.id)
    if not body.stream:
        return asdict(stored)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    headers |= {"set-cookie": cookie} if (cookie := response.headers.get("set-cookie")) else {}
    return StreamingResponse(_events(stored), media_type="text/event-stream", headers=headers)


async def _events(stored: StoredReply) -> AsyncIterator[str]:
    yield _event("start", {"id": stored.id, "conversation": stored.conversation, "run": stored.run})
    for piece in pieces(stored.answer):
        yield _event("text", {"text": piece})
    yield _event("done", asdict(stored))


def _event(name: str, data: Json) -> str:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


def pieces(text: str) -> list[str]:
    """Words with the space behind them."""
    return _PIECES.findall(text)


def _own_reply(server: Service, id: str, client: str, owner: bool) -> StoredReply:
    reply = server.conversations.reply(id, None if owner else client)
    if not reply:
        raise not_found("reply")
    return reply


@router.put("/replies/{id}/vote")
def vote(id: str, body: Vote, server: ServiceDep, client: Client) -> Json:
    """Judge one's own reply."""
    reply = _own_reply(server, id, client, owner=False)
    server.conversations.vote(reply.id, body.vote, body.comment and plain(body.comment))
    return {"id": reply.id, "vote": body.vote}


def correction(
    server: Service, body: Correction, client: str, owner: bool, *, keep_personal: bool = False
) -> TaughtLesson:
    """The lesson that a correction would become."""
    reply = _own_reply(server, body.reply, client, owner) if body.reply else None
    question = body.question or (reply.question if reply else "")
    origin: Origin = "owner" if owner else "visitor"
    lesson = new_lesson(question, body.answer, body.scope, origin=origin, id=body.id, keep_personal=keep_personal)
    if not reply:
        return lesson
    return replace(lesson, reply=reply.id, conversation=reply.conversation, was=reply.answer)


@router.post("/corrections/preview")
def preview_correction(body: Correction, server: ServiceDep, client: Client, owner: IsOwner) -> Json:
    """Which questions a correction would answer, before it is saved."""
    lesson = correction(server, body, client, owner)
    fields = {"question": lesson.question, "answer": lesson.answer, "masked": lesson.masked}
    recent = server.conversations.recent_questions(ASKED) if owner else []
    return {**fields, **preview(server.bots.current, lesson, server.lessons.in_force(), recent)}


@router.post("/corrections")
def correct(body: Correction, server: ServiceDep, client: Client, owner: IsOwner) -> Json:
    """Teach: the owner's correction is in force at once, a visitor's waits for the owner."""
    (lesson,) = server.lessons.add(correction(server, body, client, owner))
    server.audit.note("owner" if owner else "visitor", "teach", lesson=lesson.id)
    server.bots.refresh_lessons()
    if owner:
        return {"lesson": lessons_json(server, lesson)[0], "effective": lesson.state == "accepted"}
    saved = {name: getattr(lesson, name) for name in ("id", "question", "answer", "scope", "state", "masked")}
    return {"lesson": saved, "effective": False}


def lessons_json(server: Service, *lessons: TaughtLesson) -> list[Json]:
    """Lessons for the admin page."""
    found = conflicts(server.bots.current, server.lessons.in_force(), lessons)
    return [{**asdict(lesson), "conflict": conflict} for lesson, conflict in zip(lessons, found, strict=True)]


@router.get("/conversations")
def conversations(server: ServiceDep, client: Client) -> Json:
    """One's own conversations, the latest first."""
    names = ("id", "title", "started", "updated", "replies")
    return {"conversations": [{name: each[name] for name in names} for each in server.conversations.of_client(client)]}


def _own(server: Service, id: str, client: str) -> str:
    if server.conversations.owner_of(id) != client:
        raise not_found("conversation")
    return id


@router.get("/conversations/{id}")
def conversation(id: str, server: ServiceDep, client: Client) -> Json | None:
    """One of one's own conversations."""
    return server.conversations.find(_own(server, id, client))


@router.delete("/conversations/{id}")
def delete(id: str, server: ServiceDep, client: Client) -> Json:
    """Delete one of one's own conversations."""
    deleted = server.conversations.delete(id=_own(server, id, client))
    server.audit.note("visitor", "delete_conversation", conversation=id)
    return {"deleted": deleted}


@router.delete("/conversations")
def delete_all(server: ServiceDep, client: Client) -> Json:
    """Delete all of one's own conversations."""
    deleted = server.conversations.delete(client=client)
    server.audit.note("visitor", "delete_conversations", conversations=deleted)
    return {"deleted": deleted}


@router.post("/comparisons")
async def compare(body: Compare, server: ServiceDep, client: Client, owner: IsOwner) -> Json:
    """Two runs' answers to a question, without their names and in random order."""
    if not _may_choose(server, owner):
        raise ApiError(403, "forbidden", "Only the owner may compare runs.")
    if not body.question.strip() or body.runs[0] == body.runs[1]:
        raise invalid("Give a question and two different runs.", "runs")
    order = random.sample(body.runs, 2)
    bots = [await server.bot(number) for number in order]
    left, right = [await server.reply(client, make_question(bot, body.question)) for bot in bots]
    kept = server.options.store
    shown = Comparison(
        id=uuid.uuid4().hex,
        client=client,
        question=left.question if kept else "",
        left_run=order[0],
        right_run=order[1],
        left_answer=left.text if kept else "",
        right_answer=right.text if kept else "",
        time=now(),
    )
    await run_in_threadpool(server.comparisons.add, shown)
    answers = {"left": {"answer": left.text}, "right": {"answer": right.text}}
    return {"id": shown.id, "question": body.question, **answers, "same": left.text == right.text}


@router.put("/comparisons/{id}")
def judge(id: str, body: Verdict, server: ServiceDep, client: Client) -> Json:
    """Say which answer is better; only now are the runs named."""
    shown = server.comparisons.find(id, client)
    if not shown:
        raise not_found("comparison")
    winner = {"left": shown.left_run, "right": shown.right_run, "tie": TIE}[body.winner]
    server.comparisons.judge(id, winner)
    first, second = sorted((shown.left_run, shown.right_run))
    runs = {"left": shown.left_run, "right": shown.right_run, "winner": winner or None}
    return {**runs, "tally": running_tally(first, second, server)}


@router.get("/comparisons/tally")
def running_tally(first: RunNumber, second: RunNumber, server: ServiceDep) -> Json:
    """How two runs stand against each other."""
    wins = server.comparisons.winners(first, second)
    counts = sign_test(wins[first], wins[second], wins[TIE])
    shares = {name: getattr(counts, name) for name in ("share", "low", "high", "p", "clear")}
    return {"first": first, "second": second, "wins": [counts.first, counts.second], "ties": counts.ties, **shares}
