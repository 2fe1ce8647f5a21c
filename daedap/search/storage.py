"""Where studies are kept: a SQLite file in the study's folder, or a database that many machines share."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from daedap.errors import SettingsError, StorageError
from daedap.files import storage
from daedap.runs import Json

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage

_BEAT, _GRACE = 3, 15
"""Seconds between signs of life of a trial, and after how many without one it counts as killed."""
_RETRIES = 3
_POSTGRES = re.compile(r"^postgres(ql)?://")


def need_optuna() -> None:
    """Raise SettingsError where the search's libraries are not installed."""
    if not find_spec("optuna"):
        raise SettingsError("daedap tune needs Optuna, which is not installed.", "Install it: pip install daedap[tune]")


@contextmanager
def open_study(url: str | None, folder: Path, name: str, asked: Json, scale: Json) -> Iterator[Study]:
    """The study of this name, made with `asked` and `scale` where there is none yet; its heart beats while trials run.

    A study knows what was asked of it: raises SettingsError when it was something else, and StorageError when the
    database can't be reached, at any time.
    """
    with storage(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with connected(url or f"sqlite:///{folder / 'study.db'}") as there:
        study = _joined(there, name, asked, scale)
        _refuse_another(study.user_attrs["asked"], asked, name)
        yield study


@contextmanager
def connected(url: str) -> Iterator[RDBStorage]:
    """Optuna's storage in a database. Raises SettingsError and StorageError."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with _told(url):
        there = _connect(_with_driver(url))
        try:
            yield there
        finally:
            there.remove_session()
            there.engine.dispose()


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Tell a database that is not there, or no longer, in one clear line (StorageError)."""
    import sqlalchemy as sql
    from optuna.exceptions import StorageInternalError

    try:
        yield
    except (sql.exc.SQLAlchemyError, StorageInternalError) as error:
        cause = getattr(error, "orig", None) or getattr(error.__cause__, "orig", None) or error
        raise StorageError(
            "{where}: the database can't be used ({error}).",
            "See that it runs and that the URL is right; the same command goes on with the study.",
            where=_without_password(url),
            error=str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__,
        ) from error


def _with_driver(url: str) -> str:
    """With the driver that daedap brings, where none is named. Raises SettingsError when it isn't installed."""
    if _POSTGRES.match(url):
        if not find_spec("psycopg"):
            raise SettingsError(
                "--storage {url}: the driver for PostgreSQL is not installed.",
                "Install it: pip install daedap[postgresql]",
                url=_without_password(url),
            )
        return _POSTGRES.sub("postgresql+psycopg://", url)
    return url


def _without_password(url: str) -> str:
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)


def _connect(url: str) -> RDBStorage:
    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
    from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError, ProgrammingError

    patience = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # signs of life are one, since 2021
        retry = RetryHeartbeatStaleTrialCallback(max_retry=_RETRIES)
        for attempt in range(5):
            try:
                return RDBStorage(
                    url,
                    engine_kwargs=patience,
                    heartbeat_interval=_BEAT,
                    grace_period=_GRACE,
                    heartbeat_stale_trial_callback=retry,
                )
            except (ArgumentError, NoSuchModuleError, ImportError) as error:
                raise SettingsError(
                    "--storage {url}: no database that can be used here ({error}).",
                    "Try postgresql://user@host/name.",
                    url=_without_password(url),
                    error=str(error).splitlines()[0],
                ) from error
            except DBAPIError as error:  # two machines that make the tables at once disturb each other
                at_once = isinstance(error, IntegrityError | ProgrammingError) or "already exists" in str(error)
                if attempt == 4 or not at_once:
                    raise
                time.sleep(0.5 * (attempt + 1))
    raise AssertionError("either the storage is returned or an error is raised")


def _joined(storage: RDBStorage, name: str, asked: Json, scale: Json) -> Study:
    """The study, whoever made it; its maker alone says what a trial is."""
    import optuna

    try:
        study = optuna.create_study(storage=storage, study_name=name, direction="minimize")
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(storage=storage, study_name=name)
        for _ in range(20):
            if "asked" in study.user_attrs:
                return study
            time.sleep(0.25)  # unless it was killed right after it had made the study
    study.set_user_attr("scale", scale)
    study.set_user_attr("asked", asked)
    return study


def _refuse_another(there: Json, asked: Json, name: str) -> None:
    if differing := [key for key in asked if there.get(key) != asked[key]]:
        raise SettingsError(
            "--study {name}: that study was begun with something else ({differing}).",
            "Name another one, or leave --study out.",
            name=name,
            differing=", ".join(differing),
        )
