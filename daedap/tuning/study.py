"""Where studies are kept: a SQLite file in the study's folder, or a database that many machines share.

The search: trials by TPE, those that fall behind the median stopped early, until the time or their number is up.

What is searched for: the rows, the space around what was told, the study; and the search itself.
"""

from __future__ import annotations

import logging
import math
import re
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from daedap.config import ModelOptions, TrainOptions
from daedap.errors import SettingsError, StorageError
from daedap.files import storage
from daedap.i18n import translate
from daedap.runs import Json
from daedap.tuning.objective import Marks, Rows, mark
from daedap.tuning.space import SearchSpace, options

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial, Trial

    from daedap.config import ModelOptions, TrainOptions
    from daedap.model.language_model import TorchModel

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


_log = logging.getLogger("daedap")
_RANDOM = 8
"""Trials that are drawn before TPE has something to go by, and as many that run to their end."""
Learn = Callable[["ModelOptions", "TrainOptions", Callable[[int, "TorchModel"], None]], "TorchModel"]
"""Trains; tells each epoch as it ends."""


@dataclass(frozen=True)
class Trials:
    """What a trial of this study is."""

    space: SearchSpace
    epochs: int | None
    """How often each learns its rows, where that isn't searched."""
    choosing: Rows
    comparing: Rows
    learn: Learn

    def __call__(self, trial: Trial) -> float:
        """Train with the values that the trial is given; its score on the choosing half of the dev rows."""
        from optuna import TrialPruned

        started = time.perf_counter()

        def watch(epoch: int, speaker: TorchModel) -> None:
            trial.report(mark(speaker.log2_probability, self.choosing.glance).score, epoch)
            early = epoch < train_options.epochs and not trial.user_attrs.get("default")
            if early and trial.should_prune():
                raise TrialPruned

        model_options, train_options = self._settings(self.space.ask(trial))
        try:
            speaker = self.learn(model_options, train_options, watch)
            chosen, compared = (
                mark(speaker.log2_probability, self.choosing),
                mark(speaker.log2_probability, self.comparing),
            )
            for name, value in _attributes(chosen, compared).items():
                trial.set_user_attr(name, value)
        except SettingsError as error:
            trial.set_user_attr("refused", str(error))
            raise
        finally:
            trial.set_user_attr("seconds", round(time.perf_counter() - started, 2))
        return chosen.score

    def _settings(self, found: dict[str, int | float | str]) -> tuple[ModelOptions, TrainOptions]:
        return self.space.settings(found if self.epochs is None else {**found, "num_train_epochs": self.epochs})


def _attributes(chosen: Marks, compared: Marks) -> dict[str, object]:
    """What is kept of a finished trial."""
    return {"bpc": chosen.bpc, "gain": chosen.gain, "bits": [round(bits, 3) for bits in compared.bits.tolist()]}


def search(study: Study, trials: Trials, *, seconds: float, most: int | None, seed: int | None) -> None:
    """Try until the time is up or so many trials have ended; the defaults come first, and are never stopped early.

    Raises SettingsError when the defaults themselves can't be trained.
    """
    import optuna
    from optuna.exceptions import ExperimentalWarning
    from optuna.trial import TrialState

    until = time.perf_counter() + seconds
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=_RANDOM // 2, n_warmup_steps=1)
    study.sampler = _sampler(None if seed is None else seed + len(study.trials))
    while True:
        _begin_with_defaults(study, trials.space)
        known = default_of(study) is not None
        enough = most is not None and len(study.get_trials(deepcopy=False, states=ended)) >= most
        if known and (enough or time.perf_counter() + _usual_seconds(study) > until):
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            if enough and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                time.sleep(1)  # until another worker has tried the defaults, or is known to be dead
                optuna.storages.fail_stale_trials(study)
            else:
                _try_once(study, trials)


def _try_once(study: Study, trials: Trials) -> None:
    try:
        study.optimize(trials, n_trials=1, catch=(SettingsError,), callbacks=[_tell])
    except ValueError as error:
        # It gave no sign of life, for the machine slept: another worker has it.
        if "Cannot tell a" not in str(error):
            raise


def finished(study: Study) -> list[FrozenTrial]:
    """Trials that ran to their end."""
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def default_of(study: Study) -> FrozenTrial | None:
    """The finished trial with the settings that the search starts from."""
    return next((trial for trial in finished(study) if trial.user_attrs.get("default")), None)


def _begin_with_defaults(study: Study, space: SearchSpace) -> None:
    """Let them be tried unless they are, or will be, or somebody else is at it."""
    from optuna.trial import TrialState

    defaults = [trial for trial in study.trials if trial.user_attrs.get("default")]
    for trial in defaults:
        if refused := trial.user_attrs.get("refused"):
            raise SettingsError("The defaults can't be trained: {refused}", refused=refused)
    alive = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING)
    if not any(trial.state in alive for trial in defaults):
        study.enqueue_trial(space.defaults, user_attrs={"default": True})


def _sampler(seed: int | None) -> object:
    import optuna
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=_RANDOM, multivariate=True)


def _usual_seconds(study: Study) -> float:
    """Of a trial that runs to its end."""
    spent = [trial.user_attrs["seconds"] for trial in finished(study)]
    return statistics.median(spent) if spent else 0.0


def _tell(study: Study, trial: FrozenTrial) -> None:
    if trial.state.name == "FAIL":
        _log.warning(translate("Trial {number} failed: {options}", number=trial.number, options=options(trial.params)))
        return
    best = min((one.value for one in finished(study) if one.value is not None), default=math.nan)
    ended = translate("stopped early") if trial.state.name == "PRUNED" else translate("run to its end")
    told = "Trial {number}, {ended}: {score:.3f} (best {best:.3f})  {options}"
    _log.info(
        translate(told, number=trial.number, ended=ended, score=trial.value, best=best, options=options(trial.params)),
    )
