"""/api of the admin page: login, runs, conversations, what was not understood, lessons, audit."""

from __future__ import annotations

import hmac
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

import daedap.runs as run_store
from daedap.database.lessons import State, TaughtLesson, write_csv
from daedap.database.server_state import SESSION
from daedap.errors import RunError
from daedap.evaluation.run_record import RunRecord, read_run_record
from daedap.runs import Json, Run
from daedap.serve.errors import ApiError, not_found
from daedap.serve.page import (
    OWNER,
    Answer,
    Correction,
    Question,
    ServiceDep,
    correction,
    lessons_json,
    owner_of,
    run_json,
)
from daedap.serve.review import grouped
from daedap.serve.service import Service
from daedap.types import LessonScope

_QUEUE = 500
"""Different questions that are grouped."""


def require_owner(request: Request) -> None:
    """Raise ApiError (401) unless the owner is logged in."""
    if not owner_of(request):
        raise ApiError(401, "unauthorized", "Log in first.")


login_router = APIRouter(prefix="/api/owner")
router = APIRouter(prefix="/api/admin", dependencies=[Depends(require_owner)])


class Login(BaseModel):
    """The owner's password."""

    password: Annotated[str, Field(max_length=200)]


class Change(BaseModel):
    """What is changed as a lesson is accepted."""

    question: Question | None = None
    answer: Answer | None = None
    scope: LessonScope | None = None


class Taught(Correction):
    """A lesson of the owner."""

    keep_personal: bool = False


class Dismissal(BaseModel):
    """Questions that need no answer."""

    questions: Annotated[list[Question], Field(min_length=1, max_length=1000)]


@login_router.post("/login")
def login(body: Login, server: ServiceDep, request: Request) -> JSONResponse:
    """Let the owner in."""
    server.login_limit.take(request.scope["daedap.client"])
    if not hmac.compare_digest(body.password.encode("utf-8", "replace"), server.password.encode()):
        server.audit.note("visitor", "login_failed")
        raise ApiError(401, "unauthorized", "The password is wrong.", param="password")
    server.audit.note("owner", "login")
    response = JSONResponse({"owner": True})
    limits: Any = {"max_age": int(SESSION.total_seconds()), "httponly": True, "samesite": "strict"}
    response.set_cookie(OWNER, server.sessions.begin(), secure=request.url.scheme == "https", **limits)
    return response


@login_router.post("/logout")
def logout(server: ServiceDep, request: Request) -> JSONResponse:
    """End the session."""
    server.sessions.end(request.cookies.get(OWNER))
    response = JSONResponse({"owner": False})
    response.delete_cookie(OWNER)
    return response


@router.get("/overview")
def overview(server: ServiceDep) -> Json:
    """Counts of everything."""
    counts = Counter(lesson.state for lesson in server.lessons.all())
    return {
        **server.conversations.overview(),
        "lessons": {state: counts[state] for state in get_args(State)},
        "unanswered": len(_not_understood(server)),
        "run": server.bots.current.run.number,
    }


@router.get("/runs")
def runs(server: ServiceDep) -> Json:
    """All runs, the latest first, unfinished and damaged ones too."""
    current = server.bots.current.run
    return {"runs": [_run(run, current) for run in reversed(run_store.list_runs(server.bots.runs))]}


def _run(run: Run, current: Run) -> Json:
    summary = run_json(run, current) if run.complete else None
    if not summary:
        state = "damaged" if run.complete else "in training" if run.busy else "interrupted"
        return {"number": run.number, "state": state, "current": False}
    manifest = run.manifest
    return {
        **summary,
        "state": "complete",
        "parent": manifest.get("parent"),
        "seconds": round(sum(manifest.get("seconds", {}).values()), 1),
        "method": manifest.get("method"),
    }


@router.get("/runs/{number}")
def run(number: int, server: ServiceDep) -> Json:
    """One run with its curves and scores."""
    record = run_record(server, number)
    manifest = record.manifest
    curves = {name: [asdict(each) for each in getattr(record, name)] for name in ("train", "dev", "average")}
    scores = {
        system: {
            part: {metric: asdict(score) for metric, score in by_metric.items()} for part, by_metric in parts.items()
        }
        for system, parts in record.scores.items()
    }
    return {
        **{name: manifest.get(name) for name in ("number", "finished", "parent", "base", "method")},
        "base": manifest.get("base", {}).get("name"),
        "rows": {name: manifest.get("data", {}).get(name) for name in ("train", "dev", "test")},
        "file": Path(manifest.get("data", {}).get("file") or "").name,
        "headline": dict(record.headline),
        "scores": scores,
        "curves": curves,
        "settings": record.train_options,
        "lessons": manifest.get("lessons", {}).get("count"),
    }


