"""The database by itself: SQLite, and PostgreSQL where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import psycopg
import pytest
import sqlalchemy as sql
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from postgresql import DATABASES, database_url, new_database

from daedap.database.connection import HEAD, Database, _engine, _migrate
from daedap.database.conversations import ConversationStore, StoredReply
from daedap.database.lessons import LessonStore, count_hits, new_lesson
from daedap.database.schema import METADATA, events, now
from daedap.database.server_state import EventStore
from daedap.errors import SettingsError, StorageError


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return database_url(request) or f"sqlite:///{tmp_path / 'daedap.db'}"


@pytest.fixture
def database(url: str, tmp_path: Path) -> Iterator[Database]:
    opened = Database.open(url, tmp_path)
    yield opened
    opened.close()


def reply(id: str, question: str = "질문") -> StoredReply:
    received: dict[str, Any] = {
        "evidence": {"question": "질문", "answer": "답", "similarity": 0.5},
        "suggestions": ["다른 질문"],
        "run": 1,
        "lesson": None,
        "milliseconds": 1,
        "time": now(),
    }
    return StoredReply(
        id=id, conversation="c", question=question, answer="답", source="retrieved", score=0.1, **received
    )


def at_once(*actions: Callable[[], Any]) -> list[Any]:
    """What actions return that begin at the same time, each in a thread of its own."""
    start = Barrier(len(actions))

    def act(action: Callable[[], Any]) -> Any:
        start.wait(30)
        return action()

    with ThreadPoolExecutor(len(actions)) as threads:
        return list(threads.map(act, actions))


def test_migrations_make_the_schema(url: str, tmp_path: Path) -> None:
    engine = _engine(url)
    with Database(engine).write() as connection:
        _migrate(connection)
    engine.dispose()
    old = Database.open(url, tmp_path)
    assert old.revision() == HEAD
    with old.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    assert LessonStore(old).revision() == 0
    old.close()


def test_a_new_database_is_what_the_migrations_make(database: Database) -> None:
    with database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    assert database.revision() == HEAD
    assert LessonStore(database).revision() == 0


def test_servers_that_start_at_once_make_the_schema_once(url: str, tmp_path: Path) -> None:
    opened = at_once(*[lambda: Database.open(url, tmp_path)] * 4)
    assert [each.revision() for each in opened] == [HEAD] * 4
    for each in opened:
        each.close()


def test_a_newer_database_is_refused(database: Database, url: str, tmp_path: Path) -> None:
    with database.write() as connection:
        connection.execute(sql.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StorageError, match="newer version of daedap"):
        Database.open(url, tmp_path)


def test_a_database_that_can_not_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "daedap.db").write_bytes(b"nonsense" * 1000)
    with pytest.raises(StorageError, match="can't be used"):
        Database.open(None, tmp_path)
    with pytest.raises(SettingsError, match="--db nonsense"):
        Database.open("nonsense", tmp_path)
    with pytest.raises(StorageError) as received:
        Database.open("postgresql://me:secret@127.0.0.1:1/none", tmp_path)
    assert "secret" not in str(received.value)


def test_replies_come_back_as_they_were_kept(database: Database) -> None:
    store, kept = ConversationStore(database), [reply("a", "가 😀\n'\"\\ <b>"), reply("b", "\u2028나")]
    with database.write() as connection:
        for each in kept:
            store.add(connection, "me", each)
    assert store.replies("c") == kept
    store.vote("a", "bad", "아니다")
    assert store.reply("a", "me") == replace(kept[0], vote="bad", comment="아니다")
    assert store.reply("a", "someone else") is None


def test_a_reply_to_a_conversation_that_was_deleted_is_not_kept(database: Database) -> None:
    store = ConversationStore(database)
    with database.write() as connection:
        store.add(connection, "me", reply("a"), begins=False)
    assert store.find("c") is None


def test_old_conversations_are_deleted_and_their_lessons_forget_them(database: Database) -> None:
    store, lessons = ConversationStore(database), LessonStore(database)
    with database.write() as connection:
        store.add(connection, "me", reply("r"))
    (lesson,) = lessons.add(new_lesson("질문", "답", origin="owner"))
    with database.write() as connection:
        connection.execute(sql.text("UPDATE lessons SET conversation = 'c', reply = 'r', was = '답'"))
    assert store.delete(before="2000") == 0
    assert store.delete(before=now() + "~") == 1
    assert store.find("c") is None
    found = lessons.find(lesson.id)
    assert found
    assert (found.conversation, found.reply, found.was) == (None, None, None)


def test_the_same_lesson_sent_to_two_servers_at_once_is_taught_once(database: Database) -> None:
    lessons, one = LessonStore(database), new_lesson("질문", "답", origin="owner", id="one-and-only")
    assert at_once(*[lambda: lessons.add(one)] * 6) == [[one]] * 6
    assert lessons.all() == [one]
    assert lessons.revision() == 6, "whoever looks at the number sees every change"


def test_a_lesson_that_is_accepted_again_replaces_again(database: Database) -> None:
    lessons = LessonStore(database)
    (old,) = lessons.add(new_lesson("배송은 며칠 걸려요", "이틀이요.", origin="owner"))
    new = lessons.accept(old.id, {"question": "배송은 언제 와요", "answer": "사흘 걸려요."})
    assert new
    lessons.undo(new.id)
    assert [one.id for one in lessons.in_force()] == [old.id]
    lessons.accept(new.id)
    assert [one.id for one in lessons.in_force()] == [new.id], "never both"
    lessons.undo(new.id)
    assert [one.id for one in lessons.in_force()] == [old.id]


def test_two_servers_count_the_same_lessons(database: Database) -> None:
    lessons = LessonStore(database)
    ids = [one.id for one in lessons.add(*(new_lesson(f"질문 {n}", "답", origin="owner") for n in range(20)))]

    def count(order: list[str]) -> None:
        for _ in range(20):
            with database.write() as connection:
                count_hits(connection, dict.fromkeys(order, 2))

    at_once(lambda: count(ids), lambda: count(ids[::-1]))
    assert [one.hits for one in lessons.all()] == [80] * 20


def test_the_same_questions_dismissed_at_once(database: Database) -> None:
    store = ConversationStore(database)
    assert at_once(*[lambda: store.dismiss(["가나", "가 나", "다라"])] * 6) == [2] * 6


@pytest.mark.slow
def test_connections_that_postgresql_has_dropped_are_made_anew(postgresql: str, tmp_path: Path) -> None:
    database = Database.open(new_database(postgresql, "dropped"), tmp_path)
    assert LessonStore(database).revision() == 0
    drop = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'dropped'"
    with psycopg.connect(postgresql) as other:
        assert other.execute(drop).fetchall()
    assert LessonStore(database).revision() == 0
    database.close()


def test_sqlite_syncs_every_commit(tmp_path: Path) -> None:
    database = Database.open(None, tmp_path)
    with database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    database.close()


def test_an_event_is_claimed_once_and_forgotten(database: Database) -> None:
    store = EventStore(database)

    def claim(key: str = "e") -> bool:
        with database.write() as connection:
            return store.claim(connection, key)

    assert sorted(at_once(*[claim] * 4)) == [False, False, False, True]
    assert store.answer("e") is None
    with database.write() as connection:
        store.keep(connection, "e", {"text": "답"})
    assert (store.answer("e"), store.answer("다른 것")) == ({"text": "답"}, None)
    assert claim("f")
    with database.write() as connection:
        connection.execute(events.update().where(events.c.key == "e").values(time="2026-01-01T00:00:00.000Z"))
    assert claim()
    assert store.answer("e") is None, "it is another event by now"
