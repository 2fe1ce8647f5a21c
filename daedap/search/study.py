"""The search: trials by TPE, those that fall behind the median stopped early, until the time or their number is up."""

from __future__ import annotations

import logging
import math
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from daedap.errors import SettingsError
from daedap.language import say
from daedap.search.score import Marks, Rows, mark
from daedap.search.space import Space, options

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

    from daedap.lm.recipe import Learner, Recipe
    from daedap.lm.speaker import Speaker

_log = logging.getLogger("daedap")
_RANDOM = 8
"""Trials that are drawn before TPE has something to go by, and as many that run to their end."""
Learn = Callable[["Learner", "Recipe", Callable[[int, "Speaker"], None]], "Speaker"]
"""Trains; tells each epoch as it ends."""


@dataclass(frozen=True)
class Trials:
    """What a trial of this study is."""

    space: Space
    epochs: int | None
    """How often each learns its rows, where that isn't searched."""
    choosing: Rows
    comparing: Rows
    learn: Learn

    def __call__(self, trial: Trial) -> float:
        """Train with the values that the trial is given; its score on the choosing half of the dev rows."""
        from optuna import TrialPruned

        started = time.perf_counter()

        def watch(epoch: int, speaker: Speaker) -> None:
            trial.report(mark(speaker.log2_probability, self.choosing.glance).score, epoch)
            early = epoch < recipe.epochs and not trial.user_attrs.get("default")
            if early and trial.should_prune():
                raise TrialPruned

        learner, recipe = self._settings(self.space.ask(trial))
        try:
            speaker = self.learn(learner, recipe, watch)
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

    def _settings(self, found: dict[str, int | float | str]) -> tuple[Learner, Recipe]:
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


def _begin_with_defaults(study: Study, space: Space) -> None:
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
        _log.warning(say("Trial {number} failed: {options}", number=trial.number, options=options(trial.params)))
        return
    best = min((one.value for one in finished(study) if one.value is not None), default=math.nan)
    ended = say("stopped early") if trial.state.name == "PRUNED" else say("run to its end")
    told = "Trial {number}, {ended}: {score:.3f} (best {best:.3f})  {options}"
    _log.info(
        say(told, number=trial.number, ended=ended, score=trial.value, best=best, options=options(trial.params)),
    )
