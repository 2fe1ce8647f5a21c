"""Opening the database: SQLite beside the runs, or PostgreSQL by URL; brought to the current schema.

Commits are durable: SQLite writes ahead (WAL) and syncs at every commit.
"""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from filelock import FileLock
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine

from daedap.database.schema import METADATA, revisions
from daedap.errors import SettingsError, StorageError, first_line
from daedap.files import storage_errors
from daedap.runs import DATABASE

HEAD = "0002"
"""Revision of the schema that this version of daedap reads and writes."""
_MIGRATIONS = Path(__file__).parent / "migrations"
_POSTGRES = re.compile(r"^postgres(ql)?://")
_LOCK = 0x0DAEDA9
"""Of PostgreSQL's advisory lock that is held while the schema changes."""
_CONNECT_SECONDS = 10
"""For a server that does not answer at all; the system would wait for minutes."""


@dataclass(frozen=True)
class Database:
    """A database with the current schema."""

    engine: Engine

    @classmethod
    def open(cls, url: str | None, runs: Path) -> Database:
        """Connect and bring the schema up to date.

        Without a URL, that of the variable `DAEDAP_DB`, else the file `daedap.db` in the folder of the runs.

        Raises SettingsError for a URL that can't be used, StorageError when the database fails or is newer than this
        version of daedap.
        """
        url = url or os.environ.get("DAEDAP_DB")
        if not url:
            with storage_errors(runs):
                runs.mkdir(parents=True, exist_ok=True)
        database = cls(_engine(url or f"sqlite:///{runs / DATABASE}"))
        try:
            database.upgrade()
        except (sql.exc.SQLAlchemyError, sqlite3.Error) as error:
            raise StorageError(
                "{where}: the database can't be used ({error}).",
                "Check that it runs and that the URL is right.",
                where=without_password(url or str(runs / DATABASE)),
                error=first_line(getattr(error, "orig", None) or error),
            ) from error
        return database

    def write(self) -> AbstractContextManager[Connection]:
        """A transaction, committed at the end of the block."""
        return self.engine.begin()

    def read(self) -> Connection:
        """A connection for reading; each statement sees what was committed before it."""
        return self._reader.connect()

    @cached_property
    def _reader(self) -> Engine:
        return self.engine.execution_options(isolation_level="AUTOCOMMIT")

    @property
    def is_sqlite(self) -> bool:
        """Whether it is a file of this machine."""
        return self.engine.dialect.name == "sqlite"

    def insert(self, table: sql.Table) -> sqlite.Insert | postgresql.Insert:
        """An insertion that can say what to do on a conflict, which each dialect has a class of its own for."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()

    def revision(self) -> str | None:
        """The revision of its schema; None: an empty database."""
        with self.read() as connection, suppress(sql.exc.OperationalError, sql.exc.ProgrammingError):
            revision = connection.execute(sql.text("SELECT version_num FROM alembic_version")).scalar()
            return str(revision) if revision else None
        return None

    def upgrade(self) -> None:
        """Bring the schema up to date; processes that start at once take turns. Raises StorageError."""
        file = Path(self.engine.url.database) if self.is_sqlite and self.engine.url.database else None
        is_new = file and not (file.exists() and file.stat().st_size)
        if not is_new and self.revision() == HEAD:  # a reader of a new file would disturb whoever makes its schema
            return
        with FileLock(f"{file}.lock") if file else nullcontext():
            if self.is_sqlite:
                with self.read() as connection:
                    connection.exec_driver_sql("PRAGMA journal_mode=WAL")  # stays so in the file
            with self.write() as connection:
                if not self.is_sqlite:
                    connection.execute(sql.text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
                change = _create if self.revision() is None else _migrate
                change(connection)


@dataclass(frozen=True)
class Store:
    """A part of a database: some of its tables, and what is asked of them."""

    database: Database


def without_password(url: str) -> str:
    """A URL that may be shown."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)


def with_driver(url: str, option: str) -> str:
    """The URL with the PostgreSQL driver psycopg if it names none. Raises SettingsError if that is not installed."""
    if _POSTGRES.match(url) and not find_spec("psycopg"):
        raise SettingsError(
            "{option} {url}: the driver for PostgreSQL is not installed.",
            'Install it: pip install "daedap[postgresql]"',
            option=option,
            url=without_password(url),
        )
    return _POSTGRES.sub("postgresql+psycopg://", url)


def unusable_url(url: str, option: str, error: Exception) -> SettingsError:
    """The refusal of a URL that names no database."""
    return SettingsError(
        "{option} {url}: no database that can be used here ({error}).",
        "Try postgresql://user@host/name.",
        option=option,
        url=without_password(url),
        error=first_line(error),
    )


def _engine(url: str) -> Engine:
    url = with_driver(url, "--db")
    try:
        if not url.startswith("sqlite"):
            made = sql.make_url(url)
            wait = {} if "connect_timeout" in made.query else {"connect_timeout": _CONNECT_SECONDS}
            return sql.create_engine(made, connect_args=wait, pool_pre_ping=True, pool_size=10)
        engine = sql.create_engine(url, connect_args={"timeout": 30, "check_same_thread": False})
    except (sql.exc.ArgumentError, sql.exc.NoSuchModuleError, ImportError) as error:
        raise unusable_url(url, "--db", error) from error
    sql.event.listen(engine, "connect", _set_up_sqlite)
    sql.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where _begin_sqlite says, not where the driver guesses
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    """Take the write lock at once: a transaction that reads first and writes later would fail when others write."""
    if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _create(connection: Connection) -> None:
    """A new database: its schema at once, as alembic would leave it, without the second that loading alembic takes."""
    METADATA.create_all(connection)
    connection.execute(revisions.insert().values(name="lessons", value=0))
    connection.execute(sql.text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
    connection.execute(sql.text("INSERT INTO alembic_version VALUES (:head)"), {"head": HEAD})


def _migrate(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StorageError(
            "The database was made by a newer version of daedap ({error}).",
            "Upgrade daedap: pip install -U daedap",
            error=error,
        ) from error