def run_record(server: Service, number: int) -> RunRecord:
    """A complete run by its number. Raises ApiError: 404 when it is not there, 409 when it is damaged."""
    run = next((run for run in server.bots.complete() if run.number == number), None)
    if not run:
        raise not_found("run")
    try:
        return read_run_record(run)
    except RunError as error:
        raise ApiError(409, "conflict", "The run is damaged: daedap report tells more.") from error


@router.get("/conversations")
def conversations(
    server: ServiceDep,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: Annotated[str | None, Query(max_length=32)] = None,
    only: Literal["bad", "fallback", "lesson"] | None = None,
    text: Annotated[str | None, Query(max_length=200)] = None,
) -> Json:
    """Everybody's conversations, the latest first."""
    page = server.conversations.latest(limit=limit, before=before, only=only, text=text)
    return {"conversations": page, "next": page[-1]["updated"] if len(page) == limit else None}


@router.get("/conversations/{id}")
def conversation(id: str, server: ServiceDep) -> Json:
    """One conversation; that it was read is noted."""
    stored = server.conversations.find(id)
    if not stored:
        raise not_found("conversation")
    server.audit.note("owner", "read_conversation", conversation=id)
    return stored


@router.delete("/conversations/{id}")
def delete(id: str, server: ServiceDep) -> Json:
    """Delete a conversation."""
    if not (deleted := server.conversations.delete(id=id)):
        raise not_found("conversation")
    server.audit.note("owner", "delete_conversation", conversation=id)
    return {"deleted": deleted}


def _not_understood(server: Service) -> list[Json]:
    """What was not understood, without what a lesson answers by now."""
    book = server.bots.current.lessons
    entries = server.conversations.not_understood(_QUEUE)
    return [entry for entry in entries if not (book and book.exact(entry["question"]))]


@router.get("/unanswered")
def unanswered(server: ServiceDep) -> Json:
    """What was not understood, in groups of like questions, the most asked first."""
    return {"groups": grouped(_not_understood(server))}


@router.post("/unanswered/dismiss")
def dismiss(body: Dismissal, server: ServiceDep) -> Json:
    """Take questions out of the queue."""
    count = server.conversations.dismiss(body.questions)
    server.audit.note("owner", "dismiss", questions=count)
    return {"dismissed": count}


@router.get("/lessons")
def lessons(server: ServiceDep, state: State | Literal["all"] = "all") -> Json:
    """Lessons of a state."""
    return {"lessons": lessons_json(server, *server.lessons.all(None if state == "all" else state))}


@router.post("/lessons")
def teach(body: Taught, server: ServiceDep, request: Request) -> Json:
    """A lesson that is in force at once."""
    new = correction(server, body, "", owner=True, keep_personal=body.keep_personal)
    (lesson,) = server.lessons.add(new)
    return _changed(server, "teach", lesson)


@router.post("/lessons/{id}/accept")
def accept(id: str, body: Change, server: ServiceDep) -> Json:
    """Put a lesson in force, changed or as it is."""
    _movable(server, id)
    return _changed(server, "accept_lesson", server.lessons.accept(id, body.model_dump(exclude_none=True)))


@router.post("/lessons/{id}/reject")
def reject(id: str, server: ServiceDep) -> Json:
    """Take a lesson out of the queue."""
    if _movable(server, id).state != "pending":
        raise ApiError(409, "conflict", "Only a lesson that waits can be rejected; one in force can be undone.")
    return _changed(server, "reject_lesson", server.lessons.reject(id))


@router.post("/lessons/{id}/undo")
def undo(id: str, server: ServiceDep) -> Json:
    """Take a lesson out of force, or a rejected one back into the queue."""
    if _movable(server, id).state not in ("accepted", "rejected"):
        raise ApiError(409, "conflict", "There is nothing to undo.")
    return _changed(server, "undo_lesson", server.lessons.undo(id))


def _movable(server: Service, id: str) -> TaughtLesson:
    lesson = server.lessons.find(id)
    if not lesson:
        raise not_found("lesson")
    if lesson.state == "replaced":
        raise ApiError(409, "conflict", "Another lesson has replaced this one.")
    return lesson


def _changed(server: Service, action: str, lesson: TaughtLesson | None) -> Json:
    if not lesson:
        raise not_found("lesson")
    server.audit.note("owner", action, lesson=lesson.id)
    server.bots.refresh_lessons()
    return lessons_json(server, lesson)[0]


@router.get("/lessons.csv")
def export(server: ServiceDep) -> Response:
    """All lessons as a table; that they were exported is noted."""
    stored = server.lessons.all()
    server.audit.note("owner", "export_lessons", lessons=len(stored))
    headers = {"Content-Disposition": 'attachment; filename="lessons.csv"'}
    return Response(write_csv(stored), media_type="text/csv; charset=utf-8", headers=headers)


@router.get("/audit")
def audit(server: ServiceDep, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> Json:
    """Who did what, the latest first."""
    return {"entries": server.audit.latest(limit)}
