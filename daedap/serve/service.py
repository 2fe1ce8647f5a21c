"""A question's path behind the routes: through the queue to a bot, and its reply into the database."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import IntegrityError, OperationalError
from starlette.concurrency import run_in_threadpool

from daedap.config import AnswerOptions
from daedap.database.connection import Database
from daedap.database.conversations import ComparisonStore, ConversationStore, StoredReply
from daedap.database.lessons import LONGEST_QUESTION, LessonStore, count_hits
from daedap.database.schema import now
from daedap.database.server_state import AuditLog, EventStore, OwnerSessions, digest
from daedap.errors import RunError
from daedap.retrieval.bot import Bot
from daedap.retrieval.query import printable
from daedap.serve.batcher import Batcher
from daedap.serve.bots import Bots, Question
from daedap.serve.errors import ApiError, invalid, not_found
from daedap.serve.observability import Metrics, log_failure, log_reply
from daedap.serve.options import ServeOptions
from daedap.serve.security import RateLimit
from daedap.types import Message, Pair, Reply, Sampling

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.engine import Connection

_WRITES = 10_000
"""Maximum number of queued writes."""
_LOGINS_PER_MINUTE = 5
_TURNS = 3
"""Questions and answers that a bot with a language model remembers of a conversation."""
_LESSON_SECONDS, _RUN_SECONDS, _SWEEP_SECONDS = 0.3, 2.0, 3600.0
"""Polling intervals in seconds: for changed lessons, newer runs and expired conversations."""


@dataclass(frozen=True)
class Change:
    """What is written to the database, and the lesson that answered, if one did."""

    write: Callable[[Connection], Any]
    lesson: str | None = None


class Service:
    """One server process: its bots, its database, and the two queues in front of them."""

    def __init__(
        self, run: str, runs: Path, options: ServeOptions, answer_options: AnswerOptions, password: str
    ) -> None:
        """Open database and bot; `password`: the owner's. Raises RunError, SettingsError and StorageError."""
        self.options, self.password = options, password
        self.database = database = Database.open(options.db, runs)
        self.conversations, self.lessons = ConversationStore(database), LessonStore(database)
        self.comparisons = ComparisonStore(database)
        self.audit, self.sessions, self.events = AuditLog(database), OwnerSessions(database), EventStore(database)
        self.bots = Bots(runs, run, answer_options, self.lessons)
        self.metrics = metrics = Metrics()
        self.request_limit = RateLimit(options.requests_per_minute, "requests")
        self.login_limit = RateLimit(_LOGINS_PER_MINUTE, "logins")
        self._questions: Batcher[Question, Reply] = Batcher(
            self.bots.answer, options.queue, on_batch=lambda jobs, _: metrics.batch.observe(jobs)
        )
        self._writes: Batcher[Change, Any] = Batcher(
            self._commit,
            _WRITES,
            at_once=500,
            name="writer",
            busy="The database is too slow for the replies to be stored. Try again soon.",
            late="The database did not store the reply in time.",
        )

    def _commit(self, changes: Sequence[Change]) -> Sequence[Any]:
        """Make changes in one transaction, which costs one sync to the disk; one that fails, fails alone."""
        try:
            return self._transaction(changes)
        except OperationalError:  # deadlock victim or server restart: the transaction was rolled back, so try once more
            return self._transaction(changes)

    def _transaction(self, changes: Sequence[Change]) -> Sequence[Any]:
        results, hits = list[Any](), Counter[str]()
        with self.database.write() as connection:
            for change in changes:
                try:
                    with connection.begin_nested():
                        results.append(change.write(connection))
                except OperationalError:
                    raise
                except Exception as error:
                    results.append(error)
                else:
                    hits.update([change.lesson] if change.lesson else [])
            count_hits(connection, hits)
        return results

    async def write(self, change: Change) -> Any:
        """Make a change to the database; it is on the disk when this returns."""
        return await self._writes.submit(None, change, self.options.timeout)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the queues and the polling tasks; at the end, drain the queues."""
        workers = [self._questions.run(), self._writes.run(), _repeat(self.bots.refresh_lessons, _LESSON_SECONDS)]
        if self.options.watch:
            workers.append(_repeat(self.bots.refresh_run, _RUN_SECONDS))
        if self.options.retention_days is not None:
            workers.append(_repeat(self.delete_old, _SWEEP_SECONDS))
        tasks = [asyncio.create_task(worker) for worker in workers]
        try:
            yield
        finally:
            await self._questions.drain()
            await self._writes.drain()
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            self.database.close()

    def delete_old(self) -> None:
        """Delete conversations older than the retention period."""
        assert self.options.retention_days is not None, "running() asks"
        if count := self.conversations.delete(before=now(-timedelta(days=self.options.retention_days))):
            self.audit.note("server", "delete_old", conversations=count)

    async def bot(self, number: int | None) -> Bot:
        """The bot of a run, by number. Raises ApiError (404)."""
        try:
            return self.bots.current if number is None else await run_in_threadpool(self.bots.get, number)
        except RunError as error:
            raise not_found("run") from error

    async def reply(self, client: str, question: Question) -> Reply:
        """A bot's reply, when its turn comes. Counted in the metrics, not stored."""
        started = time.perf_counter()
        self.metrics.waiting.set(len(self._questions) + 1)
        try:
            reply = await self._questions.submit(client, question, self.options.timeout)
        finally:
            self.metrics.waiting.set(len(self._questions))
        seconds = time.perf_counter() - started
        self.metrics.replies.labels(reply.source).inc()
        self.metrics.seconds.observe(seconds)
        return reply

    async def ask(
        self,
        client: str,
        question: str,
        *,
        conversation: str | None = None,
        run: int | None = None,
        id: str | None = None,
    ) -> StoredReply:
        """Answer a visitor's question, and store both unless the server stores nothing.

        `id`: of the reply; a request that is repeated gets the same reply again.
        """
        started = time.perf_counter()
        if not question.strip():
            raise invalid("The question is empty.", "question")
        if len(question) > LONGEST_QUESTION:
            raise invalid(f"The question is longer than {LONGEST_QUESTION} characters.", "question")
        if conversation and await run_in_threadpool(self.conversations.owner_of, conversation) != client:
            raise not_found("conversation")
        if id and (earlier := await run_in_threadpool(self.conversations.reply, id, client)):
            return earlier
        bot = await self.bot(run)
        history: list[Message] = []
        if conversation and bot.generates:
            for turn in await run_in_threadpool(self.conversations.replies, conversation, _TURNS):
                history += (Message("user", turn.question), Message("assistant", turn.answer))
        reply = await self.reply(client, make_question(bot, question, history))
        kept_in = (conversation or uuid.uuid4().hex) if self.options.store else None
        stored = _stored(reply, bot, started, id, kept_in)
        await self._store(client, stored, begins=conversation is None)
        return stored

    async def complete(self, caller: str, question: Question) -> Reply:
        """Answer an API client's question; it is stored only with --store-api."""
        started = time.perf_counter()
        reply = await self.reply(caller, question)
        kept_in = uuid.uuid4().hex if self.options.store and self.options.store_api else None
        await self._store(digest(caller), _stored(reply, question.bot, started, None, kept_in))
        return reply

    async def _store(self, client: str, stored: StoredReply, *, begins: bool = True) -> None:
        """Store a reply that has a conversation, count its lesson as used, and log it."""

        def store(connection: Connection) -> None:
            if stored.conversation:
                self.conversations.add(connection, client, stored, begins=begins)

        if stored.conversation or stored.lesson:
            try:
                await self.write(Change(store, stored.lesson))
            except IntegrityError as error:  # two requests with the same id at once
                raise ApiError(409, "conflict", "A reply with this id already exists.", param="id") from error
        log_reply(stored.id, stored.question, stored.source, stored.milliseconds)


