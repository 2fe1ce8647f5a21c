"""A study: what is searched, its database, and the trials that run in it.

The space: a few options around their defaults, without those that the user set to another value. Trials and their
scores are kept by Optuna in a SQLite file or in a database that many machines share. The search draws trials by TPE and
prunes those behind the median (Akiba et al. 2019), until its time or the number of trials is used up.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daedap.config import ModelOptions, TrainOptions
from daedap.database.connection import unusable_url, with_driver, without_password
from daedap.errors import SettingsError, StorageError, first_line
from daedap.files import storage_errors
from daedap.i18n import translate
from daedap.runs import Json
from daedap.tuning.objective import DevRows, measure_objective

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial, Trial

    from daedap.model.language_model import TorchModel
    from daedap.training.planner import Plan

_log = logging.getLogger("daedap")
_HEARTBEAT, _GRACE_PERIOD = 3, 15
"""Seconds between heartbeats of a running trial, and without one until it counts as killed."""
_RETRIES = 3
"""Retries of a killed trial."""
_RANDOM_TRIALS = 8
"""Trials drawn at random before TPE starts."""
Value = int | float | str
Values = Mapping[str, Value]
"""Name of an option → its value."""
AUGMENTATIONS = ("none", "typo", "polite", "typo,spacing")


@dataclass(frozen=True)
class Axis:
    """An option and its range: `choices`, or numbers from `low` to `high`."""

    name: str
    default: Value
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    choices: tuple[str, ...] = ()

    def suggest(self, trial: Trial) -> Value:
        """The value that the sampler proposes for a trial."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if isinstance(self.default, int):
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)


@dataclass(frozen=True)
class SearchSpace:
    """The axes, and the options for everything else."""

    axes: tuple[Axis, ...]
    model_options: ModelOptions
    train_options: TrainOptions

    @property
    def defaults(self) -> dict[str, Value]:
        """The default of every axis: the first trial."""
        return {axis.name: axis.default for axis in self.axes}

    def suggest(self, trial: Trial) -> dict[str, Value]:
        """The values that the sampler proposes for a trial."""
        return {axis.name: axis.suggest(trial) for axis in self.axes}

    def to_options(self, values: Values) -> tuple[ModelOptions, TrainOptions]:
        """The options with these values; `lora_alpha` keeps its ratio to `lora_r`."""
        changed: dict[str, Any] = dict(values)
        if "augment" in changed:
            changed["augment"] = () if changed["augment"] == "none" else tuple(changed["augment"].split(","))
        if "lora_r" in changed:
            ratio = self.model_options.lora_alpha / self.model_options.lora_r
            changed["lora_alpha"] = max(1, round(changed["lora_r"] * ratio))
        of_model = {name: changed.pop(name) for name in asdict(self.model_options) if name in changed}
        return replace(self.model_options, **of_model), replace(self.train_options, **changed)


def space_around(
    model_options: ModelOptions, train_options: TrainOptions, plan: Plan, method: str, rate: float, *, epochs: bool
) -> SearchSpace:
    """The space around the given options; `rate` is the default learning rate, `epochs`: search their number too."""
    axes: list[Axis] = []
    if train_options.learning_rate is None:
        axes.append(Axis("learning_rate", rate, rate / 4, min(4 * rate, 0.5), log=True))
    if train_options.weight_decay == TrainOptions().weight_decay:
        axes.append(Axis("weight_decay", train_options.weight_decay, 1e-3, 0.3, log=True))
    if model_options.dropout == ModelOptions().dropout:
        axes.append(Axis("dropout", model_options.dropout, 0.0, 0.3, step=0.05))
    if epochs:
        most = max(3, math.ceil(1.6 * train_options.epochs))
        axes.append(Axis("num_train_epochs", train_options.epochs, 1, most))
    if model_options.layers is None and plan.blocks > 1:
        axes.append(_layers(plan, method))
    if method == "lora" and model_options.lora_r == ModelOptions().lora_r:
        axes.append(Axis("lora_r", model_options.lora_r, 4, 64, log=True))
    if not train_options.augment:
        axes.append(Axis("augment", AUGMENTATIONS[0], choices=AUGMENTATIONS))
    return SearchSpace(tuple(axes), model_options, train_options)


def as_flag(name: str, value: Value) -> str:
    """An option as it is typed on the command line."""
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return f"--{name.replace('_', '-')} {text}"


def as_flags(values: Values) -> str:
    """All options as they are typed, without `--augment none`."""
    return " ".join(as_flag(name, value) for name, value in values.items() if (name, value) != ("augment", "none"))


def _layers(plan: Plan, method: str) -> Axis:
    """With LoRA at most half of the layers: the frozen ones below run only once, which is what makes it fast."""
    low, high = (1, math.ceil(plan.blocks / 2)) if method == "lora" else (math.ceil(plan.blocks / 3), plan.blocks)
    return Axis("layers", plan.layers, low, max(high, plan.layers))


def require_optuna() -> None:
    """Raise SettingsError if Optuna is not installed."""
    if not find_spec("optuna"):
        raise SettingsError(
            "daedap tune needs Optuna, which is not installed.", 'Install it: pip install "daedap[tune]"'
        )


@contextmanager
def open_study(url: str | None, folder: Path, name: str, signature: Json, trial_size: Json) -> Iterator[Study]:
    """The study of this name in the database `url` (None: a SQLite file in `folder`), created if there is none.

    `signature` identifies file, base and options, `trial_size` the rows and epochs of a trial; both are stored when the
    study is created. Raises SettingsError if the stored signature is another one, and StorageError if the database
    fails at any time within the block.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with open_storage(url or f"sqlite:///{folder / 'study.db'}") as database:
        study = _create_or_load(database, name, signature, trial_size)
        stored = study.user_attrs["asked"]
        if differing := [key for key in signature if stored.get(key) != signature[key]]:
            raise SettingsError(
                "--study {name}: that study was started with other settings ({differing}).",
                "Name another one, or leave --study out.",
                name=name,
                differing=", ".join(differing),
            )
        yield study


@contextmanager
def open_storage(url: str) -> Iterator[RDBStorage]:
    """Optuna's storage in a database. Raises SettingsError, and StorageError if it can't be reached or fails."""
    import optuna
    import sqlalchemy as sql

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        database = _connect(with_driver(url, "--storage"))
        try:
            yield database
        finally:
            database.remove_session()
            database.engine.dispose()
    except (sql.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = getattr(error, "orig", None) or getattr(error.__cause__, "orig", None) or error
        raise StorageError(
            "{where}: the database can't be used ({error}).",
            "Check that it runs and that the URL is right; the same command continues the study.",
            where=without_password(url),
            error=first_line(cause),
        ) from error


@contextmanager
def _experimental() -> Iterator[None]:
    """Without Optuna's warnings: heartbeats have been experimental since 2021, multivariate TPE since 2020."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def _connect(url: str) -> RDBStorage:
    from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
    from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError, ProgrammingError

    engine_kwargs = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    with _experimental():
        retry = RetryHeartbeatStaleTrialCallback(max_retry=_RETRIES)
        for attempt in range(5):
            try:
                return RDBStorage(
                    url,
                    engine_kwargs=engine_kwargs,
                    heartbeat_interval=_HEARTBEAT,
                    grace_period=_GRACE_PERIOD,
                    heartbeat_stale_trial_callback=retry,
                )
            except (ArgumentError, NoSuchModuleError, ImportError) as error:
                raise unusable_url(url, "--storage", error) from error
            except DBAPIError as error:  # two machines create the tables at the same time
                race = isinstance(error, IntegrityError | ProgrammingError) or "already exists" in str(error)
                if attempt == 4 or not race:
                    raise
                time.sleep(0.5 * (attempt + 1))
    raise AssertionError("either the storage is returned or an error is raised")


def _create_or_load(database: RDBStorage, name: str, signature: Json, trial_size: Json) -> Study:
    """The study; only the process that creates it stores signature and trial size."""
    import optuna

    try:
        study = optuna.create_study(storage=database, study_name=name, direction="minimize")
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(storage=database, study_name=name)
        for _ in range(20):
            if "asked" in study.user_attrs:
                return study
            time.sleep(0.25)  # its creator has not stored them yet, or was killed before it could
    study.set_user_attr("scale", trial_size)
    study.set_user_attr("asked", signature)
    return study


Train = Callable[["ModelOptions", "TrainOptions", Callable[[int, "TorchModel"], None]], "TorchModel"]
"""Trains a model and calls back after each epoch with its number and the model so far."""