def _stored(reply: Reply, bot: Bot, started: float, id: str | None, conversation: str | None) -> StoredReply:
    return StoredReply(
        id=id or uuid.uuid4().hex,
        conversation=conversation,
        run=bot.run.number,
        lesson=reply.lesson.id if reply.lesson else None,
        milliseconds=round(1000 * (time.perf_counter() - started)),
        time=now(),
        **reply.to_json(),
    )


def make_question(bot: Bot, text: str, history: Sequence[Message] = (), sampling: Sampling | None = None) -> Question:
    """A question as it waits for its turn."""
    return Question(bot, Pair(plain(text), "", history=tuple(history)), sampling)


def plain(text: str) -> str:
    """Text that every database and tokenizer accepts: without NUL, with lone surrogates as "?"."""
    return printable(text).replace("\0", "")


async def _repeat(action: Callable[[], object], seconds: float) -> None:
    """Call `action` every so many seconds until cancelled; a failure is logged, and a call in progress is finished."""
    while True:
        await asyncio.sleep(seconds)
        doing = asyncio.ensure_future(run_in_threadpool(action))
        try:
            await asyncio.shield(doing)
        except asyncio.CancelledError:  # the database must not be closed while a thread reads from it
            await asyncio.wait([doing])
            raise
        except Exception as error:
            log_failure(error)