@dataclass(frozen=True)
class TrialRunner:
    """Optuna's objective function: one trial from sampled values to a score."""

    space: SearchSpace
    epochs: int | None
    """Epochs of every trial; None: searched, or as in the options."""
    selection: DevRows
    comparison: DevRows
    train: Train

    def __call__(self, trial: Trial) -> float:
        """Train with the trial's values; the objective on the selection rows. Raises TrialPruned and SettingsError."""
        from optuna import TrialPruned

        started = time.perf_counter()

        def after_epoch(epoch: int, model: TorchModel) -> None:
            trial.report(measure_objective(model.log2_probability, self.selection.for_pruning).score, epoch)
            prunable = epoch < train_options.epochs and not trial.user_attrs.get("default")
            if prunable and trial.should_prune():
                raise TrialPruned

        model_options, train_options = self._options(self.space.suggest(trial))
        try:
            model = self.train(model_options, train_options, after_epoch)
            selected, compared = (
                measure_objective(model.log2_probability, rows) for rows in (self.selection, self.comparison)
            )
            trial.set_user_attr("bpc", selected.bpc)
            trial.set_user_attr("gain", selected.gain)
            trial.set_user_attr("bits", [round(value, 3) for value in compared.bits.tolist()])
        except SettingsError as error:
            trial.set_user_attr("refused", str(error))
            raise
        finally:
            trial.set_user_attr("seconds", round(time.perf_counter() - started, 2))
        return selected.score

    def _options(self, values: dict[str, Value]) -> tuple[ModelOptions, TrainOptions]:
        return self.space.to_options(values if self.epochs is None else {**values, "num_train_epochs": self.epochs})


def run_trials(study: Study, runner: TrialRunner, *, seconds: float, max_trials: int | None, seed: int | None) -> None:
    """Run trials until the time or the number of trials is used up; the default trial comes first, and is never pruned.

    Raises SettingsError if the defaults can't be trained.
    """
    import optuna
    from optuna.trial import TrialState

    deadline = time.perf_counter() + seconds
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=_RANDOM_TRIALS // 2, n_warmup_steps=1)
    seed = None if seed is None else seed + len(study.trials)
    with _experimental():
        study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_RANDOM_TRIALS, multivariate=True)
    while True:
        _enqueue_defaults(study, runner.space)
        enough = max_trials is not None and len(study.get_trials(deepcopy=False, states=ended)) >= max_trials
        durations = [trial.user_attrs["seconds"] for trial in finished_trials(study)]
        out_of_time = time.perf_counter() + statistics.median(durations or [0.0]) > deadline
        if default_trial(study) is not None and (enough or out_of_time):
            return
        with _experimental():
            if enough and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                time.sleep(1)  # another worker runs the default trial: wait until it ends or its heartbeat stops
                optuna.storages.fail_stale_trials(study)
            else:
                _run_trial(study, runner)


def _run_trial(study: Study, runner: TrialRunner) -> None:
    try:
        study.optimize(runner, n_trials=1, catch=(SettingsError,), callbacks=[_log_trial])
    except ValueError as error:
        # The heartbeat stopped, as when the machine sleeps, and another worker has taken the trial over.
        if "Cannot tell a" not in str(error):
            raise


def finished_trials(study: Study) -> list[FrozenTrial]:
    """Trials that were neither pruned nor failed."""
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def default_trial(study: Study) -> FrozenTrial | None:
    """The finished trial with the default of every axis."""
    return next((trial for trial in finished_trials(study) if trial.user_attrs.get("default")), None)


def _enqueue_defaults(study: Study, space: SearchSpace) -> None:
    """Enqueue the default trial unless it is finished, running or waiting. Raises SettingsError if it was refused."""
    from optuna.trial import TrialState

    defaults = [trial for trial in study.trials if trial.user_attrs.get("default")]
    for trial in defaults:
        if refused := trial.user_attrs.get("refused"):
            raise SettingsError("The defaults can't be trained: {refused}", refused=refused)
    alive = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING)
    if not any(trial.state in alive for trial in defaults):
        study.enqueue_trial(space.defaults, user_attrs={"default": True})


def _log_trial(study: Study, trial: FrozenTrial) -> None:
    flags = as_flags(trial.params)
    if trial.state.name == "FAIL":
        _log.warning(translate("Trial {number} failed: {options}", number=trial.number, options=flags))
        return
    best = min((one.value for one in finished_trials(study) if one.value is not None), default=math.nan)
    ended = translate("stopped early") if trial.state.name == "PRUNED" else translate("run to its end")
    template = "Trial {number}, {ended}: {score:.3f} (best {best:.3f})  {options}"
    _log.info(translate(template, number=trial.number, ended=ended, score=trial.value, best=best, options=flags))
